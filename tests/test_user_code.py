# SPDX-License-Identifier: Apache-2.0
"""When functions of the user raise, the message is rejected or the robot falls back."""

from dataclasses import replace

import pytest
from loop_messages import AHEAD, fields, header, ns, odometry

from mpc_banded.control.config import Config
from mpc_banded.control.errors import UserCodeError, user_code
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.path import GoalReference
from mpc_banded.control.tick import Reason
from mpc_banded.robots.messages import ReferenceTopic, StateTopic
from mpc_banded.robots.unicycle import unicycle

PERIOD = 0.05
ERRORS = [RuntimeError("torch"), AssertionError(), MemoryError(), KeyError("x"), OSError(5)]


class Trap:
    """A function that raises once it is set."""

    def __init__(self, function):
        self.function, self.error = function, None

    def __call__(self, *given, **more):
        return self.sprung(*given, **more) if self.error else self.function(*given, **more)

    def sprung(self, *_, **__):
        raise self.error


def driving(monkeypatch, robot, seconds=0.2, **parameters):
    """A loop of that robot that has driven ahead, and the time."""
    monkeypatch.setattr("mpc_banded.control.config.load_robot", lambda _: robot)
    given = {"horizon": 4, "dt": 0.1, "fallback.follow_time": 0.1, "fallback.slow_time": 0.2}
    loop = ControlLoop(Config(given | parameters))
    loop.on_message(robot.reference_topics[0].topic, AHEAD, 0)
    for k in range(round(seconds / PERIOD)):
        assert loop.on_message("odom", odometry(x=0.01 * k, v=0.2), ns(PERIOD * k)) is None
        assert loop.tick(ns(PERIOD * k)).driving
    return loop, seconds


def ticks(loop, now, seconds=1.0):
    result = []
    for k in range(round(seconds / PERIOD)):
        loop.on_message("odom", odometry(x=0.2 + 1e-3 * k, v=0.2), ns(now + PERIOD * k))
        result.append(loop.tick(ns(now + PERIOD * k)))
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "error"),
    [*zip(["actuate", "command", "dynamics", "cost"], ERRORS, strict=False)],
    ids=str,
)
def test_function_that_raises_ends_in_the_fallback_and_is_named(monkeypatch, what, error):
    if what == "cost":
        trap = Trap(unicycle.stage_costs["effort"])
        robot = replace(unicycle, stage_costs={**unicycle.stage_costs, "effort": trap})
    else:
        trap = Trap(getattr(unicycle, what))
        robot = replace(unicycle, **{what: trap})
    loop, now = driving(monkeypatch, robot, actuation_delay=0.1)
    trap.error = error
    fallen = ticks(loop, now)
    codes = [tick.code for tick in fallen]
    assert Reason.DRIVING not in codes
    assert codes[-1] is Reason.HOLDING
    assert fallen[-1].command == loop.stop_command() == {"v": 0.0, "w": 0.0}
    assert all(repr(error) in tick.reason and "sprung" in tick.reason for tick in fallen)
    trap.error = None
    assert ticks(loop, now + 0.5, 0.1)[-1].driving


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_message_whose_read_raises_is_rejected_with_the_error(monkeypatch, error):
    read = Trap(None)
    read.error = error
    robot = replace(
        unicycle,
        state_message=(StateTopic("state", "std_msgs/msg/Float64MultiArray", read),),
        reference_message=(ReferenceTopic("way", "nav_msgs/msg/Path", read),),
    )
    monkeypatch.setattr("mpc_banded.control.config.load_robot", lambda _: robot)
    loop = ControlLoop(Config({"horizon": 4}))
    for topic in ("state", "way"):
        why = loop.on_message(topic, fields(data=[1.0]), 0)
        assert why.startswith(f"{topic} cannot be read: {error!r} (in sprung, test_user_code.py:")


class Unprintable(Exception):
    def __repr__(self):
        raise ValueError


@pytest.mark.parametrize("error", [*ERRORS, ValueError("x\n\x1b[2J" * 10_000), Unprintable()])
def test_whatever_raises_in_a_cycle_ends_in_the_fallback_and_is_named(monkeypatch, error):
    loop, now = driving(monkeypatch, unicycle)
    monkeypatch.setattr(loop.controller, "step", Trap(None))
    loop.controller.step.error = error
    gate = Trap(None)
    gate.error = error
    for place, broken in (("the solve failed", loop), ("the cycle failed", None)):
        if broken is None:
            loop._gates.insert(0, gate)
        tick = ticks(loop, now)[-1]
        assert tick.code is Reason.HOLDING
        assert tick.command == loop.stop_command()
        assert place in tick.reason
        assert tick.reason.isprintable()
        assert len(tick.reason) < 1000
        now += 1.0


def test_reference_of_the_user_that_raises_ends_in_the_fallback(monkeypatch):
    loop, now = driving(monkeypatch, unicycle)

    broken = GoalReference(0.0, 0.0, 0.0)
    broken.columns = Trap(None)
    broken.columns.error = RuntimeError("mine")
    loop.reference = broken
    tick = ticks(loop, now)[-1]
    assert tick.code is Reason.HOLDING
    assert "(in sprung, test_user_code.py:" in tick.reason


def test_interrupts_pass():
    with pytest.raises(KeyboardInterrupt), user_code("nothing"):
        raise KeyboardInterrupt
    expected = pytest.raises(UserCodeError, match=r"^inner: ValueError\(1\)")
    with expected, user_code("outer"), user_code("inner"):
        raise ValueError(1)


def test_messages_too_long_to_be_read_in_time_are_refused_by_their_length_alone():
    class Long(list):
        def __iter__(self):
            raise AssertionError("read")

    stamp, long = header(), Long([None] * 10_000_000)
    base, arm = (ControlLoop(Config({"robot": n, "horizon": 3})) for n in ("unicycle", "cartpole"))
    for loop, topic, message in (
        (base, "plan", fields(header=stamp, poses=Long([None] * 200_000))),
        (arm, "joint_states", fields(header=stamp, name=Long([""] * 10_000))),
        (
            arm,
            "joint_trajectory",
            fields(header=stamp, joint_names=Long([""] * 10_000), points=[]),
        ),
        (arm, "joint_trajectory", fields(header=stamp, joint_names=["pole"], points=long)),
    ):
        why = loop.on_message(topic, message, 0)
        assert "; allowed are up to " in why
