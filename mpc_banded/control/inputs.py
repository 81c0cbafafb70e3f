# SPDX-License-Identifier: Apache-2.0
"""Where each message goes: to the state estimate, the tracker, or the obstacles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mpc_banded.control.errors import reason_for_rejection
from mpc_banded.control.obstacles import Obstacles
from mpc_banded.control.state import StateEstimate
from mpc_banded.control.tracker import Tracker
from mpc_banded.robots import Robot
from mpc_banded.robots.messages import StateTopic

#: Takes a message and its time of receipt; returns why it was rejected, or None.
Take = Callable[[Any, int], str | None]


class Inputs:
    """Hands each message to what takes it.

    Args:
        robot: Names the topics of state and reference.
        estimate: Takes states.
        tracker: Takes references.
        known: Takes obstacles.

    Attributes:
        topics: Relative name of each topic -> message type.
    """

    def __init__(
        self, robot: Robot, estimate: StateEstimate, tracker: Tracker, known: Obstacles
    ) -> None:
        self._estimate, self._tracker = estimate, tracker
        self.topics: dict[str, str] = {}
        self._takes: dict[str, Take] = {}
        for state in robot.state_topics:
            self._add(state.topic, state.type, partial(self._take_state, state))
        for reference in robot.reference_topics:
            take = partial(reason_for_rejection, tracker.take, reference)
            self._add(reference.topic, reference.type, take)
        for name, kind in known.topics.items():
            if name not in self.topics:
                self._add(name, kind, partial(reason_for_rejection, known.take, name))

    def take(self, topic: str, message: Any, received_ns: int) -> str | None:
        """Hand over a message; returns why it was rejected, or None."""
        return self._takes[topic](message, received_ns)

    def _add(self, topic: str, kind: str, take: Take) -> None:
        self.topics[topic], self._takes[topic] = kind, take

    def _take_state(self, topic: StateTopic, message: Any, received_ns: int) -> str | None:
        rejected = self._estimate.take(topic, message, received_ns)
        self._tracker.take_waiting(received_ns)
        return rejected
