# SPDX-License-Identifier: Apache-2.0
"""The omnidirectional base drives in any direction with any heading."""

import math

import numpy as np
import pytest
from driving import Trip

from mpc_banded.control.limiter import Limiter
from mpc_banded.control.tick import Reason

COARSE = {"horizon": 20, "dt": 0.1, "controller_frequency": 10.0}


def trip(**changes):
    return Trip("omni", np.zeros(6), **COARSE, **changes)


def corner():
    """1.5 m to the left, then 1.5 m ahead, with a rounded corner; (M, 2) in m."""
    angle = np.linspace(0.0, math.pi / 2, 20)
    arc = np.column_stack([0.5 - 0.5 * np.cos(angle), 1.0 + 0.5 * np.sin(angle)])
    ahead, across = np.linspace(0.0, 0.95, 20), np.linspace(0.55, 1.5, 20)
    return np.concatenate([[[0.0, y] for y in ahead], arc, [[x, 1.5] for x in across]])


@pytest.mark.parametrize("yaw", [0.3, -1.2])
def test_path_is_driven_with_the_heading_that_its_poses_have(yaw):
    driver = Trip("omni", [0.0, 0.0, yaw, 0.0, 0.0, 0.0], **COARSE)
    points = corner()
    assert driver.plan(points, np.full(len(points), yaw)) is None
    driver.run(15.0)
    assert driver.ticks[-1].code is Reason.ARRIVED
    assert np.abs(driver.states[:, 2] - yaw).max() < 0.02
    gaps = np.linalg.norm(driver.states[:, None, :2] - points[None], axis=2).min(axis=1)
    assert gaps.max() < 0.06
    np.testing.assert_allclose(driver.states[-1, :2], points[-1], atol=0.03)
    assert np.abs(driver.commands("vy")).max() > 0.5


def test_path_without_orientations_is_driven_ahead():
    driver = trip()
    assert driver.plan(corner()) is None
    driver.run(15.0)
    assert driver.ticks[-1].code is Reason.ARRIVED
    halfway = driver.states[np.argmax(driver.states[:, 1] > 0.7)]
    assert halfway[2] == pytest.approx(math.pi / 2, abs=0.15)
    assert driver.states[-1, 2] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("bearing", [0.0, 0.5 * math.pi, 0.75 * math.pi, math.pi, -0.6 * math.pi])
def test_goal_on_any_side_is_reached_straight(bearing):
    driver = trip()
    goal = (1.2 * math.cos(bearing), 1.2 * math.sin(bearing))
    assert driver.goal(*goal, 1.0) is None
    driver.run(10.0)
    assert driver.ticks[-1].code is Reason.ARRIVED
    np.testing.assert_allclose(driver.states[-1, :3], [*goal, 1.0], atol=0.05)
    across = driver.states[:, :2] @ [-math.sin(bearing), math.cos(bearing)]
    along = driver.states[:, :2] @ [math.cos(bearing), math.sin(bearing)]
    assert np.abs(across).max() < 0.05, "it goes round about"
    assert along.max() < 1.22


def test_speed_in_the_plane_is_limited_in_every_direction():
    driver = trip(model__max_speed=0.6, reference_speed=2.0)
    line = np.linspace([0.0, 0.0], [2.0, 2.0], 50)
    driver.plan(line, np.full(50, 0.01))
    driver.run(12.0)
    speeds = np.hypot(driver.commands("v"), driver.commands("vy"))
    assert speeds.max() <= 0.6 + 1e-9
    assert speeds.max() > 0.5
    assert driver.ticks[-1].code is Reason.ARRIVED


def test_obstacle_is_passed_sideways_with_the_heading_of_the_path():
    driver = Trip("omni", [0.0, 0.0, 0.4, 0.0, 0.0, 0.0], **COARSE, obstacles=[1.5, 0.05, 0.3])
    line = np.linspace([0.0, 0.0], [3.0, 0.0], 60)
    driver.plan(line, np.full(60, 0.4))
    driver.run(15.0)
    gaps = np.linalg.norm(driver.states[:, :2] - [1.5, 0.05], axis=1) - 0.3 - 0.3
    assert gaps.min() > 0.0
    assert np.abs(driver.states[:, 2] - 0.4).max() < 0.05
    assert driver.ticks[-1].code is Reason.ARRIVED


def test_stop_and_rates_hold_on_every_axis():
    config = trip().config
    limiter, now_ns = Limiter(config), 10**9
    start = {"v": 0.0, "vy": 0.0, "w": 0.0}
    sent = limiter.within_reach({"v": 1.0, "vy": -1.0, "w": 1.8}, start, now_ns)
    assert sent == pytest.approx({"v": 0.1, "vy": -0.1, "w": 0.4})
