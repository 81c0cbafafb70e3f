# SPDX-License-Identifier: Apache-2.0
"""Drill: a robot drives through seeded worlds of circles and walls; fills docs/drill.md.

``make drill`` drives the unicycle, with delay and lag, along a planner's path. It sees circles, a
laser scan or a map. Obstacles appear late, come towards it, or stand on its goal; sources fall
silent for a while.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace as Fields
from typing import Any

import numpy as np
from loop_messages import cloud, grid, ns, odometry, plan, scan

from benchmarks.pages import DOCS, provenance, table, update
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.tick import Reason, Tick
from mpc_banded.robots.messages import set_yaw

#: Size of a world and of a cell of the planner and of the maps, in m.
SIZE, CELL = np.array([9.0, 6.0]), 0.05
#: Distance between the rims that the planner keeps, and radius of robots and persons, in m.
KEPT, RADIUS = 0.1, 0.25
KINDS = ("circles", "scan", "map")
RAYS, DELAY_S, PERIOD_S, LONGEST_S = 360, 0.1, 0.05, 60.0
#: A robot that stands for so long has ended its drive, in s.
STOOD_S = 12.0


@dataclass
class World:
    """A world; lengths in m.

    Attributes:
        kind: What the robot sees: of KINDS.
        circles: x, y, radius of each that stands, (M, 3).
        late: Those that appear when the robot is within 2 m, (L, 3).
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
    yaw: float = 0.0
    mover: float = 0.0
    silent_s: float = math.inf
    has_way: bool = True


@dataclass
class Outcome:
    """How a drive ended.

    Attributes:
        gap: Least gap between rims in m.
        ticks: Of all cycles.
        excess: Largest step of a command beyond the acceleration limits, in m/s^2 or rad/s^2.
        arrived: Whether it arrived.
        blocked_s: Time from the last motion to the first tick that says why, in s.
    """

    gap: float
    ticks: list[Tick]
    excess: float
    arrived: bool
    blocked_s: float

    def is_right(self, world: World) -> bool:
        """Return whether the drive went as it should."""
        ended = self.arrived if world.has_way else not self.arrived and self.blocked_s <= 10.0
        return ended and self.gap > 0.0 and self.excess <= 1e-6


def occupied(circles: np.ndarray, beyond: float = 0.0) -> np.ndarray:
    """Cells (x, y) whose centres lie within circles that are larger by ``beyond``."""
    x, y = (CELL * (np.arange(round(side / CELL)) + 0.5) for side in SIZE)
    result = np.zeros((len(x), len(y)), dtype=bool)
    for a, b, r in circles:
        far = np.array([-r - beyond, r + beyond])
        i, j = slice(*np.searchsorted(x, a + far)), slice(*np.searchsorted(y, b + far))
        result[i, j] |= np.hypot(x[i, None] - a, y[None, j] - b) <= r + beyond
    return result


def plan_path(circles: np.ndarray, start: np.ndarray, goal: np.ndarray) -> np.ndarray | None:
    """Shortest way (K, 2) over free cells, by A* with eight neighbours; None if there is none."""
    blocked = np.pad(occupied(circles, RADIUS + KEPT), 1, constant_values=True)
    begin, end = (tuple((place / CELL + 1.0).astype(int).tolist()) for place in (start, goal))
    steps = [(i, j, math.hypot(i, j)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    cost, came, heap = {begin: 0.0}, {begin: begin}, [(0.0, begin)]
    while heap:
        _, at = heapq.heappop(heap)
        if at == end:
            cells = [at]
            while came[cells[-1]] != cells[-1]:
                cells.append(came[cells[-1]])
            return CELL * (np.array(cells[::-1]) - 0.5)
        for i, j, far in steps:
            to = at[0] + i, at[1] + j
            if not blocked[to] and cost[at] + far < cost.get(to, math.inf):
                cost[to], came[to] = cost[at] + far, at
                heapq.heappush(heap, (cost[to] + math.dist(to, end), to))
    return None


def make_world(seed: int) -> World:
    """A world with a way to the goal through all that the planner knows."""
    rng, path = np.random.default_rng(seed), None
    while path is None:
        parts = [rng.uniform([0, 0, 0.1], [*SIZE, 0.45], (rng.integers(4, 10), 3))]
        for axis in rng.permutation(2)[: rng.integers(1, 3)]:
            along = np.arange(0.0, SIZE[1 - axis], 0.08)
            wall = np.full((len(along), 3), 0.05)
            wall[:, axis], wall[:, 1 - axis] = rng.uniform(0.35, 0.65) * SIZE[axis], along
            door, width = rng.uniform(1.0, SIZE[1 - axis] - 1.0), rng.uniform(1.0, 1.4)
            parts.append(wall[np.abs(along - door) > 0.5 * width])
        circles = np.concatenate(parts)
        start, goal = rng.uniform([0.5, 0.5], SIZE - 0.5, (2, 2))
        apart = [np.hypot(*(circles[:, :2] - place).T) - circles[:, 2] for place in (start, goal)]
        if np.min(apart) >= 0.5 and math.dist(start, goal) >= 4.0:
            path = plan_path(circles, start, goal)
    late, has_way = np.empty((0, 3)), rng.random() > 0.1
    if not has_way:
        late = np.array([[*goal, 0.3]])
        if rng.random() < 0.5:  # a ring around the goal rather than something on it
            around = np.linspace(0.0, math.tau, 25)[:-1]
            ring = goal + 0.7 * np.stack([np.cos(around), np.sin(around)], axis=1)
            late = np.pad(ring, ((0, 0), (0, 1)), constant_values=0.1)
    elif rng.random() < 0.3:
        place = path[len(path) // 2] + rng.uniform(-0.2, 0.2, 2)
        more = np.array([[*place, rng.uniform(0.1, 0.3)]])
        if plan_path(np.vstack([circles, more]), start, goal) is not None:
            late = more
    yaws = rng.uniform(-math.pi, math.pi, 2)
    mover = rng.uniform(0.2, 0.6) if rng.random() < 0.2 else 0.0
    silent_s = rng.uniform(3.0, 8.0) if rng.random() < 0.1 else math.inf
    kind = KINDS[seed % len(KINDS)]
    return World(kind, circles, late, path, (*start, yaws[0]), yaws[1], mover, silent_s, has_way)


def walk(path: np.ndarray, speed: float) -> Generator[np.ndarray, np.ndarray, None]:
    """A person: takes the robot's position and yields its own x, y, radius, vx, vy each period.

    It stays 0.3 m from the rim of the robot, and turns back when it has waited for 3 s.
    """
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    at, waited, row = 0.0, 0, np.array([*path[0], RADIUS, 0.0, 0.0])
    while True:
        robot = yield row
        to = float(np.clip(at + speed * PERIOD_S, 0.0, arc[-1]))
        there = np.array([np.interp(to, arc, path[:, i]) for i in range(2)])
        nearer = math.dist(there, robot) < min(math.dist(row[:2], robot), 2.0 * RADIUS + 0.3)
        waited = waited + 1 if nearer or to == at else 0
        velocity = np.zeros(2) if waited else (there - row[:2]) / PERIOD_S
        if not waited:
            at, row = to, np.array([*there, RADIUS, *velocity])
        row[3:] = velocity
        if waited > 3.0 / PERIOD_S:
            speed, waited = -speed, 0


def laser(circles: np.ndarray, place: np.ndarray, now_s: float, rays: int = RAYS) -> Fields:
    """What a laser at a pose (3,) sees of circles."""
    step = math.tau / rays
    angles, centre = place[2] + step * np.arange(rays), circles[:, :2] - place[:2]
    ahead = centre @ np.stack([np.cos(angles), np.sin(angles)])  # (M, rays)
    inside = circles[:, 2:] ** 2 - (centre**2).sum(axis=1)[:, None] + ahead**2
    far = np.where(
        (inside > 0.0) & (ahead > 0.0), ahead - np.sqrt(np.maximum(inside, 0.0)), np.inf
    )
    ranges = far.min(axis=0, initial=np.inf)
    return scan(ranges, step=step, low=0.05, high=8.0, stamp_s=now_s, frame="base_link")


def values(drives: Sequence[tuple[World, Outcome]]) -> dict[str, str]:
    """Everything that docs/drill.md has a place for."""
    groups = {f"seen as {kind}": [d for d in drives if d[0].kind == kind] for kind in KINDS}
    groups |= {
        "with a person": [d for d in drives if d[0].mover],
        "with something that appears late": [d for d in drives if len(d[0].late)],
        "with sources that fall silent": [d for d in drives if d[0].silent_s < math.inf],
        "without a way": [d for d in drives if not d[0].has_way],
        "all": list(drives),
    }
    header = ["worlds", "number", "as they should", "least gap, m", "arrived", "median time, s"]
    rows = []
    for name, group in groups.items():
        right = sum(outcome.is_right(world) for world, outcome in group)
        times = [PERIOD_S * len(o.ticks) for _, o in group if o.arrived]
        gap = min((outcome.gap for _, outcome in group), default=math.nan)
        median = float(np.median(times)) if times else math.nan
        rows.append([name, len(group), right, gap, len(times), median])
    return {"made": provenance("torch", "numpy", "scipy"), "table": table(header, rows)}


class Drive:
    """One drive through a world.

    Args:
        world: Where.
        parameters: Of the robot, in place of those of the drill.

    Attributes:
        loop: The control loop, not yet compiled.
    """

    def __init__(self, world: World, **parameters: Any) -> None:
        start = {"simulator.initial_state": [*world.start, 0.0, 0.0]}
        given = {"reference_speed": 0.8, "actuation_delay": DELAY_S}
        config = Config(given | start | parameters)
        self._world, self._robot = world, Simulation(config, delay_s=DELAY_S)
        self.loop = ControlLoop(config)
        self.loop.transform = lambda *_: tuple(self._robot.state[:3].tolist())

    def run(self) -> Outcome:
        """Drive until the robot has arrived, or has stood for long."""
        world, config = self._world, self.loop.config
        limits, outline = config.parameters.limits, config.footprint
        bounds = {"v": limits["linear_acceleration"], "w": limits["angular_acceleration"]}
        person = walk(world.path[::-1][20:], world.mover) if world.mover else None
        mover = np.empty((0, 5)) if person is None else next(person)[None]
        known, last, moved_s = world.circles, dict.fromkeys(bounds, 0.0), 0.0
        found = Outcome(math.inf, [], 0.0, False, math.inf)
        for time_s in np.arange(0.0, LONGEST_S, PERIOD_S):
            state = self._robot.state
            if len(world.late) and math.dist(world.late.mean(axis=0)[:2], state[:2]) < 2.0:
                known = np.vstack([world.circles, world.late])
            if person is not None:
                mover = person.send(state[:2])[None]
            around = np.vstack([known, mover[:, :3]])
            apart = np.linalg.norm(outline.centres(state[:3])[:, None] - around[:, :2], axis=2)
            gaps = apart - outline.radii[:, None] - around[:, 2]
            found.gap = min(found.gap, float(gaps.min()))
            self._tell(time_s, known, mover)
            tick = self.loop.tick(round(1e9 * (100.0 + time_s)))
            found.ticks.append(tick)
            for name, (low, high) in bounds.items():
                rate = (tick.command[name] - last[name]) / PERIOD_S
                found.excess = max(found.excess, rate - high, low - rate)
            last = tick.command
            if np.abs(state[3:]).max() > 0.02:
                moved_s, found.blocked_s = time_s, math.inf
            if tick.code is Reason.BLOCKED:
                found.blocked_s = min(found.blocked_s, time_s - moved_s)
            found.arrived = tick.code is Reason.ARRIVED
            if found.arrived or time_s - moved_s > STOOD_S:
                break
            self._robot.advance(tick.command, PERIOD_S)
        return found

    def _tell(self, time_s: float, known: np.ndarray, mover: np.ndarray) -> None:
        """Hand over the messages of a period."""
        world, state, now_s = self._world, self._robot.state, 100.0 + time_s
        messages = {"odom": odometry(now_s, **self._robot.values)}
        if time_s == 0.0:
            messages["plan"] = plan(*world.path.tolist(), frame="odom")
            set_yaw(messages["plan"].poses[-1].pose.orientation, world.yaw)
        around, rows = np.vstack([known, mover[:, :3]]), mover
        if world.kind == "circles":
            rows = np.vstack([np.pad(known, ((0, 0), (0, 2))), mover])
        if not world.silent_s <= time_s < world.silent_s + 1.5:
            messages["obstacles"] = cloud(rows, now_s)
            if world.kind == "scan":
                messages["scan"] = laser(around, state, now_s)
            if world.kind == "map" and round(time_s / PERIOD_S) % 4 == 0:
                cells = 100 * occupied(around, 0.5 * CELL).T.astype(np.int8)
                messages["costmap"] = grid(cells, CELL, stamp_s=now_s, frame="odom")
        for topic, message in messages.items():
            if rejected := self.loop.on_message(topic, message, ns(now_s)):
                raise RuntimeError(f"{topic}: {rejected}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make drill", description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    arguments = parser.parse_args()
    drives: list[tuple[World, Outcome]] = []
    for seed in range(arguments.first, arguments.first + arguments.worlds):
        drive = Drive(world := make_world(seed))
        drive.loop.controller.compile()
        outcome = drive.run()
        drives.append((world, outcome))
        if not outcome.is_right(world):
            print(
                f"world {seed}: {world.kind}, gap {outcome.gap:.3f} m, arrived {outcome.arrived}, "
                f"has way {world.has_way}; {outcome.ticks[-1].reason}",
                flush=True,
            )
    if arguments.worlds == parser.get_default("worlds"):
        update(DOCS / "drill.md", values(drives))
    else:
        print(values(drives)["table"])


if __name__ == "__main__":
    main()
