# SPDX-License-Identifier: Apache-2.0
"""Finds shortest paths of a car that only drives forward: two arcs and a line between them.

L. E. Dubins, On curves of minimal length with a constraint on average curvature, American Journal
of Mathematics 79, 1957. Of his six words the four with a line in the middle (LSL, RSR, LSR, RSL)
are built; the other two are shorter only where start and goal are close, and loop there as well.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np

Pose = tuple[float, float, float]
#: Distance between the points of a path, in m.
SPACING = 0.05
#: Most poses of one arc or straight: a goal may be far away.
MOST = 2000


def dubins_path(start: Pose, goal: Pose, radius: float) -> np.ndarray:
    """Return the shortest of the four paths as poses (M, 3): x, y in m, unwrapped yaw in rad.

    Args:
        start: x, y in m, yaw in rad.
        goal: x, y in m, yaw in rad.
        radius: Radius of the arcs in m.
    """
    words = [_word(start, goal, radius, s1, s2) for s1, s2 in product((1.0, -1.0), repeat=2)]
    first, straight, second, s1, s2 = min(
        (word for word in words if word is not None),
        key=lambda word: radius * (word[0] + word[2]) + word[1],
    )
    poses = np.array([start])
    for length, curvature in (
        (radius * first, s1 / radius),
        (straight, 0.0),
        (radius * second, s2 / radius),
    ):
        if length > 1e-6:
            poses = np.vstack([poses, _arc(poses[-1], length, curvature)])
    return poses


def _word(
    start: Pose, goal: Pose, radius: float, s1: float, s2: float
) -> tuple[float, float, float, float, float] | None:
    """Return first angle, length of the line, second angle, and the senses of both arcs."""
    (x0, y0, yaw0), (x1, y1, yaw1) = start, goal
    dx = x1 - s2 * radius * math.sin(yaw1) - (x0 - s1 * radius * math.sin(yaw0))
    dy = y1 + s2 * radius * math.cos(yaw1) - (y0 + s1 * radius * math.cos(yaw0))
    across = (s2 - s1) * radius  # of the centres' connection, seen along the line
    squared = dx * dx + dy * dy - across * across
    if squared < 0.0:
        return None
    straight = math.sqrt(squared)
    # Where one circle holds both, the line has no length and no direction.
    yaw = math.atan2(dy, dx) - math.atan2(across, straight) if straight > 1e-6 else yaw0
    first, second = ((s * turned) % math.tau for s, turned in ((s1, yaw - yaw0), (s2, yaw1 - yaw)))
    full = math.tau - 1e-6  # a turn that rounding made a full one
    return (first if first < full else 0.0, straight, second if second < full else 0.0, s1, s2)


def _arc(pose: np.ndarray, length: float, curvature: float) -> np.ndarray:
    """Return poses along an arc, without its first."""
    s = np.linspace(0.0, length, max(2, min(MOST, math.ceil(length / SPACING) + 1)))[1:]
    x, y, yaw = pose
    angles = yaw + curvature * s
    if curvature == 0.0:
        return np.stack([x + s * math.cos(yaw), y + s * math.sin(yaw), angles], axis=1)
    dx = (np.sin(angles) - math.sin(yaw)) / curvature
    dy = (math.cos(yaw) - np.cos(angles)) / curvature
    return np.stack([x + dx, y + dy, angles], axis=1)
