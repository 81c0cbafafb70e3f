# SPDX-License-Identifier: Apache-2.0
"""An arm of any number of joints with limited positions, velocities and accelerations.

State: position of each joint in rad (or m), then the velocity of each. Input: their
accelerations. The command is a joint trajectory, a few points of the plan as the joint trajectory
controller of ros2_control takes them, or the velocities alone.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

from mpc_banded.robots.robot import Option, Robot

#: Time in which a joint's own velocity controller reaches a commanded velocity, in seconds.
VELOCITY_LAG = 0.1
#: Number of points of the plan in a joint trajectory.
POINTS = 5


def dynamics(x, u, p):
    """Integrate each acceleration twice."""
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


@dataclass(frozen=True)
class Joints:
    """Names of the joints, and the commands that move them.

    Attributes:
        positions: Name of each joint, and of its position.
    """

    positions: tuple[str, ...]

    @functools.cached_property
    def velocities(self):
        """Name of the velocity of each joint."""
        return tuple(f"{name}_velocity" for name in self.positions)

    @functools.cached_property
    def accelerations(self):
        """Name of the acceleration of each joint."""
        return tuple(f"{name}_acceleration" for name in self.positions)

    def planned_motion(self, x, u, model):
        """Return positions, velocities and accelerations: a point of a joint trajectory."""
        named = zip(
            (*self.positions, *self.velocities, *self.accelerations), (*x, *u), strict=True
        )
        return {name: float(value) for name, value in named}

    def planned_velocities(self, x, u, model):
        """Return the velocities one lead ahead."""
        return dict(zip(self.velocities, x[len(self.positions) :].tolist(), strict=True))

    def follow_points(self, x, command, model):
        """Return the planned acceleration, corrected by the velocity error.

        The correction averages to zero over an interval that goes as planned.
        """
        v_now = x[len(self.positions) :]
        if not command:
            return -v_now / VELOCITY_LAG
        at = min(times_of(command), key=float)
        v = np.array([command[f"{name}@{at}"] for name in self.velocities])
        a = np.array([command[f"{name}@{at}"] for name in self.accelerations])
        return a + (v - 0.5 * float(at) * a - v_now) / VELOCITY_LAG

    def follow_velocities(self, x, command, model):
        """Return the accelerations: a first-order lag of each velocity."""
        v = np.array([command[name] for name in self.velocities])
        return (v - x[len(self.positions) :]) / VELOCITY_LAG

    def slow(self, last, elapsed_s, limits):
        """Return the points of the hardest stop, from the first point of the last command on."""
        times = sorted(times_of(last), key=float)
        result = {}
        for name in self.positions if times else ():
            limit = min(abs(bound) for bound in limits[f"{name}_acceleration"])
            q, v = last[f"{name}@{times[0]}"], last[f"{name}_velocity@{times[0]}"]
            q, v = braked(q, v, limit, elapsed_s)
            for at in times:
                there, rate = braked(q, v, limit, float(at) - float(times[0]))
                result[f"{name}@{at}"], result[f"{name}_velocity@{at}"] = there, rate
                braking = -math.copysign(limit, rate) if rate else 0.0
                result[f"{name}_acceleration@{at}"] = braking
        return result


def times_of(command):
    """Return the different times in a command, as text."""
    return {name.partition("@")[2] for name in command}


def by_points(joints):
    """Return the fields of a robot that is commanded by a joint trajectory."""
    return {
        "command": joints.planned_motion,
        "actuate": joints.follow_points,
        "points": POINTS,
        "slow": joints.slow,
    }


def by_velocities(joints):
    """Return the fields of a robot that is commanded by velocities."""
    return {
        "command": joints.planned_velocities,
        "actuate": joints.follow_velocities,
        "braking": dict(zip(joints.velocities, joints.accelerations, strict=True)),
    }


ACTUATIONS = {"joint_trajectory": by_points, "velocity": by_velocities}


def variant(joints, command):
    """Return the robot with the given joint names and kind of command message."""
    return _built(Joints(tuple(joints)), command)


@functools.cache
def _built(joints, command):
    return Robot(
        name="joint_space",
        states=(*joints.positions, *joints.velocities),
        inputs=joints.accelerations,
        state_message="joint_states",
        command_message=command,
        reference_message="joint_trajectory",
        reference=(*joints.positions, *joints.velocities),
        dynamics=dynamics,
        stage_costs={"position": position, "velocity": velocity, "effort": effort},
        terminal_costs={"arrival": arrival},
        weights={"position": 10.0, "velocity": 1.0, "effort": 0.02, "arrival": 50.0},
        limits=dict.fromkeys(joints.positions, (-math.pi, math.pi))
        | dict.fromkeys(joints.velocities, (-2.0, 2.0))
        | dict.fromkeys(joints.accelerations, (-5.0, 5.0)),
        **ACTUATIONS[command](joints),
        rests=False,
        units=dict.fromkeys(joints.positions, "rad"),
        horizon=20,
        options={
            "joints": Option(
                tuple(f"joint{i}" for i in range(1, 8)), "Names of the joints, as in messages."
            ),
            "command": Option("joint_trajectory", "Kind of command message.", tuple(ACTUATIONS)),
        },
        variant=variant,
    )


joint_space = variant([f"joint{i}" for i in range(1, 8)], "joint_trajectory")
