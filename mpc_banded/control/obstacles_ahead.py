# SPDX-License-Identifier: Apache-2.0
"""Obstacles along one horizon: how near they come to the robot, and which ones count.

Obstacles are circles, which may move, and clouds of hits, which stand still. A k-d tree finds the
nearest hits (Bentley, Communications of the ACM 18(9), 1975): it is exact, and for a scan or a
local map it takes a tenth of the time of a distance transform of the same area.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from mpc_banded.robots.planar import Footprint

#: A circle too far away to matter.
UNUSED = (1e4, 1e4, 0.0)
#: How far before the tangent at a nearer circle another may begin and lie beyond it, in m.
TANGENT = 1e-3
#: Added to the gap of what lies beyond another one, in m.
COVERED = 1e6
#: Directions of the hits that count beside the nearest one: ahead, left, behind, right.
_AROUND = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


@dataclass(frozen=True)
class Cloud:
    """Hits of one source.

    Attributes:
        hits: Positions (H, 2) in m.
        cover: Radius in m of the circle around each hit that belongs to it.
    """

    hits: np.ndarray
    cover: float = 0.0

    def within(self, low: np.ndarray, high: np.ndarray) -> Cloud:
        """Return the hits in a box with corners (2,)."""
        inside = ((self.hits >= low) & (self.hits <= high)).all(axis=1)
        return Cloud(self.hits[inside], self.cover)


class Ahead:
    """Obstacles along one horizon.

    What touches the robot already is a circle of its own, so that it may move away from it.

    Args:
        circles: x, y, radius at each stage, (N + 1, M, 3) in m.
        clouds: Hits of each source.
        pose: Present pose of the robot: x, y, yaw (3,).
        footprint: Outline of the robot.
    """

    def __init__(
        self, circles: np.ndarray, clouds: Sequence[Cloud], pose: np.ndarray, footprint: Footprint
    ) -> None:
        self._footprint = footprint
        self._trees: list[tuple[KDTree, float]] = []
        centres, radii = footprint.centres(pose), footprint.radii
        for cloud in clouds:
            gaps = _apart(cloud.hits[:, None], centres) - radii
            touches = (gaps < cloud.cover).any(axis=1)
            if touches.any():
                touching = np.column_stack([cloud.hits, np.full(len(cloud.hits), cloud.cover)])
                stages = np.broadcast_to(touching[touches], (len(circles), touches.sum(), 3))
                circles = np.concatenate([circles, stages], axis=1)
            if not touches.all():
                rest = cloud.hits[~touches]
                tree = KDTree(rest, balanced_tree=False, compact_nodes=False)
                self._trees.append((tree, cloud.cover))
        self.circles = circles

    @property
    def is_empty(self) -> bool:
        """Whether there are no obstacles."""
        return not self._trees and not self.circles.shape[1]

    def gaps(self, poses: np.ndarray, up_to: float = math.inf) -> np.ndarray:
        """Return the gap between the rims of the robot and of the nearest obstacle.

        Args:
            poses: x, y, yaw of the robot at each stage, (..., N + 1, 3), or at the first ones.
            up_to: Larger gaps may be returned as infinite, which takes less time.

        Returns:
            Gaps (..., N + 1) in m, negative where they overlap.
        """
        centres = self._footprint.centres(poses)  # (..., N + 1, F, 2)
        result = np.full(poses.shape[:-1], np.inf)
        if self.circles.shape[1]:
            result = self._to_circles(centres, poses.shape[-2]).min(axis=(-1, -2))
        for tree, cover in self._trees:
            farthest = up_to + cover + self._footprint.radii.max()
            apart, _ = tree.query(centres, distance_upper_bound=farthest)
            hit_gaps = (apart - cover - self._footprint.radii).min(axis=-1)
            result = np.minimum(result, hit_gaps)
        return result

    def worst(
        self, poses: np.ndarray, may_leave: bool = True
    ) -> tuple[float, tuple[float, float, float]]:
        """Return the smallest gap along a plan after its first stage, and the circle there.

        Args:
            poses: x, y, yaw of the robot at the first stages, (K, 3).
            may_leave: Whether an overlap with an obstacle that touches the robot at the first
                stage counts only if it grows.
        """
        found = (math.inf, UNUSED)
        centres = self._footprint.centres(poses)
        if self.circles.shape[1]:
            gaps = self._to_circles(centres, len(poses)).min(axis=1)  # (K, M)
            touched = np.minimum(0.0, gaps[0]) if may_leave else 0.0
            growing = (gaps[1:] - touched).min(axis=0)
            which = int(np.argmin(growing))
            found = (float(growing[which]), tuple(self.circles[0, which].tolist()))
        for tree, cover in self._trees:
            apart, hits = tree.query(centres[1:])
            gaps = apart - cover - self._footprint.radii
            stage, circle = np.unravel_index(int(np.argmin(gaps)), gaps.shape)
            if gaps[stage, circle] < found[0]:
                x, y = tree.data[hits[stage, circle]].tolist()
                found = (float(gaps[stage, circle]), (x, y, cover))
        return found

    def chosen(self, ways: Sequence[np.ndarray], slots: int) -> np.ndarray:
        """Fill the slots of each stage with the circles that come nearest to the robot there.

        A circle keeps its slot from stage to stage where there are enough for all. Of the hits,
        the nearest one counts, and the nearest to places around the robot: a wall on one side
        must not hide the one on the other.

        Args:
            ways: Ways that the robot may take: x, y, yaw at each stage, (N + 1, 3) each.
            slots: Number of slots.

        Returns:
            Circles (N + 1, slots, 3); unused slots hold a circle too far away to matter.
        """
        stages = len(self.circles)
        result = np.tile(UNUSED, (stages, slots, 1))
        every = np.concatenate([self.circles, self._hits_around(ways)], axis=1)
        if every.shape[1] > slots:
            gaps = np.min([self._to(every, way) for way in ways], axis=0)
            every = self._uncovered(every, gaps, ways[0], slots)
        result[:, : every.shape[1]] = every
        return result

    def _uncovered(
        self, circles: np.ndarray, gaps: np.ndarray, way: np.ndarray, slots: int
    ) -> np.ndarray:
        """Order circles: the nearest one, the nearest one not beyond its tangent, and so on.

        Circles beyond the tangent at a nearer one can only be met after it, as with the half
        planes of a safe corridor (Liu et al., IEEE Robotics and Automation Letters 2(3), 2017).
        They fill the slots that are left.
        """
        stages = np.arange(len(circles))
        centres = self._footprint.centres(way)[:, :, None]
        offsets = circles[:, None, :, :2] - centres  # (N + 1, F, M, 2)
        apart = np.linalg.norm(offsets, axis=3)
        rims = apart - self._footprint.radii[:, None]
        nearest = np.argmin(rims, axis=1)[:, None]  # the circle of the robot that is nearest
        apart = np.take_along_axis(apart, nearest, axis=1)[:, 0]
        rank, picked = gaps.copy(), []
        for _ in range(slots):
            index = np.argmin(rank, axis=1)
            picked.append(index)
            own = nearest[stages, 0, index]
            distance = np.maximum(apart[stages, index], 1e-6)
            normal = offsets[stages, own, index] / distance[:, None]
            depth = (offsets[stages, own] @ normal[:, :, None])[:, :, 0] - circles[:, :, 2]
            tangent = distance - circles[stages, index, 2]
            rank[(depth >= tangent[:, None] - TANGENT) & (rank < COVERED)] += COVERED
            rank[stages, index] = np.inf
        order = np.sort(np.stack(picked, axis=1), axis=1)
        return np.take_along_axis(circles, order[:, :, None], axis=1)

    def _hits_around(self, ways: Sequence[np.ndarray]) -> np.ndarray:
        """Return the hits nearest to the robot on each way, and around it on the first one.

        Returns:
            Different circles (N + 1, H, 3).
        """
        stages = len(ways[0])
        if not self._trees:
            return np.empty((stages, 0, 3))
        c, s = np.cos(ways[0][:, 2]), np.sin(ways[0][:, 2])
        turn = np.stack([np.stack([c, s], axis=1), np.stack([-s, c], axis=1)], axis=1)
        offsets = self._footprint.radii.max() * _AROUND @ turn  # (N + 1, 4, 2)
        centres = [self._footprint.centres(way) for way in ways]  # (N + 1, F, 2) each
        around = (centres[0][:, :, None] + offsets[:, None]).reshape(stages, -1, 2)
        places = np.concatenate([*centres, around], axis=1)
        found = []
        for tree, cover in self._trees:
            hits = tree.data[tree.query(places)[1]]
            place = hits[:, :, 0] + 1j * hits[:, :, 1]
            again = np.tril(place[:, :, None] == place[:, None], -1).any(axis=2)
            circles = np.concatenate([hits, np.full((*again.shape, 1), cover)], axis=2)
            circles[again] = UNUSED
            found.append(circles)
        return np.concatenate(found, axis=1)

    def _to(self, circles: np.ndarray, way: np.ndarray) -> np.ndarray:
        """Return the gaps (N + 1, M) between the robot and circles (N + 1, M, 3)."""
        centres = self._footprint.centres(way)
        apart = _apart(circles[:, None], centres[:, :, None])
        return (apart - circles[:, None, :, 2] - self._footprint.radii[:, None]).min(axis=1)

    def _to_circles(self, centres: np.ndarray, stages: int | None = None) -> np.ndarray:
        """Return the gaps (..., K, F, M) between each circle of the robot and each obstacle."""
        circles = self.circles[:stages]
        apart = _apart(circles[:, None], centres[..., None, :])
        return apart - circles[:, None, :, 2] - self._footprint.radii[:, None]


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances between points that begin with x and y: a third of the time of linalg.norm."""
    x, y = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
    return np.sqrt(x * x + y * y)
