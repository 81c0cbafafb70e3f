# SPDX-License-Identifier: Apache-2.0
"""Keeps a metric over hours in bounded memory, with the peaks that a plot must show."""

from __future__ import annotations

import math

import numpy as np


class Timeline:
    """Values over time, in buckets of neighbouring values if there are many.

    Args:
        buckets: Largest number of buckets.

    Attributes:
        count, total, square, greatest: Number, sum, sum of squares and greatest of the finite
            values.
    """

    def __init__(self, buckets: int = 4000) -> None:
        self._limit = buckets + buckets % 2
        self._size = 1  # values in a bucket
        self._filled = 0  # values in the last one
        self._rows: list[list[float]] = []  # time, least, greatest, last
        self.count, self.total, self.square, self.greatest = 0, 0.0, 0.0, -math.inf

    def add(self, time: float, value: float) -> None:
        """Append a value; one that is not finite leaves a gap."""
        if math.isfinite(value):
            self.count += 1
            self.total += value
            self.square += value * value
            self.greatest = max(self.greatest, value)
        if self._filled in (0, self._size):
            if len(self._rows) == self._limit:
                self._halve()
            self._rows.append([time, value, value, value])
            self._filled = 1
            return
        row = self._rows[-1]
        row[1:] = [_least(row[1], value), _greatest(row[2], value), value]
        self._filled += 1

    def _halve(self) -> None:
        first, second = self._rows[::2], self._rows[1::2]
        self._rows = [
            [a[0], _least(a[1], b[1]), _greatest(a[2], b[2]), b[3]]
            for a, b in zip(first, second, strict=True)
        ]
        self._size *= 2

    @property
    def rows(self) -> np.ndarray:
        """Time, least, greatest and last value of each bucket, (K, 4)."""
        return np.array(self._rows).reshape(-1, 4)

    @property
    def mean(self) -> float:
        """Mean of all values; NaN if there are none."""
        return self.total / self.count if self.count else math.nan

    @property
    def rms(self) -> float:
        """Root of the mean square of all values; NaN if there are none."""
        return math.sqrt(self.square / self.count) if self.count else math.nan


def _least(a: float, b: float) -> float:
    return b if math.isnan(a) else a if math.isnan(b) else min(a, b)


def _greatest(a: float, b: float) -> float:
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)
