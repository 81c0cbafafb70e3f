# SPDX-License-Identifier: Apache-2.0
"""Arm of three servos under velocity commands; its state messages carry no names.

State: angle in rad and velocity in rad/s of each joint, in the order of the message. Input: the
commanded velocities in rad/s, which the joints follow late and not in full. The arm is planar, its
axes point along -x of the tip: the tip turns at minus the sum of the velocities.
"""

import numpy as np
import torch

from mpc_banded.robots import Axis, Robot
from mpc_banded.robots.messages import CommandTopic, ReferenceTopic, StateTopic

JOINTS = ("q1", "q2", "q3")
#: The driver counts the angle of the first joint against its velocity.
SIGNS = (-1.0, 1.0, 1.0)


def state(message):
    """Angles and velocities in order; the driver leaves the names empty."""
    values = {}
    for i, (joint, sign) in enumerate(zip(JOINTS, SIGNS, strict=True)):
        values[joint] = sign * float(message.position[i])
        values[f"{joint}_velocity"] = float(message.velocity[i])
    return values


def fill(message, values):
    """Velocities by name."""
    message.name = list(JOINTS)
    message.position = np.zeros(3)
    message.velocity = np.array([values[f"{joint}_command"] for joint in JOINTS])


def read(message):
    """Velocities; the driver also takes positions on this topic."""
    if any(message.position):
        raise ValueError("it commands positions, not velocities")
    return {
        f"{joint}_command": float(v)
        for joint, v in zip(message.name, message.velocity, strict=True)
    }


def dynamics(x, u, p):
    """Velocities that follow their commands with a first-order lag."""
    velocities = [x[..., 3 + i] for i in range(3)]
    rates = [
        (p[f"{joint}_gain"] * u[..., i] - velocities[i]) / p["velocity_lag"]
        for i, joint in enumerate(JOINTS)
    ]
    return torch.stack(velocities + rates, dim=-1)


def tip(x, u, p):
    """Squared error of the turning rate of the tip."""
    return (x[..., 3:].sum(dim=-1) + p["reference"][..., 0]) ** 2


def effort(x, u, p):
    """Squared commands: the joints share the work."""
    return (u * u).sum(dim=-1)


def axis(joint):
    """The velocity of a joint."""
    return Axis(
        lambda command, model: model[f"{joint}_gain"] * command[f"{joint}_command"],
        gain=f"{joint}_gain",
        lag="velocity_lag",
    )


arm = Robot(
    name="servo arm",
    states=(*JOINTS, *(f"{joint}_velocity" for joint in JOINTS)),
    inputs=tuple(f"{joint}_command" for joint in JOINTS),
    state_message=(StateTopic("servo/out/state", "sensor_msgs/msg/JointState", state),),
    command_message=CommandTopic(
        "servo/in/references/joint_references", "sensor_msgs/msg/JointState", fill, read
    ),
    reference_message=(
        ReferenceTopic(
            "references/ee_velocity",
            "geometry_msgs/msg/TwistStamped",
            lambda message: {"tip_rate": float(message.twist.angular.x)},
        ),
    ),
    reference=("tip_rate",),
    dynamics=dynamics,
    stage_costs={"tip": tip, "effort": effort},
    weights={"tip": 1.0, "effort": 0.05},
    limits={
        **{f"{joint}_velocity": (-0.7, 0.7) for joint in JOINTS},
        **{f"{joint}_command": (-0.7, 0.7) for joint in JOINTS},
    },
    model={"velocity_lag": 0.2, **{f"{joint}_gain": 1.0 for joint in JOINTS}},
    axes={f"{joint}_velocity": axis(joint) for joint in JOINTS},
    horizon=10,
    dt=0.1,
)
