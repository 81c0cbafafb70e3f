# SPDX-License-Identifier: Apache-2.0
"""A differential-drive base with limited speeds and accelerations; odometry in, twist out.

State (x, y, yaw, v, w): pose in the odometry frame in m and rad, forward speed in m/s, yaw rate
in rad/s. Input: linear and angular acceleration in m/s^2 and rad/s^2.
"""

import numpy as np
import torch

from mpc_banded.robots.planar import clearance, effort, heading, position, speed
from mpc_banded.robots.robot import Robot

#: Time in which the base's own velocity controllers reach a commanded velocity, in seconds.
VELOCITY_LAG = 0.1
#: Footprint radius in m, where no other footprint is given.
RADIUS = 0.25
#: Distance that the plan keeps between the footprint and obstacles, in m.
MARGIN = 0.05


def dynamics(x, u, p):
    """Rolling without slip."""
    yaw, v, w = x[..., 2], x[..., 3], x[..., 4]
    rates = [v * torch.cos(yaw), v * torch.sin(yaw), w, u[..., 0], u[..., 1]]
    return torch.stack(rates, dim=-1)


def turning(x, u, p):
    """Squared yaw rate."""
    return x[..., 4] ** 2


def arrival(x, p):
    """Squared distance and heading error at the end of the horizon."""
    return position(x, None, p) + 0.2 * heading(x, None, p)


def keep_clear(x, u, p):
    """Clearance between the footprint and each obstacle, less the margin, in m."""
    return clearance(x, p, MARGIN)


def command(x, u, model):
    """Return the velocities that the plan reaches one lead ahead."""
    return {"v": x[3], "w": x[4]}


def actuate(x, command, model):
    """Return the accelerations of velocity controllers with a first-order lag."""
    return np.array([command["v"] - x[3], command["w"] - x[4]]) / VELOCITY_LAG


unicycle = Robot(
    name="unicycle",
    states=("x", "y", "yaw", "v", "w"),
    inputs=("linear_acceleration", "angular_acceleration"),
    state_message="odometry",
    command_message="twist",
    reference_message="path",
    reference=("x", "y", "yaw", "v"),
    dynamics=dynamics,
    stage_costs={
        "position": position,
        "heading": heading,
        "speed": speed,
        "turning": turning,
        "effort": effort,
    },
    terminal_costs={"arrival": arrival},
    inequalities={"clearance": keep_clear},
    penalties={"clearance": (1000.0, 1000.0)},
    weights={
        "position": 10.0,
        "heading": 1.0,
        "speed": 1.0,
        "turning": 0.01,
        "effort": 0.02,
        "arrival": 50.0,
    },
    limits={
        "v": (-0.3, 1.2),
        "w": (-1.8, 1.8),
        "linear_acceleration": (-1.0, 1.0),
        "angular_acceleration": (-4.0, 4.0),
    },
    command=command,
    actuate=actuate,
    braking={"v": "linear_acceleration", "w": "angular_acceleration"},
    obstacles=4,
    radius=RADIUS,
    cyclic=("yaw",),
    units={"linear_acceleration": "m/s²", "angular_acceleration": "rad/s²"},
)
