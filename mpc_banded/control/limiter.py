# SPDX-License-Identifier: Apache-2.0
"""Keeps every command within its limits and rates, whatever decided on it."""

from __future__ import annotations

import math

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.errors import UserCodeError, user_code
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.robots.messages import Values


class Limiter:
    """Moves commands into their limits, and within reach of the command before.

    A value whose rate ``Robot.braking`` names changes by no more than the limits of that rate
    allow; a turn rate that follows a speed keeps its curve.

    Args:
        config: Configuration with the limits.
    """

    def __init__(self, config: Config) -> None:
        self.adopt(config)
        self.reset()

    def adopt(self, config: Config) -> None:
        """Take over another configuration."""
        self._robot, self._model = config.robot, config.parameters.model
        self._period_s, self._lead_s = config.period_s, config.lead_s
        self._braking, self._inputs = config.robot.braking, config.robot.inputs
        self.limits = config.parameters.limits

    def reset(self) -> None:
        """Forget the previous command, which is long past."""
        self._last: dict[str, float] = {}
        self._last_ns: int | None = None

    def command_of(
        self, plan: Trajectory, into_s: float = 0.0, speed: float = math.inf
    ) -> dict[str, float]:
        """Return the command ``into_s`` seconds into a plan, within its limits.

        Args:
            plan: States and inputs.
            into_s: Time since its beginning.
            speed: Highest speed that is allowed, in m/s; a faster command keeps its curve.

        Raises:
            UserCodeError: ``Robot.command`` raises, or its values are not finite.
        """
        with user_code("the command of the plan failed"):
            values = self._robot.command_values(plan, self._lead_s, self._model, into_s)
            if np.isfinite(list(values.values())).all():
                wanted = math.hypot(values.get("v", 0.0), values.get("vy", 0.0))
                if wanted > speed:
                    share = {name: speed / wanted for name in ("v", "vy", "w") if name in values}
                    values = values | {name: x * values[name] for name, x in share.items()}
                return self.within_limits(values)
        raise UserCodeError(f"the command of the plan is not finite: {values}")

    def within_limits(self, values: Values) -> dict[str, float]:
        """Return the values within their limits; ``name@time`` has those of ``name``."""
        everywhere = (-math.inf, math.inf)
        return {
            name: float(np.clip(value, *self.limits.get(name.partition("@")[0], everywhere)))
            for name, value in values.items()
        }

    def within_reach(
        self, values: dict[str, float], start: Values, now_ns: int
    ) -> dict[str, float]:
        """Return the command that is sent: the values within reach of the one before.

        Args:
            values: Within their limits.
            start: Command in effect before the first one, one period ago.
            now_ns: Time of the command.
        """
        elapsed_s = self._period_s
        if self._last_ns is not None and now_ns >= self._last_ns:
            elapsed_s = 1e-9 * (now_ns - self._last_ns)
        before = self._last or start
        result = dict(values)
        share = 1.0  # of the change of the velocity, whose direction stays: it gets no faster
        for name, rate in self._braking.items():
            if rate in self._inputs and name in values and name in before:
                low, high = (elapsed_s * bound for bound in self.limits[rate])
                wanted = values[name] - before[name]
                change = min(max(wanted, low), high)
                result[name] = before[name] + change
                if name in ("v", "vy") and wanted:
                    share = min(share, change / wanted)
        for name in {"v", "vy"} & set(values) & set(before):
            if share < 1.0:
                result[name] = before[name] + share * (values[name] - before[name])
        for name, leader in self._braking.items():
            # A turn rate belongs to a curve, and the curve stays; a steering angle is a curve.
            if name == "w" and leader in values and name in values and values[leader]:
                result[name] = values[name] * result[leader] / values[leader]
        if values:
            result = self.within_limits(result)
            self._last, self._last_ns = result, now_ns
        return result
