# SPDX-License-Identifier: Apache-2.0
"""Judges every state that comes, and keeps the newest good one: age, frame, stamps, jumps.

A state is worth as much as the time at which it was true. That is its header's stamp; the time of
receipt where there is none, or where stamps are not to be looked at. A stamp that comes twice
makes nothing younger, and one from the future has another clock, of which nobody can tell an age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.robots.messages import StateTopic, frame_of, stamp_ns_of

#: How far ahead of the clock a stamp may be.
AHEAD_NS = 50_000_000
#: What to do about clocks that differ.
CLOCKS = "if the clocks differ, set use_header_stamps to false"
#: A state that names a speed and has not changed over this distance (m or rad) is a frozen one.
FROZEN = 0.1


@dataclass(frozen=True)
class _Part:
    """What one topic said last."""

    values: Mapping[str, float]
    time_ns: int


class StateWatch:
    """Keeps the newest state that deserves it.

    Args:
        config: Of the robot and its limits.

    Attributes:
        state: (nx,), None before the first one.
        time_ns: When it was true; for a state in parts, when the oldest part was.
        frame: Of its pose; empty where nobody says.
        changed_ns: When it last differed from the one before.
        rejected: Why the last message was rejected, None if it was not.
        remark: What is wrong with the stamp of the last message; empty if nothing is.
        relocations: How many jumps were taken for real.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._robot = config.robot
        self._cyclic = [self._robot.states.index(name) for name in self._robot.cyclic]
        self.relocations = 0
        self.forget()

    def forget(self) -> None:
        """Know no state, as at first."""
        self.state: np.ndarray | None = None
        self.time_ns = 0
        self.rejected: str | None = None
        self.remark = ""
        self.frame = self.config["state_frame"]
        self._parts: dict[str, _Part] = {}
        self._stamps: dict[str, int] = {}
        self._received_ns: int | None = None
        self.changed_ns = self._accepted_ns = 0
        self._elsewhere: tuple[np.ndarray, int] | None = None
        self._elsewhere_count = 0

    @property
    def silent(self) -> tuple[str, ...]:
        """Topics that have not spoken yet."""
        return tuple(t.topic for t in self._robot.state_topics if t.topic not in self._parts)

    def heard_ns(self, topic: str) -> int:
        """When what a topic said last was true."""
        return self._parts[topic].time_ns

    def age_s(self, now_ns: int) -> float:
        """Age of the state; infinite before the first one, negative if the clock went back."""
        return np.inf if self.state is None else 1e-9 * (now_ns - self.time_ns)

    def take(self, topic: StateTopic, message: Any, received_ns: int) -> str | None:
        """Judge a message; returns why it was rejected, if it was."""
        if self._received_ns is not None and received_ns < self._received_ns:
            self.forget()  # the clock went back: all that is known lies in the future
        self._received_ns = received_ns
        self.rejected = self._judge(topic, message, received_ns)
        return self.rejected

    def _judge(self, topic: StateTopic, message: Any, received_ns: int) -> str | None:
        try:
            values = topic.read(message)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return f"{topic.topic} cannot be read: {error!r}"
        frame = frame_of(message) if {"x", "y"} <= set(values) else ""
        if frame and self.frame and frame != self.frame:
            return f"{topic.topic} is in frame {frame!r}; the state is in {self.frame!r}"
        stamp = stamp_ns_of(message)
        believed, self.remark = self._believed(topic.topic, stamp)
        if not hasattr(message, "header"):
            self.remark = ""  # nobody expects a stamp
        if believed and (wrong := self._wrong_stamp(topic.topic, stamp, received_ns)):
            return wrong
        time_ns = min(stamp, received_ns) if believed else received_ns
        parts = {**self._parts, topic.topic: _Part(values, time_ns)}
        if len(parts) == len(self._robot.state_topics):
            wrong = self._take_state(topic.topic, parts, received_ns)
            if wrong:
                return wrong
        self._parts = parts
        self._stamps[topic.topic] = stamp
        self.frame = self.frame or frame
        return None

    def _believed(self, topic: str, stamp: int) -> tuple[bool, str]:
        """Whether the stamp counts, and what is wrong with it."""
        if not self.config["use_header_stamps"]:
            return False, ""
        if stamp == 0:
            return False, f"{topic} has no stamp, so its age counts from receipt"
        return True, ""

    def _wrong_stamp(self, topic: str, stamp: int, received_ns: int) -> str | None:
        ahead_ns = stamp - received_ns
        if ahead_ns > AHEAD_NS:
            return f"{topic} is stamped {1e-9 * ahead_ns:.2f} s ahead of the clock; {CLOCKS}"
        last = self._stamps.get(topic, 0)
        if stamp == last:
            return f"{topic} repeats the stamp {1e-9 * stamp:.3f} s"
        # A publisher that was started again may have a clock of its own: it is heard in the end.
        waited_s = 1e-9 * (received_ns - self._accepted_ns)
        is_recent = waited_s <= self.config["max_state_age"]
        if is_recent and stamp < last:
            return f"{topic} goes back in time by {1e-9 * (last - stamp):.3f} s"
        return None

    def _take_state(self, topic: str, parts: dict[str, _Part], received_ns: int) -> str | None:
        merged = {name: x for part in parts.values() for name, x in part.values.items()}
        try:
            state = self._robot.state(merged)
        except KeyError as error:
            return str(error.args[0])
        finite = np.isfinite(state)
        if not finite.all():
            bad = [n for n, good in zip(self._robot.states, finite, strict=True) if not good]
            return f"{', '.join(bad)} of the state message is not finite"
        time_ns = min(part.time_ns for part in parts.values())
        if self.state is not None:
            turns = np.round((self.state - state) / (2.0 * np.pi))
            state[self._cyclic] += 2.0 * np.pi * turns[self._cyclic]
            wrong = self._frozen(topic, state, time_ns) or self._jump(state, time_ns, received_ns)
            if wrong:
                return wrong
        if self.state is None or not np.array_equal(state, self.state):
            self.changed_ns = time_ns
        self.state, self.time_ns, self._accepted_ns = state, time_ns, received_ns
        self._elsewhere = None
        return None

    def _frozen(self, topic: str, state: np.ndarray, time_ns: int) -> str | None:
        """A state that says it moves, and stays what it was to the last bit."""
        if self.state is None or not np.array_equal(state, self.state):
            return None
        elapsed_s = 1e-9 * (time_ns - self.changed_ns)
        at = self._robot.states.index
        for name in {n for names in self._robot.velocities.values() for n in names}:
            speed = abs(state[at(name)]) if name in self._robot.states else 0.0
            if speed * elapsed_s > FROZEN:
                return (
                    f"{topic} is frozen: {name} is {speed:.2g} and nothing has changed in "
                    f"{elapsed_s:.2f} s"
                )
        return None

    def _jump(self, state: np.ndarray, time_ns: int, received_ns: int) -> str | None:
        """A position that moved further than the limits allow; the same one again is real."""
        assert self.state is not None
        # Stamps that are not believed come in bursts: the longer of both times counts.
        elapsed_ns = max(time_ns - self.time_ns, received_ns - self._accepted_ns)
        found = self._leap(self.state, state, 1e-9 * elapsed_ns)
        if found is None:
            return None
        near = self._elsewhere
        again = near and not self._leap(near[0], state, 1e-9 * max(0, received_ns - near[1]))
        self._elsewhere_count = self._elsewhere_count + 1 if again else 1
        self._elsewhere = (state, received_ns)
        needed = self.config["jump_samples"]
        if self._elsewhere_count < needed:
            return f"{found}; taken for real after {needed} states that agree"
        self.relocations += 1
        return None

    def _leap(self, before: np.ndarray, after: np.ndarray, elapsed_s: float) -> str | None:
        for name, rates in self._robot.velocities.items():
            fastest = float(
                np.linalg.norm([np.abs(self.config[f"limits.{rate}"]).max() for rate in rates])
            )
            i = self._robot.states.index(name)
            moved = abs(after[i] - before[i])
            allowed = self.config["jump_margin"] + fastest * max(0.0, elapsed_s)
            if moved > allowed:
                return f"{name} jumped by {moved:.2f}, {allowed:.2f} is possible"
        return None
