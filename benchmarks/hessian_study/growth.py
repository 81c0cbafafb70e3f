# SPDX-License-Identifier: Apache-2.0
"""Growth of one Newton iteration with the horizon, in time and memory.

The time of the solver's own iterations is split by what they call: derivatives, step and line
search. Memory is the peak resident set of a process of its own, less what the process held before
the problem was built.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import plots
from benchmarks.hessian_study import problems
from benchmarks.hessian_study.problems import verdict
from benchmarks.pages import ROOT, number, table
from benchmarks.timing import SOLVE_PARTS, exponent, stopwatch
from mpc_banded.ocp.solver import NewtonSolver, SolverOptions

#: The growth exponent is fitted from this horizon on, and may be this much.
FITTED_FROM, BAR = 100, 1.05
ITERATIONS = 3
PARTS = ("evaluate", "step", "line search", "rest")
#: Horizons in the table; the plot has all.
SHOWN = (10, 100, 1_000, 10_000)


class Subject:
    """The bicycle over a long road, solved for a few iterations from the cold start.

    Args:
        horizon: Number of intervals.
        backend: One of problems.EVALUATORS.
    """

    def __init__(self, horizon: int, backend: str) -> None:
        self.task = problems.bicycle(horizon)
        self.evaluator = problems.EVALUATORS[backend](self.task.transcription)
        self.solver = NewtonSolver(
            self.evaluator, replace(SolverOptions(), max_iterations=ITERATIONS)
        )

    def solve(self) -> int:
        """Newton iterations done."""
        return len(self.solver.solve(self.task.coasting, self.task.data).iterations)

    def iteration(self) -> dict[str, float]:
        """Seconds of one iteration by part, in the mean over one solve.

        The parts add up to the solve without its cold start. The evaluation by which the solver
        sees that it has arrived is counted with the iterations.
        """
        self.solver.reset()
        with stopwatch(self.evaluator, SOLVE_PARTS) as calls:
            began = time.process_time()
            iterations = self.solve()
            total = time.process_time() - began
        parts = {part: sum(seconds) for part, seconds in calls.items()}
        cold = parts.pop("cold start")
        parts["rest"] = total - cold - sum(parts.values())
        return {part: seconds / iterations for part, seconds in parts.items()}


def peak_mib(horizon: int, backend: str) -> float:
    """Peak memory of a solve in MiB, measured by a process of its own."""
    command = [sys.executable, "-m", "benchmarks.hessian_study.growth", str(horizon), backend]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(run.stdout.splitlines()[-1])


def _own_peak_mib(horizon: int, backend: str) -> float:
    Subject(10, backend).solve()  # what torch and scipy load on first use
    before = _resident_mib("VmRSS")
    subject = Subject(horizon, backend)
    ctypes.CDLL(None).malloc_trim(0)  # what building it has left
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    subject.solve()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kib,) = [line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(kib) / 1024.0


@dataclass(frozen=True)
class Figures:
    """Seconds of one iteration by (backend, part, N), peak memory in MiB by (backend, N)."""

    backends: list[str]
    horizons: tuple[int, ...]
    seconds: dict[tuple[str, str, int], float]
    memory_mib: dict[tuple[str, int], float]

    def totals(self, backend: str) -> list[float]:
        """Seconds of one iteration at each horizon."""
        return [sum(self.seconds[backend, part, h] for part in PARTS) for h in self.horizons]

    def long(self) -> int:
        """Index of the first horizon that the exponents are fitted over."""
        return min(bisect_left(self.horizons, FITTED_FROM), len(self.horizons) - 2)

    def measured(self) -> list[int]:
        """Horizons whose memory was measured."""
        return list(dict.fromkeys(horizon for _, horizon in self.memory_mib))


def measure(quick: bool) -> Figures:
    """Solve over all horizons in rounds, and some horizons in processes of their own."""
    horizons = (5, 10, 20) if quick else (10, 50, 100, 500, 1_000, 5_000, 10_000)
    measured = horizons[-1:] if quick else (100, 1_000, 10_000)
    backends = problems.available_evaluators()
    subjects = {(backend, h): Subject(h, backend) for backend in backends for h in horizons}
    rounds: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for warming in (True, *[False] * (2 if quick else 7)):
        for (backend, horizon), subject in subjects.items():
            parts = subject.iteration()
            if not warming:
                for part, seconds in parts.items():
                    rounds[backend, part, horizon].append(seconds)
    seconds = {key: float(np.median(values)) for key, values in rounds.items()}
    memory = {(backend, h): peak_mib(h, backend) for backend in backends for h in measured}
    return Figures(backends, horizons, seconds, memory)


def values(figures: Figures) -> dict[str, str]:
    """Everything that the page has a place for."""
    horizons, long, measured = figures.horizons, figures.long(), figures.measured()
    shown = [k for k, h in enumerate(horizons) if h in SHOWN]
    found, memory_rows = {}, []
    for backend in figures.backends:
        times = {p: [figures.seconds[backend, p, h] for h in horizons] for p in PARTS}
        times["all"] = figures.totals(backend)
        rows = [
            [
                part,
                *(1e3 * seconds[k] for k in shown),
                number(exponent(horizons[long:], seconds[long:]), 3),
            ]
            for part, seconds in times.items()
        ]
        header = [f"{backend}, ms", *(f"N = {number(horizons[k])}" for k in shown), "exponent"]
        found[backend] = table(header, rows)
        used = [figures.memory_mib[backend, h] for h in measured]
        memory_rows.append([backend, *used, number(exponent(measured, used), 3)])
    judged = figures.backends[-1]
    totals = figures.totals(judged)
    slope = exponent(horizons[long:], totals[long:])
    return found | {
        "memory": table(["MiB", *(f"N = {number(h)}" for h in measured), "exponent"], memory_rows),
        "iterations": str(ITERATIONS),
        "first": number(horizons[long]),
        "last": number(horizons[-1]),
        "bar": str(BAR),
        "verdict": verdict(slope <= BAR),
        "exponent": number(slope, 3),
        "last_ms": number(1e3 * totals[-1]),
        "share": number(100.0 * figures.seconds[judged, "evaluate", horizons[-1]] / totals[-1]),
        "last_mib": number(figures.memory_mib[judged, measured[-1]]),
    }


def plot(figures: Figures, images: Path) -> None:
    """Time and memory of one iteration against the horizon."""
    horizons, measured, judged = figures.horizons, figures.measured(), figures.backends[-1]
    with plots.axes(images, "hessian_growth", 3) as (whole, parts, memory):
        for k, backend in enumerate(figures.backends):
            total = [1e3 * seconds for seconds in figures.totals(backend)]
            plots.line(whole, k, horizons, total, backend)
            used = [figures.memory_mib[backend, h] for h in measured]
            plots.line(memory, k, measured, used, backend)
        for k, part in enumerate(PARTS):
            spent = [1e3 * figures.seconds[judged, part, h] for h in horizons]
            plots.line(parts, k, horizons, spent, part)
        linear = [total[-1] * h / horizons[-1] for h in horizons]
        whole.plot(horizons, linear, color="0.6", lw=1, ls=":", label="linear")
        whole.set(ylabel="ms", title="One Newton iteration")
        for axes in (whole, parts, memory):
            axes.set(xscale="log", yscale="log", xlabel="horizon N")
            axes.legend()
        memory.set(ylabel="MiB", title="Peak memory of a solve")
        parts.set_title(f"Its parts, {judged}")


if __name__ == "__main__":
    print(_own_peak_mib(int(sys.argv[1]), sys.argv[2]))
