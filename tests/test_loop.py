# SPDX-License-Identifier: Apache-2.0
"""The loop answers every sequence of events with an allowed command and its reason."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.tick import Reason
from mpc_banded.ocp.comb import BandwidthError
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.robots.messages import fill_joint_state, fill_odometry, set_yaw
from mpc_banded.robots.planar import Footprint

SHORT = {"horizon": 8, "dt": 0.1, "max_state_age": 0.305, "solver.max_iterations": 20}


def fields(**values):
    return SimpleNamespace(**values)


def vector():
    return fields(x=0.0, y=0.0, z=0.0, w=1.0)


def pose(x, y, yaw=0.0):
    result = fields(position=fields(x=x, y=y, z=0.0), orientation=vector())
    set_yaw(result.orientation, yaw)
    return fields(pose=result)


def odometry(**values):
    twist = fields(twist=fields(linear=vector(), angular=vector()))
    message = fields(pose=pose(0.0, 0.0), twist=twist)
    fill_odometry(message, {"x": 0.0, "y": 0.0, "yaw": 0.0} | values)
    return message


def plan(*points):
    return fields(poses=[pose(x, y) for x, y in points])


AHEAD = plan((0.0, 0.0), (5.0, 0.0))


def unicycle(**more):
    return ControlLoop(Config(SHORT | more))


@pytest.fixture
def loop():
    """A loop that has all it needs to drive at time 0."""
    loop = unicycle()
    assert loop.on_message("odom", odometry(), 0) is None
    assert loop.on_message("plan", AHEAD, 0) is None
    return loop


def ns(seconds):
    return round(1e9 * seconds)


def assert_allowed(loop, command):
    for name, value in command.items():
        lower, upper = loop.config.values.get(f"limits.{name}", (-math.inf, math.inf))
        assert math.isfinite(value)
        assert lower <= value <= upper


def assert_stopped(loop, tick, code, text):
    assert (tick.code, tick.driving, tick.step) == (code, False, None)
    assert tick.command == loop.stop_command()
    assert text in tick.reason


class ObviousRules:
    """When the loop shall drive, spelled out: the twin of its decisions."""

    def __init__(self):
        self.state_at, self.has_reference, self.enabled = None, False, True
        self.heard_at = 0.0

    def code(self, now):
        if not self.enabled:
            return Reason.DISABLED
        if self.state_at is None:
            return Reason.NO_STATE
        if now < self.state_at or now - self.state_at > 0.305:
            return Reason.HOLDING
        return Reason.DRIVING if self.has_reference else Reason.NO_REFERENCE


EVENTS = st.one_of(
    st.tuples(st.just("state"), st.floats(-20.0, 20.0)),
    st.tuples(st.just("bad state"), st.sampled_from([math.nan, math.inf])),
    st.tuples(st.just("plan"), st.floats(0.5, 5.0)),
    st.tuples(st.just("bad plan"), st.sampled_from([math.nan, math.inf, 1e300])),
    st.tuples(st.just("enable"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.1, 0.2, 0.5, 30.0, -0.05, -5.0])),
    *[st.tuples(st.just("tick"), st.just(0))] * 3,
)
READY = [("state", 0.5), ("plan", 2.0), ("tick", 0)]


@pytest.mark.slow
@settings(max_examples=25)
@given(start=st.sampled_from([[], READY]), events=st.lists(EVENTS, min_size=8, max_size=20))
def test_every_tick_follows_the_obvious_rules_with_an_allowed_command(start, events):
    at_once = {"fallback.follow_time": 0.0, "fallback.slow_time": 0.0, "jump_margin": 100.0}
    loop, rules, now = unicycle(**at_once), ObviousRules(), 100.0
    for k, (event, value) in enumerate([*start, *events, ("tick", 0)]):
        if event == "state":
            assert (
                loop.on_message(
                    "odom", odometry(x=value + 1e-3 * k, yaw=value, v=0.1 * value), ns(now)
                )
                is None
            )
            rules.state_at = rules.heard_at = now
        elif event == "bad state":
            assert "not finite" in loop.on_message("odom", odometry(v=value), ns(now))
            if now < rules.heard_at:  # the clock went back, and what is known with it
                rules.state_at = None
            rules.heard_at = now
        elif event == "plan":
            assert loop.on_message("plan", plan((0.0, 0.0), (value, 1.0)), 0) is None
            rules.has_reference = True
        elif event == "bad plan":
            assert loop.on_message("plan", plan((0.0, 0.0), (value, 0.0)), 0)
        elif event == "enable":
            loop.enabled = rules.enabled = value
        elif event == "wait":
            now = round(now + value, 2)
        else:
            tick = loop.tick(ns(now))
            assert tick.code is rules.code(now)
            assert tick.reason
            assert (tick.step is None) == (tick.code is not Reason.DRIVING)
            assert_allowed(loop, tick.command)


def test_each_lack_has_its_reason(loop):
    fresh = unicycle()
    assert_stopped(fresh, fresh.tick(0), Reason.NO_STATE, "waiting for the first odom")
    fresh.on_message("odom", odometry(), 0)
    lack = "waiting for a reference on plan or goal_pose"
    assert_stopped(fresh, fresh.tick(0), Reason.NO_REFERENCE, lack)
    assert loop.tick(ns(0.3)).driving
    loop.enabled = False
    assert_stopped(loop, loop.tick(ns(0.1)), Reason.DISABLED, "disabled")


@pytest.mark.parametrize("name", ["x", "y", "v", "w"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_state_that_is_not_finite_is_refused_by_name_and_counts_as_none(loop, name, value):
    assert loop.on_message("odom", odometry(**{name: value}), ns(0.2)) == (
        f"{name} of the state message is not finite"
    )
    tick = loop.tick(ns(0.4))
    assert tick.code is Reason.HOLDING
    assert tick.state_age_s == pytest.approx(0.4)
    assert tick.reason.endswith(f"rejected: {name} of the state message is not finite")
    assert loop.on_message("odom", odometry(), ns(0.4)) is None
    assert loop.tick(ns(0.4)).driving


def test_orientation_without_length_is_no_state():
    message = odometry()
    message.pose.pose.orientation.w = 0.0
    assert unicycle().on_message("odom", message, 0) == "yaw of the state message is not finite"


@pytest.mark.parametrize(
    ("topic", "message", "reason"),
    [
        ("plan", plan((1.0, 1.0), (1e300, 1.0)), "allowed are up to 1e+07 m"),
        ("plan", plan((1.0, 1.0), (math.nan, 1.0)), "not finite"),
        ("goal_pose", pose(math.inf, 0.0), "not finite"),
    ],
)
def test_reference_that_is_none_is_refused_and_the_last_one_stays(loop, topic, message, reason):
    before = loop.reference
    assert reason in loop.on_message(topic, message, 0)
    assert loop.reference is before
    assert loop.tick(0).driving


def test_joint_trajectory_must_have_the_joints_of_the_robot():
    loop = ControlLoop(Config({"robot": "cartpole"}))
    point = fields(positions=[0.5])
    wrong = fields(joint_names=["slider"], points=[point])
    assert loop.on_message("joint_trajectory", wrong, 0) == (
        "joint_trajectory has no ['cart']; it has ['slider']"
    )
    assert (
        loop.on_message("joint_trajectory", fields(joint_names=["cart"], points=[]), 0) is not None
    )
    assert (
        loop.on_message("joint_trajectory", fields(joint_names=["cart"], points=[point]), 0)
        is None
    )


def test_joint_state_without_a_joint_is_refused_by_name():
    loop, message = ControlLoop(Config({"robot": "cartpole"})), fields()
    fill_joint_state(message, {"cart": 0.0, "cart_velocity": 0.0})
    assert "no ['pole', 'pole_velocity']" in loop.on_message("joint_states", message, 0)


def drive(loop, ticks=5):
    """Drive on a state that changes in a known way; the commands, and the steps."""
    result = []
    for k in range(ticks):
        now_ns = ns(1.0 + 0.05 * k)
        loop.on_message("odom", odometry(x=0.02 * k, y=0.1, yaw=0.05 * k, v=0.3), now_ns)
        result.append(loop.tick(now_ns))
    return [tick.command for tick in result], [tick.step for tick in result]


def test_same_messages_give_the_same_commands_bit_by_bit(loop):
    commands, steps = drive(loop)
    again = unicycle()
    again.on_message("plan", AHEAD, 0)
    commands_again, steps_again = drive(again)
    assert commands == commands_again
    for step, same in zip(steps, steps_again, strict=True):
        assert np.array_equal(step.plan.states, same.plan.states)


def test_warming_up_leaves_no_trace(loop):
    loop.warm_up()
    again = unicycle()
    again.on_message("plan", AHEAD, 0)
    assert drive(loop)[0] == drive(again)[0]


def test_reset_makes_the_next_step_a_first_one(loop):
    first, _ = drive(loop)
    loop.reset()
    loop.on_message("plan", plan((0.0, 0.0), (5.0, 0.0), (6.0, 0.0)), 0)
    loop.on_message("plan", AHEAD, 0)
    loop.start()  # what was sent before limits nothing any more
    assert drive(loop)[0] == first


def test_full_turns_of_the_measured_angle_do_not_show():
    """Odometry jumps from pi to -pi; the robot does not."""
    turning, wrapped = unicycle(), unicycle()
    for k, yaw in enumerate([3.0, 3.1, 3.2, 3.3]):
        now_ns = ns(0.05 * k)
        for each, angle in ((turning, yaw), (wrapped, math.remainder(yaw, 2.0 * math.pi))):
            assert each.on_message("odom", odometry(yaw=angle), now_ns) is None
            each.on_message("plan", plan((0.0, 0.0), (-2.0, 0.1), (-5.0, 0.0)), 0)
        one, other = turning.tick(now_ns), wrapped.tick(now_ns)
        assert one.command == pytest.approx(other.command, abs=1e-9)
        assert np.ptp(one.step.plan.states[:, 2]) < 1.0


def test_command_is_the_plan_one_lead_ahead():
    loop = unicycle(**{"limits.linear_acceleration": [-9.0, 9.0]})
    loop.on_message("plan", AHEAD, 0)
    loop.on_message("odom", odometry(), 0)
    tick = loop.tick(0)
    ahead = tick.step.plan.state_at(loop.config.lead_s)
    assert (tick.command["v"], tick.command["w"]) == pytest.approx(tuple(ahead[3:]), abs=1e-6)
    assert tick.command["v"] > 0.05


@pytest.mark.slow
def test_commands_change_by_no_more_than_the_acceleration_limits_allow():
    """Start, a wild measurement, disabling and an emptied plan included."""
    loop, sent = unicycle(), []
    loop.on_message("plan", plan((0.0, 0.0), (30.0, 0.0)), 0)
    for k in range(120):
        now = ns(0.05 * k)
        v = 5.0 if k == 20 else sent[-1]["v"] if sent else 0.0
        loop.on_message("odom", odometry(x=0.02 * k, v=v), now)
        loop.enabled = not 60 <= k < 70
        if k == 100:
            loop.on_message("plan", plan(), now)
        sent.append(loop.tick(now).command)
    for name, rate in (("v", "linear_acceleration"), ("w", "angular_acceleration")):
        low, high = loop.config.parameters.limits[rate]
        changes = np.diff([0.0, *(command[name] for command in sent)])
        assert (changes >= 0.05 * low - 1e-9).all()
        assert (changes <= 0.05 * high + 1e-9).all()
    assert max(command["v"] for command in sent) > 0.3
    assert sent[-1]["v"] == 0.0


def test_plan_starts_at_the_measured_state(loop):
    loop.on_message("odom", odometry(x=0.3, y=-0.2, yaw=0.4, v=0.1, w=-0.1), 0)
    expected = [0.3, -0.2, 0.4, 0.1, -0.1]
    assert loop.tick(0).step.plan.states[0] == pytest.approx(expected)


def test_plan_starts_where_the_commands_under_way_will_take_the_robot():
    """Commands take effect 150 ms after they were sent; the state is 50 ms old."""
    loop = unicycle(actuation_delay=0.12)
    loop.on_message("plan", plan((0.0, 0.0), (2.0, 2.0)), 0)
    loop.on_message("odom", odometry(v=0.3), 0)
    sent = [loop.tick(ns(now), latency_s=0.03).command for now in (0.0, 0.05, 0.1, 0.15, 0.2)]
    measured = {"x": 0.1, "y": 0.2, "yaw": 0.3, "v": 0.4, "w": 0.5}
    loop.on_message("odom", odometry(**measured), ns(0.2))
    start = loop.tick(ns(0.25), latency_s=0.03).step.plan.states[0]
    robot = Simulation(loop.config)
    robot.state = np.array([*measured.values()])
    for command in sent[1:]:  # the first has lost its effect by the time of the measurement
        robot.advance(command, 0.05)
    assert start == pytest.approx(robot.state, abs=1e-4)
    assert np.linalg.norm(start[:2] - [0.1, 0.2]) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [0.4, 1.0, 600.0])
def test_nothing_from_before_a_pause_moves_the_robot_after_it(pause_s):
    loop, robot = unicycle(reference_speed=1.0), Simulation(Config({}))
    loop.on_message("plan", plan((0.0, 0.0), (50.0, 0.0)), 0)
    for k in range(60):
        loop.on_message("odom", odometry(**robot.values), ns(0.05 * k))
        tick = loop.tick(ns(0.05 * k))
        robot.advance(tick.command, 0.05)
    assert tick.command["v"] > 0.8
    now = 0.05 * k + pause_s
    loop.start()
    for _ in range(20):  # no state has come
        assert not any(loop.tick(ns(now)).command.values())
        now += 0.05
    at_rest = robot.values | {"v": 0.0, "w": 0.0}
    loop.on_message("odom", odometry(**at_rest), ns(now))
    tick = loop.tick(ns(now))
    assert tick.driving
    assert 0.0 < tick.command["v"] < 0.2
    assert tick.step.plan.states[0] == pytest.approx([*at_rest.values()], abs=1e-9)


def test_path_that_is_sent_again_is_not_begun_again(loop):
    loop.tick(0)
    for x in (0.5, 1.0):
        loop.on_message("odom", odometry(x=x), 0)
        loop.tick(0)
        loop.on_message("plan", AHEAD, 0)
        assert loop.reference.progress == pytest.approx(x)
    loop.on_message("plan", plan((0.0, 0.0), (4.0, 0.0)), 0)
    assert loop.reference.progress is None


def test_robot_stands_still_at_a_goal(loop):
    assert loop.on_message("goal_pose", pose(0.0, 0.0), 0) is None
    assert loop.tick(0).command == pytest.approx({"v": 0.0, "w": 0.0}, abs=1e-2)


def test_plan_that_is_not_finite_is_not_driven(loop, monkeypatch):
    step = loop.tick(0).step
    spoilt = replace(step, plan=Trajectory(np.full((9, 5), np.nan), step.plan.inputs, 0.1))
    monkeypatch.setattr(loop.controller, "step", lambda *_, **__: spoilt)
    tick = loop.tick(ns(0.05))
    assert tick.code is Reason.FOLLOWING
    assert tick.step is spoilt
    assert_allowed(loop, tick.command)


def test_band_too_narrow_is_refused_and_a_wider_one_changes_nothing(loop):
    with pytest.raises(BandwidthError) as error:
        unicycle(bandwidth=5)
    measured = error.value.measured
    assert error.value.configured == 5
    with pytest.raises(BandwidthError):
        unicycle(bandwidth=measured - 1)
    derived = loop.controller.transcription.half_bandwidth
    assert 5 < measured <= derived
    wide = unicycle(bandwidth=derived + 4)
    wide.on_message("plan", AHEAD, 0)
    for command, same in zip(drive(loop)[0], drive(wide)[0], strict=True):
        assert command == pytest.approx(same, abs=1e-6)


def test_without_any_plan_a_moving_robot_is_stopped(loop):
    loop._horizon._footprint = Footprint(np.zeros(1), np.full(1, math.nan))  # nothing is solved
    assert loop.on_message("odom", odometry(v=1.0, w=0.3), 0) is None
    tick = loop.tick(0)
    assert (tick.code, tick.driving) == (Reason.HOLDING, False)
    assert "the solve failed" in tick.reason
    assert tick.command == loop.stop_command()


def test_plan_starts_where_the_commands_under_way_lead():
    loop = unicycle(actuation_delay=0.2)
    loop.on_message("plan", AHEAD, 0)
    loop.on_message("odom", odometry(v=0.5), 0)
    sent = loop.tick(0).command
    loop.on_message("odom", odometry(v=0.5), ns(0.1))
    start = loop.tick(ns(0.1)).step.plan.states[0]
    # The command of time 0 acts from 0.2 s until 0.3 s, when that of 0.1 s takes over; the
    # velocity controllers close the gap by 1 - exp(-1) in their time constant of 0.1 s.
    assert start[3] == pytest.approx(0.5 + (sent["v"] - 0.5) * (1.0 - math.exp(-1.0)), abs=1e-3)
