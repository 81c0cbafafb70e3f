# SPDX-License-Identifier: Apache-2.0
"""Limits the speed of a base along a path: how it speeds up, takes curves and brakes.

The fastest speed at each point obeys the wanted speed, the turn rate that the path's curvature
asks for, and a constant deceleration before everything slower ahead. Its square is piecewise
linear in the arc length (v^2 = v0^2 + 2 a s), so linear interpolation of the square is exact
where the base brakes (Bobrow, Dubowsky and Gibson, Int. J. Robotics Research 4(3), 1985, for the
backward pass; Macenski et al., Autonomous Robots 47, 2023, for the regulation by curvature).

A base whose velocity follows its command with a lag cannot end its deceleration at once. So the
last of it fades, v = s / T with the distance s to the end and the settling time T, as soon as the
constant deceleration is no smaller than v / T; to that end braking begins a T^2 / 2 earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Share of a limit that a reference uses: the rest is for catching up with it.
SHARE = 0.9
#: Settling time of a base without a lag in s, and how many lags the others take on top.
SETTLING, LAGS = 0.2, 2.0
#: Share of the deceleration limit with which a reference brakes.
BRAKING_SHARE = 0.8
#: Length of the chords that measure the curvature of a path, in m.
CORNER = 0.25
#: Longest distance between two points of the table, and the most points, of a profile.
RESOLUTION, POINTS = 0.05, 20_000


@dataclass(frozen=True)
class MotionLimits:
    """Limits of a base along a path; infinite where there are none.

    Attributes:
        forward, backward: Fastest speeds in m/s, both positive.
        acceleration: Acceleration along the path in m/s^2.
        turn_rate: Turn rate in rad/s.
        turn_acceleration: Angular acceleration in rad/s^2.
        lag: Time in s in which it reaches a commanded speed.
    """

    forward: float = math.inf
    backward: float = math.inf
    acceleration: float = math.inf
    turn_rate: float = math.inf
    turn_acceleration: float = math.inf
    lag: float = 0.0


class SpeedProfile:
    """The fastest speed at each point of a curve that ends standing.

    Args:
        arc: Increasing arc lengths (M,) of the points of the curve, from 0, in m.
        points: Points (M, 2) of the curve in m; their curvature limits the speed.
        speed: Wanted speed along the curve in m/s.
        limits: Limits of the base.
        backwards: Whether it drives backwards.
    """

    def __init__(
        self,
        arc: np.ndarray,
        points: np.ndarray,
        speed: float,
        limits: MotionLimits,
        backwards: bool = False,
    ) -> None:
        self._limits = limits
        fastest = SHARE * (limits.backward if backwards else limits.forward)
        length = float(arc[-1])
        count = min(POINTS, max(2, math.ceil(length / RESOLUTION) + 1))
        self._arc = np.linspace(0.0, length, count)
        squared = np.full(count, min(speed, fastest) ** 2)
        if math.isfinite(limits.turn_rate) and len(points) > 2:
            curvature = _curvature(arc, points, self._arc)
            with np.errstate(divide="ignore"):
                squared = np.minimum(squared, (SHARE * limits.turn_rate / curvature) ** 2)
        self._settling = SETTLING + LAGS * limits.lag
        left = length - self._arc
        deceleration = BRAKING_SHARE * limits.acceleration
        stopping = (left / self._settling) ** 2
        if math.isfinite(deceleration):
            # Braking from each point must reach every slower one ahead of it.
            reach = squared + 2.0 * deceleration * self._arc
            reach = np.minimum.accumulate(reach[::-1])[::-1]
            squared = reach - 2.0 * deceleration * self._arc
            fading = deceleration * self._settling**2  # distance over which braking fades
            stopping = np.where(left > fading, deceleration * (2.0 * left - fading), stopping)
        self._squared = np.clip(stopping, 0.0, squared)

    def fastest_at(self, s: float) -> float:
        """Return the fastest speed at arc length ``s``, in m/s."""
        left = max(0.0, float(self._arc[-1]) - s)
        return min(math.sqrt(np.interp(s, self._arc, self._squared)), left / self._settling)

    def travel(self, s: float, speed: float, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return arc lengths and speeds at ``times`` (N + 1,) from 0 on, from ``s`` and ``speed``.

        The base speeds up with constant acceleration until it reaches the fastest speed.
        """
        length, gain = float(self._arc[-1]), self._limits.acceleration
        arc, speeds = np.empty(len(times)), np.empty(len(times))
        v = min(max(speed, 0.0), self.fastest_at(s)) if math.isfinite(gain) else self.fastest_at(s)
        v = v if s < length else 0.0
        arc[0], speeds[0] = s, v
        for k, dt in enumerate(np.diff(times), start=1):
            faster = v + gain * dt
            ahead = min(length, s + min(0.5 * (v + faster), self.fastest_at(s)) * dt)
            reached = min(faster, self.fastest_at(ahead))
            if reached < faster:  # held by the profile: the mean of both ends
                ahead = min(length, s + 0.5 * (v + reached) * dt)
            s, v = ahead, reached if ahead < length else 0.0
            arc[k], speeds[k] = s, v
        return arc, speeds


def turn(angle: float, rate: float, times: np.ndarray, limits: MotionLimits) -> np.ndarray:
    """Return how far a turn on the spot by ``angle`` has got at ``times`` (N + 1,), in rad.

    Args:
        angle: Angle in rad; its sign is the direction.
        rate: Present turn rate of the base in rad/s.
        times: Times from 0 on, in s.
        limits: Limits of the base.
    """
    size, sign = abs(angle), math.copysign(1.0, angle)
    if size == 0.0:
        return np.zeros(len(times))
    straight = MotionLimits(
        limits.turn_rate, limits.turn_rate, limits.turn_acceleration, lag=limits.lag
    )
    profile = SpeedProfile(np.array([0.0, size]), np.zeros((2, 2)), math.inf, straight)
    if not math.isfinite(profile.fastest_at(0.0)):
        return np.full(len(times), angle)
    return sign * profile.travel(0.0, sign * rate, times)[0]


def _curvature(arc: np.ndarray, points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the curvature in 1/m at arc lengths ``at``, by the chords before and after.

    Chords are longer than edges, so that a millimetre of noise on a dense path is no curve.
    """

    def point(s: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(s, arc, points[:, i]) for i in range(2)], axis=-1)

    here = point(at)
    before, after = here - point(at - CORNER), point(at + CORNER) - here
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return np.abs(np.arctan2(cross, (before * after).sum(axis=1))) / CORNER
