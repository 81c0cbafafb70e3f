# SPDX-License-Identifier: Apache-2.0
"""Drill: a robot drives through seeded worlds of circles and walls; fills docs/drill.md.

``python -m benchmarks.drill`` drives the unicycle, with delay and lag, along a planner's path. It
sees circles, a laser scan or an occupancy grid. Obstacles appear late, come towards it, or stand
on its goal; sources fall silent for a while.
"""

from __future__ import annotations

import argparse
import heapq
import math
from dataclasses import dataclass
from types import SimpleNamespace as Fields
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.tick import Reason
from mpc_banded.robots.messages import fill_odometry, set_yaw

#: Size of a world and of a cell of the planner and of the maps, in m.
SIZE, CELL = np.array([9.0, 6.0]), 0.05
#: Distance between the rims that the planner keeps, and radius of the robot, in m.
KEPT, RADIUS = 0.1, 0.25
KINDS = ("circles", "scan", "grid")
RAYS, DELAY_S, PERIOD_S, LONGEST_S = 360, 0.1, 0.05, 60.0
FIELDS = ("x", "y", "radius", "vx", "vy")


@dataclass
class World:
    """A world; lengths in m.

    Attributes:
        kind: What the robot sees.
        circles: x, y, radius of each that stands, (M, 3).
        late: Those that appear when the robot is near, (L, 3).
        path: Of the planner, (K, 2).
        start: Pose of the robot: x, y, yaw.
        yaw: Heading at the goal in rad.
        mover: Speed of a person that comes along the path in m/s; 0 for nobody.
        silent_s: When all sources fall silent, for 1.5 s.
        has_way: Whether the goal can be reached.
    """

    kind: str
    circles: np.ndarray
    late: np.ndarray
    path: np.ndarray
    start: tuple[float, float, float]
    yaw: float
    mover: float
    silent_s: float
    has_way: bool


@dataclass(frozen=True)
class Outcome:
    """How a drive ended: the least gap in m, the last reason, its time in s, rates exceeded."""

    gap: float
    code: Reason
    time_s: float
    rates: int
    ok: bool


def occupied(circles: np.ndarray, beyond: float = 0.0) -> np.ndarray:
    """Cells (x, y) whose centres lie within circles that are larger by ``beyond``."""
    x, y = (CELL * (np.arange(round(side / CELL)) + 0.5) for side in SIZE)
    result = np.zeros((len(x), len(y)), dtype=bool)
    for a, b, r in circles:
        far = np.array([-r - beyond, r + beyond])
        i, j = slice(*np.searchsorted(x, a + far)), slice(*np.searchsorted(y, b + far))
        result[i, j] |= np.hypot(x[i, None] - a, y[None, j] - b) <= r + beyond
    return result


def plan_path(blocked: np.ndarray, start: np.ndarray, goal: np.ndarray) -> np.ndarray | None:
    """Shortest way (K, 2) over free cells, by A* with eight neighbours; None if there is none."""
    begin, end = (tuple((place / CELL).astype(int).tolist()) for place in (start, goal))
    steps = [(i, j, math.hypot(i, j)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    cost, came, heap = {begin: 0.0}, {begin: begin}, [(0.0, begin)]
    while heap:
        _, at = heapq.heappop(heap)
        if at == end:
            cells = [at]
            while came[cells[-1]] != cells[-1]:
                cells.append(came[cells[-1]])
            return CELL * (np.array(cells[::-1]) + 0.5)
        for i, j, far in steps:
            to = at[0] + i, at[1] + j
            inside = 0 <= to[0] < blocked.shape[0] and 0 <= to[1] < blocked.shape[1]
            if inside and not blocked[to] and cost[at] + far < cost.get(to, math.inf):
                cost[to], came[to] = cost[at] + far, at
                heapq.heappush(heap, (cost[to] + math.dist(to, end), to))
    return None


def make_world(seed: int) -> World:
    """A world whose goal can be reached by all that the planner knows."""
    rng = np.random.default_rng(seed)
    while True:
        parts = [rng.uniform([0, 0, 0.1], [*SIZE, 0.45], (rng.integers(4, 10), 3))]
        for axis in rng.permutation(2)[: rng.integers(1, 3)]:
            along = np.arange(0.0, SIZE[1 - axis], 0.08)
            wall = np.full((len(along), 3), 0.05)
            wall[:, axis], wall[:, 1 - axis] = rng.uniform(0.35, 0.65) * SIZE[axis], along
            door, width = rng.uniform(1.0, SIZE[1 - axis] - 1.0), rng.uniform(1.0, 1.4)
            parts.append(wall[np.abs(along - door) > 0.5 * width])
        circles = np.concatenate(parts)
        start, goal = rng.uniform([0.5, 0.5], SIZE - 0.5, (2, 2))
        apart = np.hypot(*(circles[:, None, :2] - [start, goal]).T).T - circles[:, 2:]
        if apart.min() < 0.5 or math.dist(start, goal) < 4.0:
            continue
        path = plan_path(occupied(circles, RADIUS + KEPT), start, goal)
        if path is not None:
            break
    late, has_way = np.empty((0, 3)), rng.random() > 0.1
    if not has_way:
        around = np.linspace(0.0, math.tau, 25)[:-1, None]
        ring = np.hstack(
            [goal + 0.7 * np.hstack([np.cos(around), np.sin(around)]), 0.1 + 0 * around]
        )
        late = ring if rng.random() < 0.5 else np.array([[*goal, 0.3]])
    elif rng.random() < 0.3:
        place = path[len(path) // 2] + rng.uniform(-0.2, 0.2, 2)
        more = np.array([[*place, rng.uniform(0.1, 0.3)]])
        if plan_path(occupied(np.vstack([circles, more]), RADIUS + KEPT), start, goal) is not None:
            late = more
    yaws = rng.uniform(-math.pi, math.pi, 2)
    mover = rng.uniform(0.2, 0.6) if rng.random() < 0.2 else 0.0
    silent_s = rng.uniform(3.0, 8.0) if rng.random() < 0.1 else math.inf
    kind = KINDS[seed % 3]
    return World(kind, circles, late, path, (*start, yaws[0]), yaws[1], mover, silent_s, has_way)


def stamped(now_s: float, frame: str, **fields: Any) -> Fields:
    """A message as plain fields."""
    stamp = Fields(sec=int(now_s), nanosec=round(1e9 * (now_s % 1.0)))
    return Fields(header=Fields(stamp=stamp, frame_id=frame), **fields)


def cloud(rows: np.ndarray, now_s: float) -> Fields:
    """Circles (M, 5) as a PointCloud2."""
    columns = [Fields(name=name, offset=8 * i, datatype=8) for i, name in enumerate(FIELDS)]
    data = np.ascontiguousarray(rows, dtype="<f8").tobytes()
    return stamped(now_s, "odom", fields=columns, is_bigendian=False, height=1, width=len(rows),
                   point_step=40, data=data)  # fmt: skip


def scan(circles: np.ndarray, pose: np.ndarray, now_s: float, rays: int = RAYS) -> Fields:
    """What a laser at the position of the robot sees of circles."""
    step = math.tau / rays
    angles = pose[2] + step * np.arange(rays)
    centre = circles[:, :2] - pose[:2]
    ahead = centre @ np.stack([np.cos(angles), np.sin(angles)])  # (M, rays)
    inside = circles[:, 2:] ** 2 - (centre**2).sum(axis=1)[:, None] + ahead**2
    with np.errstate(invalid="ignore"):
        far = np.where((inside > 0.0) & (ahead > 0.0), ahead - np.sqrt(inside), np.inf)
    return stamped(now_s, "base_link", ranges=far.min(axis=0, initial=np.inf), angle_min=0.0,
                   angle_increment=step, range_min=0.05, range_max=8.0)  # fmt: skip


def grid(circles: np.ndarray, now_s: float) -> Fields:
    """A map of circles."""
    cells = occupied(circles, 0.5 * CELL).T
    turn = Fields(x=0.0, y=0.0, z=0.0, w=1.0)
    origin = Fields(position=Fields(x=0.0, y=0.0, z=0.0), orientation=turn)
    info = Fields(width=cells.shape[1], height=cells.shape[0], resolution=CELL, origin=origin)
    return stamped(now_s, "odom", info=info, data=(100 * cells).astype(np.int8).ravel())


class Walker:
    """A person of radius 0.25 m on a path: waits before the robot, and turns back after 3 s."""

    def __init__(self, path: np.ndarray, speed: float) -> None:
        self._path, self._speed, self._waited_s = path, speed, 0.0
        self._arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
        self._at, self._way = 0.0, 1.0
        self.row = np.array([*path[0], 0.25, 0.0, 0.0])

    def walk(self, robot: np.ndarray) -> None:
        """Move on for a period, not nearer to the robot than 0.3 m from rim to rim."""
        at = float(np.clip(self._at + self._way * self._speed * PERIOD_S, 0.0, self._arc[-1]))
        to = np.array([np.interp(at, self._arc, self._path[:, i]) for i in range(2)])
        before, after = (math.dist(p, robot[:2]) for p in (self.row[:2], to))
        if after < min(before, RADIUS + 0.25 + 0.3) or at == self._at:
            self.row[3:], self._waited_s = 0.0, self._waited_s + PERIOD_S
            if self._waited_s > 3.0:
                self._way, self._waited_s = -self._way, 0.0
            return
        self.row[3:] = (to - self.row[:2]) / PERIOD_S
        self.row[:2], self._at, self._waited_s = to, at, 0.0


class Drive:
    """One drive through a world.

    Attributes:
        ticks: Of all cycles.
        track: States (cycles, nx).
    """

    def __init__(self, world: World, **parameters: Any) -> None:
        self._world = world
        start = [*world.start, 0.0, 0.0]
        config = Config(
            {"reference_speed": 0.8, "actuation_delay": DELAY_S, "simulator.initial_state": start}
            | parameters
        )
        self.loop, self._robot = ControlLoop(config), Simulation(config, delay_s=DELAY_S)
        self.loop.transform = lambda *_: tuple(self._robot.state[:3].tolist())
        self._circles, self._walker = world.circles, None
        if world.mover:
            self._walker = Walker(world.path[::-1][20:], world.mover)
        self.ticks, self.track = [], []

    def run(self) -> Outcome:
        """Drive until the robot has arrived, or has stood for 10 s."""
        world, gap, rates, stood_s = self._world, math.inf, 0, 0.0
        limits, sent = self.loop.config.parameters.limits, {"v": 0.0, "w": 0.0}
        outline = self.loop.config.footprint
        bounds = {"v": limits["linear_acceleration"], "w": limits["angular_acceleration"]}
        for k in range(round(LONGEST_S / PERIOD_S)):
            now_s = 100.0 + k * PERIOD_S
            state = self._robot.state
            if len(world.late) and math.dist(world.late.mean(axis=0)[:2], state[:2]) < 2.0:
                self._circles, world = np.vstack([world.circles, world.late]), self._world
            around = self._circles
            if self._walker:
                self._walker.walk(state)
                around = np.vstack([around, self._walker.row[:3]])
            apart = np.linalg.norm(outline.centres(state[:3])[:, None] - around[:, :2], axis=2)
            gap = min(gap, float((apart - outline.radii[:, None] - around[:, 2]).min()))
            silent = 0.0 <= k * PERIOD_S - world.silent_s < 1.5
            self._tell(k, now_s, around, silent)
            tick = self.loop.tick(round(1e9 * now_s))
            self.ticks.append(tick)
            self.track.append(state.copy())
            for name, (low, high) in bounds.items():
                rate = (tick.command[name] - sent[name]) / PERIOD_S
                rates += not low - 1e-6 <= rate <= high + 1e-6
            sent = tick.command
            stood_s = stood_s + PERIOD_S if abs(state[3:]).max() < 0.02 else 0.0
            if tick.code is Reason.ARRIVED or stood_s > 12.0:
                break
            self._robot.advance(tick.command, PERIOD_S)
        ok = gap > 0.0 and not rates and (tick.code is Reason.ARRIVED) == world.has_way
        if not world.has_way:
            ok = ok and Reason.BLOCKED in {t.code for t in self.ticks[-200:]}
        return Outcome(gap, tick.code, (k + 1) * PERIOD_S, rates, ok)

    def _tell(self, k: int, now_s: float, around: np.ndarray, silent: bool) -> None:
        """Hand over the messages of a period."""
        world, messages = self._world, {}
        vector = lambda: Fields(x=0.0, y=0.0, z=0.0, w=1.0)  # noqa: E731
        twist = Fields(twist=Fields(linear=vector(), angular=vector()))
        pose = Fields(pose=Fields(position=vector(), orientation=vector()))
        odometry = stamped(now_s, "odom", pose=pose, twist=twist)
        fill_odometry(odometry, self._robot.values)
        messages["odom"] = odometry
        if k == 0:
            messages["plan"] = self._plan()
        rows = np.pad(around, ((0, 0), (0, 2))) if world.kind == "circles" else np.empty((0, 5))
        if self._walker:
            rows = np.vstack([rows[:-1], self._walker.row])
        if not silent:
            messages["obstacles"] = cloud(rows, now_s)
            if world.kind == "scan":
                messages["scan"] = scan(around, self._robot.state, now_s)
            if world.kind == "grid" and k % 4 == 0:
                messages["costmap"] = grid(around, now_s)
        for topic, message in messages.items():
            rejected = self.loop.on_message(topic, message, round(1e9 * now_s))
            assert rejected is None, rejected

    def _plan(self) -> Fields:
        poses = []
        for x, y in self._world.path:
            turn = Fields(x=0.0, y=0.0, z=0.0, w=1.0)
            poses.append(Fields(pose=Fields(position=Fields(x=x, y=y, z=0.0), orientation=turn)))
        set_yaw(poses[-1].pose.orientation, self._world.yaw)
        return stamped(100.0, "odom", poses=poses)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drill", description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    arguments = parser.parse_args()
    found: dict[int, tuple[World, Outcome]] = {}
    for seed in range(arguments.first, arguments.first + arguments.worlds):
        drive = Drive(world := make_world(seed))
        drive.loop.controller.compile()
        outcome = drive.run()
        found[seed] = world, outcome
        if not outcome.ok:
            what = f"{world.kind}, has_way {world.has_way}, mover {world.mover:.1f}"
            print(f"{seed}: {what}, {outcome}; {drive.ticks[-1].reason}", flush=True)
    print(f"{sum(o.ok for _, o in found.values())} of {len(found)} as they should")


if __name__ == "__main__":
    main()
