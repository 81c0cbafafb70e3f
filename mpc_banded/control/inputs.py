# SPDX-License-Identifier: Apache-2.0
"""Hands each message to the state estimate, the tracker, or the obstacles.

Robots that follow paths take two topics beside those of their own, so that a recording holds all
that Nav2 asks of them: the paths of goals of its action ``follow_path``, and its speed limits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mpc_banded.control.errors import reason_for_rejection
from mpc_banded.control.obstacles import Obstacles
from mpc_banded.control.state import StateEstimate
from mpc_banded.control.tracker import Tracker
from mpc_banded.robots import Robot, messages
from mpc_banded.robots.messages import ReferenceTopic, StateTopic

#: The path of the present goal, on the topic on which Nav2's controllers publish it; an empty one
#: once there is no goal.
GOAL_PATH = ReferenceTopic("received_global_plan", "nav_msgs/msg/Path", messages.path_of)
SPEED_LIMIT, SPEED_LIMIT_TYPE = "speed_limit", "nav2_msgs/msg/SpeedLimit"

#: Takes a message and its time of receipt; returns why it was rejected, or None.
Take = Callable[[Any, int], str | None]


class Inputs:
    """Finds the receiver of each message.

    Args:
        robot: Has the topics of state and reference.
        estimate: Receives states.
        tracker: Receives references.
        obstacles: Receives obstacles.

    Attributes:
        topics: Relative name of each topic -> message type.
    """

    def __init__(
        self, robot: Robot, estimate: StateEstimate, tracker: Tracker, obstacles: Obstacles
    ) -> None:
        self._estimate, self._tracker = estimate, tracker
        self.topics: dict[str, str] = {}
        self._takes: dict[str, Take] = {}
        for state in robot.state_topics:
            self._add(state.topic, state.type, partial(self._take_state, state))
        for reference in robot.reference_topics:
            self._add(reference.topic, reference.type, partial(tracker.receive, reference))
        if robot.reference_message == "path":
            take = partial(reason_for_rejection, tracker.take_goal, GOAL_PATH)
            self._add(GOAL_PATH.topic, GOAL_PATH.type, take)
            take = partial(reason_for_rejection, tracker.limit_speed)
            self._add(SPEED_LIMIT, SPEED_LIMIT_TYPE, take)
        for name, kind in obstacles.topics.items():
            if name not in self.topics:
                self._add(name, kind, partial(reason_for_rejection, obstacles.take, name))

    def take(self, topic: str, message: Any, received_ns: int) -> str | None:
        """Hand over a message; returns why it was rejected, or None."""
        return self._takes[topic](message, received_ns)

    def _add(self, topic: str, kind: str, take: Take) -> None:
        self.topics[topic], self._takes[topic] = kind, take

    def _take_state(self, topic: StateTopic, message: Any, received_ns: int) -> str | None:
        rejected = self._estimate.take(topic, message, received_ns)
        self._tracker.take_waiting(received_ns)
        return rejected
