# SPDX-License-Identifier: Apache-2.0
"""Says in words what a solve does not say in numbers: limits that it broke, and what holds it.

A robot that stands although its goal is far away has a reason, and the reason is one of its costs.
It is found by asking what it would cost to go: each named cost, each softened inequality and each
state limit on a straight way to the reference, beside the same on the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mpc_banded.ocp.problem import STATE_BOUND_PENALTY, OptimalControlProblem, Trajectory
from mpc_banded.robots import Robot

#: A robot nearer than this to its reference (m or rad) is there, and not held.
NEAR = 0.25
#: Share of the way to the reference below which a plan goes nowhere.
NOWHERE = 0.1
#: Violation from which it is told.
VIOLATED = 0.02


def violated(violations: Mapping[str, float]) -> str:
    """The inequalities that a plan breaks; empty if it breaks none."""
    broken = [f"{name} by {x:.2g}" for name, x in violations.items() if x > VIOLATED]
    return f"the plan violates {' and '.join(broken)}" if broken else ""


def held(
    robot: Robot,
    problem: OptimalControlProblem,
    weights: Mapping[str, float],
    plan: Trajectory,
    parameters: Mapping[str, Any],
) -> str:
    """What keeps a robot where it is although its reference is far away; empty if nothing does.

    Args:
        robot: Whose states have names.
        problem: That was solved.
        weights: Live weight of each cost.
        plan: The solution.
        parameters: Of that solve; "reference" (N + 1, columns).
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
    """Straight on towards the end of the reference, with the accelerations that this takes."""
    duration = problem.horizon * problem.dt
    # No further than the limits allow, unless it is they that allow nothing.
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
    if {"x", "y", "yaw"} <= set(robot.states):
        heading = np.arctan2(error[placed.index("y")], error[placed.index("x")])
        states[1:, robot.states.index("yaw")] = heading
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
    """What a trajectory costs, by the name of each cost, inequality and state limit."""
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
