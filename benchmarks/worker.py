# SPDX-License-Identifier: Apache-2.0
"""The process of one solver: pinned to the core, answers the harness over a socket.

``python -m benchmarks.worker FACTORY SETTINGS TASK CORE SOCKET PACKAGES FOLDER``; SETTINGS are
JSON, PACKAGES is the folder of its own packages, before all others on the path. What solvers
print goes to the standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import site
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.peer import Answer
from benchmarks.task import Task
from benchmarks.tasks import TASKS


def _own_packages_first(folder: str) -> None:
    before = list(sys.path)
    site.addsitedir(folder)
    sys.path[:] = [p for p in sys.path if p not in before] + before


def serve(
    factory: str, settings: dict[str, Any], task: Task, link: Connection, folder: Path
) -> None:
    """Set up, say how long that took, then answer until the harness hangs up."""
    module, name = factory.split(":")
    began = time.perf_counter()
    try:
        make = getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)
        peer = make(task, folder, **settings)
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
        began, began_cpu = time.perf_counter(), time.process_time()
        try:
            outcome = peer.step(*message)
            cpu_s, wall_s = time.process_time() - began_cpu, time.perf_counter() - began
            states, inputs = peer.plan()
        except Exception:
            link.send(Answer(error=traceback.format_exc()))
            peer.reset()
            continue
        answer = Answer(
            command=np.array(outcome.command, dtype=float),
            wall_s=wall_s,
            cpu_s=cpu_s,
            solver_s=outcome.solver_s,
            iterations=int(outcome.iterations),
            converged=bool(outcome.converged),
            states=np.array(states, dtype=float),
            inputs=np.array(inputs, dtype=float),
        )
        link.send(answer)


def main() -> None:
    """The command line."""
    factory, settings, task, core, socket, packages, folder = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    link = Connection(int(socket))
    os.dup2(2, 1)
    if packages:
        _own_packages_first(packages)
    Path(folder).mkdir(parents=True, exist_ok=True)
    serve(factory, json.loads(settings), TASKS[task](), link, Path(folder))


if __name__ == "__main__":
    main()
