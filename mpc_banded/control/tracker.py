# SPDX-License-Identifier: Apache-2.0
"""Turns messages into the one reference that the robot follows, in the frame of the state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mpc_banded.control.config import Config
from mpc_banded.control.errors import reason_for_rejection, user_code
from mpc_banded.control.frames import Frames
from mpc_banded.control.joints import JointPlanReference, JointReference
from mpc_banded.control.path import PathReference, TimedPathReference
from mpc_banded.control.reference import GoalReference, MovedReference, Reference
from mpc_banded.control.state import StateEstimate
from mpc_banded.robots.messages import Goal, JointPlan, PosePath, ReferenceTopic


class Tracker:
    """Keeps the reference of the newest valid message.

    Args:
        config: Configuration of the robot.
        estimate: State estimate.
        frames: Poses of frames in the frame of the state.

    Attributes:
        reference: None before the first one.
        rejected: Why a message that waited for the first state was rejected; None if it was not.
    """

    def __init__(self, config: Config, estimate: StateEstimate, frames: Frames) -> None:
        self._config, self._robot = config, config.robot
        self._estimate, self._frames = estimate, frames
        self.reference: Reference | None = None
        if self._robot.reference_message == "joint_trajectory" and self._robot.rests:
            self.reference = JointReference({})
        self.rejected: str | None = None
        self._held: dict[str, float] = {}
        self._waiting: tuple[ReferenceTopic, Any, int] | None = None

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._config = config
        if isinstance(path := self._inner, PathReference):
            path.speed = config.parameters.reference_speed

    def take_waiting(self) -> None:
        """Take the message that waited for the first state, now that its frame is known."""
        if self._waiting is not None and self._estimate.state is not None:
            waiting, self._waiting = self._waiting, None
            self.rejected = reason_for_rejection(self.take, *waiting)

    def relocate(self) -> None:
        """Search the robot on the whole path: it has been moved."""
        if isinstance(path := self._inner, PathReference):
            path.progress = None

    @property
    def _inner(self) -> Reference | None:
        """The reference in its own frame."""
        known = self.reference
        return known.inner if isinstance(known, MovedReference) else known

    def take(self, topic: ReferenceTopic, message: Any, received_ns: int) -> None:
        """Take a message.

        Args:
            topic: Its topic.
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
        if frame and not self._estimate.frame and self._estimate.state is None:
            # The first state shows whether this is its frame.
            self._waiting = (topic, message, received_ns)
            return
        self._waiting = None
        reference = self._reference(topic, content, received_ns)
        if isinstance(reference, PathReference) and reference.is_same(inner := self._inner):
            reference.progress = inner.progress
        if frame not in ("", self._estimate.frame):
            pose = partial(self._frames.pose, topic.topic, frame)
            self.reference = MovedReference(reference, pose)
        else:
            self.reference = reference

    def _reference(self, topic: ReferenceTopic, content: Any, received_ns: int) -> Reference:
        """Return the reference that a message describes."""
        if isinstance(content, Goal):
            return GoalReference(content.x, content.y, content.yaw)
        if isinstance(content, PosePath):
            if content.times_s is not None and self._config.parameters.timed_paths:
                return TimedPathReference(content.points, content.times_s, content.yaws)
            speed = self._config.parameters.reference_speed
            return PathReference(content.points, speed, content.yaws, content.final_yaw)
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
