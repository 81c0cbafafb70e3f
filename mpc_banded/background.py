# SPDX-License-Identifier: Apache-2.0
"""Compiles a configuration in another process, while this one goes on.

Tracing holds the interpreter for a good part of a second, so the control loop must not do it. The
other process is the command ``mpc_banded compile``; all that comes back is the path of a library
in the cache.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import yaml

from mpc_banded.config import Config

#: How the sentence of the command begins if it fails.
NOT_COMPILED = "not compiled: "
#: Niceness of the other process: the control loop goes first.
NICENESS = 10
#: How long the other process may take to clear up when it is ended early.
GRACE_S = 2.0
#: Modules are looked for where this process finds them: the robot may be anywhere.
_SCRIPT = """\
import sys
sys.path[:] = {path!r}
from mpc_banded.cli import main
sys.exit(main(["compile", "--params", "/dev/stdin"]))
"""


class CompilationFailed(RuntimeError):
    """The other process found that it cannot compile; the message is its own."""


class BackgroundCompilation:
    """One compilation, begun when this is made.

    Args:
        config: What to compile.

    Attributes:
        remarks: What the other process had to say, line by line, once it is done.

    Raises:
        OSError: There can be no other process.
    """

    def __init__(self, config: Config) -> None:
        self.remarks: list[str] = []
        self._began = time.monotonic()
        self._is_cancelled = False
        # Files, not pipes: neither side ever waits for the other.
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
                start_new_session=True,  # an interrupt of the node is not one of the compiler
            )
            opened.pop_all()
        given.close()
        with suppress(OSError):  # a sandbox may forbid it
            # A real-time node would have a real-time compiler, which no niceness holds back.
            os.sched_setscheduler(self._process.pid, os.SCHED_BATCH, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def poll(self) -> Path | None:
        """The library in the cache once it is there, None before.

        Raises:
            CompilationFailed: There will be none.
        """
        status = self._process.poll()
        if status is None:
            return None
        output, self.remarks = _lines(self._output), _lines(self._errors)
        if status == 0 and output:
            return Path(output[-1])  # a robot's module may print as well
        told = self.remarks.pop() if status > 0 and self.remarks else f"exit status {status}"
        raise CompilationFailed(told.removeprefix(NOT_COMPILED))

    def cancel(self) -> bool:
        """Ask the other process to end, without waiting; whether it has, and close is quick."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self._signal(signal.SIGTERM)
        return self._process.poll() is not None

    def close(self) -> None:
        """End the other process, and the compiler that it runs, if they are still there."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._output.close()
        self._errors.close()

    def _signal(self, number: int) -> None:
        if self._process.returncode is not None:
            return  # its number may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()
