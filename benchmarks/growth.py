# SPDX-License-Identifier: Apache-2.0
"""Growth of one Newton iteration with the horizon, in time and memory.

Time is that of the solver's own iterations, told apart by what they call: the derivatives, the
step and the line search. Memory is the peak resident set of a process
of its own, less what it held before the problem was built.
"""

from __future__ import annotations

import ctypes
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
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.solver import NewtonSolver, SolverOptions

#: The growth exponent is fitted from this horizon on, and may be this much.
FITTED_FROM, BAR = 100, 1.05
ITERATIONS = 3
PARTS = ("evaluate", "step", "line search", "rest")
#: What part of an iteration each method of the derivatives serves.
SERVES = {
    "system": "evaluate",
    "newton_step": "step",
    "merit": "line search",
    "mean_curvature": "beginning",
    "central_duals": "beginning",
}


@contextmanager
def stopwatch(derivatives: EagerEvaluator) -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of the named steps that a solver makes with these derivatives."""
    calls: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            result = function(*arguments, **options)
            calls[name].append(time.process_time() - began)
            return result

        return call

    with ExitStack() as patches:
        for method, part in SERVES.items():
            call = timed(part, getattr(derivatives, method))
            patches.enter_context(mock.patch.object(derivatives, method, call))
        yield calls


class Subject:
    """The bicycle over a long road, to be solved for a few iterations from the cold start.

    Args:
        horizon: Number of intervals.
        backend: One of study.BACKENDS.
    """

    def __init__(self, horizon: int, backend: str) -> None:
        self.task = study.task("bicycle", horizon)
        self.derivatives = study.BACKENDS[backend](self.task.transcription)
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
            began = time.process_time()
            iterations = self.solve()
            total = time.process_time() - began
        # One more evaluation than iterations is made, to see the end; the beginning of a cold
        # solve is no part of an iteration.
        parts = {name: sum(calls[name]) / iterations for name in PARTS[1:-1]}
        parts["evaluate"] = float(np.mean(calls["evaluate"]))
        parts["rest"] = (total - sum(map(sum, calls.values()))) / iterations
        return parts


def peak_mib(horizon: int, backend: str) -> float:
    """Peak memory of a solve in MiB, by a process of its own that measures itself."""
    command = [sys.executable, "-m", "benchmarks.growth", "--peak", str(horizon), backend]
    run = subprocess.run(
        command, cwd=study.ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    return float(json.loads(run.stdout.splitlines()[-1]))


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

    def total(self, backend: str, horizon: int) -> float:
        """Seconds of one iteration."""
        return sum(self.seconds[backend, part, horizon] for part in PARTS)

    def fitted(self) -> list[int]:
        """Horizons that the exponents are fitted over."""
        return [h for h in self.horizons if h >= min(FITTED_FROM, self.horizons[-2])]

    def measured(self) -> list[int]:
        """Horizons whose memory was measured."""
        return list(dict.fromkeys(horizon for _, horizon in self.memory_mib))

    def exponents(self, backend: str) -> dict[str, float]:
        """Growth exponents of all parts and of their sum."""
        long = self.fitted()
        parts = {
            part: study.exponent(long, [self.seconds[backend, part, h] for h in long])
            for part in PARTS
        }
        return parts | {"all": study.exponent(long, [self.total(backend, h) for h in long])}

    def memory_exponent(self, backend: str) -> float:
        """The same of the memory."""
        horizons = self.measured()
        return study.exponent(horizons, [self.memory_mib[backend, h] for h in horizons])


def measure(quick: bool) -> Figures:
    """Solve over all horizons in rounds, and some horizons by processes of their own."""
    horizons = (5, 10, 20) if quick else (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
    measured = horizons[-1:] if quick else (100, 1_000, 10_000)
    backends = study.available_backends()
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


def write(figures: Figures, images: Path) -> Chapter:
    """Tables and plot of what ``measure`` found."""
    _plot(figures, images)
    horizons, last, first = figures.horizons, figures.horizons[-1], figures.fitted()[0]
    tables = []
    for backend in figures.backends:
        exponents = figures.exponents(backend)
        rows = [
            [
                part,
                *(1e3 * figures.seconds[backend, part, h] for h in horizons),
                number(exponents[part], 3),
            ]
            for part in PARTS
        ]
        total = [1e3 * figures.total(backend, h) for h in horizons]
        rows.append(["all", *total, number(exponents["all"], 3)])
        steepest = study.exponent(horizons[-2:], total[-2:])
        header = [backend, *map(number, horizons), "exponent"]
        tables.append(
            f"{study.table(header, rows)}\n\nBetween the two longest horizons alone the exponent "
            f"is {number(steepest, 3)}."
        )
    paragraphs = "\n\n".join(tables)
    missing = "" if "compiled" in figures.backends else "There was no C compiler: eager only. "
    memory = [
        [
            backend,
            *(figures.memory_mib[backend, h] for h in figures.measured()),
            number(figures.memory_exponent(backend), 3),
        ]
        for backend in figures.backends
    ]
    text = f"""
The package's own solver on the bicycle, rk4, one obstacle, from the cold start over
{ITERATIONS} iterations. {missing}Times of one iteration in ms by horizon N, and the growth
exponent, fitted from N = {number(first)} on. "Evaluate" brings all derivatives, "step" factors
the Newton matrix and solves with all sweeps of the multipliers, "rest" is the solver's own
arithmetic:

{paragraphs}

{study.figure("hessian_growth", "Time and memory of one iteration against the horizon")}

Peak memory of a solve beyond what the process held before the problem was built, in MiB: the peak
of the resident set of a process that solves this one problem after a small one.

{study.table(["", *(f"N = {number(h)}" for h in figures.measured()), "exponent"], memory)}
"""
    judged = figures.backends[-1]
    exponents = figures.exponents(judged)
    share = figures.seconds[judged, "evaluate", last] / figures.total(judged, last)
    verdict = Verdict(
        "Cost linear in the horizon",
        exponents["all"] <= BAR,
        f"From N = {number(first)} to {number(last)} one Newton iteration ({judged}) grows with "
        f"exponent {number(exponents['all'], 3)} (at most {BAR} is wanted), to "
        f"{number(1e3 * figures.total(judged, last))} ms, of which the derivatives take "
        f"{number(100 * share)} %; a solve takes "
        f"{number(figures.memory_mib[judged, figures.measured()[-1]])} MiB there.",
    )
    return Chapter("Growth with the horizon", text.strip(), (verdict,))


def _plot(figures: Figures, images: Path) -> None:
    horizons, measured, judged = figures.horizons, figures.measured(), figures.backends[-1]
    with study.axes(images, "hessian_growth", 3) as (whole, parts, memory):
        for k, backend in enumerate(figures.backends):
            total = [1e3 * figures.total(backend, h) for h in horizons]
            study.line(whole, k, horizons, total, backend)
            used = [figures.memory_mib[backend, h] for h in measured]
            study.line(memory, k, measured, used, backend)
        for k, part in enumerate(PARTS):
            spent = [1e3 * figures.seconds[judged, part, h] for h in horizons]
            study.line(parts, k, horizons, spent, part)
        linear = [total[-1] * h / horizons[-1] for h in horizons]
        whole.plot(horizons, linear, color="0.6", lw=1, ls=":", label="linear")
        whole.set_ylabel("ms")
        for axes in (whole, parts, memory):
            axes.set(xscale="log", yscale="log", xlabel="horizon N")
            axes.legend()
        memory.set_ylabel("MiB")
        whole.set_title("One Newton iteration")
        parts.set_title(f"Its parts, {judged}")
        memory.set_title("Peak memory of a solve")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(json.dumps(_own_peak_mib(int(sys.argv[2]), sys.argv[3])))
    else:
        study.run_alone(measure, write)
