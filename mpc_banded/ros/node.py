# SPDX-License-Identifier: Apache-2.0
"""mpc_node: carries messages to the control loop and its commands to the robot."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.timer import Timer
from std_srvs.srv import SetBool, Trigger

from mpc_banded import background, messages
from mpc_banded.background import CompilationFailed
from mpc_banded.cache import NotBuilt
from mpc_banded.config import Config
from mpc_banded.loop import ControlLoop
from mpc_banded.problem import Trajectory
from mpc_banded.ros import interfaces, parameters, process
from mpc_banded.ros.telemetry import Diagnostics, Telemetry
from mpc_banded.tracing import UnsupportedOperation

#: How often one kind of warning is repeated, and how long the last command may take to go out.
REPEAT_S, FAREWELL_S = 5.0, 0.5
#: Share of each new measurement in the expected time from tick to command.
LATENCY_GAIN = 0.2


class MpcTask:
    """Steps the control loop on the node's clock, between its topics and services.

    Building it reads the parameters, checks the problem and warms up, and commands nothing;
    that begins with ``activate`` and ends with ``deactivate``. One thread does everything, so
    nothing needs a lock: what arrives during a solve is handled after it.

    Args:
        node: Whose parameters, topics and clock are used.

    Raises:
        ConfigError: A parameter is unknown or its value not allowed.
        BandwidthError: The parameter ``bandwidth`` is smaller than what was measured.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        config = parameters.declare(node)
        self._loop = ControlLoop(config)
        self._period_s = config.period_s
        self._deadline_s = config["deadline"] * config.period_s
        self._latency_s = 0.0
        self._frame = ""
        self._timer: Timer | None = None
        self._telemetry = Telemetry(node, self._loop.controller.problem.cost_names)
        self._diagnostics = Diagnostics(node)
        self._port = interfaces.CommandPort(config)
        self._commands = node.create_publisher(self._port.message_class, self._port.topic, 1)
        planar = {"x", "y", "yaw"} <= set(config.robot.states)
        self._paths = node.create_publisher(Path, "~/optimal_path", 1) if planar else None
        self._subscribe()
        node.create_service(Trigger, "~/reset", self._reset)
        node.create_service(SetBool, "~/enable", self._enable)
        parameters.keep_weights_live(node, config, self._loop.controller)
        node.get_logger().info(_summary(config, self._loop))
        self._compilation = self._begin_compilation(config) if config["compile"] else None
        self._loop.warm_up()

    def activate(self) -> None:
        """Begin to command."""
        self._timer = self._node.create_timer(self._period_s, self._cycle)

    def deactivate(self) -> None:
        """Cease to command; the last command is a stop."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        self._send(self._loop.stop_command())
        self._commands.wait_for_all_acked(Duration(seconds=FAREWELL_S))
        self._end_compilation()

    def _subscribe(self) -> None:
        states = {topic.topic for topic in self._loop.robot.state_topics}
        for topic, kind in self._loop.input_topics.items():
            take = partial(self._on_message, topic, topic in states)
            quality = interfaces.NEWEST if topic in states else 1
            self._node.create_subscription(interfaces.message_class(kind), topic, take, quality)

    def _on_message(self, topic: str, is_state: bool, message: Any) -> None:
        if is_state and hasattr(message, "header"):
            self._frame = message.header.frame_id
        now_ns = self._node.get_clock().now().nanoseconds
        rejected = self._loop.on_message(topic, message, now_ns)
        if rejected:
            self._diagnostics.counters.rejected_messages += 1
            self._node.get_logger().warning(
                f"{topic} rejected: {rejected}", throttle_duration_sec=REPEAT_S
            )

    def _cycle(self) -> None:
        began = time.perf_counter()
        now_ns = self._node.get_clock().now().nanoseconds
        tick = self._loop.tick(now_ns, deadline_s=self._deadline_s, latency_s=self._latency_s)
        self._send(tick.command)
        self._latency_s += LATENCY_GAIN * (time.perf_counter() - began - self._latency_s)
        missed = time.perf_counter() - began > self._period_s
        if tick.step is not None:
            self._publish_path(tick.step.plan)
        self._telemetry.publish(tick, missed)
        self._diagnostics.count(tick, missed)
        if self._compilation is not None:
            self._use_compiled(self._compilation)

    def _begin_compilation(self, config: Config) -> background.Compilation | None:
        """Take compiled derivatives from the cache, or have them compiled beside the loop."""
        try:
            try:
                self._loop.controller.compile(build=False)
            except NotBuilt as missing:
                return background.begin(config, missing)
            self._now_compiled("from the cache")
        except (UnsupportedOperation, OSError, ValueError) as error:
            self._stay_eager(error)
        return None

    def _now_compiled(self, how: str) -> None:
        self._diagnostics.derivatives = "compiled"
        library = self._loop.controller.library
        self._node.get_logger().info(f"derivatives are compiled, {how}: {library}")

    def _use_compiled(self, compilation: background.Compilation) -> None:
        """Go over to compiled derivatives, between two cycles, once they are there."""
        log = self._node.get_logger()
        try:
            library = compilation.poll()
            if library is None:
                return
            self._loop.controller.load(library)
            self._now_compiled(f"after {compilation.elapsed_s:.1f} s")
        except (CompilationFailed, OSError, ValueError) as error:
            self._stay_eager(error)
        for remark in compilation.remarks:
            log.info(f"the compiler said: {remark}")
        self._end_compilation()

    def _stay_eager(self, error: Exception) -> None:
        self._node.get_logger().warning(
            f"derivatives stay eager, so solves take longer; they are not compiled: {error}"
        )

    def _end_compilation(self) -> None:
        if self._compilation is not None:
            self._compilation.close()
            self._compilation = None

    def _send(self, values: messages.Values) -> None:
        stamp = self._node.get_clock().now().to_msg()
        self._commands.publish(self._port.message(values, stamp))

    def _publish_path(self, plan: Trajectory) -> None:
        """Publish exactly what was optimised, in the frame of the state, if somebody listens."""
        if self._paths is None or not self._paths.get_subscription_count():
            return
        columns = [self._loop.robot.states.index(name) for name in ("x", "y", "yaw")]
        message = Path()
        message.header.frame_id = self._frame
        message.header.stamp = self._node.get_clock().now().to_msg()
        messages.fill_path(message, plan.states[:, columns], PoseStamped)
        self._paths.publish(message)

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._loop.reset()
        response.success, response.message = True, "the next solve starts cold"
        return response

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._loop.enabled = request.data
        response.success = True
        response.message = "enabled" if request.data else "disabled: the robot is kept stopped"
        return response


def _summary(config: Config, loop: ControlLoop) -> str:
    """The configuration in effect, in one line."""
    problem, transcription = loop.controller.problem, loop.controller.transcription
    bandwidth = config["bandwidth"] or f"{transcription.half_bandwidth} (derived)"
    defaults = {name: entry.default for name, entry in config.table.items()}
    changed = {name: x for name, x in config.values.items() if x != defaults[name]}
    return (
        f"{config.robot.name}: horizon {problem.horizon} x {problem.dt:g} s, "
        f"{transcription.scheme}, half bandwidth {bandwidth}, "
        f"{config['controller_frequency']:g} Hz; other than default: "
        f"{', '.join(f'{name} {value}' for name, value in changed.items()) or 'none'}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run mpc_node; returns 0 when stopped by a signal, 2 if it refuses its configuration."""
    return process.run("mpc_node", MpcTask, arguments)


if __name__ == "__main__":
    sys.exit(main())
