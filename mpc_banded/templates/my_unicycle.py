"""my_unicycle: a differential-drive base that follows paths and keeps clear of obstacles.

State x, y, yaw, v, w: pose in m and rad, forward speed in m/s, yaw rate in rad/s.
Input linear, angular: accelerations in m/s^2 and rad/s^2. Odometry comes in, a twist goes out.
"""

import numpy as np
import torch

from mpc_banded.robots import Robot
from mpc_banded.robots.planar import clearance

RADIUS = 0.25  # of the footprint, in m
LAG = 0.1  # time in which the base reaches a commanded velocity, in s


def dynamics(x, u, p):
    """Rate of the state. Write x[..., 0], never x[0]: the functions see many states at once."""
    yaw, v, w = x[..., 2], x[..., 3], x[..., 4]
    return torch.stack([v * torch.cos(yaw), v * torch.sin(yaw), w, u[..., 0], u[..., 1]], dim=-1)


# Costs: what is small when the robot does well. p["reference"] holds the columns of `reference`.


def position(x, u, p):
    """Squared distance from the path."""
    return ((x[..., :2] - p["reference"][..., :2]) ** 2).sum(dim=-1)


def heading(x, u, p):
    """Heading error, the same after a full turn."""
    return 1.0 - torch.cos(x[..., 2] - p["reference"][..., 2])


def speed(x, u, p):
    """Squared error of the speed."""
    return (x[..., 3] - p["reference"][..., 3]) ** 2


def effort(x, u, p):
    """Squared accelerations."""
    return (u**2).sum(dim=-1)


def arrival(x, p):
    """Cost at the end of the horizon."""
    return position(x, None, p) + 0.2 * heading(x, None, p)


def keep_clear(x, u, p):
    """Distance between outline and obstacles, less 0.05 m, which must stay positive."""
    return clearance(x, p, margin=0.05)


# The command: what the base is told, and what it makes of that.


def command(x, u, model):
    """Return the velocities that the plan reaches a moment later."""
    return {"v": x[3], "w": x[4]}


def actuate(x, command, model):
    """Return the accelerations of a base that follows its velocities with a lag."""
    return np.array([command["v"] - x[3], command["w"] - x[4]]) / LAG


robot = Robot(
    name="my_unicycle",
    states=("x", "y", "yaw", "v", "w"),
    inputs=("linear", "angular"),
    cyclic=("yaw",),
    state_message="odometry",
    command_message="twist",
    reference_message="path",
    reference=("x", "y", "yaw", "v"),
    dynamics=dynamics,
    stage_costs={"position": position, "heading": heading, "speed": speed, "effort": effort},
    terminal_costs={"arrival": arrival},
    inequalities={"clearance": keep_clear},
    penalties={"clearance": (1000.0, 1000.0)},
    obstacles=4,
    radius=RADIUS,
    weights={"position": 10.0, "heading": 1.0, "speed": 1.0, "effort": 0.02, "arrival": 50.0},
    limits={
        "v": (-0.3, 1.0),
        "w": (-1.5, 1.5),
        "linear": (-1.0, 1.0),
        "angular": (-4.0, 4.0),
    },
    units={"linear": "m/s²", "angular": "rad/s²"},
    command=command,
    actuate=actuate,
    braking={"v": "linear", "w": "angular"},  # limits for slowing down without a plan
)
