# SPDX-License-Identifier: Apache-2.0
"""An omnidirectional base: it drives in any direction while it turns; odometry in, twist out.

State (x, y, yaw, v, vy, w): pose in the odometry frame in m and rad, speed forward and to the left
in m/s, yaw rate in rad/s. Input: the rates of these three in m/s^2 and rad/s^2. The orientations
of a path are its headings, whatever the direction in which it leads.
"""

import math

import numpy as np
import torch

from mpc_banded.robots.planar import clearance, effort, heading, position
from mpc_banded.robots.robot import Robot

#: Time in which the base's own velocity controllers reach a commanded velocity, in seconds.
VELOCITY_LAG = 0.1
#: Footprint radius in m, where no other footprint is given.
RADIUS = 0.3
#: Distance that the plan keeps between the footprint and obstacles, in m.
MARGIN = 0.05


def dynamics(x, u, p):
    """Rolling in the direction of the velocity, whatever the heading."""
    cos, sin = torch.cos(x[..., 2]), torch.sin(x[..., 2])
    v, vy, w = x[..., 3], x[..., 4], x[..., 5]
    rates = [v * cos - vy * sin, v * sin + vy * cos, w, u[..., 0], u[..., 1], u[..., 2]]
    return torch.stack(rates, dim=-1)


def speed(x, u, p):
    """Squared error of the velocity in the frame of the base."""
    error = x[..., 3:5] - p["reference"][..., 3:5]
    return (error * error).sum(dim=-1)


def turning(x, u, p):
    """Squared yaw rate."""
    return x[..., 5] ** 2


def arrival(x, p):
    """Squared distance and heading error at the end of the horizon."""
    return position(x, None, p) + 0.2 * heading(x, None, p)


def keep_clear(x, u, p):
    """Clearance between the footprint and each obstacle, less the margin, in m."""
    return clearance(x, p, MARGIN)


def keep_slow(x, u, p):
    """Squared speed that is left in the direction of motion, in m^2/s^2."""
    return (p["max_speed"] ** 2 - x[..., 3] ** 2 - x[..., 4] ** 2)[..., None]


def command(x, u, model):
    """Return the velocities that the plan reaches one lead ahead, at most as fast as allowed."""
    share = min(1.0, model["max_speed"] / max(math.hypot(x[3], x[4]), 1e-9))
    return {"v": share * x[3], "vy": share * x[4], "w": x[5]}


def actuate(x, command, model):
    """Return the accelerations of velocity controllers with a first-order lag."""
    wanted = np.array([command["v"], command["vy"], command["w"]])
    return (wanted - x[3:6]) / VELOCITY_LAG


omni = Robot(
    name="omni",
    states=("x", "y", "yaw", "v", "vy", "w"),
    inputs=("linear_acceleration", "lateral_acceleration", "angular_acceleration"),
    state_message="odometry",
    command_message="twist",
    reference_message="path",
    reference=("x", "y", "yaw", "v", "vy"),
    dynamics=dynamics,
    stage_costs={
        "position": position,
        "heading": heading,
        "speed": speed,
        "turning": turning,
        "effort": effort,
    },
    terminal_costs={"arrival": arrival},
    inequalities={"clearance": keep_clear, "max_speed": keep_slow},
    penalties={"clearance": (1000.0, 1000.0), "max_speed": (1000.0, 1000.0)},
    weights={
        "position": 10.0,
        "heading": 5.0,
        "speed": 1.0,
        "turning": 0.01,
        "effort": 0.02,
        "arrival": 50.0,
    },
    limits={
        "v": (-1.0, 1.0),
        "vy": (-1.0, 1.0),
        "w": (-1.8, 1.8),
        "linear_acceleration": (-1.0, 1.0),
        "lateral_acceleration": (-1.0, 1.0),
        "angular_acceleration": (-4.0, 4.0),
    },
    model={"max_speed": 1.0},
    command=command,
    actuate=actuate,
    braking={
        "v": "linear_acceleration",
        "vy": "lateral_acceleration",
        "w": "angular_acceleration",
    },
    obstacles=4,
    radius=RADIUS,
    cyclic=("yaw",),
)
