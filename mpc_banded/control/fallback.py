# SPDX-License-Identifier: Apache-2.0
"""What the robot is sent while no solve may decide: follow, slow down, hold.

The last plan knows where the robot wanted to go and is right for a while; then the robot comes to
a stop as fast as its acceleration limits allow, and stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.robots.messages import Values

#: Longest time that one cycle of slowing down accounts for, in seconds.
LONGEST_CYCLE_S = 0.5


class Grade(Enum):
    """How far the robot has left its plan."""

    FOLLOWING = "following the last plan"
    SLOWING = "slowing down"
    HOLDING = "holding the stop"


class Fallback:
    """Grades of leaving a plan, each with its time limit.

    Args:
        config: With ``fallback.follow_time`` and ``fallback.slow_time``.
    """

    def __init__(self, config: Config) -> None:
        self.adopt(config)
        self._plan: tuple[Trajectory, int] | None = None
        self._since_ns: int | None = None
        self._slowing_ns: int | None = None
        self._last: dict[str, float] = {}
        self._last_ns = 0

    def adopt(self, config: Config) -> None:
        """Go over to another configuration."""
        self._config = config
        self._robot = config.robot
        self._model = config.section("model")
        self._limits = config.section("limits")

    def stop(self) -> dict[str, float]:
        """The command that stops the robot: zero, as near as the limits allow.

        Empty for a robot that is sent positions and has not been sent any yet.
        """
        if self._robot.slow is None:
            return self.within_limits(self._robot.stop_values(self._model))
        return self._slowed(math.inf)

    def within_limits(self, values: Values) -> dict[str, float]:
        """The values moved into the limits of their names; ``name@time`` has those of ``name``."""
        everywhere = (-math.inf, math.inf)
        return {
            name: float(np.clip(value, *self._limits.get(name.partition("@")[0], everywhere)))
            for name, value in values.items()
        }

    def drove(self, plan: Trajectory, effect_ns: int) -> None:
        """A solve decided: its plan, which begins at ``effect_ns``, may be followed later."""
        self._plan = (plan, effect_ns)
        self._since_ns = self._slowing_ns = None

    def sent(self, command: Values, now_ns: int) -> None:
        """What was sent: slowing down begins there."""
        self._last, self._last_ns = dict(command), now_ns

    def forget_plan(self) -> None:
        """Follow no plan; slow down from what was sent last."""
        self._plan = None

    def command(self, now_ns: int, effect_ns: int) -> tuple[Grade, dict[str, float]]:
        """The grade at ``now_ns`` and its command, which takes effect at ``effect_ns``."""
        if self._since_ns is None or now_ns < self._since_ns:
            self._since_ns, self._slowing_ns = now_ns, None
        if 1e-9 * (now_ns - self._since_ns) < self._config["fallback.follow_time"]:
            followed = self._followed(effect_ns)
            if followed is not None and self._slowing_ns is None:
                return Grade.FOLLOWING, followed
        if self._slowing_ns is None:
            self._slowing_ns = now_ns
        if 1e-9 * (now_ns - self._slowing_ns) < self._config["fallback.slow_time"]:
            slowed = self._slowed(min(1e-9 * max(0, now_ns - self._last_ns), LONGEST_CYCLE_S))
            if slowed != self.stop():
                return Grade.SLOWING, slowed
        return Grade.HOLDING, self.stop()

    def _followed(self, effect_ns: int) -> dict[str, float] | None:
        """The command that the last plan has for then; None where it does not reach so far."""
        if self._plan is None:
            return None
        plan, begin_ns = self._plan
        into_s = 1e-9 * (effect_ns - begin_ns)
        if not 0.0 <= into_s < plan.horizon * plan.dt:
            return None
        lead_s = self._config["command_lead"]
        values = self._robot.command_values(plan, lead_s, self._model, into_s)
        if not np.isfinite(list(values.values())).all():
            return None
        return self.within_limits(values)

    def _slowed(self, elapsed_s: float) -> dict[str, float]:
        if self._robot.slow is not None:
            return self.within_limits(self._robot.slow(self._last, elapsed_s, self._limits))
        stop = self.within_limits(self._robot.stop_values(self._model))
        return slowed(self._last, stop, self._robot.braking, self._limits, elapsed_s)


def slowed(
    last: Values,
    stop: Values,
    braking: Mapping[str, str],
    limits: Mapping[str, list[float]],
    elapsed_s: float,
) -> dict[str, float]:
    """A command on its way to a stop.

    Args:
        last: The command before.
        stop: Where it ends.
        braking: See Robot; a value without an entry stops at once.
        limits: Name of an input -> lower and upper limit.
        elapsed_s: Time since the command before.
    """
    result = dict(stop)
    for name, bound in braking.items():
        if name in last and bound in limits:
            lower, upper = limits[bound]
            way = stop[name] - last[name]
            step = min(abs(way), elapsed_s * (upper if way > 0.0 else -lower))
            result[name] = last[name] + math.copysign(max(0.0, step), way)
    for name, leader in braking.items():
        if name in last and leader in stop and leader in last:
            way = last[leader] - stop[leader]
            share = (result[leader] - stop[leader]) / way if way else 0.0
            result[name] = stop[name] + share * (last[name] - stop[name])
    return result
