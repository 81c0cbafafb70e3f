# SPDX-License-Identifier: Apache-2.0
"""Shows the plan, the reference and the obstacles in RViz and Foxglove."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.tick import Tick
from mpc_banded.robots import messages

#: Height of the cylinder that shows a circle, in m.
HEIGHT_M = 0.5
COLOUR = (0.85, 0.3, 0.2, 0.7)


class Visualization:
    """Publishes ``~/optimal_path``, ``~/reference`` and ``~/obstacles`` if they have subscribers.

    Args:
        node: The node that publishes.
        loop: The control loop to show.
    """

    def __init__(self, node: Node, loop: ControlLoop) -> None:
        self._node, self._loop = node, loop
        planar = loop.robot.planar
        self._planar = None if planar is None or planar.yaw is None else planar
        self._plans = node.create_publisher(Path, "~/optimal_path", 1) if self._planar else None
        self._references = node.create_publisher(Path, "~/reference", 1) if self._planar else None
        self._markers = (
            node.create_publisher(MarkerArray, "~/obstacles", 1) if loop.robot.obstacles else None
        )

    def publish(self, tick: Tick, header: Header) -> None:
        """Publish the topics that have subscribers.

        Args:
            tick: The newest tick.
            header: Header with the frame of the state.
        """
        step = tick.step
        if step and self._planar and self._plans and self._plans.get_subscription_count():
            self._plans.publish(_path(self._planar.poses(step.plan.states), header))
        if self._markers and self._markers.get_subscription_count():
            self._markers.publish(self._obstacle_markers(tick, header))
        if tick.step is not None and self._references:
            ahead = self._loop.reference_ahead
            if self._references.get_subscription_count() and set(messages.POSE) <= set(ahead):
                poses = np.column_stack([ahead[name] for name in messages.POSE])
                self._references.publish(_path(poses, header))

    def close(self) -> None:
        """Destroy all publishers."""
        for publisher in (self._plans, self._references, self._markers):
            if publisher is not None:
                self._node.destroy_publisher(publisher)

    def _obstacle_markers(self, tick: Tick, header: Header) -> MarkerArray:
        cleared = Marker(header=header, action=Marker.DELETEALL)
        circles = self._loop.obstacles.circles(tick.now_ns).tolist()
        return MarkerArray(
            markers=[cleared, *(_cylinder(i, c, header) for i, c in enumerate(circles))]
        )


def _path(poses: np.ndarray, header: Header) -> Path:
    message = Path(header=header)
    messages.fill_path(message, poses, PoseStamped)
    return message


def _cylinder(number: int, circle: list[float], header: Header) -> Marker:
    x, y, radius = circle[:3]
    marker = Marker(header=header, ns="obstacles", id=number, type=Marker.CYLINDER)
    marker.pose.position.x, marker.pose.position.y = x, y
    marker.pose.position.z = 0.5 * HEIGHT_M
    marker.pose.orientation.w = 1.0
    marker.scale.x = marker.scale.y = max(2.0 * radius, 1e-3)
    marker.scale.z = HEIGHT_M
    marker.color.r, marker.color.g, marker.color.b, marker.color.a = COLOUR
    return marker
