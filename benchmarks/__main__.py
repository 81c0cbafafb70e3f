# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks``: run all solvers at all tasks, write results and page."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import page
from benchmarks.harness import BUILD, ROOT, Run, Unavailable, Worker, closed_loops
from benchmarks.peers import ENTRIES, Entry
from benchmarks.tasks import TASKS, Task

#: Written when all tasks and peers ran; a part goes to the build folder.
PAGE = ROOT / "docs" / "benchmarks.md"


def _selected(names: str, all_names: list[str]) -> list[str]:
    """Those that begin with one of the comma-separated names; all for an empty string."""
    wanted = tuple(names.split(","))
    found = [name for name in all_names if name.startswith(wanted)]
    if not found:
        raise SystemExit(f"{names!r} names none of {', '.join(all_names)}")
    return found


def _start(entry: Entry, task: Task, core: int, again: bool) -> tuple[Worker, list[float]]:
    """A worker and its set-up times: with an empty cache, and with a full one if it keeps one."""
    worker = Worker(entry, task, core, fresh=True)
    setups = [worker.setup_s]
    if entry.cached and again:
        worker.close()
        worker = Worker(entry, task, core)
        setups.append(worker.setup_s)
    return worker, setups


def _record(run: Run, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "cost": run.cost,
        "violation": run.violation,
        "defect": run.defect,
        "failures": run.failures,
        "error": run.error,
        "objectives": run.objectives,
        "states": [state.tolist() for state in run.states],
        "inputs": [command.tolist() for command in run.inputs],
        "wall_s": [answer.wall_s for answer in run.answers],
        "cpu_s": [answer.cpu_s for answer in run.answers],
        "solver_s": [answer.solver_s for answer in run.answers],
        "iterations": [answer.iterations for answer in run.answers],
        "converged": [answer.converged for answer in run.answers],
    }


def measure(
    task: Task, entries: list[Entry], rounds: int, core: int, steps: int, console: Console
) -> dict[str, Any]:
    """All runs of one task."""
    part: dict[str, Any] = {"title": task.title, "steps": steps or task.steps, "entries": {}}
    workers = []
    try:
        for entry in entries:
            if not entry.takes(task.name):
                continue
            console.print(f"{task.name}: setting up {entry.title}")
            record: dict[str, Any] = {"unavailable": None, "setups_s": [], "runs": []}
            part["entries"][entry.name] = record
            try:
                worker, record["setups_s"] = _start(entry, task, core, again=True)
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


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            row.split(":")[1].strip()
            for row in info.read_text().splitlines()
            if "model name" in row
        ]
        cpu = names[0] if names else cpu
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "scipy")]
    for file in sorted((ROOT / "requirements").glob("bench-*.txt")):
        versions += [row.replace("==", " ") for row in file.read_text().split() if "==" in row]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system() + " " + platform.machine(),
        "load": os.getloadavg()[0],
        "versions": list(dict.fromkeys(versions)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--task", default="", help=f"of {', '.join(TASKS)}; beginnings will do")
    parser.add_argument("--peers", default="", help="beginnings of the solvers' names")
    parser.add_argument("--rounds", type=int, default=3, help="closed-loop runs of each task")
    parser.add_argument("--steps", type=int, default=0, help="steps of a run; 0 for the task's")
    parser.add_argument("--core", type=int, default=None, help="that all run on; the last one")
    parser.add_argument("--page", type=Path, help="where to write the page")
    parser.add_argument("--write-only", action="store_true", help="the page of the last results")
    arguments = parser.parse_args()
    console = Console()
    part = bool(arguments.task or arguments.peers or arguments.steps)
    folder = BUILD / "part" if part else BUILD
    folder.mkdir(parents=True, exist_ok=True)
    where = arguments.page or (folder / "benchmarks.md" if part else PAGE)
    file = folder / "results.json"
    if arguments.write_only:
        page.write(json.loads(file.read_text()), where)
        return
    names = _selected(arguments.peers, [entry.name for entry in ENTRIES])
    entries = [entry for entry in ENTRIES if entry.name in names]
    core = arguments.core
    if core is None:
        core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    results: dict[str, Any] = {
        "machine": machine(),
        "core": core,
        "rounds": arguments.rounds,
        "entries": {entry.name: asdict(entry) for entry in entries},
        "tasks": {},
    }
    for name in _selected(arguments.task, list(TASKS)):
        task = TASKS[name]()
        results["tasks"][name] = measure(
            task, entries, arguments.rounds, core, arguments.steps, console
        )
        file.write_text(json.dumps(results))
    launch = BUILD / "launch" / "results.json"  # of benchmarks.launch
    if launch.exists() and not part:
        results["launch"] = json.loads(launch.read_text())
        file.write_text(json.dumps(results))
    page.write(results, where)
    console.print(f"wrote {file} and {where}")


if __name__ == "__main__":
    main()
