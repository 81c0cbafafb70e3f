# SPDX-License-Identifier: Apache-2.0
"""Arm of any number of joints with limited positions, velocities and accelerations.

State: position of each joint in rad (or m), then the velocity of each. Input: their
accelerations. The command is a joint trajectory, a few points of the plan as the joint trajectory
controller of ros2_control takes them, or the velocities alone.
"""

import functools
import math

import numpy as np
import torch

from mpc_banded.robots.robot import Option, Robot

#: Time in which a joint's own velocity controller reaches a commanded velocity, in seconds.
VELOCITY_LAG = 0.1
#: Number of points of the plan in a joint trajectory.
POINTS = 5


def dynamics(x, u, p):
    """Double integrators."""
    return torch.cat([x[..., u.shape[-1] :], u], dim=-1)


def position(x, u, p):
    """Squared distance of the joints from their reference."""
    n = x.shape[-1] // 2
    return ((x[..., :n] - p["reference"][..., :n]) ** 2).sum(dim=-1)


def velocity(x, u, p):
    """Squared error of the velocities."""
    n = x.shape[-1] // 2
    return ((x[..., n:] - p["reference"][..., n:]) ** 2).sum(dim=-1)


def effort(x, u, p):
    """Squared accelerations."""
    return (u * u).sum(dim=-1)


def arrival(x, p):
    """Squared distance and velocity error at the end of the horizon."""
    return position(x, None, p) + 0.1 * velocity(x, None, p)


def braked(q, v, limit, seconds):
    """Return position and velocity after braking as hard as ``limit`` allows."""
    time = min(seconds, abs(v) / limit)
    rate = math.copysign(limit, v)
    left = v - rate * time if seconds < abs(v) / limit else 0.0
    return q + v * time - 0.5 * rate * time**2, left


@functools.cache
def _built(joints, command):
    velocities = tuple(f"{name}_velocity" for name in joints)
    accelerations = tuple(f"{name}_acceleration" for name in joints)
    n = len(joints)

    def planned_motion(x, u, model):
        named = zip((*joints, *velocities, *accelerations), (*x, *u), strict=True)
        return {name: float(value) for name, value in named}

    def planned_velocities(x, u, model):
        return dict(zip(velocities, (float(v) for v in x[n:]), strict=True))

    def follow_points(x, command, model):
        """Return the planned acceleration, corrected by the velocity error.

        The correction averages to zero over an interval that goes as planned.
        """
        if not command:
            return -x[n:] / VELOCITY_LAG
        at = min({name.partition("@")[2] for name in command}, key=float)
        v = np.array([command[f"{name}@{at}"] for name in velocities])
        a = np.array([command[f"{name}@{at}"] for name in accelerations])
        return a + (v - 0.5 * float(at) * a - x[n:]) / VELOCITY_LAG

    def follow_velocities(x, command, model):
        return (np.array([command[name] for name in velocities]) - x[n:]) / VELOCITY_LAG

    def slow(last, elapsed_s, limits):
        times = sorted({name.partition("@")[2] for name in last}, key=float)
        result = {}
        for name in joints if times else ():
            limit = min(abs(bound) for bound in limits[f"{name}_acceleration"])
            q, v = last[f"{name}@{times[0]}"], last[f"{name}_velocity@{times[0]}"]
            q, v = braked(q, v, limit, elapsed_s)
            for at in times:
                there, rate = braked(q, v, limit, float(at) - float(times[0]))
                result[f"{name}@{at}"], result[f"{name}_velocity@{at}"] = there, rate
                braking = -math.copysign(limit, rate) if rate else 0.0
                result[f"{name}_acceleration@{at}"] = braking
        return result

    by_points = command == "joint_trajectory"
    return Robot(
        name="joint_space",
        states=(*joints, *velocities),
        inputs=accelerations,
        state_message="joint_states",
        command_message=command,
        reference_message="joint_trajectory",
        reference=(*joints, *velocities),
        dynamics=dynamics,
        stage_costs={"position": position, "velocity": velocity, "effort": effort},
        terminal_costs={"arrival": arrival},
        weights={"position": 10.0, "velocity": 1.0, "effort": 0.02, "arrival": 50.0},
        limits=dict.fromkeys(joints, (-math.pi, math.pi))
        | dict.fromkeys(velocities, (-2.0, 2.0))
        | dict.fromkeys(accelerations, (-5.0, 5.0)),
        command=planned_motion if by_points else planned_velocities,
        actuate=follow_points if by_points else follow_velocities,
        points=POINTS if by_points else 0,
        slow=slow if by_points else None,
        braking={} if by_points else dict(zip(velocities, accelerations, strict=True)),
        rests=False,
        horizon=20,
        options={
            "joints": Option(
                tuple(f"joint{i}" for i in range(1, 8)), "Names of the joints, as in messages."
            ),
            "command": Option(
                "joint_trajectory",
                "Kind of command message.",
                ("joint_trajectory", "velocity"),
            ),
        },
        variant=variant,
    )


def variant(joints, command):
    """Return the robot with the given joint names and kind of command message."""
    return _built(tuple(joints), command)


joint_space = variant([f"joint{i}" for i in range(1, 8)], "joint_trajectory")
