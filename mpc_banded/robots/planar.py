# SPDX-License-Identifier: Apache-2.0
"""Bases that drive in the plane: their geometry, and the costs that they share.

The costs are for states that begin with x, y, yaw, v: pose in m and rad, forward speed in m/s.
The reference has the same four columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Limits = Mapping[str, tuple[float, float]]
Constants = Mapping[str, float]


@dataclass(frozen=True)
class Footprint:
    """The outline of a robot: circles on the line through its position along its heading.

    Attributes:
        along: Where the centre of each lies ahead of the position, (F,) in m.
        radii: (F,) in m.
    """

    along: np.ndarray
    radii: np.ndarray

    @property
    def table(self) -> np.ndarray:
        """Each circle as its place along the heading and its radius, (F, 2)."""
        return np.stack([self.along, self.radii], axis=1)

    @property
    def reach(self) -> float:
        """Distance from the position to the farthest point of the outline, in m."""
        return float((np.abs(self.along) + self.radii).max())

    def centres(self, poses: np.ndarray) -> np.ndarray:
        """Return the centres (..., F, 2) in m at poses x, y, yaw (..., 3)."""
        ahead = np.stack([np.cos(poses[..., 2]), np.sin(poses[..., 2])], axis=-1)
        return poses[..., None, :2] + self.along[:, None] * ahead[..., None, :]


@dataclass(frozen=True)
class Planar:
    """Planar geometry of a robot.

    Attributes:
        position: Indices of x and y in the state.
        yaw: Index of the yaw in the state; None for a robot without a heading.
        strafes: Whether the robot moves sideways.
        pivots: Whether the robot turns on the spot.
        turning: ``(limits, model) -> smallest turning radius`` in m; None if unknown.
    """

    position: tuple[int, int]
    yaw: int | None = None
    strafes: bool = False
    pivots: bool = False
    turning: Callable[[Limits, Constants], float] | None = None

    def positions(self, states: np.ndarray) -> np.ndarray:
        """Return the positions (..., 2) in m of states (..., nx)."""
        return states[..., list(self.position)]

    def poses(self, states: np.ndarray) -> np.ndarray:
        """Return x, y, yaw (..., 3) of states (..., nx); yaw is zero without a heading."""
        yaw = np.zeros_like(states[..., 0]) if self.yaw is None else states[..., self.yaw]
        x, y = self.position
        return np.stack([states[..., x], states[..., y], yaw], axis=-1)

    def pose(self, state: np.ndarray) -> tuple[float, float, float]:
        """Return x, y, yaw of a state (nx,)."""
        x, y, yaw = self.poses(state).tolist()
        return x, y, yaw

    def turning_radius(self, limits: Limits, model: Constants) -> float:
        """Return the smallest turning radius in m; 0 if unknown."""
        return 0.0 if self.turning is None else self.turning(limits, model)


def position(x, u, p):
    """Squared distance from the reference."""
    offset = x[..., :2] - p["reference"][..., :2]
    return (offset * offset).sum(dim=-1)


def heading(x, u, p):
    """Twice the squared sine of half the heading error: quadratic, and the same after a turn."""
    return 1.0 - torch.cos(x[..., 2] - p["reference"][..., 2])


def speed(x, u, p):
    """Squared error of the forward speed."""
    return (x[..., 3] - p["reference"][..., 3]) ** 2


def effort(x, u, p):
    """Sum of the squared inputs."""
    return (u * u).sum(dim=-1)


def distance(x: torch.Tensor, obstacles: torch.Tensor, margin: float) -> torch.Tensor:
    """Clearance (..., count) in m from the position x[..., :2] to circles (..., count, 3).

    It is smooth at the centre of a circle, where it is 1 mm too large.

    Args:
        x: States (..., nx) that begin with x, y in m.
        obstacles: Circles x, y, radius in m.
        margin: Distance from the position to keep in addition, in m.
    """
    offset = x[..., None, :2] - obstacles[..., :2]
    return torch.sqrt((offset * offset).sum(dim=-1) + 1e-6) - obstacles[..., 2] - margin


def clearance(x: torch.Tensor, p: Mapping[str, torch.Tensor], margin: float) -> torch.Tensor:
    """Clearance (..., F * count) in m from each circle of the footprint to each obstacle.

    Args:
        x: States (..., nx) that begin with x, y in m and the yaw in rad.
        p: "obstacles" (..., count, 3), and "footprint" (..., F, 2) as place along the heading and
            radius, in m.
        margin: Distance between the rims to keep in addition, in m.
    """
    along, radii = p["footprint"][..., 0], p["footprint"][..., 1]
    ahead = torch.stack([torch.cos(x[..., 2]), torch.sin(x[..., 2])], dim=-1)
    centres = x[..., None, :2] + along[..., None] * ahead[..., None, :]  # (..., F, 2)
    gaps = distance(centres, p["obstacles"][..., None, :, :], margin) - radii[..., None]
    return gaps.flatten(-2)
