# SPDX-License-Identifier: Apache-2.0
"""The control loop between messages and commands, without ROS and without a clock of its own.

The node and the replay drive the same loop: they hand in messages with the time at which they
came, and ask at each tick what to send. Times are integer nanoseconds of one clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_banded import messages
from mpc_banded.config import Config
from mpc_banded.controller import ControlStep
from mpc_banded.problem import Trajectory
from mpc_banded.reference import (
    GoalReference,
    JointReference,
    PathReference,
    Reference,
    stacked,
)


@dataclass(frozen=True)
class Tick:
    """What the loop decided at one tick.

    Attributes:
        command: Name -> value for the command message; finite and inside the limits.
        reason: One plain sentence: what the robot is doing and why.
        driving: Whether the command comes from the controller; a stop if not.
        step: The controller's step, None where it was not asked.
        state_age_s: Age of the state in seconds; infinite before the first one.
    """

    command: dict[str, float]
    reason: str
    driving: bool
    step: ControlStep | None
    state_age_s: float


class ControlLoop:
    """Keeps the newest state and reference, and steps the controller.

    Args:
        config: Of robot, controller and loop.

    Raises:
        BandwidthError: The configured bandwidth is smaller than the measured one.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.robot = config.robot
        self.controller = config.controller()
        self._model = config.section("model")
        self._limits = {
            name: config[f"limits.{name}"] for name in (*self.robot.states, *self.robot.inputs)
        }
        self._cyclic = [self.robot.states.index(name) for name in self.robot.cyclic]
        problem = self.controller.problem
        self._times = np.arange(problem.horizon + 1) * problem.dt
        self.obstacles = config.obstacles()
        self.reference: Reference | None = None
        if self.robot.reference_message == "joint_trajectory":
            self.reference = JointReference({})
        self._state: np.ndarray | None = None
        self._values: Mapping[str, float] = {}
        self._state_ns = 0
        self._stepped_ns: int | None = None
        origin = dict.fromkeys(self.robot.states, 0.0)
        self.controller.check(
            self.robot.state(origin), self._parameters(GoalReference(0, 0, 0), origin)
        )

    def on_state(self, message: Any, now_ns: int) -> str | None:
        """Take a state message that came at ``now_ns``; returns why it was rejected, if it was."""
        _, read, _ = messages.STATES[self.robot.state_message]
        values = read(message)
        try:
            state = self.robot.state(values)
        except KeyError as error:
            return str(error.args[0])
        bad = [
            name for name, x in zip(self.robot.states, state, strict=True) if not np.isfinite(x)
        ]
        if bad:
            return f"{', '.join(bad)} of the state message is not finite"
        if self._state is not None:
            turns = np.round((self._state - state) / (2.0 * np.pi))
            state[self._cyclic] += 2.0 * np.pi * turns[self._cyclic]
        self._state, self._values, self._state_ns = state, values, now_ns
        return None

    def on_reference(self, topic: str, message: Any) -> str | None:
        """Take a message of a reference topic; returns why it was rejected, if it was."""
        try:
            if topic == "plan":
                path = PathReference(messages.path_points(message), self.config["reference_speed"])
                known = self.reference
                if isinstance(known, PathReference) and np.array_equal(known.points, path.points):
                    path.progress = known.progress
                self.reference = path
            elif topic == "goal_pose":
                self.reference = GoalReference(*messages.goal_pose(message))
            else:
                self.reference = JointReference(messages.joint_goal(message))
        except ValueError as error:
            return str(error)
        return None

    def reset(self) -> None:
        """Forget the warm start."""
        self.controller.reset()
        self._stepped_ns = None

    def stop_command(self) -> dict[str, float]:
        """The command that stops the robot: zero, as near as the limits allow."""
        plan = Trajectory(
            np.zeros((2, len(self.robot.states))), np.zeros((1, len(self.robot.inputs))), 1.0
        )
        return self._within_limits(self.robot.command_values(plan, 0.0, self._model))

    def tick(self, now_ns: int, deadline_s: float | None = None) -> Tick:
        """Decide what to send at ``now_ns``."""
        if self._state is None:
            return self._stopped(f"waiting for the first {self.robot.state_message}", np.inf)
        age = 1e-9 * (now_ns - self._state_ns)
        if age > self.config["max_state_age"]:
            return self._stopped(
                f"stopped: the state is {age:.2f} s old, max_state_age is "
                f"{self.config['max_state_age']:g} s",
                age,
            )
        if self.reference is None:
            topics = " or ".join(messages.REFERENCES[self.robot.reference_message])
            return self._stopped(f"waiting for a reference on {topics}", age)
        elapsed = self.config.period_s
        if self._stepped_ns is not None:
            elapsed = max(0.0, 1e-9 * (now_ns - self._stepped_ns))
        step = self.controller.step(
            self._state,
            self._parameters(self.reference, self._values),
            elapsed_s=elapsed,
            deadline_s=deadline_s,
        )
        self._stepped_ns = now_ns
        values = self.robot.command_values(step.plan, self.config["command_lead"], self._model)
        if not np.isfinite(list(values.values())).all():
            return Tick(self.stop_command(), "stopped: the plan is not finite", False, step, age)
        reason = f"driving on the {step.source.value}: {step.status.value}"
        return Tick(self._within_limits(values), reason, True, step, age)

    def _stopped(self, reason: str, age: float) -> Tick:
        return Tick(self.stop_command(), reason, False, None, age)

    def _within_limits(self, values: Mapping[str, float]) -> dict[str, float]:
        return {
            name: float(np.clip(value, *self._limits.get(name, (-np.inf, np.inf))))
            for name, value in values.items()
        }

    def _parameters(self, reference: Reference, values: Mapping[str, float]) -> dict[str, Any]:
        columns = reference.columns(values, self._times)
        parameters: dict[str, Any] = dict(self._model)
        parameters["reference"] = stacked(columns, self.robot.reference, self._times)
        if self.robot.obstacles:
            parameters["obstacles"] = self.obstacles
        return parameters
