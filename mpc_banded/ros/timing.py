# SPDX-License-Identifier: Apache-2.0
"""Measures control cycles: how long each one waited and computed, and its jitter."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rclpy.timer import Timer

#: Weight of each new measurement in the expected time from tick to command.
LATENCY_GAIN = 0.2
#: Share of the time for a solve that a cycle has at least, however late it begins.
LEAST_BUDGET = 0.25


@dataclass(frozen=True)
class Timing:
    """Timing of one cycle, in seconds.

    Attributes:
        waited_s: Time from when it was due until it began.
        computed_s: Time from its beginning until its command was sent.
        jitter_s: Time since the cycle before began, minus the period.
        skipped: Number of cycles before it that were due and never began.
        late: Whether its command came after the next cycle was due.
    """

    waited_s: float
    computed_s: float
    jitter_s: float
    skipped: int
    late: bool


class CycleClock:
    """Measures the cycles of a timer.

    The timer keeps the grid: a late cycle makes the next one late by the same lack, cycles that
    are missed altogether are skipped, and the one after that is on time again.

    Args:
        period_s: Period of the cycles.

    Attributes:
        period_s: The present period.
        latency_s: Expected time from the beginning of a cycle until its command is sent.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self.latency_s = 0.0
        self._began: float | None = None
        self._is_changed = False
        self._began_ns = 0
        self._waited_s = self._jitter_s = 0.0
        self._skipped = 0

    def change(self, period_s: float) -> None:
        """Use another period from the next cycle on."""
        self.period_s, self._is_changed = period_s, True

    def begin(self, timer: Timer, now_ns: int) -> None:
        """Begin a cycle.

        Args:
            timer: The timer that called it.
            now_ns: Time on the timer's clock.
        """
        began = time.perf_counter()
        left_ns = timer.time_until_next_call()
        waited_s = 0.0 if left_ns is None else self.period_s - 1e-9 * left_ns
        waited_s = min(max(waited_s, 0.0), self.period_s)
        self._skipped, self._jitter_s = 0, 0.0
        if self._began is not None and not self._is_changed:
            # The timer's clock may be paused or jump, and real time may run faster than it.
            elapsed_s = 1e-9 * (now_ns - self._began_ns)
            between_s = min(elapsed_s, began - self._began) - waited_s + self._waited_s
            self._skipped = max(0, round(between_s / self.period_s) - 1)
            self._jitter_s = elapsed_s - self.period_s
        self._began, self._began_ns, self._waited_s = began, now_ns, waited_s
        self._is_changed = False

    def budget_s(self, share: float) -> float:
        """Return the time that is left for the solve of this cycle.

        Args:
            share: Share of the period that a cycle may use if it began on time.
        """
        whole_s = share * self.period_s
        return max(LEAST_BUDGET * whole_s, whole_s - self._waited_s)

    def end(self) -> Timing:
        """End a cycle, after its command has been sent."""
        assert self._began is not None
        computed_s = time.perf_counter() - self._began
        self.latency_s += LATENCY_GAIN * (min(computed_s, self.period_s) - self.latency_s)
        late = self._waited_s + computed_s > self.period_s
        return Timing(self._waited_s, computed_s, self._jitter_s, self._skipped, late)
