# SPDX-License-Identifier: Apache-2.0
"""Newton's method against gradient descent, L-BFGS and Gauss-Newton on the robots' problems.

All minimise the same function from the same cold start: the costs and a quadratic penalty on
defects, bounds and inequalities. It has continuous first derivatives, is as the seed had it, and
needs no multipliers, which only some of the methods could make use of.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.optimize
import torch

from benchmarks import study
from benchmarks.stagewise import Stagewise, without_inequalities
from benchmarks.study import Chapter, Task, Verdict, number
from mpc_banded.ocp import banded
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.solver import NewtonSolver, SolverOptions, Status

#: Largest gradient, relative to that at the start, at which a method has arrived.
TOLERANCE = 1e-6
ARMIJO = 1e-4
METHODS = ("Newton", "Gauss-Newton", "L-BFGS", "gradient descent")
#: Iterations after which a method is stopped: by the second-order ones, by the others.
LIMITS = (1000, 3000)
QUICK_HORIZON = 8
#: Penalties, relative to the mean curvature of the costs; the plots show the middle one.
PENALTIES = (1e1, 1e3, 1e5)


class Penalised:
    """Costs plus ``rho/2`` times the squares of all defects, and of all violations.

    Args:
        task: Whose problem.
        penalty: rho, relative to the mean curvature of the costs at the start.
    """

    def __init__(self, task: Task, penalty: float) -> None:
        self.start = task.start
        self.scale = Stagewise(without_inequalities(task)).mean_curvature(self.start)
        self.rho = penalty * self.scale
        self.stages = Stagewise(without_inequalities(task, self.rho))
        self._none = np.zeros((task.transcription.problem.horizon, task.transcription.problem.nx))

    def value(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """The function at z (n,), and the multipliers that its slope amounts to, (N, nx)."""
        cost, defects = self.stages.values(z)
        return cost + 0.5 * self.rho * float((defects**2).sum()), self.rho * defects

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Both, by one backward pass: what the first-order methods pay for."""
        point = torch.tensor(z, requires_grad=True)
        terms = self.stages.transcription.terms(point, self.stages.task.data)
        value = terms.costs.sum() + 0.5 * self.rho * (terms.defects**2).sum()
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy()

    def newton_system(
        self, z: np.ndarray, multipliers: np.ndarray, exact: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient (n,) and bands (b + 1, n) at z (n,), where ``value`` said the multipliers.

        Without ``exact`` the curvature of the dynamics is left out, as Gauss and Newton have it.
        """
        e = self.stages.evaluate(z, multipliers if exact else self._none, self.rho)
        return e.gradient + e.defects_transposed(multipliers), e.bands


@dataclass(frozen=True)
class Trace:
    """What one method did: relative residual, value and processor seconds, by iteration."""

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
        """Iterations done."""
        return len(self.residuals) - 1


class _Recorder:
    """Keeps the trace, and says when it is time to stop."""

    def __init__(self, first_gradient: np.ndarray, limit: int) -> None:
        self._size = np.abs(first_gradient).max()
        self._began, self._limit = time.process_time(), limit
        self._rows: list[tuple[float, float, float]] = []

    def done(self, value: float, gradient: np.ndarray) -> bool:
        """Take down an iterate."""
        residual, now = np.abs(gradient).max() / self._size, time.process_time() - self._began
        self._rows.append((float(residual), value, now))
        return bool(residual <= TOLERANCE or len(self._rows) > self._limit)

    def trace(self, end: np.ndarray) -> Trace:
        """All that was taken down."""
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
    """How the package's own solver does from the same start, dynamics and bounds exact."""

    iterations: int
    converged: bool
    seconds: float
    defect: float


@dataclass(frozen=True)
class Figures:
    """Traces by (robot, penalty, method), and the package's solver by robot."""

    penalties: tuple[float, ...]
    limits: tuple[int, int]
    traces: dict[tuple[str, float, str], Trace]
    solved: dict[str, Solved]


def measure(quick: bool) -> Figures:
    """Run every method on every robot and penalty."""
    penalties = PENALTIES[:2] if quick else PENALTIES
    limits = (100, 60) if quick else LIMITS
    traces, solved = {}, {}
    for robot in study.ROBOTS:
        task = study.task(robot, QUICK_HORIZON if quick else 0)
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


def write(figures: Figures, images: Path) -> Chapter:
    """Table and plots of what ``measure`` found."""
    _plot(figures, images)
    rows = [
        [
            robot,
            number(penalty),
            *(_cell(figures.traces[robot, penalty, method]) for method in METHODS),
        ]
        for robot in study.ROBOTS
        for penalty in figures.penalties
    ]
    own = [
        [
            robot,
            solved.iterations,
            solved.seconds,
            "yes" if solved.converged else "no",
            solved.defect,
        ]
        for robot, solved in figures.solved.items()
    ]
    text = f"""
Every method minimises the costs plus `ρ/2` times the squares of all defects, bound violations and
inequality violations, from the same cold start: no input but a little noise, and where that leads.
ρ is relative to the mean curvature of the costs. A method has arrived when its largest gradient is
{number(TOLERANCE)} of that at the start; it is given {number(figures.limits[0])} iterations if it
factors a matrix in each, {number(figures.limits[1])} if not. Newton's method shifts the diagonal
where the band is indefinite and halves its steps to Armijo's condition; Gauss-Newton is the same
without the curvature of the dynamics; L-BFGS is scipy's, with 20 pairs; gradient
descent halves to Armijo's condition. One run each: iterations and processor
seconds until arrival, or a dash and the relative gradient where it stopped or was stopped.

{study.table(["robot", "ρ", *METHODS], rows)}

{study.figure("hessian_optimizers", "Relative gradient against iterations and against time")}

{_failures(figures)}

The package's own solver does not minimise a penalty: it updates multipliers and keeps bounds by a
barrier, with the same bands. From the same starts, on the exact problem:

{study.table(["robot", "iterations", "seconds", "converged", "largest defect"], own)}
"""
    return Chapter("Newton's method against the others", text.strip(), tuple(_verdicts(figures)))


def _cell(trace: Trace) -> str:
    if not trace.converged:
        return f"– ({number(trace.residuals[-1])})"
    return f"{trace.iterations} / {number(trace.seconds[-1])} s"


def _cases(figures: Figures) -> list[tuple[str, float]]:
    return [(robot, penalty) for robot in study.ROBOTS for penalty in figures.penalties]


def _arrived(figures: Figures, method: str) -> list[tuple[str, float]]:
    return [case for case in _cases(figures) if figures.traces[(*case, method)].converged]


def _failures(figures: Figures) -> str:
    """Where each method failed, and where methods that arrived did not arrive at the same."""
    sentences = []
    for method in METHODS:
        failed = [c for c in _cases(figures) if c not in _arrived(figures, method)]
        where = ", ".join(f"{robot} at {number(penalty)}" for robot, penalty in failed)
        name = method[0].upper() + method[1:]
        sentences.append(f"{name} does not arrive on: {where or 'none'}.")
    apart = []
    for case in _cases(figures):
        ends = [figures.traces[(*case, m)] for m in METHODS]
        ends = [trace.values[-1] for trace in ends if trace.converged]
        if ends and max(ends) - min(ends) > 1e-6 * abs(min(ends)):
            apart.append(
                f"{case[0]} at {number(case[1])} ({number(min(ends), 4)} to "
                f"{number(max(ends), 4)})"
            )
    sentences.append(
        "Different minima are reached on: " + "; ".join(apart) + "."
        if apart
        else "All that arrive, arrive at the same minimum."
    )
    return " ".join(sentences)


def _verdicts(figures: Figures) -> list[Verdict]:
    total, exact = len(_cases(figures)), _arrived(figures, "Newton")
    iterations = [figures.traces[(*case, "Newton")].iterations for case in exact]
    verdicts = []
    for method, idea in (
        ("gradient descent", "A Newton method performs better than straight gradient descent"),
        ("L-BFGS", "... and better than L-BFGS, which needs gradients only"),
        ("Gauss-Newton", "... and better than Gauss-Newton, without the dynamics' curvature"),
    ):
        other = _arrived(figures, method)
        ratios = [
            figures.traces[(*case, method)].seconds[-1]
            / figures.traces[(*case, "Newton")].seconds[-1]
            for case in other
            if case in exact
        ]
        ahead = len(set(exact) - set(other)) + sum(ratio > 1.0 for ratio in ratios)
        behind = len(set(other) - set(exact)) + sum(ratio < 1.0 for ratio in ratios)
        compared = (
            f"; where both do, the median ratio of their times is "
            f"{number(float(np.median(ratios)))}"
            if ratios
            else ""
        )
        verdicts.append(
            Verdict(
                idea,
                ahead > 2 * behind,  # one case more is no rule
                f"On three robots and {len(figures.penalties)} penalties Newton's method is ahead "
                f"in {ahead} and behind in {behind} of {total} cases: it arrives in {len(exact)}, "
                f"in {min(iterations, default=0)} to {max(iterations, default=0)} iterations, "
                f"{method} in {len(other)}{compared}.",
            )
        )
    return verdicts


def _plot(figures: Figures, images: Path) -> None:
    penalty = figures.penalties[len(figures.penalties) // 2]
    with study.axes(images, "hessian_optimizers", 3, 2) as grid:
        for k, robot in enumerate(study.ROBOTS):
            for at, seconds in ((grid[k], False), (grid[3 + k], True)):
                for m, method in enumerate(METHODS):
                    trace = figures.traces[robot, penalty, method]
                    x = np.array(trace.seconds) if seconds else 1 + np.arange(len(trace.seconds))
                    y = np.maximum(trace.residuals, 0.1 * TOLERANCE)
                    at.plot(x, y, color=study.COLORS[m], label=method, lw=1)
                    at.plot(x[-1], y[-1], study.MARKERS[m], color=study.COLORS[m])
                at.axhline(TOLERANCE, color="k", lw=0.8, ls=":")
                at.set(xscale="log", yscale="log", ylim=(TOLERANCE / 30, None))
                at.set(xlabel="seconds" if seconds else "iterations + 1")
                at.set_xlim(1e-3 if seconds else None, None)
            grid[k].set_title(f"{robot}, ρ = {number(penalty)}")
        for at in (grid[0], grid[3]):
            at.set_ylabel("relative gradient")
        grid[0].legend(loc="lower left")


if __name__ == "__main__":
    study.run_alone(measure, write)
