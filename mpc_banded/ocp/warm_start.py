# SPDX-License-Identifier: Apache-2.0
"""Warm starts: an earlier solution moved forward in time, or resampled to another grid.

A plan moves with its multipliers and duals, so a solve continues where the last one stopped.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpc_banded.ocp.newton import Point
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.ocp.solver import Solution, Status


class WarmStart:
    """The plan that is driven, and the point at which the next solve starts.

    Usually both are the same. After a solve that failed, the plan is no good start: the robot
    keeps driving it, while solves start cold and continue each other until one converges.

    Args:
        problem: The problem that the plan solves.

    Attributes:
        plan: The plan, moved to the present; None if there is none that still reaches this far.
        state: The last finite state that was measured, (nx,); the plan starts there.
    """

    def __init__(self, problem: OptimalControlProblem) -> None:
        self._problem = problem
        self.plan: Point | None = None
        self.state = np.zeros(problem.nx)
        self._age_s = 0.0
        self._is_bad_start = False
        self._recovery: Point | None = None

    @property
    def start(self) -> Point | None:
        """The point at which the next solve starts; None for a cold start."""
        return self._recovery if self.plan is None or self._is_bad_start else self.plan

    def inherit(self, other: WarmStart) -> None:
        """Take over the plan for another problem, resampled in time where the grid differs.

        The duals are left out, as an array without columns, where the inequalities differ.
        """
        mine, its = self._problem, other._problem
        self._age_s, self._is_bad_start, self._recovery = other._age_s, other._is_bad_start, None
        self.state, self.plan = other.state.copy(), other.plan
        if self.plan is not None and (mine.horizon, mine.dt) != (its.horizon, its.dt):
            self.plan = resampled(self.plan, other.state, its, mine)
        if self.plan is not None and not have_same_rows(mine, its):
            self.plan = replace(self.plan, duals=np.empty((mine.horizon, 0)))

    def advance(self, elapsed_s: float) -> None:
        """Move everything forward in time; drop the plan once it has ended."""
        problem = self._problem
        self._age_s += elapsed_s
        if self._age_s / problem.dt >= problem.horizon - 1e-9:
            self.plan = None
        if self.plan is not None:
            self.plan = shifted(self.plan, self.state, problem, elapsed_s)
        if self._recovery is not None:
            self._recovery = shifted(self._recovery, self.state, problem, elapsed_s)

    def learn(self, solution: Solution) -> bool:
        """Take what a solve has found.

        Returns:
            Whether its point is the plan now.
        """
        is_converged = solution.status is Status.CONVERGED
        failed = solution.status in (Status.LINE_SEARCH_FAILED, Status.NOT_POSITIVE_DEFINITE)
        # A solve that started cold is no better than the plan until it has converged.
        recovering = self._is_bad_start and self.plan is not None and not is_converged
        adopted = not recovering and (bool(solution.iterations) or is_converged)
        if recovering:
            self._recovery = None if failed else solution.point
        elif adopted:
            self.plan, self._age_s = solution.point, 0.0
            self._is_bad_start, self._recovery = False, None
        self._is_bad_start = self._is_bad_start or failed
        return adopted


@np.errstate(over="ignore", invalid="ignore")
def shifted(
    point: Point, first: np.ndarray, problem: OptimalControlProblem, elapsed_s: float
) -> Point:
    """A solution moved forward in time.

    The last input, multipliers and duals are held at the end of the horizon; the states go on
    along their last interval.

    Args:
        point: The solution.
        first: The state that it starts from, (nx,).
        problem: Problem that it solves.
        elapsed_s: Time by which it is moved, in seconds.
    """
    horizon, nu, nx = problem.horizon, problem.nu, problem.nx
    steps = elapsed_s / problem.dt
    stages = point.z.reshape(horizon, nu + nx)
    held = np.hstack([stages[:, :nu], point.multipliers, point.duals])
    inputs, multipliers, duals = np.split(_advanced(held, steps), [nu, nu + nx], axis=1)
    states = stages[:, nu:]
    beyond = 2.0 * states[-1] - (states[-2] if horizon > 1 else first)
    states = _advanced(np.vstack([states, beyond]), steps)[:horizon]
    return Point(np.hstack([inputs, states]).ravel(), multipliers, duals, point.mu)


def resampled(
    point: Point, first: np.ndarray, before: OptimalControlProblem, after: OptimalControlProblem
) -> Point:
    """A solution of one problem on the grid of another one of the same kind.

    Inputs become their means over the new intervals, states are interpolated. Beyond the end the
    last interval goes on. Costs are summed as given, not multiplied by dt, so twice as many
    intervals in the same time make the multipliers twice as large.

    Args:
        point: The solution.
        first: The state that it starts from, (nx,).
        before: Problem that it solves.
        after: Problem whose grid it is brought to.
    """
    nu = before.nu
    stages = point.z.reshape(before.horizon, -1)
    old, new = np.arange(before.horizon + 1) * before.dt, np.arange(after.horizon + 1) * after.dt
    states = np.vstack([first, stages[:, nu:]])
    integral = np.vstack([np.zeros(nu), np.cumsum(stages[:, :nu], axis=0) * before.dt])
    inputs = np.diff(_along(new, old, integral), axis=0) / after.dt
    z = np.hstack([inputs, _along(new[1:], old, states)]).ravel()
    middles, new_middles = old[:-1] + 0.5 * before.dt, new[:-1] + 0.5 * after.dt
    held = np.clip(new_middles, middles[0], middles[-1])
    duals = _along(held, middles, point.duals)
    multipliers = _along(held, middles, point.multipliers) * (before.dt / after.dt)
    return Point(z, multipliers, duals, point.mu)


def have_same_rows(one: OptimalControlProblem, other: OptimalControlProblem) -> bool:
    """Whether two problems have the same inequalities, so that the duals of one serve the other.

    The values of their limits may differ.
    """
    bounds = zip(
        (*one.input_bounds, *one.state_bounds),
        (*other.input_bounds, *other.state_bounds),
        strict=True,
    )
    same = all(np.array_equal(np.isfinite(a), np.isfinite(b)) for a, b in bounds)
    return same and dict(one.inequality_widths) == dict(other.inequality_widths)


def _along(times: np.ndarray, grid: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows (n, m) on a grid (n,) at other times (k,): linear, also beyond the ends."""
    if len(grid) == 1:
        return np.repeat(rows, len(times), axis=0)
    left = np.clip(np.searchsorted(grid, times, side="right") - 1, 0, len(grid) - 2)
    share = (times - grid[left]) / (grid[left + 1] - grid[left])
    return rows[left] + share[:, None] * (rows[left + 1] - rows[left])


def _advanced(array: np.ndarray, steps: float) -> np.ndarray:
    """Rows of a stage-wise array moved forward by a number of stages; the last one is held.

    Between stages rows mix linearly: for an input held over its interval that is the mean over
    the new interval, for a state the interpolation.
    """
    last = len(array) - 1
    whole = int(steps)
    fraction = steps - whole
    index = np.minimum(np.arange(len(array)) + whole, last)
    if fraction == 0.0:
        return array[index]
    following = np.minimum(index + 1, last)
    return (1.0 - fraction) * array[index] + fraction * array[following]
