# SPDX-License-Identifier: Apache-2.0
"""Messages are read back as they were written, by rclpy and by rosbags."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Pose, PoseStamped, Quaternion, Twist
from hypothesis import example, given
from hypothesis import strategies as st
from nav_msgs.msg import Odometry, Path
from rclpy.serialization import serialize_message
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from mpc_banded.robots import messages
from mpc_banded.ros.interfaces import message_class

NUMBERS = st.floats(-1e6, 1e6)
ANGLES = st.floats(-3.14, 3.14)
PLANAR = st.fixed_dictionaries(
    {"x": NUMBERS, "y": NUMBERS, "yaw": ANGLES, "v": NUMBERS, "vy": NUMBERS, "w": NUMBERS}
)


@pytest.fixture(scope="module")
def recorded():
    """The same message as a reader of recordings would give it, without ROS."""
    types = get_typestore(Stores.ROS2_KILTED)
    return lambda message, kind: types.deserialize_cdr(bytes(serialize_message(message)), kind)


@given(values=PLANAR)
def test_odometry_is_read_as_written(recorded, values):
    message = Odometry()
    messages.fill_odometry(message, values)
    assert messages.odometry_values(message) == pytest.approx(values, abs=1e-12)
    again = recorded(message, "nav_msgs/msg/Odometry")
    assert messages.odometry_values(again) == messages.odometry_values(message)


@given(values=st.dictionaries(st.sampled_from(["arm", "hand"]), NUMBERS, min_size=1), rate=NUMBERS)
def test_joint_states_are_read_as_written(recorded, values, rate):
    values = values | {f"{name}_velocity": rate for name in values}
    message = JointState()
    messages.fill_joint_state(message, values)
    assert messages.joint_values(message) == values
    assert messages.joint_values(recorded(message, "sensor_msgs/msg/JointState")) == values


def test_joint_states_without_velocities_have_positions_only():
    message = JointState(name=["wheel", "arm"], position=[1.0, 2.0])
    assert messages.joint_values(message) == {"wheel": 1.0, "arm": 2.0}


@given(values=PLANAR)
def test_twist_is_read_as_written(values):
    twist = Twist()
    messages.fill_twist(twist, values)
    assert messages.twist_values(twist) == {name: values[name] for name in ("v", "vy", "w")}


@given(yaw=ANGLES, scale=st.floats(0.95, 1.05))
def test_yaw_survives_a_quaternion_that_is_not_quite_normal(yaw, scale):
    quaternion = Quaternion()
    messages.set_yaw(quaternion, yaw)
    for name in "xyzw":
        setattr(quaternion, name, scale * getattr(quaternion, name))
    # atan2 of terms of second order in the quaternion: off by as much as its square.
    assert messages.yaw_of(quaternion) == pytest.approx(yaw, abs=2.5 * abs(scale - 1.0) + 1e-12)


@given(yaw=ANGLES, tilt=st.floats(-0.5, 0.5))
def test_yaw_does_not_see_roll(yaw, tilt):
    z, w = math.sin(0.5 * yaw), math.cos(0.5 * yaw)
    s, c = math.sin(0.5 * tilt), math.cos(0.5 * tilt)
    rolled = Quaternion(x=w * s, y=z * s, z=z * c, w=w * c)
    assert messages.yaw_of(rolled) == pytest.approx(yaw, abs=1e-9)


@pytest.mark.parametrize("w", [0.0, math.nan, math.inf, 2.0])
def test_quaternion_without_unit_length_has_no_yaw(w):
    assert math.isnan(messages.yaw_of(Quaternion(w=w)))


@given(poses=st.lists(st.tuples(NUMBERS, NUMBERS, ANGLES), max_size=5))
def test_path_is_read_as_written(recorded, poses):
    message = Path(header=Header(frame_id="odom"))
    messages.fill_path(message, np.array(poses).reshape(-1, 3), PoseStamped)
    points = messages.path_of(message).points
    assert points.shape == (len(poses), 2)
    assert points.tolist() == [[x, y] for x, y, _ in poses]
    assert all(pose.header.frame_id == "odom" for pose in message.poses)
    again = messages.path_of(recorded(message, "nav_msgs/msg/Path"))
    assert np.array_equal(again.points, points)
    assert (again.frame, again.times_s) == ("odom", None)


@given(x=NUMBERS, y=NUMBERS, yaw=ANGLES)
def test_goal_is_read_as_written(x, y, yaw):
    message = PoseStamped(pose=Pose())
    message.pose.position.x, message.pose.position.y = x, y
    messages.set_yaw(message.pose.orientation, yaw)
    goal = messages.goal_of(message)
    assert (goal.x, goal.y, goal.yaw) == pytest.approx((x, y, yaw), abs=1e-12)


def test_joint_trajectory_is_read_with_its_times():
    points = [
        JointTrajectoryPoint(
            positions=[x, 2 * x], velocities=[0.1, 0.2], time_from_start=Duration(sec=int(x))
        )
        for x in (1.0, 5.0)
    ]
    told = messages.joint_plan_of(JointTrajectory(joint_names=["a", "b"], points=points))
    assert told.times_s.tolist() == [1.0, 5.0]
    assert {name: column.tolist() for name, column in told.columns.items()} == {
        "a": [1.0, 5.0],
        "b": [2.0, 10.0],
        "a_velocity": [0.1, 0.1],
        "b_velocity": [0.2, 0.2],
    }


@pytest.mark.parametrize(
    ("points", "why"),
    [([], "no points"), ([JointTrajectoryPoint(positions=[1.0])], "1 positions")],
)
def test_joint_trajectory_that_lacks_something_is_an_error(points, why):
    with pytest.raises(ValueError, match=why):
        messages.joint_plan_of(JointTrajectory(joint_names=["a", "b"], points=points))


def stamped_path(*poses):
    """A path of (x, yaw, stamp in s)."""
    message = Path(header=Header(frame_id="map"))
    for x, yaw, stamp in poses:
        pose = PoseStamped()
        pose.pose.position.x, pose.header.stamp.sec = x, stamp
        messages.set_yaw(pose.pose.orientation, yaw)
        message.poses.append(pose)
    return message


def test_orientations_left_at_identity_are_exactly_zero():
    path = messages.path_of(stamped_path((0.0, 0.0, 0), (1.0, 0.5, 0)))
    assert path.yaws[0] == 0.0
    assert path.yaws[1] == pytest.approx(0.5)
    assert messages.path_of(stamped_path()).yaws.shape == (0,)


@pytest.mark.parametrize("stamps", [(5, 5), (0, 7), (7, 5), (0, 0)])
def test_path_is_timed_only_by_stamps_that_increase(stamps):
    first, second = stamps
    assert messages.path_of(stamped_path((0.0, 0.0, first), (1.0, 0.0, second))).times_s is None
    timed = messages.path_of(stamped_path((0.0, 0.0, 5), (1.0, 0.0, 7)))
    assert timed.times_s.tolist() == [5.0, 7.0]


def test_path_in_two_frames_is_an_error():
    message = stamped_path((0.0, 0.0, 0), (1.0, 0.0, 0))
    message.poses[1].header.frame_id = "odom"
    with pytest.raises(ValueError, match="several frames"):
        messages.path_of(message)


def test_points_of_a_joint_command_are_read_as_written():
    command = messages.COMMANDS["joint_trajectory"](())
    values = {
        f"{name}{suffix}@{at}": 0.1 * i + float(at)
        for i, name in enumerate(("a", "b"))
        for suffix in ("", "_velocity", "_acceleration")
        for at in ("0.15", "0.2")
    }
    message = JointTrajectory()
    command.fill(message, values)
    assert command.read(message) == values
    assert not any(len(point.effort) for point in message.points)  # ros2_control refuses any
    command.fill(message, {})
    assert command.read(message) == {}


@given(NUMBERS, ANGLES)
@example(0.3, -0.3)
def test_ackermann_command_has_32_bits_and_goes_no_further_than_asked(v, steering):
    command = messages.COMMANDS["ackermann"](())
    message = SimpleNamespace(drive=SimpleNamespace())
    command.fill(message, {"v": v, "steering": steering})
    read = command.read(message)
    for sent, asked in ((read["v"], v), (read["steering"], steering)):
        assert sent == np.float32(sent)
        assert abs(sent) <= abs(asked)
        assert sent == pytest.approx(asked, rel=2e-7, abs=1e-44)


def test_every_named_message_type_exists():
    topics = [*messages.STATES.values(), *itertools.chain(*messages.REFERENCES.values())]
    topics += [make(("v", "w")) for kind, make in messages.COMMANDS.items() if kind != "ackermann"]
    for topic in topics:
        package, _, name = topic.type.split("/")
        assert message_class(topic.type).__name__ == name
        assert message_class(topic.type).__module__.startswith(f"{package}.msg")
