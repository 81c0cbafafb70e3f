# SPDX-License-Identifier: Apache-2.0
"""Arm of three servos under velocity commands; its state carries no names.

State (q1, q2, q3): joint angles in rad, in the order of the message. Input: their velocities in
rad/s. The arm is planar, its axes point along -x of the tip: the tip turns at minus their sum.
"""

import numpy as np
import torch

from mpc_banded.messages import CommandTopic, ReferenceTopic, StateTopic
from mpc_banded.robots import Robot

JOINTS = ("q1", "q2", "q3")


def state(message):
    """Positions by order; the driver leaves the names empty."""
    return dict(zip(JOINTS, map(float, message.position), strict=True))


def fill(message, values):
    """Velocities by name."""
    message.name = list(JOINTS)
    message.position = np.zeros(3)
    message.velocity = np.array([values[f"{joint}_velocity"] for joint in JOINTS])


def read(message):
    """Velocities; the driver takes positions on the same topic."""
    if any(message.position):
        raise ValueError("it commands positions, not velocities")
    return {
        f"{joint}_velocity": float(v)
        for joint, v in zip(message.name, message.velocity, strict=True)
    }


def tip(x, u, p):
    """Squared error of the turning rate of the tip."""
    return (u.sum(dim=-1) + p["reference"][..., 0]) ** 2


def effort(x, u, p):
    """Squared velocities: the joints share the work."""
    return (u * u).sum(dim=-1)


arm = Robot(
    name="servo arm",
    states=JOINTS,
    inputs=tuple(f"{joint}_velocity" for joint in JOINTS),
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
    dynamics=lambda x, u, p: torch.stack([u[..., 0], u[..., 1], u[..., 2]], dim=-1),
    stage_costs={"tip": tip, "effort": effort},
    weights={"tip": 1.0, "effort": 0.05},
    limits={f"{joint}_velocity": (-0.7, 0.7) for joint in JOINTS},
    horizon=10,
    dt=0.1,
)
