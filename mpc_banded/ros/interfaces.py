# SPDX-License-Identifier: Apache-2.0
"""Message types and quality of service of the topics, and conversion of commands to messages."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy

from mpc_banded.robots import messages
from mpc_banded.robots.obstacle_messages import OPTIONAL_PACKAGES

if TYPE_CHECKING:
    from mpc_banded.control.config import Config

#: Receives states from any publisher, and keeps only the newest one.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
#: A recorder that starts a little later than the node still receives the first records.
RECORDS = QoSProfile(
    depth=100,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
BASE_FRAME = "base_link"
#: Types of messages that sensors publish without caring whether they arrive.
_UNRELIABLE = ("sensor_msgs/msg/LaserScan",)


def message_class(name: str) -> Any:
    """Return the class of a message type, for example ``nav_msgs/msg/Path``.

    Raises:
        ValueError: The package of the type is not installed.
    """
    package, _, kind = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"messages of type {name} are not installed: {error}") from error


def installed_types(topics: Mapping[str, str]) -> dict[str, Any]:
    """Return the classes of the message types of topics, without those that need not be installed.

    Raises:
        ValueError: The package of another type is not installed.
    """
    classes = {}
    for topic, kind in topics.items():
        try:
            classes[topic] = message_class(kind)
        except ValueError:
            if kind.partition("/")[0] not in OPTIONAL_PACKAGES:
                raise
    return classes


def is_unreliable(kind: str) -> bool:
    """Return whether messages of a type are published with best effort."""
    return kind in _UNRELIABLE


def command_quality(config: Config) -> QoSProfile:
    """Return what a subscriber of the commands can ask for: the newest one, in time, or word.

    The liveliness is the topic's: a process whose loop hangs does not look alive.
    """
    quality = QoSProfile(depth=1)
    parameters = config.parameters
    if parameters.command_deadline:
        quality.deadline = Duration(seconds=parameters.command_deadline)
    if parameters.command_lease:
        quality.liveliness = LivelinessPolicy.MANUAL_BY_TOPIC
        quality.liveliness_lease_duration = Duration(seconds=parameters.command_lease)
    return quality


class CommandPort:
    """Converts the commands of a robot to messages and back.

    Args:
        config: Robot configuration; ``enable_stamped_cmd_vel`` chooses between the two twists.

    Attributes:
        topic: Relative name of the topic.
        message_class: Class of the message.
        values: Reads the values of a message; raises ValueError if it carries others.
    """

    def __init__(self, config: Config) -> None:
        command = config.command_topic
        self.topic, self._fill, self.values = command.topic, command.fill, command.read
        self.message_class = message_class(command.type)

    def message(self, values: messages.Values, stamp: Time) -> Any:
        """Return a message that carries the values."""
        message = self.message_class()
        if hasattr(message, "header"):
            message.header.stamp, message.header.frame_id = stamp, BASE_FRAME
        self._fill(message, values)
        return message
