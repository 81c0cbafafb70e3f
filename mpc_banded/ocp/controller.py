# SPDX-License-Identifier: Apache-2.0
"""Receding horizon control with warm starts, deadlines and a fallback command.

Each step moves the last plan forward by the time that has passed, solves from there, and returns a
command that is finite and inside its bounds whatever happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from mpc_banded.ocp import checks, compiled
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.evaluator import Evaluator
from mpc_banded.ocp.problem import ComparesArrays, OptimalControlProblem, Trajectory
from mpc_banded.ocp.solver import NewtonSolver, Solution, SolverOptions, Status
from mpc_banded.ocp.transcription import StageData, Transcription
from mpc_banded.ocp.warm_start import WarmStart

if TYPE_CHECKING:
    from pathlib import Path

#: Makes an evaluator from a transcription, a half bandwidth (0: the derived one) and a recovery.
EvaluatorFactory = Callable[[Transcription, int, str], Evaluator]


class CommandSource(Enum):
    """Where a command comes from."""

    SOLUTION = "solution"
    """The solve of this step, converged or the best iterate it had time for."""
    SHIFTED = "shifted"
    """The plan of the last step, moved forward: this solve brought nothing better."""
    FALLBACK = "fallback"
    """The fallback command: there is neither a solve nor a plan that still reaches this far."""


@dataclass(frozen=True, eq=False)
class ControlStep(ComparesArrays):
    """The decision of one step of the controller, and figures of its solve.

    Attributes:
        command: Input to hold until the next step, (nu,); finite and inside the bounds.
        plan: The planned trajectory, exactly as the solver returned it.
        status: How the solve ended.
        source: Where the command comes from.
        iterations: Newton iterations taken.
        solve_time_s: Wall time of the step in seconds.
        kkt_residual: Relative KKT residual; NaN if nothing was solved.
        defect_norm: Largest defect of the plan; NaN if nothing was solved.
        cost_terms: Weighted share of each named cost.
        violations: Largest violation of each named inequality and of "state_bounds".
    """

    command: np.ndarray
    plan: Trajectory
    status: Status
    source: CommandSource
    iterations: int
    solve_time_s: float
    kkt_residual: float
    defect_norm: float
    cost_terms: dict[str, float]
    violations: dict[str, float]


class RecedingHorizonController:
    """Steps a problem in closed loop.

    Args:
        problem: What to solve at each step.
        transcription: Finite-difference scheme: euler, midpoint, trapezoid or rk4.
        substeps: Integration steps per interval, for euler and rk4.
        options: Options of the solver.
        fallback_command: Sent when there is no plan, (nu,); zero if not given, moved into the
            bounds.
        evaluator: Makes the evaluator of the problem; a compiled one may take its place later.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    def __init__(
        self,
        problem: OptimalControlProblem,
        transcription: str = "midpoint",
        substeps: int = 1,
        options: SolverOptions | None = None,
        fallback_command: np.ndarray | None = None,
        evaluator: EvaluatorFactory = EagerEvaluator,
    ) -> None:
        self.problem = problem
        self.options = options or SolverOptions()
        self.transcription = Transcription(problem, transcription, substeps)
        self._solver = NewtonSolver(
            evaluator(self.transcription, self.options.half_bandwidth, self.options.recovery),
            self.options,
        )
        wanted = np.zeros(problem.nu) if fallback_command is None else fallback_command
        wanted = np.asarray(wanted, dtype=np.float64)
        if wanted.shape != (problem.nu,) or not np.isfinite(wanted).all():
            raise ValueError(
                f"fallback_command is {wanted}; allowed are {problem.nu} finite values"
            )
        self._fallback = self._inside_bounds(wanted)
        self._weights = problem.weights
        self.reset()

    @property
    def evaluator(self) -> Evaluator:
        """Evaluates the problem; another one of the same transcription can take its place.

        The plan and the warm start are kept.
        """
        return self._solver.evaluator

    @evaluator.setter
    def evaluator(self, evaluator: Evaluator) -> None:
        self._solver.evaluator = evaluator

    @property
    def weights(self) -> Mapping[str, float]:
        """The live weight of each named cost."""
        return self._weights

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the named weights from the next step on; the warm start is kept.

        Raises:
            ValueError: Unknown name or value; nothing is changed then.
        """
        self._weights = self.problem.checked_weights({**self._weights, **weights})
        self._solver.rescale()

    def reset(self) -> None:
        """Forget the plan and the warm start; the next step starts cold."""
        self._warm = WarmStart(self.problem)
        self._solver.reset()

    def inherit(self, other: RecedingHorizonController) -> None:
        """Continue from the plan of another controller, resampled in time if the grid differs.

        Args:
            other: A controller with the same states and inputs; its horizon, interval, limits,
                weights and options may differ. It is not changed.

        Raises:
            ValueError: It has another number of states or inputs.
        """
        mine, its = self.problem, other.problem
        if (mine.nx, mine.nu) != (its.nx, its.nu):
            raise ValueError(
                f"the plan has {its.nx} states and {its.nu} inputs; allowed are {mine.nx} and "
                f"{mine.nu}"
            )
        self._warm.inherit(other._warm)

    def check(self, state: np.ndarray, parameters: Mapping[str, np.ndarray]) -> None:
        """Verify gradients and half bandwidth with random probes.

        Raises:
            BandwidthError: The half bandwidth is too small.
            ValueError: A gradient is not that of the values, or a term couples stages in a way
                that the recovery cannot see.
        """
        # A weight that is zero now may be raised later: its cost's coupling counts.
        weights = {name: weight or 1.0 for name, weight in self._weights.items()}
        data = self.transcription.stage_data(state, parameters, weights)
        generator = np.random.default_rng(0)
        lower, upper = self.problem.input_bounds
        z = self._led_to(1e-3 * np.minimum(upper - lower, 1.0), data)
        z += 1e-2 * generator.standard_normal(len(z))
        checks.check_problem(self.evaluator, z, data)

    def compile(self) -> None:
        """Use machine code from the next step on; the plan and the warm start are kept.

        This takes about a second, less if the user's cache has the library. Variables that a
        function closes over are read once, now; pass values that change later as parameters.
        ``compiled.compile_evaluator`` makes the evaluator, takes another cache, and names the
        errors.
        """
        self.evaluator = compiled.compile_evaluator(self.evaluator)

    @property
    def library(self) -> Path | None:
        """Path of the compiled library in use; None while the evaluator is eager."""
        return compiled.library_path(self.evaluator)

    def step(
        self,
        state: np.ndarray,
        parameters: Mapping[str, np.ndarray],
        *,
        elapsed_s: float | None = None,
        deadline_s: float | None = None,
        max_iterations: int | None = None,
    ) -> ControlStep:
        """Return the command for the measured state.

        Args:
            state: Measured state, (nx,). A non-finite one gives Status.NON_FINITE.
            parameters: Name -> value of one stage, or of all (horizon + 1, ...).
            elapsed_s: Time since the last step in seconds; dt if not given.
            deadline_s: Seconds from now after which no further iteration is begun.
            max_iterations: Largest number of Newton iterations, up to that of the solver's
                options, to repeat a solve that a deadline cut off.

        Raises:
            ValueError: A shape or a parameter is wrong.
        """
        began = time.perf_counter()
        state = np.array(state, dtype=np.float64)  # the caller may use its own again
        if state.shape != (self.problem.nx,):
            raise ValueError(f"state has shape {state.shape}; it must be ({self.problem.nx},)")
        elapsed_s = self.problem.dt if elapsed_s is None else elapsed_s
        if not (np.isfinite(elapsed_s) and elapsed_s >= 0.0):
            raise ValueError(f"elapsed_s is {elapsed_s}; allowed are finite values >= 0")
        if deadline_s is not None and np.isnan(deadline_s):
            raise ValueError("deadline_s is nan; allowed are numbers of seconds and None")
        if max_iterations is not None and max_iterations < 0:
            raise ValueError(f"max_iterations is {max_iterations}; allowed are integers >= 0")
        data = self.transcription.stage_data(state, parameters, self._weights)
        warm = self._warm
        warm.advance(elapsed_s)
        if warm.plan is not None and not warm.plan.duals.size:  # inherited without them
            duals = self.evaluator.central_duals(warm.plan.z, warm.plan.mu, data)
            warm.plan = replace(warm.plan, duals=duals)
        solution = None
        if np.isfinite(state).all():
            deadline = np.inf if deadline_s is None else began + deadline_s
            solution = self._solve(data, deadline, max_iterations)
        return self._decide(state, solution, time.perf_counter() - began)

    def _solve(self, data: StageData, deadline: float, max_iterations: int | None) -> Solution:
        """Solve from the warm start, or cold if there is none or it is not finite."""
        if self._warm.start is not None:
            solution = self._solver.solve(self._warm.start, data, deadline, max_iterations)
            if solution.status is not Status.NON_FINITE:
                return solution
            # The plan may be at fault, after a state that was finite and nonsense.
        return self._solver.solve(self._cold(data), data, deadline, max_iterations)

    def _decide(self, state: np.ndarray, solution: Solution | None, solve_s: float) -> ControlStep:
        status = Status.NON_FINITE if solution is None else solution.status
        if solution is not None and status is Status.NON_FINITE:
            # Not even a cold start is finite: the data are at fault, not the plan.
            solution = None
        warm = self._warm
        source = CommandSource.FALLBACK if warm.plan is None else CommandSource.SHIFTED
        if solution is not None and warm.learn(solution):
            source = CommandSource.SOLUTION
        if np.isfinite(state).all():
            warm.state = state
        if warm.plan is None:
            plan = self._standing(warm.state)
        else:
            plan = self.transcription.unpack(warm.plan.z, warm.state)
        return ControlStep(
            command=self._inside_bounds(plan.inputs[0]),
            plan=plan,
            status=status,
            source=source,
            iterations=len(solution.iterations) if solution else 0,
            solve_time_s=solve_s,
            kkt_residual=solution.kkt_residual if solution else np.nan,
            defect_norm=solution.defect_norm if solution else np.nan,
            cost_terms=self._cost_terms(solution) if solution else {},
            violations=self._violations(solution) if solution else {},
        )

    def _inside_bounds(self, command: np.ndarray) -> np.ndarray:
        safe = np.where(np.isfinite(command), command, 0.0)
        return np.clip(safe, *self.problem.input_bounds)

    def _standing(self, state: np.ndarray) -> Trajectory:
        horizon = self.problem.horizon
        return Trajectory(
            np.tile(state, (horizon + 1, 1)),
            np.tile(self._fallback, (horizon, 1)),
            self.problem.dt,
        )

    def _cold(self, data: StageData) -> np.ndarray:
        """Return where the fallback command leads, with a little noise that is always the same.

        Doing nothing can be a stationary point that is no minimum (a pendulum hanging at rest,
        an obstacle dead ahead), and Newton's method would stay there.
        """
        units = self._solver.units(self._led_to(0.0, data), data)
        return self._led_to(1e-3 * units.inputs, data)

    def _led_to(self, noise: np.ndarray | float, data: StageData) -> np.ndarray:
        """Return where the fallback command leads, with noise of a size (nu,), as z (n,)."""
        shape = (self.problem.horizon, self.problem.nu)
        inputs = self._fallback + noise * np.random.default_rng(0).standard_normal(shape)
        states = self.evaluator.rollout(inputs, data)
        return self.transcription.pack(Trajectory(states, inputs, self.problem.dt))

    def _cost_terms(self, solution: Solution) -> dict[str, float]:
        return dict(zip(self.problem.cost_names, solution.costs.tolist(), strict=True))

    def _violations(self, solution: Solution) -> dict[str, float]:
        result, column = {}, 0
        for name, width in self.problem.inequality_widths.items():
            rows = solution.violations[:, column : column + width]
            result[name] = float(rows.max(initial=0.0))
            column += width
        result["state_bounds"] = float(solution.violations[:, column:].max(initial=0.0))
        return result
