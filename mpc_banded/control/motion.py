# SPDX-License-Identifier: Apache-2.0
"""A robot that is not there: its motion under commands, without ROS and without a clock."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch

from mpc_banded.control.config import Config
from mpc_banded.robots.messages import Values

#: Longest integration step: far below what any controller plans with.
SUBSTEP_S = 0.005


class Simulation:
    """Integrates the dynamics of a robot, classical Runge-Kutta in steps of at most 5 ms.

    It shares the dynamics with the controller and nothing else: what the machine makes of a
    command (``Robot.actuate``) is asked at every stage, and its inputs saturate at the limits.

    Args:
        config: Of the robot, with ``simulator.initial_state``.
        substep_s: Longest integration step.
        delay_s: Time from a command to its effect; until the first one, the stop is in effect.

    Attributes:
        state: (nx,).
    """

    def __init__(self, config: Config, substep_s: float = SUBSTEP_S, delay_s: float = 0.0) -> None:
        self._substep_s, self._delay_s = substep_s, delay_s
        self._robot = config.robot
        self._model = config.section("model")
        self._parameters = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in self._model.items()
        }
        self._bounds = config.problem().input_bounds
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
            self._move(command, duration_s)
            return
        self._under_way.append((command, duration_s))
        while duration_s > 1e-12:
            command, lasts_s = self._under_way.popleft()
            passed_s = min(lasts_s, duration_s)
            self._move(command, passed_s)
            duration_s -= passed_s
            if lasts_s > passed_s:
                self._under_way.appendleft((command, lasts_s - passed_s))

    def _move(self, command: Values, duration_s: float) -> None:
        count = math.ceil(duration_s / self._substep_s)
        for _ in range(count):
            self.state = self._step(self.state, command, duration_s / count)

    def _step(self, x: np.ndarray, command: Values, h: float) -> np.ndarray:
        k1 = self._rate(x, command)
        k2 = self._rate(x + 0.5 * h * k1, command)
        k3 = self._rate(x + 0.5 * h * k2, command)
        k4 = self._rate(x + h * k3, command)
        return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    def _rate(self, x: np.ndarray, command: Values) -> np.ndarray:
        u = np.clip(self._robot.input_of(x, command, self._model), *self._bounds)
        with torch.inference_mode():
            rate = self._robot.dynamics(torch.from_numpy(x), torch.from_numpy(u), self._parameters)
        return rate.numpy()
