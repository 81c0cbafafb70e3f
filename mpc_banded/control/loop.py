# SPDX-License-Identifier: Apache-2.0
"""The control loop between messages and commands, without ROS and without a clock of its own.

The node drives it, and so does whoever has messages from elsewhere: they hand in each message
with the time at which it came, and ask at each tick what to send. Times are integer nanoseconds
of one clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from mpc_banded.control import explain, obstacles
from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.fallback import Fallback, Grade
from mpc_banded.control.frozen import FrozenWatch
from mpc_banded.control.motion import Simulation
from mpc_banded.control.obstacles import MovingObstacles
from mpc_banded.control.reference import GoalReference, Reference, stacked
from mpc_banded.control.state import CLOCKS, StateWatch
from mpc_banded.control.tracker import Following
from mpc_banded.ocp.controller import CommandSource, ControlStep, RecedingHorizonController
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.ocp.solver import Status
from mpc_banded.robots.messages import StateTopic


class Reason(Enum):
    """Why the robot drives or stands, for those who count or compare; Tick.reason has the rest."""

    DRIVING = "driving"
    DISABLED = "disabled"
    NO_STATE = "no state yet"
    FOLLOWING = "following the last plan"
    SLOWING = "slowing down"
    HOLDING = "holding the stop"
    NO_REFERENCE = "no reference yet"
    PLANNING = "first plan not converged yet"


@dataclass(frozen=True)
class Tick:
    """What the loop decided at one tick.

    Attributes:
        command: Name -> value for the command message; finite and inside the limits.
        code: The kind of reason.
        reason: One plain sentence: what the robot is doing and why.
        step: The controller's step, None where it was not asked.
        state_age_s: Age of the state in seconds; infinite before the first one.
        now_ns, latency_s: As they were given to ``tick``.
        held: Whether one cost holds the robot far from its reference; the reason names it.
    """

    command: dict[str, float]
    code: Reason
    reason: str
    step: ControlStep | None
    state_age_s: float
    now_ns: int = 0
    latency_s: float = 0.0
    held: bool = False

    @property
    def driving(self) -> bool:
        """Whether the command comes from a solve of this cycle; it is a fallback if not."""
        return self.code is Reason.DRIVING


@dataclass(frozen=True)
class Budget:
    """What a solve may take: seconds, and Newton iterations; None is no limit."""

    deadline_s: float | None = None
    iterations: int | None = None


#: No command is made of these.
FAILED = (Status.LINE_SEARCH_FAILED, Status.NOT_POSITIVE_DEFINITE, Status.NON_FINITE)
#: How long the robot stands at most until its first plan has converged, under a deadline.
FIRST_PLAN_NS = 2_000_000_000
#: Age beyond which a state may well have another clock.
OTHER_CLOCK_S = 10.0
#: Longest integration step of the delay compensation, and how many commands it remembers.
PREDICTION_SUBSTEP_S = 0.02
SENT_COMMANDS = 100


class ControlLoop:
    """Keeps the newest state and reference, and steps the controller.

    Args:
        config: Of robot, controller and loop.

    Attributes:
        enabled: False keeps the robot stopped.
        reference_ahead: Columns of the reference (horizon + 1,) that the last solve was given.

    Raises:
        BandwidthError: The configured bandwidth is smaller than the measured one.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.robot = config.robot
        self.controller = config.controller()
        self.enabled = True
        self.reference_ahead: dict[str, np.ndarray] = {}
        self._watch = StateWatch(config)
        self._following = Following(config, self._watch)
        self._fallback = Fallback(config)
        self._frozen = FrozenWatch(config)
        self._inputs: dict[str, tuple[str, Callable[[Any, int], str | None]]] = {
            **{t.topic: (t.type, partial(self._on_state, t)) for t in self.robot.state_topics},
            **{
                t.topic: (t.type, partial(self._following.take, t))
                for t in self.robot.reference_topics
            },
        }
        self._moving = MovingObstacles(config)
        if self.robot.obstacles:
            self._inputs.setdefault(obstacles.TOPIC, (obstacles.TYPE, self._on_obstacles))
        self._relocations = 0
        self._ticked_ns: int | None = None
        self._sent: deque[tuple[int, dict[str, float]]] = deque(maxlen=SENT_COMMANDS)
        self._stepped_ns: int | None = None
        self._planning_ns: int | None = None
        self._use(config)
        self.controller.check(*self._made_up(self.controller.problem))

    @property
    def reference(self) -> Reference | None:
        """What is followed; None before the first one."""
        return self._following.reference

    @reference.setter
    def reference(self, reference: Reference | None) -> None:
        self._following.reference = reference

    @property
    def transform(self) -> Callable[[str, str], tuple[float, float, float]] | None:
        """(target frame, source frame) -> x, y, yaw of the source in the target, or a LookupError.

        None where nobody knows any: messages in other frames are refused.
        """
        return self._following.transform

    @transform.setter
    def transform(
        self, transform: Callable[[str, str], tuple[float, float, float]] | None
    ) -> None:
        self._following.transform = transform

    def warm_up(self) -> None:
        """Step once from a made-up state and forget it: the first calls of torch are slow."""
        self.controller.step(*self._made_up(self.controller.problem), deadline_s=1.0)
        self.reset()

    @property
    def input_topics(self) -> dict[str, str]:
        """Every topic that ``on_message`` takes, by its relative name, and its message type."""
        return {topic: kind for topic, (kind, _) in self._inputs.items()}

    def on_message(self, topic: str, message: Any, received_ns: int) -> str | None:
        """Take a message of an input topic; returns why it was rejected, if it was.

        Args:
            topic: Its relative name, one of ``input_topics``.
            message: As rclpy or rosbags give it.
            received_ns: When it came.
        """
        _, take = self._inputs[topic]
        return take(message, received_ns)

    def _on_state(self, topic: StateTopic, message: Any, received_ns: int) -> str | None:
        rejected = self._watch.take(topic, message, received_ns)
        self._following.state_came()
        if self._watch.relocations > self._relocations:
            self._relocations = self._watch.relocations
            self.reset()
            self._following.begin_anew()
        return rejected

    def _on_obstacles(self, message: Any, received_ns: int) -> str | None:
        try:
            self._moving.take(message, received_ns, self._place_obstacles)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return str(error.args[0]) if error.args else repr(error)
        return None

    def _place_obstacles(self, frame: str) -> tuple[float, float, float]:
        if frame == self._watch.frame:
            return 0.0, 0.0, 0.0
        return self._following.frame_pose(obstacles.TOPIC, frame)

    def circles(self, now_ns: int) -> np.ndarray:
        """All obstacles known at ``now_ns`` as x, y, radius (M, 3), in the frame of the state."""
        static = np.array(self.config["obstacles"], dtype=np.float64).reshape(-1, 3)
        return np.vstack([static, self._moving.at(now_ns, np.zeros(1))[0]])

    def reset(self) -> None:
        """Forget the plan; the robot stands until the next one has converged."""
        self.controller.reset()
        self._stepped_ns = self._planning_ns = None

    def start(self) -> None:
        """Begin to command after a pause: what was planned and sent before it is past."""
        self.reset()
        self._sent.clear()
        self._fallback = Fallback(self.config)
        self._frozen.reset()

    def adopt(self, config: Config, controller: RecedingHorizonController | None = None) -> None:
        """Go over to another configuration between two ticks; the warm start is kept.

        Args:
            config: Of the same robot.
            controller: Built from it, where that was done aside.

        Raises:
            BandwidthError: The bandwidth is too small; nothing is changed then.
            ConfigError: The robot is another one; nothing is changed then.
        """
        if config.robot is not self.robot:
            raise ConfigError(
                f"robot is {config['robot']!r}; it holds from the start on, so allowed is "
                f"{self.config['robot']!r}"
            )
        if controller is None and self.config.rebuilds(config):
            controller = config.controller()
            controller.check(*self._made_up(controller.problem))
        if controller is None:
            self.controller.set_weights(config.section("weights"))
        else:
            controller.inherit(self.controller)
            self.controller = controller
        self._use(config)

    def _use(self, config: Config) -> None:
        self.config = config
        self._model = config.section("model")
        self._motion = Simulation(config, PREDICTION_SUBSTEP_S)
        self._watch.config = config
        self._fallback.adopt(config)
        self._frozen.adopt(config)
        self._moving.config = config
        self.obstacles = config.obstacles()
        self._following.adopt(config)

    def stop_command(self) -> dict[str, float]:
        """The command that stops the robot: zero, as near as the limits allow."""
        return self._fallback.stop()

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
            deadline_s: Time that the solve may take.
            latency_s: Time from the tick until the command is expected to be sent.
            iterations: Newton iterations at most, to repeat what a deadline once cut off.
        """
        if self._ticked_ns is not None and now_ns < self._ticked_ns:
            self._forget_time()
        self._ticked_ns = now_ns
        effect_ns = now_ns + int(1e9 * (latency_s + self.config["actuation_delay"]))
        budget = Budget(deadline_s, iterations)
        tick = replace(self._decide(now_ns, effect_ns, budget), now_ns=now_ns, latency_s=latency_s)
        self._sent.append((effect_ns, tick.command))
        self._frozen.sent(tick.command, effect_ns)
        self._fallback.sent(tick.command, now_ns)
        return tick

    def _forget_time(self) -> None:
        """The clock went back: what was planned and sent lies in the future."""
        self._sent.clear()
        self._frozen.reset()
        self._leave_plan()

    def _decide(self, now_ns: int, effect_ns: int, budget: Budget) -> Tick:
        age = self._watch.age_s(now_ns)
        if not self.enabled:
            self._leave_plan()
            return Tick(
                self.stop_command(), Reason.DISABLED, "stopped: disabled on request", None, age
            )
        if self._watch.state is None:
            topics = " and ".join(self._watch.silent or (self.robot.state_topics[0].topic,))
            why = f"waiting for the first {topics}{self._last_rejection()}"
            return self._waiting(Reason.NO_STATE, why, now_ns, effect_ns, age)
        if not 0.0 <= age <= self.config["max_state_age"]:
            return self._fallen_back(self._staleness(age), now_ns, effect_ns, age)
        if self.reference is None:
            topics = " or ".join(topic.topic for topic in self.robot.reference_topics)
            why = f"waiting for a reference on {topics}"
            why += (
                f"; the last one was rejected: {self._following.refused}"
                if self._following.refused
                else ""
            )
            return self._waiting(Reason.NO_REFERENCE, why, now_ns, effect_ns, age)
        frozen = self._frozen.look(self._watch.state, self._watch.changed_ns, now_ns, effect_ns)
        if frozen:
            return self._fallen_back(frozen, now_ns, effect_ns, age)
        state = self._predicted(self._watch.state, effect_ns)
        values = dict(zip(self.robot.states, state, strict=True))
        problem = self.controller.problem
        parameters = self._parameters(self.reference, values, problem, effect_ns)
        step = self._solved(state, parameters, effect_ns, budget)
        if self._stepped_ns is None and self._is_planning(step, now_ns, budget):
            why = f"planning, KKT residual {step.kkt_residual:.1e} so far"
            tick = self._waiting(Reason.PLANNING, why, now_ns, effect_ns, age, keep=True)
            return replace(tick, step=step)
        self._stepped_ns = effect_ns
        command = self._driven(step)
        if command is None:
            why = f"the solve failed: {step.status.value}"
            return replace(self._fallen_back(why, now_ns, effect_ns, age), step=step)
        self._fallback.drove(step.plan, effect_ns)
        weights = self.controller.weights
        held = explain.held(self.robot, problem, weights, step.plan, parameters)
        told = [
            f"driving on the {step.source.value}: {step.status.value}",
            explain.violated(step.violations),
            held,
            "the reference has ended" if self.reference.ended(1e-9 * effect_ns) else "",
            self._watch.remark,
        ]
        reason = "; ".join(filter(None, told))
        return Tick(command, Reason.DRIVING, reason, step, age, held=bool(held))

    def _solved(
        self, state: np.ndarray, parameters: dict[str, Any], effect_ns: int, budget: Budget
    ) -> ControlStep:
        """Step the controller for the state that the robot will be in at ``effect_ns``."""
        elapsed = 0.0  # while the robot stands, its plan does not move on
        if self._stepped_ns is not None:
            elapsed = max(0.0, 1e-9 * (effect_ns - self._stepped_ns))
        return self.controller.step(
            state,
            parameters,
            elapsed_s=elapsed,
            deadline_s=budget.deadline_s,
            max_iterations=budget.iterations,
        )

    def _driven(self, step: ControlStep) -> dict[str, float] | None:
        """The command of a solve that may be driven on, None of any other."""
        if step.source is not CommandSource.SOLUTION or step.status in FAILED:
            return None
        values = self.robot.command_values(step.plan, self.config["command_lead"], self._model)
        if not np.isfinite(list(values.values())).all():
            return None
        return self._fallback.within_limits(values)

    def _fallen_back(self, why: str, now_ns: int, effect_ns: int, age: float) -> Tick:
        """Follow, slow down or hold, by how long there has been no solve."""
        grade, command = self._fallback.command(now_ns, effect_ns)
        if grade is not Grade.FOLLOWING:
            self._leave_plan()
        return Tick(command, Reason[grade.name], f"{grade.value}: {why}", None, age)

    def _waiting(
        self,
        code: Reason,
        why: str,
        now_ns: int,
        effect_ns: int,
        age: float,
        keep: bool = False,
    ) -> Tick:
        """Come to a stop, and stand until there is what is missing."""
        self._fallback.forget_plan()
        grade, command = self._fallback.command(now_ns, effect_ns)
        if not keep:
            self.reset()
        doing = "stopped" if grade is Grade.HOLDING else grade.value
        return Tick(command, code, f"{doing}: {why}", None, age)

    def _leave_plan(self) -> None:
        self._fallback.forget_plan()
        self.reset()

    def _predicted(self, state: np.ndarray, effect_ns: int) -> np.ndarray:
        """Where the commands in effect until ``effect_ns`` take the measured state."""
        self._motion.state = state
        ends = [*(begin for begin, _ in self._sent), effect_ns][1:]
        for (begin, command), end in zip(self._sent, ends, strict=False):
            duration_ns = min(end, effect_ns) - max(begin, self._watch.time_ns)
            self._motion.advance(command, max(0.0, 1e-9 * duration_ns))
        return self._motion.state if np.isfinite(self._motion.state).all() else state

    def _is_planning(self, step: ControlStep, now_ns: int, budget: Budget) -> bool:
        """Whether a robot that stands should wait for its first plan to converge."""
        if self._planning_ns is None:
            self._planning_ns = now_ns
        waited = now_ns - self._planning_ns >= FIRST_PLAN_NS
        return not (waited or budget.deadline_s is None or step.status is Status.CONVERGED)

    def _staleness(self, age: float) -> str:
        if age < 0.0:
            return f"the clock went back to {-age:.2f} s before the state"
        limit, hint = self.config["max_state_age"], f"; {CLOCKS}" if age > OTHER_CLOCK_S else ""
        return (
            f"the state is {age:.2f} s old, max_state_age is {limit:g} s{hint}"
            f"{self._last_rejection()}"
        )

    def _last_rejection(self) -> str:
        why = self._watch.rejected
        return f"; the last message was rejected: {why}" if why else self._remark()

    def _remark(self) -> str:
        return f"; {self._watch.remark}" if self._watch.remark else ""

    def _made_up(self, problem: OptimalControlProblem) -> tuple[np.ndarray, dict[str, Any]]:
        """A state and parameters that any robot can be at: the origin, as its own goal."""
        origin = dict.fromkeys(self.robot.states, 0.0)
        parameters = self._parameters(GoalReference(0, 0, 0), origin, problem)
        return self.robot.state(origin), parameters

    def _parameters(
        self,
        reference: Reference,
        values: Mapping[str, float],
        problem: OptimalControlProblem,
        now_ns: int = 0,
    ) -> dict[str, Any]:
        times = np.arange(problem.horizon + 1) * problem.dt
        columns = self.reference_ahead = reference.columns(values, times, 1e-9 * now_ns)
        parameters: dict[str, Any] = dict(self._model)
        parameters["reference"] = stacked(columns, self.robot.reference, times)
        if self.robot.obstacles:
            position = np.array([values[name] for name in self.robot.states[:2]])
            parameters["obstacles"] = self._moving.along(self.obstacles, position, now_ns, times)
        return parameters
