# SPDX-License-Identifier: Apache-2.0
"""Goal checker and progress checker: when a robot has arrived, and when it makes no progress."""

import math

import pytest

from mpc_banded.control.arrival import GoalChecker, GoalTolerance, ProgressChecker

GOAL = (1.0, 2.0, 3.1)
S = 10**9


def at(dx=0.0, dy=0.0, turned=0.0, v=0.0, w=0.0, vy=0.0):
    return {"x": 1.0 + dx, "y": 2.0 + dy, "yaw": 3.1 + turned, "v": v, "w": w, "vy": vy}


@pytest.mark.parametrize(
    ("state", "ended", "arrived"),
    [
        (at(), True, True),
        (at(dx=0.17, dy=0.17), True, True),
        (at(dx=0.18, dy=0.18), True, False),
        (at(turned=0.24), True, True),
        (at(turned=0.26), True, False),
        (at(turned=math.tau), True, True),
        (at(v=0.24), True, True),
        (at(v=0.2, vy=0.2), True, False),
        (at(w=-0.26), True, False),
        (at(dx=0.1), False, False),
    ],
)
def test_arriving_takes_position_heading_standing_and_the_end_of_the_reference(
    state, ended, arrived
):
    assert GoalChecker(GoalTolerance()).check(GOAL, state, ended, 0) is arrived


def test_robot_that_settles_short_of_the_end_has_arrived_after_a_second():
    checker = GoalChecker(GoalTolerance())
    seen = [checker.check(GOAL, at(dx=0.1), False, k * S // 10) for k in range(13)]
    assert seen == [False] * 10 + [True] * 3
    checker.reset()
    moving = [checker.check(GOAL, at(dx=0.1, v=0.03), False, k * S) for k in range(5)]
    assert not any(moving)


def test_robot_that_stands_where_a_long_way_begins_and_ends_has_not_arrived():
    checker = GoalChecker(GoalTolerance())
    assert not any(checker.check(GOAL, at(), False, k * S, left=12.0) for k in range(5))
    seen = [checker.check(GOAL, at(dx=0.1), False, (5 + k) * S, left=0.1) for k in range(3)]
    assert seen == [False, True, True]


def test_arrival_is_remembered_until_the_robot_is_moved_away():
    checker = GoalChecker(GoalTolerance())
    assert checker.check(GOAL, at(), True, 0)
    assert checker.check(GOAL, at(dx=0.3, v=1.0), False, S)
    assert not checker.check(GOAL, at(dx=0.4), False, 2 * S)
    assert not checker.check(GOAL, at(dx=0.3), False, 3 * S)


def test_robot_without_a_heading_arrives_by_position():
    assert GoalChecker(GoalTolerance()).check(GOAL, {"x": 1.1, "y": 2.1}, True, 0)


def test_progress_is_a_move_or_a_turn_that_counts():
    checker = ProgressChecker(0.5, 0.5)
    assert checker.idle_s((0.0, 0.0, 0.0), 0) == 0.0
    assert checker.idle_s((0.4, 0.0, 0.4), 4 * S) == 4.0
    assert checker.idle_s((0.6, 0.0, 0.0), 5 * S) == 0.0
    assert checker.idle_s((0.6, 0.0, 3.0), 7 * S) == 0.0
    assert checker.idle_s((0.6, 0.0, 3.0 - math.tau), 9 * S) == 2.0
    assert checker.idle_s((0.6, 0.0, 3.0), 8 * S) == 1.0
    assert checker.idle_s((0.6, 0.0, 3.0), S) == 0.0  # the clock went back
    checker.reset()
    assert checker.idle_s((0.6, 0.0, 3.0), 100 * S) == 0.0
