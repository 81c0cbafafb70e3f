# SPDX-License-Identifier: Apache-2.0
"""Sources of obstacles: the newest obstacles of each one, moved into the frame of the state.

Only the circles of the newest ``obstacles`` and the hits of the newest ``scan`` count. An update
of a part of a ``costmap`` renews the age of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.frames import Frames, Pose
from mpc_banded.control.obstacles_ahead import Cloud
from mpc_banded.robots.messages import frame_of, stamp_ns_of
from mpc_banded.robots.obstacle_messages import (
    CIRCLE,
    Grid,
    read_circles,
    read_costmap,
    read_grid,
    read_scan,
)


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


NOTHING = Seen(np.empty((0, len(CIRCLE))), Cloud(np.empty((0, 2))))


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
