# SPDX-License-Identifier: Apache-2.0
"""Compiled libraries on disk, so that each is built once.

Loading a library runs what is in it. So the folder must belong to its user, and nobody else may
write there or put another folder in its place; and a library is loaded only if its bytes are
those that were built, from that source, for this processor and this version of torch.
"""

from __future__ import annotations

import fcntl
import functools
import grp
import hashlib
import json
import logging
import os
import platform
import pwd
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mpc_banded.codegen.build import FLAGS, Library, Started, compile_library

_log = logging.getLogger(__name__)

#: Folders in which builds are under way begin with this.
SCRATCH = "building-"
#: What helps against most troubles of a folder.
REMEDY = "name another folder with MPC_BANDED_CACHE"


class UnsafeCache(PermissionError):
    """The folder of the cache is not its user's alone; the message says what to do."""


class NotBuilt(LookupError):
    """A library is not in the cache.

    Attributes:
        build: Builds it; None where even that would take long to prepare. Returns its path in the
            cache, and raises as RecedingHorizonController.compile does.
    """

    build: Callable[[Started], Path] | None = None


class LibraryCache:
    """Shared libraries by what they were made from, each with a record of that.

    Args:
        folder: Created if missing; by default ``$MPC_BANDED_CACHE``, or ``mpc_banded`` in the
            user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``). Deleting it is always safe.

    Raises:
        UnsafeCache: The folder belongs to somebody else, or others may write there or above it.
        OSError: It cannot be created.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = (folder or default_folder()).absolute()
        try:
            _create(folder)
            self.folder = folder.parent.resolve() / folder.name
            _check_private(self.folder)
        except UnsafeCache:
            raise
        except OSError as error:
            raise _unusable(folder, error) from error

    def library(self, source: str, build: bool = True, started: Started | None = None) -> Library:
        """The library of a C source, from the cache or built; ``started`` as for compile_library.

        Raises:
            NotBuilt: It is not in the cache, or must not be loaded, and ``build`` is false.
            NoCompiler: It has to be built, and there is no compiler.
            OSError: It cannot be written or loaded.
        """
        made_from = {"source": _digest(source.encode()), **_machine()}
        key = _digest(json.dumps(made_from, sort_keys=True).encode())[:32]
        path = self.folder / f"{key}.so"
        fault = self._fault(path, made_from)
        if fault and not build:
            raise NotBuilt(f"{path} {fault}")
        if fault:
            try:
                self._build(source, path, made_from, started)
            except OSError as error:
                raise _unusable(self.folder, error) from error
        return _loaded(path)

    def stored(self, path: Path) -> Library:
        """A library that another process has put here.

        Raises:
            ValueError: There is none, or it must not be loaded; the message says why.
            OSError: It cannot be loaded.
        """
        fault = "is elsewhere" if path.parent != self.folder else self._fault(path, _machine())
        if fault:
            raise ValueError(f"{path} {fault}; the cache is {self.folder}")
        return _loaded(path)

    def _fault(self, path: Path, made_from: dict[str, str]) -> str | None:
        """Why an entry must not be loaded; None if it may."""
        try:
            content, record = _read(path), json.loads(_read(_record(path)))
        except (OSError, ValueError) as error:
            return f"cannot be trusted ({error})"
        recorded = record.get("made_from") if isinstance(record, dict) else None
        if not isinstance(recorded, dict) or not made_from.items() <= recorded.items():
            return "was made from something else or elsewhere"
        return None if record.get("content") == _digest(content) else "is damaged"

    def _build(
        self,
        source: str,
        path: Path,
        made_from: dict[str, str],
        started: Started | None,
    ) -> None:
        with self._building():
            fault = self._fault(path, made_from)
            if not fault:
                return  # another process was faster
            if os.path.lexists(path) or os.path.lexists(_record(path)):
                _log.warning("%s %s: it is built anew", path, fault)
            # Into place at once, the record last: whoever looks meanwhile finds all or nothing.
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=SCRATCH) as scratch:
                built, record = Path(scratch, path.name), Path(scratch, "record")
                compile_library(source, built, started)
                content = {"made_from": made_from, "content": _digest(built.read_bytes())}
                record.write_text(json.dumps(content, indent=1), encoding="utf-8")
                built.chmod(0o600)
                record.chmod(0o600)
                _record(path).unlink(missing_ok=True)
                built.replace(path)
                record.replace(_record(path))

    @contextmanager
    def _building(self) -> Iterator[None]:
        """One process at a time; it clears away what an interrupted one has left."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                pass  # some network file systems cannot: two may build the same, without harm
            else:
                for left in self.folder.glob(f"{SCRATCH}*"):
                    shutil.rmtree(left)
            yield
        finally:
            os.close(descriptor)


def default_folder() -> Path:
    """Where libraries are kept if nothing else is said.

    Raises:
        OSError: The user has no home.
    """
    given = os.environ.get("MPC_BANDED_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if given:
            return Path(given).expanduser()
        if Path(caches).is_absolute():  # others count as none, says the XDG specification
            return Path(caches) / "mpc_banded"
        return Path.home() / ".cache" / "mpc_banded"
    except RuntimeError as error:
        raise OSError(f"there is no home for the cache: {error}; {REMEDY}") from error


@functools.cache
def processor() -> str:
    """What native code depends on: the processor's model and its instruction sets."""
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    lines = [line for line in first.splitlines() if line.split("\t")[0].strip() in wanted]
    return _digest("\n".join([platform.machine(), *lines]).encode())


def _machine() -> dict[str, str]:
    """What else than its source a library depends on."""
    flags = " ".join(FLAGS)
    return {"flags": flags, "torch": torch.__version__, "processor": processor()}


def _record(path: Path) -> Path:
    return path.with_suffix(".json")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _loaded(path: Path) -> Library:
    try:
        return Library(path)
    except OSError as error:
        raise OSError(f"{error}; if that file system allows no code (noexec), {REMEDY}") from error


def _unusable(folder: Path, error: OSError) -> OSError:
    return OSError(f"the cache {folder} cannot be used: {error}; {REMEDY}")


def _read(path: Path) -> bytes:
    """Content of a file that is its user's alone."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not _is_private(status):
            raise UnsafeCache(f"{path.name} belongs to somebody else, or others may write to it")
        return file.read()


def _create(folder: Path) -> None:
    """Make a folder and those above it, none of them for others, whatever the umask."""
    for missing in reversed([folder, *folder.parents]):
        if not missing.is_dir():
            missing.mkdir(mode=0o700, exist_ok=True)


def _check_private(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or not _is_private(status):
        raise UnsafeCache(
            f"{_described(folder, status)}; compiled code is loaded only from a folder of user "
            f"{os.getuid()} that nobody else may write to: chown and chmod 700 it, or {REMEDY}"
        )
    for above in folder.parents:
        status = above.stat()
        if _is_exchangeable(status):
            raise UnsafeCache(
                f"{_described(above, status)}, so others could put a folder in place of {folder}: "
                f"chmod go-w it, or {REMEDY}"
            )


def _described(folder: Path, status: os.stat_result) -> str:
    return f"{folder} has owner {status.st_uid} and mode {stat.filemode(status.st_mode)}"


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_exchangeable(status: os.stat_result) -> bool:
    """Whether somebody else than this user and root may rename what lies in a folder."""
    if status.st_uid not in (0, os.getuid()):
        return True
    if status.st_mode & stat.S_ISVTX:
        return False
    of_group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    return bool(of_group or status.st_mode & stat.S_IWOTH)


def _is_own_group(number: int) -> bool:
    """Whether a group is the one that many systems make for each user, of that name."""
    try:
        group, name = grp.getgrgid(number), pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}
