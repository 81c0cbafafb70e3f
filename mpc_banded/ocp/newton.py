# SPDX-License-Identifier: Apache-2.0
"""The Newton system at one point, and its solution, the Newton step.

The multipliers are not unknowns of the matrix ``H_L + rho J'J + B``, which is factored once. With
that factor the multipliers are updated repeatedly until the linearised defects vanish; for a large
rho this takes a few sweeps (Uzawa's iteration on the augmented Lagrangian; Fortin and Glowinski,
Augmented Lagrangian Methods, 1983, chapter 1). newton.c does the same in C.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from mpc_banded.ocp import banded
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.problem import ComparesArrays

#: Multiplier sweeps with one factor.
MAX_SWEEPS = 6


@dataclass(frozen=True, eq=False)
class Scaling(ComparesArrays):
    """What is one unit of each input, each state and the costs; see scaling.py.

    Attributes:
        inputs: (nu,).
        states: (nx,).
        cost: Unit of the costs, and of the barrier parameter.
        penalty: rho of the Newton matrix in these units: per ``cost / states**2``.
    """

    inputs: np.ndarray
    states: np.ndarray
    cost: float
    penalty: float

    @functools.cached_property
    def variables(self) -> np.ndarray:
        """Units of (u_k, x_{k+1}), (nu + nx,)."""
        return np.concatenate([self.inputs, self.states])

    @functools.cached_property
    def curvatures(self) -> np.ndarray:
        """Units of second derivatives by (u_k, x_{k+1}), (nu + nx,)."""
        return self.cost / self.variables**2

    @functools.cached_property
    def of_defects(self) -> np.ndarray:
        """Units of second derivatives by x_{k+1}: weights of squared defects, (nx,)."""
        return self.curvatures[len(self.inputs) :]

    @functools.cached_property
    def penalties(self) -> np.ndarray:
        """Rho of each defect, (nx,)."""
        return self.penalty * self.of_defects


@dataclass(frozen=True, eq=False)
class Point(ComparesArrays):
    """A primal and dual iterate, which is also what a warm start consists of.

    Attributes:
        z: Trajectory as a vector, (n,).
        multipliers: Multipliers lambda of the dynamics, (N, nx).
        duals: Duals of the inequalities, (N, 2 nu + 2 r); see Barrier.
        mu: Barrier parameter of the duals.
    """

    z: np.ndarray
    multipliers: np.ndarray
    duals: np.ndarray
    mu: float


@dataclass(frozen=True, eq=False)
class NewtonSystem(ComparesArrays):
    """Values and derivatives at one point, from which the Newton step is computed.

    Attributes:
        point: The point, with its duals limited to the range of the central path.
        cost: Sum of the weighted costs.
        kkt_residual: Largest gradient of the Lagrangian, relative; see ``summary``.
        defect_norm: Largest defect, in units of the states.
        finite: Whether all values and derivatives are finite.
        barrier: Value of the barrier terms.
        costs: Weighted named costs, (number of costs,).
        defects: Defects of the dynamics, (N, nx).
        rows: Values of the softened rows (N, r): the inequalities, then the state bounds.
        distances: Distances of the inequalities, (N, 2 nu + 2 r); see Barrier.
        gradient: Gradient of the sum of costs and barrier terms, (n,).
        cost_gradient: Gradient of the sum of costs, (n,).
        barrier_gradient: Gradient of the barrier terms, (n,).
        dynamics_gradient: ``J' lambda``, (n,).
        bands: ``H_L + rho J'J + B`` in lower band storage (b + 1, n): Hessian of the Lagrangian,
            penalty of the linearised defects, primal-dual curvature of the barrier.
        defect_jacobian: Jacobian of d_k by (x_k, u_k, x_{k+1}), (N, nx, 2 nx + nu); its columns
            for x_0 are zero.
        row_jacobian: Jacobian of the rows by (u_k, x_{k+1}), (N, r, nu + nx).
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
    """A Newton step and its first-order effects.

    Attributes:
        z: The step (n,).
        multipliers: Multipliers of the dynamics after the full step, (N, nx).
        defect_change: ``J z``, (N, nx).
        slope: Slope of costs, barrier and ``lambda' d`` along the step, at the new multipliers.
        bend: Slope of ``squared_defects`` along the step.
        dynamics: ``sum_k lambda_k' d_k`` at the start of the step.
        squared_defects: See Merit, at the start of the step.
        longest: Largest step length <= 1 that keeps the inputs inside their bounds.
        duals: Duals of the inequalities after the full step, (N, 2 nu + 2 r).
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
    scaling: Scaling,
) -> tuple[float, float]:
    """Return the relative KKT residual, and the largest defect.

    A gradient counts times the unit of its variable, and is thus a cost. The residual is relative
    to the unit of the costs plus the largest gradient of costs or barrier; a defect is relative to
    the unit of its state.

    Args:
        cost_gradient: Gradient of the costs, (n,).
        barrier_gradient: Gradient of the barrier terms, (n,).
        dynamics_gradient: ``J' lambda``, (n,).
        defects: Defects of the dynamics, (N, nx).
        scaling: Units of the problem.
    """
    block = (len(defects), -1)

    def largest(gradient: np.ndarray) -> float:
        return float(np.abs(gradient.reshape(block) * scaling.variables).max())

    residual = largest(cost_gradient + barrier_gradient + dynamics_gradient)
    size = max(largest(cost_gradient), largest(barrier_gradient))
    return residual / (scaling.cost + size), float(np.abs(defects / scaling.states).max())


def newton_step(
    system: NewtonSystem, barrier: Barrier, scaling: Scaling, shift: float, accuracy: float
) -> NewtonStep:
    """Compute the Newton step: factor the matrix, update the multipliers, limit the length.

    Args:
        system: The Newton system at the start of the step.
        barrier: Barrier of the problem.
        scaling: Units with which the matrix was formed.
        shift: What to add to the diagonal of the matrix, in units of its entries.
        accuracy: Linearised defect below which the sweeps stop, in units of the states.

    Raises:
        NotPositiveDefinite: The shifted matrix is not positive definite.
    """
    matrix = system.bands.copy(order="K")
    defects, jacobian = system.defects, system.defect_jacobian
    matrix[0] += shift * np.tile(scaling.curvatures, len(defects))
    factor = banded.cholesky(matrix)
    penalty = scaling.penalties
    shifted = system.point.multipliers + penalty * defects
    for _ in range(MAX_SWEEPS):
        z = factor.solve(-system.gradient - transposed_product(jacobian, shifted))
        change = product(jacobian, z)
        reached = shifted + penalty * change
        if np.abs((defects + change) / scaling.states).max() <= accuracy:
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
        float((scaling.of_defects * defects * change).sum()),
        float((reached * defects).sum()),
        float((scaling.of_defects * defects * defects).sum()) / 2.0,
        float(longest.min()),
        duals.numpy(),
    )


def product(jacobian: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return ``J s``, (N, nx), of the defects' Jacobian and a step (n,)."""
    _, nx, width = jacobian.shape
    padded = np.concatenate([np.zeros(nx), step])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[:: width - nx]
    result: np.ndarray = np.matmul(jacobian, windows[:, :, None])[:, :, 0]
    return result


def transposed_product(jacobian: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """Return ``J' lambda``, (n,), of the defects' Jacobian and multipliers (N, nx)."""
    nx = jacobian.shape[1]
    parts = np.matmul(multipliers[:, None, :], jacobian)[:, 0, :]
    result = parts[:, nx:].copy()
    result[:-1, -nx:] += parts[1:, :nx]
    return result.reshape(-1)
