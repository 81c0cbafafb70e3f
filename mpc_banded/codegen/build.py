# SPDX-License-Identifier: Apache-2.0
"""Builds shared libraries from C source, and loads them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shlex
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: Called with a compiler process as soon as it runs.
Started = Callable[[subprocess.Popen[str]], None]
#: Bytes reserved for a library's signature, with the final zero.
SIGNATURE = 64
#: Without -ffast-math, so that NaN and infinity reach the checks of the solver. At -O1,
#: -fexpensive-optimizations is what makes gcc emit vzeroupper before calls into libm; with the
#: upper halves of the vector registers dirty, a logarithm takes 30 times as long, and a step of
#: the bicycle twice as long.
FLAGS = (
    *("-O1", "-ftree-vectorize", "-fexpensive-optimizations", "-march=native"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"),
)
#: Time limit of the compiler in s, and characters of source that add one second.
BASE_LIMIT_S, CHARACTERS_PER_S = 60.0, 10_000


class NoCompiler(RuntimeError):
    """This machine has no C compiler that works."""


class Library:
    """A loaded shared library of kernels.

    Args:
        path: Path of the shared library.

    Raises:
        OSError: It cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A call takes microseconds, so it keeps the interpreter lock: to get the lock back may
        # take milliseconds if another thread is busy.
        self._library = ctypes.PyDLL(str(path))

    @property
    def signature(self) -> str:
        """The value of ``const char signature[]`` in the source; empty if there is none."""
        try:
            return (ctypes.c_char * SIGNATURE).in_dll(self._library, "signature").value.decode()
        except ValueError:
            return ""

    def integer(self, name: str) -> int:
        """Return the value of ``const int name`` in the source."""
        return ctypes.c_int.in_dll(self._library, name).value

    def function(self, name: str, pointers: int) -> Callable[..., None]:
        """Return a kernel by name, called with addresses of its arrays, the output last.

        The addresses are not checked, so compare the signature first.

        Args:
            name: Name of the kernel.
            pointers: Number of addresses.
        """
        kernel = self._library[name]
        kernel.restype = None
        kernel.argtypes = [ctypes.c_void_p] * pointers
        return kernel


def c_compiler() -> list[str]:
    """Return the C compiler: ``$CC``, or the first of cc, gcc and clang in PATH.

    Raises:
        NoCompiler: None is installed, or not the one that CC names.
    """
    given = os.environ.get("CC", "")
    try:
        named = shlex.split(given)
    except ValueError as error:
        raise NoCompiler(f"CC is {given!r}, which is no command: {error}") from error
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(command[0])
        if found:
            return [found, *command[1:]]
    if named:
        raise NoCompiler(f"CC is {given!r}, which is not in PATH")
    raise NoCompiler("no C compiler: cc, gcc and clang are not in PATH, and CC is not set")


def compiler_identity() -> str:
    """Return the compiler's command, with size and time of the programs that it names.

    The text changes when another compiler is chosen or installed. The compiler is not run.

    Raises:
        NoCompiler: See c_compiler.
    """
    command = c_compiler()
    programs = [Path(found).resolve() for word in command if (found := shutil.which(word))]
    stats = [(str(path), path.stat()) for path in programs]
    return repr([command, [(name, s.st_size, s.st_mtime_ns) for name, s in stats]])


def compile_library(source: str, path: Path, started: Started | None = None) -> None:
    """Compile C source to a shared library, with the temporary files in the library's folder.

    The compiler leads a process group of its own, which ends with this call.

    Args:
        source: The C source.
        path: Path of the library.
        started: Called with the compiler when it has started.

    Raises:
        NoCompiler: There is none, it fails, or it exceeds its time limit; the message holds what
            it printed.
    """
    command = [*c_compiler(), *FLAGS, "-x", "c", "-", "-o", str(path), "-lm"]
    limit = BASE_LIMIT_S + len(source) / CHARACTERS_PER_S
    try:
        compiler = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(path.parent)},
        )
    except OSError as error:
        raise NoCompiler(f"{shlex.join(command)} cannot be run: {error}") from error
    with compiler:
        try:
            if started is not None:
                started(compiler)
            _, errors = compiler.communicate(source, timeout=limit)
        except subprocess.TimeoutExpired as error:
            _kill(compiler)
            raise NoCompiler(
                f"{shlex.join(command)} was ended: it had not finished after {limit:.0f} s"
            ) from error
        except BaseException:
            _kill(compiler)
            raise
    if compiler.returncode < 0:
        name = signal.Signals(-compiler.returncode).name
        raise NoCompiler(f"{shlex.join(command)} was ended by {name}")
    if compiler.returncode:
        said = errors.strip()[:500] or f"exit status {compiler.returncode}"
        raise NoCompiler(f"{shlex.join(command)} failed: {said}")


def _kill(leader: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


@functools.cache
def machine() -> str:
    """Describe all that the last bits of compiled results depend on, in one line.

    For example ``x86_64, Intel(R) Xeon(R) Processor, instructions 3f0c2a91, glibc 2.36, libm
    77d1e0b4``: the architecture, the model of the processor, a digest of its instruction sets,
    the C library, and a digest of what its functions return at some points. Two machines with
    the same text compute the same bits. The last digest tells apart the variants of a function
    among which libm chooses by the processor and by GLIBC_TUNABLES.
    """
    model, instructions = _processor()
    parts = [platform.machine(), model, f"instructions {_digest(instructions.encode())}"]
    return ", ".join([*parts, _c_library(), f"libm {_libm_digest()}"])


def _processor() -> tuple[str, str]:
    """Return model and instruction sets of the first processor."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return platform.processor() or "unknown processor", ""
    pairs = (line.partition(":") for line in first.splitlines())
    known = {name.strip(): value.strip() for name, _, value in pairs}
    names = ("flags", "Features", "CPU implementer", "CPU part", "isa")
    model = known.get("model name") or known.get("CPU part") or "unknown processor"
    return model, "\n".join(known.get(name, "") for name in names)


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "unknown C library"
    except (ValueError, OSError):
        return " ".join(platform.libc_ver()).strip() or "unknown C library"


def _libm_digest() -> str:
    points = [0.001 + 0.00737 * i for i in range(1, 800)]
    functions = (
        *(math.sin, math.cos, math.tan, math.exp, math.expm1, math.log, math.log1p, math.atan),
        *(math.sinh, math.cosh, math.tanh, math.asinh, math.erf),
        lambda x: math.pow(x, 1.7),
        lambda x: math.atan2(x, 0.7),
        lambda x: math.hypot(x, 0.7),
    )
    values = [function(point) for function in functions for point in points]
    return _digest(struct.pack(f"{len(values)}d", *values))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]
