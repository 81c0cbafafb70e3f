# SPDX-License-Identifier: Apache-2.0
"""Inequalities by a primal-dual barrier: strict input bounds, softened rows for all others.

Inputs keep a positive distance to their bounds; each bounded entry adds ``-mu log(distance)``.
Every other inequality is a row ``c(z) >= -v`` with violation ``v >= 0``. Its slacks are always at
their optimum for the current ``c``, so the row adds one smooth convex function of ``c``::

    phi(c) = min over v > 0, t = c + v > 0 of   l v + q v^2 / 2 - mu log v - mu log t

No iterate is ever infeasible in the rows, whatever the warm start. The curvature of both kinds
comes from dual variables of their own, as in primal-dual interior point methods (Waechter and
Biegler, Math. Program. 106, 2006, section 2; the slacks' reset: Curtis and Nocedal's and Conn's
"magic step"): ``zeta / distance`` for a bound, and for a row the Schur complement
``1 / (t / nu + 1 / (q + kappa / v))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpc_banded import banded
from mpc_banded.derivatives import Evaluation, inequalities_times, inequalities_transposed
from mpc_banded.problem import STATE_BOUND_PENALTY, OptimalControlProblem

Resampling = Callable[[np.ndarray], np.ndarray]

#: Share of the way to the boundary that one step may go.
TO_BOUNDARY = 0.995
#: Duals stay within this factor of ``mu / slack`` (Waechter and Biegler, eq. 16).
DUAL_RANGE = 1e8


@dataclass(frozen=True)
class Duals:
    """Dual variables, all > 0.

    Attributes:
        lower, upper: zeta of the input bounds (N nu,), zero where a bound is infinite.
        rows: nu of ``t`` (rows,).
        slacks: kappa of ``v`` (rows,).
    """

    lower: np.ndarray
    upper: np.ndarray
    rows: np.ndarray
    slacks: np.ndarray


@dataclass(frozen=True)
class Slacks:
    """Distances of one iterate: inputs to their bounds (N nu,), rows t and v (rows,)."""

    lower: np.ndarray
    upper: np.ndarray
    t: np.ndarray
    v: np.ndarray


class Barrier:
    """The inequalities of a problem: input bounds, then rows h (N m) and finite state bounds.

    Args:
        problem: The optimal control problem.
    """

    def __init__(self, problem: OptimalControlProblem) -> None:
        horizon, nu, widths = problem.horizon, problem.nu, problem.inequality_widths
        block = nu + problem.nx
        entries = np.arange(horizon * block).reshape(horizon, block)
        self.inputs = entries[:, :nu].ravel()
        self.lower = np.tile(problem.input_bounds[0], horizon)
        self.upper = np.tile(problem.input_bounds[1], horizon)
        states = entries[:, nu:]
        lower, upper = (np.tile(bound, (horizon, 1)) for bound in problem.state_bounds)
        self.at_lower, self._state_lower = states[np.isfinite(lower)], lower[np.isfinite(lower)]
        self.at_upper, self._state_upper = states[np.isfinite(upper)], upper[np.isfinite(upper)]
        self.shape = (horizon, sum(widths.values()))
        weights = [problem.penalties[name] for name, m in widths.items() for _ in range(m)]
        of_h = np.tile(np.array(weights, dtype=np.float64).reshape(-1, 2), (horizon, 1))
        bounds = len(self.at_lower) + len(self.at_upper)
        self.penalty = np.vstack([of_h, np.tile(STATE_BOUND_PENALTY, (bounds, 1))]).T.copy()

    def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views (N, m), (lower state bounds,), (upper state bounds,) of a vector of rows."""
        first = self.shape[0] * self.shape[1]
        second = first + len(self.at_lower)
        return rows[:first].reshape(self.shape), rows[first:second], rows[second:]

    def rows(self, z: np.ndarray, inequalities: np.ndarray) -> np.ndarray:
        """C (rows,) at ``z`` with its inequalities (N, m)."""
        return np.concatenate(
            [
                inequalities.ravel(),
                z[self.at_lower] - self._state_lower,
                self._state_upper - z[self.at_upper],
            ]
        )

    def interior(self, z: np.ndarray, share: float = 1e-2) -> np.ndarray:
        """A copy of ``z`` with its inputs a share of their range, or of 1, inside the bounds."""
        width = np.minimum(self.upper - self.lower, 1.0)
        moved = z.copy()
        moved[self.inputs] = np.clip(
            z[self.inputs], self.lower + share * width, self.upper - share * width
        )
        return moved

    def slacks(self, z: np.ndarray, c: np.ndarray, mu: float) -> Slacks:
        """All distances; those of the rows at their optimum for ``c``."""
        v, t = optimal_slacks(c, self.penalty[0], self.penalty[1], mu)
        u = z[self.inputs]
        return Slacks(u - self.lower, self.upper - u, t, v)

    def duals(self, slacks: Slacks, mu: float) -> Duals:
        """Duals on the central path: a cold start."""
        return Duals(mu / slacks.lower, mu / slacks.upper, mu / slacks.t, mu / slacks.v)

    def value(self, slacks: Slacks, mu: float) -> float:
        """The barrier terms; infinite outside the input bounds."""
        distance = np.concatenate([slacks.lower, slacks.upper])
        distance = distance[np.isfinite(distance)]
        if (distance <= 0.0).any():
            return np.inf
        linear, quadratic = self.penalty
        soft = linear * slacks.v + 0.5 * quadratic * slacks.v**2
        logs = np.log(distance).sum() + np.log(slacks.v).sum() + np.log(slacks.t).sum()
        return float(soft.sum() - mu * logs)

    def gradient(self, e: Evaluation, slacks: Slacks, mu: float) -> np.ndarray:
        """Gradient of the barrier terms, (n,)."""
        of_h, of_lower, of_upper = self.split(mu / slacks.t)
        result = -inequalities_transposed(e.inequality_jacobian, of_h)
        result[self.at_lower] -= of_lower
        result[self.at_upper] += of_upper
        result[self.inputs] += mu / slacks.upper - mu / slacks.lower
        return result

    def add_curvature(
        self, bands: np.ndarray, e: Evaluation, slacks: Slacks, duals: Duals
    ) -> None:
        """Add the curvature of the barrier terms to ``bands`` in place."""
        of_t = duals.rows / slacks.t
        of_v = self.penalty[1] + duals.slacks / slacks.v
        of_h, of_lower, of_upper = self.split(of_t * of_v / (of_t + of_v))
        if of_h.size:
            jacobian = e.inequality_jacobian
            banded.add_blocks(
                bands, np.matmul(jacobian.swapaxes(1, 2) * of_h[:, None, :], jacobian)
            )
        bands[0, self.at_lower] += of_lower
        bands[0, self.at_upper] += of_upper
        bands[0, self.inputs] += duals.lower / slacks.lower + duals.upper / slacks.upper

    def row_step(self, e: Evaluation, step: np.ndarray) -> np.ndarray:
        """Change of ``c`` along a step, to first order; (rows,)."""
        return np.concatenate(
            [
                inequalities_times(e.inequality_jacobian, step).ravel(),
                step[self.at_lower],
                -step[self.at_upper],
            ]
        )

    def longest(self, slacks: Slacks, step: np.ndarray) -> float:
        """Longest step length <= 1 that keeps the inputs inside their bounds."""
        along = step[self.inputs]
        return min(_to_boundary(slacks.lower, along), _to_boundary(slacks.upper, -along))

    def stepped(
        self, duals: Duals, e: Evaluation, slacks: Slacks, step: np.ndarray, mu: float
    ) -> Duals:
        """Duals after a full Newton step, each one shortened as far as it must stay positive.

        One by one, since duals only shape the curvature: the merit function is primal.
        """
        along, change = step[self.inputs], self.row_step(e, step)
        of_t, of_v = duals.rows / slacks.t, duals.slacks / slacks.v
        v_step = -of_t * change / (self.penalty[1] + of_v + of_t)
        targets = (
            mu / slacks.lower - duals.lower / slacks.lower * along,
            mu / slacks.upper + duals.upper / slacks.upper * along,
            mu / slacks.t - of_t * (change + v_step),
            mu / slacks.v - of_v * v_step,
        )
        now = (duals.lower, duals.upper, duals.rows, duals.slacks)
        floor = 1.0 - TO_BOUNDARY
        return Duals(*(np.maximum(b, floor * a) for a, b in zip(now, targets, strict=True)))

    def resampled(self, duals: Duals, resample: Resampling) -> Duals:
        """Duals with ``resample`` applied to each as an array of stages (N, ...)."""
        of_inputs = [
            resample(a.reshape(self.shape[0], -1)).ravel() for a in (duals.lower, duals.upper)
        ]
        return Duals(
            *of_inputs, *(self._resampled_rows(a, resample) for a in (duals.rows, duals.slacks))
        )

    def _resampled_rows(self, rows: np.ndarray, resample: Resampling) -> np.ndarray:
        parts = [a.reshape(self.shape[0], -1) for a in self.split(rows)]
        return np.concatenate([resample(a).ravel() for a in parts])

    def safeguarded(self, duals: Duals, slacks: Slacks, mu: float) -> Duals:
        """Duals brought within range of the central path at new slacks."""
        pairs = (
            (duals.lower, slacks.lower),
            (duals.upper, slacks.upper),
            (duals.rows, slacks.t),
            (duals.slacks, slacks.v),
        )
        return Duals(*(np.clip(d, mu / s / DUAL_RANGE, mu / s * DUAL_RANGE) for d, s in pairs))


def optimal_slacks(
    c: np.ndarray, linear: np.ndarray, quadratic: np.ndarray, mu: float
) -> tuple[np.ndarray, np.ndarray]:
    """The minimisers (v, t = c + v) of phi, elementwise.

    For ``q = 0`` the smaller of both has a closed form free of cancellation; the slope of the
    quadratic part joins ``l`` by a fixed point whose contraction is of order ``q mu / l^2``, and
    Newton's method on ``log`` of the smaller slack finishes.
    """
    slope = linear + quadratic * np.maximum(-c, 0.0)
    slope = np.maximum(slope, np.sqrt(quadratic * mu))
    size = np.abs(c)
    for _ in range(2):
        x = 0.5 * slope * size
        small = (mu + mu * mu / (np.hypot(mu, x) + x)) / slope
        slope = linear + quadratic * (small + np.maximum(-c, 0.0))
    grows = np.maximum(-c, 0.0)
    for _ in range(4):
        large = small + size
        residual = linear + quadratic * (small + grows) - mu / small - mu / large
        derivative = quadratic + mu / small**2 + mu / large**2
        small = small * np.exp(np.clip(-residual / (derivative * small), -3.0, 3.0))
    large = small + size
    return np.where(c >= 0.0, small, large), np.where(c >= 0.0, large, small)


def _to_boundary(values: np.ndarray, changes: np.ndarray) -> float:
    """Longest length <= 1 with values + length * changes >= (1 - TO_BOUNDARY) * values."""
    shrinking = changes < 0.0
    if not shrinking.any():
        return 1.0
    return min(1.0, float((-TO_BOUNDARY * values[shrinking] / changes[shrinking]).min()))
