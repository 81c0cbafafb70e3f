# SPDX-License-Identifier: Apache-2.0
"""Finds the parameters, topics and cycles of the node that drove in a recording.

A recording may name parameters, but no code: a robot that is not built in is imported only if the
user names it as well.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Mapping
from typing import Any

from mpc_banded.control.config import Config
from mpc_banded.control.inputs import GOAL_PATH
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.record import Cycle
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.remarks import Remarks
from mpc_banded.robots.messages import stamp_ns_of
from mpc_banded.robots.robot import BUILT_IN

CYCLE_TYPE = "diagnostic_msgs/msg/DiagnosticArray"


class RecordError(BagError):
    """A record of a cycle is not of this version of the package."""


def cycle_of(message: Any) -> Cycle:
    """Return the cycle that a message records; raises RecordError."""
    try:
        return Cycle.parse({pair.key: pair.value for pair in message.status[0].values})
    except (AttributeError, IndexError, ValueError, RecursionError) as error:
        raise RecordError(
            f"a message is no record of a cycle of this version of the package: {error}; name "
            "another topic with --topic cycle:=/NAME"
        ) from error


def first_cycle(bag: Bag, topic: str) -> Cycle | None:
    """Return the first recorded cycle; None if there is none.

    Raises:
        RecordError: It is not of this version of the package.
    """
    return next((cycle_of(message) for _, _, message in bag.messages([topic])), None)


def recorded_config(bag: Bag, first: Cycle | None, overrides: Mapping[str, Any]) -> Config:
    """Return the configuration by the first recorded cycle.

    Args:
        bag: The recording.
        first: Its first cycle.
        overrides: Parameters given by the user.

    Raises:
        BagError: It has no parameters, or names code that the user does not name.
        ConfigError: A parameter is unknown or its value not allowed.
    """
    if first is None or "robot" not in first.changed:
        raise BagError(
            f"{bag.path} does not say which parameters were in effect; give them with --params"
        )
    robot = first.changed["robot"]
    if robot not in BUILT_IN and robot != overrides.get("robot"):
        raise BagError(
            f"{bag.path} names the robot {robot!r}, which is code to be run; if you trust it, add "
            f"--set robot={shlex.quote(str(robot))}, or give --params"
        )
    return Config(first.changed)


def find_topics(
    bag: Bag,
    loop: ControlLoop,
    given: Mapping[str, str],
    remarks: Remarks,
    *,
    has_plan: bool,
    has_record: bool,
) -> dict[str, str]:
    """Return the names in the recording of the inputs and the command, by relative name.

    Args:
        bag: The recording.
        loop: The loop that takes the messages.
        given: Names given by the user.
        remarks: Receives a sentence on each missing topic.
        has_plan: Whether there is a path from elsewhere.
        has_record: Whether the cycles were recorded, with their commands.

    Raises:
        BagError: A state is missing, or a given name does not fit.
    """
    robot, command = loop.robot, loop.config.command_topic
    kinds = {**loop.input_topics, command.topic: command.type}
    unknown = sorted(set(given) - set(kinds))
    if unknown:
        raise BagError(
            f"robot {robot.name!r} has no topic {', '.join(unknown)}; name one of "
            f"{', '.join(kinds)}, cycle"
        )
    states = {state.topic for state in robot.state_topics}
    names = {}
    for topic, kind in kinds.items():
        look = bag.need if topic in states else bag.find
        if found := look(topic, kind, given.get(topic)):
            names[topic] = found
    references = [topic.topic for topic in robot.reference_topics]
    has_reference = has_plan or {*references, GOAL_PATH.topic} & set(names)
    if references and not has_reference and loop.reference is None:
        remarks.note(
            f"the bag has no reference on {' or '.join(references)}; name one with --topic, "
            "or give a path with --plan"
        )
    if command.topic not in names and not has_record:
        likely = bag.likely(command.topic, command.type)
        remedy = f"name it with --topic {command.topic}:={likely}" if likely else "none carries it"
        remarks.note(
            f"the bag has no recorded command on {command.topic} of type {command.type}, so there "
            f"is nothing to compare with; {remedy}"
        )
    return names


class Stock:
    """Messages of some topics that wait until a recorded cycle asks for them.

    Args:
        topics: Relative names.
        kept_ns: Time for which messages before a cycle are kept.
    """

    def __init__(self, topics: Mapping[str, str], kept_ns: int) -> None:
        self._queues: dict[str, deque[tuple[int, Any]]] = {topic: deque() for topic in topics}
        self._kept_ns = kept_ns

    def __contains__(self, topic: object) -> bool:
        return topic in self._queues

    def put(self, topic: str, time_ns: int, message: Any) -> None:
        """Add a message."""
        self._queues[topic].append((time_ns, message))

    def take(self, topic: str, stamp_ns: int, received_ns: int) -> Any:
        """Take the message with a stamp that was received nearest to a time, and all before it.

        Returns:
            None if there is no such message.
        """
        queue = self._queues.get(topic, deque())
        alike = [
            (abs(time_ns - received_ns), index)
            for index, (time_ns, message) in enumerate(queue)
            if stamp_ns_of(message) == stamp_ns
        ]
        if not alike:
            return None
        _, index = min(alike)
        for _ in range(index):
            queue.popleft()
        return queue.popleft()[1]

    def forget(self, before_ns: int) -> None:
        """Drop messages that are too old to be asked for after a cycle."""
        for queue in self._queues.values():
            while len(queue) > 1 and queue[0][0] < before_ns - self._kept_ns:
                queue.popleft()
