# SPDX-License-Identifier: Apache-2.0
"""A car is driven by Ackermann commands over DDS."""

import sys
from importlib.util import find_spec

import message_packages
import pytest
from ros_harness import Robot, on_path, position

from mpc_banded.ros.demo.scenarios import lane_change

PACKAGE = "ackermann_msgs"

pytestmark = [pytest.mark.ros, pytest.mark.slow]


@pytest.fixture
def robot(tmp_path, monkeypatch):
    """The car, with the package of its commands on the path of both nodes and of the tests."""
    environment = {}
    if find_spec(PACKAGE) is None:
        site = message_packages.built(tmp_path / "packages", PACKAGE)
        monkeypatch.syspath_prepend(str(site))
        environment = on_path(site)
    robot = Robot("bicycle", tmp_path, "car", environment=environment, command="ackermann")
    yield robot
    robot.close()
    if environment:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def test_car_is_driven_by_ackermann_commands(robot):
    robot.publish_plan(lane_change())
    robot.until(lambda: robot.states and position(robot.states[-1])[0] > 20.0, "20 m ahead")
    assert abs(position(robot.states[-1])[1]) > 0.1, "it has not begun to change lanes"
    (kind,) = {type(message).__name__ for message in robot.commands}
    assert kind == "AckermannDriveStamped"
    newest = robot.commands[-1]
    assert newest.header.frame_id == "base_link"
    assert newest.header.stamp.sec > 0
    assert {abs(message.drive.steering_angle) > 0.01 for message in robot.commands} >= {True}
    robot.assert_commands_allowed()
    robot.switch("mpc_node/enable", False)
    robot.until(lambda: robot.commands[-1].drive.speed == 0.0, "a stop")
    robot.until(lambda: robot.states[-1].twist.twist.linear.x < 0.05, "stopped")
    robot.assert_commands_allowed()
