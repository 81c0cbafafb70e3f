# SPDX-License-Identifier: Apache-2.0
"""Reads commands and states of a recording, and rejects those that the node rejects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.errors import reason_for_rejection
from mpc_banded.control.state import StateEstimate
from mpc_banded.control.text import printable
from mpc_banded.offline.bag import Bag
from mpc_banded.offline.remarks import Clocks
from mpc_banded.robots.messages import StateTopic, stamp_ns_of

#: Silence that splits a recording, in s: the times before and after it belong to two drives.
SILENCE_S = 3600.0
#: Times in s, increasing, and values.
Series = tuple[np.ndarray, np.ndarray]


@dataclass
class Recorded:
    """Commands and states of a recording by name, each as times in s and values.

    Attributes:
        commands, states: Name -> (K,) times and (K,) values.
        rejected: Why messages were rejected, and how many.
        remarks: Sentences on problems in the recording.
    """

    commands: dict[str, Series] = field(default_factory=dict)
    states: dict[str, Series] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


def read(
    path: Path, config: Config, topics: Mapping[str, str], folders: Sequence[Path] = ()
) -> Recorded:
    """Return commands and accepted states of a recording.

    Args:
        path: Folder or file.
        config: Configuration of the robot.
        topics: Relative name of a topic -> its name in the recording, where they differ.
        folders: Folders with definitions of message types.

    Raises:
        BagError: The recording cannot be read, or lacks a topic.
    """
    recorded = Recorded()
    states: dict[str, list[tuple[float, float]]] = {name: [] for name in config.robot.states}
    commands: dict[str, list[tuple[float, float]]] = {}
    estimate = StateEstimate(config)
    clocks = Clocks(config.parameters.max_state_age)
    with Bag(path, folders=folders) as bag:
        parts = {
            bag.need(t.topic, t.type, topics.get(t.topic)): _Remembering(t)
            for t in config.robot.state_topics
        }
        command = config.robot.command_topic
        sent = bag.need(command.topic, command.type, topics.get(command.topic))

        def reject(topic: str, reason: str) -> None:
            recorded.rejected[f"{topic} is {reason}"] += 1

        for topic, time_ns, message in bag.messages([*parts, sent], reject):
            if topic == sent:
                for name, value in _command(command, message, recorded).items():
                    commands.setdefault(name, []).append((1e-9 * (time_ns - bag.start_ns), value))
                continue
            part = parts[topic]
            clocks.take(part.topic.topic, stamp_ns_of(message), time_ns)
            if why := estimate.take(part.topic, message, time_ns):
                recorded.rejected[_kind_of(why)] += 1
            elif estimate.state is not None:
                at_s = 1e-9 * (estimate.measured_ns(part.topic.topic) - bag.start_ns)
                for name in states.keys() & part.values:
                    value = estimate.state[config.robot.states.index(name)]
                    states[name].append((at_s, float(value)))
        recorded.remarks = [*bag.remarks]
    if config.parameters.use_header_stamps:
        recorded.remarks += clocks.sentences
    recorded.commands = {name: _series(pairs) for name, pairs in commands.items()}
    recorded.states = {name: _series(pairs) for name, pairs in states.items()}
    _keep_longest_stretch(recorded)
    return recorded


class _Remembering:
    """A topic that keeps the values read last, so that no message is read twice.

    Attributes:
        topic: The topic.
        values: Name -> value.
    """

    def __init__(self, topic: StateTopic) -> None:
        self.values: dict[str, float] = {}
        self._read = topic.read
        self.topic = replace(topic, read=self._keep)

    def _keep(self, message: Any) -> dict[str, float]:
        self.values = dict(self._read(message))
        return self.values


def _keep_longest_stretch(recorded: Recorded) -> None:
    """Leave out values at stray times, which a long silence separates from most messages."""
    series = [*recorded.commands.values(), *recorded.states.values()]
    times = np.sort(np.concatenate([times for times, _ in series] or [np.zeros(0)]))
    parts = np.split(times, np.flatnonzero(np.diff(times) > SILENCE_S) + 1)
    longest = max(parts, key=len)
    if len(longest) == len(times):
        return
    recorded.remarks.append(
        f"{len(times) - len(longest)} values are left out: a silence of an hour or more parts "
        "them from the rest"
    )
    for table in (recorded.commands, recorded.states):
        for name, (at, values) in table.items():
            keep = (at >= longest[0]) & (at <= longest[-1])
            table[name] = (at[keep], values[keep])


def _command(topic: Any, message: Any, recorded: Recorded) -> dict[str, float]:
    values: dict[str, float] = {}

    def read() -> None:
        values.update({name: float(value) for name, value in topic.read(message).items()})

    if why := reason_for_rejection(read):
        recorded.rejected[f"{topic.topic} is no command: {why}"] += 1
        return {}
    if not np.isfinite(list(values.values())).all():
        recorded.rejected[f"{topic.topic} is not finite"] += 1
        return {}
    return values


def _series(pairs: list[tuple[float, float]]) -> Series:
    table = np.array(sorted(pairs, key=lambda pair: pair[0])).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _kind_of(why: str) -> str:
    """Return a reason without its numbers, so that reasons can be counted."""
    return re.sub(r"\b\d[\d.]*(e[-+]\d+)?", "…", printable(why.split("; ")[0], 300))
