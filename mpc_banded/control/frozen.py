# SPDX-License-Identifier: Apache-2.0
"""Whether the state stays the same where the commands should have changed it.

Its source is frozen then, or the robot is blocked. The commands are followed in the model from
where the state stands, a little further at each look, and begun anew now and then: so a look
costs one step however long the robot has been standing, and a robot that is told to creep below
what its drives can do is not taken for a frozen one.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.motion import Simulation
from mpc_banded.robots.messages import Values

#: Motion that must be missed, in units of the states, and the time in which it must be.
MISSED, WINDOW_S = 0.1, 2.0
#: Longest integration step, in seconds, and how many commands wait to be followed.
SUBSTEP_S, COMMANDS = 0.02, 1000


class FrozenWatch:
    """Compares the state with what the commands should have made of it.

    Args:
        config: Of the robot; ``max_frozen_time`` is how long a state may stay the same.
    """

    def __init__(self, config: Config) -> None:
        self.adopt(config)
        self.reset()

    def adopt(self, config: Config) -> None:
        """Go over to another configuration of the same robot."""
        self._config = config
        self._motion = Simulation(config, SUBSTEP_S)
        self._changed_ns: int | None = None  # begin anew: the motion has lost its state

    def reset(self) -> None:
        """Forget the commands, and whether the robot is held."""
        self._sent: deque[tuple[int, Values]] = deque(maxlen=COMMANDS)
        self._command: Values | None = None
        self._changed_ns = None
        self._held_until_ns: int | None = None

    def sent(self, command: Values, effect_ns: int) -> None:
        """A command was sent that takes effect at ``effect_ns``."""
        self._sent.append((effect_ns, command))

    def look(self, state: np.ndarray, changed_ns: int, now_ns: int, effect_ns: int) -> str | None:
        """Why the robot must not be driven on this state; None if it may.

        A robot that must not is held until it has stood for a while, and is tried again.

        Args:
            state: (nx,), the newest one.
            changed_ns: Since when it has been the same.
            now_ns: Time of the look.
            effect_ns: When a command of now takes effect.
        """
        limit_s = self._config["max_frozen_time"]
        if changed_ns != self._changed_ns:
            self._changed_ns, self._held_until_ns = changed_ns, None
            self._begin(state, changed_ns)
        unchanged_s = 1e-9 * (now_ns - changed_ns)
        if not 0.0 < limit_s < unchanged_s:
            return None
        seen_ns = effect_ns - round(1e9 * limit_s)  # what was done by then should show
        if self._held_until_ns is None:
            self._follow(state, seen_ns)
            missed = np.abs(self._motion.state - state).max()
            if not MISSED <= missed < np.inf:  # a model that explodes says nothing
                return None
            standing_s = self._config["fallback.follow_time"] + self._config["fallback.slow_time"]
            self._held_until_ns = now_ns + round(1e9 * (standing_s + WINDOW_S))
        elif now_ns >= self._held_until_ns:
            self._held_until_ns = None
            self._begin(state, seen_ns)
            return None
        return (
            f"the state has not changed for {unchanged_s:.2f} s although the robot was told to "
            f"move, max_frozen_time is {limit_s:g} s"
        )

    def _begin(self, state: np.ndarray, time_ns: int) -> None:
        self._motion.state = state
        self._begun_ns = self._followed_ns = time_ns

    def _follow(self, state: np.ndarray, until_ns: int) -> None:
        """Follow the commands up to a time; anew after a window, or where nobody looked."""
        longest_s = max(WINDOW_S, 2.0 * self._config.period_s)
        if 1e-9 * (until_ns - self._followed_ns) > longest_s:
            self._begin(state, until_ns)
            self._take_up(until_ns)
            self._command = None  # it may be over: who sent nothing for so long had ceased
        elif 1e-9 * (self._followed_ns - self._begun_ns) > WINDOW_S:
            self._begin(state, self._followed_ns)
        while self._followed_ns < until_ns:
            self._take_up(self._followed_ns)
            end_ns = min(until_ns, self._sent[0][0]) if self._sent else until_ns
            if self._command is not None:
                self._motion.advance(self._command, 1e-9 * (end_ns - self._followed_ns))
            self._followed_ns = end_ns

    def _take_up(self, time_ns: int) -> None:
        while self._sent and self._sent[0][0] <= time_ns:
            self._command = self._sent.popleft()[1]
