# SPDX-License-Identifier: Apache-2.0
"""References along the horizon: from a path, a goal or joint positions to ``p["reference"]``.

A reference is asked with the measured state and the stage times, and answers named columns of
shape (N + 1,). Columns that it does not know are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np


class Reference(Protocol):
    """Anything that gives a reference along the horizon."""

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Named columns (N + 1,) for the state at ``now_s``, ``times`` (N + 1,) seconds ahead."""

    def ended(self, now_s: float) -> bool:
        """Whether it moves no further."""


class PathReference:
    """Follows a planar path at constant speed, from the point nearest to the robot.

    The nearest point is searched a little around the last one, so a path may cross itself. At
    its end the reference stands still.

    Args:
        points: (M, 2) positions in m, in the frame of the state.
        speed: Along the path in m/s.
        yaws: (M,) in rad; by default the robot looks along the path. Where it looks back, it
            drives backwards.
        final_yaw: In rad, to turn to at the end.

    Raises:
        ValueError: Fewer than two distinct points, or a coordinate that is not finite.
    """

    #: How far from the last nearest point, in seconds at ``speed``, the next one is looked for.
    WINDOW_S = 1.0
    #: Difference in distance below which two stretches of the path are equally near, in m.
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
        """Distance of a position (2,) from the path, all of it, in m."""
        return float(np.sqrt(self._project(position)[0].min()))

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """x, y, yaw and v along the horizon; moves the nearest point on."""
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
        """Whether the robot is at the end of the path."""
        del now_s
        return self.progress is not None and self.progress >= self.length - 1e-3

    def is_same(self, other: object) -> bool:
        """Whether another reference is the same path, wherever the robot is on it."""
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


class TimedPathReference:
    """Is at each point of a planar path at its time; stands before and after.

    Args:
        points: (M, 2) positions in m, in the frame of the state.
        times_s: (M,) of the clock that ``now_s`` is of, increasing.
        yaws: (M,) in rad; by default along the path.

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
        # Where it stands it looks as it did before.
        last = np.maximum.accumulate(np.where(moving, np.arange(len(moving)), -1))
        first = int(np.argmax(moving))
        self._headings = np.unwrap(headings[np.where(last < 0, first, last)])

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """x, y, yaw and v along the horizon."""
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
        """Whether its last time is over."""
        return now_s >= self._times[-1]


class JointPlanReference:
    """Moves joints through positions at given times; holds the last ones.

    Between points positions are cubic where the plan has velocities, else linear. Until the first
    point it moves straight from where the robot is when the plan begins.

    Args:
        times_s: (M,) from the beginning, increasing.
        columns: Name of a joint, or ``<name>_velocity`` -> (M,).
        begin_s: On the clock that ``now_s`` is of.

    Raises:
        ValueError: Something is not finite, or the times do not increase.
    """

    def __init__(
        self, times_s: np.ndarray, columns: Mapping[str, np.ndarray], begin_s: float
    ) -> None:
        if not all(np.isfinite(values).all() for values in (times_s, *columns.values())):
            raise ValueError("the joint trajectory has values that are not finite")
        if times_s[0] < 0.0 or not (np.diff(times_s) > 0.0).all():
            raise ValueError(
                f"the times of the joint trajectory are {times_s}; they must increase"
            )
        self._times, self._columns, self._begin_s = times_s, dict(columns), begin_s
        self._starts_here = times_s[0] > 0.0

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Positions and velocities along the horizon."""
        if self._starts_here:
            self._start_at(state, max(0.0, min(now_s - self._begin_s, 0.5 * self._times[0])))
        at = now_s - self._begin_s + times
        result = {}
        for name, positions in self._columns.items():
            if not self._is_rate(name):
                rates = self._columns.get(f"{name}_velocity")
                result[name], result[f"{name}_velocity"] = _through(
                    at, self._times, positions, rates
                )
        return result

    def ended(self, now_s: float) -> bool:
        """Whether its last time is over."""
        return now_s - self._begin_s >= self._times[-1]

    def _is_rate(self, name: str) -> bool:
        return (
            name.removesuffix("_velocity") != name
            and name.removesuffix("_velocity") in self._columns
        )

    def _start_at(self, state: Mapping[str, float], time_s: float) -> None:
        self._starts_here = False
        self._times = np.concatenate([[time_s], self._times])
        for name, values in self._columns.items():
            here = state.get(name, 0.0 if self._is_rate(name) else values[0])
            self._columns[name] = np.concatenate([[here], values])


def _through(
    at: np.ndarray, times: np.ndarray, positions: np.ndarray, rates: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and their rates at times (k,) on a curve through points (M,)."""
    if len(times) == 1:
        return np.full(len(at), positions[0]), np.zeros(len(at))
    left = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 2)
    span = times[left + 1] - times[left]
    s = np.clip((at - times[left]) / span, 0.0, 1.0)
    a, b = positions[left], positions[left + 1]
    inside = (at >= times[0]) & (at < times[-1])
    if rates is None:
        return a + s * (b - a), np.where(inside, (b - a) / span, 0.0)
    va, vb = span * rates[left], span * rates[left + 1]
    # The cubic Hermite polynomial and its derivative.
    curve = a + s * va + s**2 * (3.0 * (b - a) - 2.0 * va - vb) + s**3 * (2.0 * (a - b) + va + vb)
    slope = va + 2.0 * s * (3.0 * (b - a) - 2.0 * va - vb) + 3.0 * s**2 * (2 * (a - b) + va + vb)
    return curve, np.where(inside, slope / span, 0.0)


class MovedReference:
    """A planar reference in a frame of its own, which may drift against that of the state.

    Args:
        inner: The reference in its frame.
        pose: Says where its frame lies in that of the state, x, y, yaw; raises LookupError where
            that is not known now, and the last one holds.

    Raises:
        LookupError: The pose is not known.
    """

    def __init__(self, inner: Reference, pose: Callable[[], tuple[float, float, float]]) -> None:
        self.inner, self._pose, self._last = inner, pose, pose()

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """The inner reference's columns, with x, y and yaw in the frame of the state."""
        with suppress(LookupError):
            self._last = self._pose()
        x0, y0, turn = self._last
        c, s = np.cos(turn), np.sin(turn)
        dx, dy = state["x"] - x0, state["y"] - y0
        there = {"x": c * dx + s * dy, "y": c * dy - s * dx, "yaw": state.get("yaw", 0.0) - turn}
        columns = self.inner.columns({**state, **there}, times, now_s)
        x, y = columns["x"], columns["y"]
        moved = {"x": x0 + c * x - s * y, "y": y0 + s * x + c * y, "yaw": columns["yaw"] + turn}
        return {**columns, **moved}

    def ended(self, now_s: float) -> bool:
        """Whether the inner reference has ended."""
        return self.inner.ended(now_s)


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

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """The pose at all times."""
        del state, now_s
        return {name: np.full(len(times), value) for name, value in self._pose.items()}

    def ended(self, now_s: float) -> bool:
        """It never does: it does not move."""
        del now_s
        return False


class JointReference:
    """Holds joint positions.

    Args:
        positions: Name of a joint -> position.
    """

    def __init__(self, positions: Mapping[str, float]) -> None:
        if not np.isfinite(list(positions.values())).all():
            raise ValueError(f"the joint positions {dict(positions)} are not finite")
        self._positions = dict(positions)

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """The positions at all times."""
        del state, now_s
        return {name: np.full(len(times), value) for name, value in self._positions.items()}

    def ended(self, now_s: float) -> bool:
        """It never does: it does not move."""
        del now_s
        return False


def stacked(
    columns: Mapping[str, np.ndarray], names: Sequence[str], times: np.ndarray
) -> np.ndarray:
    """The columns of the given names side by side, (N + 1, names); unknown ones are zero."""
    zero = np.zeros(len(times))
    return np.stack([columns.get(name, zero) for name in names], axis=1)
