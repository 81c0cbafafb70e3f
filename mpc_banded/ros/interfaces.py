# SPDX-License-Identifier: Apache-2.0
"""Topics of a robot: which message type each has, and the command's way into its message."""

from __future__ import annotations

import importlib
from typing import Any

from builtin_interfaces.msg import Time
from rclpy.qos import QoSProfile, ReliabilityPolicy

from mpc_banded import messages
from mpc_banded.config import Config

#: Where each kind of state message is listened to.
STATE_TOPICS = {"odometry": "odom", "joint_states": "joint_states"}
#: Takes a state from any publisher, and never an old one for a new one.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
BASE_FRAME = "base_link"


def message_class(name: str) -> Any:
    """The class of a message type, for example ``nav_msgs/msg/Path``."""
    package, _, kind = name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), kind)


def state_class(config: Config) -> Any:
    """The class of the robot's state message."""
    return message_class(messages.STATES[config.robot.state_message][0])


class CommandPort:
    """How a robot's commands travel: topic, type, and both ways between message and values.

    Args:
        config: Of the robot; ``enable_stamped_cmd_vel`` chooses between the two twists.

    Attributes:
        topic: Relative name.
        message_class: Type of the message.
        names: Of the values in a command.
    """

    def __init__(self, config: Config) -> None:
        kind = config.robot.command_message
        self.topic, name = messages.COMMANDS[kind]
        self._is_twist = kind == "twist"
        self._is_stamped = self._is_twist and config["enable_stamped_cmd_vel"]
        if self._is_twist and not self._is_stamped:
            name = "geometry_msgs/msg/Twist"
        self.message_class = message_class(name)
        self.names = tuple(config.robot.stop_values(config.section("model")))

    def message(self, values: messages.Values, stamp: Time) -> Any:
        """A message that carries the values."""
        message = self.message_class()
        if self._is_stamped:
            message.header.stamp, message.header.frame_id = stamp, BASE_FRAME
        if self._is_twist:
            messages.fill_twist(message.twist if self._is_stamped else message, values)
        else:
            message.data = [values[name] for name in self.names]
        return message

    def values(self, message: Any) -> dict[str, float]:
        """The values that a message carries; raises ValueError if their number is wrong."""
        if self._is_twist:
            return messages.twist_values(message.twist if self._is_stamped else message)
        return dict(zip(self.names, message.data, strict=True))
