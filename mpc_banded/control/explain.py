# SPDX-License-Identifier: Apache-2.0
"""Explains a solve in words: which limits the plan violates, and which cost holds the robot.

If a robot stands although its goal is far away, one of its costs is the reason. To find it, each
named cost, softened inequality and state limit is evaluated on a straight trajectory to the
reference and on the plan; the one that grows most is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mpc_banded.ocp.controller import ControlStep
from mpc_banded.ocp.problem import STATE_BOUND_PENALTY, OptimalControlProblem, Trajectory
from mpc_banded.robots import Robot

#: A robot nearer to its reference than this (m or rad) is not held.
NEAR = 0.25
#: A plan that covers a smaller share of the way to the reference goes nowhere.
NOWHERE = 0.1
#: Smallest violation that is reported.
VIOLATED = 0.02


def driving(step: ControlStep, held: str, has_ended: bool, remark: str) -> str:
    """Return the reason of a cycle that drives.

    Args:
        step: The controller's step.
        held: What holds the robot; empty if nothing does.
        has_ended: Whether the reference has ended.
        remark: Remark on the state; may be empty.
    """
    clauses = [
        f"driving on the {step.source.value}: {step.status.value}",
        violated(step.violations),
        held,
        "the reference has ended" if has_ended else "",
        remark,
    ]
    return "; ".join(filter(None, clauses))


def violated(violations: Mapping[str, float]) -> str:
    """Return which inequalities a plan violates; empty if none."""
    broken = [f"{name} by {x:.2g}" for name, x in violations.items() if x > VIOLATED]
    return f"the plan violates {' and '.join(broken)}" if broken else ""


def held(
    robot: Robot,
    problem: OptimalControlProblem,
    weights: Mapping[str, float],
    plan: Trajectory,
    parameters: Mapping[str, Any],
) -> str:
    """Return what holds the robot far from its reference; empty if nothing does.

    Args:
        robot: Names the states.
        problem: The problem that was solved.
        weights: Weight of each cost.
        plan: The solution.
        parameters: Parameters of the solve; "reference" (N + 1, columns).
    """
    columns = dict(zip(robot.reference, np.asarray(parameters["reference"]).T, strict=True))
    placed = [name for name in robot.velocities if name in columns and name not in robot.cyclic]
    at = [robot.states.index(name) for name in placed]
    start = plan.states[0]
    error = np.array([columns[name][-1] for name in placed]) - start[at]
    distance = float(np.linalg.norm(error))
    moving = [robot.states.index(name) for name in robot.velocities]
    moved = np.linalg.norm(plan.states[:, moving] - start[moving], axis=1).max()
    if not distance > NEAR or moved > NOWHERE * distance:
        return ""
    going = _straight(robot, problem, plan, placed, error)
    staying = _prices(problem, weights, plan, parameters, robot)
    more = {
        name: price - staying[name]
        for name, price in _prices(problem, weights, going, parameters, robot).items()
    }
    name = max(more, key=lambda key: more[key])
    cause = f"going there would cost most in {name!r}" if more[name] > 0.0 else "no cost says why"
    return f"held {distance:.2f} away from its reference: {cause}"


def _straight(
    robot: Robot,
    problem: OptimalControlProblem,
    plan: Trajectory,
    placed: list[str],
    error: np.ndarray,
) -> Trajectory:
    """Return a straight trajectory to the end of the reference, with its accelerations."""
    duration = problem.horizon * problem.dt
    # No further than the limits allow, unless the limits themselves hold the robot.
    rates = {rate for name in placed for rate in robot.velocities[name]} & set(robot.states)
    fastest = min((problem.state_bounds[1][robot.states.index(r)] for r in rates), default=np.inf)
    reach = 0.5 * fastest * duration
    if reach > NEAR:
        error = error * min(1.0, reach / float(np.linalg.norm(error)))
    states = np.repeat(plan.states[:1], problem.horizon + 1, axis=0)
    share = np.linspace(0.0, 1.0, problem.horizon + 1)
    distance = float(np.linalg.norm(error))
    for name, way in zip(placed, error, strict=True):
        states[:, robot.states.index(name)] += share * way
        if f"{name}_velocity" in robot.states:
            states[1:, robot.states.index(f"{name}_velocity")] = way / duration
    planar = robot.planar
    if planar is not None and planar.yaw is not None:
        dx, dy = planar.positions(states[-1] - states[0])
        states[1:, planar.yaw] = np.arctan2(dy, dx)
    if "v" in robot.states:
        states[1:, robot.states.index("v")] = distance / duration
    needed = 4.0 * distance / duration**2
    lower, upper = problem.input_bounds
    inputs = np.clip(np.full_like(plan.inputs, needed), lower, upper)
    return Trajectory(states, inputs, plan.dt)


def _prices(
    problem: OptimalControlProblem,
    weights: Mapping[str, float],
    way: Trajectory,
    parameters: Mapping[str, Any],
    robot: Robot,
) -> dict[str, float]:
    """Return the cost of a trajectory by each named cost, inequality and state limit."""
    stages = problem.horizon + 1
    p = {
        name: torch.from_numpy(
            np.broadcast_to(
                np.asarray(parameters[name], dtype=np.float64), (stages, *shape)
            ).copy()
        )
        for name, shape in problem.parameters.items()
    }
    first, later = ({n: v[s] for n, v in p.items()} for s in (slice(None, -1), slice(1, None)))
    x, u = torch.from_numpy(way.states), torch.from_numpy(way.inputs)
    prices = {}
    with torch.inference_mode():
        for name, cost in problem.stage_costs.items():
            prices[name] = weights[name] * float(cost(x[:-1], u, first).sum())
        for name, arrival in problem.terminal_costs.items():
            last = {n: v[-1] for n, v in p.items()}
            prices[name] = weights[name] * float(arrival(x[-1], last).sum())
        for name, inequality in problem.inequalities.items():
            below = torch.clamp(-inequality(x[1:], u, later), min=0.0).numpy()
            prices[name] = _penalty(below, *problem.penalties[name])
    low, high = problem.state_bounds
    beyond = np.maximum(way.states[1:] - high, 0.0) + np.maximum(low - way.states[1:], 0.0)
    for i, name in enumerate(robot.states):
        prices[f"limits.{name}"] = _penalty(beyond[:, i], *STATE_BOUND_PENALTY)
    return prices


def _penalty(violation: np.ndarray, linear: float, quadratic: float) -> float:
    return float((linear * violation + 0.5 * quadratic * violation**2).sum())
