# SPDX-License-Identifier: Apache-2.0
"""A state that stays the same despite commands is detected, at a bounded cost."""

import numpy as np
import pytest
from loop_messages import ns

from mpc_banded.control.config import Config
from mpc_banded.control.motion import PREDICTION_SUBSTEP_S, Motion, Simulation
from mpc_banded.control.state import MISSED, WINDOW_S, StuckCheck

PERIOD, LIMIT = 0.05, 1.0
HERE = np.array([3.0, -1.0, 0.5, 0.0, 0.0])


def watch(**parameters):
    config = Config({"max_frozen_time": LIMIT} | parameters)
    return StuckCheck(config, Motion(config, PREDICTION_SUBSTEP_S))


def looks(watch, v, seconds, state=HERE, began=0.0, changed=0.0):
    """What each look says, while a speed is commanded and the state stays where it is."""
    said = []
    for k in range(round(seconds / PERIOD)):
        now = ns(began + PERIOD * k)
        said.append(watch.check(state, ns(changed), now, now))
        watch.sent({"v": 0.0 if said[-1] else v, "w": 0.0}, now)
    return said


def first(said):
    return next((PERIOD * k for k, why in enumerate(said) if why), None)


@pytest.mark.parametrize("speed", [0.1, 0.3, 1.0, -0.3])
def test_robot_that_misses_a_decimetre_is_held(speed):
    model = Simulation(Config({}))
    model.state = HERE
    needed = 0.0
    while np.abs(model.state - HERE)[:3].max() < MISSED:
        model.advance({"v": speed, "w": 0.0}, 0.01)
        needed += 0.01
    said = looks(watch(), speed, 4.0)
    assert first(said) == pytest.approx(LIMIT + needed, abs=2.5 * PERIOD)
    assert "although the robot was told to move" in next(filter(None, said))


def test_robot_that_creeps_below_its_dead_zone_is_not_held():
    slowest = MISSED / WINDOW_S
    assert first(looks(watch(), 0.8 * slowest, 60.0)) is None
    assert first(looks(watch(), 1.5 * slowest, 60.0)) is not None


def test_robot_that_came_to_a_stop_where_it_stands_is_not_held():
    """Its last measured state still turned; that it has stopped since is no motion missed."""
    turning = np.append(HERE[:4], 1.5 * MISSED)
    assert first(looks(watch(), 0.0, 10.0, turning)) is None


def test_held_robot_is_tried_again_after_it_could_have_come_to_a_stop():
    parameters = {"fallback.follow_time": 0.5, "fallback.slow_time": 2.0}
    said = looks(watch(**parameters), 0.5, 20.0)
    held = [bool(why) for why in said]
    begin = held.index(True)
    end = held.index(False, begin)
    assert PERIOD * (end - begin) == pytest.approx(2.5 + WINDOW_S, abs=2.0 * PERIOD)
    again = held.index(True, end)
    assert PERIOD * (again - end) > LIMIT


def test_held_robot_drives_as_soon_as_its_state_changes():
    watched = watch()
    assert looks(watched, 0.5, 2.0)[-1]
    assert first(looks(watched, 0.5, 0.9, HERE + 0.06, began=2.0, changed=2.0)) is None


def test_time_without_checks_does_not_count():
    """The node was inactive; its last command is long over."""
    watched = watch()
    looks(watched, 0.5, 0.8)
    assert first(looks(watched, 0.0, 3.0, began=100.0)) is None


def test_zero_allows_any_time():
    assert first(looks(watch(max_frozen_time=0.0), 0.5, 10.0)) is None


def test_model_that_diverges_decides_nothing():
    watched = watch()
    assert first(looks(watched, np.nan, 10.0)) is None


@pytest.mark.parametrize("pause", [0.0, 1.9, 3600.0])
def test_look_costs_no_more_the_longer_the_robot_has_been_standing(monkeypatch, pause):
    followed = []
    advanced = Motion.advanced
    monkeypatch.setattr(
        Motion, "advanced", lambda *given: followed.append(given[3]) or advanced(*given)
    )
    watched = watch()
    looks(watched, 0.01, 60.0)
    assert sum(followed) < 60.0
    followed.clear()
    watched.check(HERE, 0, ns(60.0 + pause), ns(60.0 + pause))
    assert sum(followed) <= max(2.0 * PERIOD, WINDOW_S if pause < WINDOW_S else 0.0)


def test_what_was_sent_before_is_forgotten_on_reset():
    watched = watch()
    looks(watched, 0.5, 0.5)
    watched.reset()
    assert first(looks(watched, 0.0, 3.0, began=0.5)) is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("moves", [False, True])
def test_robot_that_is_stuck_is_told_from_one_that_moves_through_noise(seed, moves):
    noise, watched = np.random.default_rng(seed), watch()
    base = Simulation(Config({}))
    base.state = HERE.copy()
    said = []
    for k in range(100):
        now, seen = ns(PERIOD * k), base.state + noise.normal(0.0, 0.008, HERE.shape)
        said.append(watched.check(seen, now, now, now))
        command = {"v": 0.3, "w": 0.2}
        watched.sent(command, now)
        if moves:
            base.advance(command, PERIOD)
    assert any(said) is not moves
