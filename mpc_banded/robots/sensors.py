# SPDX-License-Identifier: Apache-2.0
"""Hits from range sensors and maps: sensor_msgs/LaserScan and nav_msgs/OccupancyGrid.

The definitions of the messages say what counts as a hit:

- A ray of a scan is a hit where its range lies within [range_min, range_max]. Infinity is a ray
  that met nothing; NaN and ranges below range_min carry no information (REP 117).
- A cell of a grid is a hit where its value is at least the threshold. Unknown cells (-1) are no
  hits: a local map has seen everything within the robot's reach.

Sizes are checked against the data of the message before any memory is allocated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpc_banded.robots.messages import yaw_of

#: Largest number of rays in a scan and of cells in a grid.
MOST_RAYS, MOST_CELLS = 100_000, 4_000_000


def read_scan(message: Any) -> np.ndarray:
    """Return the hits of a sensor_msgs/LaserScan, (M, 2) in m, in the frame of the scan.

    Raises:
        ValueError: It has too many rays, or angles that are not finite.
    """
    count = len(message.ranges)
    if count > MOST_RAYS:
        raise ValueError(f"the scan has {count} rays; allowed are up to {MOST_RAYS}")
    first, step = float(message.angle_min), float(message.angle_increment)
    nearest, farthest = float(message.range_min), float(message.range_max)
    if not (math.isfinite(first) and math.isfinite(step) and math.isfinite(nearest)):
        raise ValueError(
            f"the scan begins at {first} rad in steps of {step} rad, with ranges from "
            f"{nearest} m; allowed are finite numbers"
        )
    ranges = np.asarray(message.ranges, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        hit = (ranges >= max(nearest, 0.0)) & (ranges <= farthest) & np.isfinite(ranges)
    angles = first + step * np.flatnonzero(hit)
    return ranges[hit, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


class Grid:
    """Occupancy grid that takes updates.

    Args:
        threshold: Smallest value of a cell that is a hit, 1 to 100.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self._cells: np.ndarray | None = None

    def replace(self, message: Any) -> None:
        """Replace the grid by a nav_msgs/OccupancyGrid.

        Raises:
            ValueError: Its size does not fit its data, or its geometry is not finite.
        """
        info = message.info
        width, height, resolution = int(info.width), int(info.height), float(info.resolution)
        _check_size("the grid", width, height, len(message.data))
        if not (math.isfinite(resolution) and resolution > 0.0):
            raise ValueError(f"the grid's resolution is {resolution} m; allowed are numbers > 0")
        origin = info.origin
        pose = float(origin.position.x), float(origin.position.y), yaw_of(origin.orientation)
        if not all(map(math.isfinite, pose)):
            raise ValueError(f"the grid's origin is {pose}; allowed are finite numbers")
        self._resolution, self._origin = resolution, pose
        self._cells = _cells(message.data, width, height)

    def update(self, message: Any) -> None:
        """Replace the rectangle of the grid that a map_msgs/OccupancyGridUpdate holds.

        Raises:
            ValueError: There is no grid yet, or the rectangle is not within it.
        """
        x, y, width, height = (int(getattr(message, k)) for k in ("x", "y", "width", "height"))
        _check_size("the update", width, height, len(message.data))
        if self._cells is None:
            raise ValueError("an update came before the grid")
        rows, columns = self._cells.shape
        if not (0 <= x <= columns - width and 0 <= y <= rows - height):
            raise ValueError(
                f"the update holds {width} x {height} cells from ({x}, {y}) on; the grid has "
                f"{columns} x {rows}"
            )
        self._cells[y : y + height, x : x + width] = _cells(message.data, width, height)

    def hits(self) -> np.ndarray:
        """Return the centres of the cells that are hits, (M, 2) in m, in the frame of the grid."""
        if self._cells is None:
            return np.empty((0, 2))
        rows, columns = np.nonzero(self._cells >= self.threshold)
        along, up = self._resolution * (columns + 0.5), self._resolution * (rows + 0.5)
        x, y, yaw = self._origin
        c, s = math.cos(yaw), math.sin(yaw)
        return np.stack([x + c * along - s * up, y + s * along + c * up], axis=1)

    @property
    def cell_radius(self) -> float:
        """Distance from the centre of a cell to its corner in m; 0 before the first grid."""
        return 0.0 if self._cells is None else self._resolution * math.sqrt(0.5)


def _check_size(what: str, width: int, height: int, size: int) -> None:
    if width < 0 or height < 0 or width * height > MOST_CELLS:
        raise ValueError(f"{what} has {width} x {height} cells; allowed are up to {MOST_CELLS}")
    if width * height != size:
        raise ValueError(f"{what} has {width} x {height} cells, and data for {size}")


def _cells(data: Any, width: int, height: int) -> np.ndarray:
    return np.asarray(data, dtype=np.int16).reshape(height, width).copy()
