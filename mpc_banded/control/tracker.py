# SPDX-License-Identifier: Apache-2.0
"""From messages to the one reference that is followed, in the frame of the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mpc_banded.control.config import Config
from mpc_banded.control.reference import (
    GoalReference,
    JointPlanReference,
    JointReference,
    MovedReference,
    PathReference,
    Reference,
    TimedPathReference,
)
from mpc_banded.control.state import StateWatch
from mpc_banded.robots.messages import Goal, JointPlan, PosePath, ReferenceTopic


class Following:
    """Keeps the reference that the newest good message describes.

    Args:
        config: Of the robot.
        watch: Knows the frame of the state.

    Attributes:
        reference: None before the first one.
        refused: Why the first message was refused once the state had come, if it was.
        transform: (target frame, source frame) -> x, y, yaw of the source in the target, or a
            LookupError saying why not; None where nobody knows any.
    """

    def __init__(self, config: Config, watch: StateWatch) -> None:
        self.config, self._robot, self._watch = config, config.robot, watch
        self.reference: Reference | None = None
        if self._robot.reference_message == "joint_trajectory" and self._robot.rests:
            self.reference = JointReference({})
        self.refused: str | None = None
        self.transform: Callable[[str, str], tuple[float, float, float]] | None = None
        self._held: dict[str, float] = {}
        self._pending: tuple[ReferenceTopic, Any, int] | None = None

    def state_came(self) -> None:
        """Judge what came before the first state: now its frame is known."""
        if self._pending is not None and self._watch.state is not None:
            self.refused = self.take(*self._pending)
            self._pending = None

    def begin_anew(self) -> None:
        """Look for the robot on the whole path: it has been moved."""
        if isinstance(path := self.path, PathReference):
            path.progress = None

    def adopt(self, config: Config) -> None:
        """Go over to another configuration."""
        self.config = config
        if isinstance(path := self.path, PathReference):
            path.speed = config["reference_speed"]

    @property
    def path(self) -> Reference | None:
        """The reference, in its own frame."""
        known = self.reference
        return known.inner if isinstance(known, MovedReference) else known

    def take(self, topic: ReferenceTopic, message: Any, received_ns: int) -> str | None:
        """Take a message that came at ``received_ns``; returns why it was refused, if it was."""
        try:
            said = topic.read(message)
            frame = getattr(said, "frame", "")
            if frame and not self._watch.frame and self._watch.state is None:
                # Whether it is the state's own frame shows with the first state.
                self._pending = (topic, message, received_ns)
                return None
            self._pending = None
            self.reference = self._placed(
                topic.topic, self._described(topic, said, received_ns), frame
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return str(error.args[0]) if error.args else repr(error)
        return None

    def _described(self, topic: ReferenceTopic, said: Any, received_ns: int) -> Reference:
        """The reference that a message describes."""
        if isinstance(said, Goal):
            return GoalReference(said.x, said.y, said.yaw)
        if isinstance(said, PosePath):
            if said.times_s is not None and self.config["timed_paths"]:
                return TimedPathReference(said.points, said.times_s, said.yaws)
            speed = self.config["reference_speed"]
            return PathReference(said.points, speed, said.yaws, said.final_yaw)
        columns: Any = said.columns if isinstance(said, JointPlan) else said
        if not isinstance(columns, Mapping):
            return columns
        several = len(self._robot.reference_topics) > 1
        implied = {f"{name}_velocity" for name in columns}
        lacking = set() if several else set(self._robot.reference) - implied - set(columns)
        if lacking:
            raise ValueError(f"{topic.topic} has no {sorted(lacking)}; it has {sorted(columns)}")
        if isinstance(said, JointPlan):
            return JointPlanReference(said.times_s, columns, 1e-9 * (said.begin_ns or received_ns))
        held = JointReference({**self._held, **columns})
        self._held.update(columns)
        return held

    def _placed(self, topic: str, reference: Reference, frame: str) -> Reference:
        """The reference in the frame of the state."""
        inner = self.path
        if isinstance(reference, PathReference) and reference.is_same(inner):
            reference.progress = inner.progress  # type: ignore[union-attr]
        mine = self._watch.frame
        if not frame or frame == mine:
            return reference
        return MovedReference(reference, partial(self.frame_pose, topic, frame))

    def frame_pose(self, topic: str, frame: str) -> tuple[float, float, float]:
        """Where a frame lies in that of the state; raises LookupError if nobody knows."""
        mine = self._watch.frame
        where = f"{topic} is in frame {frame!r} and the state in {mine!r}"
        if not mine:
            raise LookupError(
                f"{topic} is in frame {frame!r}; the state names none, set state_frame"
            )
        if self.transform is None:
            raise LookupError(f"{where}; nothing transforms them")
        return self.transform(mine, frame)
