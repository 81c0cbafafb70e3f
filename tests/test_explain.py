# SPDX-License-Identifier: Apache-2.0
"""A robot that stands far from its goal says which cost holds it, and no other robot does."""

import numpy as np
import pytest
from loop_messages import AHEAD, ns, odometry, plan, pose

from mpc_banded.control.config import Config
from mpc_banded.control.explain import violated
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation

PERIOD = 0.05


def reasons(message=AHEAD, topic="plan", seconds=1.0, **parameters):
    config = Config({"horizon": 20, "dt": 0.1} | parameters)
    loop, robot = ControlLoop(config), Simulation(config)
    result = []
    loop.on_message(topic, message, 0)
    for k in range(round(seconds / PERIOD)):
        loop.on_message("odom", odometry(**robot.values), ns(PERIOD * k))
        tick = loop.tick(ns(PERIOD * k))
        robot.advance(tick.command, PERIOD)
        result.append(tick.reason)
    return result


WALL = [number for k in range(-8, 9) for number in (0.9, 0.4 * k, 0.3)]


@pytest.mark.parametrize(
    ("parameters", "cost"),
    [
        ({"weights.effort": 1e7}, "effort"),
        ({"obstacles": WALL}, "clearance"),
    ],
)
def test_robot_that_is_held_names_the_cost(parameters, cost):
    goal = pose(3.0, 0.0)
    held = [
        text
        for text in reasons(goal, "goal_pose", 4.0, **parameters)
        if "away from its reference" in text
    ]
    assert held
    assert f"going there would cost most in {cost!r}" in held[-1]


def test_robot_that_drives_or_has_arrived_is_not_held():
    assert not [text for text in reasons(seconds=2.0) if "held" in text]
    assert not [text for text in reasons(pose(0.1, 0.0), "goal_pose") if "held" in text]
    behind = plan((0.0, 0.0), (-3.0, 0.0))  # it turns round first
    assert not [text for text in reasons(behind) if "held" in text]


def test_violations_that_matter_are_told_with_their_size():
    assert violated({"clearance": 0.25, "state_bounds": 1e-5}) == (
        "the plan violates clearance by 0.25"
    )
    assert violated({"clearance": 0.0, "state_bounds": np.nan}) == ""
