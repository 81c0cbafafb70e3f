# SPDX-License-Identifier: Apache-2.0
"""Messages to named values and back, without importing ROS.

Every function reads or fills a message that it is given and touches fields only, so a message of
rclpy and one that rosbags has read from a file are the same to it. Units are those of ROS (REP
103): metres, radians, seconds; poses are in the frame that the message names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Values = Mapping[str, float]


@dataclass(frozen=True)
class StateTopic:
    """A topic that carries the state, or a part of it.

    Attributes:
        topic: Its name, relative.
        type: Of its messages, as ``nav_msgs/msg/Odometry``.
        read: Message -> named values; units and names are those of the robot's states.
        fill: Writes all named values of the state into a message, for the simulator.
    """

    topic: str
    type: str
    read: Callable[[Any], Values]
    fill: Callable[[Any, Values], None] | None = None


@dataclass(frozen=True)
class CommandTopic:
    """The topic that carries the command.

    Attributes:
        topic: Its name, relative.
        type: Of its messages.
        fill: Writes named values into a message.
        read: Message -> named values; raises ValueError where it carries other ones.
    """

    topic: str
    type: str
    fill: Callable[[Any, Values], None]
    read: Callable[[Any], Values]


@dataclass(frozen=True)
class ReferenceTopic:
    """A topic that carries the reference, or a part of it.

    Attributes:
        topic: Its name, relative.
        type: Of its messages.
        read: Message -> named values that are held, or a Reference (reference.py). Held values of
            several topics are merged by name. Raises ValueError saying why it carries none.
    """

    topic: str
    type: str
    read: Callable[[Any], Any]


def stamp_ns_of(message: Any) -> int:
    """Stamp of a message's header in nanoseconds; zero where it has none."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    return 0 if stamp is None else int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def frame_of(message: Any) -> str:
    """Frame that a message's header names; empty where it names none."""
    return str(getattr(getattr(message, "header", None), "frame_id", ""))


def yaw_of(quaternion: Any) -> float:
    """Yaw of a geometry_msgs/Quaternion in rad; NaN if its length is not near 1."""
    x, y, z, w = quaternion.x, quaternion.y, quaternion.z, quaternion.w
    if not abs(math.sqrt(x * x + y * y + z * z + w * w) - 1.0) < 0.1:
        return math.nan
    return math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))


def set_yaw(quaternion: Any, yaw: float) -> None:
    """Make a geometry_msgs/Quaternion a pure yaw."""
    quaternion.x = quaternion.y = 0.0
    quaternion.z, quaternion.w = math.sin(0.5 * yaw), math.cos(0.5 * yaw)


def odometry_values(message: Any) -> dict[str, float]:
    """Pose x, y, yaw and body velocities v (forward), vy (left), w (yaw) of nav_msgs/Odometry."""
    pose, twist = message.pose.pose, message.twist.twist
    return {
        "x": float(pose.position.x),
        "y": float(pose.position.y),
        "yaw": yaw_of(pose.orientation),
        "v": float(twist.linear.x),
        "vy": float(twist.linear.y),
        "w": float(twist.angular.z),
    }


def joint_values(message: Any) -> dict[str, float]:
    """Position of each joint of sensor_msgs/JointState by its name, and ``<name>_velocity``."""
    values = {}
    for i, name in enumerate(message.name):
        if i < len(message.position):
            values[name] = float(message.position[i])
        if i < len(message.velocity):
            values[f"{name}_velocity"] = float(message.velocity[i])
    return values


def fill_odometry(message: Any, values: Values) -> None:
    """Write a planar pose and body velocities into nav_msgs/Odometry."""
    pose, twist = message.pose.pose, message.twist.twist
    pose.position.x, pose.position.y = float(values["x"]), float(values["y"])
    set_yaw(pose.orientation, float(values["yaw"]))
    twist.linear.x = float(values.get("v", 0.0))
    twist.linear.y = float(values.get("vy", 0.0))
    twist.angular.z = float(values.get("w", 0.0))


def fill_joint_state(message: Any, values: Values) -> None:
    """Write joints and their ``_velocity`` into sensor_msgs/JointState."""
    names = [name for name in values if not name.endswith("_velocity")]
    message.name = names
    message.position = [float(values[name]) for name in names]
    message.velocity = [float(values.get(f"{name}_velocity", 0.0)) for name in names]
    # Not a number where nobody measures it, as ros2_control publishes it. Readers of recordings
    # stumble over the padding that Fast CDR puts behind an empty last array.
    message.effort = [math.nan for _ in names]


def fill_twist(twist: Any, values: Values) -> None:
    """Write body velocities v, vy, w into geometry_msgs/Twist."""
    twist.linear.x = float(values.get("v", 0.0))
    twist.linear.y = float(values.get("vy", 0.0))
    twist.angular.z = float(values.get("w", 0.0))


def twist_values(twist: Any) -> dict[str, float]:
    """Body velocities v, vy, w of a geometry_msgs/Twist."""
    return {"v": twist.linear.x, "vy": twist.linear.y, "w": twist.angular.z}


def path_points(message: Any) -> np.ndarray:
    """Positions of a nav_msgs/Path, (M, 2); its orientations are often left at identity."""
    points = [(p.pose.position.x, p.pose.position.y) for p in message.poses]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def fill_path(message: Any, points: np.ndarray, pose_type: Callable[[], Any]) -> None:
    """Write poses (M, 3) x, y, yaw into nav_msgs/Path; ``pose_type`` makes a PoseStamped."""
    message.poses = []
    for x, y, yaw in np.asarray(points, dtype=np.float64).tolist():
        pose = pose_type()
        pose.header = message.header
        pose.pose.position.x, pose.pose.position.y = x, y
        set_yaw(pose.pose.orientation, yaw)
        message.poses.append(pose)


def goal_pose(message: Any) -> tuple[float, float, float]:
    """x, y, yaw of a geometry_msgs/PoseStamped."""
    position = message.pose.position
    return float(position.x), float(position.y), yaw_of(message.pose.orientation)


def joint_goal(message: Any) -> dict[str, float]:
    """Last positions of a trajectory_msgs/JointTrajectory by joint."""
    if not message.points:
        return {}
    positions = message.points[-1].positions
    return {name: float(value) for name, value in zip(message.joint_names, positions, strict=True)}


def twist_command(names: tuple[str, ...]) -> CommandTopic:
    """Body velocities in a TwistStamped; in a Twist as well, which the same functions serve."""
    del names

    def fill(message: Any, values: Values) -> None:
        fill_twist(getattr(message, "twist", message), values)

    def read(message: Any) -> Values:
        return twist_values(getattr(message, "twist", message))

    return CommandTopic("cmd_vel", "geometry_msgs/msg/TwistStamped", fill, read)


def array_command(topic: str, names: tuple[str, ...]) -> CommandTopic:
    """The named values one after the other in a Float64MultiArray."""

    def fill(message: Any, values: Values) -> None:
        message.data = [float(values[name]) for name in names]

    def read(message: Any) -> Values:
        if len(message.data) != len(names):
            raise ValueError(f"{topic} has {len(message.data)} values; allowed are {names}")
        return {name: float(x) for name, x in zip(names, message.data, strict=True)}

    return CommandTopic(topic, "std_msgs/msg/Float64MultiArray", fill, read)


#: Kinds of state message.
STATES = {
    "odometry": StateTopic("odom", "nav_msgs/msg/Odometry", odometry_values, fill_odometry),
    "joint_states": StateTopic(
        "joint_states", "sensor_msgs/msg/JointState", joint_values, fill_joint_state
    ),
}
#: Kinds of command message: each makes the topic for the names of the values. "twist" is stamped
#: or not by parameter.
COMMANDS: dict[str, Callable[[tuple[str, ...]], CommandTopic]] = {
    "twist": twist_command,
    "effort": partial(array_command, "effort_command"),
    "velocity": partial(array_command, "velocity_command"),
}
#: Kinds of reference message: the topics listened to.
REFERENCES = {
    "path": (
        ReferenceTopic("plan", "nav_msgs/msg/Path", path_points),
        ReferenceTopic("goal_pose", "geometry_msgs/msg/PoseStamped", goal_pose),
    ),
    "joint_trajectory": (
        ReferenceTopic("joint_trajectory", "trajectory_msgs/msg/JointTrajectory", joint_goal),
    ),
}
