# SPDX-License-Identifier: Apache-2.0
"""Compiles a configuration in another process, while this one goes on.

Tracing holds the interpreter for a good part of a second, so the control loop must not do it. The
other process is the command ``mpc_banded compile``; all that comes back is the path of a library
in the cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from mpc_banded.config import Config

#: Niceness of the other process: the control loop goes first.
NICENESS = 10


class CompilationFailed(RuntimeError):
    """The other process found that it cannot compile; the message is its own."""


class BackgroundCompilation:
    """One compilation, begun when this is made.

    Args:
        config: What to compile.
    """

    def __init__(self, config: Config) -> None:
        self._began = time.monotonic()
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mpc_banded", "compile", "--params", "/dev/stdin"],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # an interrupt of the node is not one of the compiler
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            yaml.safe_dump({"/**": {"ros__parameters": config.values}}, stdin)

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
        self._output.seek(0)
        lines = self._output.read().strip().splitlines() or [f"exit status {status}"]
        if status:
            raise CompilationFailed(lines[-1])
        return Path(lines[-1])

    def close(self) -> None:
        """End the other process if it still runs."""
        self._process.kill()
        self._process.wait()
        self._output.close()
