# SPDX-License-Identifier: Apache-2.0
"""Obstacles: the static circles of the configuration, and moving ones from a topic.

The message is sensor_msgs/PointCloud2, one point for each obstacle, with the fields x, y and
radius in m and, if it moves, vx and vy in m/s. No other standard message names all of these
together with a frame and a stamp: markers have no velocity, and the messages of detectors are not
part of ROS itself. RViz and Foxglove draw it as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.frames import Frames
from mpc_banded.robots.messages import frame_of, stamp_ns_of

TOPIC, TYPE = "obstacles", "sensor_msgs/msg/PointCloud2"
#: A circle that matters to nobody.
UNUSED = (1e4, 1e4, 0.0)
#: Age at which an optional source is forgotten, in s.
OPTIONAL_S = 0.5
#: Most points of a message.
MOST_POINTS = 100_000
#: Datatypes of sensor_msgs/PointField, from 1 on.
_DATATYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
_COLUMNS = ("x", "y", "radius", "vx", "vy")


def read_circles(message: Any) -> np.ndarray:
    """Return rows x, y, radius, vx, vy of a PointCloud2, (M, 5).

    Nothing is allocated before the sizes in the message have been compared with its data.

    Raises:
        ValueError: A field is missing or lies outside of a point, the sizes contradict the data, a
            value is not finite, or a radius is negative.
    """
    fields = {field.name: field for field in message.fields if field.name in _COLUMNS}
    missing = [name for name in _COLUMNS[:3] if name not in fields]
    if missing:
        names = sorted(field.name for field in message.fields)
        raise ValueError(f"obstacles has no fields {missing}; it has {names}")
    count, step, size = message.height * message.width, message.point_step, len(message.data)
    if message.height > 1:
        raise ValueError(f"obstacles has height {message.height}; allowed is one row of points")
    if count > MOST_POINTS:
        raise ValueError(f"obstacles has {count} points; allowed are up to {MOST_POINTS}")
    if size < count * step:
        raise ValueError(f"obstacles has {size} bytes; {count} points need {count * step}")
    if not count:
        return np.empty((0, len(_COLUMNS)))
    kinds = {name: _kind(field, message.is_bigendian, step) for name, field in fields.items()}
    data = np.frombuffer(bytes(message.data), dtype=np.uint8)
    rows = data[: count * step].reshape(count, step)
    result = np.zeros((count, len(_COLUMNS)))
    for name, kind in kinds.items():
        offset = fields[name].offset
        part = np.ascontiguousarray(rows[:, offset : offset + kind.itemsize])
        result[:, _COLUMNS.index(name)] = part.view(kind)[:, 0]
    if not np.isfinite(result).all() or (result[:, 2] < 0.0).any():
        raise ValueError("obstacles has positions, radii or velocities that make no sense")
    return result


def _kind(field: Any, is_bigendian: bool, step: int) -> np.dtype[Any]:
    """Return the type of a field; raises ValueError if it is unknown or lies outside a point."""
    if not 1 <= field.datatype <= len(_DATATYPES):
        raise ValueError(
            f"obstacles has field {field.name!r} of datatype {field.datatype}; allowed are 1 to "
            f"{len(_DATATYPES)}"
        )
    kind = np.dtype((">" if is_bigendian else "<") + _DATATYPES[field.datatype - 1])
    if not 0 <= field.offset <= step - kind.itemsize:
        raise ValueError(
            f"obstacles has field {field.name!r} at byte {field.offset}; a point has {step} bytes "
            f"and the field needs {kind.itemsize}"
        )
    return kind


class Obstacles:
    """The known obstacles, in the frame of the state.

    Args:
        config: Configuration with the static circles and ``obstacle_timeout``.
        frames: Poses of frames in the frame of the state.
    """

    def __init__(self, config: Config, frames: Frames) -> None:
        self._frames = frames
        self._rows = np.empty((0, len(_COLUMNS)))
        self._time_ns: int | None = None  # None: nothing valid has been heard
        self._heard_ns: int | None = None  # when the topic first spoke
        self._rejected = ""
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._config = config
        self._static = config.obstacles()
        self._slots = config.robot.obstacles

    def take(self, message: Any, received_ns: int) -> None:
        """Replace all moving obstacles by those of a message; an empty one removes them.

        Raises:
            LookupError: They are in a frame whose pose is unknown.
            ValueError: The message is not valid.
        """
        if self._heard_ns is None or received_ns < self._heard_ns:
            self._heard_ns = received_ns
        self._rejected = "; the last message was rejected"
        rows = read_circles(message)
        x, y, yaw = self._frames.pose(TOPIC, frame_of(message))
        if (x, y, yaw) != (0.0, 0.0, 0.0):
            turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
            rows[:, :2] = rows[:, :2] @ turn + [x, y]
            rows[:, 3:] = rows[:, 3:] @ turn
        stamp = stamp_ns_of(message)
        stamp_counts = stamp and self._config.parameters.use_header_stamps
        self._time_ns = min(stamp, received_ns) if stamp_counts else received_ns
        self._rows, self._rejected = rows, ""

    def trouble(self, now_ns: int) -> str:
        """Return why the obstacles are not known well enough to drive; empty if they are.

        A source that has spoken once is expected to go on, unless ``obstacle_timeout`` is 0.
        """
        limit_s = self._config.parameters.obstacle_timeout
        if self._heard_ns is None or limit_s <= 0.0:
            return ""
        since_ns = self._heard_ns if self._time_ns is None else self._time_ns
        age_s = 1e-9 * (now_ns - since_ns)
        if 0.0 <= age_s <= limit_s:
            return ""
        return (
            f"the newest valid message on {TOPIC} is {age_s:.2f} s old, obstacle_timeout is "
            f"{limit_s:g} s{self._rejected}"
        )

    def circles(self, now_ns: int) -> np.ndarray:
        """Return all obstacles at ``now_ns`` as x, y, radius, (M, 3)."""
        return self.ahead(now_ns, np.zeros(1))[0]

    def ahead(self, now_ns: int, times: np.ndarray) -> np.ndarray:
        """Return all obstacles as x, y, radius at ``times`` (K,) in s from now, (K, M, 3)."""
        static = np.repeat(self._static[None], len(times), axis=0)
        return np.concatenate([static, self._moving(now_ns, times)], axis=1)

    def chosen(self, circles: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Fill the slots of the robot with the circles that come nearest.

        Args:
            circles: All circles along the horizon, (N + 1, M, 3).
            points: Where the robot will be about then, (N + 1, 2).

        Returns:
            Circles (N + 1, slots, 3); unused slots hold a circle too far away to matter.
        """
        result = np.tile(UNUSED, (len(circles), self._slots, 1))
        count = circles.shape[1]
        if count > self._slots:
            gaps = np.linalg.norm(circles[:, :, :2] - points[:, None], axis=2) - circles[:, :, 2]
            nearest = np.argsort(gaps.min(axis=0), kind="stable")[: self._slots]
            circles = circles[:, np.sort(nearest)]
        result[:, : min(count, self._slots)] = circles
        return result

    def _moving(self, now_ns: int, times: np.ndarray) -> np.ndarray:
        """Return the moving circles at ``times`` (K,) from now, (K, M, 3); none if too old."""
        age_s = 0.0 if self._time_ns is None else 1e-9 * (now_ns - self._time_ns)
        limit_s = self._config.parameters.obstacle_timeout or OPTIONAL_S
        rows = self._rows if 0.0 <= age_s <= limit_s else self._rows[:0]
        result = np.repeat(rows[None, :, :3], len(times), axis=0)
        result[:, :, :2] += (age_s + times)[:, None, None] * rows[None, :, 3:]
        return result
