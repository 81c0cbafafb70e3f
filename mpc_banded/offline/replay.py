# SPDX-License-Identifier: Apache-2.0
"""Steps the control loop on a recorded bag's clock, as the node would have.

Where the bag holds the node's own records of its cycles (cycle.py), the replay repeats those: the
same messages before the same ticks, the same latency, the same cut at a deadline. Else it ticks
at ``controller_frequency`` from the first message on, with whatever has been recorded by then, on
a machine that is always in time. Neither looks at the machine's clock.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mpc_banded.codegen.trace import UnsupportedOperation
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.record import Cycle, Journal, solve_metrics
from mpc_banded.control.tick import Tick
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.transforms import Pose, TransformTree
from mpc_banded.robots.messages import frame_of, stamp_ns_of

#: In the reason of a rejection; without them, reasons of one kind can be counted.
NUMBER = re.compile(r"(?<![\w.])-?\d+(\.\d+)?(e-?\d+)?")
CYCLE_TYPE = "diagnostic_msgs/msg/DiagnosticArray"
TF, TF_TYPE = ("/tf", "/tf_static"), "tf2_msgs/msg/TFMessage"
#: How much later than the record of a cycle the messages it names may have been recorded.
STRAGGLING_NS = 500_000_000
#: Distance between the points of a path that was driven, in m.
SPACING_M = 0.05


@dataclass(frozen=True)
class Replayed:
    """One cycle of a replay.

    Attributes:
        tick: What the loop decided.
        cycle: The record of it, as the node would publish it.
        state: Newest named values of the state; empty before the first one.
        reference: Reference at the time of the tick, by name; empty where nothing was solved.
        plan_error: Distance of plan and reference, root of the mean square over the horizon and
            the reference's names (x and y of a path); NaN where there is no plan.
        recorded: Newest command in the bag by name; empty where there is none.
        original: What the bag's own record says of this cycle; None where there is none.
    """

    tick: Tick
    cycle: Cycle
    state: dict[str, float]
    reference: dict[str, float]
    plan_error: float
    recorded: dict[str, float]
    original: Cycle | None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the solve by name."""
        return solve_metrics(self.tick)


@dataclass
class Remarks:
    """What a user should know of a replay, beside its results.

    Attributes:
        notes: Sentences.
        rejected: Reason, with … for its numbers -> how many messages the loop rejected for it.
        missing: Messages that the node had and the bag has not.
        missing_until: Cycle before which the last of them came; -1 if there is none.
    """

    notes: list[str] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    missing_until: int = -1


class Replay:
    """A control loop that is driven by a bag.

    Args:
        bag: Open for reading.
        config: Of robot and loop; None takes the parameters that the bag has on record.
        overrides: Parameter -> value, in place of those.
        topics: Relative name of an input, the command, or ``cycle`` -> name in the bag. Names not
            given are looked for.
        compiled: Whether compiled derivatives are used, where they can be had. Bits are the same
            for the same choice; where the bag has records, its own choice is followed.
        transforms: (frame, frame within it) -> x, y, yaw, beside those of the bag's ``/tf``.
        plan: A CSV file with columns x and y, or ``driven`` for the path that the bag's robot
            took: a reference for a bag that has none.

    Attributes:
        loop: The control loop.
        names: Relative name -> name in the bag, of all topics that are used.
        frame: Of the state, as its messages say.
        exact: Whether the bag's own records are followed.
        remarks: Grows while ``cycles`` is consumed.

    Raises:
        BagError: A topic is missing or has another type.
        ConfigError: A parameter is unknown or its value not allowed.
    """

    def __init__(
        self,
        bag: Bag,
        config: Config | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
        topics: Mapping[str, str] | None = None,
        compiled: bool = True,
        transforms: Mapping[tuple[str, str], Pose] | None = None,
        plan: str | None = None,
    ) -> None:
        self.bag = bag
        self.remarks = Remarks(notes=list(bag.remarks))
        self._overrides = dict(overrides or {})
        given = dict(topics or {})
        record = bag.find("cycle", CYCLE_TYPE, given.pop("cycle", None))
        self.exact = record is not None
        first = self._first_cycle(record) if record else None
        base = config
        if base is None:
            if first is None or "robot" not in first.changed:
                raise BagError(
                    f"{bag.path} does not say which parameters were in effect; give them with "
                    "--params"
                )
            base = Config(first.changed)
        self._what_if = config is not None and first is not None and _differ(config, first)
        self._what_if |= bool(self._overrides)
        if self._what_if or not self.exact:
            # The recorded robot did not hear these commands, and need not move as they say.
            base = base.changed({"max_frozen_time": 0.0})
        self.loop = ControlLoop(base.changed(self._overrides) if self._overrides else base)
        self._frames = TransformTree()
        for (parent, child), pose in (transforms or {}).items():
            self._frames.place(parent, child, pose)
        self.loop.transform = self._frames
        if self._what_if and self.exact:
            self.remarks.notes.append(
                "the parameters differ from those on record: what a deadline cut off then is not "
                "repeated"
            )
        self._journal = Journal()
        self._compiled = compiled
        if compiled and not self.exact:
            self._compile()
        self.names = self._resolved(given, planned=plan is not None)
        if record:
            self.names["cycle"] = record
        self.names |= {t: t for t in TF if t in bag.topics and bag.topics[t].type == TF_TYPE}
        self._plan = self._planned(plan) if plan else None
        self.frame = ""
        self._values: dict[str, float] = {}
        self._recorded: dict[str, float] = {}
        self._turns = dict.fromkeys(self.loop.robot.cyclic, 0.0)

    def cycles(self) -> Iterator[Replayed]:
        """Tick by tick through the bag."""
        self._journal.changed(self.loop.config.values)
        return self._repeated() if self.exact else self._driven()

    def _driven(self) -> Iterator[Replayed]:
        """Tick at the loop's rate; each tick knows what was recorded before it."""
        start_ns, number = None, 0
        relative = {name: topic for topic, name in self.names.items()}
        for name, time_ns, message in self.bag.messages(list(relative), self._note_bad):
            topic = relative[name]
            if start_ns is None and topic in self.loop.input_topics:
                start_ns = time_ns
                if self._plan is not None:
                    self._hand("plan", self._plan, time_ns)
            while start_ns is not None and (next_ns := self._time(start_ns, number)) < time_ns:
                yield self._ticked(next_ns)
                number += 1
            self._hand(topic, message, time_ns)
        if start_ns is None:
            raise BagError(
                f"{self.bag.path} has no message on {', '.join(self.loop.input_topics)}; record "
                "while the robot runs"
            )
        yield self._ticked(self._time(start_ns, number))

    def _note_bad(self, topic: str, reason: str) -> None:
        """Count a message that cannot be read."""
        self.remarks.rejected[f"{topic} is {reason}"] += 1

    def _time(self, start_ns: int, number: int) -> int:
        return start_ns + round(1e9 * number * self.loop.config.period_s)

    def _repeated(self) -> Iterator[Replayed]:
        """Repeat the cycles on record."""
        relative = {name: topic for topic, name in self.names.items()}
        waiting: deque[tuple[int, Cycle]] = deque()
        stock: dict[str, deque[tuple[int, Any]]] = {t: deque() for t in self.loop.input_topics}
        last: Cycle | None = None
        for name, time_ns, message in self.bag.messages(list(relative), self._note_bad):
            while waiting and waiting[0][0] + STRAGGLING_NS < time_ns:
                _, cycle = waiting.popleft()
                yield self._again(cycle, last, stock)
                last = cycle
            topic = relative[name]
            if topic == "cycle":
                waiting.append((time_ns, _cycle_of(message)))
            elif topic in stock:
                stock[topic].append((time_ns, message))
            else:
                self._hand(topic, message, time_ns)
        for _, cycle in waiting:
            yield self._again(cycle, last, stock)
            last = cycle

    def _again(
        self, cycle: Cycle, last: Cycle | None, stock: Mapping[str, deque[tuple[int, Any]]]
    ) -> Replayed:
        """Bring the loop to where it was before a tick on record, and tick."""
        self._check_sequence(cycle, last)
        for topic, stamp_ns, received_ns in cycle.received:
            message = _taken(stock.get(topic, deque()), stamp_ns, received_ns)
            if message is None:
                self.remarks.missing += 1
                self.remarks.missing_until = cycle.number
                if self.remarks.missing == 1:
                    self.remarks.notes.append(
                        f"the bag lacks a message of {topic}, stamped {1e-9 * stamp_ns:.3f} s, "
                        f"that the node had before cycle {cycle.number}: commands after it may "
                        "differ; record on the machine of the node, with enough disk"
                    )
            else:
                self._hand(topic, message, received_ns)
        for queue in stock.values():  # older than anything that may still be asked for
            while queue and queue[0][0] < cycle.now_ns - 10 * STRAGGLING_NS and len(queue) > 1:
                queue.popleft()
        if last is None or cycle.starts > last.starts:
            self.loop.start()
        elif cycle.resets > last.resets:
            self.loop.reset()
        changed = {k: v for k, v in cycle.changed.items() if k not in self._overrides}
        if last is not None and changed:
            self.loop.adopt(self.loop.config.changed(changed))
            self._journal.changed(changed)
        self.loop.enabled = cycle.enabled
        if cycle.derivatives == "compiled" and self._journal.derivatives == "eager":
            self._compile()
        limit = None if self._what_if else cycle.iterations
        return self._ticked(cycle.now_ns, cycle.latency_s, limit, cycle)

    def _check_sequence(self, cycle: Cycle, last: Cycle | None) -> None:
        before = -1 if last is None else last.number
        if cycle.number != before + 1 and last is None:
            self.remarks.notes.append(
                f"the record begins with cycle {cycle.number}: what the loop had learnt before is "
                "not known, so the first commands may differ; start the recorder before the node"
            )
        elif cycle.number != before + 1:
            self.remarks.notes.append(
                f"cycles {before + 1} to {cycle.number - 1} are not on record: commands after "
                "them may differ"
            )

    def _ticked(
        self,
        now_ns: int,
        latency_s: float = 0.0,
        iterations: int | None = None,
        original: Cycle | None = None,
    ) -> Replayed:
        # A deadline that is never missed: the robot still stands until its first plan converged.
        deadline_s = math.inf if original is None or original.deadline else None
        tick = self.loop.tick(
            now_ns, deadline_s=deadline_s, latency_s=latency_s, iterations=iterations
        )
        cycle = self._journal.cycle(
            tick, deadline=deadline_s is not None, enabled=self.loop.enabled
        )
        reference, plan_error = self._reference(tick)
        # Records come later than the tick: by then another command has been heard.
        recorded = dict(self._recorded if original is None else original.command)
        return Replayed(tick, cycle, dict(self._values), reference, plan_error, recorded, original)

    def _hand(self, topic: str, message: Any, time_ns: int) -> None:
        """Give a message to the loop, or keep it to compare with."""
        robot = self.loop.robot
        if topic in TF:
            self._frames.take(message)
            return
        if topic == robot.command_topic.topic:
            try:
                self._recorded = dict(robot.command_topic.read(message))
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                self.remarks.rejected[f"{topic}: {error}"] += 1
            return
        rejected = self.loop.on_message(topic, message, time_ns)
        self._journal.received(topic, message, time_ns)
        if rejected:
            self.remarks.rejected[NUMBER.sub("…", rejected)] += 1
            return
        read = {state.topic: state.read for state in robot.state_topics}.get(topic)
        if read is not None:
            self.frame = frame_of(message) or self.frame
            self._values.update(self._unwrapped(read(message)))

    def _unwrapped(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values, with angles that go on where they were."""
        result = dict(values)
        for name in self._turns:
            if name in result and name in self._values:
                turns = round((self._values[name] - result[name]) / (2.0 * math.pi))
                result[name] += 2.0 * math.pi * turns
        return result

    def _reference(self, tick: Tick) -> tuple[dict[str, float], float]:
        """Where the robot should be now, and how far the plan is from where it should go."""
        if tick.step is None:
            return {}, math.nan
        robot, columns = self.loop.robot, self.loop.reference_ahead
        names = [name for name in robot.reference if name in columns]
        now = {name: float(columns[name][0]) for name in names}
        for name in set(names) & set(robot.cyclic) & set(self._values):
            now[name] += 2.0 * math.pi * round((self._values[name] - now[name]) / (2.0 * math.pi))
        common = [name for name in names if name in robot.states]
        judged = [name for name in common if name in ("x", "y")] or common
        plan = tick.step.plan.states
        rows = [plan[:, robot.states.index(name)] - columns[name] for name in judged]
        return now, float(np.sqrt(np.mean(np.square(rows)))) if rows else math.nan

    def _compile(self) -> None:
        if not self._compiled:
            return
        try:
            self.loop.controller.compile()
            self._journal.derivatives = "compiled"
        except (UnsupportedOperation, OSError, ValueError, RuntimeError) as error:
            self._compiled = False
            self.remarks.notes.append(
                f"derivatives stay eager, so this takes longer: {' '.join(str(error).split())}"
            )

    @property
    def derivatives(self) -> str:
        """Which derivatives are in use, eager or compiled."""
        return self._journal.derivatives

    def _first_cycle(self, record: str) -> Cycle | None:
        for _, _, message in self.bag.messages([record]):
            return _cycle_of(message)
        return None

    def _resolved(self, given: dict[str, str], planned: bool) -> dict[str, str]:
        """Names in the bag of all topics that are used."""
        robot, command = self.loop.robot, self.loop.config.command_topic
        kinds = {**self.loop.input_topics, command.topic: command.type}
        unknown = sorted(set(given) - set(kinds))
        if unknown:
            raise BagError(
                f"robot {robot.name!r} has no topic {', '.join(unknown)}; name one of "
                f"{', '.join(kinds)}, cycle"
            )
        states = {state.topic for state in robot.state_topics}
        names = {}
        for topic, kind in kinds.items():
            look = self.bag.need if topic in states else self.bag.find
            if found := look(topic, kind, given.get(topic)):
                names[topic] = found
        references = [topic.topic for topic in robot.reference_topics]
        heard = planned or set(references) & set(names)
        if not heard and self.loop.reference is None:
            self.remarks.notes.append(
                f"the bag has no reference on {' or '.join(references)}; name one with --topic, "
                "or give a path with --plan"
            )
        return names

    def _planned(self, plan: str) -> Any:
        """A message for the topic ``plan``."""
        if "plan" not in self.loop.input_topics:
            raise BagError(f"robot {self.loop.robot.name!r} follows no path; leave --plan out")
        points = self._way() if plan == "driven" else _read_points(Path(plan))
        self.names.pop("plan", None)
        level = SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
        poses = [
            SimpleNamespace(position=SimpleNamespace(x=x, y=y), orientation=level)
            for x, y in points
        ]
        return SimpleNamespace(poses=[SimpleNamespace(pose=pose) for pose in poses])

    def _way(self) -> list[tuple[float, float]]:
        """Points that the robot of the bag passed."""
        points: list[tuple[float, float]] = []
        topics = {self.names[t.topic]: t for t in self.loop.robot.state_topics}
        for name, _, message in self.bag.messages(list(topics)):
            values = topics[name].read(message)
            if {"x", "y"} <= set(values):
                point = (float(values["x"]), float(values["y"]))
                is_new = not points or math.dist(points[-1], point) > SPACING_M
                if is_new and np.isfinite(point).all():
                    points.append(point)
        return points


def _differ(config: Config, first: Cycle) -> bool:
    return any(config.values.get(k) != v for k, v in first.changed.items())


def _cycle_of(message: Any) -> Cycle:
    try:
        return Cycle.parse({pair.key: pair.value for pair in message.status[0].values})
    except (IndexError, ValueError) as error:
        raise BagError(
            f"the record of a cycle in the bag is not of this version of the package: {error}; "
            "name another topic than that with --topic cycle:=/NAME"
        ) from error


def _taken(queue: deque[tuple[int, Any]], stamp_ns: int, received_ns: int) -> Any:
    """Take the message that was received then out of a queue, and all before it."""
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


def _read_points(file: Path) -> list[tuple[float, float]]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return [(float(row["x"]), float(row["y"])) for row in csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise BagError(
            f"{file} cannot be read as a path: {error!r}; allowed are CSV files with columns x "
            "and y"
        ) from error
