# SPDX-License-Identifier: Apache-2.0
"""A base follows goals and paths in closed loop, with a lag and a delay."""

import math

import numpy as np
import pytest
from driving import Trip

from mpc_banded.control.tick import Reason


def line(length, count=100):
    return np.linspace([0.0, 0.0], [length, 0.0], count)


@pytest.mark.parametrize(
    ("name", "how", "speed", "gain", "delay_s"),
    [
        ("bicycle", "plan", 0.5, 0.1, 0.1),
        ("bicycle", "goal", 2.0, 1.0, 0.1),
        ("bicycle", "plan", 5.0, 3.0, 0.0),
        ("unicycle", "goal", 1.0, 0.3, 0.0),
        ("unicycle", "plan", 1.0, 3.0, 0.1),
    ],
)
def test_no_base_passes_its_goal_by_more_than_two_centimetres(name, how, speed, gain, delay_s):
    rate = "linear_acceleration" if name == "unicycle" else "acceleration"
    trip = Trip(
        name,
        np.zeros(5 if name == "unicycle" else 4),
        delay_s,
        reference_speed=speed,
        **{f"limits__{rate}": [-gain, gain]},
    )
    length = 1.5 * max(1.0, speed**2 / gain)
    rejected = trip.goal(length, 0.0, 0.0) if how == "goal" else trip.plan(line(length))
    assert rejected is None
    trip.run(60.0)
    assert trip.ticks[-1].code is Reason.ARRIVED
    assert trip.states[:, 0].max() - length <= 0.02
    assert abs(trip.states[-1, 0] - length) <= 0.03
    assert np.abs(np.diff(trip.commands("v"))).max() <= gain * trip.config.period_s + 1e-9


@pytest.mark.parametrize("yaw", [math.pi, -2.5, 1.6])
def test_car_in_front_of_a_path_that_leads_away_behind_it_says_so_at_once(yaw):
    trip = Trip("bicycle", [0.0, 0.0, yaw, 0.0], compiled=False)
    assert trip.plan(line(10.0)) is None
    tick = trip.cycle()
    assert tick.code is Reason.BLOCKED
    assert "cannot turn on the spot" in tick.reason
    assert tick.command["v"] == 0.0
    trip.base.state[2] = 0.0  # somebody turns it
    assert any(trip.cycle().driving for _ in range(20))


def test_car_that_refuses_a_goal_says_why_it_stands():
    trip = Trip("bicycle", np.zeros(4), compiled=False)
    assert "turning radius" in trip.goal(0.0, 2.0, 0.0)
    assert "turning radius" in trip.cycle().reason


@pytest.mark.parametrize("seed", [1])
def test_there_and_back_on_one_line_ends_as_sent_however_often_it_is_sent_again(seed):
    noise, length, legs = np.random.default_rng(seed), 1.0, 6
    there = np.linspace([0.0, 0.0], [length, 0.0], 40)
    points = np.concatenate([there if k % 2 == 0 else there[::-1] for k in range(legs)])
    trip = Trip("unicycle", np.zeros(5), reference_speed=1.0)

    def send_again(trip):
        assert trip.plan(points + noise.normal(0.0, 1e-3, points.shape)) is None

    trip.run(60.0, each=send_again)
    x, y, yaw = trip.states[-1, :3]
    assert trip.ticks[-1].code is Reason.ARRIVED
    driven = np.hypot(*np.diff(trip.states[:, :2], axis=0).T).sum()
    assert driven == pytest.approx(legs * length, rel=0.1)
    assert math.hypot(x, y) <= 0.03
    assert abs(math.remainder(yaw - math.pi, math.tau)) <= 0.1


@pytest.mark.parametrize("speed", [0.5, 0.8])
def test_no_base_drives_faster_around_obstacles_than_it_was_asked_to(speed):
    circles = [2.5, 0.05, 0.3, 3.3, 0.1, 0.3]
    trip = Trip("unicycle", np.zeros(5), reference_speed=speed, obstacles=circles)
    assert trip.plan(line(6.0, 120)) is None
    trip.run(20.0)
    assert trip.ticks[-1].code is Reason.ARRIVED
    assert np.abs(trip.states[:, 3]).max() <= speed + 1e-6
