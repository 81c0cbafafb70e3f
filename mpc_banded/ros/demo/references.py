# SPDX-License-Identifier: Apache-2.0
"""References that a demo can send to any robot: shapes, goals, and those of CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.duration import Duration
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from mpc_banded.control.config import Config
from mpc_banded.control.joints import JointPlanReference
from mpc_banded.control.path import PathReference
from mpc_banded.offline.drive import Target
from mpc_banded.robots import messages
from mpc_banded.robots.planar import Planar

#: Approximate duration of a shape, and of a line, in s.
SHAPE_S, LINE_S = 25.0, 10.0
#: Curves of a shape are wider than the turning radius by this factor.
ROOM = 1.3
#: Length and least radius of curvature of a figure of eight of half width 1.
EIGHT_LENGTH, EIGHT_RADIUS = 6.0972, 0.2087
#: Distance of the points of a shape, as a share of its length.
STEP = 1.0 / 600.0
#: Time between the points at which a motion is judged and drawn, in s.
SHOWN_S = 0.02
#: Farthest and shortest default move of a joint, in rad or m.
FARTHEST_MOVE, SHORTEST_MOVE_S = 0.5, 2.0


class UnfitReferenceError(ValueError):
    """A reference does not fit the robot, or cannot be read; the message says what is allowed."""


@dataclass(frozen=True)
class Reference:
    """The reference that is published once, and its target.

    Attributes:
        topic: Relative name of its topic.
        kind: Type of its message.
        message: Makes the message from the time of publication.
        target: Path or values by which the states are judged.
        duration_s: Duration at the wanted speed.
    """

    topic: str
    kind: type[Any]
    message: Callable[[Time], Any]
    target: PathReference | Target
    duration_s: float = 0.0


def path(config: Config, poses: np.ndarray, topic: str = "plan") -> Reference:
    """Follow a path through poses x, y, yaw (M, 3) in m and rad, in the frame of the odometry."""

    def message(stamp: Time) -> PathMessage:
        result = PathMessage()
        result.header.frame_id, result.header.stamp = "odom", stamp
        messages.fill_path(result, poses, PoseStamped)
        return result

    speed = config.parameters.reference_speed
    way = PathReference(poses[:, :2], speed)
    return Reference(topic, PathMessage, message, way, way.length / max(speed, 1e-3))


def goal(config: Config, pose: tuple[float, float, float], topic: str = "goal_pose") -> Reference:
    """Drive to a pose x, y, yaw in m and rad, in the frame of the odometry."""

    def message(stamp: Time) -> PoseStamped:
        result = PoseStamped()
        result.header.frame_id, result.header.stamp = "odom", stamp
        result.pose.position.x, result.pose.position.y = pose[:2]
        messages.set_yaw(result.pose.orientation, pose[2])
        return result

    x, y, _ = start_of(config)
    away = math.hypot(pose[0] - x, pose[1] - y)
    target = Target({"x": pose[0], "y": pose[1]}, "m", heading=pose[2])
    # On the way it may turn, or go around as far as the turning radius asks for.
    around = 2.0 * math.tau * radius_of(config)
    seconds = (away + around) / max(config.parameters.reference_speed, 1e-3) + 5.0
    return Reference(topic, PoseStamped, message, target, seconds)


def motion(
    config: Config,
    times_s: np.ndarray,
    columns: Mapping[str, np.ndarray],
    topic: str = "joint_trajectory",
) -> Reference:
    """Move joints through positions at given times, and hold the last ones.

    Args:
        config: Configuration of the robot.
        times_s: Increasing times (M,) from the start, in s.
        columns: Name of a joint, or ``<name>_velocity`` -> values (M,).
        topic: Topic to publish it on.
    """
    begin = dict(zip(config.robot.states, config.initial_state().tolist(), strict=True))
    unit = joint_unit(config)
    joints = [name for name in columns if not _is_rate(name, columns)]
    has_rates = all(f"{name}_velocity" in columns for name in joints)

    def point(index: int) -> JointTrajectoryPoint:
        rates = [f"{name}_velocity" for name in joints] if has_rates else []
        return JointTrajectoryPoint(
            positions=[float(columns[name][index]) for name in joints],
            velocities=[float(columns[name][index]) for name in rates],
            time_from_start=Duration(seconds=float(times_s[index])).to_msg(),
        )

    def message(stamp: Time) -> JointTrajectory:
        del stamp  # a trajectory without a stamp starts when it arrives
        points = [point(index) for index in range(len(times_s))]
        return JointTrajectory(joint_names=joints, points=points)

    last = {name: float(columns[name][-1]) for name in joints}
    end_s = float(times_s[-1])
    way = JointPlanReference(times_s, columns, 0.0)
    shown_s = np.linspace(0.0, end_s, round(end_s / SHOWN_S) + 2)
    wanted = way.columns(begin, shown_s)
    target = Target(last, unit, end_s + 1.0, shown_s, {name: wanted[name] for name in joints})
    return Reference(topic, JointTrajectory, message, target, end_s)


def reference_of(config: Config, words: Sequence[str]) -> Reference | None:
    """Return the reference that the user names, or a sensible one if ``words`` is empty.

    Args:
        config: Configuration of the robot.
        words: One of the shapes, ``goal X Y YAW``, or the name of a CSV file.

    Returns:
        None for a robot that needs no reference, or takes none of a known type.

    Raises:
        UnfitReferenceError: It does not fit the robot, or cannot be read.
    """
    topics = {topic.type: topic.topic for topic in config.robot.reference_topics}
    if config.robot.planar is not None and (on := topics.get("nav_msgs/msg/Path")):
        if words[:1] == ["goal"]:
            if (there := topics.get("geometry_msgs/msg/PoseStamped")) is None:
                raise UnfitReferenceError(f"{config.robot.name} takes no goal; allowed are paths")
            x, y, yaw = (float(word) for word in words[1:])
            return goal(config, (x, y, yaw), there)
        shape = words[0] if words else "line" if radius_of(config) > 0.0 else "figure8"
        is_shape = shape in SHAPES
        return path(config, SHAPES[shape](config) if is_shape else read_path(Path(shape)), on)
    if on := topics.get("trajectory_msgs/msg/JointTrajectory"):
        if words:
            if words[0] in SHAPES or words[0] == "goal":
                raise UnfitReferenceError(
                    f"{config.robot.name} has no position in the plane; allowed are CSV files "
                    f"with the columns t, {', '.join(joints_of(config))}"
                )
            return motion(config, *read_motion(config, Path(words[0])), on)
        return postures(config, on)
    if words:
        known = ", ".join(f"{topic} ({kind})" for kind, topic in topics.items()) or "no topic"
        raise UnfitReferenceError(
            f"{config.robot.name} takes its reference on {known}; --reference fills paths, goals "
            "and joint trajectories, so leave it out and publish your own"
        )
    return None


def start_of(config: Config) -> tuple[float, float, float]:
    """Return the pose x, y, yaw at which the simulated robot begins."""
    planar = config.robot.planar
    return planar.pose(config.initial_state()) if planar else (0.0, 0.0, 0.0)


def radius_of(config: Config) -> float:
    """Return the smallest turning radius in m; 0 if it is unknown or the base can pivot."""
    planar = config.robot.planar or Planar((0, 1))
    return planar.turning_radius(config.parameters.limits, config.parameters.model)


# Shapes: poses (M, 3) from where the robot begins.


def line(config: Config) -> np.ndarray:
    """Return a line straight ahead."""
    length = config.parameters.reference_speed * LINE_S
    return _placed(config, np.column_stack([np.linspace(0.0, length, 100), np.zeros(100)]))


def figure8(config: Config) -> np.ndarray:
    """Return a lemniscate of Gerono, once around."""
    length = config.parameters.reference_speed * SHAPE_S
    half_width = max(length / EIGHT_LENGTH, ROOM * radius_of(config) / EIGHT_RADIUS)
    t = np.linspace(0.0, math.tau, round(1.0 / STEP))
    x, y = half_width * np.sin(t), half_width * np.sin(t) * np.cos(t)
    return _placed(config, np.column_stack([x + y, y - x]) / math.sqrt(2.0))  # begins along x


def square(config: Config) -> np.ndarray:
    """Return four sides, with corners as round as the base needs them."""
    planar = config.robot.planar
    side = config.parameters.reference_speed * SHAPE_S / 4.0
    corner = ROOM * radius_of(config)
    if corner == 0.0 and planar and not (planar.pivots or planar.strafes):
        corner = 0.25 * side  # how narrow it can turn is unknown
    side = max(side, 3.0 * corner)
    step = 4.0 * side * STEP
    straight = np.arange(0.0, side - 2.0 * corner, step)
    turned = np.arange(step / max(corner, step), 0.5 * math.pi, step / max(corner, step))
    arc = corner * np.column_stack([np.sin(turned), 1.0 - np.cos(turned)])
    points, at = [], np.zeros(2)
    for quarter in range(4):
        c, s = math.cos(0.5 * math.pi * quarter), math.sin(0.5 * math.pi * quarter)
        turn = np.array([[c, s], [-s, c]])
        points.append(at + np.column_stack([straight, 0.0 * straight]) @ turn)
        at = at + np.array([side - 2.0 * corner, 0.0]) @ turn
        if corner > 0.0:
            points.append(at + np.vstack([np.zeros(2), arc]) @ turn)
        at = at + np.array([corner, corner]) @ turn
    return _placed(config, np.vstack([*points, at]))


SHAPES: dict[str, Callable[[Config], np.ndarray]] = {
    "figure8": figure8,
    "line": line,
    "square": square,
}


def _placed(config: Config, points: np.ndarray) -> np.ndarray:
    """Move points (M, 2) to where the robot begins, and add headings along the path."""
    x, y, yaw = start_of(config)
    c, s = math.cos(yaw), math.sin(yaw)
    return with_headings(np.array([x, y]) + points @ np.array([[c, s], [-s, c]]))


def with_headings(points: np.ndarray) -> np.ndarray:
    """Add to points (M, 2) the heading towards the next one."""
    steps = np.diff(points, axis=0)
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    return np.column_stack([points, np.append(headings, headings[-1:])])


# Joints.


def joints_of(config: Config) -> list[str]:
    """Return the columns of the reference that are positions."""
    names = config.robot.reference
    return [name for name in names if not _is_rate(name, names)]


def joint_unit(config: Config) -> str:
    """Return the unit of the joints of the reference; empty if unknown, or if they differ."""
    units = {config.robot.unit(name) for name in joints_of(config)}
    return units.pop() if len(units) == 1 else ""


def postures(config: Config, topic: str) -> Reference | None:
    """Move each joint to one side, to the other, and to rest between them.

    Returns:
        None for a robot that moves to zero without a reference, and begins elsewhere.
    """
    robot, limits = config.robot, config.parameters.limits
    begin = dict(zip(robot.states, config.initial_state().tolist(), strict=True))
    if robot.rests and any(begin.values()):
        return None
    reach, seconds = {}, SHORTEST_MOVE_S
    for name in joints_of(config):
        here = begin.get(name, 0.0)
        upper = limits.get(name, (-math.inf, math.inf))[1]
        reach[name] = min(FARTHEST_MOVE, 0.4 * max(upper - here, 0.0))
        fastest = min(map(abs, limits.get(f"{name}_velocity", (math.inf, math.inf))))
        seconds = max(seconds, 4.5 * reach[name] / fastest)
    times = seconds * np.array([1.0, 2.0, 3.0])
    columns = {
        name: begin.get(name, 0.0) + move * np.array([1.0, -0.5, 0.8])
        for name, move in reach.items()
    }
    columns |= {f"{name}_velocity": np.zeros(3) for name in reach}
    return motion(config, times, columns, topic)


def _is_rate(name: str, names: Mapping[str, Any] | Sequence[str]) -> bool:
    return name.endswith("_velocity") and name.removesuffix("_velocity") in names


# Files.


def read_path(file: Path) -> np.ndarray:
    """Return the poses (M, 3) of a CSV file with columns x, y and perhaps yaw, in m and rad."""
    table = _table(file)
    _check_columns(file, table, {"x", "y"}, {"yaw"})
    points = np.column_stack([table["x"], table["y"]])
    if "yaw" in table:
        return np.column_stack([points, table["yaw"]])
    if len(points) < 2:
        raise UnfitReferenceError(
            f"{file} has one point; allowed are two or more, or a column yaw"
        )
    return with_headings(points)


def read_motion(config: Config, file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the times (M,) and the columns (M,) of a CSV file with columns t and joints."""
    table, joints = _table(file), joints_of(config)
    _check_columns(file, table, {"t", *joints}, {f"{name}_velocity" for name in joints})
    times = table.pop("t")
    if times[0] < 0.0 or not (np.diff(times) > 0.0).all():
        raise UnfitReferenceError(f"{file}: the times in t must be positive and increase")
    return times, table


def _check_columns(
    file: Path, table: Mapping[str, np.ndarray], needed: set[str], allowed: set[str]
) -> None:
    if not needed <= set(table) <= needed | allowed:
        raise UnfitReferenceError(
            f"{file} has the columns {', '.join(table) or 'none'}; needed are "
            f"{', '.join(sorted(needed))}, allowed beside them {', '.join(sorted(allowed))}"
        )


def _table(file: Path) -> dict[str, np.ndarray]:
    """Return the columns of a CSV file of numbers, by their names in the first line."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head, *rows = [row for row in csv.reader(stream, skipinitialspace=True) if row]
        values = np.array([[float(cell) for cell in row] for row in rows])
        names = [name.strip() for name in head]
        if values.shape != (len(rows), len(names)) or not rows or not np.isfinite(values).all():
            raise ValueError("each line must have as many finite numbers as the first has names")
    except (OSError, csv.Error, ValueError) as error:
        raise UnfitReferenceError(f"{file} cannot be read: {error}") from error
    return {name: values[:, i] for i, name in enumerate(names)}
