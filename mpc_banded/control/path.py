# SPDX-License-Identifier: Apache-2.0
"""Planar paths as planners send them: cut into legs, followed one after the other.

A path is cut where the base reverses or turns on the spot, as Nav2's path handler does
(nav2_controller, ``enforce_path_inversion`` and ``enforce_path_rotation``). A leg is driven in one
direction and ends standing; a turn is a leg of no length. Progress along a path never goes back,
and a republished path takes over the progress of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpc_banded.control.dubins import Pose, dubins_path
from mpc_banded.control.speed import MotionLimits, SpeedProfile, turn

#: Largest magnitude of a coordinate, in m.
FARTHEST = 1e7
#: Poses closer to the last one than this stand at the same place, in m.
SAME_PLACE = 1e-3
#: Distance between the poses among which reversals are looked for, in m: above any noise.
SPACING = 0.04
#: Cosine of the angle between two edges of a path that reverses: beyond a corner and its noise.
REVERSAL = -0.25
#: A pose looks along the path, or against it, where the cosine of the difference is larger.
ALONG = 0.5
#: Distance from the end of a leg, in m, and speed, in m/s, at which it counts as driven.
END, STANDING = 0.02, 0.05
#: Angle at which a turn on the spot counts as done, in rad.
TURNED = 0.05
#: How far ahead the point nearest to the base is looked for, in m and in seconds of travel.
WINDOW, WINDOW_S = 0.3, 1.0
#: Difference in distance below which two stretches of a path are equally near, in m.
AMBIGUITY = 0.2
#: Distance between the ends of two paths that lead to the same goal, in m.
SAME_GOAL = 0.3


@dataclass(frozen=True)
class Base:
    """What a base can do that shapes how it follows a path.

    Attributes:
        limits: Of its motion.
        strafes: Whether it moves sideways.
        pivots: Whether it turns on the spot.
        turning_radius: Smallest radius in m of a base that does not pivot; 0 where not known.
    """

    limits: MotionLimits = field(default_factory=MotionLimits)
    strafes: bool = False
    pivots: bool = True
    turning_radius: float = 0.0

    @property
    def reverses(self) -> bool:
        """Whether it drives backwards."""
        return self.limits.backward > 0.0


@dataclass(frozen=True)
class CutOptions:
    """Where a path is cut, and when the base goes on to the next leg (Nav2's path handler).

    Attributes:
        rotation: Smallest turn on the spot that is a leg of its own, in rad.
        tolerance: Distance from the end of a leg at which the next may begin, in m.
        yaw_tolerance: Heading error at which it may, in rad.
    """

    rotation: float = 0.785
    tolerance: float = 0.2
    yaw_tolerance: float = 0.4


@dataclass(frozen=True)
class Leg:
    """A stretch of a path that is driven in one direction, or a turn on the spot.

    Attributes:
        points: (M, 2) in m; one point for a turn.
        yaws: (M,) unwrapped headings of the base in rad; start and end for a turn.
        backwards: Whether the base drives backwards.
    """

    points: np.ndarray
    yaws: np.ndarray
    backwards: bool = False
    arc: np.ndarray = field(init=False)
    tangents: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        edges = np.diff(self.points, axis=0)
        arc = np.concatenate([[0.0], np.cumsum(np.hypot(edges[:, 0], edges[:, 1]))])
        object.__setattr__(self, "arc", arc)
        object.__setattr__(self, "tangents", np.unwrap(np.arctan2(edges[:, 1], edges[:, 0])))

    @property
    def is_turn(self) -> bool:
        """Whether it is a turn on the spot."""
        return len(self.points) == 1

    @property
    def length(self) -> float:
        """Its length in m."""
        return float(self.arc[-1])

    def project(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance in m to each edge (M - 1,), and the arc length of the nearest point on it."""
        if self.is_turn:
            return np.array([np.linalg.norm(position - self.points[0])]), np.zeros(1)
        edges, offset = np.diff(self.points, axis=0), position - self.points[:-1]
        lengths = np.diff(self.arc)
        share = np.clip((offset * edges).sum(axis=1) / lengths**2, 0.0, 1.0)
        apart = offset - share[:, None] * edges
        return np.hypot(apart[:, 0], apart[:, 1]), self.arc[:-1] + share * lengths

    def tangent_at(self, s: np.ndarray) -> np.ndarray:
        """Tangent between the middles of neighbouring edges, so that it turns smoothly."""
        return np.interp(s, 0.5 * (self.arc[:-1] + self.arc[1:]), self.tangents)


class LegReference:
    """Follows legs one after the other, as fast as the base can and the operator wants.

    Args:
        legs: At least one.
        speed: Along the path in m/s.
        base: What the base can do.
        cut: When it goes on to the next leg.

    Attributes:
        legs: As given.
    """

    def __init__(self, legs: list[Leg], speed: float, base: Base, cut: CutOptions) -> None:
        self.legs, self._speed, self._base, self._cut = legs, float(speed), base, cut
        self.begin_again()

    def begin_again(self) -> None:
        """Look for the base on the whole path: it has been moved, or nothing was driven yet."""
        self._begins = np.concatenate([[0.0], np.cumsum([leg.length for leg in self.legs])])
        self._profiles: dict[int, SpeedProfile] = {}
        self._leg = 0
        self._along: float | None = None  # on the leg; None: not looked for yet
        self._pivot: np.ndarray | None = None  # where the turn on the spot began
        self._angle_left = math.inf  # of that turn

    @property
    def speed(self) -> float:
        """Wanted along the path, in m/s; may be set while it is driven."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        if speed != self._speed:
            self._speed, self._profiles = float(speed), {}

    @property
    def base(self) -> Base:
        """What the base can do; may be set while the path is driven."""
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
        """Where it ends: x, y in m, yaw in rad."""
        last = self.legs[-1]
        return float(last.points[-1, 0]), float(last.points[-1, 1]), float(last.yaws[-1])

    @property
    def progress(self) -> float | None:
        """Driven so far, in m; None before the base was looked for."""
        return None if self._along is None else float(self._begins[self._leg] + self._along)

    def distance(self, position: np.ndarray) -> float:
        """Distance of a position (2,) from the path, all of it, in m."""
        return float(min(leg.project(np.asarray(position))[0].min() for leg in self.legs))

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """x, y, yaw, v and vy (in the base's frame) along the horizon; moves the progress on."""
        del now_s
        position = np.array([state["x"], state["y"]])
        yaw, v, w = (state.get(name, 0.0) for name in ("yaw", "v", "w"))
        if self._along is None:
            self._leg, self._along = self._first(position)
        self._advance(position, yaw, math.hypot(v, state.get("vy", 0.0)))
        leg = self.legs[self._leg]
        zero = np.zeros(len(times))
        if leg.is_turn:
            # It turns where it stands: it cannot mend its position at the same time.
            self._pivot = position if self._pivot is None else self._pivot
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
        """Whether the base has driven to the end of the path."""
        del now_s
        last = self.legs[-1]
        if self._along is None or self._leg < len(self.legs) - 1:
            return False
        if last.is_turn:
            return self._angle_left <= TURNED
        return self._along >= last.length - END

    def take_over(self, before: LegReference, position: np.ndarray) -> None:
        """Go on from the progress on a path that this one replaces.

        Where both lead to the same goal, the place on this path is the one near the base from
        which it is about as far to the goal as it was.

        Args:
            before: What was followed so far.
            position: Of the base, (2,).
        """
        if before.progress is None:
            return
        apart = math.hypot(self.goal[0] - before.goal[0], self.goal[1] - before.goal[1])
        if apart > SAME_GOAL:
            return
        left = before.length - before.progress
        places = self._near(position)
        index, s = min(
            places, key=lambda at: abs(self.length - self._begins[at[0]] - at[1] - left)
        )
        was = before.legs[before._leg]
        if was.is_turn and not self.legs[index].is_turn:
            # A turn that was under way goes on, if this path has it too.
            after = index + 1
            if after < len(self.legs) and self.legs[after].is_turn:
                gap = float(np.linalg.norm(self.legs[after].points[0] - position))
                if gap <= self._cut.tolerance:
                    index, s = after, 0.0
        self._leg, self._along = index, s

    def _near(self, position: np.ndarray) -> list[tuple[int, float]]:
        """Leg and arc length of each stretch of the path that passes about as near as any."""
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
        """Where the path passes nearly as close several times, the first time counts."""
        return self._near(position)[0]

    def _advance(self, position: np.ndarray, yaw: float, speed: float) -> None:
        """Move the progress on, and to the next leg where one has been driven."""
        assert self._along is not None
        leg = self.legs[self._leg]
        distances, along = leg.project(position)
        reach = max(WINDOW, WINDOW_S * self.speed)
        ahead = (along >= self._along) & (along <= self._along + reach)
        if ahead.any():
            nearest = int(np.argmin(np.where(ahead, distances, np.inf)))
            self._along = float(along[nearest])
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
        """Angle left to turn, in the direction of the leg unless the other way is far shorter."""
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
        yaws: (M,) of the base in rad; by default it looks along the path.
        final_yaw: In rad, to turn to at the end.
        base: What the base can do; by default anything at once.
        cut: Where the path is cut.

    Attributes:
        points: As given.

    Raises:
        ValueError: No pose, or a coordinate or an orientation that is not finite or too large.
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
        yaw: In rad.
        speed: On the way, in m/s.
        base: What the base can do; by default anything at once.
        cut: When it goes on to the next leg.
        start: Where the base is: x, y, yaw. By default it is asked for with the first columns.

    Raises:
        ValueError: The pose is not finite or too far away, or a car needs a loop to get there.
    """

    #: How many times its distance, and turning circles, the way to a goal may be long.
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
        """Where it ends: x, y in m, yaw in rad."""
        return self._goal

    def begin_again(self) -> None:
        """Look for a new way from wherever the base is then."""
        self._started = self._started and not hasattr(self, "_leg")
        super().begin_again()

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """x, y, yaw, v and vy (in the base's frame) along the horizon."""
        if not self._started:
            start = (state.get("x", 0.0), state.get("y", 0.0), state.get("yaw", 0.0))
            self.legs = goal_legs(start, self._goal, self._base)
            super().begin_again()
            self._started = True
        return super().columns(state, times, now_s)


def goal_legs(start: Pose, goal: Pose, base: Base) -> list[Leg]:
    """The way from a pose to another: at least one leg."""
    (x0, y0, yaw0), (x1, y1, yaw1) = start, goal
    ends = np.array([[x0, y0], [x1, y1]])
    distance, turned = math.dist(start[:2], goal[:2]), math.remainder(yaw1 - yaw0, math.tau)
    at_goal = Leg(ends[1:], np.array([yaw0, yaw0 + turned]))
    if distance <= END or not (base.strafes or base.pivots or base.turning_radius > 0.0):
        return [at_goal]
    if base.strafes:
        return [Leg(ends, np.array([yaw0, yaw0 + turned]))]
    if not base.pivots:
        poses = dubins_path(start, goal, base.turning_radius)
        return [Leg(poses[:, :2], poses[:, 2])]
    bearing = math.atan2(y1 - y0, x1 - x0)
    ways = []
    for backwards in (False, True)[: 1 + base.reverses]:
        heading = bearing + math.pi * backwards
        first, second = (math.remainder(a, math.tau) for a in (heading - yaw0, yaw1 - heading))
        speed = base.limits.backward if backwards else base.limits.forward
        took = distance / speed + (abs(first) + abs(second)) / base.limits.turn_rate
        ways.append((took, backwards, yaw0 + first, second))
    _, backwards, heading, second = min(ways)
    legs = [Leg(ends, np.array([heading, heading]), backwards)]
    if abs(heading - yaw0) > TURNED:
        legs.insert(0, Leg(ends[:1], np.array([yaw0, heading])))
    if abs(second) > TURNED:
        legs.append(Leg(ends[1:], np.array([heading, heading + second])))
    return legs


def _check_numbers(what: str, points: np.ndarray, angles: Sequence[float]) -> None:
    if not np.isfinite(points).all():
        raise ValueError(f"{what} has coordinates that are not finite")
    if (largest := np.abs(points).max()) > FARTHEST:
        raise ValueError(
            f"{what} has a coordinate of {largest:.3g} m; allowed are up to {FARTHEST:g} m"
        )
    if not np.isfinite(angles).all():
        raise ValueError(f"{what} has orientations that are not finite")


def cut_path(
    points: np.ndarray,
    yaws: np.ndarray | None,
    final_yaw: float | None,
    base: Base,
    options: CutOptions,
) -> list[Leg]:
    """The legs of a path, at least one.

    Args:
        points: (M, 2) in m, finite, M >= 1.
        yaws: (M,) of the base in rad, or None.
        final_yaw: At the end in rad, or None.
        base: What the base can do.
        options: Where to cut.
    """
    angles = None if yaws is None else np.unwrap(np.asarray(yaws, dtype=np.float64))
    legs: list[Leg] = []
    for stretch, stretch_yaws in _stretches(points, angles, base, options):
        if len(stretch) == 1:
            if stretch_yaws is not None:
                legs.append(Leg(stretch, stretch_yaws))
            continue
        legs.append(_leg(stretch, stretch_yaws, base, legs[-1] if legs else None))
    if final_yaw is None and angles is not None:
        final_yaw = float(angles[-1])
    if not legs:  # one place
        yaw = 0.0 if final_yaw is None else final_yaw
        return [Leg(points[-1:], np.array([yaw, yaw]))]
    legs = _with_turns(legs, base, options)
    return _with_final_turn(legs, final_yaw, base)


def _stretches(
    points: np.ndarray, yaws: np.ndarray | None, base: Base, options: CutOptions
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The path cut where its direction reverses, and at turns on the spot, which are one point."""
    moved = np.hypot(*np.diff(points, axis=0).T) if len(points) > 1 else np.empty(0)
    place = np.concatenate([[0], np.cumsum(moved > SAME_PLACE)])
    first = np.flatnonzero(np.diff(place, prepend=-1))
    last = np.append(first[1:] - 1, len(points) - 1)
    kept = points[last]
    cuts, turns = set(_reversals(kept)), {}
    if yaws is not None:
        turned = np.abs(yaws[last] - yaws[first])
        turns = {
            int(k): yaws[[first[k], last[k]]] for k in np.flatnonzero(turned > options.rotation)
        }
        if not base.strafes:
            cuts |= set(_flips(kept, yaws[last]))
    inner = sorted((cuts | set(turns)) - {0, len(kept) - 1})
    result: list[tuple[np.ndarray, np.ndarray | None]] = []
    if 0 in turns:
        result.append((kept[:1], turns[0]))
    for begin, end in zip([0, *inner], [*inner, len(kept) - 1], strict=True):
        if end > begin:
            of_stretch = None
            if yaws is not None:
                of_stretch = np.concatenate([yaws[last[begin:end]], [yaws[first[end]]]])
            result.append((kept[begin : end + 1], of_stretch))
        if end in turns and end > 0:
            result.append((kept[end : end + 1], turns[end]))
    return result


def _reversals(points: np.ndarray) -> list[int]:
    """Indices of the points at which the path reverses."""
    if len(points) < 3:
        return []
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    coarse = np.flatnonzero(np.diff(np.floor(arc / SPACING), prepend=-1.0))
    coarse = np.unique(np.append(coarse, len(points) - 1))
    edges = np.diff(points[coarse], axis=0)
    sizes = np.hypot(*edges.T)
    along = (edges[:-1] * edges[1:]).sum(axis=1)
    found = []
    for k in np.flatnonzero(along < REVERSAL * sizes[:-1] * sizes[1:]):
        begin, end = coarse[k], coarse[k + 2] + 1
        farthest = int(np.argmax((points[begin:end] - points[begin]) @ edges[k]))
        found.append(int(begin) + farthest)
    return found


def _flips(points: np.ndarray, yaws: np.ndarray) -> list[int]:
    """Indices of the points at which the base changes from forwards to backwards, or back."""
    if len(points) < 3:
        return []
    edges = np.diff(points, axis=0)
    along = np.cos(yaws[:-1] - np.arctan2(edges[:, 1], edges[:, 0]))
    told = np.flatnonzero(np.abs(along) > ALONG)
    return [int(k) for k in told[1:][np.diff(np.sign(along[told])) != 0.0]]


def _leg(points: np.ndarray, yaws: np.ndarray | None, base: Base, before: Leg | None) -> Leg:
    """A stretch with the headings at which the base drives it."""
    edges = np.diff(points, axis=0)
    tangents = np.unwrap(np.arctan2(edges[:, 1], edges[:, 0]))
    tangent = np.append(tangents, tangents[-1])
    if yaws is not None and base.strafes:
        return Leg(points, yaws)
    backwards = False
    if yaws is not None:
        along = np.cos(yaws - tangent)
        told = np.abs(along) > ALONG
        if told.any():
            backwards = bool(np.median(along[told]) < 0.0)
    elif before is not None and not base.pivots and base.reverses and len(before.points) > 1:
        # A base that cannot turn on the spot reverses at a cusp: its heading goes on.
        backwards = not before.backwards
    backwards = backwards and base.reverses
    headings = tangent + (math.pi if backwards else 0.0)
    if yaws is not None and (np.cos(yaws - headings) > ALONG).all():
        headings = yaws
    return Leg(points, headings, backwards)


def _with_turns(legs: list[Leg], base: Base, options: CutOptions) -> list[Leg]:
    """Turns on the spot where one leg begins otherwise than the one before ended."""
    if not base.pivots:
        return [leg for leg in legs if not leg.is_turn] or legs
    result: list[Leg] = []
    for leg in legs:
        if result and not leg.is_turn:
            before = result[-1]
            error = math.remainder(leg.yaws[0] - before.yaws[-1], math.tau)
            if abs(error) > options.rotation:
                ends = before.yaws[-1] + np.array([0.0, error])
                result.append(Leg(leg.points[:1], ends))
        result.append(leg)
    return result


def _with_final_turn(legs: list[Leg], final_yaw: float | None, base: Base) -> list[Leg]:
    if final_yaw is None or not base.pivots:
        return legs
    last = legs[-1]
    error = math.remainder(final_yaw - last.yaws[-1], math.tau)
    if abs(error) <= TURNED:
        return legs
    if last.is_turn:
        return [*legs[:-1], Leg(last.points, np.array([last.yaws[0], last.yaws[-1] + error]))]
    return [*legs, Leg(last.points[-1:], last.yaws[-1] + np.array([0.0, error]))]
