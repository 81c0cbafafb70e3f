"""my_bicycle: a car-like base with a steered front axle that follows paths.

State x, y, yaw, v: pose of the rear axle in m and rad, speed in m/s. Input acceleration in m/s^2,
steering angle in rad. Odometry comes in, a twist goes out.
"""

import math

import numpy as np
import torch

from mpc_banded.robots import Robot
from mpc_banded.robots.planar import clearance

RADIUS = 0.3  # of the footprint, in m
LAG = 0.1  # time in which the car reaches a commanded speed, in s


def dynamics(x, u, p):
    """Rate of the state. Write x[..., 0], never x[0]: the functions see many states at once."""
    yaw, v = x[..., 2], x[..., 3]
    turn = v * torch.tan(u[..., 1]) / p["wheelbase"]
    return torch.stack([v * torch.cos(yaw), v * torch.sin(yaw), turn, u[..., 0]], dim=-1)


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
    """Squared acceleration and steering angle."""
    return 0.1 * u[..., 0] ** 2 + u[..., 1] ** 2


def arrival(x, p):
    """Cost at the end of the horizon."""
    return position(x, None, p) + heading(x, None, p)


def keep_clear(x, u, p):
    """Distance between outline and obstacles, less 0.05 m, which must stay positive."""
    return clearance(x, p, margin=0.05)


# The command: what the car is told, and what it makes of that.


def command(x, u, model):
    """Speed that the plan reaches a moment later, and the yaw rate that belongs to it."""
    return {"v": x[3], "w": x[3] * math.tan(u[1]) / model["wheelbase"]}


def actuate(x, command, model):
    """Acceleration of a speed that lags, and the steering angle: for the simulator."""
    v = command["v"] if abs(command["v"]) > 0.05 else 0.05
    steering = math.atan(command["w"] * model["wheelbase"] / v)
    return np.array([(command["v"] - x[3]) / LAG, steering])


def turning(limits, model):
    """Smallest turning radius in m: paths are to be no narrower."""
    return model["wheelbase"] / math.tan(0.9 * min(abs(angle) for angle in limits["steering"]))


robot = Robot(
    name="my_bicycle",
    states=("x", "y", "yaw", "v"),
    inputs=("acceleration", "steering"),
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
    weights={"position": 5.0, "heading": 2.0, "speed": 1.0, "effort": 0.2, "arrival": 20.0},
    limits={"v": (-0.5, 1.5), "acceleration": (-1.5, 1.5), "steering": (-0.5, 0.5)},
    units={"acceleration": "m/s²", "steering": "rad"},
    model={"wheelbase": 0.4},
    command=command,
    actuate=actuate,
    turning=turning,
    braking={"v": "acceleration", "w": "v"},  # the car slows down on its curve
    transcription="rk4",
)
