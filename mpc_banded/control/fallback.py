# SPDX-License-Identifier: Apache-2.0
"""Commands for cycles without a usable solve: follow the last plan, slow down, hold the stop.

The last plan stays valid for a while. After that the robot slows down to a stop as fast as its
acceleration limits allow, and stays there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mpc_banded.control.config import Config
from mpc_banded.control.errors import UserCodeError, user_code
from mpc_banded.control.limiter import Limiter
from mpc_banded.control.tick import Instant, Reason, Tick
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.robots.messages import Values

#: Longest time that one cycle of slowing down accounts for, in seconds.
LONGEST_CYCLE_S = 0.5


class Fallback:
    """Follows the last plan, slows down, and holds, each for a limited time.

    Args:
        config: Configuration with ``fallback.follow_time`` and ``fallback.slow_time``.
        limiter: Keeps each command within its limits.
    """

    def __init__(self, config: Config, limiter: Limiter) -> None:
        self._limiter = limiter
        self.adopt(config)
        self.reset()

    def adopt(self, config: Config) -> None:
        """Take over another configuration."""
        self._config = config
        self._robot = config.robot
        self._model = config.parameters.model
        self._stop: dict[str, float] = {}
        if self._robot.slow is None:
            self._stop = self._limiter.within_limits(self._robot.stop_values(self._model))

    def reset(self) -> None:
        """Forget the plan and the commands sent."""
        self._plan: tuple[Trajectory, int] | None = None
        self._since_ns: int | None = None
        self._slowing_ns: int | None = None
        self._last: dict[str, float] = {}
        self._last_ns = 0
        self._trouble = ""

    def forget_plan(self) -> None:
        """Forget the plan; the robot slows down from the command sent last."""
        self._plan = None

    def keep_plan(self, plan: Trajectory, effect_ns: int) -> None:
        """Keep the plan of a usable solve, which begins at ``effect_ns``, to follow it later."""
        self._plan = (plan, effect_ns)
        self._since_ns = self._slowing_ns = None

    def sent(self, command: Values, now_ns: int) -> None:
        """Remember a command that was sent, because slowing down begins there."""
        self._last, self._last_ns = dict(command), now_ns

    def stop_command(self) -> dict[str, float]:
        """Return the command that stops the robot: zero, or the nearest value within the limits.

        It is empty for a robot that is commanded by positions and has had no command yet.
        """
        return self._slowed(math.inf) if self._robot.slow is not None else dict(self._stop)

    def stop(self, instant: Instant, code: Reason, why: str) -> Tick:
        """Stop at once."""
        self.forget_plan()
        return instant.tick(self.stop_command(), code, f"stopped: {why}")

    def wait(self, instant: Instant, code: Reason, why: str) -> Tick:
        """Slow down to a stop, and stand until what is missing has arrived."""
        self.forget_plan()
        stage, command = self._staged(instant.now_ns, instant.effect_ns)
        doing = "stopped" if stage is Reason.HOLDING else stage.value
        return instant.tick(command, code, f"{doing}: {why}{self._trouble}")

    def fall_back(self, instant: Instant, why: str) -> Tick:
        """Follow the last plan, slow down or hold, by the time since the last usable solve."""
        stage, command = self._staged(instant.now_ns, instant.effect_ns)
        if stage is not Reason.FOLLOWING:
            self.forget_plan()
        return instant.tick(command, stage, f"{stage.value}: {why}{self._trouble}")

    def _staged(self, now_ns: int, effect_ns: int) -> tuple[Reason, dict[str, float]]:
        """Return the stage of the fallback at ``now_ns``, and its command."""
        self._trouble = ""
        if self._since_ns is None or now_ns < self._since_ns:
            self._since_ns, self._slowing_ns = now_ns, None
        if 1e-9 * (now_ns - self._since_ns) < self._config.parameters.fallback.follow_time:
            followed = self._followed(effect_ns)
            if followed is not None and self._slowing_ns is None:
                return Reason.FOLLOWING, followed
        if self._slowing_ns is None:
            self._slowing_ns = now_ns
        # A value with a limited rate takes its time to slow down; the limiter enforces it anyway.
        slowing_s = 1e-9 * (now_ns - self._slowing_ns)
        may_slow = slowing_s < self._config.parameters.fallback.slow_time
        if self._robot.slow is None or may_slow:
            slowed = self._slowed(min(1e-9 * max(0, now_ns - self._last_ns), LONGEST_CYCLE_S))
            if slowed != self.stop_command():
                return Reason.SLOWING, slowed
        return Reason.HOLDING, self.stop_command()

    def _followed(self, effect_ns: int) -> dict[str, float] | None:
        """Return the command of the last plan at ``effect_ns``; None if there is none."""
        if self._plan is None:
            return None
        plan, begin_ns = self._plan
        into_s = 1e-9 * (effect_ns - begin_ns)
        if not 0.0 <= into_s < plan.horizon * plan.dt:
            return None
        try:
            return self._limiter.command_of(plan, into_s)
        except UserCodeError as error:
            self._trouble = f"; {error}"
            return None

    def _slowed(self, elapsed_s: float) -> dict[str, float]:
        limits = self._limiter.limits
        if self._robot.slow is None:
            return slowed(self._last, self._stop, self._robot.braking, limits, elapsed_s)
        try:
            with user_code("slowing down failed"):
                values = self._robot.slow(self._last, elapsed_s, limits)
                return self._limiter.within_limits(values)
        except UserCodeError as error:
            self._trouble = f"; {error}"
            return dict(self._last)  # robots with ``slow`` are commanded by positions: they stand


def slowed(
    last: Values,
    stop: Values,
    braking: Mapping[str, str],
    limits: Mapping[str, tuple[float, float]],
    elapsed_s: float,
) -> dict[str, float]:
    """Return the next command on the way to a stop.

    Args:
        last: The command before.
        stop: The command at the end.
        braking: See Robot; a value without an entry goes to its stop at once.
        limits: Name of an input -> lower and upper limit.
        elapsed_s: Time since the command before, in s.
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
