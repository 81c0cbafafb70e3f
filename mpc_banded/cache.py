# SPDX-License-Identifier: Apache-2.0
"""Compiled libraries on disk, so that each is built once.

Loading a library runs what is in it. So the folder must belong to its user and nobody else may
write there, and a library is loaded only if its bytes are those that were built, here, for this
processor and this version of torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import stat
import tempfile
from pathlib import Path

import torch

from mpc_banded import native

_log = logging.getLogger(__name__)


class UnsafeCache(PermissionError):
    """The folder of the cache is not its user's alone; the message says what to do."""


class LibraryCache:
    """Shared libraries by what they were made from.

    Args:
        folder: Created if missing; by default ``$MPC_BANDED_CACHE``, or ``mpc_banded`` in the
            user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``).

    Raises:
        UnsafeCache: The folder belongs to somebody else, or others may write there.
        OSError: It cannot be created.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or default_folder()).absolute()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.folder.lstat()
        if stat.S_ISLNK(status.st_mode) or not _is_private(status):
            raise UnsafeCache(
                f"{self.folder} has owner {status.st_uid} and mode {stat.filemode(status.st_mode)}"
                f"; compiled code is loaded only from a folder of user {os.getuid()} that nobody "
                f"else may write to: chmod 700, or name another one with MPC_BANDED_CACHE"
            )

    def library(self, source: str) -> native.Library:
        """The library of a C source, from the cache or built.

        Raises:
            NoCompiler: It has to be built, and there is no compiler.
        """
        made_from = {"source": _digest(source.encode()), **_machine()}
        key = _digest(json.dumps(made_from, sort_keys=True).encode())[:32]
        path = self.folder / f"{key}.so"
        fault = self._fault(path, made_from)
        if fault is not None:
            if path.exists():
                _log.warning("%s %s: it is built anew", path, fault)
            self._build(source, path, made_from)
        return native.Library(path)

    def stored(self, path: Path) -> native.Library:
        """A library that another process has put here.

        Raises:
            ValueError: There is none, or it must not be loaded; the message says why.
        """
        fault = "is elsewhere" if path.parent != self.folder else self._fault(path, _machine())
        if fault is not None:
            raise ValueError(f"{path} {fault}; the cache is {self.folder}")
        return native.Library(path)

    def _fault(self, path: Path, made_from: dict[str, str]) -> str | None:
        """Why an entry must not be loaded; None if it may."""
        try:
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            status, content = path.lstat(), path.read_bytes()
        except (OSError, ValueError):
            return "has no readable record"
        if not stat.S_ISREG(status.st_mode) or not _is_private(status):
            return "belongs to somebody else, or others may write to it"
        recorded = record.get("made_from") if isinstance(record, dict) else None
        if not isinstance(recorded, dict) or not made_from.items() <= recorded.items():
            return "was made from something else or elsewhere"
        if record.get("content") != _digest(content):
            return "is damaged"
        return None

    def _build(self, source: str, path: Path, made_from: dict[str, str]) -> None:
        # Into place at once, the record last: whoever looks meanwhile finds all or nothing.
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            built, record = Path(scratch, path.name), Path(scratch, "record")
            native.build(source, built)
            built.chmod(0o600)
            content = {"made_from": made_from, "content": _digest(built.read_bytes())}
            record.write_text(json.dumps(content, indent=1), encoding="utf-8")
            path.with_suffix(".json").unlink(missing_ok=True)
            built.replace(path)
            record.replace(path.with_suffix(".json"))


def default_folder() -> Path:
    """Where libraries are kept if nothing else is said."""
    given = os.environ.get("MPC_BANDED_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpc_banded"


def processor() -> str:
    """What native code depends on: the processor's model and its instruction sets."""
    lines = []
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
        lines = [line for line in first.splitlines() if line.split("\t")[0].strip() in wanted]
    except OSError:
        pass
    return _digest("\n".join([platform.machine(), *lines]).encode())


def _machine() -> dict[str, str]:
    """What else than its source a library depends on."""
    flags = " ".join(native.FLAGS)
    return {"flags": flags, "torch": torch.__version__, "processor": processor()}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
