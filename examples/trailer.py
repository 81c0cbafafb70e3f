# SPDX-License-Identifier: Apache-2.0
"""Car that pushes a trailer backwards along a path.

State (x, y, yaw, v, hitch): pose of the axle of the trailer in m and rad, speed of the car in m/s,
angle of the car against it in rad. Input: acceleration in m/s^2, steering angle in rad. The
hitch is above the rear axle of the car; its angle comes as a joint state.
"""

import math

import numpy as np
import torch

from mpc_banded.robots import Robot
from mpc_banded.robots.messages import STATES, StateTopic, fill_joint_state, joint_values
from mpc_banded.robots.planar import clearance, effort, heading, position, speed

#: Time in which the car reaches a commanded speed, in s.
SPEED_LAG = 0.1


def dynamics(x, u, p):
    """Rolling without slip (LaValle, Planning Algorithms, section 13.1.2.4)."""
    yaw, v, hitch = x[..., 2], x[..., 3], x[..., 4]
    along, turn = v * torch.cos(hitch), v * torch.sin(hitch) / p["trailer"]
    car = v * torch.tan(u[..., 1]) / p["wheelbase"]
    rates = [along * torch.cos(yaw), along * torch.sin(yaw), turn, u[..., 0], car - turn]
    return torch.stack(rates, dim=-1)


def folding(x, u, p):
    """Squared angle between car and trailer."""
    return x[..., 4] ** 2


def arrival(x, p):
    """Cost at the end of the horizon."""
    return position(x, None, p) + 2.0 * heading(x, None, p) + 0.2 * folding(x, None, p)


def keep_clear(x, u, p):
    """Clearance to obstacles, less 5 cm."""
    return clearance(x, p, margin=0.05)


def fill_hitch(message, values):
    """The angle of the hitch as a joint."""
    fill_joint_state(message, {"hitch": values["hitch"]})


def command(x, u, model):
    """Speed one lead ahead, and the yaw rate of the car at that speed."""
    return {"v": float(x[3]), "w": float(x[3]) * math.tan(float(u[1])) / model["wheelbase"]}


def actuate(x, command, model):
    """Acceleration of a speed that lags; the steering follows at once."""
    v = command["v"]
    v = v if abs(v) > 0.05 else math.copysign(0.05, v)
    steering = math.atan(command["w"] * model["wheelbase"] / v)
    return np.array([(command["v"] - x[3]) / SPEED_LAG, steering])


def turning(limits, model):
    """Radius in m on which the trailer can be pushed with room to steer."""
    angle = 0.7 * min(abs(bound) for bound in limits["steering"])
    return math.hypot(model["wheelbase"] / math.tan(angle), model["trailer"])


trailer = Robot(
    name="car with trailer",
    states=("x", "y", "yaw", "v", "hitch"),
    inputs=("acceleration", "steering"),
    cyclic=("yaw",),
    state_message=(
        STATES["odometry"],
        StateTopic("joint_states", "sensor_msgs/msg/JointState", joint_values, fill_hitch),
    ),
    command_message="twist",
    reference_message="path",
    reference=("x", "y", "yaw", "v"),
    dynamics=dynamics,
    stage_costs={
        "position": position,
        "heading": heading,
        "speed": speed,
        "folding": folding,
        "effort": effort,
    },
    terminal_costs={"arrival": arrival},
    inequalities={"clearance": keep_clear},
    penalties={"clearance": (1000.0, 1000.0)},
    weights={
        "position": 5.0,
        "heading": 2.0,
        "speed": 1.0,
        "folding": 0.1,
        "effort": 0.05,
        "arrival": 20.0,
    },
    limits={
        "v": (-1.0, 1.0),
        "hitch": (-0.9, 0.9),
        "acceleration": (-1.0, 1.0),
        "steering": (-0.6, 0.6),
    },
    units={"hitch": "rad", "acceleration": "m/s²", "steering": "rad"},
    model={"wheelbase": 0.6, "trailer": 1.0},
    command=command,
    actuate=actuate,
    turning=turning,
    braking={"v": "acceleration", "w": "v"},
    radius=0.35,
    obstacles=4,
    horizon=40,
    transcription="rk4",
)
