# SPDX-License-Identifier: Apache-2.0
"""Every reference is followed in the right frame and time, or refused with a reason."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_messages import fields, header, ns, odometry, plan, pose

from mpc_banded.control.config import Config
from mpc_banded.control.joints import JointPlanReference
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.path import PathReference
from mpc_banded.control.reference import MovedReference
from mpc_banded.control.tick import Reason
from mpc_banded.control.timed_path import TimedPathReference

TIMES = np.arange(11) * 0.1
NOW = 100.0
HERE = {"x": 0.0, "y": 0.0, "yaw": 0.0}


def loop_at(now=NOW, frame="odom", **parameters):
    loop = ControlLoop(Config({"horizon": 10, "dt": 0.1} | parameters))
    if frame is not None:
        assert loop.on_message("odom", odometry(now, frame), ns(now)) is None
    return loop


def timed(*poses):
    """A path of poses (x, y, time in s)."""
    return fields(header=header(), poses=[pose(x, y, stamp_s=t) for x, y, t in poses])


def test_path_with_stamps_is_followed_in_time():
    loop = loop_at()
    message = timed((0.0, 0.0, NOW), (1.0, 0.0, NOW + 2.0), (1.0, 2.0, NOW + 3.0))
    assert loop.on_message("plan", message, ns(NOW)) is None
    columns = loop.reference.columns(HERE, np.array([-1.0, 0.0, 1.0, 2.5, 9.0]), NOW)
    assert columns["x"].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert columns["y"].tolist() == [0.0, 0.0, 0.0, 1.0, 2.0]
    assert columns["v"].tolist() == [0.0, 0.5, 0.5, 2.0, 0.0]
    assert columns["yaw"] == pytest.approx([0.0, 0.0, 0.0, math.pi / 2, math.pi / 2])
    assert "ended" not in loop.tick(ns(NOW)).reason
    there = odometry(NOW + 5.0, x=1.0, y=2.0, yaw=math.pi / 2)
    assert loop.on_message("odom", there, ns(NOW + 5.0)) is None
    loop.tick(ns(NOW + 5.0))
    later = odometry(NOW + 6.1, x=1.0, y=2.0, yaw=math.pi / 2)
    assert loop.on_message("odom", later, ns(NOW + 6.1)) is None
    assert loop.tick(ns(NOW + 6.1)).code is Reason.ARRIVED


def test_path_whose_stamps_lie_in_the_past_is_followed_by_time_only_where_asked_for():
    message = timed((0.0, 0.0, NOW - 9.0), (1.0, 0.0, NOW - 8.0), (1.0, 2.0, NOW - 7.0))
    for asked, kind in ((False, PathReference), (True, TimedPathReference)):
        loop = loop_at(timed_paths=asked)
        assert loop.on_message("plan", message, ns(NOW)) is None
        assert isinstance(loop.reference, kind)


def test_orientations_along_the_path_are_followed_backwards_if_need_be():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    backwards = PathReference(points, 0.5, np.full(3, math.pi)).columns(HERE, TIMES)
    assert (backwards["v"] == -0.5).all()
    assert backwards["yaw"] == pytest.approx(np.full(11, math.pi))
    forwards = PathReference(points, 0.5, np.zeros(3)).columns(HERE, TIMES)
    plain = PathReference(points, 0.5).columns(HERE, TIMES)
    assert all(np.array_equal(forwards[name], plain[name]) for name in plain)


def test_last_orientation_alone_counts_at_the_end_alone():
    reference = PathReference(np.array([[0.0, 0.0], [1.0, 0.0]]), 1.0, None, 2.0)
    assert reference.columns(HERE, np.array([0.0, 0.5, 5.0]))["yaw"].tolist() == [0.0] * 3
    there = {"x": 1.0, "y": 0.0, "yaw": 0.0}
    assert reference.columns(there, np.array([0.0, 5.0]))["yaw"][1] == 2.0


@given(
    turn=st.floats(-3.0, 3.0),
    x=st.floats(-5.0, 5.0),
    y=st.floats(-5.0, 5.0),
    start=st.floats(-1.0, 1.0),
)
def test_reference_in_a_frame_of_its_own_is_the_same_one_seen_from_elsewhere(turn, x, y, start):
    points = np.array([[0.0, start], [1.0, 0.0], [2.0, 1.0]])
    c, s = math.cos(turn), math.sin(turn)
    there = points @ np.array([[c, s], [-s, c]]) + [x, y]
    moved = MovedReference(PathReference(points, 0.5), lambda: (x, y, turn))
    position = np.array([0.3, 0.2]) @ np.array([[c, s], [-s, c]]) + [x, y]
    state = {"x": position[0], "y": position[1], "yaw": 0.0}
    columns, plain = moved.columns(state, TIMES), PathReference(there, 0.5).columns(state, TIMES)
    for name in ("x", "y", "v"):
        assert columns[name] == pytest.approx(plain[name], abs=1e-6)
    assert np.cos(columns["yaw"] - plain["yaw"]) == pytest.approx(np.ones(11), abs=1e-6)


@pytest.mark.parametrize("topic", ["plan", "goal_pose"])
def test_reference_in_another_frame_is_transformed_or_refused(topic):
    message = {
        "plan": plan((0.0, 0.0), (5.0, 0.0), frame="map"),
        "goal_pose": pose(1.0, 0.0, frame="map"),
    }[topic]
    loop = loop_at()
    refused = loop.on_message(topic, message, ns(NOW))
    assert refused == f"{topic} is in frame 'map' and the state in 'odom'; nothing transforms them"
    assert loop.tick(ns(NOW)).code is Reason.NO_REFERENCE

    def unknown(target, source):
        raise LookupError(f"no transform from {source} to {target} yet")

    loop.transform = unknown
    assert loop.on_message(topic, message, ns(NOW)) == "no transform from map to odom yet"
    asked = []
    loop.transform = lambda *frames: asked.append(frames) or (0.0, 2.0, 0.0)
    assert loop.on_message(topic, message, ns(NOW)) is None
    assert set(asked) == {("odom", "map")}
    loop.reference.columns(HERE, TIMES)
    assert loop.reference.goal[1] == pytest.approx(2.0)
    loop.transform = lambda *_: (0.0, 3.0, 0.0)  # the frames drift
    loop.reference.columns(HERE, TIMES)
    assert loop.reference.goal[1] == pytest.approx(3.0)
    loop.transform = unknown  # and for a while nobody knows
    loop.reference.columns(HERE, TIMES)
    assert loop.reference.goal[1] == pytest.approx(3.0)


def test_plan_that_comes_before_its_transform_is_kept_and_tried_again():
    def unknown(target, source):
        raise LookupError(f"no transform from {source} to {target} yet")

    message = plan((0.0, 0.0), (5.0, 0.0), frame="map")
    for waits, code in ((1.0, Reason.DRIVING), (40.0, Reason.NO_REFERENCE)):
        loop = loop_at()
        loop.transform = unknown
        assert "no transform" in loop.on_message("plan", message, ns(NOW))
        loop.on_message("odom", odometry(NOW + waits), ns(NOW + waits))
        assert "no transform" in loop.tick(ns(NOW + waits)).reason
        loop.transform = lambda *_: (0.0, 0.0, 0.0)
        loop.on_message("odom", odometry(NOW + waits + 0.1), ns(NOW + waits + 0.1))
        assert loop.tick(ns(NOW + waits + 0.1)).code is code


def test_empty_plan_stops_the_robot_and_the_next_one_drives():
    loop = loop_at()
    loop.on_message("plan", plan((0.0, 0.0), (5.0, 0.0)), ns(NOW))
    assert loop.tick(ns(NOW)).driving
    assert loop.on_message("plan", plan(), ns(NOW)) is None
    tick = loop.tick(ns(NOW + 0.05))
    assert tick.code is Reason.NO_REFERENCE
    assert "plan has no poses, so the robot stops" in tick.reason
    loop.on_message("plan", plan((0.0, 0.0), (5.0, 0.0)), ns(NOW + 0.1))
    assert loop.tick(ns(NOW + 0.1)).driving


def test_frame_of_a_reference_that_came_before_the_state_is_checked_with_the_state():
    for frame, code in (("odom", Reason.DRIVING), ("map", Reason.NO_REFERENCE)):
        loop = loop_at(frame=None)
        assert loop.on_message("plan", plan((0.0, 0.0), (5.0, 0.0), frame=frame), ns(NOW)) is None
        assert loop.tick(ns(NOW)).code is Reason.NO_STATE
        loop.on_message("odom", odometry(NOW), ns(NOW))
        tick = loop.tick(ns(NOW))
        assert tick.code is code
        assert ("plan is in frame 'map'" in tick.reason) == (frame == "map")


def test_state_that_names_no_frame_has_that_of_the_parameter():
    message = plan((0.0, 0.0), (5.0, 0.0), frame="map")
    assert "set state_frame" in loop_at(frame="").on_message("plan", message, ns(NOW))
    assert loop_at(frame="", state_frame="map").on_message("plan", message, ns(NOW)) is None


def test_path_that_is_sent_again_in_another_frame_is_not_begun_again():
    loop = loop_at()
    loop.transform = lambda *_: (1.0, 0.0, 0.0)
    message = plan((0.0, 0.0), (5.0, 0.0), frame="map")
    loop.on_message("plan", message, ns(NOW))
    loop.reference.columns({"x": 3.0, "y": 0.0, "yaw": 0.0}, TIMES)
    loop.on_message("plan", message, ns(NOW))
    assert loop.reference.inner.progress == pytest.approx(2.0)


COLUMN = st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3)


@given(positions=COLUMN, rates=COLUMN)
def test_joint_plan_goes_through_its_points_with_their_velocities(positions, rates):
    times = np.array([0.0, 0.5, 2.0])
    columns = {"a": np.array(positions), "a_velocity": np.array(rates)}
    reference = JointPlanReference(times, columns, NOW)
    through = reference.columns({"a": 0.0}, times, NOW)
    assert through["a"] == pytest.approx(positions, abs=1e-9)
    assert through["a_velocity"][:2] == pytest.approx(rates[:2], abs=1e-9)
    dense = np.linspace(0.0, 1.99, 2000)
    curve = reference.columns({"a": 0.0}, dense, NOW)
    slope = np.gradient(curve["a"], dense)
    assert slope[5:-5] == pytest.approx(curve["a_velocity"][5:-5], abs=0.2)
    after = reference.columns({"a": 0.0}, np.array([3.0, 30.0]), NOW)
    assert after["a"] == pytest.approx(positions[-1:] * 2)
    assert after["a_velocity"].tolist() == [0.0, 0.0]


def test_joint_plan_moves_from_where_the_robot_is_to_its_first_point():
    reference = JointPlanReference(np.array([2.0]), {"a": np.array([4.0])}, NOW)
    assert reference.columns({"a": 2.0}, np.array([0.0, 1.0, 2.0, 3.0]), NOW)["a"].tolist() == [
        2.0,
        3.0,
        4.0,
        4.0,
    ]
    later = reference.columns({"a": 2.9}, np.array([0.0]), NOW + 1.0)
    assert later["a"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("times", "values", "why"),
    [
        ([0.0, 0.0], [1.0, 2.0], "they must increase"),
        ([-1.0, 0.0], [1.0, 2.0], "they must increase"),
        ([0.0, 1.0], [1.0, math.nan], "not finite"),
        ([0.0, math.inf], [1.0, 2.0], "not finite"),
    ],
)
def test_joint_plan_that_makes_no_sense_is_refused(times, values, why):
    with pytest.raises(ValueError, match=why):
        JointPlanReference(np.array(times), {"a": np.array(values)}, 0.0)


def test_timed_path_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        TimedPathReference(np.array([[0.0, math.nan], [1.0, 1.0]]), np.array([0.0, 1.0]))


def test_car_may_be_commanded_by_speed_and_steering_angle():
    config = Config({"robot": "bicycle", "command": "ackermann", "horizon": 10})
    loop = ControlLoop(config)
    loop.on_message("odom", odometry(NOW, v=2.0), ns(NOW))
    loop.on_message("plan", plan((0.0, 0.0), (3.0, 1.0), (9.0, 5.0)), ns(NOW))
    tick = loop.tick(ns(NOW))
    assert tick.driving
    assert config.command_topic.type == "ackermann_msgs/msg/AckermannDriveStamped"
    assert tick.command["steering"] == pytest.approx(tick.step.plan.inputs[0, 1], rel=0.05)
    assert loop.stop_command() == {"v": 0.0, "steering": 0.0}
