# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG001, ARG005  (formulas share one signature)
"""The robots of the comparison: a bicycle, a cart-pole and hanging chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.task import NUMPY, Operations, Parameters, Task

# Kinematic bicycle: a lane change past two obstacles, one of which appears late.

_WHEELBASE = 2.5
_SPEED = 7.0
#: (x, y, radius) in m; radii include the car's own 1 m and a margin.
_PARKED = np.array([22.0, -0.8, 2.2])
_SUDDEN = np.array([40.0, 4.9, 2.2])
_APPEARS_S = 3.2
_NOWHERE = np.array([0.0, -1e3, 2.2])


def _bicycle_dynamics(o: Operations, x: Any, u: Any, p: Parameters) -> Any:
    """No side slip (Rajamani, Vehicle Dynamics and Control, section 2.2)."""
    yaw, v = o.part(x, 2, 3), o.part(x, 3, 4)
    turn = v * o.tan(o.part(u, 1, 2)) / _WHEELBASE
    return o.join([v * o.cos(yaw), v * o.sin(yaw), turn, o.part(u, 0, 1)])


def _bicycle_arrival(o: Operations, x: Any, p: Parameters) -> Any:
    """Position and heading; the sine of half the error is a measure that knows full turns."""
    error = x - p["reference"]
    return o.join([o.part(error, 0, 2), o.sin(0.5 * o.part(error, 2, 3))])


def _bicycle_residuals(o: Operations, x: Any, u: Any, p: Parameters) -> Any:
    error = x - p["reference"]
    return o.join([_bicycle_arrival(o, x, p), o.part(error, 3, 4), u])


def _clearance(o: Operations, x: Any, p: Parameters) -> Any:
    rows = []
    for name in ("parked", "sudden"):
        obstacle = p[name]
        dx = o.part(x, 0, 1) - o.part(obstacle, 0, 1)
        dy = o.part(x, 1, 2) - o.part(obstacle, 1, 2)
        rows.append(o.sqrt(dx * dx + dy * dy) - o.part(obstacle, 2, 3))
    return o.join(rows)


def _bicycle_parameters(step: int, horizon: int) -> dict[str, np.ndarray]:
    """A lane change of 3.5 m along a smooth step, and the obstacles seen so far."""
    t = (step + np.arange(horizon + 1)) * 0.05
    s = np.clip((t - 3.0) / 2.5, 0.0, 1.0)
    slope = np.where((s > 0.0) & (s < 1.0), 6.0 * s * (1.0 - s) / 2.5, 0.0)
    reference = np.column_stack(
        [
            _SPEED * t,
            3.5 * s * s * (3.0 - 2.0 * s),
            np.arctan2(3.5 * slope, _SPEED),
            np.full_like(t, _SPEED),
        ]
    )
    sudden = _SUDDEN if step * 0.05 >= _APPEARS_S else _NOWHERE
    return {
        "reference": reference,
        "parked": np.tile(_PARKED, (horizon + 1, 1)),
        "sudden": np.tile(sudden, (horizon + 1, 1)),
    }


def bicycle(horizon: int) -> Task:
    """The lane change, seen ``horizon`` steps of 50 ms ahead."""
    free = np.full(4, np.inf)
    return Task(
        name=f"bicycle{horizon}",
        title=f"bicycle, N = {horizon}",
        nx=4,
        nu=2,
        horizon=horizon,
        dt=0.05,
        substeps=1,
        steps=150,
        dynamics=_bicycle_dynamics,
        residuals=_bicycle_residuals,
        weights=np.array([1.0, 1.0, 10.0, 1.0, 0.1, 2.0]),
        terminal_residuals=_bicycle_arrival,
        terminal_weights=np.array([10.0, 10.0, 100.0]),
        input_bounds=(np.array([-4.0, -0.5]), np.array([3.0, 0.5])),
        state_bounds=(-free, free),
        inequality=_clearance,
        inequality_size=2,
        penalty=(200.0, 100.0),
        parameters={"reference": 4, "parked": 3, "sudden": 3},
        stage_parameters=_bicycle_parameters,
        initial_state=np.array([0.0, 0.5, 0.0, 4.0]),
        spread=np.array([0.3, 0.2, 0.05, 0.3]),
        noise=np.array([0.02, 0.02, 0.005, 0.05]),
    )


# Cart-pole: swing-up between two ends of the rail.

_CART, _POLE, _LENGTH, _GRAVITY = 1.0, 0.2, 0.8, 9.81


def _cartpole_dynamics(o: Operations, x: Any, u: Any, p: Parameters) -> Any:
    """A point mass on a rod, angle from upright (Tedrake, Underactuated Robotics, 3.2)."""
    angle, rate = o.part(x, 1, 2), o.part(x, 3, 4)
    sin, cos = o.sin(angle), o.cos(angle)
    force = u + _POLE * sin * (_LENGTH * rate * rate - _GRAVITY * cos)
    acceleration = force / (_CART + _POLE * sin * sin)
    turning = (_GRAVITY * sin - acceleration * cos) / _LENGTH
    return o.join([o.part(x, 2, 4), acceleration, turning])


def _cartpole_arrival(o: Operations, x: Any, p: Parameters) -> Any:
    """Cart, sine of half the angle, rates."""
    return o.join([o.part(x, 0, 1), o.sin(0.5 * o.part(x, 1, 2)), o.part(x, 2, 4)])


def _cartpole_residuals(o: Operations, x: Any, u: Any, p: Parameters) -> Any:
    return o.join([_cartpole_arrival(o, x, p), u])


def cartpole() -> Task:
    """Swing-up and balance; the force saturates and the rail is short."""
    free = np.full(4, np.inf)
    rail = np.array([0.8, np.inf, np.inf, np.inf])
    return Task(
        name="cartpole",
        title="cart-pole swing-up, N = 50",
        nx=4,
        nu=1,
        horizon=50,
        dt=0.05,
        substeps=1,
        steps=100,
        dynamics=_cartpole_dynamics,
        residuals=_cartpole_residuals,
        weights=np.array([1.0, 40.0, 0.1, 0.1, 0.01]),
        terminal_residuals=_cartpole_arrival,
        terminal_weights=np.array([10.0, 200.0, 10.0, 10.0]),
        input_bounds=(np.array([-12.0]), np.array([12.0])),
        state_bounds=(-np.minimum(rail, free), np.minimum(rail, free)),
        parameters={},
        stage_parameters=lambda step, horizon: {},
        initial_state=np.array([0.0, np.pi - 0.2, 0.0, 0.0]),
        spread=np.array([0.05, 0.05, 0.05, 0.05]),
        noise=np.array([0.002, 0.005, 0.01, 0.02]),
    )


# Hanging chain of masses between a wall and a driven end.

_MASS, _STIFFNESS, _REST_LENGTH = 0.033, 1.0, 0.033
_WALL_Y = -0.05


def _chain_dynamics(masses: int) -> Callable[[Operations, Any, Any, Parameters], Any]:
    """Wirsching, Bock and Diehl, Fast NMPC of a chain of masses connected by springs, 2006.

    State: positions along x of all masses and the end, along y, along z, then the masses'
    velocities in the same order. Input: velocity of the end.
    """
    m = masses

    def dynamics(o: Operations, x: Any, u: Any, p: Parameters) -> Any:
        springs, squares = [], 0.0
        for axis in range(3):
            first = axis * (m + 1)
            position = o.part(x, first, first + m + 1)
            stretch = o.join(
                [
                    o.part(position, 0, 1),
                    o.part(position, 1, m + 1) - o.part(position, 0, m),
                ]
            )
            springs.append(stretch)
            squares = squares + stretch * stretch
        tension = (_STIFFNESS / _MASS) * (1.0 - _REST_LENGTH / o.sqrt(squares))
        velocities, accelerations = [], []
        for axis in range(3):
            first = 3 * (m + 1) + axis * m
            velocities += [o.part(x, first, first + m), o.part(u, axis, axis + 1)]
            force = tension * springs[axis]
            pull = o.part(force, 1, m + 1) - o.part(force, 0, m)
            accelerations.append(pull - 9.81 if axis == 2 else pull)
        return o.join(velocities + accelerations)

    return dynamics


def _chain_rest(masses: int, end: np.ndarray) -> np.ndarray:
    """The state at rest whose end is held at ``end``, by Newton's method."""
    m, dynamics = masses, _chain_dynamics(masses)
    at_rest = np.zeros(6 * m + 3)
    for axis in range(3):
        line = np.linspace(0.0, end[axis], m + 2)[1:]
        at_rest[axis * (m + 1) : (axis + 1) * (m + 1)] = line
    free = np.concatenate([np.arange(m) + axis * (m + 1) for axis in range(3)])

    def force(x: np.ndarray) -> np.ndarray:
        return dynamics(NUMPY, x, np.zeros((*x.shape[:-1], 3)), {})[..., 3 * (m + 1) :]

    for _ in range(100):
        probes = np.tile(at_rest, (len(free), 1))
        probes[np.arange(len(free)), free] += 1e-7
        jacobian = (force(probes) - force(at_rest)).T / 1e-7
        change = np.linalg.solve(jacobian, -force(at_rest))
        at_rest[free] += min(1.0, 0.1 / np.abs(change).max()) * change
        if np.abs(change).max() < 1e-12:
            return at_rest
    raise RuntimeError(f"no rest position found for {masses} masses")


def chain(masses: int) -> Task:
    """Bring the chain to rest with its end where it was, without touching the wall at its side."""
    m, nx = masses, 6 * masses + 3
    target = np.array([6.0 * _REST_LENGTH * (m + 1), 0.0, 0.0])
    end = [m, 2 * m + 1, 3 * m + 2]
    dynamics = _chain_dynamics(m)

    def arrival(o: Operations, x: Any, p: Parameters) -> Any:
        at_end = o.join([o.part(x, i, i + 1) for i in end])
        return o.join([at_end - p["target"], o.part(x, 3 * (m + 1), nx)])

    def residuals(o: Operations, x: Any, u: Any, p: Parameters) -> Any:
        return o.join([arrival(o, x, p), u])

    arrival_weights = np.concatenate([np.full(3, 25.0), np.ones(3 * m)])
    wall = np.full(nx, -np.inf)
    wall[m + 1 : 2 * (m + 1)] = _WALL_Y
    moving = np.concatenate([np.zeros(3 * (m + 1)), np.ones(3 * m)])

    task = Task(
        name=f"chain{m}",
        title=f"chain, M = {m}",
        nx=nx,
        nu=3,
        horizon=40,
        dt=0.2,
        substeps=2,
        steps=40,
        dynamics=dynamics,
        residuals=residuals,
        weights=np.concatenate([arrival_weights, np.full(3, 0.01)]),
        terminal_residuals=arrival,
        terminal_weights=arrival_weights,
        input_bounds=(-np.ones(3), np.ones(3)),
        state_bounds=(wall, np.full(nx, np.inf)),
        parameters={"target": 3},
        stage_parameters=lambda step, horizon: {"target": np.tile(target, (horizon + 1, 1))},
        initial_state=np.zeros(nx),
        spread=0.05 * moving,
        noise=np.where(moving > 0.0, 5e-3, 1e-3),
    )
    # Dragged out of rest for a second, as the paper does.
    state = _chain_rest(m, target)
    for _ in range(5):
        state = task.advanced(NUMPY, state, np.array([-1.0, 1.0, 1.0]), {}, substeps=10)
    return replace(task, initial_state=state)


TASKS: dict[str, Callable[[], Task]] = {
    "bicycle20": lambda: bicycle(20),
    "bicycle50": lambda: bicycle(50),
    "bicycle100": lambda: bicycle(100),
    "cartpole": cartpole,
    "chain4": lambda: chain(4),
    "chain6": lambda: chain(6),
}
