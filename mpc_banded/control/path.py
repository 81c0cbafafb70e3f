# SPDX-License-Identifier: Apache-2.0
"""References that follow legs: a planar path, or the way to a goal.

Progress never decreases, and a path that is sent again takes over the progress of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mpc_banded.control.dubins import Pose
from mpc_banded.control.legs import END, TURNED, Base, CutOptions, Leg, cut_path, goal_legs
from mpc_banded.control.speed import SpeedProfile, turn

#: Largest magnitude of a coordinate, in m.
FARTHEST = 1e7
#: Speed at which a base counts as standing, in m/s.
STANDING = 0.05
#: Distance ahead to search for the point nearest to the base, in m and in s of travel.
WINDOW, WINDOW_S = 0.3, 1.0
#: Difference in distance below which two stretches of a path are equally near, in m.
AMBIGUITY = 0.2
#: Distance between places that are the same on a path and on its successor, in m.
AWAY = 0.2
#: Heading error in rad beyond which a car does not get onto a path by steering.
TURNED_AWAY = 1.4
#: Distance between the ends of two paths that lead to the same goal, in m.
SAME_GOAL = 0.3


class LegReference:
    """Follows legs one after the other, as fast as the base can and the operator wants.

    Args:
        legs: At least one leg.
        speed: Speed along the path in m/s.
        base: Abilities of the base.
        cut: Options for going on to the next leg.

    Attributes:
        legs: The legs.
    """

    def __init__(self, legs: list[Leg], speed: float, base: Base, cut: CutOptions) -> None:
        self.legs, self._speed, self._base, self._cut = legs, float(speed), base, cut
        self.begin_again()

    def begin_again(self) -> None:
        """Search for the base on the whole path, because it was moved or has not driven yet."""
        self._begins = np.concatenate([[0.0], np.cumsum([leg.length for leg in self.legs])])
        self._profiles: dict[int, SpeedProfile] = {}
        self._leg = 0
        self._along: float | None = None  # arc length on the leg; None before the first search
        self._pivot: np.ndarray | None = None  # where the turn on the spot began
        self._angle_left = math.inf  # of that turn

    @property
    def speed(self) -> float:
        """Wanted speed along the path in m/s; may be set while the base drives."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        if speed != self._speed:
            self._speed, self._profiles = float(speed), {}

    @property
    def base(self) -> Base:
        """Abilities of the base; may be set while it drives."""
        return self._base

    @base.setter
    def base(self, base: Base) -> None:
        if base != self._base:
            self._base, self._profiles = base, {}

    @property
    def length(self) -> float:
        """Length of the path in m."""
        return float(self._begins[-1])

    @property
    def goal(self) -> Pose:
        """Pose at the end: x, y in m, yaw in rad."""
        last = self.legs[-1]
        return float(last.points[-1, 0]), float(last.points[-1, 1]), float(last.yaws[-1])

    @property
    def progress(self) -> float | None:
        """Distance driven in m; None before the first search for the base."""
        return None if self._along is None else float(self._begins[self._leg] + self._along)

    def distance(self, position: np.ndarray) -> float:
        """Return the distance in m from a position (2,) to the whole path."""
        return float(min(leg.project(np.asarray(position))[0].min() for leg in self.legs))

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Move the progress on; return x, y, yaw, v, vy (in the base's frame) ahead."""
        del now_s
        position = np.array([state["x"], state["y"]])
        yaw, v, w = (state.get(name, 0.0) for name in ("yaw", "v", "w"))
        if self._along is None:
            self._leg, self._along = self._first(position)
        self._advance(position, yaw, math.hypot(v, state.get("vy", 0.0)))
        leg = self.legs[self._leg]
        zero = np.zeros(len(times))
        if leg.is_turn:
            if self._pivot is None:
                # It turns where it stands, and cannot correct its position at the same time.
                near = math.dist(position, leg.points[0]) <= self._cut.tolerance
                self._pivot = position if near else leg.points[0]
            target = leg.yaws[-1]
            left = self._left_to_turn(leg, yaw)
            self._angle_left = abs(left)
            turned = turn(left, w, times, self._base.limits)
            return {
                "x": zero + self._pivot[0],
                "y": zero + self._pivot[1],
                "yaw": target - left + turned,
                "v": zero,
                "vy": zero,
            }
        along = -v if leg.backwards else v
        if self._base.strafes:
            along = math.hypot(v, state.get("vy", 0.0))
        s, speeds = self._profile(self._leg).travel(self._along, along, times)
        heading, tangent = np.interp(s, leg.arc, leg.yaws), leg.tangent_at(s)
        toward = tangent - heading
        if not self._base.strafes:
            toward = zero + (math.pi if leg.backwards else 0.0)
        return {
            "x": np.interp(s, leg.arc, leg.points[:, 0]),
            "y": np.interp(s, leg.arc, leg.points[:, 1]),
            "yaw": heading,
            "v": speeds * np.cos(toward),
            "vy": speeds * np.sin(toward) if self._base.strafes else zero,
        }

    def ended(self, now_s: float) -> bool:
        """Return whether the base has driven to the end of the path."""
        del now_s
        last = self.legs[-1]
        if self._along is None or self._leg < len(self.legs) - 1:
            return False
        if last.is_turn:
            return self._angle_left <= TURNED
        return self._along >= last.length - END

    def trouble(self, state: Mapping[str, float]) -> str | None:
        """Return why the base cannot follow from where it is: a car that looks elsewhere."""
        if self._base.pivots or self._base.strafes or "yaw" not in state:
            return None
        index, s = self._leg, self._along
        if s is None:
            index, s = self._first(np.array([state["x"], state["y"]]))
        leg = self.legs[index]
        if leg.is_turn:
            return None
        wanted = float(np.interp(s, leg.arc, leg.yaws))
        error = math.remainder(state["yaw"] - wanted, math.tau)
        if abs(error) <= TURNED_AWAY:
            return None
        facing, off = (math.degrees(math.remainder(a, math.tau)) for a in (wanted, abs(error)))
        return (
            f"the path is driven facing {facing:.0f} degrees here, and the robot, which cannot "
            f"turn on the spot, is {off:.0f} degrees off; send a path that begins as it stands"
        )

    def take_over(self, before: LegReference, position: np.ndarray) -> None:
        """Continue from the progress on a path that this one replaces.

        If both lead to the same goal, the base is at the place on this path that is as far from
        the goal; otherwise at the place near it that is about as far from the new goal.

        Args:
            before: The reference followed so far.
            position: Position of the base, (2,).
        """
        if before.progress is None:
            return
        apart = math.hypot(self.goal[0] - before.goal[0], self.goal[1] - before.goal[1])
        if apart > SAME_GOAL:
            return
        from_end = self.length - (before.length - before.progress)
        index, s = self._place(from_end)
        there = before._point(before._leg, before._along or 0.0)
        if math.dist(self._point(index, s), there) > AWAY:

            def error(place: tuple[int, float]) -> float:
                return abs(self._begins[place[0]] + place[1] - from_end)

            index, s = min(self._near(position), key=error)
        was = before.legs[before._leg]
        if was.is_turn and not self.legs[index].is_turn:
            # A turn that was under way goes on, if this path has it too.
            after = index + 1
            if after < len(self.legs) and self.legs[after].is_turn:
                gap = float(np.linalg.norm(self.legs[after].points[0] - position))
                if gap <= self._cut.tolerance:
                    index, s = after, 0.0
        self._leg, self._along = index, s
        if was.is_turn and self.legs[index].is_turn:
            self._pivot, self._angle_left = before._pivot, before._angle_left

    def _place(self, driven: float) -> tuple[int, float]:
        """Return leg and arc length of the place that is ``driven`` m from the start."""
        index = int(np.searchsorted(self._begins[1:-1], driven, side="right"))
        return index, float(np.clip(driven - self._begins[index], 0.0, self.legs[index].length))

    def _point(self, index: int, s: float) -> tuple[float, float]:
        leg = self.legs[index]
        if leg.is_turn:
            return float(leg.points[0, 0]), float(leg.points[0, 1])
        x, y = (float(np.interp(s, leg.arc, leg.points[:, i])) for i in range(2))
        return x, y

    def _near(self, position: np.ndarray) -> list[tuple[int, float]]:
        """Return leg and arc length of each stretch that passes about as near as any other."""
        found = [leg.project(position) for leg in self.legs]
        bound = min(distances.min() for distances, _ in found) + AMBIGUITY
        places = []
        for index, (distances, along) in enumerate(found):
            close = np.append(distances <= bound, False)
            begins = np.flatnonzero(close & ~np.append(False, close[:-1]))
            for begin in begins:
                end = begin + int(np.argmin(close[begin:]))
                nearest = begin + int(np.argmin(distances[begin:end]))
                places.append((index, float(along[nearest])))
        return places

    def _first(self, position: np.ndarray) -> tuple[int, float]:
        """Return the first of the places where the path passes nearly as close as anywhere."""
        return self._near(position)[0]

    def _advance(self, position: np.ndarray, yaw: float, speed: float) -> None:
        """Update the progress, and go on to the next leg after the end of one."""
        assert self._along is not None
        leg = self.legs[self._leg]
        if not leg.is_turn:
            distances, along = leg.project(position, self._along)
            reach = max(WINDOW, WINDOW_S * self.speed)
            ahead = (leg.arc[1:] >= self._along) & (leg.arc[:-1] <= self._along + reach)
            nearest = int(np.argmin(np.where(ahead, distances, np.inf)))
            self._along = max(self._along, float(along[nearest]))
        if self._leg < len(self.legs) - 1 and self._is_driven(leg, position, yaw, speed):
            self._leg, self._along, self._pivot = self._leg + 1, 0.0, None
            self._angle_left = math.inf

    def _is_driven(self, leg: Leg, position: np.ndarray, yaw: float, speed: float) -> bool:
        if leg.is_turn:
            return abs(self._left_to_turn(leg, yaw)) <= TURNED
        assert self._along is not None
        left = leg.length - self._along
        if speed > STANDING or left > max(END, min(self._cut.tolerance, 0.3 * leg.length)):
            return False
        if np.linalg.norm(position - leg.points[-1]) > self._cut.tolerance:
            return False
        if self.legs[self._leg + 1].is_turn or not self._base.pivots:
            return True
        error = abs(math.remainder(yaw - leg.yaws[-1], math.tau))
        return error <= self._cut.yaw_tolerance

    def _left_to_turn(self, leg: Leg, yaw: float) -> float:
        """Return the angle left to turn, the way of the leg unless the other is far shorter."""
        left = math.remainder(leg.yaws[-1] - yaw, math.tau)
        wanted = leg.yaws[-1] - leg.yaws[0]
        if wanted * left < 0.0 and abs(left) > 0.75 * math.pi:
            left += math.copysign(math.tau, wanted)
        return left

    def _profile(self, index: int) -> SpeedProfile:
        if index not in self._profiles:
            leg = self.legs[index]
            self._profiles[index] = SpeedProfile(
                leg.arc, leg.points, self.speed, self._base.limits, leg.backwards
            )
        return self._profiles[index]


class PathReference(LegReference):
    """Follows a planar path.

    Args:
        points: (M, 2) positions in m, in the frame of the state.
        speed: Along the path in m/s.
        yaws: Headings (M,) of the base in rad; by default it looks along the path.
        final_yaw: Heading in rad to turn to at the end.
        base: Abilities of the base; by default it can do anything at once.
        cut: Options for cutting the path.

    Attributes:
        points: The positions.

    Raises:
        ValueError: There is no pose, or a coordinate or orientation is not finite or too large.
    """

    def __init__(
        self,
        points: np.ndarray,
        speed: float,
        yaws: np.ndarray | None = None,
        final_yaw: float | None = None,
        base: Base | None = None,
        cut: CutOptions | None = None,
    ) -> None:
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        if not len(points):
            raise ValueError("the path has no poses")
        _check_numbers("the path", points, [*(() if yaws is None else yaws), final_yaw or 0.0])
        self.points, cut = points, cut or CutOptions()
        base = base or Base(strafes=True)
        super().__init__(cut_path(points, yaws, final_yaw, base, cut), speed, base, cut)


class GoalReference(LegReference):
    """Drives to a pose on the way that suits the base, and stands there.

    A base that moves sideways drives straight and turns meanwhile; one that pivots turns to the
    goal, or its back where that is quicker, drives straight, and turns; a car takes the shortest
    path of its turning radius.

    Args:
        x, y: Position in m, in the frame of the state.
        yaw: Heading in rad.
        speed: Speed on the way in m/s.
        base: Abilities of the base; by default it can do anything at once.
        cut: Options for going on to the next leg.
        start: Pose x, y, yaw of the base; by default its state at the first call of ``columns``.

    Raises:
        ValueError: The pose is not finite or too far away, or a car needs a loop to get there.
    """

    #: Longest way to a goal, as a multiple of its distance and of turning circles.
    DETOUR, CIRCLES = 1.5, 0.5

    def __init__(
        self,
        x: float,
        y: float,
        yaw: float,
        speed: float = math.inf,
        base: Base | None = None,
        cut: CutOptions | None = None,
        start: Pose | None = None,
    ) -> None:
        _check_numbers("the goal", np.array([[x, y]]), [yaw])
        self._goal, base = (float(x), float(y), float(yaw)), base or Base()
        self._started = start is not None
        legs = goal_legs(start or self._goal, self._goal, base)
        super().__init__(legs, speed, base, cut or CutOptions())
        if start is not None and base.turning_radius > 0.0:
            apart, around = math.dist(start[:2], (x, y)), math.tau * base.turning_radius
            if self.length > self.DETOUR * apart + self.CIRCLES * around:
                raise ValueError(
                    f"the goal ({x:.2f}, {y:.2f}) is {apart:.2f} m away, and the way there with a "
                    f"turning radius of {base.turning_radius:.2f} m is {self.length:.1f} m long; "
                    "send a path, or a goal farther ahead"
                )

    @property
    def goal(self) -> Pose:
        """Pose at the end: x, y in m, yaw in rad."""
        return self._goal

    def begin_again(self) -> None:
        """Plan a new way from the base's next pose."""
        self._started = self._started and not hasattr(self, "_leg")
        super().begin_again()

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Plan the way first if needed; return the columns of LegReference."""
        if not self._started:
            start = (state.get("x", 0.0), state.get("y", 0.0), state.get("yaw", 0.0))
            self.legs = goal_legs(start, self._goal, self._base)
            super().begin_again()
            self._started = True
        return super().columns(state, times, now_s)


def _check_numbers(what: str, points: np.ndarray, angles: Sequence[float]) -> None:
    if not np.isfinite(points).all():
        raise ValueError(f"{what} has coordinates that are not finite")
    if (largest := np.abs(points).max()) > FARTHEST:
        raise ValueError(
            f"{what} has a coordinate of {largest:.3g} m; allowed are up to {FARTHEST:g} m"
        )
    if not np.isfinite(angles).all():
        raise ValueError(f"{what} has orientations that are not finite")
