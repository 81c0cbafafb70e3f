# SPDX-License-Identifier: Apache-2.0
"""Waiting, computing and jitter of cycles are measured separately, on clocks of the test."""

import pytest

from mpc_banded.ros import timing

pytestmark = pytest.mark.ros

PERIOD_S = 0.1


class Clocks:
    """A timer with its clock, and real time; both move only when told."""

    def __init__(self):
        self.now_s = self.real_s = 0.0
        self.due_s = 0.0

    def pass_s(self, seconds, real_s=None):
        self.now_s += seconds
        self.real_s += seconds if real_s is None else real_s

    def time_until_next_call(self):
        return round(1e9 * (self.due_s - self.now_s))


@pytest.fixture
def clocks(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clocks.real_s)
    return clocks


@pytest.fixture
def cycle(clocks):
    """Runs one cycle: it begins so much after it was due, and computes for so long."""
    measured = timing.CycleClock(PERIOD_S)

    def run(due_s, waited_s, computed_s):
        clocks.pass_s(due_s + waited_s - clocks.now_s)
        clocks.due_s = due_s + PERIOD_S
        measured.begin(clocks, round(1e9 * clocks.now_s))
        budget_s = measured.budget_s(0.8)
        clocks.pass_s(computed_s)
        return measured.end(), budget_s

    run.measured = measured
    return run


def test_parts_of_a_cycle_are_measured_apart(cycle):
    cycle(0.0, 0.0, 0.02)
    timing, budget_s = cycle(0.1, 0.03, 0.04)
    assert timing.waited_s == pytest.approx(0.03)
    assert timing.computed_s == pytest.approx(0.04)
    assert timing.jitter_s == pytest.approx(0.03)
    assert (timing.skipped, timing.late) == (0, False)
    assert budget_s == pytest.approx(0.8 * PERIOD_S - 0.03)


def test_late_cycle_is_one_that_ends_after_the_next_is_due(cycle):
    assert not cycle(0.0, 0.0, 0.099)[0].late
    assert cycle(0.1, 0.0, 0.101)[0].late
    assert cycle(0.2, 0.06, 0.05)[0].late


def test_cycles_that_never_began_are_counted_once(cycle):
    cycle(0.0, 0.0, 1.03)
    timing, budget_s = cycle(1.0, 0.04, 0.01)
    assert timing.skipped == 9
    assert budget_s > 0.0
    assert cycle(1.1, 0.0, 0.01)[0].skipped == 0


@pytest.mark.parametrize("jump_s", [-5.0, 20.0])
def test_jump_of_the_clock_skips_nothing(clocks, cycle, jump_s):
    cycle(0.0, 0.0, 0.01)
    clocks.pass_s(jump_s, real_s=0.09)
    timing, _ = cycle(clocks.now_s, 0.0, 0.01)
    assert (timing.skipped, timing.late) == (0, False)


def test_one_slow_cycle_does_not_make_the_expected_latency_longer_than_a_period(cycle):
    cycle(0.0, 0.0, 50.0)
    assert 0.0 < cycle.measured.latency_s <= PERIOD_S


def test_cycle_after_another_period_is_set_skipped_nothing(clocks, cycle):
    cycle(0.0, 0.0, 0.01)
    cycle.measured.change(0.01)
    clocks.pass_s(0.07)
    timing, budget_s = cycle(0.1, 0.0, 0.002)
    assert (timing.skipped, timing.jitter_s) == (0, 0.0)
    assert budget_s == pytest.approx(0.8 * 0.01)
    clocks.due_s = 0.14
    clocks.pass_s(0.13 - clocks.now_s)
    cycle.measured.begin(clocks, round(1e9 * 0.13))
    assert cycle.measured.end().skipped == 2
