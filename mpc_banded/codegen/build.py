# SPDX-License-Identifier: Apache-2.0
"""Shared libraries from C source: the compiler, its flags, and loading."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

#: Is handed a process that has begun.
Started = Callable[[subprocess.Popen[str]], None]
#: Most characters of a library's signature.
SIGNATURE = 64
#: No -ffast-math: NaN and infinity must reach the checks of the solver.
FLAGS = (
    *("-O1", "-ftree-vectorize", "-march=native"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"),
)


class NoCompiler(RuntimeError):
    """There is no C compiler on this machine, or none that works."""


class Library:
    """A loaded shared library of kernels.

    Args:
        path: Of the shared library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A call takes microseconds. Giving the interpreter away meanwhile would mean to wait
        # for it again, for milliseconds if another thread is busy.
        self._library = ctypes.PyDLL(str(path))

    @property
    def signature(self) -> str:
        """What the source says in ``const char signature[]``; empty if it says nothing."""
        try:
            return (ctypes.c_char * SIGNATURE).in_dll(self._library, "signature").value.decode()
        except ValueError:
            return ""

    def integer(self, name: str) -> int:
        """What the source says in ``const int name``."""
        return ctypes.c_int.in_dll(self._library, name).value

    def function(self, name: str, pointers: int) -> Callable[..., None]:
        """A kernel by name, to be called with that many addresses, the last one of its output.

        Memory is at stake: compare the signature first.
        """
        kernel = self._library[name]
        kernel.restype = None
        kernel.argtypes = [ctypes.c_void_p] * pointers
        return kernel


def c_compiler() -> list[str]:
    """The command of the C compiler: ``$CC``, or the first of cc, gcc and clang.

    Raises:
        NoCompiler: None is installed, or not the one that CC names.
    """
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(command[0])
        if found:
            return [found, *command[1:]]
    if named:
        raise NoCompiler(f"CC is {os.environ['CC']!r}, which is not in PATH")
    raise NoCompiler("no C compiler: cc, gcc and clang are not in PATH, and CC is not set")


def compile_library(source: str, path: Path, started: Started | None = None) -> None:
    """Compile C source to a shared library.

    Args:
        source: C.
        path: Of the library.
        started: Is handed the compiler, the leader of a process group of its own, while it runs.

    Raises:
        NoCompiler: There is none, or it fails; the message holds what it said.
    """
    command = [*c_compiler(), *FLAGS, "-x", "c", "-", "-o", str(path), "-lm"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=pipe,
        stdout=subprocess.DEVNULL,
        stderr=pipe,
        text=True,
        start_new_session=started is not None,
    ) as compiler:
        if started is not None:
            started(compiler)
        _, errors = compiler.communicate(source)
    if compiler.returncode:
        said = errors.strip()[:500] or f"exit status {compiler.returncode}"
        raise NoCompiler(f"{shlex.join(command)} failed: {said}")
