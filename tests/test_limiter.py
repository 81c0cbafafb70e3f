# SPDX-License-Identifier: Apache-2.0
"""Commands stay within their limits, and within reach of the command before."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.control.config import Config
from mpc_banded.control.limiter import Limiter

PERIOD_NS = 50_000_000
STOP = {"v": 0.0, "w": 0.0}
NUMBERS = st.floats(-50.0, 50.0)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 400)), min_size=1, max_size=20))
def test_every_command_is_within_its_limits_and_its_rates(wanted):
    config = Config({"robot": "unicycle"})
    limiter, limits = Limiter(config), config.parameters.limits
    before, now_ns, last_ns = STOP, 10**9, 10**9 - PERIOD_NS
    for v, w, waited_ms in wanted:
        now_ns += waited_ms * 1_000_000
        sent = limiter.within_reach({"v": v, "w": w}, STOP, now_ns)
        elapsed_s = 1e-9 * (now_ns - last_ns) if last_ns >= 10**9 else config.period_s
        for name, rate in (("v", "linear_acceleration"), ("w", "angular_acceleration")):
            assert limits[name][0] <= sent[name] <= limits[name][1]
            low, high = (bound * elapsed_s for bound in limits[rate])
            assert low - 1e-9 <= sent[name] - before[name] <= high + 1e-9
        before, last_ns = sent, now_ns


def test_turn_rate_of_a_car_keeps_its_curve_and_its_steering_angle_stays():
    by_twist = Limiter(Config({"robot": "bicycle"}))
    sent = by_twist.within_reach({"v": 2.0, "w": 1.0}, STOP, 10**9)
    assert sent["v"] == pytest.approx(0.15)  # 3 m/s^2 for one period
    assert sent["w"] / sent["v"] == pytest.approx(0.5)
    by_angle = Limiter(Config({"robot": "bicycle", "command": "ackermann"}))
    sent = by_angle.within_reach({"v": 2.0, "steering": 0.3}, {"v": 0.0, "steering": 0.0}, 10**9)
    assert sent == {"v": pytest.approx(0.15), "steering": 0.3}


def test_clock_that_goes_back_counts_as_one_period():
    limiter = Limiter(Config({"robot": "unicycle"}))
    first = limiter.within_reach({"v": 1.0, "w": 0.0}, STOP, 10**12)
    second = limiter.within_reach({"v": 1.0, "w": 0.0}, STOP, 10**9)
    assert second["v"] - first["v"] == pytest.approx(0.05)


@given(st.lists(st.tuples(*3 * [st.floats(-1.0, 1.0)]), min_size=1, max_size=20))
def test_base_that_strafes_gets_no_faster_than_it_was_or_is_told_to_be(wanted):
    """Held back by the rates of both components, its velocity moves straight to the wanted one."""
    limiter = Limiter(Config({"robot": "omni"}))
    before = {"v": 0.0, "vy": 0.0, "w": 0.0}
    for k, values in enumerate(wanted):
        told = dict(zip(before, values, strict=True))
        sent = limiter.within_reach(told, before, 10**9 + k * PERIOD_NS)
        speeds = [math.hypot(each["v"], each["vy"]) for each in (before, told, sent)]
        assert speeds[2] <= max(speeds[:2]) + 1e-9
        for name in ("v", "vy"):
            assert abs(sent[name] - before[name]) <= 0.05 + 1e-9  # 1 m/s^2 for one period
        before = sent
