# SPDX-License-Identifier: Apache-2.0
"""Torpedo-shaped underwater vehicle that holds heading and depth with its fins.

State (heading, depth): in rad and m, positive down. Input: rudder and elevator in rad, thrust in
per cent. On the topics angles are degrees, in messages of the vehicle's own package.
"""

import math

import torch

from mpc_banded.robots import Axis, Robot
from mpc_banded.robots.messages import CommandTopic, ReferenceTopic, StateTopic, yaw_of

FINS = math.radians(35.0)


def dynamics(x, u, p):
    """Rates in proportion to the fins (Nomoto's model of steering, its lag left out)."""
    heading = p["yaw_gain"] * torch.sin(u[..., 0])
    return torch.stack([heading, p["depth_gain"] * torch.sin(u[..., 1])], dim=-1)


def heading(x, u, p):
    """Heading error, the same after full turns."""
    return 1.0 - torch.cos(x[..., 0] - p["reference"][..., 0])


def depth(x, u, p):
    """Squared error of the depth."""
    return (x[..., 1] - p["reference"][..., 1]) ** 2


def thrust(x, u, p):
    """Squared difference from the thrust that is asked for, in hundredths."""
    return (0.01 * (u[..., 2] - p["reference"][..., 2])) ** 2


def fins(x, u, p):
    """Squared fin angles."""
    return u[..., 0] ** 2 + u[..., 1] ** 2


def fill(message, values):
    """Whole degrees, and the elevators against each other."""
    rudder, elevator = (round(math.degrees(values[name])) for name in ("rudder", "elevator"))
    message.fin = [float(rudder), -float(elevator), float(elevator), 0.0]
    message.thruster = round(values["thrust"])


def read(message):
    """Fin angles in rad."""
    rudder, lower, upper = (math.radians(float(angle)) for angle in message.fin[:3])
    return {"rudder": rudder, "elevator": 0.5 * (upper - lower), "thrust": float(message.thruster)}


def desired(name, scale=1.0):
    """A reference topic that holds one number."""
    kind = f"frost_interfaces/msg/Desired{name.capitalize()}"
    column = {"speed": "thrust"}.get(name, name)
    return ReferenceTopic(
        f"desired_{name}", kind, lambda m: {column: scale * float(getattr(m, f"desired_{name}"))}
    )


vehicle = Robot(
    name="underwater vehicle",
    states=("heading", "depth"),
    inputs=("rudder", "elevator", "thrust"),
    state_message=(
        StateTopic(
            "modem_imu", "sensor_msgs/msg/Imu", lambda m: {"heading": yaw_of(m.orientation)}
        ),
        StateTopic(
            "depth_data",
            "geometry_msgs/msg/PoseWithCovarianceStamped",
            lambda m: {"depth": -float(m.pose.pose.position.z)},
        ),
    ),
    command_message=CommandTopic("controls/command", "frost_interfaces/msg/UCommand", fill, read),
    reference_message=(desired("heading", math.pi / 180.0), desired("depth"), desired("speed")),
    reference=("heading", "depth", "thrust"),
    dynamics=dynamics,
    stage_costs={"heading": heading, "depth": depth, "thrust": thrust, "fins": fins},
    weights={"heading": 20.0, "depth": 2.0, "thrust": 1.0, "fins": 0.2},
    limits={"rudder": (-FINS, FINS), "elevator": (-FINS, FINS), "thrust": (0.0, 100.0)},
    # In 1/s and m/s. A positive rudder turns to smaller headings.
    model={"yaw_gain": -0.2, "depth_gain": 0.3},
    cyclic=("heading",),
    axes={
        "heading": Axis(
            lambda c, m: m["yaw_gain"] * math.sin(c["rudder"]), is_rate=True, gain="yaw_gain"
        ),
        "depth": Axis(
            lambda c, m: m["depth_gain"] * math.sin(c["elevator"]), is_rate=True, gain="depth_gain"
        ),
    },
    horizon=20,
    dt=0.2,
)
