# SPDX-License-Identifier: Apache-2.0
"""A unicycle drives a figure of eight; node and simulator are judged by their messages."""

import json
import math

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.srv import DescribeParameters
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_harness import Robot, Watcher, config_file, position
from visualization_msgs.msg import Marker, MarkerArray

from mpc_banded.ros.demo.scenarios import figure_of_eight
from mpc_banded.ros.lifecycle import NO_EVENTS

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
    assert all(unicycle.metrics.values())
    assert 0.0 <= unicycle.metric("state_age_s") <= unicycle.config.parameters.max_state_age


def test_optimal_path_is_the_plan_in_the_frame_of_the_state(unicycle):
    unicycle.paths.clear()
    unicycle.until(lambda: unicycle.paths, "an optimal path")
    path = unicycle.paths[-1]
    points = np.array([[p.pose.position.x, p.pose.position.y] for p in path.poses])
    assert path.header.frame_id == unicycle.states[-1].header.frame_id == "odom"
    assert len(points) == unicycle.config.parameters.horizon + 1
    # It begins where the robot was measured, or will be when the command takes effect, and moves
    # no faster than the robot can.
    measured = np.array([position(message) for message in unicycle.states])
    assert np.linalg.norm(measured - points[0], axis=1).min() < 0.3
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert (
        steps.max()
        <= unicycle.config.parameters.limits["v"][1] * unicycle.config.parameters.dt + 1e-3
    )


def test_commands_stop_when_the_state_stops_and_return_with_it(unicycle):
    unicycle.switch("simulator_node/publish", False)
    unicycle.until(unicycle.is_stopped, "stopped")
    unicycle.until(lambda: "holding the stop: the state is" in unicycle.reason, "a reason")
    assert unicycle.statuses[-1].level == DiagnosticStatus.ERROR
    driving = [m for m in unicycle.commands if any(unicycle.values([m])[0].values())]
    # The last plan is followed for a while, then the robot brakes; one second beyond that is for
    # a machine that is busy with other things.
    config = unicycle.config
    limit_s = config.parameters.max_state_age + config.parameters.fallback.follow_time + 1.0
    limit_s += (
        config.parameters.limits["v"][1] / -config.parameters.limits["linear_acceleration"][0]
    )
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
    unicycle.until(
        lambda: any(np.linalg.norm(position(s) - [0.0, 0.5]) < 0.5 for s in unicycle.states),
        "back at the start",
    )
    unicycle.hear_more()
    unicycle.until(unicycle.is_driving, "driving")


def test_parameters_are_described(unicycle):
    names = ["controller_frequency", "obstacles", "weights.position"]
    names += ["simulator.command_timeout", "robot"]
    request = DescribeParameters.Request(names=names)
    service = "mpc_node/describe_parameters"
    frequency, obstacles, weight, timeout, robot = unicycle.request(
        DescribeParameters, service, request
    ).descriptors
    assert frequency.description == "Rate of the control loop. [Hz]"
    assert frequency.floating_point_range[0].to_value == 1000.0
    assert not frequency.read_only
    assert robot.read_only
    assert obstacles.type == Parameter.Type.DOUBLE_ARRAY.value
    assert not weight.read_only
    assert timeout.floating_point_range[0].to_value == 60.0


def topics_in(layout):
    """Topics that the Foxglove layout or the RViz configuration names, relative."""
    if isinstance(layout, dict):
        named = [layout[key] for key in ("topicToRender", "poseTopic") if key in layout]
        named += [x.split(".")[0] for x in [layout.get("value", "")] if str(x).startswith("/")]
        named += list(layout.get("topics", ()))
        named += [layout["Topic"]["Value"]] if "Topic" in layout else []
        inside = [topic for value in layout.values() for topic in topics_in(value)]
        return {str(topic).lstrip("/") for topic in named} | set(inside)
    if isinstance(layout, list):
        return {topic for value in layout for topic in topics_in(value)}
    return set()


@pytest.mark.parametrize("name", ["foxglove_layout.json", "mpc.rviz"])
def test_layouts_name_topics_that_exist(unicycle, name):
    text = config_file("unicycle").with_name(name).read_text()
    layout = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
    named = topics_in(layout)
    assert len(named) > 4
    there = {topic.lstrip("/") for topic, _ in unicycle.observer.get_topic_names_and_types()}
    assert named <= there


def test_obstacles_and_reference_are_drawn(unicycle):
    markers, references = [], []
    unicycle.listen(MarkerArray, "mpc_node/obstacles", markers.append)
    unicycle.listen(PathMessage, "mpc_node/reference", references.append)
    unicycle.until(lambda: markers and references, "markers and a reference")
    cleared, *cylinders = markers[-1].markers
    assert cleared.action == Marker.DELETEALL
    drawn = [[c.pose.position.x, c.pose.position.y, 0.5 * c.scale.x] for c in cylinders]
    assert np.ravel(drawn) == pytest.approx(unicycle.config.parameters.obstacles)
    assert len(references[-1].poses) == unicycle.config.parameters.horizon + 1
    assert {m.header.frame_id for m in (cleared, *cylinders, references[-1])} == {"odom"}


def test_others_on_the_command_topic_are_named(unicycle):
    intruder = unicycle.observer.create_publisher(TwistStamped, "cmd_vel", 1)
    unicycle.until(lambda: "published by others as well: observer" in unicycle.reason, "warned")
    assert unicycle.statuses[-1].level == DiagnosticStatus.WARN
    unicycle.observer.destroy_publisher(intruder)
    unicycle.until(lambda: "published by others" not in unicycle.reason, "no warning")
    other = Watcher("")  # one participant of DDS cannot have both types
    try:
        other.listen(Twist, "cmd_vel", print)
        unicycle.until(lambda: "cannot exchange messages" in unicycle.reason, "warned of the type")
    finally:
        other.close()


def test_endpoints_that_do_not_match_are_named_with_the_reason(unicycle):
    lasting = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    hasty = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    deaf = unicycle.observer.create_subscription(
        TwistStamped, "cmd_vel", print, lasting, event_callbacks=NO_EVENTS
    )
    mute = unicycle.observer.create_publisher(
        PathMessage, "plan", hasty, event_callbacks=NO_EVENTS
    )
    told = (
        "observer does not receive /cmd_vel from mpc_node: volatile publisher and transient local",
        "mpc_node does not receive /plan from observer: best effort publisher and reliable",
    )
    unicycle.until(lambda: all(text in unicycle.reason for text in told), "warned of both")
    unicycle.observer.destroy_subscription(deaf)
    unicycle.observer.destroy_publisher(mute)
    unicycle.until(lambda: "not receive" not in unicycle.reason, "no warning")
