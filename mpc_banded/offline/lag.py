# SPDX-License-Identifier: Apache-2.0
"""Estimates delay, first-order lag and gain from a command to a motion, with intervals.

The model is ``lag * dm/dt + m = drive(t - delay)`` and ``motion = gain * m + bias``; the drive is
held from one command to the next. The model is simulated exactly and compared with the motion at
the times of its measurements (output error: Ljung, System Identification, 2nd ed., section 4.3),
so neither needs an even rate. Huber's loss bounds the influence of outliers. Residuals are
correlated in time, so the covariance comes from leaving out one block of time after the other
(delete-a-group jackknife), not from the number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.signal import lfilter
from scipy.stats import t as student

#: Grid on which the drive is filtered, and the largest delay and lag that are tried, in s.
STEP_S, MAX_DELAY_S, MAX_LAG_S = 0.005, 1.0, 10.0
COARSE_DELAYS = np.arange(0.0, MAX_DELAY_S + 1e-9, 0.05)
COARSE_LAGS = (0.0, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
#: Time for which a command is assumed to hold, in s; after it something else may move the robot.
HELD_S = 5.0
#: Least data for an estimate.
FEWEST_SAMPLES, SHORTEST_S = 40, 8.0
#: Fewest and most blocks of the jackknife, and their length in s.
FEWEST_BLOCKS, MOST_BLOCKS, BLOCK_S = 8, 40, 3.0
#: Correlation of the effects of delay and lag above which they cannot be told apart.
CONFUSED = 0.99
#: Largest share of arbitrary time shifts that fit as well for a relation to be significant.
SIGNIFICANCE = 0.05


class NothingToFind(ValueError):
    """The data allow no estimate; the message says why."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    lower: float
    upper: float

    def __contains__(self, value: float) -> bool:
        """Return whether a value is inside the interval."""
        return self.lower <= value <= self.upper


@dataclass(frozen=True)
class Drive:
    """The values (K,) that commands ask for from times (K,) in s on, each held to the next."""

    times: np.ndarray
    values: np.ndarray

    def covers(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return which spans from begins to ends (M,) have commands, with a lead for delays."""
        last = np.searchsorted(self.times, ends, "right") - 1
        first = np.searchsorted(self.times, begins - MAX_DELAY_S, "right") - 1
        silences = np.concatenate([[0], np.cumsum(np.diff(self.times) > HELD_S)])
        following = np.minimum(last + 1, len(self.times) - 1)
        inside = (first >= 0) & (last + 1 < len(self.times))
        return inside & (silences[following] == silences[np.maximum(first, 0)])


@dataclass(frozen=True)
class Motion:
    """Measurements of a motion.

    Attributes:
        times: Increasing times (M,) in s.
        values: Values (M,) at ``times``; mean rates from ``begins`` to ``times`` if ``begins`` is
            given.
        begins: Beginnings (M,) in s of the spans of mean rates; None for values of an instant.
    """

    times: np.ndarray
    values: np.ndarray
    begins: np.ndarray | None = None

    @classmethod
    def of_position(cls, times: np.ndarray, positions: np.ndarray, window_s: float) -> Motion:
        """Return the mean rates over neighbouring windows of a position, from (M,) and (M,)."""
        chosen = [0]
        for i, time in enumerate(times):
            if time - times[chosen[-1]] >= window_s - 1e-9:
                chosen.append(i)
        ends = np.asarray(chosen)
        t, p = times[ends], positions[ends]
        rates = np.diff(p) / np.diff(t) if len(t) > 1 else np.zeros(0)
        near = np.diff(t) < 5.0 * window_s  # the motion in a longer gap is unknown
        return cls(t[1:][near], rates[near], t[:-1][near])

    def part(self, keep: np.ndarray) -> Motion:
        """Return some of the measurements."""
        begins = None if self.begins is None else self.begins[keep]
        return Motion(self.times[keep], self.values[keep], begins)


class Response:
    """The motion that a drive causes; the drive is filtered exactly, on a fine grid."""

    def __init__(self, drive: Drive, end_s: float) -> None:
        start = float(drive.times[0])
        self.grid = start + STEP_S * np.arange(2 + int((end_s - start) / STEP_S))
        held = np.diff(np.append(drive.times, max(self.grid[-1], drive.times[-1])))
        area = np.concatenate([[0.0], np.cumsum(drive.values * held)])
        corners = np.append(drive.times, max(self.grid[-1], drive.times[-1]))
        self._means = np.diff(np.interp(self.grid, corners, area)) / STEP_S
        self._first = float(drive.values[0])

    def filtered(self, lag_s: float) -> np.ndarray:
        """Return the lagged drive at each point of the grid, without delay."""
        keep = np.exp(-STEP_S / lag_s) if lag_s > 1e-6 else 0.0
        rest, _ = lfilter([1.0 - keep], [1.0, -keep], self._means, zi=[keep * self._first])
        return np.concatenate([[self._first], rest])

    def at(self, motion: Motion, delay_s: float, lag_s: float) -> np.ndarray:
        """Return the delayed and lagged drive where the motion was measured, (M,)."""
        m = self.filtered(lag_s)
        if motion.begins is None:
            return np.interp(motion.times - delay_s, self.grid, m)
        return self.moved(motion.begins, motion.times, delay_s, m) / (motion.times - motion.begins)

    def moved(
        self, begins: np.ndarray, ends: np.ndarray, delay_s: float, m: np.ndarray
    ) -> np.ndarray:
        """Return the integral of ``m``, a filtered drive, between times (M,)."""
        area = np.concatenate([[0.0], np.cumsum(0.5 * STEP_S * (m[1:] + m[:-1]))])
        upper, lower = (np.interp(t - delay_s, self.grid, area) for t in (ends, begins))
        return upper - lower


@dataclass(frozen=True)
class Fit:
    """The estimates of one axis.

    Attributes:
        delay, lag: Delay and first-order lag in s.
        gain: Gain, in the unit of the motion over that of the drive.
        total: Sum of delay and lag in s, which the data determine better than either.
        bias: Motion where the drive is zero.
        correlation: Correlation of the motion with the response.
        chance: Share of arbitrary shifts in time that fit as well.
        samples, blocks: Number of samples and of blocks behind the estimates.
    """

    delay: Estimate
    lag: Estimate
    gain: Estimate
    total: Estimate
    bias: float
    correlation: float
    chance: float
    samples: int
    blocks: int

    @property
    def significant(self) -> bool:
        """Whether the data show that the motion follows the command."""
        return self.chance <= SIGNIFICANCE and 0.0 not in self.gain


def fit(drive: Drive, motion: Motion) -> Fit:
    """Estimate delay, lag and gain from drive to motion.

    Raises:
        NothingToFind: Too few samples, or a drive or motion that does not change.
    """
    motion = _usable(drive, motion)
    response = Response(drive, float(motion.times[-1]))
    drive_scale, motion_scale = float(np.std(response._means)), float(np.std(motion.values))
    if not drive_scale > 1e-9 * (1.0 + np.abs(response._means).max()):
        raise NothingToFind("the command never changes, so nothing can be seen to follow it")
    if not motion_scale > 1e-12 * (1.0 + np.abs(motion.values).max()):
        raise NothingToFind("the motion never changes, whatever the command")
    centre = float(np.median(motion.values))
    scaled = Motion(motion.times, (motion.values - centre) / motion_scale, motion.begins)
    problem = _Problem(response, scaled, 1.0 / drive_scale)
    theta = problem.solve()
    blocks = blocks_of(motion.times, float(theta[0] + theta[1]))
    cover, count = problem.covariance(theta, blocks)
    m = problem.columns(theta[0], theta[1])
    quantile = float(student.ppf(0.975, max(1, count - len(theta))))

    def estimate(weights: Sequence[float], scale: float = 1.0, lower: float = -np.inf) -> Estimate:
        w = np.array(weights)
        value, half = float(w @ theta), quantile * float(np.sqrt(w @ cover @ w))
        return Estimate(scale * value, max(lower, scale * (value - half)), scale * (value + half))

    gain_scale = motion_scale / drive_scale
    total = estimate([1, 1, 0, 0], lower=0.0)
    delay, lag = (estimate(w, lower=0.0) for w in ([1, 0, 0, 0], [0, 1, 0, 0]))
    if cover[0, 0] * cover[1, 1] == 0.0:
        delay, lag = (Estimate(e.value, 0.0, total.upper) for e in (delay, lag))
    return Fit(  # neither is longer than the sum
        delay=Estimate(delay.value, delay.lower, min(delay.upper, total.upper)),
        lag=Estimate(lag.value, lag.lower, min(lag.upper, total.upper)),
        gain=estimate([0, 0, 1, 0], gain_scale),
        total=total,
        bias=centre + float(theta[3]) * motion_scale,
        correlation=float(np.corrcoef(m, motion.values)[0, 1]) if np.ptp(m) > 0.0 else 0.0,
        chance=_chance(response, scaled),
        samples=len(motion.times),
        blocks=count,
    )


def _usable(drive: Drive, motion: Motion) -> Motion:
    """Return the finite measurements while the drive was known, each time once."""
    if not len(drive.times):
        raise NothingToFind("there are no commands")
    begins = motion.times if motion.begins is None else motion.begins
    keep = np.isfinite(motion.values) & drive.covers(begins, motion.times)
    keep[:-1] &= np.diff(motion.times) > 0.0
    motion = motion.part(keep)
    if len(motion.times) < FEWEST_SAMPLES or np.ptp(motion.times) < SHORTEST_S:
        raise NothingToFind(
            f"{len(motion.times)} measurements while commands were sent; "
            f"needed are {FEWEST_SAMPLES} over {SHORTEST_S:g} s or more"
        )
    return motion


class _Problem:
    """The scaled least-squares problem in (delay, lag, gain, bias)."""

    def __init__(self, response: Response, motion: Motion, drive_scale: float) -> None:
        self._response, self._motion, self._scale = response, motion, drive_scale
        self._loss_scale = 1.0

    def columns(self, delay_s: float, lag_s: float) -> np.ndarray:
        return self._scale * self._response.at(self._motion, delay_s, lag_s)

    def residual(self, theta: np.ndarray) -> np.ndarray:
        delay, lag, gain, bias = theta
        return self._motion.values - gain * self.columns(delay, lag) - bias

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        delay, lag, gain, _ = theta
        h = STEP_S
        lower = max(0.0, lag - h)
        by_delay = self.columns(delay + h, lag) - self.columns(delay - h, lag)
        by_lag = self.columns(delay, lag + h) - self.columns(delay, lower)
        return -np.column_stack(
            [
                gain * by_delay / (2.0 * h),
                gain * by_lag / (lag + h - lower),
                self.columns(delay, lag),
                np.ones(len(by_delay)),
            ]
        )

    def solve(self) -> np.ndarray:
        """Return the best of several starts, (4,); the scale of the loss follows the residual."""
        best = None
        for start in self._starts():
            theta = start
            for _ in range(2):
                self._loss_scale = self._spread(theta)
                found = least_squares(
                    self.residual,
                    theta,
                    self.jacobian,
                    bounds=([0, 0, -np.inf, -np.inf], [MAX_DELAY_S, MAX_LAG_S, np.inf, np.inf]),
                    loss="huber",
                    f_scale=1.345 * self._loss_scale,
                    x_scale=[0.1, 0.1, 1.0, 1.0],
                    max_nfev=60,
                )
                theta = found.x
            cost = self._robust_cost(theta)
            if best is None or cost < best[0]:
                best = (cost, theta, self._loss_scale)
        assert best is not None
        self._loss_scale = best[2]
        return np.asarray(best[1])

    def _spread(self, theta: np.ndarray) -> float:
        """Return a robust standard deviation of the residual where the motion changes.

        A robot at rest agrees with any model. If it counted, the loss would take the informative
        steps for outliers.
        """
        r = np.abs(self.residual(theta))
        telling = np.abs(self.jacobian(theta)[:, 0])
        chosen = r[telling >= 0.5 * np.sqrt((telling**2).mean())]
        return max(1.4826 * float(np.median(chosen)), 1.4826 * float(np.median(r)), 1e-6)

    def _robust_cost(self, theta: np.ndarray) -> float:
        return float(np.abs(self.residual(theta)).sum())

    def _starts(self) -> list[np.ndarray]:
        """Return the best points of a coarse grid, with the gain and bias that suit each."""
        y = self._motion.values
        found = []
        for lag in COARSE_LAGS:
            row = []
            for delay in COARSE_DELAYS:
                m = self.columns(delay, lag)
                spread = float(np.var(m))
                gain = float(np.cov(m, y, bias=True)[0, 1]) / spread if spread > 1e-12 else 0.0
                bias = float(y.mean() - gain * m.mean())
                error = float(((y - gain * m - bias) ** 2).mean())
                row.append((error, np.array([delay, lag, gain, bias])))
            found.append(min(row, key=lambda pair: pair[0]))
        found.sort(key=lambda pair: pair[0])
        return [theta + np.array([0.0, 1e-3, 0.0, 0.0]) for _, theta in found[:3]]

    def covariance(self, theta: np.ndarray, block_of: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the covariance (4, 4) from leaving out each block, and the number of blocks."""
        jacobian, r = self.jacobian(theta), self.residual(theta)
        bound = 1.345 * self._loss_scale
        weights = np.minimum(1.0, bound / np.maximum(np.abs(r), 1e-300))
        scores = -jacobian * (weights * r)[:, None]
        bent = np.abs(r) <= bound  # where the loss is curved
        curvature = (jacobian * bent[:, None]).T @ jacobian
        names = np.unique(block_of)
        shifts = []
        known = [i for i in range(len(theta)) if i != self._confused(theta, curvature)]
        for name in names:
            inside = block_of == name
            j = jacobian[inside]
            rest = curvature - (j * bent[inside, None]).T @ j
            score = scores.sum(axis=0) - scores[inside].sum(axis=0)
            shift = np.zeros(len(theta))
            shift[known] = _solved(rest[np.ix_(known, known)], score[known])
            shifts.append(shift)
        away, count = np.array(shifts), len(names)
        return (count - 1) / count * away.T @ away, count

    def _confused(self, theta: np.ndarray, curvature: np.ndarray) -> int | None:
        """Return the smaller of delay and lag, where the data cannot tell them apart.

        A short lag acts like a delay; then only their sum has a meaning.
        """
        likeness = curvature[0, 1] / np.sqrt(max(curvature[0, 0] * curvature[1, 1], 1e-300))
        return int(np.argmin(theta[:2])) if abs(likeness) > CONFUSED else None


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve with a scaled matrix; directions without information get a little weight."""
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-12))
    scaled = matrix / np.outer(scale, scale) + 1e-9 * np.eye(len(scale))
    return np.linalg.solve(scaled, right / scale) / scale


def blocks_of(times: np.ndarray, memory_s: float) -> np.ndarray:
    """Return the block of each time, (M,): equal spans that outlast the memory of the motion."""
    duration = float(np.ptp(times))
    count = int(np.clip(duration / max(BLOCK_S, 4.0 * memory_s), FEWEST_BLOCKS, MOST_BLOCKS))
    return np.minimum((count * (times - times[0]) / duration).astype(int), count - 1)


def _chance(response: Response, motion: Motion) -> float:
    """Return the share of circular time shifts at which the motion fits as well as unshifted.

    A shift keeps each signal with its autocorrelation and removes their relation (surrogate data).
    Shifted or not, the fit is that of the best delay and lag.
    """
    step = 0.02
    count = int((response.grid[-1] - response.grid[0]) / step)
    grid = response.grid[0] + step * np.arange(count)
    centres = motion.times if motion.begins is None else 0.5 * (motion.times + motion.begins)
    y = np.interp(grid, centres, motion.values)
    gap = np.append(np.diff(centres), np.inf)[np.searchsorted(centres, grid, "right") - 1]
    known = (grid >= centres[0]) & (grid <= centres[-1]) & (gap < 1.0)
    y = np.where(known, y - y[known].mean(), 0.0)
    spectrum = np.fft.rfft(y)
    best = np.zeros(count)
    for lag in COARSE_LAGS:
        m = np.interp(grid, response.grid, response.filtered(lag))
        m -= m.mean()
        norm = np.linalg.norm(m) * np.linalg.norm(y)
        if norm > 0.0:
            likeness = np.fft.irfft(spectrum * np.conj(np.fft.rfft(m)), count) / norm
            best = np.maximum(best, likeness**2)
    width = round(MAX_DELAY_S / step)
    tops = np.array([best[i : i + width].max() for i in range(0, count - width + 1, width)])
    return float((tops >= tops[0]).mean())


@dataclass(frozen=True)
class Model:
    """The parameters of the model: delay and lag in s, gain and bias."""

    delay: float
    lag: float
    gain: float
    bias: float = 0.0
