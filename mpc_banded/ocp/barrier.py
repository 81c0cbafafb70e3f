# SPDX-License-Identifier: Apache-2.0
"""A primal-dual barrier for inequalities: input bounds are strict, all others are softened.

Inputs keep a positive distance to their bounds; each bounded entry adds ``-mu log(distance)``.
Every other inequality, including finite state bounds, is a row ``c >= -v`` with violation
``v >= 0``. Its slacks always have their optimal values for the current ``c``, so the row adds one
smooth convex function of ``c`` to the costs::

    phi(c) = min over v > 0, t = c + v > 0 of   l v + q v^2 / 2 - mu log v - mu log t

So every iterate is feasible in the rows, whatever the warm start. As in primal-dual interior point
methods (Waechter and Biegler, Math. Program. 106, 2006, section 2), the curvature is computed from
separate dual variables: ``zeta / distance`` for a bound, and for a row the Schur complement
``1 / (t / nu + 1 / (q + kappa / v))``. Resetting the slacks to their optimum is the "magic step"
of Conn and of Curtis and Nocedal.

All functions are torch functions of one stage with any leading batch dimensions: ``eager.py``
calls them for all stages at once, ``stage.py`` for the one stage that is compiled.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mpc_banded.ocp.problem import STATE_BOUND_PENALTY, OptimalControlProblem

#: Fraction of the distance to the boundary that one step may cover.
TO_BOUNDARY = 0.995
#: Duals stay within this factor of ``mu / slack`` (Waechter and Biegler, eq. 16).
DUAL_RANGE = 1e8


class Barrier:
    """The inequalities of one stage: bounds on u_k, and rows for h_k and bounds on x_{k+1}.

    The distances of a stage are one array (..., 2 nu + 2 r), and so are the duals. Their entries
    belong to the lower bounds, the upper bounds, the rows (t and its dual nu), and the violations
    (v and its dual kappa). An infinite bound has an infinite distance and dual zero.

    Args:
        problem: The optimal control problem.

    Attributes:
        rows: r, the number of rows.
        width: 2 nu + 2 r.
    """

    def __init__(self, problem: OptimalControlProblem) -> None:
        self._nu, self._nx = problem.nu, problem.nx
        self._input_bounds = problem.input_bounds
        self._lower, self._upper = (torch.from_numpy(bound) for bound in problem.input_bounds)
        low, high = problem.state_bounds
        at_low, at_high = np.flatnonzero(np.isfinite(low)), np.flatnonzero(np.isfinite(high))
        # Rows of state bounds are sign * x[at] + shift.
        self._at = np.concatenate([at_low, at_high]).tolist()
        sign = np.concatenate([np.ones(len(at_low)), -np.ones(len(at_high))])
        shift = np.concatenate([-low[at_low], high[at_high]])
        self._sign, self._shift = torch.from_numpy(sign), torch.from_numpy(shift)
        unit = np.zeros((len(sign), problem.nu + problem.nx))
        unit[np.arange(len(sign)), problem.nu + np.array(self._at, dtype=int)] = sign
        self._bound_jacobian = torch.from_numpy(unit)
        penalties = [
            problem.penalties[name]
            for name, m in problem.inequality_widths.items()
            for _ in range(m)
        ] + [STATE_BOUND_PENALTY] * len(sign)
        of_rows = torch.tensor(penalties, dtype=torch.float64).reshape(-1, 2)
        self._linear, self._quadratic = of_rows[:, 0].clone(), of_rows[:, 1].clone()
        self._bounded_below = torch.isfinite(self._lower).nonzero()[:, 0].tolist()
        self._bounded_above = torch.isfinite(self._upper).nonzero()[:, 0].tolist()
        self._inequalities = len(penalties) - len(sign)
        self.rows = len(penalties)
        self.width = 2 * self._nu + 2 * self.rows

    def row_values(self, x_next: Tensor, inequalities: Tensor) -> Tensor:
        """The rows c (..., r) from x_{k+1} (..., nx) and the inequalities (..., m)."""
        if not self._at:
            return inequalities
        bounds = self._sign * x_next[..., self._at] + self._shift
        return torch.cat([inequalities, bounds], dim=-1)

    def row_jacobian(self, of_inequalities: Tensor) -> Tensor:
        """Jacobian of the rows by (u_k, x_{k+1}), (..., r, nu + nx), from the Jacobian of h."""
        batch = of_inequalities.shape[:-2]
        return torch.cat(
            [of_inequalities, self._bound_jacobian.expand(*batch, *self._bound_jacobian.shape)],
            dim=-2,
        )

    def of_inequalities(self, duals: Tensor) -> Tensor:
        """The multipliers nu of the inequalities h, (..., m)."""
        first = 2 * self._nu
        return duals[..., first : first + self._inequalities]

    def interior(self, u: np.ndarray, margin: float | np.ndarray = 1e-2) -> np.ndarray:
        """Inputs (..., nu) moved inside the bounds by a margin, a hundredth of them at most."""
        lower, upper = self._input_bounds
        margin = np.minimum(margin, 1e-2 * (upper - lower))
        return np.minimum(np.maximum(u, lower + margin), upper - margin)

    def distances(self, u: Tensor, rows: Tensor, mu: Tensor) -> Tensor:
        """All distances (..., 2 nu + 2 r), with the optimal slacks of the rows."""
        v, t = optimal_slacks(rows, self._linear, self._quadratic, mu)
        return torch.cat([u - self._lower, self._upper - u, t, v], dim=-1)

    def safeguarded(self, duals: Tensor, distances: Tensor, mu: Tensor) -> Tensor:
        """Duals limited to a factor of DUAL_RANGE around the central path ``mu / distance``."""
        central = mu / distances
        return torch.minimum(torch.maximum(duals, central / DUAL_RANGE), central * DUAL_RANGE)

    def value(self, distances: Tensor, mu: Tensor) -> Tensor:
        """Value of the barrier terms (...), infinite outside the input bounds."""
        lower, upper, t, v = self._parts(distances)
        linear, quadratic = self._linear, self._quadratic
        bounded = torch.cat(
            [lower[..., self._bounded_below], upper[..., self._bounded_above], t, v], dim=-1
        )
        logs = torch.where(bounded > 0.0, bounded.log(), -np.inf)
        return (linear * v + 0.5 * quadratic * v * v).sum(dim=-1) - mu * logs.sum(dim=-1)

    def gradient(self, row_jacobian: Tensor, distances: Tensor, mu: Tensor) -> Tensor:
        """Gradient of the barrier terms by (u_k, x_{k+1}), (..., nu + nx)."""
        lower, upper, t, _ = self._parts(distances)
        of_rows = torch.matmul((mu / t)[..., None, :], row_jacobian)[..., 0, :]
        of_inputs = mu / upper - mu / lower
        padded = torch.cat([of_inputs, torch.zeros_like(of_rows[..., self._nu :])], dim=-1)
        return padded - of_rows

    def curvature(self, row_jacobian: Tensor, distances: Tensor, duals: Tensor) -> Tensor:
        """Curvature of the barrier terms by (u_k, x_{k+1}), (..., nu + nx, nu + nx)."""
        lower, upper, t, v = self._parts(distances)
        of_lower, of_upper, of_t, of_v = self._parts(duals)
        of_rows = 1.0 / (t / of_t + 1.0 / (self._quadratic + of_v / v))
        blocks = torch.matmul(row_jacobian.transpose(-1, -2) * of_rows[..., None, :], row_jacobian)
        of_inputs = of_lower / lower + of_upper / upper
        diagonal = torch.cat([of_inputs, of_inputs.new_zeros(*blocks.shape[:-2], self._nx)], -1)
        return blocks + diagonal[..., None, :] * torch.eye(self._nu + self._nx, dtype=blocks.dtype)

    def advance(
        self,
        duals: Tensor,
        distances: Tensor,
        row_jacobian: Tensor,
        step: Tensor,
        mu: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Length limit and new duals of a Newton step (..., nu + nx) in (u_k, x_{k+1}).

        Returns:
            The largest step length <= 1 that keeps the inputs inside their bounds, (...), and the
            duals after the full step. Each dual is shortened separately to stay positive, since
            duals only affect the curvature and not the merit function.
        """
        lower, upper, _, _ = self._parts(distances)
        of_lower, of_upper, of_t, of_v = self._parts(duals / distances)
        along = step[..., : self._nu]
        change = torch.matmul(row_jacobian, step[..., :, None])[..., 0]
        v_step = -of_t * change / (self._quadratic + of_v + of_t)
        moved = torch.cat(
            [of_lower * along, -of_upper * along, of_t * (change + v_step), of_v * v_step], dim=-1
        )
        stepped = torch.maximum(mu / distances - moved, (1.0 - TO_BOUNDARY) * duals)
        shrinking = torch.cat([-along / lower, along / upper], dim=-1)
        longest = torch.clamp(shrinking / TO_BOUNDARY, min=1.0).reciprocal()
        return longest.amin(dim=-1), stepped

    def _parts(self, array: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of distances or duals: lower, upper, rows, violations."""
        nu, r = self._nu, self.rows
        lower, upper, rows, violations = array.split([nu, nu, r, r], dim=-1)
        return lower, upper, rows, violations


def optimal_slacks(
    c: Tensor, linear: Tensor, quadratic: Tensor, mu: Tensor
) -> tuple[Tensor, Tensor]:
    """The minimisers (v, t = c + v) of phi, elementwise.

    For ``q = 0`` the smaller of both has a closed form free of cancellation; from there Newton's
    method on its logarithm (exp by its Pade approximant) takes four steps to rounding.
    """
    size, short = c.abs(), torch.clamp(-c, min=0.0)
    slope = torch.maximum(linear + quadratic * short, (quadratic * mu).sqrt())
    x = 0.5 * slope * size
    small = (mu + mu * mu / ((mu * mu + x * x).sqrt() + x)) / slope
    for _ in range(4):
        large = small + size
        per_small, per_large = 1.0 / small, 1.0 / large
        residual = linear + quadratic * (small + short) - mu * (per_small + per_large)
        derivative = quadratic + mu * (per_small * per_small + per_large * per_large)
        half = (-0.5 * residual / (derivative * small)).clamp(-0.75, 0.75)
        small = small * (1.0 + half) / (1.0 - half)
    large = small + size
    return torch.where(c >= 0.0, small, large), torch.where(c >= 0.0, large, small)
