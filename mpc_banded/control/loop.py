# SPDX-License-Identifier: Apache-2.0
"""The control loop from messages to commands, without ROS and without a clock of its own.

The caller hands in each message with its time of receipt, and asks at each tick for a command. All
times are integer nanoseconds of one clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mpc_banded.control.build import build_controller
from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.errors import UserCodeError, user_code
from mpc_banded.control.fallback import Fallback
from mpc_banded.control.frames import Frames, Pose
from mpc_banded.control.gates import (
    CanFollow,
    Drive,
    FirstPlan,
    Gate,
    Judge,
    LeadsOn,
    NotArrived,
    NotStuck,
    ObstaclesKnown,
    PlanClear,
    Progressing,
    ReferenceKnown,
    Solve,
    SolveUsable,
    StateFresh,
    StateKnown,
)
from mpc_banded.control.horizon import Horizon
from mpc_banded.control.inputs import Inputs
from mpc_banded.control.limiter import Limiter
from mpc_banded.control.motion import PREDICTION_SUBSTEP_S, Motion, Prediction
from mpc_banded.control.obstacles import Obstacles
from mpc_banded.control.reference import Reference
from mpc_banded.control.state import StateEstimate, StuckCheck
from mpc_banded.control.tick import KEEPS_PLAN, Instant, Reason, Tick
from mpc_banded.control.tracker import Tracker
from mpc_banded.ocp.controller import RecedingHorizonController


class ControlLoop:
    """Keeps the newest state and reference, and steps the controller.

    Args:
        config: Configuration of robot, controller and loop.

    Attributes:
        config: Configuration in use.
        robot: Robot of all configurations.
        controller: Controller in use.
        enabled: False keeps the robot stopped.
        obstacles, tracker: Keep the known obstacles, and the reference.
        reference_ahead: Columns (horizon + 1,) of the reference of the last solve, by name.

    Raises:
        BandwidthError: The configured bandwidth is smaller than the measured one.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.robot = config, config.robot
        self.controller = build_controller(config)
        self.enabled = True
        self.reference_ahead: dict[str, np.ndarray] = {}
        self._estimate = StateEstimate(config)
        self._frames = Frames(self._estimate)
        self.tracker = Tracker(config, self._estimate, self._frames)
        self.obstacles = Obstacles(config, self._frames)
        self._horizon = Horizon(config, self.obstacles)
        self._motion = Motion(config, PREDICTION_SUBSTEP_S, lambda: self.controller.evaluator)
        self._prediction = Prediction(config, self._motion)
        self._stuck = StuckCheck(config, self._motion)
        self._limiter = Limiter(config)
        self._fallback = Fallback(config, self._limiter)
        self._first_plan = FirstPlan(self._fallback)
        self._gates: list[Gate] = [
            self._stop_if_disabled,
            StateKnown(self.robot, self._estimate, self._fallback),
            StateFresh(config, self._estimate, self._fallback),
            ReferenceKnown(self.tracker, self._fallback),
            NotArrived(config, self._estimate, self.tracker, self._fallback),
            CanFollow(self.tracker, self._fallback),
            ObstaclesKnown(self.obstacles, self._fallback),
            NotStuck(self._estimate, self._stuck, self._fallback),
        ]
        self._judges: list[Judge] = [
            self._first_plan,
            SolveUsable(self._fallback),
            PlanClear(config, self._horizon, self._fallback),
            LeadsOn(self._horizon, self._fallback),
            Progressing(config, self._estimate, self.tracker, self._fallback),
        ]
        self._drive = Drive(
            self.robot, self._estimate, self.tracker, self._limiter, self._fallback
        )
        self._parts: tuple[Any, ...] = (
            *(self._estimate, self.tracker, self.obstacles, self._horizon, self._motion),
            *(self._prediction, self._stuck, self._limiter, self._fallback),
            *(each for each in (*self._gates, *self._judges) if hasattr(each, "adopt")),
        )
        self._inputs = Inputs(self.robot, self._estimate, self.tracker, self.obstacles)
        self._ticked_ns: int | None = None
        self._use(config)
        self.controller.check(*self._horizon.origin(self.controller.problem))

    @property
    def reference(self) -> Reference | None:
        """The reference that the robot follows; None before the first one."""
        return self.tracker.reference

    @reference.setter
    def reference(self, reference: Reference | None) -> None:
        self.tracker.reference = reference

    @property
    def state(self) -> dict[str, float]:
        """The newest state estimate by name; empty before the first one."""
        return self._estimate.values

    @property
    def transform(self) -> Callable[[str, str], Pose] | None:
        """See Frames.transform; None rejects messages in frames other than that of the state."""
        return self._frames.transform

    @transform.setter
    def transform(self, transform: Callable[[str, str], Pose] | None) -> None:
        self._frames.transform = transform

    @property
    def input_topics(self) -> dict[str, str]:
        """Relative names of the topics that ``on_message`` takes -> message types."""
        return self._inputs.topics

    def on_message(self, topic: str, message: Any, received_ns: int) -> str | None:
        """Take a message; returns why it was rejected, or None.

        Args:
            topic: Relative name, one of ``input_topics``.
            message: As rclpy or rosbags give it.
            received_ns: Time of receipt.
        """
        before = self._estimate.relocations
        rejected = self._inputs.take(topic, message, received_ns)
        if self._estimate.relocations > before:  # the robot was moved
            self.reset()
            self.tracker.relocate()
        return rejected

    def tick(
        self,
        now_ns: int,
        *,
        deadline_s: float | None = None,
        latency_s: float = 0.0,
        iterations: int | None = None,
    ) -> Tick:
        """Decide what to send at ``now_ns``.

        Args:
            now_ns: Time of the tick.
            deadline_s: Time that the solve may take, in s.
            latency_s: Expected time from the tick until the command is sent, in s.
            iterations: Largest number of Newton iterations, to repeat a solve that a deadline cut
                off.
        """
        instant = self._begin(now_ns, latency_s, deadline_s, iterations)
        try:
            with user_code("the cycle failed"):  # whatever raises, the robot must be told
                tick = self._decide(instant)
        except UserCodeError as error:
            tick = self._fallback.fall_back(instant, str(error))
        # A robot that already moves when its first plan drives it continues from its velocity.
        start = self.stop_command() | (self.state if tick.driving else {})
        tick = replace(tick, command=self._limiter.within_reach(tick.command, start, now_ns))
        self._finish(instant, tick)
        return tick

    def _decide(self, instant: Instant) -> Tick:
        """Run one cycle: the gates, then predict, solve, judge, and drive."""
        for gate in self._gates:
            if tick := gate(instant):
                return tick
        solve = self._solve(instant)
        for judge in self._judges:
            if tick := judge(instant, solve):
                return replace(tick, step=solve.step)
        return self._drive(instant, solve)

    def _begin(
        self, now_ns: int, latency_s: float, deadline_s: float | None, iterations: int | None
    ) -> Instant:
        if self._ticked_ns is not None and now_ns < self._ticked_ns:
            # The clock went back, so plans and sent commands lie in the future.
            self._prediction.reset()
            self._stuck.reset()
            self._fallback.forget_plan()
            self.reset()
        self._ticked_ns = now_ns
        effect_ns = now_ns + int(1e9 * (latency_s + self.config.parameters.actuation_delay))
        age_s = self._estimate.age_s(now_ns)
        return Instant(now_ns, effect_ns, age_s, latency_s, deadline_s, iterations)

    def _stop_if_disabled(self, instant: Instant) -> Tick | None:
        if self.enabled:
            return None
        return self._fallback.stop(instant, Reason.DISABLED, "disabled on request")

    def _solve(self, instant: Instant) -> Solve:
        """Predict where the robot is when the command acts, and solve from there."""
        measured, measured_ns = self._estimate.state, self._estimate.time_ns
        assert measured is not None and self.reference is not None  # noqa: PT018, the gates' work
        state = self._prediction.predict(measured, measured_ns, instant.effect_ns)
        parameters = self._horizon.parameters(
            self.reference, state, instant.effect_ns, self.controller.problem
        )
        self.reference_ahead = self._horizon.columns
        with user_code("the solve failed"):
            step = self.controller.step(
                state,
                parameters,
                elapsed_s=self._first_plan.elapsed_s(instant),
                deadline_s=instant.deadline_s,
                max_iterations=instant.iterations,
            )
        self._horizon.planned(step.plan, instant.effect_ns)
        return Solve(step, parameters, self.controller.problem, self.controller.weights)

    def _finish(self, instant: Instant, tick: Tick) -> None:
        if tick.code not in KEEPS_PLAN:
            self.reset()
        if tick.command:  # empty for a robot without a position to stop at
            self._prediction.sent(tick.command, instant)
            self._stuck.sent(tick.command, instant.effect_ns)
        self._fallback.sent(tick.command, instant.now_ns)

    def stop_command(self) -> dict[str, float]:
        """Return the command that stops the robot: zero, or the nearest value in the limits."""
        return self._fallback.stop_command()

    def reset(self) -> None:
        """Forget the plan; the robot stands until the next one has converged."""
        self.controller.reset()
        self._first_plan.reset()
        self._horizon.reset()

    def start(self) -> None:
        """Start to command after a pause: forget what was planned and sent before."""
        self.reset()
        self._prediction.reset()
        self._stuck.reset()
        self._fallback.reset()
        self._limiter.reset()

    def warm_up(self) -> None:
        """Step once from the origin and forget it: the first calls of torch are slow."""
        self.controller.step(*self._horizon.origin(self.controller.problem), deadline_s=1.0)
        self.reset()

    def adopt(self, config: Config, controller: RecedingHorizonController | None = None) -> None:
        """Take over another configuration between two ticks; the warm start is kept.

        Args:
            config: Configuration of the same robot.
            controller: Controller of that configuration, if it has been built already.

        Raises:
            BandwidthError: The bandwidth is too small; nothing is changed.
            ConfigError: The robot differs; nothing is changed.
        """
        if config.robot is not self.robot:
            raise ConfigError(
                f"robot is {config.parameters.robot!r}; it holds from the start on, so allowed is "
                f"{self.config.parameters.robot!r}"
            )
        if controller is None and self.config.rebuilds(config):
            controller = build_controller(config)
            controller.check(*self._horizon.origin(controller.problem))
        if controller is None:
            self.controller.set_weights(config.parameters.weights)
        else:
            controller.inherit(self.controller)
            self.controller = controller
        self._use(config)

    def _use(self, config: Config) -> None:
        self.config = config
        for part in self._parts:
            part.adopt(config)
