# SPDX-License-Identifier: Apache-2.0
"""Reads obstacles from messages: circles, laser scans, occupancy grids and Nav2's costmaps.

A PointCloud2 holds circles, one for each point, with the fields x, y and radius in m and, if they
move, vx and vy in m/s. No other standard message names all of these together with a frame and a
stamp: markers have no velocity, and the messages of detectors are not part of ROS itself. RViz and
Foxglove draw it as it is.

In the other messages, hits are obstacles, by the definitions of the messages:

- A ray of a scan is a hit if its range lies within [range_min, range_max]. Infinity is a ray
  without a hit; NaN and ranges below range_min carry no information (REP 117).
- A cell of a grid is a hit where its value is at least the threshold, and where it is unknown if
  unknown cells are not allowed. A costmap counts from 0 to 255, and is read on the scale of a
  grid: 255 is unknown (-1), 254 lethal (100), 253 inscribed (99).

Sizes are checked against the data of the message before any memory is allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_banded.robots.messages import yaw_of

#: Topics of obstacles -> message types. Those of OPTIONAL_PACKAGES are used where installed.
SOURCES = {
    "obstacles": "sensor_msgs/msg/PointCloud2",
    "scan": "sensor_msgs/msg/LaserScan",
    "costmap": "nav_msgs/msg/OccupancyGrid",
    "costmap_updates": "map_msgs/msg/OccupancyGridUpdate",
    "costmap_raw": "nav2_msgs/msg/Costmap",
    "costmap_raw_updates": "nav2_msgs/msg/CostmapUpdate",
}
OPTIONAL_PACKAGES = ("map_msgs", "nav2_msgs")
#: Largest number of circles.
MOST_POINTS = 100_000
#: Datatypes of sensor_msgs/PointField, from 1 on.
_DATATYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
#: Columns of a circle.
CIRCLE = ("x", "y", "radius", "vx", "vy")
#: Largest number of rays in a scan and of cells in a grid.
MOST_RAYS, MOST_CELLS = 100_000, 4_000_000
#: Smallest and largest size of a cell, and farthest place of a grid, in m.
FINEST, COARSEST, FARTHEST = 1e-3, 100.0, 1e7
#: Number of steps by which the rays of a scan may span more than a full turn.
OVERLAP = 2.0
#: Values of nav2_msgs/Costmap -> those of nav_msgs/OccupancyGrid, as Nav2's own publisher does.
_COSTS = np.array([0, *(1 + 97 * (cost - 1) // 251 for cost in range(1, 253)), 99, 100, -1])


def read_circles(message: Any) -> np.ndarray:
    """Return rows x, y, radius, vx, vy of a PointCloud2, (M, 5).

    The sizes in the message are compared with its data before any memory is allocated.

    Raises:
        ValueError: A field is missing or lies outside of a point, the sizes contradict the data, a
            value is not finite, or a radius is negative.
    """
    fields = {field.name: field for field in message.fields if field.name in CIRCLE}
    missing = [name for name in CIRCLE[:3] if name not in fields]
    if missing:
        names = sorted(field.name for field in message.fields)
        raise ValueError(f"obstacles has no fields {missing}; it has {names}")
    count, step, size = message.height * message.width, message.point_step, len(message.data)
    if message.height > 1:
        raise ValueError(f"obstacles has height {message.height}; allowed is one row of points")
    if count > MOST_POINTS:
        raise ValueError(f"obstacles has {count} points; allowed are up to {MOST_POINTS}")
    if size < count * step:
        raise ValueError(f"obstacles has {size} bytes; {count} points need {count * step}")
    if not count:
        return np.empty((0, len(CIRCLE)))
    kinds = {name: _kind(field, message.is_bigendian, step) for name, field in fields.items()}
    data = np.frombuffer(bytes(message.data), dtype=np.uint8)
    rows = data[: count * step].reshape(count, step)
    result = np.zeros((count, len(CIRCLE)))
    for name, kind in kinds.items():
        offset = fields[name].offset
        part = np.ascontiguousarray(rows[:, offset : offset + kind.itemsize])
        result[:, CIRCLE.index(name)] = part.view(kind)[:, 0]
    if not np.isfinite(result).all() or (result[:, 2] < 0.0).any():
        raise ValueError("obstacles has positions, radii or velocities that make no sense")
    return result


def _kind(field: Any, is_bigendian: bool, step: int) -> np.dtype[Any]:
    """Return the type of a field; raises ValueError if it is unknown or lies outside a point."""
    if not 1 <= field.datatype <= len(_DATATYPES):
        raise ValueError(
            f"obstacles has field {field.name!r} of datatype {field.datatype}; allowed are 1 to "
            f"{len(_DATATYPES)}"
        )
    kind = np.dtype((">" if is_bigendian else "<") + _DATATYPES[field.datatype - 1])
    if not 0 <= field.offset <= step - kind.itemsize:
        raise ValueError(
            f"obstacles has field {field.name!r} at byte {field.offset}; a point has {step} bytes "
            f"and the field needs {kind.itemsize}"
        )
    return kind


def read_scan(message: Any) -> np.ndarray:
    """Return the hits of a sensor_msgs/LaserScan, (M, 2) in m, in the frame of the scan.

    Raises:
        ValueError: It has too many rays, or angles or limits that make no sense.
    """
    count = len(message.ranges)
    if count > MOST_RAYS:
        raise ValueError(f"the scan has {count} rays; allowed are up to {MOST_RAYS}")
    first, step = float(message.angle_min), float(message.angle_increment)
    nearest, farthest = float(message.range_min), float(message.range_max)
    if not all(map(math.isfinite, (first, step, nearest))):
        raise ValueError(
            f"the scan begins at {first} rad in steps of {step} rad, with ranges from "
            f"{nearest} m; allowed are finite numbers"
        )
    if count > 1 and not 0.0 < abs(step) * (count - 1 - OVERLAP) <= math.tau:
        raise ValueError(
            f"the scan has {count} rays in steps of {step} rad; allowed is up to a full turn"
        )
    if not 0.0 <= nearest <= farthest:
        raise ValueError(
            f"the scan has ranges from {nearest} to {farthest} m; allowed are 0 <= range_min "
            "<= range_max"
        )
    ranges = np.asarray(message.ranges, dtype=np.float64)
    hit = (ranges >= nearest) & (ranges <= min(farthest, FARTHEST))  # NaN is neither
    angles = first + step * np.flatnonzero(hit)
    return ranges[hit, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@dataclass(frozen=True)
class Grid:
    """Cells of an occupancy grid or costmap.

    Attributes:
        cells: (rows, columns) from -1, which is unknown, to 100.
        resolution: Side of a cell in m.
        origin: Pose of the corner of the first cell: x, y in m, yaw in rad.
    """

    cells: np.ndarray
    resolution: float
    origin: tuple[float, float, float]

    def updated(self, message: Any) -> Grid:
        """Return the grid with the rectangle of an update.

        Args:
            message: map_msgs/OccupancyGridUpdate, or nav2_msgs/CostmapUpdate.

        Raises:
            ValueError: The rectangle is not within the grid.
        """
        is_costmap = hasattr(message, "size_x")
        names = ("x", "y", "size_x", "size_y") if is_costmap else ("x", "y", "width", "height")
        x, y, width, height = (int(getattr(message, name)) for name in names)
        _check_size("the update", width, height, len(message.data))
        rows, columns = self.cells.shape
        if not (0 <= x <= columns - width and 0 <= y <= rows - height):
            raise ValueError(
                f"the update holds {width} x {height} cells from ({x}, {y}) on; the grid has "
                f"{columns} x {rows}"
            )
        cells, part = self.cells.copy(), _cells(message.data, width, height)
        cells[y : y + height, x : x + width] = _COSTS[part & 0xFF] if is_costmap else part
        return Grid(cells, self.resolution, self.origin)

    def hits(self, threshold: int, allow_unknown: bool) -> np.ndarray:
        """Return the centres of the cells at the rims of occupied areas, (M, 2) in m.

        Args:
            threshold: Smallest value of a cell that is a hit.
            allow_unknown: Whether unknown cells are no hits.
        """
        full = self.cells >= threshold
        if not allow_unknown:
            full |= self.cells < 0
        inner = full.copy()
        inner[[0, -1]] = inner[:, [0, -1]] = False
        inner[:, 1:] &= full[:, :-1]
        inner[:, :-1] &= full[:, 1:]
        inner[1:] &= full[:-1]
        inner[:-1] &= full[1:]
        rows, columns = np.nonzero(full & ~inner)
        along, up = self.resolution * (columns + 0.5), self.resolution * (rows + 0.5)
        x, y, yaw = self.origin
        c, s = math.cos(yaw), math.sin(yaw)
        return np.stack([x + c * along - s * up, y + s * along + c * up], axis=1)

    @property
    def cell_radius(self) -> float:
        """Distance from the centre of a cell to its corner in m."""
        return self.resolution * math.sqrt(0.5)


def read_grid(message: Any) -> Grid:
    """Read a nav_msgs/OccupancyGrid.

    Raises:
        ValueError: Its size does not fit its data, or its geometry makes no sense.
    """
    info = message.info
    return _grid(int(info.width), int(info.height), info, message.data)


def read_costmap(message: Any) -> Grid:
    """Read a nav2_msgs/Costmap.

    Raises:
        ValueError: Its size does not fit its data, or its geometry makes no sense.
    """
    info = message.metadata
    grid = _grid(int(info.size_x), int(info.size_y), info, message.data)
    return Grid(_COSTS[grid.cells & 0xFF], grid.resolution, grid.origin)


def _grid(width: int, height: int, info: Any, data: Any) -> Grid:
    _check_size("the grid", width, height, len(data))
    resolution, origin = float(info.resolution), info.origin
    if not FINEST <= resolution <= COARSEST:
        raise ValueError(
            f"the grid's resolution is {resolution} m; allowed are {FINEST:g} to {COARSEST:g}"
        )
    pose = float(origin.position.x), float(origin.position.y), yaw_of(origin.orientation)
    if not all(abs(value) <= FARTHEST for value in pose):
        raise ValueError(f"the grid's origin is {pose}; allowed are up to {FARTHEST:g} m")
    return Grid(_cells(data, width, height), resolution, pose)


def _check_size(what: str, width: int, height: int, size: int) -> None:
    if width < 0 or height < 0 or width * height > MOST_CELLS:
        raise ValueError(f"{what} has {width} x {height} cells; allowed are up to {MOST_CELLS}")
    if width * height != size:
        raise ValueError(f"{what} has {width} x {height} cells, and data for {size}")


def _cells(data: Any, width: int, height: int) -> np.ndarray:
    return np.array(data, dtype=np.int16).reshape(height, width)
