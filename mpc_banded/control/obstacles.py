# SPDX-License-Identifier: Apache-2.0
"""Circles that move, from a topic: kept while they are fresh, and carried along the horizon.

The message is sensor_msgs/PointCloud2, one point an obstacle, with the fields x, y and radius in
m and, where it moves, vx and vy in m/s. It is the one standard message that holds all of them by
name together with a frame and a stamp; markers have no velocity, and the messages of detectors
are not part of ROS itself. RViz and Foxglove draw it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.robots.messages import frame_of, stamp_ns_of

TOPIC, TYPE = "obstacles", "sensor_msgs/msg/PointCloud2"
#: Datatypes of sensor_msgs/PointField, from 1 on.
_DATATYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
#: Says where a frame lies in that of the state: x, y, yaw; raises LookupError if nobody knows.
Placing = Callable[[str], tuple[float, float, float]]


def read_circles(message: Any) -> np.ndarray:
    """Rows x, y, radius, vx, vy of a PointCloud2, (M, 5).

    Raises:
        ValueError: A field is missing, or a value is not finite, or a radius negative.
    """
    order = ">" if message.is_bigendian else "<"
    offsets = {field.name: field for field in message.fields}
    missing = [name for name in ("x", "y", "radius") if name not in offsets]
    if missing:
        raise ValueError(f"obstacles has no fields {missing}; it has {sorted(offsets)}")
    count = message.width * message.height
    data = np.frombuffer(bytes(message.data), dtype=np.uint8)
    if message.height > 1 or len(data) < count * message.point_step:
        raise ValueError(f"obstacles has {len(data)} bytes; {count} points in one row need more")
    rows = data[: count * message.point_step].reshape(count, message.point_step)
    result = np.zeros((count, 5))
    for i, name in enumerate(("x", "y", "radius", "vx", "vy")):
        if name in offsets:
            field = offsets[name]
            kind = np.dtype(order + _DATATYPES[field.datatype - 1])
            part = rows[:, field.offset : field.offset + kind.itemsize]
            result[:, i] = np.ascontiguousarray(part).view(kind)[:, 0]
    if not np.isfinite(result).all() or (result[:, 2] < 0.0).any():
        raise ValueError("obstacles has positions, radii or velocities that make no sense")
    return result


class MovingObstacles:
    """The newest obstacles of the topic, in the frame of the state.

    Args:
        config: With ``max_obstacle_age`` and the slots of the robot.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._rows = np.empty((0, 5))
        self._time_ns = 0

    def take(self, message: Any, received_ns: int, place: Placing) -> None:
        """Replace all obstacles by those of a message; an empty one removes them.

        Raises:
            LookupError: They are in a frame that cannot be related to that of the state.
            ValueError: The message makes no sense.
        """
        rows = read_circles(message)
        frame = frame_of(message)
        if frame:
            x, y, yaw = place(frame)
            turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
            rows[:, :2] = rows[:, :2] @ turn + [x, y]
            rows[:, 3:] = rows[:, 3:] @ turn
        stamp = stamp_ns_of(message)
        looked_at = stamp and self.config["use_header_stamps"]
        self._time_ns = min(stamp, received_ns) if looked_at else received_ns
        self._rows = rows

    def at(self, now_ns: int, times: np.ndarray) -> np.ndarray:
        """Circles x, y, radius at ``times`` (K,) seconds from now, (K, M, 3); none if too old."""
        age_s = 1e-9 * (now_ns - self._time_ns)
        fresh = 0.0 <= age_s <= self.config["max_obstacle_age"]
        rows = self._rows if fresh else self._rows[:0]
        result = np.repeat(rows[None, :, :3], len(times), axis=0)
        result[:, :, :2] += (age_s + times)[:, None, None] * rows[None, :, 3:]
        return result

    def along(
        self, static: np.ndarray, position: np.ndarray, now_ns: int, times: np.ndarray
    ) -> np.ndarray:
        """The slots of the robot filled with static circles first, then the nearest moving ones.

        Args:
            static: (slots, 3), those that the configuration does not use far away.
            position: Of the robot, (2,).
            now_ns: Time of the first stage.
            times: (N + 1,) of the stages, in seconds from then.

        Returns:
            (N + 1, slots, 3), or ``static`` where nothing moves.
        """
        moving = self.at(now_ns, times)
        used = len(self.config["obstacles"]) // 3
        free = len(static) - used
        if not moving.shape[1] or not free:
            return static
        gaps = np.linalg.norm(moving[:, :, :2] - position, axis=2) - moving[:, :, 2]
        nearest = np.argsort(gaps.min(axis=0), kind="stable")[:free]
        result = np.repeat(static[None], len(times), axis=0)
        result[:, used : used + len(nearest)] = moving[:, nearest]
        return result
