# SPDX-License-Identifier: Apache-2.0
"""Cuts paths, as planners send them, into legs, and plans the legs of the way to a goal.

A path is cut where the base reverses or turns on the spot, as Nav2's path handler does
(nav2_controller, ``enforce_path_inversion`` and ``enforce_path_rotation``). A leg is driven in one
direction and ends standing; a turn on the spot is a leg of no length.

Orientations count where the sender meant them: a pose that looks along the path, or against it,
tells whether the base drives forwards or backwards there; one that looks elsewhere counts for a
base that moves sideways, and at the end of the path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from mpc_banded.control.dubins import Pose, dubins_path
from mpc_banded.control.parameters import Parameters
from mpc_banded.control.speed import MotionLimits
from mpc_banded.robots.robot import Robot

#: Distance in m up to which poses are at the same place; larger than a sender's noise.
SAME_PLACE = 8e-3
#: Distance in m between the poses that are examined for reversals; larger than any noise.
SPACING = 0.04
#: Length of the chords that give the direction of a path, in m: noise turns shorter ones.
CHORD = 0.1
#: Cosine of the angle between two edges below which a path reverses; no corner with noise has it.
REVERSAL = -0.25
#: A pose looks along the path, or against it, where the cosine of the difference is larger.
ALONG = 0.5
#: Distance from its chord at which a path bends, in m.
BEND = 0.02
#: Distance from the end of a leg at which it counts as driven, in m.
END = 0.02
#: Angle at which a turn on the spot counts as done, in rad.
TURNED = 0.05


@dataclass(frozen=True)
class Base:
    """The abilities of a base that shape how it follows a path.

    Attributes:
        limits: Limits of its motion.
        strafes: Whether it moves sideways.
        pivots: Whether it turns on the spot.
        turning_radius: Smallest radius in m of a base that does not pivot; 0 if unknown.
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
    """Options for cutting a path and for going on to the next leg (Nav2's path handler).

    Attributes:
        rotation: Smallest turn on the spot that is a leg of its own, in rad.
        tolerance: Distance from the end of a leg at which the next may begin, in m.
        yaw_tolerance: Heading error at which it may begin, in rad.
    """

    rotation: float = 0.785
    tolerance: float = 0.2
    yaw_tolerance: float = 0.4


@dataclass(frozen=True)
class Leg:
    """A stretch of a path that is driven in one direction, or a turn on the spot.

    Attributes:
        points: Points (M, 2) in m; one point for a turn.
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
        object.__setattr__(self, "tangents", _tangents(self.points))

    @property
    def is_turn(self) -> bool:
        """Whether it is a turn on the spot."""
        return len(self.points) == 1

    @property
    def length(self) -> float:
        """Length in m."""
        return float(self.arc[-1])

    def project(self, position: np.ndarray, driven: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance in m to each edge (M - 1,), and the arc length of its nearest point.

        No point nearer to the start than the arc length ``driven`` counts.
        """
        if self.is_turn:
            return np.array([np.linalg.norm(position - self.points[0])]), np.zeros(1)
        edges, offset = np.diff(self.points, axis=0), position - self.points[:-1]
        lengths = np.diff(self.arc)
        least = np.clip((driven - self.arc[:-1]) / lengths, 0.0, 1.0)
        share = np.clip((offset * edges).sum(axis=1) / lengths**2, least, 1.0)
        apart = offset - share[:, None] * edges
        return np.hypot(apart[:, 0], apart[:, 1]), self.arc[:-1] + share * lengths

    def tangent_at(self, s: np.ndarray) -> np.ndarray:
        """Return the tangent between the middles of neighbouring edges, which turns smoothly."""
        return np.interp(s, 0.5 * (self.arc[:-1] + self.arc[1:]), self.tangents)


def cut_path(
    points: np.ndarray,
    yaws: np.ndarray | None,
    final_yaw: float | None,
    base: Base,
    options: CutOptions,
) -> list[Leg]:
    """Return the legs of a path, at least one.

    Args:
        points: (M, 2) in m, finite, M >= 1.
        yaws: Headings (M,) of the base in rad, or None.
        final_yaw: Heading at the end in rad, or None.
        base: The abilities of the base.
        options: Options for cutting.
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
    """Cut a path where its direction reverses, and at turns on the spot, which are one point."""
    first = _places(points)
    last = np.append(first[1:] - 1, len(points) - 1)
    kept = points[first]
    kept[-1] = points[-1]
    # A base that can neither turn on the spot nor reverse drives every path as one leg.
    cuts = set(_reversals(kept)) if base.pivots or base.reverses or base.strafes else set()
    turns: dict[int, np.ndarray] = {}
    if yaws is not None:
        turned = np.abs(yaws[last] - yaws[first])
        turns = {
            int(k): yaws[[first[k], last[k]]] for k in np.flatnonzero(turned > options.rotation)
        }
        if base.reverses and not base.strafes:
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


def _places(points: np.ndarray) -> np.ndarray:
    """Return indices of the first pose at each place, beyond SAME_PLACE from the place before."""
    first = [0]
    x, y = points[0]
    for k, (next_x, next_y) in enumerate(points.tolist()):
        if math.hypot(next_x - x, next_y - y) > SAME_PLACE:
            first.append(k)
            x, y = next_x, next_y
    return np.array(first)


def _coarse(points: np.ndarray) -> np.ndarray:
    """Return indices of points about SPACING apart along the path, with both ends."""
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    coarse = np.flatnonzero(np.diff(np.floor(arc / SPACING), prepend=-1.0))
    return np.unique(np.append(coarse, len(points) - 1))


def _reversals(points: np.ndarray) -> list[int]:
    """Return indices of the points at which the path reverses."""
    coarse = _coarse(points)
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
    """Return indices of the points at which the base changes between forwards and backwards."""
    coarse = _coarse(points)
    edges = np.diff(points[coarse], axis=0)
    along = np.cos(yaws[coarse[:-1]] - np.arctan2(edges[:, 1], edges[:, 0]))
    told = np.flatnonzero(np.abs(along) > ALONG)
    return [int(coarse[k]) for k in told[1:][np.diff(np.sign(along[told])) != 0.0]]


def _tangents(points: np.ndarray) -> np.ndarray:
    """Return the unwrapped direction in rad of a chord at the middle of each edge (M - 1,)."""
    edges = np.diff(points, axis=0)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(edges[:, 0], edges[:, 1]))])
    middles = 0.5 * (arc[:-1] + arc[1:])

    def point(s: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(s, arc, points[:, i]) for i in range(2)], axis=-1)

    begins = np.clip(middles - 0.5 * CHORD, 0.0, max(0.0, arc[-1] - CHORD))
    chords = point(begins + CHORD) - point(begins)
    short = np.hypot(chords[:, 0], chords[:, 1]) < 0.25 * np.minimum(CHORD, arc[-1])
    chords[short] = edges[short]  # the path folds there
    return np.unwrap(np.arctan2(chords[:, 1], chords[:, 0]))


def _leg(points: np.ndarray, yaws: np.ndarray | None, base: Base, before: Leg | None) -> Leg:
    """Return a stretch with the headings at which the base drives it."""
    tangents = _tangents(points)
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
    """Insert turns on the spot where a leg begins otherwise than the one before ended."""
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


def goal_legs(start: Pose, goal: Pose, base: Base) -> list[Leg]:
    """Return the way from a pose to another: at least one leg."""
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


def base_of(robot: Robot, parameters: Parameters) -> Base:
    """Return the abilities of a robot's base, by the names and limits of its states and inputs.

    ``v`` is the forward speed, ``vy`` the sideways speed and ``w`` the turn rate; the inputs that
    ``Robot.braking`` names for them are their accelerations. A base that strafes may drive any leg
    in any direction, so that its smallest limits count.
    """
    limits = parameters.limits

    def largest(name: str, sign: float) -> float:
        low, high = limits.get(name, (-math.inf, math.inf))
        return max(0.0, high if sign > 0.0 else -low)

    def acceleration(name: str) -> float:
        rate = robot.braking.get(name, "")
        if rate not in robot.inputs:
            return math.inf
        return min(largest(rate, 1.0), largest(rate, -1.0))

    planar = robot.planar
    forward, backward, change = largest("v", 1.0), largest("v", -1.0), acceleration("v")
    if planar is not None and planar.strafes:
        forward = backward = min(forward, backward, largest("vy", 1.0), largest("vy", -1.0))
        change = min(change, acceleration("vy"))
    fastest = parameters.model.get("max_speed", math.inf)
    return Base(
        MotionLimits(
            min(forward, fastest),
            min(backward, fastest),
            change,
            min(largest("w", 1.0), largest("w", -1.0)),
            acceleration("w"),
            parameters.command_lead,
        ),
        strafes=planar is not None and planar.strafes,
        pivots=planar is not None and planar.pivots,
        turning_radius=0.0 if planar is None else planar.turning_radius(limits, parameters.model),
    )


def orient(
    points: np.ndarray, yaws: np.ndarray, rule: str
) -> tuple[np.ndarray | None, float | None]:
    """Return the orientations of a path that count: of all poses, or of the last one.

    Args:
        points: (M, 2) in m.
        yaws: Headings (M,) in rad; exactly zero is the identity, which most senders leave if
            they do not mean a heading.
        rule: ``always`` takes all, ``never`` none. ``auto`` takes none where all are the identity
            and the path bends; the last alone where all others are the identity; all otherwise.
    """
    if rule == "never" or not len(points):
        return None, None
    if rule == "always" or len(points) == 1 or yaws[:-1].any():
        return yaws, None
    if yaws[-1] != 0.0:
        return None, float(yaws[-1])
    chord = points[-1] - points[0]
    offset = points - points[0]
    length = math.hypot(*chord)
    if length < SAME_PLACE:
        bends = np.hypot(offset[:, 0], offset[:, 1]).max() > BEND
    else:
        bends = np.abs(chord[0] * offset[:, 1] - chord[1] * offset[:, 0]).max() > BEND * length
    return (None, None) if bends else (yaws, None)
