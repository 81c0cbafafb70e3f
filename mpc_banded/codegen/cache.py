# SPDX-License-Identifier: Apache-2.0
"""A private cache of compiled libraries on disk.

Loading a library runs its code. So the folder must belong to the user, nobody else may write to
it or put another folder in its place, and a library is loaded only if its bytes are those that
were built from the same source, on the same machine, by the same compiler. Without a compiler, a
library by any compiler is accepted.
"""

from __future__ import annotations

import fcntl
import grp
import hashlib
import json
import logging
import os
import pwd
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mpc_banded.codegen import build as compilers
from mpc_banded.codegen.build import Library, NoCompiler, Started, compile_library

_log = logging.getLogger(__name__)

#: Prefix of the folders of unfinished builds.
SCRATCH = "building-"
#: Longest wait for another process that builds the same entry, and time between two polls, in s.
PATIENCE_S, POLL_S = 600.0, 0.05
#: Remedy of most problems with the folder.
REMEDY = "name another folder with MPC_BANDED_CACHE"
#: Reason why a process does not load a library again that it has discarded.
DISCARDED = "gave wrong results and was removed; restart this process to build it anew"

#: Paths of the libraries that this process has discarded.
_discarded: set[Path] = set()


class UnsafeCache(PermissionError):
    """Others than the user may write to the cache's folder; the message says what to do."""


class NotBuilt(LookupError):
    """A library is not in the cache.

    Attributes:
        build: Builds the library and returns its path in the cache; None if even preparing the
            build would take long.
    """

    build: Callable[[Started], Path] | None = None


class LibraryCache:
    """Shared libraries by their sources, each with a record of what it was built from.

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
        """Return the library of a C source, from the cache or built.

        Args:
            source: The C source.
            build: Whether to build a library that the cache does not have.
            started: See compile_library.

        Raises:
            NotBuilt: The cache has no sound library, and ``build`` is false.
            NoCompiler: The library must be built, and there is no working compiler.
            OSError: The library cannot be written or loaded, or was discarded by this process.
        """
        made_from = {"source": _digest(source.encode()), **_machine()}
        path = self._path(made_from)
        if path in _discarded:
            raise _NotLoadable(f"{path} {DISCARDED}")
        try:
            return self._sound(path, made_from)
        except _Unsound as fault:
            if not build:
                raise NotBuilt(str(fault)) from fault
        try:
            return self._build(source, path, made_from, started)
        except _NotLoadable:
            raise
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def discard(self, library: Library) -> None:
        """Remove a library whose results are wrong, so that the next process builds it anew.

        This process does not load it again: the system's loader would return the old code for
        the same path.
        """
        _discarded.add(library.path)
        with suppress(OSError):  # the record first: without it the library is not loaded
            _record(library.path).unlink(missing_ok=True)
            library.path.unlink(missing_ok=True)

    def _path(self, made_from: dict[str, str]) -> Path:
        """Return where the library of this compiler lies; of any other if there is no compiler."""
        key = _digest(json.dumps(made_from, sort_keys=True).encode())[:32]
        try:
            compiler = _digest(compilers.compiler_identity().encode())[:8]
        except NoCompiler:
            others = sorted(self.folder.glob(f"{key}-*.so"))
            return next(
                (p for p in others if not self._fault(p, made_from)), self.folder / f"{key}.so"
            )
        return self.folder / f"{key}-{compiler}.so"

    def _sound(self, path: Path, made_from: dict[str, str]) -> Library:
        """Load an entry.

        Raises:
            _Unsound: It must not or cannot be loaded.
        """
        fault = self._fault(path, made_from)
        if fault:
            raise _Unsound(f"{path} {fault}")
        try:
            return Library(path)
        except OSError as error:
            raise _Unsound(f"{path} cannot be loaded ({error})") from error

    def stored(self, path: Path) -> Library:
        """Return a library that another process has added to the cache.

        Raises:
            ValueError: There is none, or it must not or cannot be loaded; the message says why.
        """
        if path.parent != self.folder:
            raise ValueError(f"{path} is elsewhere; the cache is {self.folder}")
        try:
            return self._sound(path, _machine())
        except _Unsound as fault:
            raise ValueError(f"{fault}; the cache is {self.folder}") from fault

    def _fault(self, path: Path, made_from: dict[str, str]) -> str | None:
        """Return why an entry must not be loaded; None if it may."""
        if path in _discarded:
            return DISCARDED
        try:
            content, record = _read(path), json.loads(_read(_record(path)))
        except (OSError, ValueError) as error:
            return f"cannot be trusted ({error})"
        recorded = record.get("made_from") if isinstance(record, dict) else None
        if not isinstance(recorded, dict) or not made_from.items() <= recorded.items():
            return "was made from something else or elsewhere"
        return None if record.get("content") == _digest(content) else "is damaged"

    def _build(
        self, source: str, path: Path, made_from: dict[str, str], started: Started | None
    ) -> Library:
        with self._scratch(path.stem) as scratch:
            try:
                return self._sound(path, made_from)  # another process was faster
            except _Unsound as fault:
                if os.path.lexists(path) or os.path.lexists(_record(path)):
                    _log.warning("%s: it is rebuilt", fault)
            built, record = scratch / path.name, scratch / "record"
            compile_library(source, built, started)
            built.chmod(0o600)
            _loaded(built)  # a compiler may write garbage and report success
            content = {"made_from": made_from, "content": _digest(built.read_bytes())}
            record.write_text(json.dumps(content, indent=1), encoding="utf-8")
            record.chmod(0o600)
            # Moved in one step each, the record last: a reader finds a whole entry or none.
            _record(path).unlink(missing_ok=True)
            built.replace(path)
            record.replace(_record(path))
            return _loaded(path)

    @contextmanager
    def _scratch(self, stem: str) -> Iterator[Path]:
        """Lock a folder for the build of one entry; remove those of interrupted builds.

        Builders of the same entry take turns; other entries have other locks.
        """
        path = self.folder / f"{SCRATCH}{stem}"
        deadline = time.monotonic() + PATIENCE_S
        descriptor = None
        try:
            while (descriptor := _locked(path)) is None:
                if time.monotonic() > deadline:
                    raise BlockingIOError(f"another process has been building {stem} for too long")
                time.sleep(POLL_S)
            if descriptor >= 0:
                for other in self.folder.glob(f"{SCRATCH}*"):
                    if other != path:
                        _remove_abandoned(other)
                for left in path.iterdir():
                    left.unlink()
                yield path
            else:  # no locks here, as on some network file systems; two may build the same entry
                with tempfile.TemporaryDirectory(dir=self.folder, prefix=SCRATCH) as unlocked:
                    yield Path(unlocked)
        finally:
            if descriptor is not None and descriptor >= 0:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)


class _Unsound(Exception):
    """An entry must not be loaded, or cannot be."""


class _NotLoadable(OSError):
    """A library that was just built cannot be loaded."""


def _locked(path: Path) -> int | None:
    """Create and lock a folder.

    Returns:
        A descriptor that holds the lock; None if another process holds it; -1 if the file system
        has no locks, in which case the folder is not created.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None  # removed in between
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        with suppress(OSError):
            path.rmdir()
        return -1
    os.close(descriptor)
    return None


def _remove_abandoned(path: Path) -> None:
    descriptor = _locked(path)
    if descriptor is not None and descriptor >= 0:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def default_folder() -> Path:
    """Return the folder where libraries are kept by default.

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


def _machine() -> dict[str, str]:
    """Return all that a library depends on besides its source and the compiler."""
    flags = " ".join(compilers.FLAGS)
    return {"flags": flags, "torch": torch.__version__, "machine": compilers.machine()}


def _record(path: Path) -> Path:
    return path.with_suffix(".json")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _loaded(path: Path) -> Library:
    try:
        return Library(path)
    except OSError as error:
        raise _NotLoadable(
            f"the compiler has written a library that cannot be loaded: {error}; if that file "
            f"system allows no code (noexec), {REMEDY}"
        ) from error


def _unusable(folder: Path, error: OSError) -> OSError:
    return OSError(f"the cache {folder} cannot be used: {error}; {REMEDY}")


def _read(path: Path) -> bytes:
    """Return the content of a file that only the user may write to."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not _is_private(status):
            raise UnsafeCache(f"{path.name} belongs to somebody else, or others may write to it")
        return file.read()


def _create(folder: Path) -> None:
    """Create a folder and its parents for the user alone, whatever the umask is."""
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
    """Return whether anybody but this user and root may rename the files of a folder."""
    if status.st_uid not in (0, os.getuid()):
        return True
    if status.st_mode & stat.S_ISVTX:
        return False
    of_group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    return bool(of_group or status.st_mode & stat.S_IWOTH)


def _is_own_group(number: int) -> bool:
    """Return whether a group is the private one that many systems create for each user."""
    try:
        group, name = grp.getgrgid(number), pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}
