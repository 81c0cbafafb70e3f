# SPDX-License-Identifier: Apache-2.0
"""The task of mpc_node: hands messages to the control loop, and sends its commands."""

from __future__ import annotations

import gc
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from nav_msgs.msg import Path
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.timer import Timer
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.inputs import GOAL_PATH, SPEED_LIMIT
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.rebuild import Rebuild
from mpc_banded.control.record import Journal
from mpc_banded.ocp.comb import BandwidthError
from mpc_banded.robots import messages
from mpc_banded.ros import interfaces, tf
from mpc_banded.ros.bond import Bond
from mpc_banded.ros.diagnostics import Diagnostics
from mpc_banded.ros.follow_path import ACTION, FollowPath
from mpc_banded.ros.parameters import LiveParameters
from mpc_banded.ros.telemetry import RecordPublisher, Telemetry
from mpc_banded.ros.timing import CycleClock
from mpc_banded.ros.visualization import Visualization

#: Longest time in s to wait until subscribers have the last command.
FAREWELL_S = 0.5


class MpcTask:
    """Runs the control loop on the clock, topics and services of a node.

    The constructor reads the parameters, checks the problem and warms up. Commands start with
    ``activate`` and end with ``deactivate``. One thread does everything without locks: a message
    that arrives during a solve is handled after it.

    Args:
        node: The node.
        live: Its parameters.

    Raises:
        ConfigError: The parameter ``bandwidth`` is smaller than the measured bandwidth.
        ValueError: The package of a message type is not installed.
    """

    def __init__(self, node: Node, live: LiveParameters) -> None:
        torch.set_num_threads(1)  # one core is enough; others need the rest
        self._node, self._live = node, live
        config = live.config
        try:
            self._loop = ControlLoop(config)
        except BandwidthError as error:
            raise ConfigError(
                f"bandwidth is {error.configured}; allowed are 0, which derives it, and "
                f"{error.measured} or more: {error}"
            ) from error
        self._port = interfaces.CommandPort(config)
        inputs = interfaces.installed_types(self._loop.input_topics)
        inputs.pop(GOAL_PATH.topic, None)  # the node itself publishes it
        node.get_logger().info(_summary(config, self._loop))
        self._clock = CycleClock(config.period_s)
        self._journal, self._recorded = Journal(), config
        self._journal.changed(config.values)  # the first record has all of them
        self._rebuild = Rebuild(self._loop, node.get_logger())
        self._loop.warm_up()  # with compiled derivatives if the cache has them
        self._frame = ""
        self._timer: Timer | None = None
        self._activations = 0  # each has its own timer
        self._commands = node.create_publisher(
            self._port.message_class, self._port.topic, interfaces.command_quality(config)
        )
        self._records = RecordPublisher(node)
        self._telemetry = Telemetry(node, self._loop.controller.problem.cost_names)
        self._diagnostics = Diagnostics(node, self._loop, self._commands, self._rebuild)
        self._visualization = Visualization(node, self._loop)
        self._bond, self._follow_path = self._nav2(config)
        self._references = {topic.topic for topic in self._loop.robot.reference_topics}
        self._states = {topic.topic for topic in self._loop.robot.state_topics}
        kinds = self._loop.input_topics
        #: While the node is inactive: topic -> time of receipt of the newest message, and it.
        self._kept: dict[str, tuple[int, Any]] = {}
        self._subscriptions = [
            node.create_subscription(
                kind,
                topic,
                partial(self._on_message, topic),
                interfaces.NEWEST
                if topic in self._states or interfaces.is_unreliable(kinds[topic])
                else 1,
            )
            for topic, kind in inputs.items()
        ]
        self._services = [
            node.create_service(Trigger, "~/reset", self._reset),
            node.create_service(SetBool, "~/enable", self._enable),
        ]
        self._loop.transform = tf.transform_lookup(node)
        live.adopt = self._rebuild.want
        self._rebuild.revert = live.revert
        gc.collect()
        gc.freeze()  # spares the collector a search through what lives as long as the node

    def activate(self) -> None:
        """Start to send commands."""
        self._rebuild.poll()
        self._loop.start()
        self._journal.start()
        self._clock = CycleClock(self._loop.config.period_s)
        kept = sorted(self._kept.items(), key=lambda item: item[1][0])
        for topic, (received_ns, message) in kept:
            self._hand_over(topic, message, received_ns)
        self._kept.clear()
        self._activations += 1
        cycle = partial(self._cycle, self._activations)
        self._timer = self._node.create_timer(self._clock.period_s, cycle)
        self._diagnostics.activate()
        if self._follow_path is not None:
            self._follow_path.activate()
        if self._bond is not None:
            self._bond.form()

    def deactivate(self) -> None:
        """Stop sending commands; the last one stops the robot."""
        if self._timer is None:
            return
        if self._follow_path is not None:
            self._follow_path.deactivate()
        self._send(self._loop.stop_command())
        self._node.destroy_timer(self._timer)
        self._timer = None
        self._diagnostics.deactivate()
        self._commands.wait_for_all_acked(Duration(seconds=FAREWELL_S))
        if self._bond is not None:
            self._bond.end()

    def close(self) -> None:
        """Destroy every topic and service, and end a compilation."""
        gc.unfreeze()
        self._live.adopt = None
        self._rebuild.close()
        if self._follow_path is not None:
            self._follow_path.close()
        self._diagnostics.close()
        self._records.close()
        self._telemetry.close()
        self._visualization.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        for service in self._services:
            self._node.destroy_service(service)
        self._node.destroy_publisher(self._commands)
        self._loop.transform = None

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _nav2(self, config: Config) -> tuple[Bond | None, FollowPath | None]:
        """Make the node a server of Nav2, as far as Nav2's messages are installed."""
        period_s = config.parameters.bond_heartbeat_period
        offers = {"bond": ("bond with a lifecycle manager", period_s > 0.0)}
        if GOAL_PATH.topic in self._loop.input_topics:
            offers["nav2_msgs"] = (f"action {ACTION} and topic {SPEED_LIMIT}", True)
        missing = [package for package in offers if find_spec(package) is None]
        if missing:
            off = " and ".join(f"no {offers[package][0]}" for package in missing)
            self._node.get_logger().info(f"{' and '.join(missing)} not installed: {off}")
        wanted = {name for name, (_, on) in offers.items() if on and name not in missing}
        return (
            Bond(self._node, period_s) if "bond" in wanted else None,
            FollowPath(self._node, self._loop, self._follow, self._begin_again)
            if "nav2_msgs" in wanted
            else None,
        )

    def _follow(self, path: Path) -> str | None:
        return self._hand_over(GOAL_PATH.topic, path, self._now_ns())

    def _begin_again(self) -> None:
        """Drive again after others drove the robot."""
        self._loop.start()
        self._journal.start()

    def _on_message(self, topic: str, message: Any) -> None:
        if topic in self._references and self._follow_path and self._follow_path.has_client:
            return
        if self._timer is None:
            self._kept[topic] = (self._now_ns(), message)
        else:
            self._hand_over(topic, message, self._now_ns())

    def _hand_over(self, topic: str, message: Any, received_ns: int) -> str | None:
        self._journal.received(topic, message, received_ns)
        rejected = self._loop.on_message(topic, message, received_ns)
        if rejected:
            self._diagnostics.count_rejected(topic, rejected)
        elif topic in self._states:
            self._frame = messages.frame_of(message) or self._frame
        return rejected

    def _cycle(self, activation: int) -> None:
        """Run one control cycle: compute a command, send it, and report on it."""
        if self._timer is None or activation != self._activations:
            return  # the executor had this call in its queue when the timer was destroyed
        now_ns = self._now_ns()
        self._clock.begin(self._timer, now_ns)
        self._adopt_changes()
        deadline_s = self._clock.budget_s(self._loop.config.parameters.deadline)
        tick = self._loop.tick(now_ns, deadline_s=deadline_s, latency_s=self._clock.latency_s)
        if self._follow_path is None or not self._follow_path.is_silent:
            self._send(tick.command)
        if self._loop.config.parameters.command_lease:
            self._commands.assert_liveliness()  # also where there is nothing to send
        timing = self._clock.end()
        self._diagnostics.count(tick, timing)
        record = self._journal.cycle(tick, deadline=True, enabled=self._loop.enabled)
        self._records.publish(record)
        self._telemetry.publish(tick, timing, self._diagnostics.counters)
        self._visualization.publish(tick, self._header())
        if self._follow_path is not None:
            self._follow_path.report(tick, self._header())
            self._diagnostics.is_shared = self._follow_path.has_client

    def _adopt_changes(self) -> None:
        """Adopt the parameters set and the controllers built since the last cycle."""
        self._rebuild.poll()
        before, after = self._recorded, self._loop.config
        self._journal.derivatives = self._rebuild.derivatives
        if after is before:
            return
        self._recorded = after
        values = after.values.items()
        self._journal.changed({name: x for name, x in values if x != before.values[name]})
        if self._timer is not None and after.period_s != self._clock.period_s:
            self._clock.change(after.period_s)
            self._timer.timer_period_ns = int(1e9 * after.period_s)
            self._timer.reset()

    def _send(self, values: messages.Values) -> None:
        if values:  # a robot commanded by positions cannot be stopped before its first state
            stamp = self._node.get_clock().now().to_msg()
            self._commands.publish(self._port.message(values, stamp))

    def _header(self) -> Header:
        return Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._frame)

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._loop.reset()
        self._journal.reset()
        response.success, response.message = True, "the next solve starts cold"
        return response

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._loop.enabled = request.data
        response.success = True
        response.message = "enabled" if request.data else "disabled: the robot is kept stopped"
        return response


def _summary(config: Config, loop: ControlLoop) -> str:
    """Summarise the configuration in one line."""
    problem, transcription = loop.controller.problem, loop.controller.transcription
    bandwidth = config.parameters.bandwidth or f"{transcription.half_bandwidth} (derived)"
    defaults = {name: entry.default for name, entry in config.table.items()}
    changed = {name: x for name, x in config.values.items() if x != defaults[name]}
    return (
        f"{config.robot.name}: horizon {problem.horizon} x {problem.dt:g} s, "
        f"{transcription.scheme}, half bandwidth {bandwidth}, "
        f"{config.parameters.controller_frequency:g} Hz; other than default: "
        f"{', '.join(f'{name} {value}' for name, value in changed.items()) or 'none'}"
    )
