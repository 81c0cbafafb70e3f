# SPDX-License-Identifier: Apache-2.0
"""What is written into a message is read back, whoever made the message."""

import itertools
import math

import numpy as np
import pytest
from geometry_msgs.msg import Pose, PoseStamped, Quaternion, Twist
from hypothesis import given
from hypothesis import strategies as st
from nav_msgs.msg import Odometry, Path
from rclpy.serialization import serialize_message
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from mpc_banded import messages
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
    points = messages.path_points(message)
    assert points.shape == (len(poses), 2)
    assert points.tolist() == [[x, y] for x, y, _ in poses]
    assert all(pose.header.frame_id == "odom" for pose in message.poses)
    assert np.array_equal(messages.path_points(recorded(message, "nav_msgs/msg/Path")), points)


@given(x=NUMBERS, y=NUMBERS, yaw=ANGLES)
def test_goal_is_read_as_written(x, y, yaw):
    message = PoseStamped(pose=Pose())
    message.pose.position.x, message.pose.position.y = x, y
    messages.set_yaw(message.pose.orientation, yaw)
    assert messages.goal_pose(message) == pytest.approx((x, y, yaw), abs=1e-12)


def test_goal_of_a_joint_trajectory_is_its_last_point():
    points = [JointTrajectoryPoint(positions=[x, 2 * x]) for x in (1.0, 5.0)]
    message = JointTrajectory(joint_names=["a", "b"], points=points)
    assert messages.joint_goal(message) == {"a": 5.0, "b": 10.0}
    assert messages.joint_goal(JointTrajectory(joint_names=["a"])) == {}


def test_joint_trajectory_with_a_position_too_few_is_an_error():
    points = [JointTrajectoryPoint(positions=[1.0])]
    with pytest.raises(ValueError, match="shorter"):
        messages.joint_goal(JointTrajectory(joint_names=["a", "b"], points=points))


def test_every_named_message_type_exists():
    topics = [*messages.STATES.values(), *itertools.chain(*messages.REFERENCES.values())]
    topics += [make(("v", "w")) for make in messages.COMMANDS.values()]
    for topic in topics:
        package, _, name = topic.type.split("/")
        assert message_class(topic.type).__name__ == name
        assert message_class(topic.type).__module__.startswith(f"{package}.msg")
