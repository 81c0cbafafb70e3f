# SPDX-License-Identifier: Apache-2.0
"""Watches a node from outside: publishes one reference, and records every message."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from mpc_banded.control.config import Config
from mpc_banded.offline.drive import Run
from mpc_banded.offline.recording import Recording
from mpc_banded.ros.demo.references import Reference
from mpc_banded.ros.interfaces import message_class

TELEMETRY = (
    *("solve_time_ms", "iterations", "kkt_residual", "defect_norm", "converged"),
    "missed_deadline",
)
BEST_EFFORT = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
#: Called with topic, type, time of receipt in ns, the bytes and the message.
Listener = Callable[[str, str, int, bytes, Any], None]


class Observer:
    """A node in a context of its own that receives given topics and publishes one reference.

    Args:
        topics: Topic -> message type.
        listener: Called for each message.
        reference: Reference to publish once it has a subscriber; None for no reference.
    """

    def __init__(
        self, topics: dict[str, str], listener: Listener, reference: Reference | None
    ) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = Node("mpc_demo", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._listener = listener
        self._pending = reference
        if reference is not None:
            self._publisher = self.node.create_publisher(reference.kind, reference.topic, 1)
            self._own_subscriptions = int(reference.topic in topics)
        for topic, kind in topics.items():
            self._subscribe(topic, kind)

    def spin_once(self, timeout_s: float) -> None:
        """Handle the messages that arrive within a time."""
        pending = self._pending
        if pending and self._publisher.get_subscription_count() > self._own_subscriptions:
            self._publisher.publish(pending.message(self.node.get_clock().now().to_msg()))
            self._pending = None
        self._executor.spin_once(timeout_sec=timeout_s)

    def close(self) -> None:
        """Leave the ROS graph."""
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _subscribe(self, topic: str, kind: str) -> None:
        name = self.node.resolve_topic_name(topic)
        message_type = message_class(kind)

        def pass_on(data: bytes) -> None:
            now_ns = self.node.get_clock().now().nanoseconds
            self._listener(name, kind, now_ns, data, deserialize_message(data, message_type))

        self.node.create_subscription(message_type, topic, pass_on, BEST_EFFORT, raw=True)


class Monitor:
    """Collects the received messages into a run, and records them.

    Args:
        config: Configuration of the watched robot.
        recording: Receives every message.

    Attributes:
        run: States, commands and telemetry so far.
        facts: The newest values in the node's diagnostics by name, and its sentence as "message".
        first_s: Times of the first "state", "cycle" and "command" other than the stop, on the
            clock of the messages.
    """

    def __init__(self, config: Config, recording: Recording) -> None:
        robot = config.robot
        self.run = Run()
        self.facts: dict[str, str] = {}
        self.first_s: dict[str, float] = {}
        self._robot = robot
        self._recording = recording
        self._states = {topic.topic: topic for topic in robot.state_topics}
        self._command = config.command_topic
        self._stop = robot.stop_values(config.parameters.model)
        self._parts: dict[str, dict[str, float]] = {}
        self.topics = {
            **{topic.topic: topic.type for topic in robot.state_topics},
            self._command.topic: self._command.type,
            **{f"mpc_node/telemetry/{name}": "std_msgs/msg/Float64" for name in TELEMETRY},
            "diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
            **{topic.topic: topic.type for topic in robot.reference_topics},
        }
        if robot.planar is not None:
            self.topics["mpc_node/optimal_path"] = "nav_msgs/msg/Path"

    @property
    def driving(self) -> bool:
        """Whether a command other than the stop has been received."""
        return "command" in self.first_s

    def take(self, topic: str, kind: str, now_ns: int, data: bytes, message: Any) -> None:
        """Take one message."""
        self._recording.write(topic, kind, now_ns, data)
        now_s = 1e-9 * now_ns
        name = topic.removeprefix("/")
        if name in self._states:
            self._parts[name] = dict(self._states[name].read(message))
            if len(self._parts) == len(self._states):
                state = {key: x for part in self._parts.values() for key, x in part.items()}
                self.run.states.append((now_s, state))
                self.first_s.setdefault("state", now_s)
        elif name == self._command.topic:
            self.run.commands.append((now_s, dict(self._command.read(message))))
            if not self.driving and self._moves(self.run.commands[-1][1]):
                self.first_s["command"] = self.run.started_s = now_s
        elif kind == "std_msgs/msg/Float64":
            self.run.telemetry.setdefault(Path(name).name, []).append((now_s, message.data))
            self.first_s.setdefault("cycle", now_s)
        elif name == "diagnostics":
            for status in message.status:
                self.facts |= {pair.key: pair.value for pair in status.values}
                self.facts["message"] = status.message
            if self.facts.get("cycles", "0") != "0":  # one that solves nothing has no telemetry
                self.first_s.setdefault("cycle", now_s)

    def _moves(self, command: Mapping[str, float]) -> bool:
        """Return whether a command differs from the one that stops the robot where it is."""
        return any(
            value != self._stop.get(name, 0.0)
            for name, value in command.items()
            if "@" not in name or "_velocity@" in name
        )

    def line(self) -> str:
        """Return the newest values in one line."""
        last = {name: pairs[-1][1] for name, pairs in self.run.telemetry.items()}
        if not last or not self.run.states:
            return ""
        state = self._robot.state(self.run.states[-1][1])
        pairs = zip(self._robot.states[:2], state, strict=False)
        shown = "  ".join(f"{name} {x:6.2f}" for name, x in pairs)
        return (
            f"{last.get('solve_time_ms', math.nan):5.1f} ms  "
            f"{last.get('iterations', math.nan):2.0f} Newton  {shown}"
        )
