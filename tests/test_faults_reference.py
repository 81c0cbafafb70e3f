# SPDX-License-Identifier: Apache-2.0
"""Faults of references and obstacles while a robot drives."""

import math

import numpy as np
import pytest
from faults import AHEAD, DRIVING, RelayedRobot, assert_robot_does_as_it_says

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    robot = RelayedRobot(tmp_path_factory.mktemp("reference"), "reference")
    yield robot
    robot.close()


@pytest.fixture
def robot(shared):
    """A robot that drives, and must drive again once the fault is over."""
    shared.drive()
    yield shared
    shared.publish_plan(AHEAD)
    shared.until(lambda: shared.code == DRIVING and shared.is_driving(), "driving again")
    assert_robot_does_as_it_says(shared)


def place(robot):
    position = robot.states[-1].pose.pose.position
    return np.array([position.x, position.y])


USELESS = {
    "not finite": (np.array([[0.0, 0.5], [math.nan, 0.5]]), "odom", "plan rejected"),
    "other frame": (AHEAD, "mars", "in frame 'mars'"),
}


@pytest.mark.parametrize("fault", USELESS)
def test_useless_path_is_refused_with_a_reason_and_the_old_one_holds(robot, fault):
    points, frame, why = USELESS[fault]
    robot.until(lambda: robot.statuses, "a status")
    before = int(robot.facts["rejected messages"])
    robot.publish_plan(points, frame)
    robot.until(lambda: int(robot.facts["rejected messages"]) == before + 1, "counted")
    assert why in robot.facts["last rejection"]
    here = place(robot)
    robot.until(lambda: place(robot)[0] > here[0] + 0.5, "driven on along the old path")


@pytest.mark.parametrize("poses", [1, 2])
def test_robot_stands_at_the_end_of_its_path_and_says_so(robot, poses):
    x, y = place(robot)
    robot.publish_plan([[x, y], [x + 1.0, y]][-poses:])
    robot.until(lambda: "arrived at" in robot.reason, "at the end")
    robot.until(lambda: abs(robot.cycles[-1].command["v"]) < 0.05, "standing")


def test_robot_stops_on_an_empty_path(robot):
    robot.publish_plan(AHEAD)
    robot.until(lambda: robot.cycles[-1].command["v"] > 0.1, "driving")
    robot.publish_plan(np.empty((0, 2)))
    robot.until(lambda: "has no poses" in robot.reason, "stopped by the empty path")
    robot.until(lambda: abs(robot.cycles[-1].command["v"]) < 0.05, "standing")
    robot.publish_plan(AHEAD)
    robot.until(lambda: robot.cycles[-1].command["v"] > 0.1, "driving again")


def test_obstacle_appears_on_the_robot(robot):
    x, y = place(robot)
    assert not robot.set_at_once(obstacles=[x + 0.2, y + 0.05, 0.3])
    robot.hear_more(20)
    assert_robot_does_as_it_says(robot)
    assert not robot.set_at_once(obstacles=robot.config.parameters.obstacles)


def test_problem_becomes_infeasible(robot):
    x, y = place(robot)
    around = [(x + dx, y + dy, 1.0) for dx in (-0.5, 0.5) for dy in (-0.5, 0.5)]
    assert not robot.set_at_once(obstacles=[float(value) for each in around for value in each])
    robot.hear_more(20)
    assert_robot_does_as_it_says(robot)
    assert not robot.set_at_once(obstacles=robot.config.parameters.obstacles)
