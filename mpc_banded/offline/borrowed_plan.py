# SPDX-License-Identifier: Apache-2.0
"""A path for a recording that has none: from a file, or the one that its robot drove."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpc_banded.control.errors import UserCodeError, user_code
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.robots.messages import StateTopic

#: Stands for the path that the recorded robot drove, in place of a file.
DRIVEN = "driven"
#: Distance between the points of that path, and largest coordinate accepted, in m.
SPACING_M, FARTHEST_M = 0.05, 1e7
Point = tuple[float, float]


def borrowed_plan(plan: str, bag: Bag, topics: Mapping[str, StateTopic]) -> Any:
    """Return a message like nav_msgs/Path.

    Args:
        plan: A CSV file with columns x and y, or ``driven``.
        bag: The recording.
        topics: Name in the recording -> topic of a state, for the path that the robot drove.

    Raises:
        BagError: There is no path of two points or more.
    """
    points = driven_points(bag, topics) if plan == DRIVEN else read_points(Path(plan))
    points = _apart(points, 0.0)
    if len(points) < 2:
        raise BagError(
            "the recorded robot does not move, so it drove no path; give a file with --plan"
            if plan == DRIVEN
            else f"{plan} holds {len(points)} different points; allowed are two or more"
        )
    level = SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    poses = [
        SimpleNamespace(position=SimpleNamespace(x=x, y=y), orientation=level) for x, y in points
    ]
    return SimpleNamespace(poses=[SimpleNamespace(pose=pose) for pose in poses])


def driven_points(bag: Bag, topics: Mapping[str, StateTopic]) -> list[Point]:
    """Return the points that the recorded robot passed."""
    points: list[Point] = []
    for name, _, message in bag.messages(list(topics)):
        # The replay itself counts messages that cannot be read.
        with suppress(UserCodeError), user_code(f"{name} cannot be read"):
            values = topics[name].read(message)
            points.append((float(values["x"]), float(values["y"])))
    return _apart(points, SPACING_M)


def read_points(file: Path) -> list[Point]:
    """Return the points of a CSV file with columns x and y.

    Raises:
        BagError: It is no such file, or a point is no pair of numbers within range.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            points = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(stream)]
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise BagError(
            f"{file} cannot be read as a path: {error!r}; allowed are CSV files with columns x "
            "and y"
        ) from error
    for number, point in enumerate(points, start=1):
        if not _is_place(point):
            raise BagError(
                f"point {number} of {file} is {point}; allowed are numbers up to {FARTHEST_M:g} m"
            )
    return points


def _apart(points: Iterable[Point], spacing_m: float) -> list[Point]:
    """Return the valid points that are further than a distance from the one before."""
    kept: list[Point] = []
    for point in points:
        if _is_place(point) and (not kept or math.dist(kept[-1], point) > spacing_m):
            kept.append(point)
    return kept


def _is_place(point: Point) -> bool:
    return all(abs(value) <= FARTHEST_M for value in point)
