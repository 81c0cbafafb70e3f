# SPDX-License-Identifier: Apache-2.0
"""A known delay costs the controller little, whichever part of the way causes it."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_messages import ns, odometry, plan, quick_loop

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import (
    PREDICTION_SUBSTEP_S,
    Motion,
    Prediction,
    SentCommands,
    Simulation,
    averaged,
)
from mpc_banded.control.path import PathReference
from mpc_banded.control.tick import Instant
from mpc_banded.ros.demo.scenarios import figure_of_eight

DELAY, PERIOD = 0.15, 0.05
BEGIN = 1000.0


@cache
def rms_error(known_s, delay_s=DELAY, state_lag=0, latency_s=0.0):
    """RMS distance from the path of a robot whose actuators answer late.

    The state is stamped as it was measured and comes ``state_lag`` periods later.
    """
    config = Config({"actuation_delay": known_s, "reference_speed": 0.8, "horizon": 25})
    loop, robot = quick_loop(config), Simulation(config, delay_s=delay_s + latency_s)
    path = PathReference(figure_of_eight()[::5], 0.8)
    loop.on_message("plan", plan(*path.points), ns(BEGIN))
    seen, errors = [], []
    for k in range(round(8.0 / PERIOD)):
        now = BEGIN + PERIOD * k
        seen.append(odometry(now, **robot.values))
        if k >= state_lag:
            assert loop.on_message("odom", seen[k - state_lag], ns(now)) is None
        tick = loop.tick(ns(now), latency_s=latency_s)
        robot.advance(tick.command, PERIOD)
        errors.append(path.distance(robot.state[:2]))
    return float(np.sqrt(np.mean(np.square(errors[40:]))))


@pytest.mark.slow
def test_known_delay_of_150_ms_costs_little_and_an_unknown_one_much():
    without_delay, known, unknown = rms_error(0.0, 0.0), rms_error(DELAY), rms_error(0.0)
    assert known < 1.3 * without_delay + 0.002
    assert unknown > 3.0 * known


@pytest.mark.slow
def test_age_of_the_state_by_its_stamp_is_made_up_for():
    assert rms_error(0.0, 0.0, state_lag=3) < 1.3 * rms_error(0.0, 0.0) + 0.002


@pytest.mark.slow
def test_expected_solve_time_counts_as_any_delay():
    assert rms_error(0.1, 0.1, latency_s=0.05) == pytest.approx(rms_error(DELAY), rel=1e-3)


def predicted(rate, delay_s, compiled=False, age_s=0.0):
    """Where a robot that was told to drive a curve will be; each command takes effect late."""
    config = Config({"horizon": 4, "controller_frequency": rate, "actuation_delay": delay_s})
    loop = ControlLoop(config)
    if compiled:
        loop.controller.compile()
    motion = Motion(config, PREDICTION_SUBSTEP_S, lambda: loop.controller.evaluator)
    prediction, delay_ns = Prediction(config, motion), ns(delay_s)
    for k in range(round(2.0 * rate)):
        now_ns = ns(BEGIN + k / rate)
        command = {"v": 1.0, "w": float(np.sin(3.0 * k / rate))}
        prediction.sent(command, Instant(now_ns, now_ns + delay_ns, 0.0, 0.0))
    now_ns = ns(BEGIN + 2.0)
    start = np.array([0.0, 0.0, 0.0, 1.0, 0.0])
    return prediction.predict(start, now_ns - ns(age_s), now_ns + delay_ns)


def integrated(rate, delay_s, age_s):
    """The same by a simulation in small steps, each under the command that is in effect."""
    config, step = Config({"horizon": 4}), 0.001
    robot = Simulation(config, step)
    robot.state = np.array([0.0, 0.0, 0.0, 1.0, 0.0])
    for k in range(round((delay_s + age_s) / step)):
        told_s = np.floor((2.0 - age_s - delay_s + step * (k + 0.5)) * rate) / rate
        robot.advance({"v": 1.0, "w": float(np.sin(3.0 * told_s))}, step)
    return robot.state


@pytest.mark.parametrize(
    ("rate", "delay_s", "age_s"),
    [(100.0, 0.4, 0.0), (500.0, 0.4, 0.0), (1000.0, 1.0, 0.3), (500.0, 1.0, 0.25)],
)
def test_no_command_under_way_is_forgotten_at_any_rate(rate, delay_s, age_s):
    expected = integrated(rate, delay_s, age_s)
    assert predicted(rate, delay_s, age_s=age_s) == pytest.approx(expected, abs=1e-3)


def test_compiled_prediction_agrees_with_the_eager_one():
    assert predicted(50.0, 0.4, compiled=True) == pytest.approx(predicted(50.0, 0.4), abs=1e-12)


PIECES = st.lists(st.tuples(st.floats(-1.0, 1.0), st.floats(1e-4, 0.05)), max_size=40)


@given(PIECES)
def test_averaging_keeps_the_time_and_the_mean_and_leaves_long_commands_alone(pieces):
    given_pieces = [({"v": v}, duration_s) for v, duration_s in pieces]
    merged = averaged(given_pieces)
    assert sum(t for _, t in merged) == pytest.approx(sum(t for _, t in given_pieces))
    ways = [sum(c["v"] * t for c, t in some) for some in (merged, given_pieces)]
    assert ways[0] == pytest.approx(ways[1], abs=1e-12)
    longest = PREDICTION_SUBSTEP_S + 1e-6
    assert all(t <= longest or (c, t) in given_pieces for c, t in merged)
    total = sum(t for _, t in given_pieces)
    assert len(merged) <= 2.0 * total / PREDICTION_SUBSTEP_S + 1.0


def test_commands_in_effect_are_those_of_the_obvious_rule():
    sent, times = SentCommands(), [0, 10, 25, 40]
    for number, effect_ns in enumerate(times):
        sent.append({"v": float(number)}, effect_ns, kept_s=1.0)

    def obvious(begin, end):
        """Count nanosecond by nanosecond."""
        told = [max((k for k, t in enumerate(times) if t <= ns_), default=None)
                for ns_ in range(begin, end)]  # fmt: skip
        return {v: told.count(v) for v in sorted({v for v in told if v is not None})}

    for begin, end in [(0, 50), (5, 30), (12, 20), (26, 26), (30, 20), (41, 60), (-5, 12)]:
        pieces = {int(c["v"]): round(1e9 * t) for c, t in sent.between(begin, end)}
        assert pieces == obvious(begin, end)
