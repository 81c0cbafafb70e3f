# SPDX-License-Identifier: Apache-2.0
"""Sources of obstacles: the newest obstacles of each one, moved into the frame of the state.

- ``obstacles`` holds circles, one for each point, with the fields x, y and radius in m and, if
  they move, vx and vy in m/s. No other standard message names all of these together with a frame
  and a stamp: markers have no velocity, and the messages of detectors are not part of ROS itself.
  RViz and Foxglove draw it as it is.
- ``scan`` holds hits; only those of the newest scan count.
- ``costmap`` and ``costmap_raw`` hold grids; an update of a part renews the age of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_banded.control.ahead import Cloud
from mpc_banded.control.config import Config
from mpc_banded.control.frames import Frames, Pose
from mpc_banded.robots.messages import frame_of, stamp_ns_of
from mpc_banded.robots.sensors import Grid, read_costmap, read_grid, read_scan

#: Most points of a message.
MOST_POINTS = 100_000
#: Datatypes of sensor_msgs/PointField, from 1 on.
_DATATYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
_COLUMNS = ("x", "y", "radius", "vx", "vy")


def read_circles(message: Any) -> np.ndarray:
    """Return rows x, y, radius, vx, vy of a PointCloud2, (M, 5).

    The sizes in the message are compared with its data before any memory is allocated.

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


@dataclass(frozen=True)
class Seen:
    """Obstacles from one message.

    Attributes:
        rows: Circles x, y, radius, vx, vy, (M, 5).
        cloud: Hits.
    """

    rows: np.ndarray
    cloud: Cloud

    def moved(self, pose: Pose) -> Seen:
        """Return them in the frame in which their frame has a pose."""
        x, y, yaw = pose
        if pose == (0.0, 0.0, 0.0):
            return self
        turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        rows = self.rows.copy()
        rows[:, :2] = rows[:, :2] @ turn + [x, y]
        rows[:, 3:] = rows[:, 3:] @ turn
        return Seen(rows, Cloud(self.cloud.hits @ turn + [x, y], self.cloud.cover))


NOTHING = Seen(np.empty((0, len(_COLUMNS))), Cloud(np.empty((0, 2))))


class Source:
    """One source of obstacles.

    A source that has sent a message is expected to go on, unless its timeout is 0.

    Args:
        topic: Relative name.
        config: Configuration of the robot.
        frames: Poses of frames in the frame of the state.
    """

    def __init__(self, topic: str, config: Config, frames: Frames) -> None:
        self.topic, self._frames = topic, frames
        self._seen = NOTHING
        self._grid: Grid | None = None
        self._time_ns: int | None = None  # None before the first valid message
        self._heard_ns: int | None = None  # time of the first message
        self._rejected = ""
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._config = config
        self._timeout = "costmap_timeout" if "costmap" in self.topic else "obstacle_timeout"
        self._limit_s = float(config.values[self._timeout])
        self._forgotten_s = self._limit_s or float(config.table[self._timeout].default)  # type: ignore[arg-type]

    def take(self, topic: str, message: Any, received_ns: int) -> None:
        """Replace the obstacles seen before.

        Args:
            topic: Topic of the source, or of updates to it.
            message: As rclpy or rosbags give it.
            received_ns: Time of receipt.

        Raises:
            LookupError: It is in a frame whose pose is unknown.
            ValueError: The message is not valid.
        """
        if self._heard_ns is None or received_ns < self._heard_ns:
            self._heard_ns = received_ns
        self._rejected = "; the last message was rejected"
        seen, stamp_ns = self._read(topic, message), stamp_ns_of(message)
        self._seen = seen.moved(self._frames.pose(topic, frame_of(message), stamp_ns))
        stamp_counts = stamp_ns and self._config.parameters.use_header_stamps
        self._time_ns = min(stamp_ns, received_ns) if stamp_counts else received_ns
        self._rejected = ""

    def _read(self, topic: str, message: Any) -> Seen:
        if topic == "obstacles":
            return Seen(read_circles(message), NOTHING.cloud)
        if topic == "scan":
            return Seen(NOTHING.rows, Cloud(read_scan(message)))
        if topic != self.topic:
            if self._grid is None:
                raise ValueError(f"{topic} came before {self.topic}")
            self._grid = self._grid.updated(message)
        else:
            self._grid = read_grid(message) if topic == "costmap" else read_costmap(message)
        parameters = self._config.parameters
        hits = self._grid.hits(parameters.costmap_threshold, parameters.allow_unknown)
        return Seen(NOTHING.rows, Cloud(hits, self._grid.cell_radius))

    def trouble(self, now_ns: int) -> str:
        """Return why the source is not known well enough to drive; empty if it is."""
        if self._heard_ns is None or self._limit_s <= 0.0:
            return ""
        since_ns = self._heard_ns if self._time_ns is None else self._time_ns
        age_s = 1e-9 * (now_ns - since_ns)
        if 0.0 <= age_s <= self._limit_s:
            return ""
        return (
            f"the newest valid message on {self.topic} is {age_s:.2f} s old, {self._timeout} is "
            f"{self._limit_s:g} s{self._rejected}"
        )

    def seen(self, now_ns: int) -> Seen:
        """Return the newest obstacles, moved on to ``now_ns``; none if they are too old."""
        age_s = 0.0 if self._time_ns is None else 1e-9 * (now_ns - self._time_ns)
        if not 0.0 <= age_s <= self._forgotten_s:
            return NOTHING
        rows = self._seen.rows.copy()
        rows[:, :2] += age_s * rows[:, 3:]
        return Seen(rows, self._seen.cloud)
