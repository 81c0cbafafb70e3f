# SPDX-License-Identifier: Apache-2.0
"""Gaps and slots of obstacles agree with a look at every obstacle at every stage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.control.obstacles_ahead import UNUSED, Ahead, Cloud
from mpc_banded.robots.planar import Footprint

STAGES, COVER = 5, 0.05
LONG = Footprint(np.array([0.4, 0.0, -0.3]), np.array([0.2, 0.3, 0.25]))


def world(seed, circles=6, hits=80):
    generator = np.random.default_rng(seed)
    poses = generator.uniform(-2.0, 2.0, (STAGES, 3))
    moving = generator.uniform([-4, -4, 0], [4, 4, 0.5], (STAGES, circles, 3))
    clouds = [
        Cloud(generator.uniform(-4.0, 4.0, (hits, 2)), cover) for cover in (0.0, COVER)[:hits]
    ]
    return poses, moving, clouds


def every_gap(poses, circles, clouds):
    """Gaps (N + 1, everything) between the rims, one by one."""
    rows = []
    for (x, y, yaw), at_stage in zip(poses, circles, strict=True):
        known = [tuple(circle) for circle in at_stage]
        known += [(*hit, cloud.cover) for cloud in clouds for hit in cloud.hits]
        outline = [
            (x + a * np.cos(yaw), y + a * np.sin(yaw), r)
            for a, r in zip(LONG.along, LONG.radii, strict=True)
        ]
        rows.append(
            [min(np.hypot(a - x, b - y) - c - r for x, y, r in outline) for a, b, c in known]
        )
    return np.array(rows)


@given(st.integers(0, 2**32 - 1))
def test_gaps_are_those_to_whatever_is_nearest(seed):
    poses, circles, clouds = world(seed)
    ahead = Ahead(circles, clouds, poses[0], LONG)
    expected = every_gap(poses, circles, clouds).min(axis=1)
    np.testing.assert_allclose(ahead.gaps(poses), expected, atol=1e-12)
    up_to = ahead.gaps(np.stack([poses, poses]), 0.2)
    assert up_to.shape == (2, STAGES)
    near = expected <= 0.2
    np.testing.assert_allclose(up_to[1][near], expected[near], atol=1e-12)
    assert (up_to[0][~near] > 0.2).all()


@given(st.integers(0, 2**32 - 1))
def test_worst_overlap_along_a_plan_is_found_and_what_touches_already_may_be_left(seed):
    poses, circles, clouds = world(seed)
    gap, circle = Ahead(circles, clouds, poses[0], LONG).worst(poses)
    every = every_gap(poses, circles, clouds)
    growing = every[1:] - np.minimum(0.0, every[0])
    assert gap == pytest.approx(growing.min())
    named = np.concatenate(
        [circles[0], *(np.column_stack([c.hits, np.full(80, c.cover)]) for c in clouds)]
    )
    assert circle in {tuple(row) for row in named[growing.min(axis=0) <= gap + 1e-9]}


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_slots_hold_the_nearest_of_what_moves_and_of_the_hits(seed, slots):
    poses, circles, clouds = world(seed)
    ahead = Ahead(circles, clouds, poses[0], LONG)
    chosen = ahead.chosen([poses], slots)
    assert chosen.shape == (STAGES, slots, 3)
    nearest = every_gap(poses, circles, clouds).min(axis=1)
    np.testing.assert_allclose(every_gap(poses, chosen, []).min(axis=1), nearest, atol=1e-12)
    for stage in chosen:
        used = [tuple(circle) for circle in stage if circle[0] < UNUSED[0]]
        assert len(set(used)) == len(used)


def test_circles_keep_their_slots_while_there_are_enough():
    poses, circles, _ = world(1, circles=3, hits=0)
    chosen = Ahead(circles, [], poses[0], LONG).chosen([poses], 4)
    assert np.array_equal(chosen[:, :3], circles)
    assert (chosen[:, 3] == UNUSED).all()


def test_walls_on_both_sides_have_a_slot():
    x = np.arange(-2.0, 2.0, 0.02)
    walls = np.concatenate([np.stack([x, np.full(len(x), y)], axis=1) for y in (-0.5, 0.6)])
    robot = Footprint(np.zeros(1), np.full(1, 0.25))
    way = np.zeros((STAGES, 3))
    chosen = Ahead(np.zeros((STAGES, 0, 3)), [Cloud(walls)], way[0], robot).chosen([way], 3)
    assert {-0.5, 0.6} <= set(chosen[0, :, 1])
