# SPDX-License-Identifier: Apache-2.0
"""Simulates the motion of a robot under commands, and predicts it over their delay."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from mpc_banded.control.build import build_problem
from mpc_banded.control.config import Config
from mpc_banded.control.errors import user_code
from mpc_banded.control.tick import Instant
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.evaluator import Evaluator
from mpc_banded.ocp.transcription import Transcription
from mpc_banded.robots.messages import Values

#: Longest integration step of a simulation: far below the interval of any controller.
SUBSTEP_S = 0.005
#: Longest integration step of a prediction. Commands that are shorter are averaged over it.
PREDICTION_SUBSTEP_S = 0.02


class Motion:
    """Integrates the dynamics of a robot by the classical Runge-Kutta method.

    ``Robot.actuate`` is evaluated at every stage, and its inputs saturate at the limits.

    Args:
        config: Configuration of the robot.
        substep_s: Longest integration step.
        evaluator: Returns the evaluator of the dynamics, compiled or eager; by default torch
            evaluates them.
    """

    def __init__(
        self,
        config: Config,
        substep_s: float,
        evaluator: Callable[[], Evaluator] | None = None,
    ) -> None:
        self._substep_s, self._given = substep_s, evaluator
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        problem = build_problem(config)
        self._robot = config.robot
        self._model = config.parameters.model
        self._lower, self._upper = problem.input_bounds
        # The dynamics may depend on the model only; other parameters are unknown between solves.
        unknown = {name: np.full(shape, np.nan) for name, shape in problem.parameters.items()}
        model = {name: np.array(value, dtype=np.float64) for name, value in self._model.items()}
        self._values = {**unknown, **model}
        if self._given is not None:
            self._evaluator = self._given
        else:
            eager = EagerEvaluator(Transcription(problem, "rk4"))
            self._evaluator = lambda: eager

    def advanced(self, state: np.ndarray, command: Values, duration_s: float) -> np.ndarray:
        """Return the state (nx,) after a command has been in effect for a time.

        Raises:
            UserCodeError: The dynamics or ``Robot.actuate`` raise.
        """
        count = math.ceil(duration_s / self._substep_s)
        with user_code("the motion cannot be predicted"):
            for _ in range(count):
                state = self._step(state, command, duration_s / count)
        return state

    def _step(self, x: np.ndarray, command: Values, h: float) -> np.ndarray:
        k1 = self._rate(x, command)
        k2 = self._rate(x + 0.5 * h * k1, command)
        k3 = self._rate(x + 0.5 * h * k2, command)
        k4 = self._rate(x + h * k3, command)
        return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    def _rate(self, x: np.ndarray, command: Values) -> np.ndarray:
        u = self._robot.input_of(x, command, self._model)
        u = np.minimum(np.maximum(u, self._lower), self._upper)
        return self._evaluator().dynamics(x, u, self._values)


class Simulation:
    """Simulates a robot under commands.

    It shares the dynamics with the controller and nothing else.

    Args:
        config: Configuration of the robot, with ``simulator.initial_state``.
        substep_s: Longest integration step.
        delay_s: Time from a command to its effect; until the first one the stop is in effect.

    Attributes:
        state: (nx,).
    """

    def __init__(self, config: Config, substep_s: float = SUBSTEP_S, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        self._robot, self._model = config.robot, config.parameters.model
        self._motion = Motion(config, substep_s)
        self._initial_state = config.initial_state()
        self.reset()

    def reset(self) -> None:
        """Go back to the initial state, with no command under way."""
        self.state = self._initial_state.copy()
        self._under_way: deque[tuple[Values, float]] = deque()
        if self._delay_s > 0.0:
            self._under_way.append((self._robot.stop_values(self._model), self._delay_s))

    @property
    def values(self) -> dict[str, float]:
        """The state by name."""
        return dict(zip(self._robot.states, self.state.tolist(), strict=True))

    def advance(self, command: Values, duration_s: float) -> None:
        """Let time pass while one command is sent."""
        if self._delay_s <= 0.0:
            self.state = self._motion.advanced(self.state, command, duration_s)
            return
        self._under_way.append((command, duration_s))
        while duration_s > 1e-12:
            command, lasts_s = self._under_way.popleft()
            passed_s = min(lasts_s, duration_s)
            self.state = self._motion.advanced(self.state, command, passed_s)
            duration_s -= passed_s
            if lasts_s > passed_s:
                self._under_way.appendleft((command, lasts_s - passed_s))


class SentCommands:
    """Commands that were sent, each in effect from its time until that of the next one."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, Values]] = deque()

    def clear(self) -> None:
        """Forget all commands."""
        self._sent.clear()

    def append(self, command: Values, effect_ns: int, kept_s: float) -> None:
        """Add the newest command, and forget those that ended more than ``kept_s`` before it."""
        sent = self._sent
        sent.append((effect_ns, command))
        oldest_ns = effect_ns - round(1e9 * kept_s)
        while len(sent) > 1 and sent[1][0] <= oldest_ns:
            sent.popleft()

    def pop_until(self, time_ns: int) -> Values | None:
        """Remove the commands that begin by a time; returns the last of them, if any."""
        command = None
        while self._sent and self._sent[0][0] <= time_ns:
            command = self._sent.popleft()[1]
        return command

    def next_ns(self, default_ns: int) -> int:
        """Return when the first command takes effect; the default if there is none."""
        return self._sent[0][0] if self._sent else default_ns

    def between(self, begin_ns: int, end_ns: int) -> list[tuple[Values, float]]:
        """Return the commands in effect in an interval, and for how long each, in s."""
        pieces: list[tuple[Values, float]] = []
        current: Values | None = None
        for effect_ns, command in self._sent:
            if effect_ns > begin_ns:
                until_ns = min(effect_ns, end_ns)
                if current is not None and until_ns > begin_ns:
                    pieces.append((current, 1e-9 * (until_ns - begin_ns)))
                begin_ns = max(begin_ns, effect_ns)
            current = command
            if begin_ns >= end_ns:
                return pieces
        if current is not None:
            pieces.append((current, 1e-9 * (end_ns - begin_ns)))
        return pieces


class Prediction:
    """Predicts where the commands under way take the measured state.

    Args:
        config: Configuration with ``actuation_delay`` and ``max_state_age``.
        motion: Integrates commands.
    """

    def __init__(self, config: Config, motion: Motion) -> None:
        self._motion = motion
        self._commands = SentCommands()
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._config = config

    def reset(self) -> None:
        """Forget the commands."""
        self._commands.clear()

    def sent(self, command: Values, instant: Instant) -> None:
        """Remember a command that was sent."""
        # No state older than this is predicted from.
        delay_s = 1e-9 * (instant.effect_ns - instant.now_ns)
        kept_s = delay_s + self._config.parameters.max_state_age
        self._commands.append(command, instant.effect_ns, kept_s)

    def predict(self, state: np.ndarray, measured_ns: int, effect_ns: int) -> np.ndarray:
        """Return the state (nx,) at ``effect_ns``; the measured one if the model diverges."""
        predicted = state
        for command, duration_s in averaged(self._commands.between(measured_ns, effect_ns)):
            predicted = self._motion.advanced(predicted, command, duration_s)
        return predicted if np.isfinite(predicted).all() else state


def averaged(pieces: list[tuple[Values, float]]) -> list[tuple[Values, float]]:
    """Average consecutive commands that are together no longer than one integration step.

    So the work of a prediction depends on the time it covers, not on the rate of the commands.

    Args:
        pieces: Commands, and for how long each is in effect, in s.
    """
    groups: list[list[tuple[Values, float]]] = []
    total_s = math.inf
    for piece in pieces:
        if total_s + piece[1] > PREDICTION_SUBSTEP_S + 1e-9:
            groups.append([])
            total_s = 0.0
        groups[-1].append(piece)
        total_s += piece[1]
    return [group[0] if len(group) == 1 else _mean(group) for group in groups]


def _mean(group: list[tuple[Values, float]]) -> tuple[Values, float]:
    total_s = sum(duration_s for _, duration_s in group)
    names = group[-1][0]
    return {
        name: sum(command[name] * duration_s for command, duration_s in group) / total_s
        for name in names
    }, total_s
