# SPDX-License-Identifier: Apache-2.0
"""References of joints: positions to hold, or a trajectory through positions at given times."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class JointReference:
    """Joint positions to hold.

    Args:
        positions: Name of a joint -> position.

    Raises:
        ValueError: A position is not finite.
    """

    def __init__(self, positions: Mapping[str, float]) -> None:
        if not np.isfinite(list(positions.values())).all():
            raise ValueError(f"the joint positions {dict(positions)} are not finite")
        self._positions = dict(positions)

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Return the positions at all stages."""
        del state, now_s
        return {name: np.full(len(times), value) for name, value in self._positions.items()}

    def ended(self, now_s: float) -> bool:
        """Return False: held positions do not move."""
        del now_s
        return False


class JointPlanReference:
    """Joint positions at given times; the last ones are held.

    Between points the positions are cubic if the plan has velocities, and linear otherwise. Up to
    the first point the reference moves straight from where the robot is when the plan begins.

    Args:
        times_s: Increasing times (M,) from the beginning, in s.
        columns: Name of a joint, or ``<name>_velocity`` -> values (M,).
        begin_s: Beginning in s, on the same clock as ``now_s``.

    Raises:
        ValueError: A value is not finite, or the times do not increase.
    """

    def __init__(
        self, times_s: np.ndarray, columns: Mapping[str, np.ndarray], begin_s: float
    ) -> None:
        if not all(np.isfinite(values).all() for values in (times_s, *columns.values())):
            raise ValueError("the joint trajectory has values that are not finite")
        if times_s[0] < 0.0 or not (np.diff(times_s) > 0.0).all():
            raise ValueError(
                f"the times of the joint trajectory are {times_s}; they must increase"
            )
        self._times, self._columns, self._begin_s = times_s, dict(columns), begin_s
        self._starts_here = times_s[0] > 0.0

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Return positions and velocities along the horizon."""
        if self._starts_here:
            self._start_at(state, max(0.0, min(now_s - self._begin_s, 0.5 * self._times[0])))
        at = now_s - self._begin_s + times
        result = {}
        for name, positions in self._columns.items():
            if not self._is_rate(name):
                rates = self._columns.get(f"{name}_velocity")
                result[name], result[f"{name}_velocity"] = _through(
                    at, self._times, positions, rates
                )
        return result

    def ended(self, now_s: float) -> bool:
        """Return whether the last time is over."""
        return now_s - self._begin_s >= self._times[-1]

    def _is_rate(self, name: str) -> bool:
        return (
            name.removesuffix("_velocity") != name
            and name.removesuffix("_velocity") in self._columns
        )

    def _start_at(self, state: Mapping[str, float], time_s: float) -> None:
        self._starts_here = False
        self._times = np.concatenate([[time_s], self._times])
        for name, values in self._columns.items():
            here = state.get(name, 0.0 if self._is_rate(name) else values[0])
            self._columns[name] = np.concatenate([[here], values])


def _through(
    at: np.ndarray, times: np.ndarray, positions: np.ndarray, rates: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and rates at times (k,) on a curve through points (M,)."""
    if len(times) == 1:
        return np.full(len(at), positions[0]), np.zeros(len(at))
    left = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 2)
    span = times[left + 1] - times[left]
    s = np.clip((at - times[left]) / span, 0.0, 1.0)
    a, b = positions[left], positions[left + 1]
    inside = (at >= times[0]) & (at < times[-1])
    if rates is None:
        return a + s * (b - a), np.where(inside, (b - a) / span, 0.0)
    va, vb = span * rates[left], span * rates[left + 1]
    # The cubic Hermite polynomial and its derivative.
    curve = a + s * va + s**2 * (3.0 * (b - a) - 2.0 * va - vb) + s**3 * (2.0 * (a - b) + va + vb)
    slope = va + 2.0 * s * (3.0 * (b - a) - 2.0 * va - vb) + 3.0 * s**2 * (2 * (a - b) + va + vb)
    return curve, np.where(inside, slope / span, 0.0)
