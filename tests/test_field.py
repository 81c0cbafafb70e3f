# SPDX-License-Identifier: Apache-2.0
"""Hits of scans and grids, and the field of distances to them."""

import math
from types import SimpleNamespace as Fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.control.field import CELL, HitField
from mpc_banded.robots.sensors import Grid, read_scan


def scan(ranges, angle_min=0.0, step=0.1, low=0.1, high=10.0):
    return Fields(
        ranges=ranges, angle_min=angle_min, angle_increment=step, range_min=low, range_max=high
    )


def grid(cells, resolution=0.5, x=0.0, y=0.0, yaw=0.0):
    cells = np.asarray(cells)
    turn = Fields(x=0.0, y=0.0, z=math.sin(0.5 * yaw), w=math.cos(0.5 * yaw))
    origin = Fields(position=Fields(x=x, y=y, z=0.0), orientation=turn)
    info = Fields(
        width=cells.shape[1], height=cells.shape[0], resolution=resolution, origin=origin
    )
    return Fields(info=info, data=cells.ravel().tolist())


def update(x, y, cells):
    cells = np.asarray(cells)
    return Fields(
        x=x, y=y, width=cells.shape[1], height=cells.shape[0], data=cells.ravel().tolist()
    )


def test_scan_knows_hits_from_rays_that_met_nothing():
    hits = read_scan(scan([1.0, math.inf, math.nan, 0.05, 11.0, 10.0, -1.0, 0.1]))
    expected = [
        r * np.array([math.cos(a), math.sin(a)]) for r, a in ((1, 0), (10, 0.5), (0.1, 0.7))
    ]
    np.testing.assert_allclose(hits, expected)
    assert read_scan(scan([])).shape == (0, 2)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (scan([1.0], angle_min=math.nan), "begins at nan"),
        (scan([1.0], step=math.inf), "steps of inf"),
        (scan(range(200_000)), "200000 rays; allowed are up to 100000"),
    ],
)
def test_scan_that_makes_no_sense_is_refused(message, said):
    with pytest.raises(ValueError, match=said):
        read_scan(message)


def test_grid_has_hits_at_the_centres_of_full_cells_in_its_frame():
    known = Grid(65)
    known.replace(grid([[0, 100, -1], [64, 65, 0]], x=1.0, y=2.0, yaw=math.pi / 2))
    np.testing.assert_allclose(known.hits(), [[0.75, 2.75], [0.25, 2.75]])
    assert known.cell_radius == pytest.approx(math.hypot(0.25, 0.25))


def test_grid_takes_updates_within_it_only():
    known = Grid(100)
    with pytest.raises(ValueError, match="before the grid"):
        known.update(update(0, 0, [[0]]))
    known.replace(grid(np.zeros((4, 5))))
    known.update(update(3, 2, [[100, 0], [0, 100]]))
    np.testing.assert_allclose(known.hits(), [[1.75, 1.25], [2.25, 1.75]])
    with pytest.raises(ValueError, match="from \\(4, 2\\) on; the grid has 5 x 4"):
        known.update(update(4, 2, [[0, 0]]))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"width": 4_294_967_295}, "allowed are up to 4000000"),
        ({"width": 3}, "data for 4"),
        ({"resolution": 0.0}, "resolution is 0.0"),
        ({"resolution": math.nan}, "resolution is nan"),
    ],
)
def test_grid_whose_size_lies_is_refused_before_anything_is_allocated(broken, said):
    message = grid(np.zeros((2, 2)))
    for name, value in broken.items():
        setattr(message.info, name, value)
    with pytest.raises(ValueError, match=said):
        Grid(65).replace(message)


@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_field_knows_the_nearest_hit_as_well_as_looking_at_all_does(seed, count):
    generator = np.random.default_rng(seed)
    hits, centre = generator.uniform(-4.0, 4.0, (count, 2)), generator.uniform(-1.0, 1.0, 2)
    field = HitField(hits, centre, 3.0)
    within = (np.abs(hits - centre) < 3.0 - CELL).all(axis=1)
    assert {tuple(hit) for hit in hits[within]} <= {tuple(hit) for hit in field.hits}
    points = centre + generator.uniform(-2.9, 2.9, (20, 2))
    found = field.distance(points)
    if len(field.hits):
        every = np.linalg.norm(points[:, None] - field.hits, axis=2).min(axis=1)
        assert (found >= every - 1e-12).all()
        assert (found <= every + 2.0 * math.sqrt(2.0) * CELL).all()
    else:
        assert (found > 1e5).all()
