# SPDX-License-Identifier: Apache-2.0
"""The record of a cycle is read back exactly, and holds all that a replay needs."""

import math
from types import SimpleNamespace

import bags
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.record import Cycle, Journal, Receipt, solve_metrics
from mpc_banded.control.tick import Reason
from mpc_banded.ocp.solver import Status

names = st.from_regex(r"[a-z][a-z_/0-9]{0,8}", fullmatch=True)
numbers = st.floats(allow_nan=False)
times = st.integers(-(2**63), 2**63 - 1)
values = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.lists(numbers)
)
cycles = st.builds(
    Cycle,
    number=st.integers(0),
    now_ns=times,
    latency_s=numbers,
    iterations=st.none() | st.integers(0, 1000),
    deadline=st.booleans(),
    derivatives=st.sampled_from(["eager", "compiled"]),
    enabled=st.booleans(),
    starts=st.integers(0),
    resets=st.integers(0),
    received=st.lists(st.builds(Receipt, names, times, times)).map(tuple),
    changed=st.dictionaries(names, values),
    command=st.dictionaries(names, numbers),
    code=st.sampled_from([code.value for code in Reason]),
    reason=st.text(),
)


@given(cycles)
def test_what_is_written_is_read(cycle):
    pairs = cycle.values()
    assert all(isinstance(text, str) for pair in pairs.items() for text in pair)
    again = Cycle.parse(pairs)
    assert again == cycle
    assert again.values() == pairs  # signs of zero included


def test_what_is_not_a_number_is_written_too():
    cycle = Cycle.parse({**ONE.values(), "command.v": repr(math.nan)})
    assert math.isnan(cycle.command["v"])


def test_a_record_of_before_that_repeats_the_metrics_is_read():
    assert Cycle.parse({**ONE.values(), "figures.iterations": "3.0"}) == ONE


ONE = Cycle(3, 7, 0.01, None, True, "eager", True, 1, 0, (), {}, {"v": 0.1}, "driving", "why")


@pytest.mark.parametrize("key", ["cycle", "now_ns", "latency_s", "received", "changed", "code"])
def test_a_record_that_lacks_something_says_what(key):
    pairs = ONE.values()
    del pairs[key]
    with pytest.raises(ValueError, match=key):
        Cycle.parse(pairs)


def test_a_record_that_is_no_record():
    with pytest.raises(ValueError, match="cannot be read"):
        Cycle.parse({**ONE.values(), "received": "odom 12"})


def test_the_journal_tells_what_came_between_two_ticks():
    loop = ControlLoop(Config({"robot": "unicycle", "horizon": 10}))
    journal = Journal()
    for topic, time_ns, message in bags.drive(0.1):
        if topic in ("/odom", "/plan"):
            loop.on_message(topic[1:], message, time_ns + 3)
            journal.received(topic[1:], message, time_ns + 3)
    journal.changed({"weights.effort": 2.0})
    tick = loop.tick(time_ns + 10, deadline_s=math.inf, latency_s=0.002)
    first = journal.cycle(tick, deadline=True, enabled=True)
    journal.reset()
    journal.start()
    second = journal.cycle(tick, deadline=True, enabled=False)
    assert [r.topic for r in first.received] == ["plan"] + 5 * ["odom"]
    assert all(r.received_ns == r.stamp_ns + 3 for r in first.received)
    assert (first.now_ns, first.latency_s) == (time_ns + 10, 0.002)
    assert first.changed == {"weights.effort": 2.0}
    metrics = solve_metrics(tick)
    assert metrics["iterations"] == tick.step.iterations
    assert metrics["cost/position"] == tick.step.cost_terms["position"]
    # What can be had from a topic of its own is not in the record as well.
    assert not [key for key in first.values() if key.partition(".")[2] in metrics]
    assert (second.number, second.received, second.changed) == (1, (), {})
    assert (first.resets, second.resets, second.enabled) == (0, 1, False)
    assert (first.starts, second.starts) == (0, 1)


@pytest.mark.parametrize("status", list(Status))
def test_only_a_deadline_cuts_a_solve_off(status):
    step = SimpleNamespace(
        status=status, iterations=4, kkt_residual=0.0, defect_norm=0.0, cost_terms={}
    )
    tick = SimpleNamespace(
        now_ns=1, latency_s=0.0, step=step, command={}, code=Reason.DRIVING, reason="",
        state_age_s=math.inf,
    )  # fmt: skip
    cycle = Journal().cycle(tick, deadline=True, enabled=True)
    assert cycle.iterations == (4 if status is Status.DEADLINE else None)
