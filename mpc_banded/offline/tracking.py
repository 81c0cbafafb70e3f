# SPDX-License-Identifier: Apache-2.0
"""Compares states and references by name: angles modulo a turn, x and y as one distance."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from mpc_banded.robots.messages import has_position

#: Name of the error of x and y, the distance in m.
POSITION = "position"
#: Number of points at which the error of a plan is taken over a given time.
POINTS = 51


def difference(a: np.ndarray | float, b: np.ndarray | float, is_angle: bool) -> np.ndarray:
    """Return a - b; for angles, the equal one of at most half a turn."""
    gap = np.asarray(a, dtype=np.float64) - b
    return gap - 2.0 * math.pi * np.round(gap / (2.0 * math.pi)) if is_angle else gap


def differences(
    a: Mapping[str, float], b: Mapping[str, float], cyclic: Collection[str]
) -> dict[str, float]:
    """Return a - b of each name that both have.

    Args:
        a: Name -> value; ``name@seconds`` is as cyclic as its name.
        b: The same.
        cyclic: Names of angles.
    """
    return {
        name: float(difference(value, b[name], name.partition("@")[0] in cyclic))
        for name, value in a.items()
        if name in b
    }


def joined(gaps: Mapping[str, np.ndarray | float]) -> dict[str, np.ndarray]:
    """Return absolute errors by name, with x and y joined to a distance."""
    errors = {name: np.abs(gap) for name, gap in gaps.items() if name not in ("x", "y")}
    if has_position(gaps):
        return {POSITION: np.hypot(gaps["x"], gaps["y"]), **errors}
    return {name: np.abs(gap) for name, gap in gaps.items()}


def error_names(names: Collection[str]) -> list[str]:
    """Return the names of the errors from a reference with the given columns."""
    return list(joined(dict.fromkeys(names, 0.0)))


def tracking_errors(
    state: Mapping[str, float], reference: Mapping[str, float], cyclic: Collection[str]
) -> dict[str, float]:
    """Return how far a state is from its reference, by name."""
    return {k: float(v) for k, v in joined(differences(state, reference, cyclic)).items()}


def plan_errors(
    plan: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    cyclic: Collection[str],
    dt: float,
    window_s: float | None = None,
) -> dict[str, float]:
    """Return the root mean square errors of a plan from its reference, by name.

    Args:
        plan: Name -> (N + 1,).
        reference: Name -> (N + 1,) at the same times.
        cyclic: Names of angles.
        dt: Time between two points in s.
        window_s: Time from now on that counts, the same for plans of any length and grid; None
            takes the points of the plan.
    """
    names = [name for name in reference if name in plan]
    gaps = {name: difference(plan[name], reference[name], name in cyclic) for name in names}
    if window_s is not None:
        times = np.linspace(0.0, window_s, POINTS)
        grid = {name: dt * np.arange(len(gap)) for name, gap in gaps.items()}
        gaps = {name: np.interp(times, grid[name], gap) for name, gap in gaps.items()}
    return {
        name: float(np.sqrt(np.mean(np.square(error)))) for name, error in joined(gaps).items()
    }
