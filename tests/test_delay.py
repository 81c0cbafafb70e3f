# SPDX-License-Identifier: Apache-2.0
"""A delay that the controller knows costs it little, whatever part of the way it lies on."""

import numpy as np
import pytest
from loop_messages import ns, odometry, plan

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.path import PathReference
from mpc_banded.ros.demo.scenarios import figure_of_eight

DELAY, PERIOD = 0.15, 0.05
BEGIN = 1000.0


def rms_error(known_s, delay_s=DELAY, state_lag=0, latency_s=0.0):
    """RMS distance from the path of a robot whose actuators answer late.

    The state is stamped as it was measured and comes ``state_lag`` periods later.
    """
    config = Config({"actuation_delay": known_s, "reference_speed": 0.8, "horizon": 25})
    loop, robot = ControlLoop(config), Simulation(config, delay_s=delay_s + latency_s)
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


def test_known_delay_of_150_ms_costs_little_and_an_unknown_one_much():
    without_delay, known, unknown = rms_error(0.0, 0.0), rms_error(DELAY), rms_error(0.0)
    assert known < 1.3 * without_delay + 0.002
    assert unknown > 3.0 * known


def test_age_of_the_state_by_its_stamp_is_made_up_for():
    assert rms_error(0.0, 0.0, state_lag=3) < 1.3 * rms_error(0.0, 0.0) + 0.002


def test_expected_solve_time_counts_as_any_delay():
    assert rms_error(0.1, 0.1, latency_s=0.05) == pytest.approx(rms_error(DELAY), rel=1e-3)
