# SPDX-License-Identifier: Apache-2.0
"""The state estimate: its age, its plausibility, and whether it is stuck.

The age of a state counts from the time at which it was measured: its header stamp, or the time of
receipt if it has no stamp or ``use_header_stamps`` is false. A repeated stamp does not renew the
estimate, and a stamp in the future comes from another clock, so its age is unknown.

A state is stuck if it stays the same although the commands should have changed it: its source is
frozen, or the robot is blocked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.errors import reason_for_rejection, user_code
from mpc_banded.control.motion import Motion, SentCommands
from mpc_banded.robots.messages import StateTopic, Values, frame_of, has_position, stamp_ns_of

#: Time by which a stamp may be ahead of the clock.
AHEAD_NS = 50_000_000
#: Advice if clocks differ.
CLOCKS = "if the clocks differ, set use_header_stamps to false"
#: A state that names a speed and has not changed over this distance (m or rad) is frozen.
FROZEN = 0.1
#: A stuck state misses this much motion, in units of the states, in this time.
MISSED, WINDOW_S = 0.1, 2.0
#: Change of a position, in m or rad, that noise may explain; more is a motion.
NOISE = 0.5 * MISSED


@dataclass(frozen=True)
class _Part:
    """The newest values of one topic."""

    values: Mapping[str, float]
    time_ns: int


class StateEstimate:
    """Keeps the newest plausible state.

    Args:
        config: Configuration of the robot, its limits and the checks.

    Attributes:
        state: State (nx,); None before the first one.
        time_ns: Time of its measurement; the oldest part counts if several topics carry it.
        frame: Frame of its pose; empty if unknown.
        changed_ns: Time at which it last changed.
        rejected: Why the last message was rejected, None if it was accepted.
        remark: Fault of the stamp of the last message; empty if there is none.
        relocations: Number of jumps accepted.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._robot = config.robot
        self._cyclic = [self._robot.states.index(name) for name in self._robot.cyclic]
        self.relocations = 0
        self.forget()

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self.config = config

    def forget(self) -> None:
        """Forget all states."""
        self.state: np.ndarray | None = None
        self.time_ns = 0
        self.rejected: str | None = None
        self.remark = ""
        self.frame = self.config.parameters.state_frame
        self._parts: dict[str, _Part] = {}
        self._stamps: dict[str, int] = {}
        self._received_ns: int | None = None
        self.changed_ns = self._accepted_ns = 0
        self._elsewhere: tuple[np.ndarray, int] | None = None
        self._elsewhere_count = 0

    @property
    def values(self) -> dict[str, float]:
        """The newest state by name; empty before the first one."""
        if self.state is None:
            return {}
        return dict(zip(self._robot.states, self.state.tolist(), strict=True))

    @property
    def silent(self) -> tuple[str, ...]:
        """Topics that carry a part of the state and have had no message yet."""
        return tuple(t.topic for t in self._robot.state_topics if t.topic not in self._parts)

    @property
    def last_rejection(self) -> str:
        """Clause on the last message: why it was rejected, or what is wrong with its stamp."""
        if self.rejected:
            return f"; the last message was rejected: {self.rejected}"
        return f"; {self.remark}" if self.remark else ""

    def measured_ns(self, topic: str) -> int:
        """Return the time at which the newest values of a topic were measured."""
        return self._parts[topic].time_ns

    def age_s(self, now_ns: int) -> float:
        """Return the age: infinite before the first state, negative if the clock went back."""
        return np.inf if self.state is None else 1e-9 * (now_ns - self.time_ns)

    def take(self, topic: StateTopic, message: Any, received_ns: int) -> str | None:
        """Take a message; returns why it was rejected, or None."""
        if self._received_ns is not None and received_ns < self._received_ns:
            self.forget()  # the clock went back: all known states lie in the future
        self._received_ns = received_ns
        self.rejected = reason_for_rejection(self._take, topic, message, received_ns)
        return self.rejected

    def _take(self, topic: StateTopic, message: Any, received_ns: int) -> None:
        with user_code(f"{topic.topic} cannot be read"):
            values = topic.read(message)
        frame = frame_of(message) if has_position(values) else ""
        if frame and self.frame and frame != self.frame:
            raise ValueError(
                f"{topic.topic} is in frame {frame!r}; the state is in {self.frame!r}"
            )
        stamp = stamp_ns_of(message)
        trusted, self.remark = self._trusted(topic.topic, stamp)
        if not hasattr(message, "header"):
            self.remark = ""  # this type of message has no stamp
        if trusted:
            self._check_stamp(topic.topic, stamp, received_ns)
        time_ns = min(stamp, received_ns) if trusted else received_ns
        parts = {**self._parts, topic.topic: _Part(values, time_ns)}
        if len(parts) == len(self._robot.state_topics):
            self._take_state(topic.topic, parts, received_ns)
        self._parts = parts
        self._stamps[topic.topic] = stamp
        self.frame = self.frame or frame

    def _trusted(self, topic: str, stamp: int) -> tuple[bool, str]:
        """Return whether the stamp counts, and what is wrong with it."""
        if not self.config.parameters.use_header_stamps:
            return False, ""
        if stamp == 0:
            return False, f"{topic} has no stamp, so its age counts from receipt"
        return True, ""

    def _check_stamp(self, topic: str, stamp: int, received_ns: int) -> None:
        ahead_ns = stamp - received_ns
        if ahead_ns > AHEAD_NS:
            raise ValueError(
                f"{topic} is stamped {1e-9 * ahead_ns:.2f} s ahead of the clock; {CLOCKS}"
            )
        last = self._stamps.get(topic, 0)
        if stamp == last:
            raise ValueError(f"{topic} repeats the stamp {1e-9 * stamp:.3f} s")
        # A restarted publisher may have another clock: it is accepted after a while.
        waited_s = 1e-9 * (received_ns - self._accepted_ns)
        is_recent = waited_s <= self.config.parameters.max_state_age
        if is_recent and stamp < last:
            raise ValueError(f"{topic} goes back in time by {1e-9 * (last - stamp):.3f} s")

    def _take_state(self, topic: str, parts: dict[str, _Part], received_ns: int) -> None:
        merged = {name: x for part in parts.values() for name, x in part.values.items()}
        state = self._robot.state(merged)
        finite = np.isfinite(state)
        if not finite.all():
            bad = [n for n, good in zip(self._robot.states, finite, strict=True) if not good]
            raise ValueError(f"{', '.join(bad)} of the state message is not finite")
        self._check_speeds(topic, state)
        time_ns = min(part.time_ns for part in parts.values())
        if self.state is not None:
            turns = np.round((self.state - state) / (2.0 * np.pi))
            state[self._cyclic] += 2.0 * np.pi * turns[self._cyclic]
            self._check_frozen(topic, state, time_ns)
            self._check_jump(state, time_ns, received_ns)
        if self.state is None or not np.array_equal(state, self.state):
            self.changed_ns = time_ns
        self.state, self.time_ns, self._accepted_ns = state, time_ns, received_ns
        self._elsewhere = None

    def _check_speeds(self, topic: str, state: np.ndarray) -> None:
        """Reject a velocity far beyond its limits: no robot was told to move like that."""
        parameters = self.config.parameters
        for name in {n for names in self._robot.velocities.values() for n in names}:
            if name not in self._robot.states:
                continue
            low, high = parameters.limits[name]
            value = state[self._robot.states.index(name)]
            if max(low - value, value - high) > max(high, -low) + parameters.jump_margin:
                raise ValueError(
                    f"{topic} is not plausible: {name} is {value:.3g}, far beyond limits.{name} "
                    f"[{low:g}, {high:g}]"
                )

    def _check_frozen(self, topic: str, state: np.ndarray, time_ns: int) -> None:
        """Reject a state that names a speed and stays the same to the last bit."""
        if self.state is None or not np.array_equal(state, self.state):
            return
        elapsed_s = 1e-9 * (time_ns - self.changed_ns)
        at = self._robot.states.index
        for name in {n for names in self._robot.velocities.values() for n in names}:
            speed = abs(state[at(name)]) if name in self._robot.states else 0.0
            if speed * elapsed_s > FROZEN:
                raise ValueError(
                    f"{topic} is frozen: {name} is {speed:.2g} and nothing has changed in "
                    f"{elapsed_s:.2f} s"
                )

    def _check_jump(self, state: np.ndarray, time_ns: int, received_ns: int) -> None:
        """Reject a position that moved further than the limits allow, until enough agree."""
        assert self.state is not None
        # Messages whose stamps do not count may come in bursts: the longer of both times counts.
        elapsed_ns = max(time_ns - self.time_ns, received_ns - self._accepted_ns)
        found = self._leap(self.state, state, 1e-9 * elapsed_ns)
        if found is None:
            return
        near = self._elsewhere
        again = near and not self._leap(near[0], state, 1e-9 * max(0, received_ns - near[1]))
        self._elsewhere_count = self._elsewhere_count + 1 if again else 1
        self._elsewhere = (state, received_ns)
        needed = self.config.parameters.jump_samples
        if self._elsewhere_count < needed:
            raise ValueError(f"{found}; accepted after {needed} states that agree")
        self.relocations += 1

    def _leap(self, before: np.ndarray, after: np.ndarray, elapsed_s: float) -> str | None:
        """Return which position moved further than possible; None if none did."""
        for name, rates in self._robot.velocities.items():
            fastest = float(
                np.linalg.norm(
                    [np.abs(self.config.parameters.limits[rate]).max() for rate in rates]
                )
            )
            i = self._robot.states.index(name)
            moved = abs(after[i] - before[i])
            allowed = self.config.parameters.jump_margin + fastest * max(0.0, elapsed_s)
            if moved > allowed:
                return f"{name} jumped by {moved:.2f}, {allowed:.2f} is possible"
        return None


class StuckCheck:
    """Detects a state that stays the same although the commands should have changed it.

    The commands are integrated in the model from the unchanged state, a little further at each
    check, and from the start again after a window. So each check costs one step, however long the
    robot has been standing, and a robot that creeps below the dead zone of its drives does not
    count as stuck.

    Args:
        config: Configuration with ``max_frozen_time``.
        motion: Integrates commands.
    """

    def __init__(self, config: Config, motion: Motion) -> None:
        self._motion = motion
        self.adopt(config)
        self.reset()

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._config = config
        # All that a check may still have to integrate.
        # Only of bases: what is unstable, like a pole, leaves its prediction while it is balanced.
        robot = config.robot
        self._positions = [] if robot.planar is None else list(robot.planar.position)
        if robot.planar is not None and robot.planar.yaw is not None:
            self._positions.append(robot.planar.yaw)
        self._kept_s = (
            config.parameters.max_frozen_time
            + config.parameters.actuation_delay
            + max(WINDOW_S, 2.0 * config.period_s)
        )
        self._at: np.ndarray | None = None  # what was integrated belongs to the model before

    def reset(self) -> None:
        """Forget the commands, and whether the robot is stuck."""
        self._commands = SentCommands()
        self._command: Values | None = None
        self._at = None
        self._held_until_ns: int | None = None

    def sent(self, command: Values, effect_ns: int) -> None:
        """Remember a command that was sent and takes effect at ``effect_ns``."""
        self._commands.append(command, effect_ns, self._kept_s)

    def check(self, state: np.ndarray, changed_ns: int, now_ns: int, effect_ns: int) -> str | None:
        """Return why the robot is stuck, or None.

        A stuck robot stays so until it has stood for a while; then it may try again.

        Args:
            state: The newest state (nx,).
            changed_ns: Time at which it last changed.
            now_ns: Time of the check.
            effect_ns: When a command sent now takes effect.
        """
        limit_s = self._config.parameters.max_frozen_time
        if self._has_moved(state):
            self._at, self._since_ns, self._held_until_ns = state, changed_ns, None
            self._begin(state, changed_ns)
        unchanged_s = 1e-9 * (now_ns - self._since_ns)
        if not 0.0 < limit_s < unchanged_s:
            return None
        seen_ns = effect_ns - round(1e9 * limit_s)  # the state should show motion up to then
        if self._held_until_ns is None:
            self._integrate(state, seen_ns)
            missed = self._largest_move(self._integrated - self._begun)
            if not MISSED <= missed < np.inf:  # a model that diverges tells nothing
                return None
            standing_s = (
                self._config.parameters.fallback.follow_time
                + self._config.parameters.fallback.slow_time
            )
            self._held_until_ns = now_ns + round(1e9 * (standing_s + WINDOW_S))
        elif now_ns >= self._held_until_ns:
            self._held_until_ns = None
            self._begin(state, seen_ns)
            return None
        return (
            f"the state has hardly changed for {unchanged_s:.2f} s although the robot was told to "
            f"move, max_frozen_time is {limit_s:g} s"
        )

    def _has_moved(self, state: np.ndarray) -> bool:
        """Return whether the robot is elsewhere, by more than the noise of its sensors."""
        if self._at is None:
            return True
        if not self._positions:
            return not np.array_equal(state, self._at)
        return self._largest_move(state - self._at) > NOISE

    def _largest_move(self, change: np.ndarray) -> float:
        """Return the largest change of a position; of any state if there are no positions."""
        return float(np.abs(change[self._positions or slice(None)]).max())

    def _begin(self, state: np.ndarray, time_ns: int) -> None:
        self._integrated = self._begun = state
        self._begun_ns = self._reached_ns = time_ns

    def _integrate(self, state: np.ndarray, until_ns: int) -> None:
        """Integrate the commands up to a time; from ``state`` again after a window or a pause."""
        longest_s = max(WINDOW_S, 2.0 * self._config.period_s)
        if 1e-9 * (until_ns - self._reached_ns) > longest_s:
            self._begin(state, until_ns)
            self._commands.pop_until(until_ns)
            self._command = None  # after a pause without checks it is no longer in effect
        elif 1e-9 * (self._reached_ns - self._begun_ns) > WINDOW_S:
            self._begin(state, self._reached_ns)
        while self._reached_ns < until_ns:
            self._command = self._commands.pop_until(self._reached_ns) or self._command
            end_ns = min(until_ns, self._commands.next_ns(until_ns))
            if self._command is not None:
                duration_s = 1e-9 * (end_ns - self._reached_ns)
                self._integrated = self._motion.advanced(
                    self._integrated, self._command, duration_s
                )
            self._reached_ns = end_ns
