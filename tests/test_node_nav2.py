# SPDX-License-Identifier: Apache-2.0
"""The node takes the place of Nav2's controller server: its action, speed limits and bond."""

import math
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

import message_packages
import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Path
from rclpy.action import ActionClient
from ros_harness import Robot, on_path, position

from mpc_banded.robots import messages

pytestmark = [pytest.mark.ros, pytest.mark.slow]

PACKAGES = ("nav2_msgs", "bond")
SUCCEEDED, CANCELED = GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED
ABORTED = GoalStatus.STATUS_ABORTED


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The environment of processes that know Nav2's messages."""
    if all(map(find_spec, PACKAGES)):
        yield {}
        return
    site = message_packages.built(tmp_path_factory.mktemp("packages"), *PACKAGES)
    sys.path.insert(0, str(site))
    yield on_path(site)
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


class Navigator:
    """A client of follow_path that behaves as bt_navigator does.

    Args:
        robot: The robot whose node serves the action.
    """

    def __init__(self, robot):
        self._robot = robot
        self._type = import_module("nav2_msgs.action").FollowPath
        self.client = ActionClient(robot.observer, self._type, "follow_path")
        robot.until(self.client.server_is_ready, "the action follow_path")
        self.errors, self.feedback = self._type.Result, []

    def send(self, *points, frame="odom", controller="FollowPath"):
        """Send a goal with a path through points (x, y); returns its handle."""
        path = Path()
        path.header.frame_id = frame
        path.header.stamp = self._robot.observer.get_clock().now().to_msg()
        poses = np.reshape([(*point, 0.0) for point in points], (-1, 3))
        messages.fill_path(path, poses, PoseStamped)
        goal = self._type.Goal(path=path, controller_id=controller)
        future = self.client.send_goal_async(goal, lambda m: self.feedback.append(m.feedback))
        self._robot.until(future.done, "an answer to a goal")
        return future.result()

    def end_of(self, handle):
        """Wait for the end of a goal; returns status, error code and error message."""
        future = handle.get_result_async()
        self._robot.until(future.done, "the end of a goal")
        result = future.result().result
        return future.result().status, result.error_code, result.error_msg

    def cancel(self, handle):
        future = handle.cancel_goal_async()
        self._robot.until(future.done, "an answer to a request to cancel")
        return len(future.result().goals_canceling)


@pytest.fixture(scope="module")
def robot(site, tmp_path_factory):
    """A unicycle with Nav2's messages."""
    robot = Robot(
        "unicycle",
        tmp_path_factory.mktemp("nav2"),
        "nav2",
        environment=site,
        obstacles=[50.0, 0.0, 0.1],
        failure_tolerance=1.0,
    )
    yield robot
    robot.close()


@pytest.fixture(scope="module")
def navigator(robot):
    return Navigator(robot)


def change(robot, transition):
    request = ChangeState.Request(transition=Transition(id=transition))
    return robot.request(ChangeState, "mpc_node/change_state", request).success


def x(robot):
    return float(position(robot.states[-1])[0])


def assert_no_jerk(cycles, robot):
    """Commanded speeds change by no more than the acceleration limits allow."""
    low, high = robot.config.parameters.limits["linear_acceleration"]
    for before, after in pairwise(cycles):
        elapsed_s = 1e-9 * (after.now_ns - before.now_ns)
        change = after.command["v"] - before.command["v"]
        assert low * elapsed_s - 1e-9 <= change <= high * elapsed_s + 1e-9


def test_goal_that_is_replanned_is_followed_without_a_jerk_and_succeeds(robot, navigator):
    robot.until(lambda: robot.states and robot.cycles, "a state")
    robot.cycles.clear()
    handle = navigator.send((0.0, 0.5), (2.5, 0.5))
    assert handle.accepted
    for reached in (0.5, 1.0, 1.5):
        robot.until(lambda at=reached: x(robot) > at, f"{reached} m ahead")
        replaced, handle = handle, navigator.send((x(robot), 0.5), (2.5, 0.5))
        status, _, why = navigator.end_of(replaced)
        assert (status, why) == (ABORTED, "a newer goal took its place")
    assert navigator.end_of(handle)[:2] == (SUCCEEDED, 0)
    assert x(robot) == pytest.approx(2.5, abs=0.05)
    assert_no_jerk(robot.cycles, robot)
    driven = np.array([cycle.command["v"] for cycle in robot.cycles])
    cruising = driven[np.argmax(driven > 0.75) :]
    cruising = cruising[: np.argmax(cruising < 0.7)]
    assert len(cruising) > 5, "it slows down for a path that is sent again"
    assert navigator.feedback[0].distance_to_goal == pytest.approx(2.5, abs=0.2)
    assert navigator.feedback[-1].distance_to_goal < 0.1
    assert max(f.speed for f in navigator.feedback) == pytest.approx(0.8, abs=0.05)


@pytest.mark.usefixtures("navigator")
def test_without_a_goal_the_node_stands_and_leaves_the_commands_to_others(robot):
    robot.until(lambda: robot.code == "no reference yet", "no goal")
    robot.drain()
    silent = len(robot.commands)
    assert robot.is_stopped(1)
    robot.publish_plan([(x(robot), 0.5), (x(robot) - 5.0, 0.5)])
    cycles = len(robot.cycles)
    robot.until(lambda: len(robot.cycles) > cycles + 5, "some cycles")
    assert len(robot.commands) == silent, "a plan that is no goal is followed"
    robot.statuses.clear()
    robot.until(lambda: robot.statuses, "a status")
    assert robot.reason == "stopped: waiting for a goal of follow_path"
    assert robot.statuses[-1].level == DiagnosticStatus.OK


def test_canceled_goal_ends_once_the_robot_stands(robot, navigator):
    begin = x(robot)
    robot.cycles.clear()
    handle = navigator.send((begin, 0.5), (begin + 5.0, 0.5))
    robot.until(lambda: x(robot) > begin + 0.3, "driving")
    assert navigator.cancel(handle) == 1
    navigator.cancel(handle)
    assert navigator.end_of(handle)[0] == CANCELED
    assert robot.cycles[-1].command["v"] == pytest.approx(0.0, abs=0.2)
    assert navigator.cancel(handle) == 0
    robot.until(lambda: robot.is_stopped(1), "a stop as the last command")
    assert_no_jerk(robot.cycles, robot)


def test_speed_limit_slows_the_robot_and_zero_lifts_it(robot, navigator):
    kind = import_module("nav2_msgs.msg").SpeedLimit
    begin = x(robot)
    robot.publish(kind, "speed_limit", kind(percentage=True, speed_limit=25.0))
    handle = navigator.send((begin, 0.5), (begin + 5.0, 0.5))
    robot.until(lambda: x(robot) > begin + 0.2, "driving")
    fastest = max(cycle.command["v"] for cycle in robot.cycles[-5:])
    assert fastest == pytest.approx(0.2, abs=0.01)
    robot.publish(kind, "speed_limit", kind(speed_limit=math.nan))
    robot.publish(kind, "speed_limit", kind(speed_limit=0.0))
    robot.until(lambda: robot.cycles[-1].command["v"] > 0.5, "faster")
    navigator.cancel(handle)
    assert navigator.end_of(handle)[0] == CANCELED


def test_goal_in_an_obstacle_is_aborted_and_the_next_one_starts_over(robot, navigator):
    begin = x(robot)
    assert not robot.set_at_once(obstacles=[begin + 1.0, 0.5, 0.5], movement_time_allowance=1.5)
    handle = navigator.send((begin, 0.5), (begin + 1.0, 0.5))
    status, error, why = navigator.end_of(handle)
    assert (status, error) == (ABORTED, navigator.errors.FAILED_TO_MAKE_PROGRESS)
    assert why.endswith("in 1.5 s, movement_time_allowance")
    # The same goal once more, as after a recovery: the obstacle has left.
    assert not robot.set_at_once(obstacles=[50.0, 0.0, 0.1], movement_time_allowance=10.0)
    handle = navigator.send((x(robot), 0.5), (begin + 1.0, 0.5))
    assert navigator.end_of(handle)[0] == SUCCEEDED


def test_goal_of_a_robot_that_is_not_driven_is_aborted_after_the_patience(robot, navigator):
    robot.switch("mpc_node/enable", False)
    begin = robot.cycles[-1].now_ns
    handle = navigator.send((x(robot), 0.5), (x(robot) - 1.0, 0.5))
    status, error, why = navigator.end_of(handle)
    assert (status, error) == (ABORTED, navigator.errors.PATIENCE_EXCEEDED)
    assert why == "stopped: disabled on request"
    assert robot.cycles[-1].now_ns - begin >= 1e9, "failure_tolerance"
    robot.switch("mpc_node/enable", True)


BAD_GOALS = {
    "no poses": ((), {}, "INVALID_PATH", "the path has no poses"),
    "not finite": (((0.0, 0.5), (math.nan, 0.0)), {}, "INVALID_PATH", "not finite"),
    "too far": (((0.0, 0.5), (1e300, 0.0)), {}, "INVALID_PATH", "allowed are up to"),
    "unknown frame": (((0.0, 0.5), (1.0, 0.0)), {"frame": "mars"}, "TF_ERROR", "mars"),
    "unknown controller": (
        ((0.0, 0.5), (1.0, 0.0)),
        {"controller": "Other"},
        "INVALID_CONTROLLER",
        "allowed are ['FollowPath']",
    ),
}


@pytest.mark.parametrize("case", BAD_GOALS)
def test_bad_goal_is_aborted_with_the_code_of_nav2_and_stops_the_robot(robot, navigator, case):
    points, given, error, why = BAD_GOALS[case]
    begin = x(robot)
    driving = navigator.send((begin, 0.5), (begin - 5.0, 0.5))
    robot.until(robot.is_driving, "driving")
    handle = navigator.send(*points, **given)
    status, code, told = navigator.end_of(handle)
    assert (status, code) == (ABORTED, getattr(navigator.errors, error))
    assert why in told
    assert navigator.end_of(driving)[0] == ABORTED
    robot.until(lambda: robot.is_stopped(1), "a stop")


def test_manager_forms_a_bond_and_deactivating_breaks_it_and_aborts_the_goal(robot, navigator):
    kind = import_module("bond.msg").Status
    heard = []
    robot.listen(kind, "bond", heard.append, 10)
    begin = x(robot)
    handle = navigator.send((begin, 0.5), (begin + 5.0, 0.5))
    robot.until(robot.is_driving, "driving")
    assert change(robot, Transition.TRANSITION_DEACTIVATE)
    assert navigator.end_of(handle)[::2] == (ABORTED, "the node was deactivated")
    assert not navigator.send((begin, 0.5), (begin + 5.0, 0.5)).accepted
    heard.clear()
    assert change(robot, Transition.TRANSITION_ACTIVATE)
    ours = kind(id="mpc_node", instance_id="manager", active=True)
    robot.publish(kind, "bond", ours)
    robot.until(lambda: len(heard) > 5, "a heartbeat")
    beats = [status for status in heard if status.instance_id != "manager"]
    assert {(status.id, status.active) for status in beats} == {("mpc_node", True)}
    assert len({status.instance_id for status in beats}) == 1
    assert beats[0].heartbeat_period == pytest.approx(0.1)
    heard.clear()
    assert change(robot, Transition.TRANSITION_DEACTIVATE)
    robot.until(lambda: any(not status.active for status in heard), "the end of the bond")
    assert change(robot, Transition.TRANSITION_CLEANUP)
    assert robot.node.stop() == 0
    assert "Traceback" not in robot.node.output
