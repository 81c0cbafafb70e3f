# SPDX-License-Identifier: Apache-2.0
"""The known obstacles: the static circles of the configuration, and those of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.frames import Frames
from mpc_banded.control.obstacle_sources import Source
from mpc_banded.control.obstacles_ahead import UNUSED, Ahead
from mpc_banded.robots.obstacle_messages import SOURCES

#: Distance in m beside a way up to which obstacles matter; no detour leads farther.
BESIDE = 3.0


class Obstacles:
    """The known obstacles, in the frame of the state.

    Args:
        config: Configuration with the static circles and the timeouts.
        frames: Poses of frames in the frame of the state.

    Attributes:
        topics: Relative name of each topic -> message type.
    """

    def __init__(self, config: Config, frames: Frames) -> None:
        wanted = config.parameters.obstacle_sources if config.robot.obstacles else []
        self.topics = {topic: kind for topic, kind in SOURCES.items() if topic in wanted}
        named = [topic for topic in self.topics if not topic.endswith("_updates")]
        self._sources = {topic: Source(topic, config, frames) for topic in named}
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._static = np.pad(config.obstacles(), ((0, 0), (0, 2)))
        self._footprint = config.footprint
        for source in self._sources.values():
            source.adopt(config)

    def take(self, topic: str, message: Any, received_ns: int) -> None:
        """Replace what the source of a topic saw before.

        Raises:
            LookupError: It is in a frame whose pose is unknown.
            ValueError: The message is not valid.
        """
        self._sources[topic.removesuffix("_updates")].take(topic, message, received_ns)

    def trouble(self, now_ns: int) -> str:
        """Return why the obstacles are not known well enough to drive; empty if they are."""
        troubles = (source.trouble(now_ns) for source in self._sources.values())
        return next(filter(None, troubles), "")

    def circles(self, now_ns: int) -> np.ndarray:
        """Return all circles at ``now_ns`` as x, y, radius, (M, 3)."""
        return self._rows(now_ns)[:, :3]

    def ahead(
        self, now_ns: int, times: np.ndarray, ways: Sequence[np.ndarray], stopping_s: float
    ) -> Ahead:
        """Return the obstacles along a horizon.

        What moves may stop dead. So until the robot could have come to a stop itself, it counts
        not only where it will be, but also where it is at the beginning.

        Args:
            now_ns: Its beginning.
            times: Of its stages, in s from then on, (N + 1,).
            ways: Where the robot may be: x, y, yaw at each stage, (N + 1, 3) each. The first one
                begins where it is.
            stopping_s: Time in which the robot drives as far as it needs to come to a stop, in s.
        """
        places = np.concatenate(ways)[:, :2]
        beside = BESIDE + self._footprint.reach
        low, high = places.min(axis=0) - beside, places.max(axis=0) + beside
        rows = self._rows(now_ns)
        reach = rows[:, 2] + np.hypot(rows[:, 3], rows[:, 4]) * times[-1]
        near = (rows[:, :2] + reach[:, None] >= low) & (rows[:, :2] - reach[:, None] <= high)
        rows = rows[near.all(axis=1)]
        circles = np.repeat(rows[None, :, :3], len(times), axis=0)
        circles[:, :, :2] += times[:, None, None] * rows[None, :, 3:]
        moving = rows[:, 3:].any(axis=1)
        stopped = np.repeat(rows[None, moving, :3], len(times), axis=0)
        stopped[times > stopping_s] = UNUSED
        circles = np.concatenate([circles, stopped], axis=1)
        clouds = [source.seen(now_ns).cloud.within(low, high) for source in self._sources.values()]
        return Ahead(circles, clouds, ways[0][0], self._footprint)

    def _rows(self, now_ns: int) -> np.ndarray:
        """Return all circles at ``now_ns`` as x, y, radius, vx, vy, (M, 5)."""
        seen = [source.seen(now_ns).rows for source in self._sources.values()]
        return np.concatenate([self._static, *seen])
