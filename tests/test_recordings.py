# SPDX-License-Identifier: Apache-2.0
"""Recorded TurtleBot3 runs go through the control loop, flaws and all, and each tick says why."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from mpc_banded.config import Config
from mpc_banded.controller import CommandSource
from mpc_banded.loop import ControlLoop, Reason

pytestmark = pytest.mark.slow

#: A TurtleBot3 Burger is slower than the robot of config/unicycle.yaml.
BURGER = {
    "controller_frequency": 4.0,
    "use_header_stamps": False,  # one of the runs is stamped in whole seconds
    "horizon": 20,
    "dt": 0.1,
    "reference_speed": 0.2,
    "limits.v": [-0.2, 0.5],
    "limits.w": [-2.0, 2.0],
    "solver.max_iterations": 10,
}


def recorded(bag, topics):
    """(topic, record time in ns, message) in the order of recording."""
    with AnyReader([bag]) as reader:
        connections = [c for c in reader.connections if c.topic in topics]
        assert {c.topic for c in connections} == topics
        for connection, time_ns, data in reader.messages(connections):
            yield connection.topic, time_ns, reader.deserialize(data, connection.msgtype)


def odometry(pose, twist):
    """The fields of nav_msgs/Odometry from a PoseStamped and a TwistStamped."""
    return SimpleNamespace(
        header=pose.header,
        pose=SimpleNamespace(pose=pose.pose),
        twist=SimpleNamespace(twist=twist.twist),
    )


def replay(loop, events):
    """Hand recorded messages to the loop and tick at its rate; returns ticks and rejections.

    ``events`` are (input topic, time in ns, message).
    """
    ticks, rejected = [], []
    period_ns = round(1e9 * loop.config.period_s)
    next_ns = None
    for name, time_ns, message in events:
        next_ns = time_ns if next_ns is None else next_ns
        while next_ns < time_ns:
            ticks.append(loop.tick(next_ns))
            next_ns += period_ns
        refused = loop.on_message(name, message, time_ns)
        rejected += [refused] if refused else []
    return ticks, rejected


def assert_each_tick_is_answered(loop, ticks):
    for tick in ticks:
        assert isinstance(tick.code, Reason)
        assert tick.reason
        for name, value in tick.command.items():
            lower, upper = loop.config[f"limits.{name}"] if name in "vw" else (0.0, 0.0)
            assert lower <= value <= upper
        if tick.driving:
            assert np.isfinite(tick.step.plan.states).all()
            assert tick.step.source is not CommandSource.FALLBACK
        else:
            assert not any(tick.command.values())


def test_navigation_run_with_two_clocks_and_empty_plans(shared_bags):
    loop = ControlLoop(Config(BURGER | {"state_frame": "map"}))

    def events():
        twist = None
        for topic, time_ns, message in recorded(
            shared_bags / "turtlebot3_nav_sim" / "bag",
            {"/location", "/velocity", "/plan", "/local_plan"},
        ):
            if topic == "/velocity":
                twist = message
            elif topic == "/location" and twist is not None:
                yield "odom", time_ns, odometry(message, twist)
            elif topic == "/plan" or (topic == "/local_plan" and not message.poses):
                yield "plan", time_ns, message

    ticks, rejected = replay(loop, events())
    assert_each_tick_is_answered(loop, ticks)
    assert rejected == ["the path has 0 distinct points; it needs at least 2"] * 2
    codes = Counter(tick.code for tick in ticks)
    assert set(codes) == {Reason.NO_REFERENCE, Reason.DRIVING}
    assert codes[Reason.NO_REFERENCE] > 30  # the first plan comes after ten seconds
    assert codes[Reason.DRIVING] > 300


def test_teleoperated_run_follows_the_path_it_drove(shared_bags):
    loop = ControlLoop(Config(BURGER))
    messages = list(recorded(shared_bags / "turtlebot3_teleop_sim" / "bag", {"/odom"}))
    poses = [message.pose for _, _, message in messages[::10]]
    events = [("plan", messages[0][1], SimpleNamespace(poses=poses))]
    events += [("odom", time_ns, message) for _, time_ns, message in messages]
    ticks, rejected = replay(loop, events)
    assert_each_tick_is_answered(loop, ticks)
    assert not rejected
    assert {tick.code for tick in ticks} == {Reason.DRIVING}
    assert loop.tick(events[-1][1] + 10**9).code is Reason.FOLLOWING
    assert loop.tick(events[-1][1] + 10**10).code is Reason.HOLDING
