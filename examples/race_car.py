# SPDX-License-Identifier: Apache-2.0
"""Small race car that slides: a bicycle with tyres that let go.

State (x, y, yaw, v, slide, turn): pose of the centre of mass in m and rad, speed ahead and to the
left in m/s, yaw rate in rad/s. Input: acceleration in m/s^2, steering angle in rad. The speeds
have names of their own: a base with vy and w would drive sideways, and turn on the spot.
"""

import math

import numpy as np
import torch

from mpc_banded.robots import Robot
from mpc_banded.robots.messages import STATES, StateTopic
from mpc_banded.robots.planar import clearance, heading, position, speed

#: Time in which the car reaches a commanded speed, in s.
SPEED_LAG = 0.1
#: Speed below which slip angles are damped, in m/s: a wheel that stands has none.
SLOW = 1.0


def tyre(slip, p):
    """Share of the load that a tyre carries sideways (Pacejka's magic formula)."""
    return p["grip"] * torch.sin(1.4 * torch.atan(p["stiffness"] * slip))


def dynamics(x, u, p):
    """Single-track model with saturating tyres (Liniger and others 2015, section 2)."""
    yaw, v, slide, turn = x[..., 2], x[..., 3], x[..., 4], x[..., 5]
    length, steering = p["front"] + p["rear"], u[..., 1]
    fast = torch.sqrt(v**2 + SLOW**2)
    g, m = 9.81, p["mass"]
    forward = v / fast  # no side force of a steered wheel that stands
    slip = forward * steering - torch.atan((slide + p["front"] * turn) / fast)
    front = m * g * p["rear"] / length * tyre(slip, p)
    back = m * g * p["front"] / length * tyre(-torch.atan((slide - p["rear"] * turn) / fast), p)
    c, s = torch.cos(yaw), torch.sin(yaw)
    ahead = u[..., 0] - front * torch.sin(steering) / m + slide * turn
    aside = (front * torch.cos(steering) + back) / m - v * turn
    moment = p["front"] * front * torch.cos(steering) - p["rear"] * back
    return torch.stack(
        [c * v - s * slide, s * v + c * slide, turn, ahead, aside, moment / p["inertia"]], dim=-1
    )


def sliding(x, u, p):
    """Squared speed to the side."""
    return x[..., 4] ** 2


def effort(x, u, p):
    """Squared acceleration and steering angle."""
    return 0.05 * u[..., 0] ** 2 + u[..., 1] ** 2


def arrival(x, p):
    """Cost at the end of the horizon."""
    return position(x, None, p) + heading(x, None, p)


def keep_clear(x, u, p):
    """Clearance to obstacles, less 5 cm."""
    return clearance(x, p, margin=0.05)


def read(message):
    """Odometry, with the names of this car."""
    values = STATES["odometry"].read(message)
    return {**values, "slide": values["vy"], "turn": values["w"]}


def fill(message, values):
    """The same, the other way."""
    STATES["odometry"].fill(message, {**values, "vy": values["slide"], "w": values["turn"]})


def command(x, u, model):
    """Speed one lead ahead, and the yaw rate of the steering angle as if nothing slid."""
    length = model["front"] + model["rear"]
    return {"v": float(x[3]), "w": float(x[3]) * math.tan(float(u[1])) / length}


def actuate(x, command, model):
    """Acceleration of a speed that lags; the steering follows at once."""
    v = command["v"] if abs(command["v"]) > 0.1 else 0.1
    steering = math.atan(command["w"] * (model["front"] + model["rear"]) / v)
    return np.array([(command["v"] - x[3]) / SPEED_LAG, steering])


def turning(limits, model):
    """Turning radius at nine tenths of the largest steering angle, in m."""
    angle = 0.9 * min(abs(bound) for bound in limits["steering"])
    return (model["front"] + model["rear"]) / math.tan(angle)


car = Robot(
    name="race car",
    states=("x", "y", "yaw", "v", "slide", "turn"),
    inputs=("acceleration", "steering"),
    cyclic=("yaw",),
    state_message=(StateTopic("odom", "nav_msgs/msg/Odometry", read, fill),),
    command_message="twist",
    reference_message="path",
    reference=("x", "y", "yaw", "v"),
    dynamics=dynamics,
    stage_costs={
        "position": position,
        "heading": heading,
        "speed": speed,
        "sliding": sliding,
        "effort": effort,
    },
    terminal_costs={"arrival": arrival},
    inequalities={"clearance": keep_clear},
    penalties={"clearance": (1000.0, 1000.0)},
    weights={
        "position": 10.0,
        "heading": 1.0,
        "speed": 1.0,
        "sliding": 0.1,
        "effort": 0.2,
        "arrival": 20.0,
    },
    limits={"v": (0.0, 5.0), "acceleration": (-5.0, 4.0), "steering": (-0.4, 0.4)},
    velocities={"x": ("v",), "y": ("v",)},
    units={"acceleration": "m/s²", "steering": "rad", "slide": "m/s", "turn": "rad/s"},
    model={
        "mass": 3.7,  # kg
        "inertia": 0.047,  # kg m^2
        "front": 0.159,  # m from the centre of mass to the axles
        "rear": 0.171,
        "grip": 0.9,
        "stiffness": 4.0,
    },
    command=command,
    actuate=actuate,
    turning=turning,
    braking={"v": "acceleration", "w": "v"},
    radius=0.2,
    obstacles=4,
    horizon=30,
    dt=0.04,
)
