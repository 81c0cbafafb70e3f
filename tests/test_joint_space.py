# SPDX-License-Identifier: Apache-2.0
"""An arm of any number of joints follows joint trajectories within all its limits."""

from types import SimpleNamespace

import numpy as np
import pytest
from loop_messages import fields, header, ns

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.tick import Reason
from mpc_banded.robots.messages import fill_joint_state

PERIOD = 0.05
SEVEN = [f"joint{i}" for i in range(1, 8)]


def trajectory(joints, *points, stamp_s=0.0):
    """The fields of a JointTrajectory; points are (time, positions) or with velocities."""
    told = [
        fields(
            time_from_start=fields(sec=int(t), nanosec=ns(t - int(t))),
            positions=list(q),
            velocities=list(*v),
        )
        for t, q, *v in points
    ]
    return fields(header=header(stamp_s), joint_names=list(joints), points=told)


def joint_states(values):
    message = SimpleNamespace(header=header())
    fill_joint_state(message, values)
    return message


def drive(seconds, message, joints=SEVEN, command="joint_trajectory", **parameters):
    """Closed loop from the origin; states by time (K, 2 n), and the ticks."""
    config = Config({"robot": "joint_space", "joints": joints, "command": command} | parameters)
    loop, robot = ControlLoop(config), Simulation(config)
    assert loop.on_message("joint_trajectory", message, 0) is None
    states, ticks = [], []
    for k in range(round(seconds / PERIOD)):
        assert loop.on_message("joint_states", joint_states(robot.values), ns(PERIOD * k)) is None
        ticks.append(loop.tick(ns(PERIOD * k)))
        states.append(robot.state.copy())
        robot.advance(ticks[-1].command, PERIOD)
    return loop, np.array(states), ticks


GOAL = np.array([0.5, -0.5, 1.0, -1.0, 0.3, 0.0, 0.8])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["joint_trajectory", "velocity"])
def test_seven_joints_reach_their_goal_within_every_limit(command):
    loop, states, ticks = drive(3.0, trajectory(SEVEN, (0.0, GOAL)), command=command)
    assert states[-1, :7] == pytest.approx(GOAL, abs=0.02)
    assert all(tick.driving for tick in ticks)
    assert np.abs(states[:, 7:]).max() <= 2.0 + 1e-3
    assert np.abs(np.diff(states[:, 7:], axis=0)).max() <= 5.0 * PERIOD + 1e-3
    for tick in ticks:
        for name, value in tick.command.items():
            lower, upper = loop.config.parameters.limits[name.partition("@")[0]]
            assert lower <= value <= upper


@pytest.mark.slow
def test_trajectory_is_followed_in_time_and_not_to_its_end_at_once():
    points = [(t, GOAL * t / 3.0, GOAL / 3.0) for t in (0.0, 1.0, 2.0, 3.0)]
    _, states, ticks = drive(4.0, trajectory(SEVEN, *points))
    expected = np.minimum(np.arange(len(states)) * PERIOD / 3.0, 1.0)[:, None] * GOAL
    assert np.abs(states[10:, :7] - expected[10:]).max() < 0.05
    assert "the reference has ended" in ticks[-1].reason
    assert "the reference has ended" not in ticks[20].reason


def test_command_is_the_plan_at_a_few_times():
    loop, _, ticks = drive(0.2, trajectory(SEVEN, (0.0, GOAL)))
    plan, command = ticks[-1].step.plan, ticks[-1].command
    times = sorted({float(name.partition("@")[2]) for name in command})
    assert times == pytest.approx([plan.dt * (k + 1) for k in range(5)])
    for t in times:
        there = [command[f"{name}@{t:.9g}"] for name in loop.robot.states]
        assert there == pytest.approx(plan.state_at(t).tolist())


@pytest.mark.parametrize("command", ["joint_trajectory", "velocity"])
def test_arm_that_is_left_alone_brakes_within_its_limits_and_stays_where_it_is(command):
    loop, _, _ = drive(0.5, trajectory(SEVEN, (0.0, GOAL)), command=command)
    after = [loop.tick(ns(0.5 + PERIOD * k)) for k in range(60)]
    codes = [tick.code for tick in after]
    assert {Reason.FOLLOWING, Reason.SLOWING, Reason.HOLDING} <= set(codes)
    suffix = (
        f"@{min(n.partition('@')[2] for n in after[0].command)}"
        if "@" in str(after[0].command)
        else ""
    )
    rates = np.array([[t.command[f"{n}_velocity{suffix}"] for n in SEVEN] for t in after])
    braking = codes.index(Reason.SLOWING)
    assert np.abs(np.diff(rates[braking - 1 :], axis=0)).max() <= 5.0 * PERIOD + 1e-9
    assert not rates[-1].any()
    if suffix:
        place = np.array([[t.command[f"{n}{suffix}"] for n in SEVEN] for t in after])
        assert np.abs(place[-1]).max() > 0.05  # not sent home
        assert np.abs(np.diff(place, axis=0)).max() <= 2.0 * PERIOD + 0.05


def test_arm_moves_nowhere_before_it_is_told_to():
    loop = ControlLoop(Config({"robot": "joint_space"}))
    bent = dict.fromkeys(loop.robot.states, 0.0) | dict.fromkeys(SEVEN, 0.5)
    loop.on_message("joint_states", joint_states(bent), 0)
    tick = loop.tick(0)
    assert (tick.code, tick.command) == (Reason.NO_REFERENCE, {})


def test_stop_of_an_arm_that_was_never_sent_anything_moves_it_nowhere():
    loop = ControlLoop(Config({"robot": "joint_space"}))
    assert loop.stop_command() == {}
    assert loop.tick(0).command == {}


def test_any_number_and_any_names_of_joints_in_any_order():
    names = ["hip", "knee"]
    _, states, _ = drive(3.0, trajectory(["knee", "hip"], (0.0, [0.2, -0.4])), joints=names)
    assert states[-1, :2] == pytest.approx([-0.4, 0.2], abs=0.02)
    config = Config({"robot": "joint_space", "joints": names, "limits.knee": [-0.1, 0.1]})
    assert config.robot is config.changed({"limits.hip": [-1.0, 1.0]}).robot
    with pytest.raises(ConfigError, match="joints is"):
        config.changed({"joints": ["hip"]})


@pytest.mark.parametrize("joints", [[], ["a", "a"], ["a", 1], "a", [""]])
def test_names_of_joints_must_be_names(joints):
    with pytest.raises(ConfigError, match="allowed are lists of one or more different names"):
        Config({"robot": "joint_space", "joints": joints})


def test_unknown_kind_of_command_is_refused():
    with pytest.raises(ConfigError, match="command is 'smoke'; allowed are one of"):
        Config({"robot": "joint_space", "command": "smoke"})
