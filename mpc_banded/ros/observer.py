# SPDX-License-Identifier: Apache-2.0
"""Watches a node from outside: publishes one reference, and hands on every message it hears."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from mpc_banded.robots import messages

#: Called with topic, type, time of receipt in ns, the bytes and the message.
Listener = Callable[[str, str, int, bytes, Any], None]


class Observer:
    """A node of its own context that listens to given topics.

    Args:
        topics: Topic -> message type.
        listener: Called for each message.
        path: Positions (M, 2) to publish on ``plan`` once somebody listens; None for none.
    """

    def __init__(
        self, topics: dict[str, str], listener: Listener, path: np.ndarray | None
    ) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = Node("mpc_demo", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._listener = listener
        self._path = path
        self._own = int("plan" in topics)
        self._plan = self.node.create_publisher(Path, "plan", 1)
        best_effort = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        for topic, kind in topics.items():
            self._listen(topic, kind, best_effort)

    def spin_once(self, timeout_s: float) -> None:
        """Handle what comes within the time."""
        if self._path is not None and self._plan.get_subscription_count() > self._own:
            self._publish_path(self._path)
            self._path = None
        self._executor.spin_once(timeout_sec=timeout_s)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _publish_path(self, points: np.ndarray) -> None:
        message = Path()
        message.header.frame_id = "odom"
        message.header.stamp = self.node.get_clock().now().to_msg()
        headings = np.arctan2(*np.gradient(points, axis=0).T[::-1])
        messages.fill_path(message, np.column_stack([points, headings]), PoseStamped)
        self._plan.publish(message)

    def _listen(self, topic: str, kind: str, qos: QoSProfile) -> None:
        name = self.node.resolve_topic_name(topic)
        package, _, type_name = kind.split("/")
        message_type = getattr(importlib.import_module(f"{package}.msg"), type_name)

        def hear(data: bytes) -> None:
            now_ns = self.node.get_clock().now().nanoseconds
            self._listener(name, kind, now_ns, data, deserialize_message(data, message_type))

        self.node.create_subscription(message_type, topic, hear, qos, raw=True)
