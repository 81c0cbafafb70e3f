# SPDX-License-Identifier: Apache-2.0
"""Shares of a control step in time, and its iterations; fills docs/performance.md.

``python -m benchmarks.performance`` drives the closed loops of the comparison with compiled
derivatives and splits the processor time of each step by the calls that the solver makes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mpc_banded as mb
from benchmarks import plots
from benchmarks.harness import BUILD, disturbances, simulate
from benchmarks.pages import DOCS, number, provenance, table, update
from benchmarks.peers.mpc_banded import problem
from benchmarks.peers.peer import TOLERANCE
from benchmarks.task import Task
from benchmarks.tasks import TASKS
from benchmarks.timing import SOLVE_PARTS, settle, stopwatch
from mpc_banded.codegen.cache import LibraryCache
from mpc_banded.ocp.compiled import compile_evaluator

LOOPS = ("bicycle50", "cartpole", "chain4")
PARTS = (*dict.fromkeys(SOLVE_PARTS.values()), "rest")


@dataclass(frozen=True)
class Run:
    """One closed loop.

    Attributes:
        iterations: Newton iterations of each control step, (steps,).
        parts_s: Processor time of each control step by PARTS, (steps, len(PARTS)).
    """

    iterations: np.ndarray
    parts_s: np.ndarray


@dataclass(frozen=True)
class Profile:
    """Closed loops of one task.

    Attributes:
        task: Task that was controlled.
        run: Each control step as the least disturbed round had it.
        machine_code_s: Seconds of machine code in a whole run, the least of rounds of their own.
    """

    task: Task
    run: Run
    machine_code_s: float

    @property
    def iteration_s(self) -> float:
        """Seconds of a run for each Newton iteration."""
        return float(self.run.parts_s.sum() / self.run.iterations.sum())

    def part_s(self, part: str) -> float:
        """Seconds of a part for each Newton iteration."""
        spent = self.run.parts_s[:, PARTS.index(part)].sum()
        return float(spent / self.run.iterations.sum())


def controller(task: Task) -> mb.RecedingHorizonController:
    """Controller with compiled derivatives and the tolerances of the comparison."""
    options = mb.SolverOptions(kkt_tolerance=TOLERANCE, defect_tolerance=TOLERANCE)
    made = mb.RecedingHorizonController(problem(task), "rk4", task.substeps, options)
    made.evaluator = compile_evaluator(made.evaluator, LibraryCache(BUILD / "performance"))
    return made


def drive(task: Task, made: mb.RecedingHorizonController, steps: int) -> Run:
    """Closed loop with the robot and the noise of the comparison's first run."""
    made.reset()
    state, noise = disturbances(task, 0)
    iterations, rows = [], []
    with stopwatch(made.evaluator, SOLVE_PARTS) as calls:
        for k in range(steps):
            parameters = task.stage_parameters(k, task.horizon)
            began = time.process_time()
            result = made.step(state + noise[k], parameters)
            total = time.process_time() - began
            parts = [sum(seconds) for seconds in calls.values()]
            rows.append([*parts, total - sum(parts)])
            iterations.append(result.iterations)
            for seconds in calls.values():
                seconds.clear()
            state = simulate(task, state, result.command, k)
    return Run(np.array(iterations), np.array(rows))


def profile(task: Task, steps: int = 0, rounds: int = 20) -> Profile:
    """Repeat a closed loop; of each control step the round with the least time counts.

    Raises:
        RuntimeError: Two rounds differ in their iterations.
    """
    made, steps = controller(task), steps or task.steps
    runs = [drive(task, made, steps) for _ in range(rounds)]
    if any((run.iterations != runs[0].iterations).any() for run in runs):
        raise RuntimeError(f"{task.name}: two runs of the same loop differ in their iterations")
    parts = np.array([run.parts_s for run in runs])
    best = np.argmin(parts.sum(axis=2), axis=0)
    run = Run(runs[0].iterations, parts[best, np.arange(steps)])
    evaluator = made.evaluator
    kernels = [k for k, v in vars(evaluator).items() if isinstance(v, ctypes._CFuncPtr)]
    code = []
    for _ in range(min(rounds, 3)):
        with stopwatch(evaluator, dict.fromkeys(kernels, "kernels")) as calls:
            drive(task, made, steps)
        code.append(sum(calls["kernels"]))
    return Profile(task, run, min(code))


def values(profiles: Sequence[Profile]) -> dict[str, str]:
    """Everything that the page has a place for."""
    header, counts = ["part"], []
    for p in profiles:
        header += [f"{p.task.title}: µs", "%"]
        warm = p.run.iterations[1:]
        shown = [int(np.percentile(warm, q, method="higher")) for q in (50, 90, 99, 100)]
        counts.append([p.task.title, int(p.run.iterations[0]), float(warm.mean()), *shown])
    rows = [[part, *_cells(profiles, [p.part_s(part) for p in profiles])] for part in PARTS]
    rows.append(["all", *_cells(profiles, [p.iteration_s for p in profiles])])
    code = [p.machine_code_s / float(p.run.iterations.sum()) for p in profiles]
    rows.append(["machine code in it", *_cells(profiles, code)])
    count_header = ["task", "first step, cold", "later: mean", "median", "90 %", "99 %", "most"]
    return {
        "made": provenance("torch", "numpy", "scipy"),
        "shares": table(header, rows),
        "iterations": table(count_header, counts),
    }


def _cells(profiles: Sequence[Profile], seconds: Sequence[float]) -> list[object]:
    cells: list[object] = []
    for p, s in zip(profiles, seconds, strict=True):
        cells += [number(1e6 * s, 3), number(100.0 * s / p.iteration_s)]
    return cells


def plot(profiles: Sequence[Profile], images: Path) -> None:
    """Share of each part in the time of an iteration."""
    size = (8.0, 1.4 + 0.8 * len(profiles))
    with plots.axes(images, "performance_shares", 1, size=size) as (at,):
        left = np.zeros(len(profiles))
        rows = range(len(profiles))[::-1]
        for color, part in zip(plots.COLORS, PARTS, strict=False):
            share = np.array([100.0 * p.part_s(part) / p.iteration_s for p in profiles])
            at.barh(rows, share, left=left, color=color, height=0.6, label=part)
            left += share
        names = [f"{p.task.title}\n{number(1e6 * p.iteration_s)} µs" for p in profiles]
        at.set_yticks(rows, names)
        at.set(xlabel="% of an iteration", xlim=(0.0, 100.0))
        at.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6, fontsize=7)
        at.grid(False, axis="y")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps; print the figures")
    quick = parser.parse_args().quick
    settle()
    steps, rounds = (6, 2) if quick else (0, 20)
    profiles = [profile(TASKS[name](), steps, rounds) for name in LOOPS]
    if quick:
        print(json.dumps(values(profiles), indent=1, ensure_ascii=False))
        return
    update(DOCS / "performance.md", values(profiles))
    plot(profiles, DOCS / "images")


if __name__ == "__main__":
    main()
