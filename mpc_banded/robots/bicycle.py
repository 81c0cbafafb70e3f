# SPDX-License-Identifier: Apache-2.0
"""A car with Ackermann steering as a kinematic bicycle; odometry in, twist out.

State (x, y, yaw, v): pose of the rear axle's centre in the odometry frame in m and rad, forward
speed in m/s. Input: acceleration in m/s^2, steering angle in rad. The command is a twist, as
for the bicycle and Ackermann steering controllers of ros2_control.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import torch

from mpc_banded.robots.planar import clearance, heading, position, speed
from mpc_banded.robots.robot import Option, Robot

#: Time in which the car's speed controller reaches a commanded speed, in seconds.
SPEED_LAG = 0.2
#: Footprint radius in m, where no other footprint is given.
RADIUS = 1.0
#: Distance that the plan keeps between the footprint and obstacles, in m.
MARGIN = 0.2


def dynamics(x, u, p):
    """Move without side slip (Rajamani, Vehicle Dynamics and Control, section 2.2)."""
    yaw, v = x[..., 2], x[..., 3]
    turn = v * torch.tan(u[..., 1]) / p["wheelbase"]
    return torch.stack([v * torch.cos(yaw), v * torch.sin(yaw), turn, u[..., 0]], dim=-1)


def acceleration(x, u, p):
    """Squared acceleration."""
    return u[..., 0] ** 2


def steering(x, u, p):
    """Squared steering angle."""
    return u[..., 1] ** 2


def arrival(x, p):
    """Squared distance and heading error at the end of the horizon."""
    return position(x, None, p) + 5.0 * heading(x, None, p)


def keep_clear(x, u, p):
    """Clearance between the footprint and each obstacle, less the margin, in m."""
    return clearance(x, p, MARGIN)


def command(x, u, model):
    """Return the speed one lead ahead, and the yaw rate of the steering angle at that speed."""
    return {"v": x[3], "w": x[3] * math.tan(u[1]) / model["wheelbase"]}


def actuate(x, command, model):
    """Return the input: a first-order lag of the speed; wheels turn to the curvature at once."""
    v = command["v"] if abs(command["v"]) > 0.1 else 0.1
    return np.array(
        [(command["v"] - x[3]) / SPEED_LAG, math.atan(command["w"] * model["wheelbase"] / v)]
    )


def ackermann(x, u, model):
    """Return the speed one lead ahead, and the steering angle."""
    return {"v": float(x[3]), "steering": float(u[1])}


def actuate_ackermann(x, command, model):
    """Return the input: a first-order lag of the speed; wheels turn to the angle at once."""
    return np.array([(command["v"] - x[3]) / SPEED_LAG, command["steering"]])


def turning(limits, model):
    """Return the turning radius at nine tenths of the largest steering angle, in m."""
    return model["wheelbase"] / math.tan(0.9 * min(abs(angle) for angle in limits["steering"]))


@functools.cache
def variant(command):
    """Return the car that takes a twist, or the one that takes an Ackermann command."""
    if command == "twist":
        return bicycle
    return replace(
        bicycle,
        command_message=command,
        command=ackermann,
        actuate=actuate_ackermann,
        braking={"v": "acceleration", "steering": "v"},
    )


bicycle = Robot(
    name="bicycle",
    states=("x", "y", "yaw", "v"),
    inputs=("acceleration", "steering"),
    state_message="odometry",
    command_message="twist",
    reference_message="path",
    reference=("x", "y", "yaw", "v"),
    dynamics=dynamics,
    stage_costs={
        "position": position,
        "heading": heading,
        "speed": speed,
        "acceleration": acceleration,
        "steering": steering,
    },
    terminal_costs={"arrival": arrival},
    inequalities={"clearance": keep_clear},
    penalties={"clearance": (1000.0, 1000.0)},
    weights={
        "position": 1.0,
        "heading": 5.0,
        "speed": 1.0,
        "acceleration": 0.1,
        "steering": 2.0,
        "arrival": 10.0,
    },
    limits={"v": (0.0, 8.0), "acceleration": (-4.0, 3.0), "steering": (-0.5, 0.5)},
    model={"wheelbase": 2.5},
    command=command,
    actuate=actuate,
    braking={"v": "acceleration", "w": "v"},  # the car stays on its curve
    turning=turning,
    obstacles=4,
    radius=RADIUS,
    cyclic=("yaw",),
    units={"acceleration": "m/s²", "steering": "rad"},
    transcription="rk4",
    horizon=50,
    options={
        "command": Option("twist", "Kind of command message.", ("twist", "ackermann")),
    },
    variant=variant,
)
