# SPDX-License-Identifier: Apache-2.0
"""The Newton system at one point, and the step that it gives.

The multipliers are not part of the matrix: ``H_L + rho J'J + B`` is factored once, and the
multipliers are swept with that factor until the linearised defects vanish, which they do within a
few sweeps for a large rho (Uzawa's iteration on the augmented Lagrangian; Fortin and Glowinski,
Augmented Lagrangian Methods, 1983, chapter 1). newton.c is the machine code of the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mpc_banded.ocp import banded
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.problem import ComparesArrays

#: Multiplier sweeps with one factor.
MAX_SWEEPS = 6


@dataclass(frozen=True, eq=False)
class Point(ComparesArrays):
    """Primal and dual iterate: what a warm start consists of.

    Attributes:
        z: (n,).
        multipliers: lambda of the dynamics (N, nx).
        duals: Of the inequalities, (N, 2 nu + 2 r), see Barrier.
        mu: Barrier parameter that they belong to.
    """

    z: np.ndarray
    multipliers: np.ndarray
    duals: np.ndarray
    mu: float


@dataclass(frozen=True, eq=False)
class NewtonSystem(ComparesArrays):
    """All that a Newton step from one point needs.

    Attributes:
        point: Where; its duals are within range of the central path there.
        cost: Sum of the weighted costs.
        kkt_residual: Largest gradient of the Lagrangian, relative; see ``summary``.
        defect_norm: Largest defect.
        finite: Whether all of it is finite.
        barrier: Value of the barrier terms.
        costs: Weighted named costs, (number of costs,).
        defects: (N, nx).
        rows: Values of the softened rows (N, r): the inequalities, then the state bounds.
        distances: Of the inequalities (N, 2 nu + 2 r), see Barrier.
        gradient: Of the sum of costs and the barrier terms, (n,).
        cost_gradient: Of the sum of costs, (n,).
        barrier_gradient: Of the barrier terms, (n,).
        dynamics_gradient: ``J' lambda``, (n,).
        bands: ``H_L + rho J'J + B`` in lower band storage (b + 1, n): Hessian of the Lagrangian,
            penalty of the linearised defects, primal-dual curvature of the barrier.
        defect_jacobian: (N, nx, 2 nx + nu): of d_k by (x_k, u_k, x_{k+1}), zero by x_0.
        row_jacobian: (N, r, nu + nx): of the rows by (u_k, x_{k+1}).
    """

    point: Point
    cost: float
    kkt_residual: float
    defect_norm: float
    finite: bool
    barrier: float
    costs: np.ndarray
    defects: np.ndarray
    rows: np.ndarray
    distances: np.ndarray
    gradient: np.ndarray
    cost_gradient: np.ndarray
    barrier_gradient: np.ndarray
    dynamics_gradient: np.ndarray
    bands: np.ndarray
    defect_jacobian: np.ndarray
    row_jacobian: np.ndarray


@dataclass(frozen=True, eq=False)
class NewtonStep(ComparesArrays):
    """A Newton step, and what it changes to first order.

    Attributes:
        z: The step (n,).
        multipliers: Those that it leads to, (N, nx).
        defect_change: ``J z``, (N, nx).
        slope: Of costs, barrier and ``lambda' d`` along the step, lambda being those multipliers.
        bend: ``sum_k d_k' (J z)_k``: half the slope of the squared defects.
        dynamics: ``sum_k lambda_k' d_k`` where the step begins.
        squared_defects: ``sum_k |d_k|^2 / 2`` there.
        longest: Longest length of the step, <= 1, that keeps the inputs inside their bounds.
        duals: After the full step, (N, 2 nu + 2 r).
    """

    z: np.ndarray
    multipliers: np.ndarray
    defect_change: np.ndarray
    slope: float
    bend: float
    dynamics: float
    squared_defects: float
    longest: float
    duals: np.ndarray


def summary(
    cost_gradient: np.ndarray,
    barrier_gradient: np.ndarray,
    dynamics_gradient: np.ndarray,
    defects: np.ndarray,
) -> tuple[float, float]:
    """KKT residual, relative to 1 + |gradient of the costs or barrier|, and largest defect."""
    residual = np.abs(cost_gradient + barrier_gradient + dynamics_gradient).max()
    size = max(np.abs(cost_gradient).max(), np.abs(barrier_gradient).max())
    return float(residual / (1.0 + size)), float(np.abs(defects).max())


def newton_step(
    system: NewtonSystem, barrier: Barrier, penalty: float, shift: float, accuracy: float
) -> NewtonStep:
    """Factor the matrix, sweep the multipliers, look how far the step may go.

    Args:
        system: Where the step begins.
        barrier: Of the problem.
        penalty: rho that is in the matrix.
        shift: Added to the diagonal of the matrix.
        accuracy: Largest linearised defect after the step that needs no further sweep.

    Raises:
        NotPositiveDefinite: The shifted matrix is not positive definite.
    """
    matrix = system.bands.copy(order="K")
    matrix[0] += shift
    factor = banded.cholesky(matrix)
    defects, jacobian = system.defects, system.defect_jacobian
    shifted = system.point.multipliers + penalty * defects
    for _ in range(MAX_SWEEPS):
        z = factor.solve(-system.gradient - transposed_product(jacobian, shifted))
        change = product(jacobian, z)
        reached = shifted + penalty * change
        if np.abs(defects + change).max() <= accuracy:
            break
        shifted = reached + penalty * defects
    longest, duals = barrier.advance(
        torch.from_numpy(system.point.duals),
        torch.from_numpy(system.distances),
        torch.from_numpy(system.row_jacobian),
        torch.from_numpy(z).reshape(len(defects), -1),
        torch.tensor(system.point.mu, dtype=torch.float64),
    )
    return NewtonStep(
        z,
        reached,
        change,
        float(system.gradient @ z + (reached * change).sum()),
        float((defects * change).sum()),
        float((reached * defects).sum()),
        float((defects * defects).sum()) / 2.0,
        float(longest.min()),
        duals.numpy(),
    )


def product(jacobian: np.ndarray, step: np.ndarray) -> np.ndarray:
    """``J s``, (N, nx), of the defects' Jacobian and a step (n,)."""
    _, nx, width = jacobian.shape
    padded = np.concatenate([np.zeros(nx), step])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[:: width - nx]
    result: np.ndarray = np.matmul(jacobian, windows[:, :, None])[:, :, 0]
    return result


def transposed_product(jacobian: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """``J' lambda``, (n,), of the defects' Jacobian and multipliers (N, nx)."""
    nx = jacobian.shape[1]
    parts = np.matmul(multipliers[:, None, :], jacobian)[:, 0, :]
    result = parts[:, nx:].copy()
    result[:-1, -nx:] += parts[1:, :nx]
    return result.reshape(-1)
