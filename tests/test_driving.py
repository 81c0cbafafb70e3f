# SPDX-License-Identifier: Apache-2.0
"""What a base does with goals and paths, in closed loop with its lag and a delay."""

import numpy as np
import pytest
from driving import Trip

from mpc_banded.control.tick import Reason


def line(length, count=100):
    return np.linspace([0.0, 0.0], [length, 0.0], count)


@pytest.mark.parametrize(
    ("name", "how", "speed", "gain", "delay_s"),
    [
        ("bicycle", "plan", 0.5, 0.1, 0.1),
        ("bicycle", "goal", 2.0, 1.0, 0.1),
        ("bicycle", "plan", 5.0, 3.0, 0.0),
        ("unicycle", "goal", 1.0, 0.3, 0.0),
        ("unicycle", "plan", 1.0, 3.0, 0.1),
    ],
)
def test_no_base_passes_its_goal_by_more_than_two_centimetres(name, how, speed, gain, delay_s):
    rate = "linear_acceleration" if name == "unicycle" else "acceleration"
    trip = Trip(
        name,
        np.zeros(5 if name == "unicycle" else 4),
        delay_s,
        reference_speed=speed,
        **{f"limits__{rate}": [-gain, gain]},
    )
    length = 1.5 * max(1.0, speed**2 / gain)
    rejected = trip.goal(length, 0.0, 0.0) if how == "goal" else trip.plan(line(length))
    assert rejected is None
    trip.run(60.0)
    assert trip.ticks[-1].code is Reason.ARRIVED
    assert trip.states[:, 0].max() - length <= 0.02
    assert abs(trip.states[-1, 0] - length) <= 0.03
    assert np.abs(np.diff(trip.commands("v"))).max() <= gain * trip.config.period_s + 1e-9
