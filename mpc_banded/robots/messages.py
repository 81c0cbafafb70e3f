# SPDX-License-Identifier: Apache-2.0
"""Converts messages to named values and back, without importing ROS.

The functions access only the fields of a message, so they work on messages of rclpy as well as on
those that rosbags reads from a file. Units are those of ROS (REP 103): metres, radians, seconds;
poses are in the frame that the message names.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Values = Mapping[str, float]
#: Most poses of a path, points of a trajectory, or joints of a state: reading more of them would
#: hold up the loop.
MOST_POSES, MOST_JOINTS = 20_000, 1000
#: Names of a pose in the plane.
POSE = ("x", "y", "yaw")


@dataclass(frozen=True)
class StateTopic:
    """Topic that carries the state, or a part of it.

    Attributes:
        topic: Relative name.
        type: Message type, such as ``nav_msgs/msg/Odometry``.
        read: Message -> named values; units and names are those of the robot's states.
        fill: Writes all named values of the state into a message, for the simulator.
    """

    topic: str
    type: str
    read: Callable[[Any], Values]
    fill: Callable[[Any, Values], None] | None = None


@dataclass(frozen=True)
class CommandTopic:
    """Topic that carries the command.

    Attributes:
        topic: Relative name.
        type: Message type.
        fill: Writes named values into a message.
        read: Message -> named values; raises ValueError if the message carries other values.
    """

    topic: str
    type: str
    fill: Callable[[Any, Values], None]
    read: Callable[[Any], Values]


@dataclass(frozen=True)
class ReferenceTopic:
    """Topic that carries the reference, or a part of it.

    Attributes:
        topic: Relative name.
        type: Message type.
        read: Message -> named values that are held; a PosePath, Goal or JointPlan; or a Reference
            (reference.py). Held values of several topics are merged by name. Raises ValueError
            with the reason if the message carries no reference.
    """

    topic: str
    type: str
    read: Callable[[Any], Any]


def has_position(names: Iterable[str]) -> bool:
    """Return whether named values hold a position in the plane."""
    return {"x", "y"} <= set(names)


def stamp_ns_of(message: Any) -> int:
    """Return the stamp of a message's header in nanoseconds; zero if it has none."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    return 0 if stamp is None else int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def frame_of(message: Any) -> str:
    """Return the frame that a message's header names; empty if it names none."""
    return str(getattr(getattr(message, "header", None), "frame_id", ""))


def yaw_of(quaternion: Any) -> float:
    """Return the yaw of a geometry_msgs/Quaternion in rad; NaN if its length is not near 1."""
    x, y, z, w = quaternion.x, quaternion.y, quaternion.z, quaternion.w
    if not abs(math.sqrt(x * x + y * y + z * z + w * w) - 1.0) < 0.1:
        return math.nan
    return math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))


def set_yaw(quaternion: Any, yaw: float) -> None:
    """Set a geometry_msgs/Quaternion to a rotation by a yaw in rad."""
    quaternion.x = quaternion.y = 0.0
    quaternion.z, quaternion.w = math.sin(0.5 * yaw), math.cos(0.5 * yaw)


def odometry_values(message: Any) -> dict[str, float]:
    """Read x, y, yaw and body velocities v (forward), vy (left), w (yaw) of nav_msgs/Odometry."""
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
    """Read each joint's position by name, and ``<name>_velocity``, of sensor_msgs/JointState."""
    _check_count("joint_states", "names", message.name, MOST_JOINTS)
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
    set_yaw(pose.orientation, float(values.get("yaw", 0.0)))
    twist.linear.x = float(values.get("v", 0.0))
    twist.linear.y = float(values.get("vy", 0.0))
    twist.angular.z = float(values.get("w", 0.0))


def fill_joint_state(message: Any, values: Values) -> None:
    """Write joint positions and ``<name>_velocity`` into sensor_msgs/JointState."""
    names = [name for name in values if not name.endswith("_velocity")]
    message.name = names
    message.position = [float(values[name]) for name in names]
    message.velocity = [float(values.get(f"{name}_velocity", 0.0)) for name in names]
    # ros2_control publishes NaN for efforts that are not measured. An empty array would not do:
    # readers of recordings stumble over the padding that Fast CDR adds after an empty last array.
    message.effort = [math.nan for _ in names]


def fill_twist(twist: Any, values: Values) -> None:
    """Write body velocities v, vy, w into geometry_msgs/Twist."""
    twist.linear.x = float(values.get("v", 0.0))
    twist.linear.y = float(values.get("vy", 0.0))
    twist.angular.z = float(values.get("w", 0.0))


def twist_values(twist: Any) -> dict[str, float]:
    """Read body velocities v, vy, w of geometry_msgs/Twist."""
    return {"v": twist.linear.x, "vy": twist.linear.y, "w": twist.angular.z}


@dataclass(frozen=True)
class PosePath:
    """Content of a path message.

    Attributes:
        points: (M, 2) in m.
        yaws: (M,) in rad; exactly 0 where the orientation is the identity.
        times_s: (M,) on the node's clock; None unless the poses carry increasing stamps.
        frame: Frame of the points; empty if the message names none.
    """

    points: np.ndarray
    yaws: np.ndarray
    times_s: np.ndarray | None
    frame: str


@dataclass(frozen=True)
class Goal:
    """Goal pose: x, y in m and yaw in rad, in a frame."""

    x: float
    y: float
    yaw: float
    frame: str


@dataclass(frozen=True)
class JointPlan:
    """Content of a joint trajectory message.

    Attributes:
        begin_ns: Start time; 0 starts at once.
        times_s: (M,) since the start.
        columns: Name of a joint, or ``<name>_velocity`` -> values (M,).
    """

    begin_ns: int
    times_s: np.ndarray
    columns: Mapping[str, np.ndarray]


def path_of(message: Any) -> PosePath:
    """Read a nav_msgs/Path.

    Raises:
        ValueError: Its poses are in several frames, or are too many.
    """
    _check_count("the path", "poses", message.poses, MOST_POSES)
    headers = [getattr(pose, "header", None) for pose in message.poses]
    frames = {frame_of(message), *(str(getattr(h, "frame_id", "")) for h in headers)} - {""}
    if len(frames) > 1:
        raise ValueError(f"the path is in several frames: {sorted(frames)}")
    points = [(p.pose.position.x, p.pose.position.y) for p in message.poses]
    turns = [p.pose.orientation for p in message.poses]
    yaws = np.array([yaw_of(q) for q in turns], dtype=np.float64)
    stamps = np.array([stamp_ns_of(pose) for pose in message.poses], dtype=np.int64)
    timed = len(stamps) > 1 and stamps[0] > 0 and bool((np.diff(stamps) > 0).all())
    return PosePath(
        np.array(points, dtype=np.float64).reshape(-1, 2),
        yaws,
        1e-9 * stamps if timed else None,
        next(iter(frames), ""),
    )


def _check_count(what: str, kind: str, items: Sized, most: int) -> None:
    if len(items) > most:
        raise ValueError(f"{what} has {len(items)} {kind}; allowed are up to {most}")


def fill_path(message: Any, points: np.ndarray, pose_type: Callable[[], Any]) -> None:
    """Write poses (M, 3) x, y, yaw into nav_msgs/Path; ``pose_type`` makes a PoseStamped."""
    message.poses = []
    for x, y, yaw in np.asarray(points, dtype=np.float64).tolist():
        pose = pose_type()
        pose.header = message.header
        pose.pose.position.x, pose.pose.position.y = x, y
        set_yaw(pose.pose.orientation, yaw)
        message.poses.append(pose)


def goal_of(message: Any) -> Goal:
    """Read the pose of a geometry_msgs/PoseStamped."""
    position = message.pose.position
    yaw = yaw_of(message.pose.orientation)
    return Goal(float(position.x), float(position.y), yaw, frame_of(message))


def joint_plan_of(message: Any) -> JointPlan:
    """Read a trajectory_msgs/JointTrajectory.

    Raises:
        ValueError: It has no points or too many, or a point does not fit the number of joints.
    """
    _check_count("the joint trajectory", "joints", message.joint_names, MOST_JOINTS)
    _check_count("the joint trajectory", "points", message.points, MOST_POSES)
    names, points = list(message.joint_names), message.points
    if not points:
        raise ValueError("the joint trajectory has no points")
    columns: dict[str, np.ndarray] = {}
    for suffix, what in (("", "positions"), ("_velocity", "velocities")):
        rows = [getattr(point, what, ()) for point in points]
        if suffix and not all(len(row) for row in rows):
            continue
        wrong = [len(row) for row in rows if len(row) != len(names)]
        if wrong:
            raise ValueError(f"a point has {wrong[0]} {what}; there are {len(names)} joints")
        table = np.array([list(row) for row in rows], dtype=np.float64)
        columns |= {f"{name}{suffix}": table[:, i] for i, name in enumerate(names)}
    spans = [getattr(point, "time_from_start", None) for point in points]
    times = np.array([0.0 if t is None else t.sec + 1e-9 * t.nanosec for t in spans])
    return JointPlan(stamp_ns_of(message), times, columns)


def joint_trajectory_command(names: tuple[str, ...]) -> CommandTopic:
    """Return a topic for ``name@seconds``, ``name_velocity@..``, ``name_acceleration@..``."""
    del names
    fields = (("positions", ""), ("velocities", "_velocity"), ("accelerations", "_acceleration"))

    def fill(message: Any, values: Values) -> None:
        times = sorted({name.partition("@")[2] for name in values}, key=float)
        bare = dict.fromkeys(name.partition("@")[0] for name in values)
        joints = [name for name in bare if not name.endswith(("_velocity", "_acceleration"))]
        message.joint_names = joints
        message.points = []
        for at in times:
            point = _beside(message, "JointTrajectoryPoint")
            for field, suffix in fields:
                setattr(point, field, [float(values[f"{name}{suffix}@{at}"]) for name in joints])
            seconds, nanoseconds = divmod(round(1e9 * float(at)), 1_000_000_000)
            point.time_from_start.sec, point.time_from_start.nanosec = seconds, nanoseconds
            message.points.append(point)

    def read(message: Any) -> Values:
        values = {}
        for point in message.points:
            at = f"{point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec:.9g}"
            for i, name in enumerate(message.joint_names):
                for field, suffix in fields:
                    values[f"{name}{suffix}@{at}"] = float(getattr(point, field)[i])
        return values

    return CommandTopic("joint_command", "trajectory_msgs/msg/JointTrajectory", fill, read)


def _beside(message: Any, name: str) -> Any:
    """Return a message of another type of the same package, without importing it by name."""
    return getattr(sys.modules[type(message).__module__.rpartition(".")[0]], name)()


def _narrowed(value: float) -> float:
    """Return the value in 32 bits, rounded towards zero so that it stays within its limits."""
    narrow = np.float32(value)
    if abs(float(narrow)) > abs(value):
        narrow = np.nextafter(narrow, np.float32(0.0))
    return float(narrow)


def ackermann_command(names: tuple[str, ...]) -> CommandTopic:
    """Return a topic for speed v in m/s and steering angle in rad, AckermannDriveStamped."""
    del names

    def fill(message: Any, values: Values) -> None:
        message.drive.speed = _narrowed(values["v"])
        message.drive.steering_angle = _narrowed(values["steering"])

    def read(message: Any) -> Values:
        drive = message.drive
        return {"v": float(drive.speed), "steering": float(drive.steering_angle)}

    return CommandTopic("ackermann_cmd", "ackermann_msgs/msg/AckermannDriveStamped", fill, read)


def twist_command(names: tuple[str, ...]) -> CommandTopic:
    """Return a topic for body velocities, in a TwistStamped or (same functions) a Twist."""
    del names

    def fill(message: Any, values: Values) -> None:
        fill_twist(getattr(message, "twist", message), values)

    def read(message: Any) -> Values:
        return twist_values(getattr(message, "twist", message))

    return CommandTopic("cmd_vel", "geometry_msgs/msg/TwistStamped", fill, read)


def array_command(topic: str, names: tuple[str, ...]) -> CommandTopic:
    """Return a topic for named values, one after the other, in a Float64MultiArray."""

    def fill(message: Any, values: Values) -> None:
        message.data = [float(values[name]) for name in names]

    def read(message: Any) -> Values:
        if len(message.data) != len(names):
            raise ValueError(f"{topic} has {len(message.data)} values; allowed are {names}")
        return {name: float(x) for name, x in zip(names, message.data, strict=True)}

    return CommandTopic(topic, "std_msgs/msg/Float64MultiArray", fill, read)


@dataclass(frozen=True)
class SpeedLimit:
    """The speed that is allowed at present.

    Attributes:
        value: In m/s, or in percent of the fastest that the robot drives; 0 is no limit.
        percentage: Whether it is in percent.
    """

    value: float = 0.0
    percentage: bool = False


def speed_limit_of(message: Any) -> SpeedLimit:
    """Read a nav2_msgs/SpeedLimit.

    Raises:
        ValueError: It is not finite, or negative.
    """
    value = float(message.speed_limit)
    if not 0.0 <= value < math.inf:
        raise ValueError(
            f"speed_limit is {value:g}; allowed are 0, which lifts the limit, and positive numbers"
        )
    return SpeedLimit(value, bool(message.percentage))


#: Kinds of state message.
STATES = {
    "odometry": StateTopic("odom", "nav_msgs/msg/Odometry", odometry_values, fill_odometry),
    "joint_states": StateTopic(
        "joint_states", "sensor_msgs/msg/JointState", joint_values, fill_joint_state
    ),
}
#: Kinds of command message: functions that return the topic for the names of the values. The
#: parameter enable_stamped_cmd_vel chooses whether "twist" is stamped.
COMMANDS: dict[str, Callable[[tuple[str, ...]], CommandTopic]] = {
    "twist": twist_command,
    "effort": partial(array_command, "effort_command"),
    "velocity": partial(array_command, "velocity_command"),
    "joint_trajectory": joint_trajectory_command,
    "ackermann": ackermann_command,
}
#: Kinds of reference message, with the topics that carry them.
REFERENCES = {
    "path": (
        ReferenceTopic("plan", "nav_msgs/msg/Path", path_of),
        ReferenceTopic("goal_pose", "geometry_msgs/msg/PoseStamped", goal_of),
    ),
    "joint_trajectory": (
        ReferenceTopic("joint_trajectory", "trajectory_msgs/msg/JointTrajectory", joint_plan_of),
    ),
}
