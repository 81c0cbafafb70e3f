# SPDX-License-Identifier: Apache-2.0
"""References along the horizon: from a path, a goal or joint positions to ``p["reference"]``.

A reference is asked with the measured state and the stage times, and answers named columns of
shape (N + 1,). Columns that it does not know are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np


class Reference(Protocol):
    """Anything that gives a reference along the horizon."""

    def columns(self, state: Mapping[str, float], times: np.ndarray) -> dict[str, np.ndarray]:
        """Named columns (N + 1,) for the measured state at ``times`` (N + 1,) seconds ahead."""


class PathReference:
    """Follows a planar path at constant speed, from the point nearest to the robot.

    The nearest point is searched a little around the last one, so a path may cross itself. At
    its end the reference stands still.

    Args:
        points: (M, 2) positions in m, in the frame of the state.
        speed: Along the path in m/s.

    Raises:
        ValueError: Fewer than two distinct points, or a coordinate that is not finite.
    """

    #: How far from the last nearest point, in seconds at ``speed``, the next one is looked for.
    WINDOW_S = 1.0
    #: Difference in distance below which two stretches of the path are equally near, in m.
    AMBIGUITY_M = 0.2

    def __init__(self, points: np.ndarray, speed: float) -> None:
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError("the path has coordinates that are not finite")
        moved = np.linalg.norm(np.diff(points, axis=0), axis=1)
        points = points[np.concatenate([[True], moved > 1e-9])[: len(points)]]
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
        """Distance of a position (2,) from the path, all of it, in m."""
        return float(np.sqrt(self._project(position)[0].min()))

    def columns(self, state: Mapping[str, float], times: np.ndarray) -> dict[str, np.ndarray]:
        """x, y, yaw and v along the horizon; moves the nearest point on."""
        self.progress = self._nearest(np.array([state["x"], state["y"]]))
        along = self.progress + self.speed * times
        ended = along >= self.length
        along = np.minimum(along, self.length)
        return {
            "x": np.interp(along, self._starts, self.points[:, 0]),
            "y": np.interp(along, self._starts, self.points[:, 1]),
            "yaw": self._heading_at(along),
            "v": np.where(ended, 0.0, self.speed),
        }

    def _heading_at(self, along: np.ndarray) -> np.ndarray:
        """Heading between the middles of neighbouring segments, so that it turns smoothly."""
        middles = self._starts[:-1] + 0.5 * self._lengths
        return np.interp(along, middles, self._headings[:-1])

    def _project(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared distance to each segment (M - 1,), and the arc length of its nearest point."""
        segments = np.diff(self.points, axis=0)
        offset = position - self.points[:-1]
        share = np.clip((offset * segments).sum(axis=1) / self._lengths**2, 0.0, 1.0)
        nearest = offset - share[:, None] * segments
        return (nearest**2).sum(axis=1), self._starts[:-1] + share * self._lengths

    def _nearest(self, position: np.ndarray) -> float:
        squared, along = self._project(position)
        if self.progress is None:
            # Where the path passes nearly as close several times, the first time counts.
            close = np.sqrt(squared) <= np.sqrt(squared.min()) + self.AMBIGUITY_M
            first = int(np.argmax(close))
            last = first + int(np.argmin(np.append(close[first:], False)))
            return float(along[first + np.argmin(squared[first:last])])
        window = self.WINDOW_S * max(self.speed, 0.1)
        near = (self._starts[1:] >= self.progress - window) & (
            self._starts[:-1] <= self.progress + window
        )
        return float(along[np.argmin(np.where(near, squared, np.inf))])


class GoalReference:
    """Stands at a pose: columns x, y, yaw, and zero speed.

    Args:
        x, y: Position in m, in the frame of the state.
        yaw: In rad.
    """

    def __init__(self, x: float, y: float, yaw: float) -> None:
        if not np.isfinite([x, y, yaw]).all():
            raise ValueError(f"the goal ({x}, {y}, {yaw}) is not finite")
        self._pose = {"x": x, "y": y, "yaw": yaw}

    def columns(self, state: Mapping[str, float], times: np.ndarray) -> dict[str, np.ndarray]:
        """The pose at all times."""
        del state
        return {name: np.full(len(times), value) for name, value in self._pose.items()}


class JointReference:
    """Holds joint positions.

    Args:
        positions: Name of a joint -> position.
    """

    def __init__(self, positions: Mapping[str, float]) -> None:
        if not np.isfinite(list(positions.values())).all():
            raise ValueError(f"the joint positions {dict(positions)} are not finite")
        self._positions = dict(positions)

    def columns(self, state: Mapping[str, float], times: np.ndarray) -> dict[str, np.ndarray]:
        """The positions at all times."""
        del state
        return {name: np.full(len(times), value) for name, value in self._positions.items()}


def stacked(
    columns: Mapping[str, np.ndarray], names: Sequence[str], times: np.ndarray
) -> np.ndarray:
    """The columns of the given names side by side, (N + 1, names); unknown ones are zero."""
    zero = np.zeros(len(times))
    return np.stack([columns.get(name, zero) for name in names], axis=1)
