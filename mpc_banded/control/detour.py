# SPDX-License-Identifier: Apache-2.0
"""Leads a reference around obstacles that lie on it, on the better side.

A solver that starts on a path through an obstacle prefers neither side, so the robot would stop
in front of it. Each point of the reference is moved sideways, all to the same side,
until it is clear of every obstacle at its time; the solver does the rest. The side is kept until
the reference is clear again, so that the robot does not dither. Where moves to neither side lead
past, a passage may bend: then the shortest way over a grid around the robot leads to the place
where the reference is clear again (Dijkstra, Numerische Mathematik 1, 1959).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from mpc_banded.control.obstacles_ahead import Ahead

#: Farthest sideways move, and step of the search for it, in m.
FARTHEST, STEP = 2.5, 0.05
#: Steepest way out and back, in m sideways for each m along the reference.
SLOPE = 1.0
#: The reference changes sides if the other side needs less than this share of the move.
BETTER = 0.5
#: Share of the clearance that is kept where no way keeps all of it.
SQUEEZED = 0.5
#: Length of the chords that give the direction of the reference, in m.
CHORD = 0.3
#: How far along the way around the robot may be already, in m.
AHEAD = 0.5
#: Cell of the grid around the robot, and how near to the robot less clearance will do, in m.
CELL, START = 0.1, 0.3
#: Times the reference must be clear in a row until the side is forgotten.
CLEAR_CYCLES = 10


class Side(Enum):
    """The side on which the reference passes, as the factor of its left normal."""

    LEFT = 1.0
    RIGHT = -1.0


class Detour:
    """Chooses a side, and keeps it.

    Args:
        strafes: Whether the robot passes sideways, with its heading; it turns aside otherwise.

    Attributes:
        side: Side on which the reference passes; None if it is clear, or blocked on both sides.
    """

    def __init__(self, strafes: bool = False) -> None:
        self._strafes = strafes
        self.side: Side | None = None
        self._clear_cycles = 0

    def lead(
        self,
        columns: Mapping[str, np.ndarray],
        obstacles: Ahead,
        clearance: float,
        robot: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Return the columns of a planar reference, moved to one side of the obstacles on it.

        Args:
            columns: Columns with x, y, yaw (N + 1,), in m and rad.
            obstacles: Obstacles at these times.
            clearance: Distance that the rim of the robot keeps from each of them, in m.
            robot: Its position (2,) in m.
        """
        points = np.stack([columns["x"], columns["y"]], axis=1)
        edges = np.diff(points, axis=0)
        lengths = np.hypot(edges[:, 0], edges[:, 1])
        moving = np.append(lengths, 0.0) > 1e-6
        poses = np.stack([columns["x"], columns["y"], columns["yaw"]], axis=1)
        if (
            not moving.any()
            or obstacles.is_empty
            or (obstacles.gaps(poses, clearance) >= clearance).all()
        ):
            self._clear_cycles += 1
            if self._clear_cycles >= CLEAR_CYCLES:
                self.side = None
            return dict(columns)
        self._clear_cycles = 0
        tangents = _tangents(points, lengths)
        normals = np.stack([-tangents[:, 1], tangents[:, 0]], axis=1)
        for kept in (clearance, SQUEEZED * clearance):
            found = {
                side: _offsets(poses, side.value * normals, obstacles, kept, lengths, moving)
                for side in Side
            }
            self.side = self._better(found)
            if self.side is not None:
                break
        offsets = None if self.side is None else found[self.side]
        if self.side is not None and offsets is not None:
            moved = _unfolded(points + self.side.value * offsets[:, None] * normals, tangents)
        else:
            way = _shortest(poses[moving], robot, obstacles, SQUEEZED * clearance)
            if way is None:
                return dict(columns)
            moved = _along(way, np.concatenate([[0.0], np.cumsum(lengths)]))
        led = {**columns, **_retimed(moved, edges, lengths, columns["yaw"], robot)}
        return _sideways(columns, led) if self._strafes else led

    def _better(self, found: Mapping[Side, np.ndarray | None]) -> Side | None:
        sizes = {s: float(o.max()) for s, o in found.items() if o is not None}
        if not sizes:
            return None
        best = min(sizes, key=lambda side: sizes[side])
        if self.side in sizes and sizes[best] > BETTER * sizes[self.side]:
            return self.side
        return best


def _tangents(points: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return unit vectors along the chords before and behind each point, (N + 1, 2).

    Paths of planners on grids zigzag, and moves along their normals would cross each other.
    """
    arc = np.concatenate([[0.0], np.cumsum(lengths)])
    arc += 1e-9 * np.arange(len(arc))
    ends = [
        np.stack([np.interp(arc + far, arc, points[:, i]) for i in range(2)], axis=1)
        for far in (-CHORD, CHORD)
    ]
    chords = ends[1] - ends[0]
    return chords / np.maximum(np.hypot(chords[:, 0], chords[:, 1]), 1e-9)[:, None]


def _unfolded(points: np.ndarray, tangents: np.ndarray) -> np.ndarray:
    """Return points (N + 1, 2) without those that lie behind one before: a corner cut inside."""
    kept = [0]
    for k in range(1, len(points)):
        if (points[k] - points[kept[-1]]) @ tangents[k] >= 0.0:
            kept.append(k)
    every = np.arange(len(points))
    return np.stack([np.interp(every, kept, points[kept, i]) for i in range(2)], axis=1)


def _offsets(
    poses: np.ndarray,
    normals: np.ndarray,
    obstacles: Ahead,
    clearance: float,
    lengths: np.ndarray,
    moving: np.ndarray,
) -> np.ndarray | None:
    """Return the smallest clear moves along the normals, (N + 1,); None where there are none."""
    tried = np.arange(0.0, FARTHEST + STEP, STEP)
    at = np.repeat(poses[None], len(tried), axis=0)  # (K, N + 1, 3)
    at[:, :, :2] += tried[:, None, None] * normals
    gaps = obstacles.gaps(at, clearance)
    # A move leads out of an obstacle, and not through one to the place behind it.
    was_free = np.maximum.accumulate(gaps >= 0.0)
    through = np.maximum.accumulate(was_free & (gaps < 0.0))
    clear = (gaps >= clearance) & ~through
    clear[:, ~moving] = True  # where it stands it means that place
    if not clear.any(axis=0).all():
        return None
    offsets = tried[np.argmax(clear, axis=0)]
    # A way out and back: each point reaches every larger move ahead of it and behind it.
    s = SLOPE * np.concatenate([[0.0], np.cumsum(lengths)])
    ahead = np.maximum.accumulate((offsets - s)[::-1])[::-1] + s
    behind = np.maximum.accumulate(offsets + s) - s
    return np.maximum(ahead, behind) * moving


def _shortest(
    poses: np.ndarray, robot: np.ndarray, obstacles: Ahead, clearance: float
) -> np.ndarray | None:
    """Return the shortest way (K, 2) over a grid, and on along poses (M, 3) that are clear again.

    The grid ends FARTHEST from the robot, and takes what moves to stand. None if there is no way.
    """
    side = CELL * np.arange(-round(FARTHEST / CELL), round(FARTHEST / CELL) + 1)
    offsets = np.stack(np.meshgrid(side, side, indexing="ij"), axis=2)
    places = robot + offsets
    yaws = np.full((*places.shape[:2], 1), poses[0, 2])
    gaps = obstacles.gaps(np.concatenate([places, yaws], axis=2)[:, :, None], clearance)[:, :, 0]
    near = np.linalg.norm(offsets, axis=2) <= START
    free = (gaps >= clearance) | (near & (gaps >= 0.0))
    cells, heads, tails, costs = np.arange(free.size).reshape(free.shape), [], [], []
    for i, j in ((1, 0), (0, 1), (1, 1), (1, -1)):
        ahead = slice(i, None), slice(max(j, 0), len(side) + min(j, 0))
        behind = slice(None, len(side) - i), slice(max(-j, 0), len(side) - max(j, 0))
        open_ = free[ahead] & free[behind]
        heads.append(cells[ahead][open_])
        tails.append(cells[behind][open_])
        costs.append(np.full(len(heads[-1]), math.hypot(i, j)))
    edges = np.concatenate(costs), (np.concatenate(heads), np.concatenate(tails))
    graph = coo_array(edges, shape=(free.size, free.size)).tocsr()
    apart, before = dijkstra(
        graph, directed=False, indices=free.size // 2, return_predecessors=True
    )
    clear = obstacles.gaps(poses[:, None], clearance)[:, 0] >= clearance
    at = np.rint((poses[:, :2] - robot) / CELL).astype(int) + len(side) // 2
    clear &= ((at >= 0) & (at < len(side))).all(axis=1)
    clear[clear] = np.isfinite(apart[cells[tuple(at[clear].T)]])
    again = np.flatnonzero(clear[1:] & ~clear[:-1]) + 1
    if not len(again):
        return None
    back = int(again[-1])  # beyond the last obstacle
    way = [int(cells[tuple(at[back])])]
    while before[way[-1]] >= 0:
        way.append(int(before[way[-1]]))
    return np.concatenate([places.reshape(-1, 2)[way[::-1]], poses[back:, :2]])


def _along(way: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return the points at distances (N + 1,) along a way (K, 2)."""
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
    return np.stack([np.interp(distances, arc, way[:, i]) for i in range(2)], axis=1)


def _retimed(
    moved: np.ndarray, edges: np.ndarray, lengths: np.ndarray, yaw: np.ndarray, robot: np.ndarray
) -> dict[str, np.ndarray]:
    """Return x, y, yaw along the longer way at the speed of the shorter one.

    It begins where the robot is on the longer way: one that began behind it would wait for it to
    catch up, in each cycle anew.
    """
    longer = np.diff(moved, axis=0)
    turned = np.arctan2(longer[:, 1], longer[:, 0]) - np.arctan2(edges[:, 1], edges[:, 0])
    turned = np.append(np.where(lengths > 1e-6, turned, 0.0), 0.0)
    turned = np.arctan2(np.sin(turned), np.cos(turned))
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(longer[:, 0], longer[:, 1]))])
    arc += 1e-9 * np.arange(len(arc))  # increasing where it stands
    squares = np.maximum((longer**2).sum(axis=1), 1e-12)
    share = np.clip(((robot - moved[:-1]) * longer).sum(axis=1) / squares, 0.0, 1.0)
    apart = np.linalg.norm(moved[:-1] + share[:, None] * longer - robot, axis=1)
    nearest = int(np.argmin(np.where(arc[:-1] <= AHEAD, apart, np.inf)))
    begin = arc[nearest] + share[nearest] * math.sqrt(squares[nearest])
    at = begin + np.concatenate([[0.0], np.cumsum(lengths)])
    columns = {"x": moved[:, 0], "y": moved[:, 1], "yaw": yaw + turned}
    return {name: np.interp(at, arc, values) for name, values in columns.items()}


def _sideways(
    columns: Mapping[str, np.ndarray], led: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Turn the velocity v, vy of columns that lead aside in place of the heading."""
    turned = led["yaw"] - columns["yaw"]
    v, vy = (columns.get(name, np.zeros(len(turned))) for name in ("v", "vy"))
    cos, sin = np.cos(turned), np.sin(turned)
    return {**led, "yaw": columns["yaw"], "v": cos * v - sin * vy, "vy": sin * v + cos * vy}
