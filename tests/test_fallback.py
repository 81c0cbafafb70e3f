# SPDX-License-Identifier: Apache-2.0
"""Without a solve the robot follows its plan, slows down within its limits, and holds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_messages import AHEAD, ns, odometry

from mpc_banded.control.config import Config
from mpc_banded.control.fallback import slowed
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.tick import Reason

PERIOD = 0.05


def driving(robot="unicycle", seconds=2.0, **parameters):
    """A loop that has driven straight ahead, its simulated robot, and the time."""
    config = Config({"robot": robot, "reference_speed": 0.8} | parameters)
    loop, simulation = ControlLoop(config), Simulation(config)
    loop.on_message("plan", AHEAD, 0)
    for k in range(round(seconds / PERIOD)):
        now = PERIOD * k
        loop.on_message("odom", odometry(**simulation.values), ns(now))
        tick = loop.tick(ns(now))
        assert tick.driving
        simulation.advance(tick.command, PERIOD)
    return loop, simulation, seconds


def left_alone(loop, now, seconds=6.0):
    """Ticks without any further state."""
    return [loop.tick(ns(now + PERIOD * k)) for k in range(round(seconds / PERIOD))]


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["unicycle", "bicycle"])
def test_grades_follow_each_other_within_their_times(robot):
    limits = {"max_state_age": 0.2, "fallback.follow_time": 0.4}
    loop, _, now = driving(robot, **limits)
    ticks = left_alone(loop, now)
    grades = [(code, len(list(group))) for code, group in itertools.groupby(t.code for t in ticks)]
    assert [code for code, _ in grades] == [
        Reason.DRIVING,
        Reason.FOLLOWING,
        Reason.SLOWING,
        Reason.HOLDING,
    ]
    assert grades[0][1] == pytest.approx(0.2 / PERIOD, abs=1)
    assert grades[1][1] == pytest.approx(0.4 / PERIOD, abs=1)
    assert ticks[-1].command == loop.stop_command()
    speeds = np.array([tick.command["v"] for tick in ticks if tick.code is Reason.SLOWING])
    rate = abs(loop.config.parameters.limits[loop.robot.braking["v"]][0])
    assert (np.diff(speeds) <= 0.0).all()
    assert (-np.diff(speeds) <= rate * PERIOD + 1e-9).all()
    assert all("the state is" in t.reason for t in ticks if not t.driving)


def test_followed_plan_is_the_one_that_was_driven():
    loop, _, now = driving()
    plan = loop.tick(ns(now - PERIOD)).step.plan
    ticks = [t for t in left_alone(loop, now, 0.5) if t.code is Reason.FOLLOWING]
    lead = loop.config.parameters.command_lead
    ahead = ticks[-1].now_ns * 1e-9 - now + PERIOD
    assert plan.state_at(ahead + lead)[3] == pytest.approx(ticks[-1].command["v"], abs=0.05)


def test_slowing_takes_as_long_as_the_acceleration_limits_ask_for():
    loop, _, now = driving(**{"fallback.follow_time": 0.0, "fallback.slow_time": 0.2})
    ticks = left_alone(loop, now, 3.0)
    speeds = np.array([tick.command["v"] for tick in ticks])
    low, _ = loop.config.parameters.limits["linear_acceleration"]
    assert np.diff(speeds).min() >= PERIOD * low - 1e-9
    moving = [tick.code for tick, v in zip(ticks, speeds, strict=True) if v]
    assert Reason.HOLDING not in moving
    assert speeds[-1] == 0.0
    assert ticks[-1].code is Reason.HOLDING


@pytest.mark.slow
def test_state_that_comes_back_is_driven_on_from_every_grade():
    for gap in (0.4, 0.9, 3.0):
        loop, simulation, now = driving()
        for tick in left_alone(loop, now, gap):
            simulation.advance(tick.command, PERIOD)
        before = tick.code
        loop.on_message("odom", odometry(**simulation.values), ns(now + gap))
        again = loop.tick(ns(now + gap))
        assert before is not Reason.DRIVING
        assert again.driving
        assert abs(again.command["v"] - tick.command["v"]) < 0.2  # it does not lurch


def test_new_first_plan_while_moving_goes_on_slowing():
    loop, simulation, now = driving(**{"fallback.follow_time": 0.0})
    *_, last = left_alone(loop, now, 0.6)
    assert last.code is Reason.SLOWING
    loop.on_message("odom", odometry(**simulation.values), ns(now + 0.6))
    tick = loop.tick(ns(now + 0.6), deadline_s=0.0)
    assert tick.code is Reason.PLANNING
    assert 0.0 < tick.command["v"] < last.command["v"]


@pytest.mark.slow
def test_failing_solves_take_the_same_grades():
    loop, simulation, now = driving()
    usual = loop._horizon.parameters
    lost = {"reference": np.full((loop.controller.problem.horizon + 1, 4), np.nan)}
    loop._horizon.parameters = lambda *given: usual(*given) | lost  # nothing can be solved
    codes = []
    for k in range(100):
        loop.on_message("odom", odometry(**simulation.values), ns(now + PERIOD * k))
        tick = loop.tick(ns(now + PERIOD * k))
        simulation.advance(tick.command, PERIOD)
        codes.append(tick.code)
        assert "the solve failed: state, dynamics or costs are not finite" in tick.reason
        lower, upper = loop.config.parameters.limits["v"]
        assert lower <= tick.command["v"] <= upper
    order = [code for code, _ in itertools.groupby(codes)]
    assert order == [Reason.FOLLOWING, Reason.SLOWING, Reason.HOLDING]
    loop._horizon.parameters = usual
    loop.on_message("odom", odometry(**simulation.values), ns(now + 5.0))
    assert loop.tick(ns(now + 5.0)).driving


SPEEDS = st.floats(-5.0, 5.0)


@given(v=SPEEDS, w=SPEEDS, period=st.floats(0.0, 1.0), stop=st.floats(-1.0, 1.0))
def test_slowing_nears_the_stop_within_its_rate_and_never_passes_it(v, w, period, stop):
    target = {"v": stop, "w": 0.0, "light": 0.0}
    before = {"v": v, "w": w, "light": 1.0}
    after = slowed(before, target, {"v": "a", "w": "v"}, {"a": [-2.0, 3.0]}, period)
    assert after["light"] == 0.0
    assert -2.0 * period - 1e-9 <= after["v"] - v <= 3.0 * period + 1e-9
    assert min(v, stop) - 1e-9 <= after["v"] <= max(v, stop) + 1e-9
    assert abs(after["w"]) <= abs(w) + 1e-9  # and the curve is kept
