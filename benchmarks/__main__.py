# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks``: all solvers at all tasks, side by side; fills docs/benchmarks.md.

A part of the comparison (``--task``, ``--peers``, ``--steps``) prints its tables instead.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import launch, report
from benchmarks.harness import BUILD, Run, Unavailable, Worker, closed_loops
from benchmarks.pages import DOCS, ROOT, provenance, update
from benchmarks.peers import ENTRIES, Entry
from benchmarks.task import Task
from benchmarks.tasks import TASKS


def select(names: str, all_names: list[str]) -> list[str]:
    """The names that begin with one of the comma-separated ones; all for an empty string."""
    wanted = tuple(names.split(","))
    found = [name for name in all_names if name.startswith(wanted)]
    if not found:
        raise SystemExit(f"{names!r} names none of {', '.join(all_names)}")
    return found


def measure(
    task: Task, entries: list[Entry], rounds: int, core: int, steps: int, console: Console
) -> dict[str, Any]:
    """All runs of one task, as a record for JSON."""
    part: dict[str, Any] = {"steps": steps or task.steps, "entries": {}}
    workers: list[Worker] = []
    try:
        for entry in entries:
            if not entry.takes(task.name):
                continue
            console.print(f"{task.name}: setting up {entry.title}")
            record: dict[str, Any] = {"unavailable": None, "setups_s": [], "runs": []}
            part["entries"][entry.name] = record
            try:
                worker, record["setups_s"] = _start(entry, task, core)
                workers.append(worker)
            except Unavailable as error:
                record["unavailable"] = str(error)
                console.print(f"  it cannot take part: {error}", style="red", markup=False)
        with Progress(console=console, transient=True) as progress:
            total = rounds * part["steps"]
            line = progress.add_task(f"{task.name}, {len(workers)} solvers", total=total)
            for seed in range(rounds):
                runs = closed_loops(task, workers, seed, steps, lambda: progress.advance(line))
                for name, run in runs.items():
                    part["entries"][name]["runs"].append(_record(run, seed))
    finally:
        for worker in workers:
            worker.close()
    return part


def _start(entry: Entry, task: Task, core: int) -> tuple[Worker, list[float]]:
    """A worker and its set-up times: with an empty cache, and with a full one if it keeps one."""
    worker = Worker(entry, task, core, fresh=True)
    setups = [worker.setup_s]
    if entry.cached:
        worker.close()
        worker = Worker(entry, task, core)
        setups.append(worker.setup_s)
    return worker, setups


def _record(run: Run, seed: int) -> dict[str, Any]:
    record: dict[str, Any] = {"seed": seed}
    for name in ("cost", "violation", "defect", "failures", "error", "objectives"):
        record[name] = getattr(run, name)
    for name in ("wall_s", "cpu_s", "solver_s", "iterations", "converged"):
        record[name] = [getattr(answer, name) for answer in run.answers]
    for name in ("states", "inputs"):
        record[name] = [vector.tolist() for vector in getattr(run, name)]
    return record


def _made(core: int, rounds: int) -> str:
    """What the figures depend on."""
    pinned = [
        row
        for file in sorted((ROOT / "requirements").glob("bench-*.txt"))
        for row in file.read_text().split()
        if "==" in row
    ]
    versions = ", ".join(dict.fromkeys(row.replace("==", " ") for row in pinned))
    return (
        f"{provenance('torch', 'numpy', 'scipy')}, {versions}; {rounds} runs of each task on core "
        f"{core}, load average at the start {os.getloadavg()[0]:.1f}"
    )


def _publish(results: dict[str, Any], part: bool, console: Console) -> None:
    values = report.values(results)
    if part:
        for name, value in values.items():
            console.print(f"\n{name}\n{value}", markup=False, soft_wrap=True)
        return
    update(DOCS / "benchmarks.md", values)
    report.plot(results, DOCS / "images")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--task", default="", help=f"of {', '.join(TASKS)}; beginnings will do")
    parser.add_argument("--peers", default="", help="beginnings of the solvers' names")
    parser.add_argument("--rounds", type=int, default=3, help="closed-loop runs of each task")
    parser.add_argument("--steps", type=int, default=0, help="steps of a run; 0 for the task's")
    parser.add_argument("--core", type=int, default=None, help="core for all; default the last")
    parser.add_argument("--write-only", action="store_true", help="show the last results again")
    arguments = parser.parse_args()
    console = Console()
    part = bool(arguments.task or arguments.peers or arguments.steps)
    file: Path = (BUILD / "part" if part else BUILD) / "results.json"
    if arguments.write_only:
        _publish(json.loads(file.read_text()), part, console)
        return
    names = select(arguments.peers, [entry.name for entry in ENTRIES])
    entries = [entry for entry in ENTRIES if entry.name in names]
    tasks = select(arguments.task, list(TASKS))
    core = arguments.core
    if core is None:
        core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    results: dict[str, Any] = {"made": _made(core, arguments.rounds), "tasks": {}}
    if not part:
        results["launch"] = launch.measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    for name in tasks:
        results["tasks"][name] = measure(
            TASKS[name](), entries, arguments.rounds, core, arguments.steps, console
        )
        file.write_text(json.dumps(results))
    _publish(results, part, console)


if __name__ == "__main__":
    main()
