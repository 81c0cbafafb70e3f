# SPDX-License-Identifier: Apache-2.0
"""Paths are cut, followed, and keep their progress when they are sent again."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.control.dubins import dubins_path
from mpc_banded.control.path import Base, CutOptions, GoalReference, PathReference
from mpc_banded.control.speed import MotionLimits, SpeedProfile, turn

TIMES = np.arange(21) * 0.05
DIFF_DRIVE = Base(MotionLimits(1.0, 0.5, 1.0, 2.0, 4.0))
CAR = Base(MotionLimits(2.0, 1.0, 2.0), pivots=False, turning_radius=2.0)
OMNI = Base(MotionLimits(1.0, 1.0, 1.0, 2.0, 4.0), strafes=True)


def polyline(*corners, step=0.05):
    points = [np.array(corners[0], dtype=float)]
    for a, b in pairwise(corners):
        count = max(1, round(math.dist(a, b) / step))
        points += [
            np.array(a) + (np.array(b) - np.array(a)) * k / count for k in range(1, count + 1)
        ]
    return np.array(points)


def eight(count=400, size=3.0):
    t = np.linspace(0.0, math.tau, count)
    return size * np.stack([np.sin(t), np.sin(t) * np.cos(t)], axis=1)


def drive(reference, start, seconds, republish=None):
    """The way of a base that does exactly what it is asked for, in steps of 50 ms."""
    state = dict(zip(("x", "y", "yaw", "v", "vy", "w"), (*start, 0.0, 0.0, 0.0), strict=True))
    way = [np.array(start)]
    for k in range(round(seconds / 0.05)):
        if republish is not None:
            newer = republish(k)
            newer.take_over(reference, np.array([state["x"], state["y"]]))
            reference = newer
        ahead = reference.columns(state, TIMES)
        turned = math.remainder(ahead["yaw"][1] - state["yaw"], math.tau)
        turned = math.copysign(min(abs(turned), 0.1), turned)
        state = {
            **{name: float(ahead[name][1]) for name in ("x", "y", "v", "vy")},
            "yaw": state["yaw"] + turned,
            "w": turned / 0.05,
        }
        way.append(np.array([state["x"], state["y"], state["yaw"]]))
        if reference.ended(0.0) and abs(turned) < 0.05 and abs(state["v"]) < 0.05:
            break
    return np.array(way), reference


def length(way):
    return float(np.hypot(*np.diff(way[:, :2], axis=0).T).sum())


def missed(points, way):
    """The largest distance of a point of the path from the way that was driven."""
    return max(np.hypot(*(way[:, :2] - p).T).min() for p in points)


def test_path_is_cut_at_a_cusp_and_driven_backwards_after_it():
    angle = np.linspace(0.0, 1.0, 60)
    forth = np.stack([5.0 * np.sin(angle), 5.0 * (1.0 - np.cos(angle))], axis=1)
    centre = forth[-1] + 5.0 * np.array([math.sin(1.0), -math.cos(1.0)])
    back = centre + 5.0 * np.stack([-np.sin(1.0 + angle), np.cos(1.0 + angle)], axis=1)
    points, yaws = np.vstack([forth, back[1:]]), np.concatenate([angle, 1.0 + angle[1:]])
    path = PathReference(points, 1.0, yaws, base=CAR)
    assert [leg.backwards for leg in path.legs] == [False, True]
    np.testing.assert_allclose(path.legs[0].points[-1], forth[-1], atol=0.02)
    way, _ = drive(path, (0.0, 0.0, 0.0), 30.0)
    assert missed(points, way) < 0.06
    np.testing.assert_allclose(way[-1], [*back[-1], 2.0], atol=0.05)


def test_cusp_without_orientations_turns_a_base_that_pivots_and_reverses_a_car():
    points = polyline((0, 0), (2, 0), (0, 0.4))
    turned = PathReference(points, 0.5, base=DIFF_DRIVE)
    assert [leg.is_turn for leg in turned.legs] == [False, True, False]
    assert not turned.legs[2].backwards
    reversed_ = PathReference(points, 0.5, base=CAR)
    assert [leg.backwards for leg in reversed_.legs] == [False, True]


def test_car_that_cannot_reverse_drives_through_a_cusp():
    forward = Base(MotionLimits(2.0, 0.0, 2.0), pivots=False, turning_radius=2.0)
    path = PathReference(polyline((0, 0), (4, 0), (0, 1)), 1.0, base=forward)
    assert [leg.backwards for leg in path.legs] == [False]
    way, _ = drive(path, (0.0, 0.0, 0.0), 30.0)
    assert missed(path.points, way) < 0.05


def test_turns_on_the_spot_are_legs_wherever_they_are():
    ahead = polyline((0, 0), (1, 0))
    turning = np.repeat([[1.0, 0.0]], 8, axis=0)
    up = polyline((1, 0), (1, 1))[1:]
    points = np.vstack([np.zeros((5, 2)), ahead, turning, up, np.repeat(up[-1:], 5, axis=0)])
    yaws = np.concatenate(
        [
            np.linspace(-1.5, -0.1, 5),
            np.zeros(len(ahead)),
            np.linspace(0.1, 1.5, 8),
            np.full(len(up), math.pi / 2),
            np.linspace(1.7, 3.1, 5),
        ]
    )
    path = PathReference(points, 0.5, yaws, base=DIFF_DRIVE)
    assert [leg.is_turn for leg in path.legs] == [True, False, True, False, True]
    way, _ = drive(path, (0.0, 0.0, -1.5), 30.0)
    np.testing.assert_allclose(way[-1], [1.0, 1.0, 3.1], atol=0.06)


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_millimetres_is_no_reversal(seed):
    points = polyline((0, 0), (4, 0), (4, 4), step=0.01)
    noisy = points + np.random.default_rng(seed).normal(0.0, 2e-3, points.shape)
    assert len(PathReference(noisy, 0.5, base=DIFF_DRIVE).legs) == 1


@pytest.mark.parametrize("base", [DIFF_DRIVE, CAR])
def test_noise_on_repeated_poses_is_neither_a_reversal_nor_a_move(base):
    ahead, up = polyline((0, 0), (2, 0)), polyline((2, 0), (2, 2))
    turning = np.repeat([[2.0, 0.0]], 8, axis=0)
    turn_yaws = np.linspace(0.2, math.pi / 2, 8)
    yaws = np.concatenate([np.zeros(len(ahead)), turn_yaws, np.full(len(up), math.pi / 2)])
    noise = np.random.default_rng(1)
    for points, headings in (
        (np.repeat(ahead, 2, axis=0), np.zeros(2 * len(ahead))),
        (np.vstack([ahead, turning, up]), yaws),
    ):
        clean = PathReference(points, 0.5, headings, base=base).legs
        for _ in range(20):
            noisy = points + noise.normal(0.0, 1e-3, points.shape)
            legs = PathReference(noisy, 0.5, headings, base=base).legs
            assert [(leg.is_turn, leg.backwards) for leg in legs] == [
                (leg.is_turn, leg.backwards) for leg in clean
            ]


@pytest.mark.parametrize(
    ("points", "base"),
    [
        (eight(), DIFF_DRIVE),
        (polyline((0, 0), (3, 0), (0, 0)), DIFF_DRIVE),
        (polyline((0, 0), (2, 0), (2, 2), (0, 2), (0, 0)), DIFF_DRIVE),
        (polyline((0, 0), (3, 0), (0, 0)), CAR),
        (polyline((0, 0), (2, 0), (2, 2), (0, 2), (0, 0)), OMNI),
    ],
    ids=["crossing", "there and back", "closed", "there and back in a car", "closed, strafing"],
)
def test_path_sent_again_twenty_times_a_second_is_driven_once(points, base):
    generator = np.random.default_rng(3)

    def noisy(_):
        return PathReference(points + generator.normal(0.0, 1e-3, points.shape), 0.8, base=base)

    first = points[1] - points[0]
    start = (*points[0], math.atan2(first[1], first[0]))
    way, last = drive(noisy(0), start, 60.0, noisy)
    whole = np.hypot(*np.diff(points, axis=0).T).sum()
    assert last.ended(0.0)
    assert missed(points, way) < 0.1
    assert length(way) < 1.1 * whole


def test_pruned_path_keeps_its_progress_and_a_new_goal_starts_over():
    points = polyline((0, 0), (5, 0))
    before = PathReference(points, 0.5, base=DIFF_DRIVE)
    way, before = drive(before, (0.0, 0.0, 0.0), 5.0)
    here = way[-1, :2]
    pruned = PathReference(points[points[:, 0] > here[0] - 0.1], 0.5, base=DIFF_DRIVE)
    pruned.take_over(before, here)
    left = pruned.length - pruned.progress
    assert left == pytest.approx(before.length - before.progress, abs=0.05)
    other = PathReference(polyline(here, (2, 4)), 0.5, base=DIFF_DRIVE)
    other.take_over(before, here)
    assert other.progress is None


@pytest.mark.parametrize(
    ("points", "yaws"),
    [
        ([(1.0, 2.0)], [0.3]),
        ([(1.0, 2.0)] * 4, [0.3] * 4),
        ([(1.0, 2.0), (1.0 + 1e-9, 2.0)], [0.3, 0.3]),
        ([(0.0, 0.0), (1e5, 0.0), (1e5, 1e5)], None),
        ([(0.0, 0.0)] * 3 + [(1.0, 0.0)] * 3, None),
        ([(0.0, 0.0), (1.0, 0.0), (0.0, 0.0)], None),
    ],
)
@pytest.mark.parametrize("base", [DIFF_DRIVE, CAR, OMNI])
def test_odd_paths_are_followed(points, yaws, base):
    path = PathReference(np.array(points), 0.5, yaws, base=base)
    columns = path.columns({"x": 0.1, "y": 0.1, "yaw": 3.0, "v": 0.2, "w": 0.1}, TIMES)
    assert all(np.isfinite(values).all() and len(values) == 21 for values in columns.values())
    assert path.goal[:2] == pytest.approx(points[-1], abs=1e-6)


@pytest.mark.parametrize(
    ("points", "yaws", "said"),
    [
        ([], None, "no poses"),
        ([(0.0, 0.0), (1e300, 0.0)], None, "1e\\+300 m; allowed are up to 1e\\+07 m"),
        ([(0.0, math.nan), (1.0, 0.0)], None, "not finite"),
        ([(0.0, 0.0), (1.0, 0.0)], [0.0, math.inf], "orientations that are not finite"),
    ],
)
def test_impossible_paths_are_refused_in_a_sentence(points, yaws, said):
    with pytest.raises(ValueError, match=said):
        PathReference(np.array(points).reshape(-1, 2), 0.5, yaws)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.floats(0.05, 3.0),
    st.sampled_from([DIFF_DRIVE, CAR, OMNI]),
    st.booleans(),
)
def test_progress_never_goes_back_whatever_the_base_does(seed, count, speed, base, with_yaws):
    generator = np.random.default_rng(seed)
    points = generator.uniform(-3.0, 3.0, (count, 2))
    yaws = generator.uniform(-4.0, 4.0, count) if with_yaws else None
    path = PathReference(points, speed, yaws, base=base)
    before = -1.0
    for _ in range(10):
        values = generator.uniform(-3.0, 3.0, 6)
        state = dict(zip(("x", "y", "yaw", "v", "vy", "w"), values, strict=True))
        columns = path.columns(state, TIMES)
        assert all(np.isfinite(values).all() for values in columns.values())
        assert np.hypot(columns["v"], columns["vy"]).max() <= speed + 1e-9
        assert path.progress >= before - 1e-12
        before = path.progress


def test_progress_follows_a_base_that_cuts_a_corner_of_a_coarse_path():
    path = PathReference(np.array([[0.0, 0.0], [20.0, 0.0], [20.0, 20.0]]), 2.0, base=CAR)
    for share in np.linspace(0.0, 1.0, 200):  # from (14, 0) straight to (20, 6)
        here = {"x": 14.0 + 6.0 * share, "y": 6.0 * share, "yaw": 0.8}
        path.columns(here, TIMES)
    assert path.progress == pytest.approx(26.0, abs=0.1)


def test_reference_stands_at_the_end_even_if_nothing_limits_the_base():
    path = PathReference(polyline((0, 0), (3, 0)), 0.8)
    columns = path.columns({"x": 3.5, "y": 0.0, "yaw": 0.0}, TIMES)
    assert not columns["v"].any()
    assert (columns["x"] == 3.0).all()


def test_strafing_base_is_asked_for_speeds_in_its_own_frame():
    points = polyline((0, 0), (0, 3))
    east = PathReference(points, 0.8, np.full(len(points), 1e-3))
    columns = east.columns({"x": 0.0, "y": 1.0, "yaw": 0.0}, TIMES[:3])
    np.testing.assert_allclose(columns["v"], 0.0, atol=0.01)
    np.testing.assert_allclose(columns["vy"], 0.8, atol=0.01)


@pytest.mark.parametrize("base", [DIFF_DRIVE, OMNI])
@pytest.mark.parametrize("bearing", np.linspace(0.0, math.tau, 8, endpoint=False))
@pytest.mark.parametrize("yaw", [0.0, 2.0, -3.0])
def test_goals_on_all_sides_are_reached(base, bearing, yaw):
    goal = 1.5 * math.cos(bearing), 1.5 * math.sin(bearing), yaw
    way, reference = drive(GoalReference(*goal, 0.5, base), (0.0, 0.0, 0.0), 30.0)
    assert reference.ended(0.0)
    np.testing.assert_allclose(way[-1, :2], goal[:2], atol=0.03)
    assert abs(math.remainder(way[-1, 2] - yaw, math.tau)) < 0.06
    assert length(way) < 1.6


def test_car_is_told_at_once_that_a_goal_needs_a_loop():
    start = (0.0, 0.0, 0.0)
    GoalReference(8.0, 2.0, 0.3, 1.0, CAR, start=start)
    with pytest.raises(ValueError, match=r"turning radius of 2\.00 m"):
        GoalReference(0.0, 2.0, 0.0, 1.0, CAR, start=start)


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.05, 5.0),
    st.floats(0.05, 3.0),
    st.floats(0.1, 3.0),
    st.floats(0.0, 1.0),
)
def test_speed_profile_obeys_its_limits_and_can_always_stop(seed, wanted, gain, rate, share):
    corners = np.random.default_rng(seed).uniform(-5.0, 5.0, (6, 2))
    points = polyline(*corners, step=0.2)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    limits = MotionLimits(1.5, 0.7, gain, rate)
    profile = SpeedProfile(arc, points, wanted, limits)
    at = np.linspace(0.0, arc[-1], 500)
    fastest = np.array([profile.fastest_at(s) for s in at])
    assert fastest.max() <= min(wanted, 1.5) + 1e-12
    assert (fastest**2 <= 2.0 * gain * (arc[-1] - at) + 1e-9).all()
    assert (np.diff(fastest**2) >= -2.0 * gain * np.diff(at) - 1e-9).all()
    s, v = profile.travel(share * arc[-1], 0.2, np.arange(200) * 0.05)
    assert (np.diff(s) >= 0.0).all()
    assert s[-1] <= arc[-1]
    assert (np.diff(v) <= 0.05 * gain + 1e-12).all()
    assert (v <= [profile.fastest_at(x) + 0.05 * gain for x in s]).all()


@given(st.floats(-3.0, 3.0), st.floats(-1.0, 1.0))
def test_turn_ends_at_its_angle_within_the_limits(angle, rate):
    limits = MotionLimits(turn_rate=1.5, turn_acceleration=3.0)
    turned = turn(angle, rate, np.arange(400) * 0.02, limits)
    assert turned[0] == 0.0
    assert turned[-1] == pytest.approx(angle, abs=5e-3)
    assert np.abs(np.diff(turned)).max() <= 1.5 * 0.02 + 1e-12


@given(
    *[st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(-4, 4)) for _ in range(2)],
    st.floats(0.2, 3.0),
)
def test_dubins_path_leads_there_within_its_curvature(start, goal, radius):
    poses = dubins_path(start, goal, radius)
    np.testing.assert_allclose(poses[0], start)
    np.testing.assert_allclose(poses[-1, :2], goal[:2], atol=1e-5)
    assert abs(math.remainder(poses[-1, 2] - goal[2], math.tau)) < 1e-5
    chords = np.hypot(*np.diff(poses[:, :2], axis=0).T)
    assert (np.abs(np.diff(poses[:, 2])) <= chords / radius * 1.01 + 1e-9).all()
    back = dubins_path(
        (goal[0], goal[1], goal[2] + math.pi), (start[0], start[1], start[2] + math.pi), radius
    )
    assert length(back) == pytest.approx(length(poses), abs=1e-2)


def test_cut_options_say_how_large_a_turn_is_a_leg():
    points = np.vstack([polyline((0, 0), (1, 0)), [[1.0, 0.0]] * 3])
    yaws = np.concatenate([np.zeros(len(points) - 3), [0.2, 0.4, 0.6]])
    inner = np.vstack([points, polyline((1, 0), (2, 0.7))[1:]])
    inner_yaws = np.concatenate([yaws, np.full(len(inner) - len(points), math.atan2(0.7, 1.0))])
    coarse = PathReference(inner, 0.5, inner_yaws, base=DIFF_DRIVE)
    fine = PathReference(inner, 0.5, inner_yaws, base=DIFF_DRIVE, cut=CutOptions(rotation=0.3))
    assert [leg.is_turn for leg in coarse.legs] == [False]
    assert [leg.is_turn for leg in fine.legs] == [False, True, False]


def test_way_of_a_car_to_a_far_goal_has_few_poses_and_leads_there():
    goal = (9e6, -4e6, 1.0)
    poses = dubins_path((0.0, 0.0, 0.0), goal, 2.0)
    assert len(poses) < 10_000
    assert np.linalg.norm(poses[-1, :2] - goal[:2]) < 1e-3
    assert math.remainder(poses[-1, 2] - goal[2], math.tau) == pytest.approx(0.0, abs=1e-6)
