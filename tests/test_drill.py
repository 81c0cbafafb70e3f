# SPDX-License-Identifier: Apache-2.0
"""Closed loops among obstacles that a laser or a map shows, with delay and lag."""

from contextlib import suppress

import numpy as np
import pytest
from drill import Drive, World, make_world, values

from benchmarks import pages
from mpc_banded.codegen.build import NoCompiler


def compiled(drive):
    with suppress(NoCompiler):
        drive.loop.controller.compile()
    return drive


#: Worlds seen as circles, by a laser and on a map, with a person, with something that appears
#: late, with sources that fall silent, and without a way.
WORLDS = (13, 15, 23, 227)


@pytest.mark.parametrize("seed", WORLDS)
def test_worlds_of_the_drill_are_driven_as_they_should_be(seed):
    world = make_world(seed)
    outcome = compiled(Drive(world)).run()
    assert outcome.gap > 0.0
    assert outcome.excess <= 1e-6
    assert outcome.arrived == world.has_way
    assert outcome.is_right(world)


def doorway(kind):
    """A wall at x = 4 m with a door of 0.9 m, and a path that turns in it."""
    y = np.arange(0.0, 6.0, 0.02)
    y = y[np.abs(y - 3.0) >= 0.45]
    wall = np.stack([np.full(len(y), 4.0), y, np.full(len(y), 1e-3)], axis=1)
    path = np.array([[2.0, 2.5], [3.5, 3.0], [4.0, 3.0], [4.5, 3.0], [6.0, 3.5]])
    start = (2.0, 2.5, 0.0)
    return World(kind, wall, np.empty((0, 3)), path, start)


@pytest.mark.parametrize("kind", ["scan", "map"])
def test_a_doorway_is_passed_in_its_middle(kind):
    world = doorway(kind)
    outcome = compiled(Drive(world, reference_speed=0.6)).run()
    assert outcome.is_right(world)
    assert outcome.gap > 0.1  # of the 0.2 m on either side of the robot


def test_a_long_body_passes_with_all_of_its_circles():
    world = doorway("scan")
    outcome = compiled(Drive(world, footprint=[0.3, 0.2, 0.0, 0.2, -0.3, 0.2])).run()
    assert outcome.is_right(world)
    assert outcome.gap > 0.1


def test_the_page_of_the_drill_has_a_place_for_every_figure():
    found = pages.places((pages.DOCS / "drill.md").read_text())
    assert set(values([])) == set(found)
