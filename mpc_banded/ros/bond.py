# SPDX-License-Identifier: Apache-2.0
"""Keeps a bond with Nav2's lifecycle manager, a heartbeat that shows that the node is alive.

The protocol is that of bondcpp (github.com/ros/bond_core): both ends of a bond publish their
status on one topic with the same ``id``, and each breaks it by a status that is no longer active.
As in Nav2's servers, the node goes on if the manager falls silent.
"""

from __future__ import annotations

import importlib
import time
import uuid
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from rclpy.timer import Timer

TOPIC = "bond"
#: Constants of bondcpp and of Nav2's lifecycle node: the wait for the first status of the other
#: end, and the longest silence that this end announces to accept, in s.
CONNECT_TIMEOUT_S, HEARTBEAT_TIMEOUT_S = 10.0, 4.0
#: Longest wait until the other end knows that the bond has ended, in s.
FAREWELL_S = 0.1
#: Shortest period of the heartbeat, in s.
SHORTEST_S = 0.01


class Bond:
    """One end of a bond, which is named after its node.

    Args:
        node: The node.
        period_s: Period of the heartbeat.
    """

    def __init__(self, node: Node, period_s: float) -> None:
        self._node, self._period_s = node, max(period_s, SHORTEST_S)
        self._status = importlib.import_module("bond.msg").Status
        self._timer: Timer | None = None
        self._publisher: Publisher[Any] | None = None
        self._subscription: Subscription[Any] | None = None

    def form(self) -> None:
        """Start the heartbeat."""
        self._own, self._other = str(uuid.uuid4()), ""
        self._begun_s = time.monotonic()
        self._publisher = self._node.create_publisher(self._status, TOPIC, 5)
        self._subscription = self._node.create_subscription(self._status, TOPIC, self._take, 100)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self._node.create_timer(self._period_s, self._beat, clock=steady)

    def end(self) -> None:
        """Break the bond."""
        if self._timer is not None:
            self._say(active=False)
        self._stop_beating()
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        if self._publisher is not None:
            self._publisher.wait_for_all_acked(Duration(seconds=FAREWELL_S))
            self._node.destroy_publisher(self._publisher)
        self._publisher = self._subscription = None

    def _beat(self) -> None:
        if self._timer is None:
            return  # the executor had this call in its queue when the timer was destroyed
        if not self._other and time.monotonic() - self._begun_s > CONNECT_TIMEOUT_S:
            self._stop_beating()  # nobody manages this node
        else:
            self._say(active=True)

    def _take(self, status: Any) -> None:
        if self._timer is None or status.id != self._node.get_name():
            return
        if status.instance_id == self._own or self._other not in ("", status.instance_id):
            return
        self._other = status.instance_id
        if not status.active:
            self._say(active=False)
            self._stop_beating()

    def _say(self, active: bool) -> None:
        assert self._publisher is not None
        status = self._status(
            id=self._node.get_name(),
            instance_id=self._own,
            active=active,
            heartbeat_timeout=HEARTBEAT_TIMEOUT_S,
            heartbeat_period=self._period_s,
        )
        status.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(status)

    def _stop_beating(self) -> None:
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        self._timer = None
