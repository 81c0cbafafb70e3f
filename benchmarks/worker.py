# SPDX-License-Identifier: Apache-2.0
"""The process of one solver: pinned to the core, answers the harness over a socket.

``python -m benchmarks.worker ENTRY TASK CORE SOCKET PACKAGES FOLDER``; PACKAGES is the folder of
its own packages, before all others on the path. What solvers print goes to the standard error.
"""

from __future__ import annotations

import importlib
import os
import site
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.peers.peer import Answer


def _own_packages_first(folder: str) -> None:
    before = list(sys.path)
    site.addsitedir(folder)
    sys.path[:] = [p for p in sys.path if p not in before] + before


def serve(entry_name: str, task_name: str, link: Connection, folder: Path) -> None:
    """Set up, say how long that took, then answer until the harness hangs up."""
    from benchmarks.peers import ENTRIES
    from benchmarks.tasks import TASKS

    entry = next(entry for entry in ENTRIES if entry.name == entry_name)
    task = TASKS[task_name]()
    module, name = entry.factory.split(":")
    began = time.perf_counter()
    try:
        make = getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)
        peer = make(task, folder, **entry.settings)
        peer.reset()
    except Exception:
        link.send(Answer(error=traceback.format_exc()))
        return
    link.send(Answer(wall_s=time.perf_counter() - began))
    while True:
        try:
            message = link.recv()
        except EOFError:
            return
        if message is None:
            peer.reset()
            continue
        began = time.perf_counter()
        try:
            outcome = peer.step(*message)
            wall_s = time.perf_counter() - began
            states, inputs = peer.plan()
        except Exception:
            link.send(Answer(error=traceback.format_exc()))
            peer.reset()
            continue
        link.send(
            Answer(
                np.array(outcome.command, dtype=float),
                wall_s,
                outcome.solver_s,
                int(outcome.iterations),
                bool(outcome.converged),
                np.array(states, dtype=float),
                np.array(inputs, dtype=float),
            )
        )


def main() -> None:
    """The command line."""
    entry, task, core, socket, packages, folder = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    link = Connection(int(socket))
    os.dup2(2, 1)
    if packages:
        _own_packages_first(packages)
    Path(folder).mkdir(parents=True, exist_ok=True)
    serve(entry, task, link, Path(folder))


if __name__ == "__main__":
    main()
