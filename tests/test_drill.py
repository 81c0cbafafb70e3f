# SPDX-License-Identifier: Apache-2.0
"""Closed loops among obstacles that a laser or a map shows, with delay and lag."""

from contextlib import suppress

import numpy as np
import pytest

from benchmarks.drill import Drive, World
from mpc_banded.codegen.build import NoCompiler
from mpc_banded.control.tick import Reason


def compiled(drive):
    with suppress(NoCompiler):
        drive.loop.controller.compile()
    return drive


def doorway(kind):
    """A wall at x = 4 m with a door of 0.9 m, and a path that turns in it."""
    y = np.arange(0.0, 6.0, 0.02)
    y = y[np.abs(y - 3.0) >= 0.45]
    wall = np.stack([np.full(len(y), 4.0), y, np.full(len(y), 1e-3)], axis=1)
    path = np.array([[2.0, 2.5], [3.5, 3.0], [4.0, 3.0], [4.5, 3.0], [6.0, 3.5]])
    start = (2.0, 2.5, 0.0)
    return World(kind, wall, np.empty((0, 3)), path, start, 0.0, 0.0, np.inf, True)


@pytest.mark.parametrize("kind", ["scan", "grid"])
def test_a_doorway_is_passed_in_its_middle(kind):
    drive = compiled(Drive(doorway(kind), reference_speed=0.6))
    outcome = drive.run()
    assert outcome.code is Reason.ARRIVED
    assert outcome.ok
    assert outcome.gap > 0.1  # of the 0.2 m on either side of the robot


def test_a_long_body_passes_with_all_of_its_circles():
    drive = compiled(Drive(doorway("scan"), footprint=[0.3, 0.2, 0.0, 0.2, -0.3, 0.2]))
    outcome = drive.run()
    assert outcome.ok
    assert outcome.gap > 0.1
