# SPDX-License-Identifier: Apache-2.0
"""Small Ackermann car with its position from GPS, in UTM metres, and its yaw from a compass.

State (x, y, yaw): east and north of a local origin in m, counter-clockwise from east in rad.
Input: speed in m/s and steering angle in rad, which are also the command.
"""

import math
from dataclasses import replace

import torch

from mpc_banded.robots import Axis, Robot
from mpc_banded.robots.messages import ReferenceTopic, StateTopic, path_of, yaw_of

#: Largest steering angle of the wheels, in rad; larger commands have no further effect.
STEERING = 0.5
#: Distance from the origin, in m, beyond which a position needs a new origin.
ELSEWHERE = 50_000.0


class Origin:
    """Round kilometre near the first position, since UTM counts millions of metres."""

    def __init__(self):
        self.east = self.north = math.inf

    def local(self, east, north):
        if not math.hypot(east - self.east, north - self.north) < ELSEWHERE:
            self.east, self.north = 1e3 * round(east / 1e3), 1e3 * round(north / 1e3)
        return east - self.east, north - self.north


origin = Origin()


def pose(message):
    """Position in the local frame, and yaw."""
    position = message.pose.position
    x, y = origin.local(position.x, position.y)
    return {"x": x, "y": y, "yaw": yaw_of(message.pose.orientation)}


def route(message):
    """Path in UTM, moved to the local origin."""
    path = path_of(message)
    if not len(path.points):
        return path
    origin.local(*path.points[0])
    return replace(path, points=path.points - [origin.east, origin.north])


def dynamics(x, u, p):
    """Kinematic bicycle around the rear axle."""
    v, yaw = u[..., 0], x[..., 2]
    turn = v * torch.tan(u[..., 1]) / p["wheelbase"]
    return torch.stack([v * torch.cos(yaw), v * torch.sin(yaw), turn], dim=-1)


def position(x, u, p):
    """Squared distance from the reference."""
    return ((x[..., :2] - p["reference"][..., :2]) ** 2).sum(dim=-1)


def heading(x, u, p):
    """Heading error, the same after full turns."""
    return 1.0 - torch.cos(x[..., 2] - p["reference"][..., 2])


def speed(x, u, p):
    """Squared error of the speed."""
    return (u[..., 0] - p["reference"][..., 3]) ** 2


def steering(x, u, p):
    """Squared steering angle."""
    return u[..., 1] ** 2


def turn(command, model):
    """Yaw rate that the steering angle gives."""
    angle = min(max(command["steering"], -STEERING), STEERING)
    return command["v"] * math.tan(angle) / model["wheelbase"]


car = Robot(
    name="car",
    states=("x", "y", "yaw"),
    inputs=("v", "steering"),
    state_message=(StateTopic("vehicle_pose", "geometry_msgs/msg/PoseStamped", pose),),
    command_message="ackermann",
    reference_message=(ReferenceTopic("plan", "nav_msgs/msg/Path", route),),
    reference=("x", "y", "yaw", "v"),
    dynamics=dynamics,
    stage_costs={"position": position, "heading": heading, "speed": speed, "steering": steering},
    terminal_costs={"arrival": lambda x, p: position(x, None, p)},
    weights={"position": 0.2, "heading": 2.0, "speed": 1.0, "steering": 0.5, "arrival": 1.0},
    limits={"v": (0.0, 2.0), "steering": (-STEERING, STEERING)},
    model={"wheelbase": 0.33},  # effective: slip, and a speed that is not reached, lengthen it
    cyclic=("yaw",),
    axes={"yaw": Axis(turn, is_rate=True, gain="wheelbase")},
    horizon=20,
    dt=0.1,
)
