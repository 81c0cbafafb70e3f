# SPDX-License-Identifier: Apache-2.0
"""Scans and maps as obstacles: what counts as a hit, what is refused, and how robots drive."""

import math
import re
import tracemalloc

import numpy as np
import pytest
from loop_messages import AHEAD, fields, grid, ns, odometry, scan, update

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.tick import Reason
from mpc_banded.robots.obstacle_messages import (
    MOST_CELLS,
    SOURCES,
    read_costmap,
    read_grid,
    read_scan,
)

INF, NAN = math.inf, math.nan


def test_scan_knows_hits_from_rays_that_met_nothing():
    hits = read_scan(scan([1.0, INF, NAN, 0.05, 11.0, 10.0, -1.0, 0.1, -INF]))
    expected = [
        r * np.array([math.cos(a), math.sin(a)]) for r, a in ((1, 0), (10, 0.5), (0.1, 0.7))
    ]
    np.testing.assert_allclose(hits, expected)
    assert read_scan(scan([])).shape == (0, 2)


def test_cells_at_the_rims_of_what_is_occupied_are_hits():
    known = read_grid(grid([[0, 100, -1], [64, 65, 0]], 0.5, x=1.0, y=2.0, yaw=math.pi / 2))
    np.testing.assert_allclose(known.hits(65, True), [[0.75, 2.75], [0.25, 2.75]])
    assert len(known.hits(65, False)) == 3
    assert len(known.hits(100, True)) == 1
    block = np.zeros((7, 7))
    block[1:6, 1:6] = 100
    assert len(read_grid(grid(block)).hits(100, True)) == 16


def test_costmap_is_read_on_the_scale_of_a_grid():
    costs = [0, 1, 252, 253, 254, 255]
    message = fields(
        metadata=fields(size_x=6, size_y=1, resolution=0.1, origin=grid([[0]], 0.1).info.origin),
        data=costs,
    )
    assert read_costmap(message).cells.tolist() == [[0, 1, 98, 99, 100, -1]]


def test_updates_change_a_rectangle_of_the_grid():
    before = read_grid(grid(np.zeros((4, 5)), 0.5))
    after = before.updated(update(3, 2, [[100, 0], [0, 100]]))
    np.testing.assert_allclose(after.hits(100, True), [[1.75, 1.25], [2.25, 1.75]])
    assert not len(before.hits(100, True))
    with pytest.raises(ValueError, match="from \\(4, 2\\) on; the grid has 5 x 4"):
        before.updated(update(4, 2, [[0, 0]]))


def changed(message, part, **values):
    for name, value in values.items():
        setattr(getattr(message, part) if part else message, name, value)
    return message


SQUARE = np.zeros((2, 2))


@pytest.mark.parametrize(
    ("topic", "message", "why"),
    [
        ("scan", scan([1.0], angle_min=NAN), "begins at nan"),
        ("scan", scan([1.0], step=INF), "steps of inf"),
        ("scan", scan([1.0], low=NAN), "ranges from nan"),
        ("scan", scan([1.0], low=2.0, high=1.0), "ranges from 2.0 to 1.0 m"),
        ("scan", scan([1.0], high=NAN), "ranges from 0.1 to nan m"),
        ("scan", scan([1.0, 1.0, 1.0], step=0.0), "3 rays in steps of 0.0 rad"),
        ("scan", scan([1.0] * 100, step=0.1), "allowed is up to a full turn"),
        ("scan", scan(range(200_000)), "200000 rays; allowed are up to 100000"),
        ("costmap", changed(grid(SQUARE), "info", width=2**32 - 1), f"up to {MOST_CELLS}"),
        ("costmap", changed(grid(SQUARE), "info", width=3), "data for 4"),
        ("costmap", changed(grid(SQUARE), "info", resolution=0.0), "resolution is 0.0"),
        ("costmap", changed(grid(SQUARE), "info", resolution=NAN), "resolution is nan"),
        ("costmap", changed(grid(SQUARE), "info", resolution=1e9), "resolution is 1000000000.0"),
        ("costmap", grid(SQUARE, x=INF), "origin is"),
        ("costmap_updates", update(0, 0, [[0]]), "came before costmap"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_allocated(topic, message, why):
    loop = ControlLoop(Config({"horizon": 8}))
    loop.on_message("odom", odometry(1.0), ns(1.0))
    tracemalloc.start()
    rejected = loop.on_message(topic, message, ns(1.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert re.search(re.escape(why), rejected)
    assert peak < 100_000


def standing(**parameters):
    """A loop that stands before a wall seen 1.5 m ahead by its laser, mounted backwards."""
    loop = ControlLoop(Config({"horizon": 8} | parameters))
    loop.on_message("odom", odometry(1.0), ns(1.0))
    loop.on_message("plan", AHEAD, ns(1.0))
    loop.transform = lambda _, frame: {"laser": (0.5, 0.0, math.pi)}[frame]
    return loop


def seen(loop):
    """All that the obstacle slots hold at the first stage."""
    loop.tick(ns(1.0))
    way = np.zeros((2, 3))
    circles = loop.obstacles.ahead(ns(1.0), np.array([0.0, 1.0]), [way], 0.0).chosen([way], 4)
    return [circle for circle in circles[0].tolist() if circle[0] < 1e3]


def test_scan_is_turned_into_the_frame_of_the_state_and_each_source_has_its_own_age():
    loop = standing()
    message = scan([1.0], angle_min=math.pi, stamp_s=1.0, frame="laser")
    assert loop.on_message("scan", message, ns(1.0)) is None
    assert seen(loop) == [pytest.approx([1.5, 0.0, 0.0])]
    loop.on_message("costmap", grid([[100]], 0.2, x=2.0, stamp_s=1.0), ns(1.0))
    loop.on_message("odom", odometry(1.6), ns(1.6))
    tick = loop.tick(ns(1.6))
    assert tick.code is Reason.BLIND
    assert "newest valid message on scan is 0.60 s old, obstacle_timeout is 0.5 s" in tick.reason
    loop.on_message("scan", scan([], stamp_s=2.6, frame="laser"), ns(2.6))
    loop.on_message("odom", odometry(2.6), ns(2.6))
    assert "on costmap is 1.60 s old, costmap_timeout is 1.5 s" in loop.tick(ns(2.6)).reason


def test_only_the_wanted_sources_of_obstacles_are_subscribed_to():
    loop = ControlLoop(Config({"horizon": 8, "obstacle_sources": ["scan"]}))
    assert set(loop.input_topics) & set(SOURCES) == {"scan"}
    with pytest.raises(ValueError, match="obstacle_sources is"):
        Config({"obstacle_sources": ["scan", "radar"]})
