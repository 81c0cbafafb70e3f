# SPDX-License-Identifier: Apache-2.0
"""Steps the control loop on the clock of a recording, as the node would have.

If the recording holds the node's own records of its cycles (control/record.py), the replay
repeats them: the same messages before the same ticks, the same latency, the same cut at a
deadline. Otherwise it ticks at ``controller_frequency`` from the first message on, with the
messages recorded by then, on a machine that is always in time. Neither reads the machine's clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpc_banded.codegen.build import machine
from mpc_banded.codegen.trace import UnsupportedOperation
from mpc_banded.control.config import Config
from mpc_banded.control.errors import reason_for_rejection
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.record import Cycle, Journal, solve_metrics
from mpc_banded.control.tick import Tick
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.borrowed_plan import borrowed_plan
from mpc_banded.offline.recorded_node import (
    CYCLE_TYPE,
    RecordError,
    Stock,
    cycle_of,
    find_topics,
    first_cycle,
    recorded_config,
)
from mpc_banded.offline.remarks import Clocks, Remarks
from mpc_banded.offline.tracking import difference, plan_errors
from mpc_banded.offline.transforms import Pose, TransformTree
from mpc_banded.robots.messages import frame_of, stamp_ns_of

TF, TF_TYPE = ("/tf", "/tf_static"), "tf2_msgs/msg/TFMessage"
#: Latest time after the record of a cycle at which its messages may have been recorded.
STRAGGLING_NS = 500_000_000
#: Time for which the loop ticks on in a silence; by then the robot stands.
SILENCE_NS = 10_000_000_000


@dataclass(frozen=True)
class Replayed:
    """One cycle of a replay.

    Attributes:
        tick: What the loop decided.
        cycle: Its record, as the node would publish it.
        state: Newest state estimate by name; empty before the first one.
        reference: Reference at the time of the tick, by name; empty if nothing was solved.
        plan_errors: Root mean square distance of the plan from its reference over the horizon, by
            name (tracking.py); empty if there is no plan.
        recorded: Newest command in the recording by name; empty if there is none.
        original: The recording's own record of this cycle; None if there is none.
    """

    tick: Tick
    cycle: Cycle
    state: dict[str, float]
    reference: dict[str, float]
    plan_errors: dict[str, float]
    recorded: dict[str, float]
    original: Cycle | None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the solve by name."""
        return solve_metrics(self.tick)


@dataclass(frozen=True)
class Options:
    """Options of a replay.

    Attributes:
        overrides: Parameter -> value, in place of those of the file or the record.
        topics: Relative name of an input, the command, or ``cycle`` -> name in the recording.
            The replay finds those that are not given.
        compiled: Whether to use compiled derivatives if possible. Results are equal to the last
            bit for the same choice; records in the recording overrule it.
        transforms: (frame, frame within it) -> x, y, yaw, beside those of ``/tf``.
        plan: A CSV file with columns x and y, or ``driven`` for the path that the recorded robot
            took: a reference for a recording that has none.
        window_s: Time over which errors of plans are taken, in s; None takes the horizon.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    compiled: bool = True
    transforms: Mapping[tuple[str, str], Pose] = field(default_factory=dict)
    plan: str | None = None
    window_s: float | None = None


class Replay:
    """A control loop that is driven by a recording.

    Args:
        bag: The recording, open for reading.
        config: Configuration of robot and loop; None takes the recorded parameters.
        options: Fields of Options.

    Attributes:
        loop: The control loop.
        names: Relative name -> name in the recording, of all topics that are used.
        frame: Frame of the state in its messages.
        exact: Whether the replay follows the records of the cycles.
        recorded_on: Processor and C library of the node by its record; empty if unknown.
        remarks: Grows while ``cycles`` is consumed.

    Raises:
        BagError: A topic is missing or has another type, or the recording names code.
        ConfigError: A parameter is unknown or its value not allowed.
    """

    def __init__(self, bag: Bag, config: Config | None = None, **options: Any) -> None:
        self.bag = bag
        self.remarks = Remarks(notes=bag.remarks)
        self._options = Options(**options)
        overrides, given = dict(self._options.overrides), dict(self._options.topics)
        record, first = self._record(given.pop("cycle", None), config is not None)
        self.exact = record is not None
        base = config or recorded_config(bag, first, overrides)
        self._overrides = {k: v for k, v in overrides.items() if base.values.get(k) != v}
        self._what_if = bool(self._overrides)
        if config is not None and first is not None:
            self._what_if |= any(config.values.get(k) != v for k, v in first.changed.items())
        if self._what_if or not self.exact:
            # The recorded robot did not get these commands, and need not follow them.
            base = base.changed({"max_frozen_time": 0.0})
        self.loop = ControlLoop(base.changed(overrides) if overrides else base)
        self.loop.transform = self._frames = TransformTree()
        for (parent, child), pose in self._options.transforms.items():
            self._frames.place(parent, child, pose)
        if self._what_if and self.exact:
            self.remarks.note(
                "the parameters differ from those on record: what a deadline cut off then is not "
                "repeated"
            )
        self.recorded_on = first.machine if first is not None else ""
        self.remarks.compare_machines(self.recorded_on, machine())
        self._journal = Journal()
        self._may_compile = self._options.compiled
        if not self.exact:
            self._compile()
        self._find_topics(given, record)
        self.frame = ""
        self._recorded: dict[str, float] = {}
        self._heard = 0
        self._clocks = Clocks(self.loop.config.parameters.max_state_age)

    def _record(self, given: str | None, has_parameters: bool) -> tuple[str | None, Cycle | None]:
        """Return the topic of the records and the first of them, if they can be followed."""
        topic = self.bag.find("cycle", CYCLE_TYPE, given)
        try:
            return topic, first_cycle(self.bag, topic) if topic else None
        except RecordError as error:
            if given is not None or not has_parameters:
                raise
            self.remarks.note(f"{topic} is not followed: {error}")
            return None, None

    def _find_topics(self, given: Mapping[str, str], record: str | None) -> None:
        plan, bag, robot = self._options.plan, self.bag, self.loop.robot
        self.names = find_topics(
            bag,
            self.loop,
            given,
            self.remarks,
            has_plan=plan is not None,
            has_record=record is not None,
        )
        self._plan = None
        if plan is not None:
            if "plan" not in self.loop.input_topics:
                raise BagError(f"robot {robot.name!r} follows no path; leave --plan out")
            states = {self.names[topic.topic]: topic for topic in robot.state_topics}
            self._plan = borrowed_plan(plan, bag, states)
            self.names.pop("plan", None)
        if record:
            self.names["cycle"] = record
        self.names |= {t: t for t in TF if t in bag.topics and bag.topics[t].type == TF_TYPE}

    def cycles(self) -> Iterator[Replayed]:
        """Yield one cycle after the other, through the whole recording."""
        self._journal.changed(self.loop.config.values)
        yield from self._repeated() if self.exact else self._driven()
        for sentence in (*self.bag.remarks, *self._sentences_on_clocks()):
            self.remarks.note(sentence)
        states = [self.names[topic.topic] for topic in self.loop.robot.state_topics]
        if not self._heard:
            why = next((f"; {reason}" for reason in self.remarks.rejected), "")
            raise BagError(
                f"{self.bag.path} has no message on {', '.join(states)} that can be read{why}; "
                "record while the robot runs, or name another topic with --topic"
            )

    def _sentences_on_clocks(self) -> list[str]:
        return self._clocks.sentences if self.loop.config.parameters.use_header_stamps else []

    def _messages(self) -> Iterator[tuple[str, int, Any]]:
        """Yield (relative name, time of recording, message) of all topics that are used."""
        relative = {name: topic for topic, name in self.names.items()}
        for name, time_ns, message in self.bag.messages(list(relative), self._reject):
            yield relative[name], time_ns, message

    def _reject(self, topic: str, reason: str) -> None:
        self.remarks.reject(f"{topic} is {reason}")

    def _driven(self) -> Iterator[Replayed]:
        """Yield ticks at the loop's rate; each tick knows the messages recorded before it."""
        start_ns, number, last_ns = None, 0, 0
        for topic, time_ns, message in self._messages():
            if start_ns is None and topic in self.loop.input_topics:
                start_ns = last_ns = time_ns
                if self._plan is not None:
                    self._hand("plan", self._plan, time_ns)
            if start_ns is not None:
                until_ns = min(time_ns, last_ns + SILENCE_NS)
                while (next_ns := self._time(start_ns, number)) < until_ns:
                    yield self._tick(next_ns)
                    number += 1
                if until_ns < time_ns:
                    self.remarks.skip(last_ns, time_ns)
                    start_ns, number = time_ns, 0
                last_ns = time_ns
            self._hand(topic, message, time_ns)
        if start_ns is not None:
            yield self._tick(self._time(start_ns, number))

    def _time(self, start_ns: int, number: int) -> int:
        return start_ns + round(1e9 * number * self.loop.config.period_s)

    def _repeated(self) -> Iterator[Replayed]:
        """Yield the recorded cycles, repeated."""
        waiting: deque[tuple[int, Cycle]] = deque()
        stock = Stock(self.loop.input_topics, 10 * STRAGGLING_NS)
        last: Cycle | None = None
        for topic, time_ns, message in self._messages():
            while waiting and waiting[0][0] + STRAGGLING_NS < time_ns:
                _, cycle = waiting.popleft()
                yield self._repeat(cycle, last, stock)
                last = cycle
            if topic == "cycle":
                waiting.append((time_ns, cycle_of(message)))
            elif topic in stock:
                stock.put(topic, time_ns, message)
            else:
                self._hand(topic, message, time_ns)
        for _, cycle in waiting:
            yield self._repeat(cycle, last, stock)
            last = cycle

    def _repeat(self, cycle: Cycle, last: Cycle | None, stock: Stock) -> Replayed:
        """Bring the loop to its state before a recorded tick, and tick."""
        self.remarks.compare_sequence(cycle, last)
        for topic, stamp_ns, received_ns in cycle.received:
            message = stock.take(topic, stamp_ns, received_ns)
            if message is None:
                self.remarks.lack(topic, stamp_ns, cycle.number)
            else:
                self._hand(topic, message, received_ns)
        stock.forget(cycle.now_ns)
        if last is None or cycle.starts > last.starts:
            self.loop.start()
        elif cycle.resets > last.resets:
            self.loop.reset()
        changed = {k: v for k, v in cycle.changed.items() if k not in self._overrides}
        if last is not None and changed:
            self.loop.adopt(self.loop.config.changed(changed))
            self._journal.changed(changed)
        self.loop.enabled = cycle.enabled
        if cycle.derivatives == "compiled" and self.derivatives == "eager":
            self._compile()
        limit = None if self._what_if else cycle.iterations
        return self._tick(cycle.now_ns, cycle.latency_s, limit, cycle)

    def _tick(
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
        # Records come after the tick, when another command may have been recorded already.
        recorded = dict(self._recorded if original is None else original.command)
        state = self.loop.state
        reference, errors = _reference(self.loop, tick, state, self._options.window_s)
        return Replayed(tick, cycle, state, reference, errors, recorded, original)

    def _hand(self, topic: str, message: Any, time_ns: int) -> None:
        """Give a message to the loop, or keep it to compare with."""
        robot = self.loop.robot
        if topic in TF:
            self._frames.take(message)
            return
        if topic == robot.command_topic.topic:
            if why := reason_for_rejection(self._keep_command, message):
                self.remarks.reject(f"{topic}: {why}")
            return
        rejected = self.loop.on_message(topic, message, time_ns)
        self._journal.received(topic, message, time_ns)
        if topic in {state.topic for state in robot.state_topics}:
            self._heard += 1
            self._clocks.take(topic, stamp_ns_of(message), time_ns)
            if not rejected:
                self.frame = frame_of(message) or self.frame
        if rejected:
            self.remarks.reject(rejected)

    def _keep_command(self, message: Any) -> None:
        self._recorded = dict(self.loop.robot.command_topic.read(message))

    def _compile(self) -> None:
        if not self._may_compile:
            return
        try:
            self.loop.controller.compile()
            self._journal.derivatives = "compiled"
        except (UnsupportedOperation, OSError, ValueError, RuntimeError) as error:
            self._may_compile = False
            self.remarks.note(
                f"derivatives stay eager, so this takes longer: {' '.join(str(error).split())}"
            )

    @property
    def derivatives(self) -> str:
        """Derivatives in use, eager or compiled."""
        return self._journal.derivatives


def _reference(
    loop: ControlLoop, tick: Tick, state: Mapping[str, float], window_s: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the reference now, and the errors of the plan from the reference, by name."""
    if tick.step is None:
        return {}, {}
    robot, ahead = loop.robot, loop.reference_ahead
    columns = {name: ahead[name] for name in robot.reference if name in ahead}
    now = {name: float(column[0]) for name, column in columns.items()}
    for name in set(now) & set(robot.cyclic) & set(state):  # the same angle, near the state's
        now[name] = state[name] + float(difference(now[name], state[name], is_angle=True))
    plan = tick.step.plan
    rows = {name: plan.states[:, i] for i, name in enumerate(robot.states)}
    return now, plan_errors(rows, columns, robot.cyclic, plan.dt, window_s)
