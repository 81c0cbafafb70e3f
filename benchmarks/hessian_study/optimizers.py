# SPDX-License-Identifier: Apache-2.0
"""Newton's method against gradient descent, L-BFGS and Gauss-Newton on the robots' problems.

All methods minimise the same function from the same cold start: the costs and a quadratic penalty
on defects, bounds and inequalities. Its first derivatives are continuous, and it needs no
multipliers, which only some of the methods could use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.optimize
import torch

from benchmarks import plots
from benchmarks.hessian_study import problems
from benchmarks.hessian_study.problems import Task, verdict, without_inequalities
from benchmarks.hessian_study.stagewise import Stagewise
from benchmarks.pages import number, table
from mpc_banded.ocp import banded
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.solver import NewtonSolver, SolverOptions, Status

#: A method has arrived when its largest gradient is this, relative to that at the start.
TOLERANCE = 1e-6
ARMIJO = 1e-4
METHODS = ("Newton", "Gauss-Newton", "L-BFGS", "gradient descent")
#: Most iterations of the methods that factor a matrix, and of the others.
LIMITS = (1000, 3000)
QUICK_HORIZON = 8
#: Penalties, relative to the mean curvature of the costs; the plot shows the middle one.
PENALTIES = (1e1, 1e3, 1e5)


class Penalised:
    """Costs plus ``rho/2`` times the squares of all defects, and of all violations.

    Args:
        task: Task with its inequalities.
        penalty: rho, relative to the mean curvature of the costs at the start.
    """

    def __init__(self, task: Task, penalty: float) -> None:
        self.start = task.start
        self.scale = Stagewise(without_inequalities(task)).mean_curvature(self.start)
        self.rho = penalty * self.scale
        self.stages = Stagewise(without_inequalities(task, self.rho))
        self._none = np.zeros((task.transcription.problem.horizon, task.transcription.problem.nx))

    def value(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Value at z (n,), and the multipliers (N, nx) that the penalty of the defects acts as."""
        cost, defects = self.stages.values(z)
        return cost + 0.5 * self.rho * float((defects**2).sum()), self.rho * defects

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient at z (n,) by one backward pass, which first-order methods need."""
        point = torch.tensor(z, requires_grad=True)
        terms = self.stages.transcription.terms(point, self.stages.task.data)
        value = terms.costs.sum() + 0.5 * self.rho * (terms.defects**2).sum()
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy()

    def newton_system(
        self, z: np.ndarray, multipliers: np.ndarray, exact: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient (n,) and bands (b + 1, n) at z (n,), with the multipliers from ``value``.

        Without ``exact`` it is the Gauss-Newton matrix, without the curvature of the dynamics.
        """
        e = self.stages.evaluate(z, multipliers if exact else self._none, self.rho)
        return e.gradient + e.defects_transposed(multipliers), e.bands


@dataclass(frozen=True)
class Trace:
    """Run of one method: relative residual, value and processor seconds by iteration."""

    residuals: tuple[float, ...]
    values: tuple[float, ...]
    seconds: tuple[float, ...]
    end: np.ndarray

    @property
    def converged(self) -> bool:
        """Whether the residual came below TOLERANCE."""
        return self.residuals[-1] <= TOLERANCE

    @property
    def iterations(self) -> int:
        """Number of iterations."""
        return len(self.residuals) - 1


class _Recorder:
    """Records a trace, and says when to stop."""

    def __init__(self, first_gradient: np.ndarray, limit: int) -> None:
        self._size = np.abs(first_gradient).max()
        self._began, self._limit = time.process_time(), limit
        self._rows: list[tuple[float, float, float]] = []

    def done(self, value: float, gradient: np.ndarray) -> bool:
        """Record an iterate; returns whether the method is to stop."""
        residual, now = np.abs(gradient).max() / self._size, time.process_time() - self._began
        self._rows.append((float(residual), value, now))
        return bool(residual <= TOLERANCE or len(self._rows) > self._limit)

    def trace(self, end: np.ndarray) -> Trace:
        """Everything recorded."""
        residuals, values, seconds = zip(*self._rows, strict=True)
        return Trace(residuals, values, seconds, end)


def newton(f: Penalised, z: np.ndarray, limit: int, exact: bool = True) -> Trace:
    """Newton's method: a shift where the band is indefinite, then halving to Armijo's condition.

    With ``exact=False`` it is Gauss-Newton's.
    """
    recorder = _Recorder(f.value_and_gradient(z)[1], limit)
    (value, multipliers), shift, least = f.value(z), 0.0, 1e-6 * f.scale
    while True:
        gradient, bands = f.newton_system(z, multipliers, exact)
        if recorder.done(value, gradient):
            return recorder.trace(z)
        while True:
            shifted = bands.copy(order="K")
            shifted[0] += shift
            try:
                step = banded.cholesky(shifted).solve(-gradient)
                break
            except banded.NotPositiveDefinite:
                shift = max(8.0 * shift, least)
        shift = shift / 8.0 if shift > 8.0 * least else 0.0
        slope, noise = gradient @ step, 1e-13 * abs(value)
        for length in 0.5 ** np.arange(40):
            candidate = z + length * step
            reached, of_candidate = f.value(candidate)
            if reached <= value + ARMIJO * length * slope + noise:
                break
        else:
            return recorder.trace(z)
        z, value, multipliers = candidate, reached, of_candidate


def gauss_newton(f: Penalised, z: np.ndarray, limit: int) -> Trace:
    """Newton's method without the curvature of the dynamics."""
    return newton(f, z, limit, exact=False)


def gradient_descent(f: Penalised, z: np.ndarray, limit: int) -> Trace:
    """Steepest descent; the step length begins at twice the last one and is halved to Armijo's."""
    value, gradient = f.value_and_gradient(z)
    recorder = _Recorder(gradient, limit)
    length = 1.0 / f.rho
    while not recorder.done(value, gradient):
        length *= 2.0
        squared = gradient @ gradient
        while True:
            candidate = z - length * gradient
            reached, slope = f.value_and_gradient(candidate)
            if reached <= value - ARMIJO * length * squared:
                break
            length *= 0.5
            if length * squared <= 1e-16 * abs(value):
                return recorder.trace(z)
        z, value, gradient = candidate, reached, slope
    return recorder.trace(z)


def lbfgs(f: Penalised, z: np.ndarray, limit: int) -> Trace:
    """Scipy's L-BFGS-B with a memory of 20 pairs."""
    value, gradient = f.value_and_gradient(z)
    recorder = _Recorder(gradient, limit)
    recorder.done(value, gradient)
    last = gradient

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal last
        value, last = f.value_and_gradient(x)
        return value, last

    def callback(intermediate_result: scipy.optimize.OptimizeResult) -> None:
        if recorder.done(intermediate_result.fun, last):  # the accepted point came last
            raise StopIteration

    options = {"maxiter": 10**6, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0, "maxcor": 20}
    result = scipy.optimize.minimize(
        function, z, jac=True, method="L-BFGS-B", callback=callback, options=options
    )
    return recorder.trace(result.x)


_RUN: dict[str, Callable[[Penalised, np.ndarray, float], Trace]] = dict(
    zip(METHODS, (newton, gauss_newton, lbfgs, gradient_descent), strict=True)
)


@dataclass(frozen=True)
class Solved:
    """Solve of the exact problem by the package from the same start."""

    iterations: int
    converged: bool
    seconds: float
    defect: float


@dataclass(frozen=True)
class Figures:
    """Traces by (robot, penalty, method), and solves by the package by robot."""

    penalties: tuple[float, ...]
    limits: tuple[int, int]
    traces: dict[tuple[str, float, str], Trace]
    solved: dict[str, Solved]


def measure(quick: bool) -> Figures:
    """Run every method on every robot and penalty."""
    penalties = PENALTIES[:2] if quick else PENALTIES
    limits = (100, 60) if quick else LIMITS
    traces, solved = {}, {}
    for robot in problems.ROBOTS:
        task = problems.task(robot, QUICK_HORIZON if quick else 0)
        solver = NewtonSolver(EagerEvaluator(task.transcription), SolverOptions())
        solver.solve(task.start, task.data, deadline=0.0)  # warms up
        began = time.process_time()
        solution = solver.solve(task.start, task.data)
        solved[robot] = Solved(
            len(solution.iterations),
            solution.status is Status.CONVERGED,
            time.process_time() - began,
            solution.defect_norm,
        )
        for penalty in penalties:
            f = Penalised(task, penalty)
            for method, run in _RUN.items():
                traces[robot, penalty, method] = run(f, f.start, limits[method in METHODS[2:]])
    return Figures(penalties, limits, traces, solved)


def values(figures: Figures) -> dict[str, str]:
    """Everything that the page has a place for."""
    cases = list(dict.fromkeys(key[:2] for key in figures.traces))
    rows = [[r, number(p), *(_cell(figures.traces[r, p, m]) for m in METHODS)] for r, p in cases]
    solver = [
        [robot, s.iterations, s.seconds, "yes" if s.converged else "no", s.defect]
        for robot, s in figures.solved.items()
    ]
    arrived = {m: {c for c in cases if figures.traces[(*c, m)].converged} for m in METHODS}
    newton_iterations = [figures.traces[(*c, "Newton")].iterations for c in arrived["Newton"]]
    found = {
        "methods": table(["robot", "ρ", *METHODS], rows),
        "solver": table(["robot", "iterations", "seconds", "converged", "largest defect"], solver),
        "cases": str(len(cases)),
        "newton.arrives": str(len(arrived["Newton"])),
        "newton.least": str(min(newton_iterations, default=0)),
        "newton.most": str(max(newton_iterations, default=0)),
    }
    for method in METHODS[1:]:
        ratios = [
            figures.traces[(*c, method)].seconds[-1] / figures.traces[(*c, "Newton")].seconds[-1]
            for c in arrived[method] & arrived["Newton"]
        ]
        ahead = len(arrived["Newton"] - arrived[method]) + sum(r > 1.0 for r in ratios)
        behind = len(arrived[method] - arrived["Newton"]) + sum(r < 1.0 for r in ratios)
        name = method.replace(" ", "_")
        found[f"{name}.verdict"] = verdict(ahead > 2 * behind)  # one case more is no rule
        found[f"{name}.ahead"], found[f"{name}.behind"] = str(ahead), str(behind)
        found[f"{name}.arrives"] = str(len(arrived[method]))
        found[f"{name}.time"] = number(float(np.median(ratios)) if ratios else float("nan"))
    return found


def _cell(trace: Trace) -> str:
    if not trace.converged:
        return f"– ({number(trace.residuals[-1])})"
    return f"{trace.iterations} / {number(trace.seconds[-1])} s"


def plot(figures: Figures, images: Path) -> None:
    """Relative gradient against iterations and against time."""
    penalty = figures.penalties[len(figures.penalties) // 2]
    with plots.axes(images, "hessian_optimizers", 3, 2) as grid:
        for k, robot in enumerate(problems.ROBOTS):
            for at, seconds in ((grid[k], False), (grid[3 + k], True)):
                for m, method in enumerate(METHODS):
                    trace = figures.traces[robot, penalty, method]
                    x = np.array(trace.seconds) if seconds else 1 + np.arange(len(trace.seconds))
                    y = np.maximum(trace.residuals, 0.1 * TOLERANCE)
                    at.plot(x, y, color=plots.COLORS[m], label=method, lw=1)
                    at.plot(x[-1], y[-1], plots.MARKERS[m], color=plots.COLORS[m])
                at.axhline(TOLERANCE, color="k", lw=0.8, ls=":")
                at.set(xscale="log", yscale="log", ylim=(TOLERANCE / 30, None))
                at.set(xlabel="seconds" if seconds else "iterations + 1")
                at.set_xlim(1e-3 if seconds else None, None)
            grid[k].set_title(f"{robot}, ρ = {number(penalty)}")
        for at in (grid[0], grid[3]):
            at.set_ylabel("relative gradient")
        grid[0].legend(loc="lower left")
