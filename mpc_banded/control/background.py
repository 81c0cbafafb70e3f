# SPDX-License-Identifier: Apache-2.0
"""Compiles derivatives while the control loop drives on.

If the functions of a problem are traced already, only the C compiler has to run, and a thread
waits for it. Tracing long functions would hold the interpreter, and so the control loop, for
seconds: then another process does everything, by the command ``mpc_banded compile``. Either way
the result is the path of a library in the cache.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import yaml

from mpc_banded.codegen.cache import NotBuilt
from mpc_banded.control.config import Config

#: Beginning of what the command says if it fails.
NOT_COMPILED = "not compiled: "
#: Niceness of compilers, so that the control loop goes first.
NICENESS = 10
#: Time in s for the other process to clean up if it is ended early.
GRACE_S = 2.0
#: It searches modules where this process does: the robot may be anywhere.
_SCRIPT = """\
import sys
sys.path[:] = {path!r}
from mpc_banded.cli import main
sys.exit(main(["compile", "--params", "/dev/stdin"]))
"""


class CompilationFailed(RuntimeError):
    """The compilation failed; the message says why."""


class Compilation(Protocol):
    """A running compilation.

    Attributes:
        remarks: Lines of its output, once it has ended.
    """

    remarks: list[str]

    @property
    def elapsed_s(self) -> float:
        """Seconds since the compilation began."""

    def poll(self) -> Path | None:
        """Return the path of the library in the cache; None until it is there.

        Raises:
            CompilationFailed: The compilation failed.
        """

    def cancel(self) -> bool:
        """Ask the compilation to end; returns whether it has ended, so that ``close`` is quick."""

    def close(self) -> None:
        """End the compilation and all processes that it started."""


def begin(config: Config, missing: NotBuilt | None = None) -> Compilation:
    """Begin to compile the derivatives of a configuration.

    Args:
        config: The configuration.
        missing: The error of its controller if it did not find its library in the cache.

    Raises:
        OSError: No other process can be started.
    """
    if missing is None or missing.build is None:
        return OtherProcess(config)
    return Compiler(missing)


class Compiler:
    """Runs the C compiler, in a thread, on functions that are traced already.

    Args:
        missing: Error that knows how to build the library.
    """

    def __init__(self, missing: NotBuilt) -> None:
        assert missing.build is not None
        self.remarks: list[str] = []
        self._build = missing.build
        self._began = time.monotonic()
        self._compiler: subprocess.Popen[str] | None = None
        self._is_cancelled = False
        self._outcome: Path | Exception | None = None
        self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
        self._thread.start()

    @property
    def elapsed_s(self) -> float:
        """See Compilation."""
        return time.monotonic() - self._began

    def _run(self) -> None:
        try:
            self._outcome = self._build(self._started)
        except Exception as error:  # poll raises it
            self._outcome = error

    def _started(self, compiler: subprocess.Popen[str]) -> None:
        _yield_to_others(compiler)
        self._compiler = compiler
        if self._is_cancelled:
            _signal(compiler, signal.SIGKILL)

    def poll(self) -> Path | None:
        """See Compilation."""
        if isinstance(self._outcome, Exception):
            raise CompilationFailed(" ".join(str(self._outcome).split())) from self._outcome
        return self._outcome

    def cancel(self) -> bool:
        """See Compilation."""
        if not self._is_cancelled:
            self._is_cancelled = True
            if self._compiler is not None:
                _signal(self._compiler, signal.SIGKILL)
        return not self._thread.is_alive()

    def close(self) -> None:
        """See Compilation."""
        self.cancel()
        self._thread.join(GRACE_S)


class OtherProcess:
    """Traces and compiles in another process.

    Args:
        config: The configuration.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, config: Config) -> None:
        self.remarks: list[str] = []
        self._began = time.monotonic()
        self._is_cancelled = False
        # Files instead of pipes, so that neither side ever waits for the other.
        with ExitStack() as opened:
            given, self._output, self._errors = (
                opened.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
                for _ in range(3)
            )
            yaml.safe_dump({"/**": {"ros__parameters": config.values}}, given)
            given.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT.format(path=sys.path)],
                stdin=given,
                stdout=self._output,
                stderr=self._errors,
                start_new_session=True,  # an interrupt of the node must not reach it
            )
            opened.pop_all()
        given.close()
        _yield_to_others(self._process)

    @property
    def elapsed_s(self) -> float:
        """See Compilation."""
        return time.monotonic() - self._began

    def poll(self) -> Path | None:
        """See Compilation."""
        status = self._process.poll()
        if status is None:
            return None
        output, self.remarks = _lines(self._output), _lines(self._errors)
        if status == 0 and output:
            return Path(output[-1])  # the module of a robot may print, too
        told = f"the process ended with exit status {status}"
        if status < 0:
            told = f"the process that compiles was killed by signal {-status}"
        elif self.remarks:
            told = self.remarks.pop()
        raise CompilationFailed(told.removeprefix(NOT_COMPILED))

    def cancel(self) -> bool:
        """See Compilation."""
        if not self._is_cancelled:
            self._is_cancelled = True
            _signal(self._process, signal.SIGTERM)
        return self._process.poll() is not None

    def close(self) -> None:
        """See Compilation."""
        if self._process.poll() is None:
            self.cancel()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        if self._is_cancelled:  # its child processes may still run
            _signal(self._process, signal.SIGKILL)
            self._process.wait()
        self._output.close()
        self._errors.close()


def _yield_to_others(process: subprocess.Popen[Any]) -> None:
    with suppress(OSError):  # a sandbox may forbid it
        # The compiler of a real-time node would inherit a priority that ignores niceness.
        os.sched_setscheduler(process.pid, os.SCHED_BATCH, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)


def _signal(leader: subprocess.Popen[Any], number: int) -> None:
    """Send a signal to a process group."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, number)


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()
