# SPDX-License-Identifier: Apache-2.0
"""recorder_node: records all that a replay needs, from beside the node that drives."""

from __future__ import annotations

import sys
from datetime import datetime
from functools import partial
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from mpc_banded.offline.recording import Recording
from mpc_banded.ros import process
from mpc_banded.ros.interfaces import RECORDS, message_class

#: As many as may come while the disk is busy. States are offered reliably or not, and a listener
#: that asks for less hears both.
STATES = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
OTHERS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
CONTROLLER = "mpc_node"
#: How often new figures are looked for, in seconds.
SEARCH_S = 1.0


class RecorderTask:
    """Writes inputs, commands and records of one controller into a bag, as bytes.

    Args:
        node: In the namespace of the controller, with the controller's parameters, and ``bag``,
            the folder to write; by default one named after the time, where the process runs.

    Raises:
        ConfigError: A parameter is unknown or its value not allowed.
        ValueError: There is something in the place of ``bag``.
    """

    def __init__(self, node: Node) -> None:
        # Torch comes with these; see simulator.py.
        from mpc_banded.control.config import Config
        from mpc_banded.control.loop import ControlLoop
        from mpc_banded.ros import parameters

        self._node = node
        values = parameters.given(node)
        named = f"mpc_{datetime.now():%Y_%m_%d-%H_%M_%S}"
        folder = Path(str(values.pop("bag", "") or named))
        if folder.exists():
            raise ValueError(
                f"bag is {str(folder)!r}; allowed is a folder that does not exist yet"
            )
        config = Config(values)
        self._loop = ControlLoop(config)
        self._recording = Recording(folder)
        self._folder = folder
        self._heard: set[str] = set()

    def activate(self) -> None:
        """Begin to record."""
        self._recording.__enter__()
        robot, command = self._loop.robot, self._loop.config.command_topic
        states = {topic.topic for topic in robot.state_topics}
        for topic, kind in self._loop.input_topics.items():
            self._listen(topic, kind, STATES if topic in states else OTHERS)
        self._listen(command.topic, command.type, OTHERS)
        self._listen(f"{CONTROLLER}/cycle", "diagnostic_msgs/msg/DiagnosticArray", RECORDS)
        self._listen("/parameter_events", "rcl_interfaces/msg/ParameterEvent", OTHERS)
        self._search()
        self._node.create_timer(SEARCH_S, self._search)
        self._node.get_logger().info(f"recording {', '.join(sorted(self._heard))}")

    def deactivate(self) -> None:
        """Close the bag."""
        self._recording.__exit__(None, None, None)
        self._node.get_logger().info(f"recorded: {self._folder}")

    def _search(self) -> None:
        """Listen to the figures that the controller has by now."""
        prefix = self._node.resolve_topic_name(f"{CONTROLLER}/telemetry") + "/"
        for name, kinds in self._node.get_topic_names_and_types():
            if name.startswith(prefix):
                self._listen(name, kinds[0], STATES)

    def _listen(self, topic: str, kind: str, qos: QoSProfile) -> None:
        name = self._node.resolve_topic_name(topic)
        if name in self._heard:
            return
        self._heard.add(name)
        self._node.create_subscription(
            message_class(kind), topic, partial(self._write, name, kind), qos, raw=True
        )

    def _write(self, name: str, kind: str, data: bytes) -> None:
        self._recording.write(name, kind, self._node.get_clock().now().nanoseconds, data)


def main(arguments: list[str] | None = None) -> int:
    """Run recorder_node; returns 0 when stopped by a signal, 2 if it refuses its configuration."""
    name = "recorder_node"
    return process.run(name, lambda: process.Plain(name, RecorderTask), arguments)


if __name__ == "__main__":
    sys.exit(main())
