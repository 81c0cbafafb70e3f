# SPDX-License-Identifier: Apache-2.0
"""Planar paths as references: followed at constant speed, or by the times of their poses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np


class PathReference:
    """A planar path, followed at constant speed from the point nearest to the robot.

    The nearest point is searched near the last one, so a path may cross itself. At the end of the
    path the reference stands still.

    Args:
        points: Positions (M, 2) in m, in the frame of the state.
        speed: Speed along the path in m/s.
        yaws: Headings (M,) in rad; along the path by default. Where they point backwards, the
            robot drives backwards.
        final_yaw: Heading at the end in rad.

    Attributes:
        progress: Arc length of the nearest point in m; None until the path is followed.

    Raises:
        ValueError: Fewer than two distinct points, or a coordinate that is not finite.
    """

    #: How far from the last nearest point the next one is searched, in s at ``speed``.
    WINDOW_S = 1.0
    #: Two stretches of the path whose distances differ by less are equally near, in m.
    AMBIGUITY_M = 0.2

    def __init__(
        self,
        points: np.ndarray,
        speed: float,
        yaws: np.ndarray | None = None,
        final_yaw: float | None = None,
    ) -> None:
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError("the path has coordinates that are not finite")
        angles = [] if final_yaw is None else [final_yaw]
        if not np.isfinite([*angles, *([] if yaws is None else yaws)]).all():
            raise ValueError("the path has orientations that are not finite")
        moved = np.linalg.norm(np.diff(points, axis=0), axis=1)
        kept = np.concatenate([[True], moved > 1e-9])[: len(points)]
        points = points[kept]
        self.yaws = None if yaws is None else np.unwrap(np.asarray(yaws)[kept])
        self.final_yaw = final_yaw
        if len(points) < 2:
            raise ValueError(f"the path has {len(points)} distinct points; it needs at least 2")
        self.points = points
        self.speed = float(speed)
        segments = np.diff(points, axis=0)
        self._lengths = np.linalg.norm(segments, axis=1)
        self._starts = np.concatenate([[0.0], np.cumsum(self._lengths)])
        headings = np.unwrap(np.arctan2(segments[:, 1], segments[:, 0]))
        self._headings = np.concatenate([headings, headings[-1:]])
        self.progress: float | None = None

    @property
    def length(self) -> float:
        """Length of the path in m."""
        return float(self._starts[-1])

    def distance(self, position: np.ndarray) -> float:
        """Return the distance of a position (2,) from the whole path in m."""
        return float(np.sqrt(self._project(position)[0].min()))

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Return x, y, yaw and v along the horizon; moves the nearest point on."""
        del now_s
        self.progress = self._nearest(np.array([state["x"], state["y"]]))
        along = self.progress + self.speed * times
        ended = along >= self.length
        along = np.minimum(along, self.length)
        yaw = tangent = self._heading_at(along)
        if self.yaws is not None:
            yaw = np.interp(along, self._starts, self.yaws)
        elif self.final_yaw is not None:
            yaw = np.where(ended, self.final_yaw, tangent)
        backwards = np.cos(yaw - tangent) < 0.0
        return {
            "x": np.interp(along, self._starts, self.points[:, 0]),
            "y": np.interp(along, self._starts, self.points[:, 1]),
            "yaw": yaw,
            "v": np.where(ended, 0.0, np.where(backwards, -self.speed, self.speed)),
        }

    def ended(self, now_s: float) -> bool:
        """Return whether the robot is at the end of the path."""
        del now_s
        return self.progress is not None and self.progress >= self.length - 1e-3

    def is_same(self, other: object) -> TypeGuard[PathReference]:
        """Return whether another reference is the same path, whatever the progress."""
        return (
            isinstance(other, PathReference)
            and np.array_equal(self.points, other.points)
            and np.array_equal(
                self.yaws if self.yaws is not None else [],
                other.yaws if other.yaws is not None else [],
            )
            and self.final_yaw == other.final_yaw
        )

    def _heading_at(self, along: np.ndarray) -> np.ndarray:
        """Return the heading, interpolated between the middles of segments to turn smoothly."""
        middles = self._starts[:-1] + 0.5 * self._lengths
        return np.interp(along, middles, self._headings[:-1])

    def _project(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances to each segment (M - 1,), and arc lengths of nearest points."""
        segments = np.diff(self.points, axis=0)
        offset = position - self.points[:-1]
        share = np.clip((offset * segments).sum(axis=1) / self._lengths**2, 0.0, 1.0)
        nearest = offset - share[:, None] * segments
        return (nearest**2).sum(axis=1), self._starts[:-1] + share * self._lengths

    def _nearest(self, position: np.ndarray) -> float:
        squared, along = self._project(position)
        if self.progress is None:
            # If the path passes nearly as close several times, the first time counts.
            close = np.sqrt(squared) <= np.sqrt(squared.min()) + self.AMBIGUITY_M
            first = int(np.argmax(close))
            last = first + int(np.argmin(np.append(close[first:], False)))
            return float(along[first + np.argmin(squared[first:last])])
        window = self.WINDOW_S * max(self.speed, 0.1)
        near = (self._starts[1:] >= self.progress - window) & (
            self._starts[:-1] <= self.progress + window
        )
        return float(along[np.argmin(np.where(near, squared, np.inf))])


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

    def ended(self, now_s: float) -> bool:
        """Return whether the last time is over."""
        return now_s >= self._times[-1]
