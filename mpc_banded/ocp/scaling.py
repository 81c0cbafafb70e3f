# SPDX-License-Identifier: Apache-2.0
"""The units in which a problem is solved: one of each state, one of each input, one of the costs.

Nothing is solved in other variables. Units enter where quantities of different kinds are added or
compared: the penalty of a defect and the shift of the matrix are costs divided by squared units,
the barrier parameter is a cost, residuals are gradients times a unit over a cost. Each unit
changes with the problem's own, so results do not depend on whether a state is in metres or in
millimetres (Dennis and Schnabel, Numerical Methods for Unconstrained Optimization, 1983,
section 7.1).

No unit is taken from a terminal cost alone, whose weight is often as large as it takes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpc_banded.ocp.evaluator import Evaluator
from mpc_banded.ocp.newton import Point, Scaling
from mpc_banded.ocp.transcription import StageData

#: Roll-outs that show how far the states move, and the times at which their inputs change.
ROLLOUTS, CHANGES = 3, 4


def measure(evaluator: Evaluator, z: np.ndarray, data: StageData, penalty: float) -> Scaling:
    """Return the units of a problem, from its bounds and what is seen near a trajectory.

    An input's unit is half of what its bounds allow; a state's is how far such inputs move it
    within the horizon, and at most half of what its bounds allow; that of the costs is what a
    change of the inputs and states by their units typically costs.

    Args:
        evaluator: Evaluates the problem.
        z: A trajectory (n,) whose inputs are inside their bounds, such as a roll-out.
        data: Initial state, parameters and weights.
        penalty: rho of the Newton matrix in these units.
    """
    problem = evaluator.transcription.problem
    nu, horizon = problem.nu, problem.horizon
    curvature = np.abs(evaluator.cost_curvature(z, data)).reshape(horizon, -1)
    inputs = _half(problem.input_bounds)
    free = np.isinf(inputs)
    if free.any():
        inputs[free] = _shift_to_optimum(evaluator, z, data, curvature)[free]
    moved = _movement(evaluator, z, data, np.where(inputs > 0.0, inputs, 0.0))
    units = np.concatenate([inputs, np.minimum(moved, _half(problem.state_bounds))])
    units = np.where(np.isfinite(units) & (units > 0.0), units, np.nan)
    cost = _unit_of_costs(curvature, units)
    with np.errstate(divide="ignore", invalid="ignore"):
        other = np.sqrt(cost / np.median(curvature, axis=0))
    units = np.where(np.isnan(units), np.where(np.isfinite(other), other, 1.0), units)
    return Scaling(units[:nu], units[nu:], cost, penalty)


def remeasured(scaling: Scaling, evaluator: Evaluator, z: np.ndarray, data: StageData) -> Scaling:
    """Return the same units of inputs and states, with that of the costs as it is at z (n,)."""
    horizon = evaluator.transcription.problem.horizon
    curvature = np.abs(evaluator.cost_curvature(z, data)).reshape(horizon, -1)
    return replace(scaling, cost=_unit_of_costs(curvature, scaling.variables))


def _unit_of_costs(curvature: np.ndarray, units: np.ndarray) -> float:
    """Return what changes by the units (nu + nx,) cost, from the curvatures (N, nu + nx).

    The median over the stages leaves out terminal costs, unless there are no others. Not finite
    where the curvatures are not.
    """
    for typical in (np.median(curvature, axis=0), curvature.mean(axis=0)):
        costs = typical * units**2
        costs = costs[~(np.isnan(units) | (costs == 0.0))]
        if costs.size:
            return float(costs.mean())
    return 1.0


def _half(bounds: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return half of what bounds allow; infinite where one is missing."""
    lower, upper = bounds
    return 0.5 * (upper - lower)


def _movement(
    evaluator: Evaluator, z: np.ndarray, data: StageData, size: np.ndarray
) -> np.ndarray:
    """Return how far inputs of a size (nu,) around those of z move the states, (nx,).

    Nine of ten states seen are nearer to the first one.
    """
    problem = evaluator.transcription.problem
    inputs = z.reshape(problem.horizon, -1)[:, : problem.nu]
    generator = np.random.default_rng(0)
    held = -(-problem.horizon // CHANGES)
    found = []
    for _ in range(ROLLOUTS):
        levels = generator.uniform(-1.0, 1.0, (CHANGES, problem.nu))
        change = np.repeat(levels, held, axis=0)[: problem.horizon] * size
        states = evaluator.rollout(np.clip(inputs + change, *problem.input_bounds), data)
        found.append(np.abs(states[1:] - states[0]))
    moved = np.concatenate(found)
    moved = moved[np.isfinite(moved).all(axis=1)]
    return np.quantile(moved, 0.9, axis=0) if len(moved) else np.full(problem.nx, np.nan)


def _shift_to_optimum(
    evaluator: Evaluator, z: np.ndarray, data: StageData, curvature: np.ndarray
) -> np.ndarray:
    """Return by how much each input alone, shifted at all stages, would lower the costs most.

    One Newton step with the diagonal ``curvature`` (N, nu + nx) of the costs; NaN where it shows
    nothing. A cost that is multiplied by a large weight changes it little.
    """
    problem = evaluator.transcription.problem
    horizon, nx, nu = problem.horizon, problem.nx, problem.nu
    point = Point(z, np.zeros((horizon, nx)), np.ones((horizon, evaluator.barrier.width)), 1.0)
    system = evaluator.system(point, data, Scaling(np.ones(nu), np.ones(nx), 1.0, 0.0))
    slopes = system.cost_gradient.reshape(horizon, -1)
    moved, slope, bend = np.zeros((nx, nu)), np.zeros(nu), np.zeros(nu)
    for k, jacobian in enumerate(system.defect_jacobian):
        ahead = jacobian[:, :nx] @ moved + jacobian[:, nx:-nx]
        try:
            moved = -np.linalg.solve(jacobian[:, -nx:], ahead)
        except np.linalg.LinAlgError:
            break
        along = np.vstack([np.eye(nu), moved])
        slope += slopes[k] @ along
        bend += curvature[k] @ along**2
    size: np.ndarray = np.abs(slope) / bend
    return np.where(np.isfinite(size) & (size > 0.0), size, np.nan)
