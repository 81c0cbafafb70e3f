# SPDX-License-Identifier: Apache-2.0
"""The task of each robot in the demo, and the demands on its drive."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.duration import Duration
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from mpc_banded.control.config import Config
from mpc_banded.control.path import PathReference
from mpc_banded.offline.drive import Run, Target
from mpc_banded.robots import messages

Summary = Mapping[str, Any]
Demands = dict[str, Callable[[Summary, Run], bool]]


@dataclass(frozen=True)
class Reference:
    """The reference that is published once, and its target.

    Attributes:
        topic: Relative name of its topic.
        kind: Type of its message.
        message: Makes the message from the time of publication.
        target: Path or values by which the states are judged.
    """

    topic: str
    kind: type[Any]
    message: Callable[[Time], Any]
    target: PathReference | Target


@dataclass(frozen=True)
class Scenario:
    """The task of a robot.

    Attributes:
        reference: Makes the reference from the configuration; without a topic if the robot needs
            none.
        duration_s: Duration of the drive.
        demands: Sentence -> function that says whether summary and run fulfil it.
    """

    reference: Callable[[Config], Reference | Target]
    duration_s: float
    demands: Demands = field(default_factory=dict)


def figure_of_eight() -> np.ndarray:
    """Lemniscate of Gerono, 5 m wide, one and a half times round; (M, 2) in m."""
    angle = np.linspace(0.0, 3.0 * np.pi, 900)
    return np.column_stack([2.5 * np.sin(angle), 2.5 * np.sin(angle) * np.cos(angle)])


def lane_change() -> np.ndarray:
    """Straight on, then 3 m to the left between 45 m and 65 m; (M, 2) in m."""
    x = np.linspace(0.0, 130.0, 800)
    share = np.clip((x - 45.0) / 20.0, 0.0, 1.0)
    return np.column_stack([x, 3.0 * share**3 * (10.0 - 15.0 * share + 6.0 * share**2)])


def along(points: np.ndarray) -> Callable[[Config], Reference]:
    """Follow a path through positions (M, 2) in m."""

    def message(stamp: Time) -> PathMessage:
        path = PathMessage()
        path.header.frame_id, path.header.stamp = "odom", stamp
        headings = np.arctan2(*np.gradient(points, axis=0).T[::-1])
        messages.fill_path(path, np.column_stack([points, headings]), PoseStamped)
        return path

    def reference(config: Config) -> Reference:
        path = PathReference(points, config.parameters.reference_speed)
        return Reference("plan", PathMessage, message, path)

    return reference


#: Joint angles of the arm in rad as multiples of a fan-shaped posture, and when they are reached.
WAYPOINTS = ((2.0, 1.0), (4.0, -0.5), (6.0, 0.8))
HOLD_S = 4.0


def wave(config: Config) -> Reference:
    """Move all joints through three postures, and hold the last one."""
    joints = list(config.values["joints"])
    posture = np.linspace(0.2, 0.8, len(joints))

    def message(stamp: Time) -> JointTrajectory:
        del stamp  # a trajectory without a stamp starts when it arrives
        return JointTrajectory(
            joint_names=joints,
            points=[
                JointTrajectoryPoint(
                    positions=(factor * posture).tolist(),
                    velocities=[0.0] * len(joints),
                    time_from_start=Duration(seconds=time_s).to_msg(),
                )
                for time_s, factor in WAYPOINTS
            ],
        )

    end_s, factor = WAYPOINTS[-1]
    last = dict(zip(joints, (factor * posture).tolist(), strict=True))
    return Reference(
        "joint_trajectory", JointTrajectory, message, Target(last, "rad", end_s + 1.0)
    )


def upright_since(run: Run) -> float:
    """Return the time in s from the start after which the pole stays within 0.1 rad of upright."""
    tilted = np.abs(np.angle(np.exp(1j * run.state("pole")))) > 0.1
    return float(run.state_times[tilted].max(initial=0.0)) if not tilted[-1] else math.inf


ALWAYS: Demands = {
    "every command within its bounds": lambda s, _: s["bound_violations"] == 0,
    "node and simulator ended with code 0": lambda s, _: not any(s["exit_codes"]),
}
SCENARIOS = {
    "unicycle": Scenario(
        along(figure_of_eight()),
        20.0,
        {
            "RMS error below 0.05 m away from the obstacle": lambda s, _: (
                s["rms_tracking_error_m"] < 0.05
            ),
            "no contact": lambda s, _: s["min_obstacle_clearance_m"] > 0.0,
        },
    ),
    "bicycle": Scenario(
        along(lane_change()),
        20.0,
        {
            "no contact": lambda s, _: s["min_obstacle_clearance_m"] > 0.0,
            "back on the path at the end, within 0.1 m": lambda s, _: (
                s["final_tracking_error_m"] < 0.1
            ),
        },
    ),
    "cartpole": Scenario(
        lambda _: Target({"cart": 0.0}, "m"),
        15.0,
        {"upright within 4 s, and until the end": lambda _, run: upright_since(run) < 4.0},
    ),
    "joint_space": Scenario(
        wave,
        WAYPOINTS[-1][0] + HOLD_S,
        {
            "at the last posture at the end, within 0.01 rad": lambda s, _: (
                s["final_tracking_error_rad"] < 0.01
            ),
        },
    ),
}


def config_file(robot: str) -> Path:
    """Find the parameter file of a robot: in the source tree, or where it is installed."""
    source = Path(__file__).resolve().parents[3] / "config" / f"{robot}.yaml"
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    installed = [Path(p) / "share" / "mpc_banded" / "config" / source.name for p in prefixes]
    found = next((file for file in (source, *installed) if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"there is no {source.name} in {source.parent} or any share folder"
        )
    return found
