# SPDX-License-Identifier: Apache-2.0
"""A base follows goals and paths in closed loop, with a lag and a delay."""

import math

import numpy as np
import pytest
from driving import CONFIG, Trip

from mpc_banded.control.config import Config
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unicycle", "omni"])
@pytest.mark.parametrize("aside", [0.0, 0.3])
def test_obstacle_on_the_goal_blocks_and_is_named_until_it_leaves(name, aside):
    trip = Trip(name, np.zeros(5 if name == "unicycle" else 6), obstacles=[2.0, aside, 0.3])
    assert trip.goal(2.0, 0.0, 0.0) is None
    trip.run(10.0)
    codes = [tick.code for tick in trip.ticks]
    begin = codes.index(Reason.BLOCKED)
    assert set(codes[begin:]) == {Reason.BLOCKED}  # it does not hesitate
    assert f"an obstacle at (2.00, {aside:.2f})" in trip.ticks[-1].reason
    assert trip.commands("v")[-1] == 0.0
    away = Config.load(CONFIG / f"{name}.yaml", {"obstacles": []})
    trip.loop.adopt(away)
    trip.run(15.0)
    assert trip.ticks[-1].code is Reason.ARRIVED


@pytest.mark.slow
def test_closed_path_is_driven_as_often_as_it_is_sent_but_once_by_a_sender_that_repeats_it():
    angles = np.linspace(0.0, math.tau, 60)
    ring = 0.6 * np.stack([np.sin(angles), 1.0 - np.cos(angles)], axis=1)
    trip = Trip("unicycle", np.zeros(5))

    def driven():
        return np.hypot(*np.diff(trip.states[:, :2], axis=0).T).sum()

    for rounds in (1, 2):
        assert trip.plan(ring) is None
        trip.run(20.0)
        assert trip.ticks[-1].code is Reason.ARRIVED
        assert driven() == pytest.approx(rounds * math.tau * 0.6, rel=0.05)
    trip.plan(ring)
    for _ in range(200):
        trip.plan(ring)
        trip.cycle()
    assert trip.ticks[-1].code is Reason.ARRIVED
    assert driven() == pytest.approx(3.0 * math.tau * 0.6, rel=0.05)


@pytest.mark.slow
def test_robot_that_is_told_to_creep_is_not_blocked():
    trip = Trip("unicycle", np.zeros(5), reference_speed=0.04)
    assert trip.goal(0.6, 0.0, 0.0) is None
    trip.run(25.0)
    assert {tick.code for tick in trip.ticks} == {Reason.DRIVING, Reason.ARRIVED}
