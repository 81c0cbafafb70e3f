# SPDX-License-Identifier: Apache-2.0
"""Nav2's use of the control loop: paths of goals, sent again and ended, and speed limits."""

import numpy as np
import pytest
from driving import Trip
from loop_messages import fields, plan

from mpc_banded.control.config import Config
from mpc_banded.control.inputs import GOAL_PATH, SPEED_LIMIT
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.tick import Reason

AHEAD = plan((0.0, 0.0), (2.0, 0.0), (4.0, 0.0), (9.0, 0.0))


class World(Trip):
    """A unicycle at the origin."""

    def __init__(self):
        coarse = {"horizon": 15, "dt": 0.1, "controller_frequency": 10.0}
        super().__init__("unicycle", np.zeros(5), **coarse)

    def drive(self, seconds):
        """Drive on; returns the commanded speeds."""
        first = len(self.ticks)
        for _ in range(round(seconds / self.config.period_s)):
            self.cycle()
        return self.commands("v")[first:]

    @property
    def x(self):
        return self.base.values["x"]

    @property
    def code(self):
        return self.ticks[-1].code


def limit(value, percentage=False):
    return fields(speed_limit=value, percentage=percentage)


@pytest.fixture
def world():
    world = World()
    assert world.send(GOAL_PATH.topic, AHEAD) is None
    return world


def test_path_of_a_goal_is_followed_and_one_without_poses_ends_the_goal(world):
    assert world.loop.tracker.distance_left == pytest.approx(9.0)
    world.drive(2.0)
    assert world.code is Reason.DRIVING
    assert world.loop.tracker.distance_left == pytest.approx(9.0 - world.x, abs=0.1)
    assert world.send(GOAL_PATH.topic, plan()) is None
    slowing = world.drive(2.0)
    assert world.loop.tracker.distance_left is None
    assert world.code is Reason.NO_REFERENCE
    assert world.ticks[-1].reason == "stopped: waiting for a goal of follow_path"
    period_s, braking = world.config.period_s, world.config.parameters.limits
    assert np.diff(slowing).min() >= braking["linear_acceleration"][0] * period_s - 1e-9
    assert slowing[-1] == 0.0


def test_path_that_is_sent_again_every_second_changes_no_command():
    once, again = World(), World()
    for world in (once, again):
        world.send(GOAL_PATH.topic, AHEAD)
    speeds = once.drive(4.0)
    pieces = []
    for second in range(4):
        pieces.append(again.drive(1.0))
        # As planners do: from where the robot is to the same goal.
        x = again.x
        again.send(GOAL_PATH.topic, plan((x, 0.0), (6.0, 0.0), (9.0, 0.0)))
        assert again.loop.tracker.distance_left == pytest.approx(9.0 - x, abs=0.05), second
    np.testing.assert_allclose(np.concatenate(pieces), speeds, atol=0.02)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [(limit(0.3), 0.3), (limit(50.0, True), 0.4), (limit(100.0, True), 0.8), (limit(9.0), 0.8)],
)
def test_speed_limit_holds_within_the_deceleration_and_zero_lifts_it(world, given, allowed):
    assert world.drive(1.5)[-1] == pytest.approx(0.8, abs=0.02)
    assert world.send(SPEED_LIMIT, given) is None
    slower = world.drive(1.5)
    assert slower[-1] == pytest.approx(allowed, abs=0.02)
    reach = 0.8 - 0.1 * np.arange(1, len(slower) + 1)  # braking by 1 m/s^2
    assert (slower <= np.maximum(reach, allowed) + 0.02).all()
    assert np.diff(slower, prepend=0.8).min() > -0.1 - 0.02
    assert world.send(SPEED_LIMIT, limit(0.0)) is None
    assert world.drive(1.5)[-1] == pytest.approx(0.8, abs=0.02)


def test_speed_limit_shapes_the_plan_so_that_curves_and_ends_are_met():
    world = World()
    world.send(SPEED_LIMIT, limit(0.2))
    world.send(GOAL_PATH.topic, plan((0.0, 0.0), (1.0, 0.0)))
    speeds = world.drive(8.0)
    assert speeds.max() <= 0.2
    assert world.code is Reason.ARRIVED
    assert world.x == pytest.approx(1.0, abs=0.03)
    ahead = [tick.step.plan.states[:, 3].max() for tick in world.ticks if tick.driving]
    assert max(ahead) < 0.25


def test_limit_outlives_paths_and_changes_of_parameters(world):
    world.send(SPEED_LIMIT, limit(50.0, True))
    world.send(GOAL_PATH.topic, plan((0.0, 0.0), (8.0, 0.0)))
    assert world.drive(1.5)[-1] == pytest.approx(0.4, abs=0.02)
    world.loop.adopt(world.config.changed({"reference_speed": 0.6}))
    assert world.drive(1.0)[-1] == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
@pytest.mark.parametrize("percentage", [False, True])
def test_limit_that_is_no_speed_is_refused_and_changes_nothing(world, value, percentage):
    world.send(SPEED_LIMIT, limit(0.3))
    refused = world.send(SPEED_LIMIT, limit(value, percentage))
    assert refused.startswith(f"speed_limit is {value:g}; allowed are 0")
    assert world.loop.reference.speed == 0.3


def test_robot_that_follows_no_path_takes_no_goals():
    topics = ControlLoop(Config({"robot": "joint_space"})).input_topics
    assert GOAL_PATH.topic not in topics
    assert SPEED_LIMIT not in topics
