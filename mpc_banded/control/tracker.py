# SPDX-License-Identifier: Apache-2.0
"""Turns messages into the one reference that the robot follows, in the frame of the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.errors import reason_for_rejection, user_code
from mpc_banded.control.frames import Frames, Pose
from mpc_banded.control.joints import JointPlanReference, JointReference
from mpc_banded.control.legs import CutOptions, base_of, orient
from mpc_banded.control.path import SAME_GOAL, GoalReference, LegReference, PathReference
from mpc_banded.control.reference import MovedReference, Reference, inner
from mpc_banded.control.state import StateEstimate
from mpc_banded.control.timed_path import TimedPathReference
from mpc_banded.robots.messages import (
    Goal,
    JointPlan,
    PosePath,
    ReferenceTopic,
    SpeedLimit,
    speed_limit_of,
)

#: Longest time in ns for which a message waits for the pose of its frame.
PATIENCE_NS = 30_000_000_000
#: Longest time in ns between two messages of a sender that sends a path again and again.
AGAIN_NS = 2_000_000_000


class Tracker:
    """Keeps the reference of the newest valid message.

    Args:
        config: Configuration of the robot.
        estimate: State estimate.
        frames: Poses of frames in the frame of the state.

    Attributes:
        reference: The reference; None before the first one.
        rejected: Why a message gave no reference; None if none was rejected.
        errands: Number of times that the reference led elsewhere, or there once more.
        has_arrived: Whether the robot has arrived at its end; set by the control loop.
        lacks_frame: Whether the pose of the frame of the newest message is unknown.
    """

    def __init__(self, config: Config, estimate: StateEstimate, frames: Frames) -> None:
        self._config, self._robot = config, config.robot
        self._estimate, self._frames = estimate, frames
        self.reference: Reference | None = None
        rests = self._robot.reference_message == "joint_trajectory" and self._robot.rests
        if rests or not self._robot.reference_topics:  # it drives to zero
            self.reference = JointReference({})
        self.rejected: str | None = None
        self.errands = 0
        self.has_arrived = self.lacks_frame = False
        self._held: dict[str, float] = {}
        self._frame = ""
        self._taken_ns = 0
        self._waiting: tuple[ReferenceTopic, Any, int] | None = None
        self._has_goals = False  # somebody uses the action follow_path
        self._limit = SpeedLimit()
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._config = config
        parameters = config.parameters
        self._base = base_of(config.robot, parameters)
        self._cut = CutOptions(
            parameters.minimum_rotation_angle,
            parameters.inversion_xy_tolerance,
            parameters.inversion_yaw_tolerance,
        )
        if isinstance(path := self._inner, LegReference):
            path.speed, path.base = self.speed, self._base

    @property
    def speed(self) -> float:
        """The speed along a path that is wanted, within the one that is allowed, in m/s."""
        return min(self._config.parameters.reference_speed, self.allowed_speed)

    @property
    def allowed_speed(self) -> float:
        """The speed that the newest limit allows, in m/s; infinite without one."""
        if not self._limit.value:
            return math.inf
        if not self._limit.percentage:
            return self._limit.value
        fastest = min(self._config.parameters.reference_speed, self._base.limits.forward)
        return 0.01 * self._limit.value * fastest

    @property
    def awaited(self) -> str:
        """What brings the next reference, in words."""
        if self._has_goals:
            return "a goal of follow_path"
        return (
            f"a reference on {' or '.join(topic.topic for topic in self._robot.reference_topics)}"
        )

    @property
    def distance_left(self) -> float | None:
        """Length of the path that is not yet driven, in m; None where there is no path."""
        path = self._inner
        return path.length - (path.progress or 0.0) if isinstance(path, LegReference) else None

    @property
    def top_speed(self) -> float:
        """The fastest speed of any command, in m/s: catching up is no reason for a faster one."""
        path = self._inner
        return path.speed if isinstance(path, LegReference) else self.allowed_speed

    def limit_speed(self, message: Any, received_ns: int) -> None:
        """Take a nav2_msgs/SpeedLimit; raises ValueError if it limits nothing in a known way."""
        del received_ns
        self._limit = speed_limit_of(message)
        self.adopt(self._config)

    def take_goal(self, topic: ReferenceTopic, message: Any, received_ns: int) -> None:
        """Take the path of a goal of follow_path; one without poses says that there is no goal.

        Args and errors are those of ``take``.
        """
        self._has_goals = True
        self.take(topic, message, received_ns)
        if not message.poses:
            self.rejected = None

    def take_waiting(self, now_ns: int) -> None:
        """Take the message that waited for the first state, or for the pose of its frame."""
        if self._waiting is None or self._estimate.state is None:
            return
        topic, message, received_ns = self._waiting
        self.receive(topic, message, received_ns)
        if self._waiting is not None and now_ns - received_ns > PATIENCE_NS:
            self._waiting = None  # self.rejected says what it waited for

    def relocate(self) -> None:
        """Search for the robot on the whole path, because it has been moved."""
        if isinstance(path := self._inner, LegReference):
            path.begin_again()

    @property
    def _inner(self) -> Reference | None:
        """The reference in its own frame."""
        return inner(self.reference)

    def receive(self, topic: ReferenceTopic, message: Any, received_ns: int) -> str | None:
        """Take a message; returns why it was rejected, or None."""
        rejected = reason_for_rejection(self.take, topic, message, received_ns)
        self.rejected = rejected or self.rejected
        return rejected

    def take(self, topic: ReferenceTopic, message: Any, received_ns: int) -> None:
        """Take a message.

        A message that comes before the first state, or before the pose of its frame is known, is
        kept and tried again for a while.

        Args:
            topic: Topic of the message.
            message: As rclpy or rosbags give it.
            received_ns: Time of receipt.

        Raises:
            LookupError: It is in a frame whose pose is unknown.
            UserCodeError: It cannot be read.
            ValueError: It is no valid reference.
        """
        with user_code(f"{topic.topic} cannot be read"):
            content = topic.read(message)
        frame = getattr(content, "frame", "")
        self._waiting, self.lacks_frame = None, False
        if frame and not self._estimate.frame and self._estimate.state is None:
            # The first state shows whether this is its frame.
            self._waiting = (topic, message, received_ns)
            return
        if isinstance(content, PosePath) and not len(content.points):
            self.reference, self.rejected = None, f"{topic.topic} has no poses, so the robot stops"
            return
        pose = None
        if frame not in ("", self._estimate.frame):
            pose = partial(self._frames.pose, topic.topic, frame)
            try:
                pose()
            except LookupError:
                self.lacks_frame = True
                if self._frames.transform is not None:
                    self._waiting = (topic, message, received_ns)
                raise
        reference = self._reference(topic, content, received_ns, pose)
        placed = reference if pose is None else MovedReference(reference, pose)
        # A path that comes long after the one that has been driven is to be driven once more.
        repeats = 0 <= received_ns - self._taken_ns <= AGAIN_NS
        once_more = self.has_arrived and not repeats and isinstance(reference, PathReference)
        if not once_more:
            self._take_over(reference, placed, frame)
        self.errands += once_more or not _leads_to(getattr(self._inner, "goal", None), reference)
        self.reference, self._frame, self.rejected = placed, frame, None
        self._taken_ns = received_ns

    def _take_over(self, reference: Reference, placed: Reference, frame: str) -> None:
        """Let a path continue from the progress on the one that it replaces."""
        before = self._inner
        if not (isinstance(reference, PathReference) and isinstance(before, LegReference)):
            return
        values = self._there(placed)
        if frame == self._frame and values:
            reference.take_over(before, np.array([values["x"], values["y"]]))

    def _there(self, placed: Reference) -> dict[str, float]:
        """Return the state by name in the frame of a reference; empty before the first one."""
        values = self._estimate.values
        return {**values, **placed.there(values)} if isinstance(placed, MovedReference) else values

    def trouble(self) -> str | None:
        """Return why the robot cannot follow its path from where it is, or None."""
        path, placed = self._inner, self.reference
        if not isinstance(path, LegReference) or placed is None:
            return None
        values = self._there(placed)
        return path.trouble(values) if values else None

    def _start(self, pose: Callable[[], Pose] | None) -> Pose | None:
        """Return the pose of the robot in the frame of a goal; None if unknown."""
        state, planar = self._estimate.state, self._robot.planar
        if state is None or planar is None or pose is not None:
            return None
        return planar.pose(state)

    def _goal(self, x: float, y: float, yaw: float, start: Pose | None) -> LegReference:
        known = self._inner
        if isinstance(known, GoalReference) and known.goal == (x, y, yaw):
            return known  # it is on the way already
        return GoalReference(x, y, yaw, self.speed, self._base, self._cut, start)

    def _path(self, content: PosePath, start: Pose | None, now_ns: int) -> Reference:
        parameters = self._config.parameters
        yaws, final_yaw = orient(content.points, content.yaws, parameters.path_orientation)
        if content.times_s is not None and (
            parameters.timed_paths or content.times_s[-1] > 1e-9 * now_ns
        ):
            return TimedPathReference(content.points, content.times_s, yaws)
        path = PathReference(content.points, self.speed, yaws, final_yaw, self._base, self._cut)
        if len(path.legs) == 1 and path.legs[0].is_turn:  # all poses are at one place
            return self._goal(*path.goal, start)
        return path

    def _reference(
        self,
        topic: ReferenceTopic,
        content: Any,
        received_ns: int,
        pose: Callable[[], Pose] | None,
    ) -> Reference:
        """Return the reference that a message describes."""
        if isinstance(content, Goal | PosePath) and self._robot.planar is None:
            raise ValueError(
                f"{topic.topic} holds a pose or a path, which needs the states x and y; the "
                f"states are {self._robot.states}"
            )
        if isinstance(content, Goal):
            return self._goal(content.x, content.y, content.yaw, self._start(pose))
        if isinstance(content, PosePath):
            return self._path(content, self._start(pose), received_ns)
        columns: Any = content.columns if isinstance(content, JointPlan) else content
        if not isinstance(columns, Mapping):
            return columns  # a reference of the user's own
        several = len(self._robot.reference_topics) > 1
        implied = {f"{name}_velocity" for name in columns}
        lacking = set() if several else set(self._robot.reference) - implied - set(columns)
        if lacking:
            raise ValueError(f"{topic.topic} has no {sorted(lacking)}; it has {sorted(columns)}")
        if isinstance(content, JointPlan):
            begin_s = 1e-9 * (content.begin_ns or received_ns)
            return JointPlanReference(content.times_s, columns, begin_s)
        held = JointReference({**self._held, **columns})
        self._held.update(columns)
        return held


def _leads_to(goal: Pose | None, reference: Reference) -> bool:
    """Return whether a reference ends where another one did, in its frame."""
    other: Pose | None = getattr(reference, "goal", None)
    if goal is None or other is None:
        return False
    return math.dist(goal[:2], other[:2]) <= SAME_GOAL
