# SPDX-License-Identifier: Apache-2.0
"""A unicycle drives a figure of eight; what node and simulator say over DDS is looked at."""

import math

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.parameter import Parameter
from ros_harness import Robot, position

from mpc_banded.demo import figure_of_eight

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def shared_unicycle(tmp_path_factory):
    robot = Robot("unicycle", tmp_path_factory.mktemp("unicycle"))
    yield robot
    robot.close()


@pytest.fixture
def unicycle(shared_unicycle):
    """The unicycle, driving a figure of eight."""
    robot = shared_unicycle
    robot.publish_plan(figure_of_eight())
    robot.until(lambda: robot.is_driving() and robot.states, "driving")
    yield robot
    robot.assert_commands_allowed()


def stamp_s(message):
    return message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec


def test_robot_moves_and_the_node_says_what_it_does(unicycle):
    start = position(unicycle.states[0])
    unicycle.until(
        lambda: np.linalg.norm(position(unicycle.states[-1]) - start) > 1.0, "moved by a metre"
    )
    unicycle.until(lambda: unicycle.reason.startswith(("driving", "of ")), "reported as driving")
    assert unicycle.statuses[-1].level in (DiagnosticStatus.OK, DiagnosticStatus.WARN)
    assert all(unicycle.figures.values())
    assert 0.0 <= unicycle.figures["state_age_s"][-1].data <= unicycle.config["max_state_age"]


def test_optimal_path_is_the_plan_in_the_frame_of_the_state(unicycle):
    unicycle.paths.clear()
    unicycle.until(lambda: unicycle.paths, "an optimal path")
    path = unicycle.paths[-1]
    points = np.array([[p.pose.position.x, p.pose.position.y] for p in path.poses])
    assert path.header.frame_id == unicycle.states[-1].header.frame_id == "odom"
    assert len(points) == unicycle.config["horizon"] + 1
    # It begins where the robot was measured, or will be when the command takes effect, and moves
    # no faster than the robot can.
    measured = np.array([position(message) for message in unicycle.states])
    assert np.linalg.norm(measured - points[0], axis=1).min() < 0.3
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.max() <= unicycle.config["limits.v"][1] * unicycle.config["dt"] + 1e-3


def test_commands_stop_when_the_state_stops_and_return_with_it(unicycle):
    unicycle.switch("simulator_node/publish", False)
    unicycle.until(unicycle.is_stopped, "stopped")
    unicycle.until(lambda: "the state is" in unicycle.reason, "a reason")
    assert unicycle.statuses[-1].level == DiagnosticStatus.ERROR
    driving = [m for m in unicycle.commands if any(unicycle.values([m])[0].values())]
    # One second beyond the limit is for a machine that is busy with other things.
    limit_s = unicycle.config["max_state_age"] + 1.0
    assert stamp_s(driving[-1]) <= stamp_s(unicycle.states[-1]) + limit_s
    unicycle.switch("simulator_node/publish", True)
    unicycle.until(unicycle.is_driving, "driving again")


def test_states_that_are_not_finite_count_as_none(unicycle):
    unicycle.switch("simulator_node/publish", False)
    unicycle.until(unicycle.is_stopped, "stopped")

    def rejected():
        unicycle.publish_odometry(x=math.nan)
        return "rejected: x of the state message is not finite" in unicycle.reason

    unicycle.until(rejected, "the reason for the rejection")
    assert unicycle.is_stopped()
    unicycle.switch("simulator_node/publish", True)
    unicycle.until(unicycle.is_driving, "driving again")


def test_disabled_node_keeps_the_robot_stopped_until_it_is_enabled(unicycle):
    unicycle.switch("mpc_node/enable", False)
    unicycle.until(unicycle.is_stopped, "stopped")
    unicycle.hear_more()
    assert unicycle.is_stopped()
    unicycle.until(lambda: "disabled" in unicycle.reason, "a reason")
    unicycle.switch("mpc_node/enable", True)
    unicycle.until(unicycle.is_driving, "driving again")


def test_reset_forgets_and_drives_on(unicycle):
    unicycle.trigger("mpc_node/reset")
    unicycle.trigger("simulator_node/reset")
    unicycle.states.clear()
    unicycle.until(lambda: unicycle.states, "a state")
    assert np.linalg.norm(position(unicycle.states[0]) - [0.0, 0.5]) < 0.5
    unicycle.hear_more()
    unicycle.until(unicycle.is_driving, "driving")


def test_weights_are_live_and_nothing_else_is(unicycle):
    given = {
        "weights.position": 20,
        "weights.heading": -1.0,
        "weights.speed": "much",
        "horizon": 20,
        "robot": "bicycle",
    }
    parameters = [Parameter(name, value=x).to_parameter_msg() for name, x in given.items()]
    request = SetParameters.Request(parameters=parameters)
    results = unicycle.request(SetParameters, "mpc_node/set_parameters", request).results
    assert [result.successful for result in results] == [True, False, False, False, False]
    assert results[1].reason == "weights.heading is -1.0; allowed are numbers >= 0"
    assert "much" in results[2].reason
    assert all("read-only" in result.reason for result in results[3:])
    names = GetParameters.Request(names=list(given))
    values = unicycle.request(GetParameters, "mpc_node/get_parameters", names).values
    assert values[0].integer_value == 20
    assert values[1].double_value == unicycle.config["weights.heading"]
    unicycle.hear_more()


def test_parameters_are_described(unicycle):
    names = ["controller_frequency", "obstacles", "weights.position", "simulator.command_timeout"]
    request = DescribeParameters.Request(names=names)
    service = "mpc_node/describe_parameters"
    frequency, obstacles, weight, timeout = unicycle.request(
        DescribeParameters, service, request
    ).descriptors
    assert frequency.description == "Rate of the control loop. [Hz]"
    assert frequency.floating_point_range[0].to_value == 1000.0
    assert frequency.read_only
    assert obstacles.type == Parameter.Type.DOUBLE_ARRAY.value
    assert not weight.read_only
    assert timeout.additional_constraints == "Allowed are numbers >= 0."
