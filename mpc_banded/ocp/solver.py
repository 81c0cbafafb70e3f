# SPDX-License-Identifier: Apache-2.0
"""The Newton loop: evaluate, terminate, step, line search.

Each iteration evaluates all derivatives once, factors one positive definite band matrix, and uses
the factor to solve the exact KKT system of the dynamics (newton.py). The merit function is the
augmented Lagrangian *at the new multipliers*, along which the step s has the slope
``-s'H s - rho |d|^2``. The line search has its own rho and raises it until the slope is negative;
if no rho is large enough, the matrix is shifted. Near a solution the full step is accepted
(Nocedal and Wright, Numerical Optimization, 2nd ed., sections 17.4 and 18.3; the merit function is
Schittkowski's, 1983).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

import numpy as np

from mpc_banded.ocp.banded import NotPositiveDefinite
from mpc_banded.ocp.evaluator import Evaluator, Merit
from mpc_banded.ocp.newton import NewtonStep, NewtonSystem, Point, Scaling
from mpc_banded.ocp.problem import ComparesArrays
from mpc_banded.ocp.scaling import measure, remeasured
from mpc_banded.ocp.transcription import StageData

#: Step lengths that the line search tries after the first.
MAX_HALVINGS = 12
#: Share of the unit of the costs below which the one measured at the solution replaces it.
REMEASURED = 0.1
#: Relative rounding error of the merit function.
ROUNDING = 1e-13


class Status(Enum):
    """How a solve ended; the value says what to do about it."""

    CONVERGED = "converged: KKT residual and defects are below their tolerances"
    ITERATION_LIMIT = (
        "stopped at max_iterations with the last iterate; allow more iterations, or expect this "
        "for a few cycles after a large change"
    )
    DEADLINE = (
        "stopped at the deadline with the last iterate; shorten the horizon, lower "
        "controller_frequency, or accept it if kkt_residual stays small"
    )
    LINE_SEARCH_FAILED = (
        "no step along the Newton direction decreases the merit function; look for kinks or "
        "discontinuities in dynamics and costs, or loosen kkt_tolerance"
    )
    NOT_POSITIVE_DEFINITE = (
        "the Newton matrix stayed indefinite at regularization_max; add a cost on the inputs or "
        "states that nothing weighs"
    )
    NON_FINITE = (
        "state, dynamics or costs are not finite; check the state, the parameters and square "
        "roots or divisions at zero"
    )


def _option(default: Any, description: str) -> Any:
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class SolverOptions:
    """Options of the Newton solver; all are relative to the units of the problem (scaling.py)."""

    max_iterations: int = _option(100, "Newton iterations of one solve at most.")
    kkt_tolerance: float = _option(
        1e-6,
        "Largest gradient of the Lagrangian, relative to a unit plus that of costs or barrier.",
    )
    defect_tolerance: float = _option(1e-6, "Largest defect, in units of the states (scaling.py).")
    barrier: float = _option(1e-5, "mu that a solve ends with, in units of the costs.")
    barrier_initial: float = _option(
        1e-1, "mu that a cold solve begins with, in units of the costs."
    )
    penalty: float = _option(1e7, "rho of the Newton matrix, in units of its entries.")
    merit_penalty: float = _option(
        1e1, "rho of the line search's merit at first; raised until the step descends."
    )
    regularization_min: float = _option(
        1e-6, "First shift of an indefinite Newton matrix, in units of its entries."
    )
    regularization_max: float = _option(1e10, "Largest shift tried, likewise.")
    armijo_slope: float = _option(
        1e-4, "Fraction of the predicted decrease that a step must reach."
    )
    half_bandwidth: int = _option(
        0, "Half bandwidth of the Newton matrix; 0 takes the one derived from the couplings."
    )
    recovery: str = _option(
        "stagewise", "Way to the Hessian: stagewise, direct, substitution, phase or random."
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "recovery":
                continue
            if not np.isfinite(value) or value < 0 or (value == 0 and f.name != "half_bandwidth"):
                raise ValueError(f"SolverOptions.{f.name} is {value!r}; allowed are values > 0")


@dataclass(frozen=True)
class Iteration:
    """Statistics of one Newton iteration, to follow the convergence."""

    cost: float
    barrier: float
    kkt_residual: float
    defect_norm: float
    regularization: float
    step_length: float
    factorizations: int


@dataclass(frozen=True, eq=False)
class Solution(ComparesArrays):
    """The result of a solve.

    Attributes:
        point: The last iterate.
        status: How the solve ended.
        costs: Weighted named costs at the last iterate, (number of costs,).
        violations: Violation of each softened row at the last iterate, (N, r).
        kkt_residual: Relative KKT residual; see SolverOptions.
        defect_norm: Largest defect.
        iterations: Statistics of each iteration.
    """

    point: Point
    status: Status
    costs: np.ndarray
    violations: np.ndarray
    kkt_residual: float
    defect_norm: float
    iterations: tuple[Iteration, ...]


class NewtonSolver:
    """Solves one transcription repeatedly and remembers the regularization between solves.

    Args:
        evaluator: Evaluator of the transcription to solve.
        options: See SolverOptions.
    """

    def __init__(self, evaluator: Evaluator, options: SolverOptions) -> None:
        self.evaluator = evaluator
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forget what was learned from earlier solves."""
        self._scaling: Scaling | None = None
        self.rescale()
        self._iteration_s = 0.0

    def rescale(self) -> None:
        """Measure the unit of the costs again in the next solve."""
        self._is_cost_known = False
        self._shift = 0.0

    # An overflow is reported as Status.NON_FINITE, not as a warning.
    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def solve(
        self,
        start: Point | np.ndarray,
        data: StageData,
        deadline: float = np.inf,
        max_iterations: int | None = None,
    ) -> Solution:
        """Iterate from ``start`` until convergence, the iteration limit, or the deadline.

        A solve that is cut off returns its last iterate. This is the best one by the merit
        function, which no accepted step increases. An earlier iterate may have smaller residuals,
        but a solve that returned to it would never get past it under the same deadline.

        Args:
            start: The point of an earlier solve for a warm start, or a trajectory z (n,) for a
                cold start. Inputs at or outside their bounds are moved inside.
            data: Initial state, parameters and weights.
            deadline: In seconds on the clock of time.perf_counter(). No iteration starts that is
                expected, from the duration of earlier ones, to end after it.
            max_iterations: Lower limit than that of the options, for this solve only.
        """
        options = self.options
        limit = options.max_iterations
        if max_iterations is not None:
            limit = min(limit, max_iterations)
        if isinstance(start, Point):
            scaling, is_cold = self.units(start.z, data), False
            point = self._warm(start, scaling)
        else:
            scaling, is_cold = self.units(start, data), True
            point = self._cold(start, data, scaling)
        history: list[Iteration] = []
        while True:
            began = time.perf_counter()
            system = self.evaluator.system(point, data, scaling)
            while self._barrier_solved(system, scaling):
                mu = system.point.mu / scaling.cost
                mu = scaling.cost * max(options.barrier, min(0.1 * mu, mu**1.5))
                point = replace(system.point, mu=mu)
                system = self.evaluator.system(point, data, scaling)
            status = self._terminate(
                system, scaling, len(history) >= limit, deadline, bool(history)
            )
            if status is Status.CONVERGED and is_cold:
                unit = remeasured(scaling, self.evaluator, point.z, data)
                if unit.cost < REMEASURED * scaling.cost:
                    self._scaling = scaling = unit
                    continue
            outcome = status or self._advance(system, data, scaling)
            if isinstance(outcome, Status):
                return self._finish(system, outcome, history)
            point, record = outcome
            history.append(record)
            self._iteration_s = max(time.perf_counter() - began, 0.8 * self._iteration_s)

    def units(self, z: np.ndarray, data: StageData) -> Scaling:
        """Return the units of the problem, measured near z (n,) and kept if they are finite."""
        scaling = self._scaling
        if scaling is None:
            scaling = measure(self.evaluator, z, data, self.options.penalty)
        elif not self._is_cost_known:
            scaling = remeasured(scaling, self.evaluator, z, data)
        if not np.isfinite(scaling.cost):
            return self._scaling or replace(scaling, cost=1.0)
        self._scaling, self._is_cost_known = scaling, True
        return scaling

    def _cold(self, start: np.ndarray, data: StageData, scaling: Scaling) -> Point:
        problem = self.evaluator.transcription.problem
        mu = self.options.barrier_initial * scaling.cost
        z = self._interior(start, 1e-2, scaling)
        duals = self.evaluator.central_duals(z, mu, data)
        return Point(z, np.zeros((problem.horizon, problem.nx)), duals, mu)

    def _warm(self, start: Point, scaling: Scaling) -> Point:
        mu = max(start.mu, self.options.barrier * scaling.cost)
        return replace(start, z=self._interior(start.z, 1e-8, scaling), mu=mu)

    def _interior(self, z: np.ndarray, share: float, scaling: Scaling) -> np.ndarray:
        problem = self.evaluator.transcription.problem
        stages = z.reshape(problem.horizon, -1).copy()
        inputs = stages[:, : problem.nu]
        inputs[:] = self.evaluator.barrier.interior(inputs, share * scaling.inputs)
        return stages.reshape(-1)

    def _barrier_solved(self, system: NewtonSystem, scaling: Scaling) -> bool:
        mu = system.point.mu / scaling.cost
        solved = max(system.kkt_residual, system.defect_norm) <= 10.0 * mu
        return solved and mu > self.options.barrier * (1.0 + 1e-9)

    def _terminate(
        self,
        system: NewtonSystem,
        scaling: Scaling,
        exhausted: bool,
        deadline: float,
        advanced: bool,
    ) -> Status | None:
        options = self.options
        if not system.finite:
            return Status.NON_FINITE
        if (
            system.kkt_residual <= options.kkt_tolerance
            and system.defect_norm <= options.defect_tolerance
            and system.point.mu <= options.barrier * scaling.cost * (1.0 + 1e-9)
        ):
            return Status.CONVERGED
        if exhausted:
            return Status.ITERATION_LIMIT
        if time.perf_counter() + self._iteration_s > deadline:
            if not advanced:  # otherwise one slow iteration would prevent all later ones
                self._iteration_s *= 0.5
            return Status.DEADLINE
        return None

    def _advance(
        self, system: NewtonSystem, data: StageData, scaling: Scaling
    ) -> tuple[Point, Iteration] | Status:
        """The next point and the statistics of this iteration, or the status if there is none."""
        shift, factorizations = self._shift, 0
        failure = Status.NOT_POSITIVE_DEFINITE
        first = self.options.regularization_min
        while shift <= self.options.regularization_max:
            factorizations += 1
            try:
                step = self._step(system, scaling, shift)
            except NotPositiveDefinite:
                shift = max(8.0 * shift, first)
                continue
            found = self._line_search(system, step, data, scaling)
            if found is not None:
                length, point = found
                record = Iteration(
                    system.cost,
                    system.point.mu,
                    system.kkt_residual,
                    system.defect_norm,
                    shift,
                    length,
                    factorizations,
                )
                self._shift = shift / 8.0 if shift / 8.0 > first else 0.0
                return point, record
            failure = Status.LINE_SEARCH_FAILED
            shift = max(8.0 * shift, 1e3 * first)
        self._shift = 0.0
        return failure

    def _step(self, system: NewtonSystem, scaling: Scaling, shift: float) -> NewtonStep:
        accuracy = max(0.1 * self.options.defect_tolerance, 0.01 * system.defect_norm)
        return self.evaluator.newton_step(system, scaling, shift, accuracy)

    def _line_search(
        self, system: NewtonSystem, step: NewtonStep, data: StageData, scaling: Scaling
    ) -> tuple[float, Point] | None:
        """The first length that satisfies Armijo's condition, by halving; None if none does."""
        point, lam = system.point, step.multipliers
        slope, rho = step.slope, self.options.merit_penalty
        here = Merit(system.cost, system.barrier, step.dynamics, step.squared_defects)
        noise = ROUNDING * (abs(here.cost) + abs(here.barrier))
        if slope + 0.5 * rho * step.bend > noise:
            if not 2.0 * slope < -step.bend * scaling.penalty:
                return None
            rho = -2.0 * slope / step.bend
        slope += rho * step.bend
        if slope > noise:
            return None
        if -slope <= noise:  # the decrease is below rounding: trust Newton's method
            noise = np.inf
        length = step.longest
        for _ in range(MAX_HALVINGS + 1):
            z = point.z + length * step.z
            reached = self.evaluator.merit(z, lam, point.mu, data, scaling).value(rho)
            if reached <= here.value(rho) + self.options.armijo_slope * length * slope + noise:
                multipliers = point.multipliers + length * (lam - point.multipliers)
                return length, Point(z, multipliers, step.duals, point.mu)
            length *= 0.5
        return None

    def _finish(self, system: NewtonSystem, status: Status, history: list[Iteration]) -> Solution:
        return Solution(
            system.point,
            status,
            system.costs,
            np.maximum(-system.rows, 0.0),
            system.kkt_residual,
            system.defect_norm,
            tuple(history),
        )
