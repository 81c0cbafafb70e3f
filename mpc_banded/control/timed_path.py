# SPDX-License-Identifier: Apache-2.0
"""References of planar paths whose poses have times at which the robot is to be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class TimedPathReference:
    """A planar path with a time for each point; it stands still before and after.

    Args:
        points: Positions (M, 2) in m, in the frame of the state.
        times_s: Increasing times (M,) in s, of the same clock as ``now_s``.
        yaws: Headings (M,) in rad; along the path by default.

    Raises:
        ValueError: A coordinate or an orientation is not finite.
    """

    def __init__(
        self, points: np.ndarray, times_s: np.ndarray, yaws: np.ndarray | None = None
    ) -> None:
        finite: list[Any] = [points, times_s, [] if yaws is None else yaws]
        if not all(np.isfinite(values).all() for values in finite):
            raise ValueError("the path has coordinates or orientations that are not finite")
        self.points, self._times = points, times_s
        self._rates = np.diff(points, axis=0) / np.diff(times_s)[:, None]
        self._yaws = None if yaws is None else np.unwrap(yaws)
        moving = np.linalg.norm(self._rates, axis=1) > 1e-6
        headings = np.arctan2(self._rates[:, 1], self._rates[:, 0])
        # While it stands it keeps its heading.
        last = np.maximum.accumulate(np.where(moving, np.arange(len(moving)), -1))
        first = int(np.argmax(moving))
        self._headings = np.unwrap(headings[np.where(last < 0, first, last)])

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Return x, y, yaw and v along the horizon."""
        del state
        at = now_s + times
        segment = np.searchsorted(self._times, at, side="right") - 1
        inside = (segment >= 0) & (segment < len(self._rates))
        segment = np.clip(segment, 0, len(self._rates) - 1)
        yaw = tangent = self._headings[segment]
        if self._yaws is not None:
            yaw = np.interp(at, self._times, self._yaws)
        speed = np.linalg.norm(self._rates[segment], axis=1)
        return {
            "x": np.interp(at, self._times, self.points[:, 0]),
            "y": np.interp(at, self._times, self.points[:, 1]),
            "yaw": yaw,
            "v": np.where(inside, np.where(np.cos(yaw - tangent) < 0.0, -speed, speed), 0.0),
        }

    @property
    def goal(self) -> tuple[float, float, float]:
        """Where it ends: x, y in m, yaw in rad."""
        last = self._headings[-1] if self._yaws is None else self._yaws[-1]
        return float(self.points[-1, 0]), float(self.points[-1, 1]), float(last)

    def ended(self, now_s: float) -> bool:
        """Return whether the last time is over."""
        return now_s >= self._times[-1]
