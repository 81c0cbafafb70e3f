# SPDX-License-Identifier: Apache-2.0
"""The way around what lies on a reference."""

import numpy as np
import pytest

from mpc_banded.control.detour import Detour, Side
from mpc_banded.control.obstacles_ahead import Ahead, Cloud
from mpc_banded.robots.planar import Footprint

ROBOT = Footprint(np.zeros(1), np.full(1, 0.25))
CLEARANCE, N = 0.12, 40


def straight(angle=0.0, zigzag=0.0):
    """A reference of 2 m from the origin, in steps like those of a planner on a grid."""
    along = np.linspace(0.0, 2.0, N + 1)
    beside = zigzag * (np.arange(N + 1) % 2)
    c, s = np.cos(angle), np.sin(angle)
    x, y = c * along - s * beside, s * along + c * beside
    return {"x": x, "y": y, "yaw": np.full(N + 1, angle), "v": np.full(N + 1, 0.8)}


def obstacles(rows=(), hits=()):
    circles = np.repeat(np.array(rows, dtype=float).reshape(1, -1, 3), N + 1, axis=0)
    cloud = Cloud(np.array(hits, dtype=float).reshape(-1, 2))
    return Ahead(circles, [cloud], np.array([-9.0, 0.0, 0.0]), ROBOT)


def places(columns):
    return np.stack([columns["x"], columns["y"]], axis=1)


@pytest.mark.parametrize("zigzag", [0.0, 0.04])
@pytest.mark.parametrize("angle", [0.0, 2.0])
def test_way_around_is_clear_leads_on_and_begins_at_the_robot(angle, zigzag):
    ahead = np.array([np.cos(angle), np.sin(angle)])
    reference, post = straight(angle, zigzag), [*(1.2 * ahead), 0.2]
    robot = places(reference)[0]
    detour = Detour()
    for _ in range(3):  # as the robot follows it
        led = detour.lead(reference, obstacles([post]), CLEARANCE, robot)
        poses = np.stack([led["x"], led["y"], led["yaw"]], axis=1)
        assert obstacles([post]).gaps(poses).min() > CLEARANCE - 0.05
        assert (np.diff(poses[:, :2] @ ahead) > -1e-9).all()
        apart = np.linalg.norm(poses[:, :2] - robot, axis=1)
        assert np.argmin(apart) == 0
        robot = poses[2, :2]


def test_side_that_needs_less_room_is_taken_and_kept():
    detour = Detour()
    for y, side in ((0.05, Side.RIGHT), (-0.05, Side.RIGHT), (-0.4, Side.LEFT)):
        detour.lead(straight(), obstacles([[1.0, y, 0.3]]), CLEARANCE, np.zeros(2))
        assert detour.side is side


def test_no_way_leads_through_a_wall_to_the_room_behind_it():
    beside = np.arange(-3.0, 4.0, 0.02)
    wall = np.stack([beside, np.full(len(beside), -0.3)], axis=1)
    posts = np.stack([np.full(50, 1.0), np.linspace(0.6, 3.0, 50)], axis=1)
    detour, reference = Detour(), straight()
    led = detour.lead(reference, obstacles(hits=np.concatenate([wall, posts])), 0.2, np.zeros(2))
    assert (led["y"] > -0.1).all()


def test_reference_that_is_clear_stays():
    reference = straight()
    led = Detour().lead(reference, obstacles([[1.0, 2.0, 0.3]]), CLEARANCE, np.zeros(2))
    assert all(np.array_equal(led[name], reference[name]) for name in reference)


def test_where_no_way_keeps_the_whole_clearance_less_will_do():
    low = [[1.0, y, 0.1] for y in np.arange(-3.0, 0.01, 0.15)]
    high = [[1.0, y, 0.1] for y in np.arange(0.9, 3.0, 0.15)]
    known = obstacles(low + high)  # 0.7 m for a robot of 0.5 m
    detour = Detour()
    led = detour.lead(straight(), known, CLEARANCE, np.zeros(2))
    assert detour.side is Side.LEFT
    assert known.gaps(np.stack([led[name] for name in ("x", "y", "yaw")], axis=1)).min() > 0.05


def bend(end):
    """Hits of two walls across a reference, one open on the left, the other on the right."""
    rows = np.arange(-4.0, 4.0, 0.02)
    first, second = rows[rows < end], rows[rows > -0.4]
    walls = [np.column_stack([np.full(len(y), x), y]) for x, y in ((0.6, first), (1.5, second))]
    return obstacles(hits=np.concatenate(walls))


def test_passage_that_bends_is_followed_to_the_end_of_the_reference():
    detour, robot, reference, steps = Detour(), np.zeros(2), straight(), 0
    while robot[0] < 1.8:
        led = detour.lead(reference, bend(0.4), CLEARANCE, robot)
        poses = np.stack([led["x"], led["y"], led["yaw"]], axis=1)
        assert np.linalg.norm(poses[0, :2] - robot) < 0.05
        assert bend(0.4).gaps(poses).min() > 0.0
        assert np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1).max() < 0.06  # no faster
        robot, steps = poses[4, :2], steps + 1
        assert steps < 30
    assert poses[-1, :2] == pytest.approx([2.0, 0.0], abs=0.1)


def test_bend_that_is_closed_changes_nothing():
    reference = straight()
    led = Detour().lead(reference, bend(4.0), CLEARANCE, np.zeros(2))
    assert all(np.array_equal(led[name], reference[name]) for name in reference)
