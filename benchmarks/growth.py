# SPDX-License-Identifier: Apache-2.0
"""Growth of one Newton iteration with the horizon, in time and memory.

Time is that of the solver's own iterations, told apart by what they call: the derivatives, the
factorisation, the substitutions and the line search. Memory is the peak resident set of a process
of its own, less what it held before the problem was built.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import study
from benchmarks.study import Chapter, Verdict, number
from mpc_banded import banded
from mpc_banded.derivatives import Derivatives
from mpc_banded.solver import NewtonSolver, SolverOptions
from mpc_banded.transcription import Transcription

#: Ways to the derivatives, all with the interface of Derivatives.
BACKENDS: dict[str, Callable[[Transcription], Any]] = {"eager": Derivatives}
BACKEND = "eager"
#: The growth exponent is fitted from this horizon on, and may be this much.
FITTED_FROM, BAR = 100, 1.05
ITERATIONS = 3
PARTS = ("evaluate", "factor", "step", "line search", "rest")
#: What part of an iteration each method of the derivatives serves.
SERVES = {
    "evaluate": "evaluate",
    "system": "evaluate",
    "pulled_back": "step",
    "linearised_defects": "step",
    "advance": "line search",
    "merit": "line search",
    "values": "line search",
}


@contextmanager
def stopwatch(derivatives: Any) -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of the named steps that a solver makes with these derivatives."""
    calls: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            calls[name].append(time.perf_counter() - began)
            return result

        return call

    with ExitStack() as patches:
        for method, part in SERVES.items():
            if hasattr(derivatives, method):
                call = timed(part, getattr(derivatives, method))
                patches.enter_context(mock.patch.object(derivatives, method, call))
        for owner, name, part in (
            (banded, "cholesky", "factor"),
            (banded.BandedCholesky, "solve", "step"),
        ):
            call = timed(part, getattr(owner, name))
            patches.enter_context(mock.patch.object(owner, name, call))
        yield calls


class Subject:
    """The bicycle over a long road, to be solved for a few iterations from the cold start.

    Args:
        horizon: Number of intervals.
        backend: One of BACKENDS.
    """

    def __init__(self, horizon: int, backend: str = BACKEND) -> None:
        self.task = study.task("bicycle", horizon)
        self.derivatives = BACKENDS[backend](self.task.transcription)
        self.solver = NewtonSolver(
            self.derivatives, replace(SolverOptions(), max_iterations=ITERATIONS)
        )

    def solve(self) -> int:
        """Newton iterations done."""
        return len(self.solver.solve(self.task.coasting, self.task.data).iterations)

    def iteration(self) -> dict[str, float]:
        """Seconds of one iteration by part, in the mean over one solve."""
        self.solver.reset()
        with stopwatch(self.derivatives) as calls:
            began = time.perf_counter()
            iterations = self.solve()
            total = time.perf_counter() - began
        # Two more evaluations than iterations are made, to begin with and to end.
        parts = {name: sum(calls[name]) / iterations for name in PARTS[1:-1]}
        parts["evaluate"] = float(np.mean(calls["evaluate"]))
        parts["rest"] = (total - sum(map(sum, calls.values()))) / iterations
        return parts


def peak_mib(horizon: int, backend: str) -> float:
    """Peak memory of a solve in MiB, by a process of its own that measures itself."""
    command = [sys.executable, "-m", "benchmarks.growth", "--peak", str(horizon), backend]
    run = subprocess.run(
        command, cwd=Path.cwd(), env=os.environ, capture_output=True, text=True, check=True
    )
    return float(json.loads(run.stdout.splitlines()[-1]))


def _own_peak_mib(horizon: int, backend: str) -> float:
    Subject(10, backend).solve()  # what torch and scipy load on first use
    before = _resident_mib("VmRSS")
    Subject(horizon, backend).solve()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kib,) = [line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(kib) / 1024.0


@dataclass(frozen=True)
class Figures:
    """Seconds of one iteration by (part, N), peak memory in MiB by N."""

    backend: str
    horizons: tuple[int, ...]
    seconds: dict[tuple[str, int], float]
    memory_mib: dict[int, float]

    def total(self, horizon: int) -> float:
        """Seconds of one iteration."""
        return sum(self.seconds[part, horizon] for part in PARTS)

    def fitted(self) -> list[int]:
        """Horizons that the exponents are fitted over."""
        return [h for h in self.horizons if h >= min(FITTED_FROM, self.horizons[-2])]

    def exponents(self) -> dict[str, float]:
        """Growth exponents of all parts and of their sum."""
        long = self.fitted()
        parts = {
            part: study.exponent(long, [self.seconds[part, h] for h in long]) for part in PARTS
        }
        return parts | {"all": study.exponent(long, [self.total(h) for h in long])}


def measure(quick: bool, backend: str = BACKEND) -> Figures:
    """Solve over all horizons in rounds, and each horizon once by a process of its own."""
    horizons = (5, 10, 20) if quick else (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
    measured = horizons[-1:] if quick else (100, 1_000, 10_000)
    subjects = {horizon: Subject(horizon, backend) for horizon in horizons}
    rounds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for warming in (True, *[False] * (2 if quick else 7)):
        for horizon, subject in subjects.items():
            parts = subject.iteration()
            if not warming:
                for part, seconds in parts.items():
                    rounds[part, horizon].append(seconds)
    seconds = {key: float(np.median(values)) for key, values in rounds.items()}
    memory = {horizon: peak_mib(horizon, backend) for horizon in measured}
    return Figures(backend, horizons, seconds, memory)


def write(figures: Figures, images: Path) -> Chapter:
    """Table and plot of what ``measure`` found."""
    _plot(figures, images)
    exponents, horizons = figures.exponents(), figures.horizons
    first, last = figures.fitted()[0], horizons[-1]
    share = figures.seconds["evaluate", last] / figures.total(last)
    steepest = study.exponent(horizons[-2:], [figures.total(h) for h in horizons[-2:]])
    memory = figures.memory_mib
    of_memory = study.exponent(list(memory), list(memory.values()))
    rows = [
        [part, *(1e3 * figures.seconds[part, h] for h in horizons), number(exponents[part], 3)]
        for part in PARTS
    ]
    rows.append(["all", *(1e3 * figures.total(h) for h in horizons), number(exponents["all"], 3)])
    text = f"""
The package's own solver on the bicycle, rk4, one obstacle, from the cold start over
{ITERATIONS} iterations; derivatives: {figures.backend}. Times of one iteration in ms by horizon N,
and the growth exponent, fitted from N = {number(first)} on:

{study.table(["step", *(f"{number(h)}" for h in horizons), "exponent"], rows)}

{study.figure("hessian_growth", "Time and memory of one iteration against the horizon")}

Below N = {number(first)} the dispatch of operations sets the time, not their size. "Rest" is the
solver's own arithmetic in NumPy: barrier, residuals, Armijo's condition. Between the two longest
horizons alone the exponent of all is {number(steepest, 3)}.

Peak memory of a solve beyond what the process held before it, in MiB:

{
        study.table(
            ["", *(f"N = {number(h)}" for h in figures.memory_mib)],
            [["peak", *figures.memory_mib.values()]],
        )
    }

It is the peak of the resident set of a process that solves this one problem after a small one.
"""
    verdict = Verdict(
        "Cost linear in the horizon",
        exponents["all"] <= BAR,
        f"From N = {number(first)} to {number(last)} one Newton iteration grows with exponent "
        f"{number(exponents['all'], 3)} (at most {BAR} is wanted), to "
        f"{number(1e3 * figures.total(last))} ms, of which the derivatives take "
        f"{number(100 * share)} %; memory grows to {number(figures.memory_mib[last])} MiB"
        f"{f', with exponent {number(of_memory, 3)}' if np.isfinite(of_memory) else ''}.",
    )
    return Chapter("Growth with the horizon", text.strip(), (verdict,))


def _plot(figures: Figures, images: Path) -> None:
    horizons, measured = figures.horizons, list(figures.memory_mib)
    with study.axes(images, "hessian_growth", 2) as (left, right):
        total = [1e3 * figures.total(h) for h in horizons]
        left.plot(horizons, total, "k-", lw=2, label="all")
        for k, part in enumerate(PARTS):
            study.line(left, k, horizons, [1e3 * figures.seconds[part, h] for h in horizons], part)
        reference = [total[-1] * h / horizons[-1] for h in horizons]
        left.plot(horizons, reference, color="0.6", lw=1, ls=":", label="linear")
        left.set(xscale="log", yscale="log", xlabel="horizon N", ylabel="ms")
        left.set_title("One Newton iteration")
        left.legend(ncols=2)
        study.line(right, 0, measured, list(figures.memory_mib.values()), "peak")
        right.set(xscale="log", yscale="log", xlabel="horizon N", ylabel="MiB")
        right.set_title("Peak memory of a solve")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(json.dumps(_own_peak_mib(int(sys.argv[2]), sys.argv[3])))
    else:
        study.run_alone(measure, write)
