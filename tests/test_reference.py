# SPDX-License-Identifier: Apache-2.0
"""Laws of references along the horizon."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mpc_banded.control.joints import JointReference
from mpc_banded.control.path import GoalReference, PathReference
from mpc_banded.control.reference import stacked
from mpc_banded.control.speed import RESOLUTION, SETTLING
from mpc_banded.ros.demo.scenarios import figure_of_eight

TIMES = np.arange(21) * 0.1
COORDINATES = st.floats(-10.0, 10.0)
POINTS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=2, max_size=8, unique=True)
SPEEDS = st.floats(0.0, 3.0)


def path(points, speed):
    try:
        return PathReference(np.array(points), speed)
    except ValueError:  # all points so near to each other that they count as one
        assume(False)


def at(x, y):
    return {"x": x, "y": y}


def positions(columns):
    return np.column_stack([columns["x"], columns["y"]])


def densely(points, spacing):
    """The slow twin of a path: many points on it, and how far along each lies."""
    samples, starts = [], []
    along = 0.0
    for a, b in itertools.pairwise(points):
        length = np.linalg.norm(b - a)
        share = np.arange(0.0, 1.0, spacing / max(length, spacing))
        samples.append(a + share[:, None] * (b - a))
        starts.append(along + share * length)
        along += length
    return np.vstack([*samples, points[-1:]]), np.concatenate([*starts, [along]])


@given(points=POINTS, speed=SPEEDS, x=COORDINATES, y=COORDINATES)
def test_columns_lie_on_the_path_and_move_at_its_speed(points, speed, x, y):
    assume(speed == 0.0 or speed > 1e-6)
    reference = path(points, speed)
    columns = reference.columns(at(x, y), TIMES)
    walked = positions(columns)
    # A turn on the spot may be done a little beside the path.
    beside = 0.2 if any(leg.is_turn for leg in reference.legs) else 0.0
    assert max(reference.distance(point) for point in walked) < beside + 1e-6
    steps = np.linalg.norm(np.diff(walked, axis=0), axis=1)
    assert (steps <= speed * 0.1 + 1e-9).all()
    speeds = np.hypot(columns["v"], columns["vy"])
    assert (speeds <= speed + 1e-9).all()
    ends = np.array([leg.points[-1] for leg in reference.legs])
    to_end = np.linalg.norm(walked[:, None] - ends, axis=-1).min(axis=1)
    fading = speed * SETTLING + RESOLUTION  # where a base without a limit slows down for an end
    assert (np.isclose(speeds, speed) | (to_end < beside + fading)).all()
    standing = speeds == 0.0
    assert speed == 0.0 or (to_end[standing] < beside + 1e-6).all()


@given(points=POINTS, x=COORDINATES, y=COORDINATES)
def test_distance_is_that_of_the_nearest_of_many_points(points, x, y):
    reference = path(points, 1.0)
    samples, _ = densely(reference.points, 0.01)
    nearest = np.linalg.norm(samples - [x, y], axis=1).min()
    assert reference.distance(np.array([x, y])) == pytest.approx(nearest, abs=0.01)


@given(points=POINTS, x=COORDINATES, y=COORDINATES, angle=st.floats(-3.0, 3.0), shift=COORDINATES)
def test_turning_and_moving_everything_turns_and_moves_the_reference(points, x, y, angle, shift):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    here, there = path(points, 1.0), path(np.array(points) @ turn.T + shift, 1.0)
    state = turn @ [x, y] + shift
    distances = np.concatenate([leg.project(np.array([x, y]))[0] for leg in here.legs])
    # Where stretches of the path are equally near, rounding may choose either.
    ties = np.abs(np.subtract.outer(distances, [distances.min(), distances.min() + 0.2]))
    assume((ties > 1e-6).sum() == ties.size - 1)
    columns, turned = here.columns(at(x, y), TIMES), there.columns(at(*state), TIMES)
    assert np.allclose(positions(columns) @ turn.T + shift, positions(turned), atol=1e-5)
    assert np.allclose(columns["v"], turned["v"])


@given(points=POINTS, speed=SPEEDS)
def test_heading_never_turns_by_more_than_half_a_turn_between_segments(points, speed):
    reference = path(points, speed)
    yaw = reference.columns(at(*points[0]), np.linspace(0.0, 20.0, 200))["yaw"]
    segments = np.diff(reference.points, axis=0)
    directions = np.arctan2(segments[:, 1], segments[:, 0])
    turned = np.abs(np.angle(np.exp(1j * np.diff(directions)))).sum()
    assert np.abs(np.diff(yaw)).sum() <= turned + 1e-6


def test_straight_path_has_its_direction_as_heading():
    reference = PathReference(np.array([[0.0, 0.0], [-3.0, -3.0], [-9.0, -9.0]]), 1.0)
    yaw = reference.columns(at(0.0, 0.0), TIMES)["yaw"]
    assert np.allclose(yaw, -0.75 * np.pi)


def test_walking_a_path_that_crosses_itself_keeps_to_the_branch():
    points = figure_of_eight()
    reference = PathReference(points, 0.8)
    samples, along = densely(points, 0.05)
    for sample, expected in zip(samples, along, strict=True):
        reference.columns(at(*sample), TIMES)
        assert reference.progress == pytest.approx(expected, abs=1e-6)


def test_path_that_starts_where_it_comes_by_again_begins_at_its_start():
    reference = PathReference(figure_of_eight(), 0.8)
    reference.columns(at(0.05, 0.1), TIMES)
    assert reference.progress < 0.5


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "no poses"),
        ([[0.0, 0.0], [np.nan, 1.0]], "not finite"),
        ([[0.0, 0.0], [np.inf, 1.0]], "not finite"),
    ],
)
def test_path_needs_poses_that_are_finite(points, message):
    with pytest.raises(ValueError, match=message):
        PathReference(np.array(points), 1.0)


def test_repeated_points_do_not_change_a_path():
    corner = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    once = PathReference(corner, 1.0).columns(at(0.2, 0.1), TIMES)
    twice = PathReference(corner.repeat(2, axis=0), 1.0).columns(at(0.2, 0.1), TIMES)
    assert all(np.array_equal(once[name], twice[name]) for name in once)


def test_joints_stand_still_wherever_the_robot_is():
    joints = JointReference({"arm": 0.5}).columns({"arm": 7.0}, TIMES)
    assert set(joints["arm"]) == {0.5}


def test_goal_and_joints_must_be_finite():
    with pytest.raises(ValueError, match="the goal has coordinates that are not finite"):
        GoalReference(1.0, np.nan, 0.0)
    with pytest.raises(ValueError, match="the goal has orientations that are not finite"):
        GoalReference(1.0, 2.0, np.inf)
    with pytest.raises(ValueError, match="'arm': inf"):
        JointReference({"arm": np.inf})


def test_columns_are_stacked_by_name_and_unknown_ones_are_zero():
    columns = {"x": TIMES, "yaw": 2.0 * TIMES, "not asked for": TIMES}
    result = stacked(columns, ("yaw", "v", "x"), TIMES)
    assert np.array_equal(result, np.column_stack([2.0 * TIMES, 0.0 * TIMES, TIMES]))
