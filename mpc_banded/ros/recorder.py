# SPDX-License-Identifier: Apache-2.0
"""recorder_node: records all that a replay needs, in a process beside mpc_node."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from mpc_banded.offline.recording import FLUSH_S, Recording, RecordingError
from mpc_banded.ros import executable
from mpc_banded.ros.interfaces import RECORDS, installed_types, is_unreliable, message_class

#: The depth of the queue bridges a busy disk. A best-effort subscription receives states and scans
#: from reliable and from best-effort publishers.
STATES = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
OTHERS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
CONTROLLER = "mpc_node"
#: How often the recorder looks for new telemetry, in seconds.
SEARCH_S = 1.0
PURPOSE = "Record the inputs, commands and cycles of mpc_node into a bag for `mpc_banded replay`."


class RecorderTask:
    """Writes the inputs, commands and records of one controller into a bag, as bytes.

    Args:
        node: The node, in the namespace of the controller and with its parameters. The parameter
            ``bag`` names the folder to write; the default is named after the current time.

    Raises:
        ConfigError: A parameter is unknown or its value not allowed.
        ValueError: The folder ``bag`` exists.
    """

    def __init__(self, node: Node) -> None:
        # These import torch; see simulator.py.
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
        self._recorded: set[str] = set()
        self._has_ended = False

    def activate(self) -> None:
        """Start to record."""
        self._recording.__enter__()
        robot, command = self._loop.robot, self._loop.config.command_topic
        states = {topic.topic for topic in robot.state_topics}
        kinds = self._loop.input_topics
        for topic in installed_types(kinds):
            unreliable = topic in states or is_unreliable(kinds[topic])
            self._subscribe(topic, kinds[topic], STATES if unreliable else OTHERS)
        self._subscribe(command.topic, command.type, OTHERS)
        self._subscribe(f"{CONTROLLER}/cycle", "diagnostic_msgs/msg/DiagnosticArray", RECORDS)
        self._subscribe("/parameter_events", "rcl_interfaces/msg/ParameterEvent", OTHERS)
        self._search()
        self._node.create_timer(SEARCH_S, self._search)
        self._node.create_timer(FLUSH_S, self._flush)
        self._node.get_logger().info(f"recording {', '.join(sorted(self._recorded))}")

    def deactivate(self) -> None:
        """Close the bag."""
        try:
            self._recording.__exit__(None, None, None)
        except RecordingError as error:
            self._end(error)
        self._node.get_logger().info(f"recorded: {self._folder}")

    def _search(self) -> None:
        """Subscribe to the telemetry topics that have appeared."""
        prefix = self._node.resolve_topic_name(f"{CONTROLLER}/telemetry") + "/"
        for name, kinds in self._node.get_topic_names_and_types():
            if name.startswith(prefix):
                self._subscribe(name, kinds[0], STATES)

    def _subscribe(self, topic: str, kind: str, qos: QoSProfile) -> None:
        name = self._node.resolve_topic_name(topic)
        if name in self._recorded:
            return
        self._recorded.add(name)
        self._node.create_subscription(
            message_class(kind), topic, partial(self._write, name, kind), qos, raw=True
        )

    def _write(self, name: str, kind: str, data: bytes) -> None:
        if not self._has_ended:
            try:
                self._recording.write(name, kind, self._node.get_clock().now().nanoseconds, data)
            except RecordingError as error:
                self._end(error)

    def _flush(self) -> None:
        """Write waiting messages, also while no new ones come."""
        if not self._has_ended:
            try:
                self._recording.flush()
            except RecordingError as error:
                self._end(error)

    def _end(self, error: RecordingError) -> None:
        """Log once that the recording has ended; the robot drives on without it."""
        if not self._has_ended:
            self._node.get_logger().error(str(error))
        self._has_ended = True


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run recorder_node; the process ends with 0 after a signal, and with 2 if it is refused."""
    name = "recorder_node"
    make = partial(executable.PlainNode, name, RecorderTask)
    executable.run(name, PURPOSE, make, arguments)


if __name__ == "__main__":
    main()
