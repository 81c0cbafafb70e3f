# SPDX-License-Identifier: Apache-2.0
"""What RViz and Foxglove draw: the optimised plan, the reference and the obstacles."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from mpc_banded.control.loop import ControlLoop, Tick
from mpc_banded.robots import messages

#: Height of a circle that is drawn as a cylinder, in m.
HEIGHT_M = 0.5
COLOUR = (0.85, 0.3, 0.2, 0.7)


class Drawing:
    """Publishes ``~/optimal_path``, ``~/reference`` and ``~/obstacles`` to those who listen.

    Args:
        node: That publishes.
        loop: What is drawn.
    """

    def __init__(self, node: Node, loop: ControlLoop) -> None:
        self._node, self._loop = node, loop
        planar = {"x", "y", "yaw"} <= set(loop.robot.states)
        self._plans = node.create_publisher(Path, "~/optimal_path", 1) if planar else None
        self._references = node.create_publisher(Path, "~/reference", 1) if planar else None
        self._markers = (
            node.create_publisher(MarkerArray, "~/obstacles", 1) if loop.robot.obstacles else None
        )

    def draw(self, tick: Tick, header: Header) -> None:
        """Publish what somebody listens to.

        Args:
            tick: The newest.
            header: With the frame of the state.
        """
        if tick.step is not None and self._plans and self._plans.get_subscription_count():
            # Exactly what was optimised.
            columns = [self._loop.robot.states.index(name) for name in ("x", "y", "yaw")]
            self._plans.publish(_path(tick.step.plan.states[:, columns], header))
        if self._markers and self._markers.get_subscription_count():
            self._markers.publish(self._obstacles(tick, header))
        if tick.step is not None and self._references:
            ahead = self._loop.reference_ahead
            listened = self._references.get_subscription_count()
            if listened and {"x", "y", "yaw"} <= set(ahead):
                poses = np.column_stack([ahead[name] for name in ("x", "y", "yaw")])
                self._references.publish(_path(poses, header))

    def close(self) -> None:
        """Publish nothing any more."""
        for publisher in (self._plans, self._references, self._markers):
            if publisher is not None:
                self._node.destroy_publisher(publisher)

    def _obstacles(self, tick: Tick, header: Header) -> MarkerArray:
        cleared = Marker(header=header, action=Marker.DELETEALL)
        circles = self._loop.circles(tick.now_ns).tolist()
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
