# SPDX-License-Identifier: Apache-2.0
"""Parameters that change while the robot drives change at once or not at all, without a jump."""

import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_messages import ns, odometry, plan, quick_loop

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.parameters import GENERAL, entries_of
from mpc_banded.ocp.comb import BandwidthError
from mpc_banded.robots import load_robot
from mpc_banded.robots.robot import BUILT_IN
from mpc_banded.ros.demo.scenarios import figure_of_eight

PERIOD = 0.05


def driven(change=None, at=60, ticks=70, **parameters):
    """Commands and iterations of a drive that changes its parameters before the tick ``at``."""
    config = Config({"reference_speed": 0.8, "horizon": 30} | parameters)
    loop, robot = quick_loop(config), Simulation(config)
    loop.on_message("plan", plan(*figure_of_eight()[::5]), 0)
    result = []
    for k in range(ticks):
        if k == at and change:
            loop.adopt(loop.config.changed(change))
        loop.on_message("odom", odometry(**robot.values), ns(PERIOD * k))
        tick = loop.tick(ns(PERIOD * k))
        assert tick.driving
        robot.advance(tick.command, PERIOD)
        result.append(tick)
    return result


@pytest.fixture(scope="module")
def plain():
    """The drive that nobody interferes with."""
    return driven()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"horizon": 20},
        {"horizon": 45},
        {"dt": 0.1},
        {"dt": 0.04},
        {"horizon": 60, "dt": 0.025},
        {"limits.v": [-0.1, 1.5]},
        {"limits.v": [-math.inf, 1.2]},
        {"solver.max_iterations": 50},
        {"weights.position": 12.0},
        {"transcription": "rk4"},
        {"max_state_age": 1.0, "fallback.follow_time": 1.0},
    ],
)
def test_warm_start_survives_every_change(change, plain):
    changed = driven(change)
    cold = plain[0].step.iterations
    iterations = changed[60].step.iterations
    assert iterations <= max(tick.step.iterations for tick in plain[50:]) + 3
    assert iterations < cold
    jump = {n: abs(changed[60].command[n] - changed[59].command[n]) for n in ("v", "w")}
    limits = changed[60].step.plan.dt  # of the old or the new grid: they differ little
    assert jump["v"] <= 1.0 * (PERIOD + limits)
    assert jump["w"] <= 4.0 * (PERIOD + limits)


def test_same_plan_on_a_finer_grid_gives_the_same_commands(plain):
    there = driven({"horizon": 60, "dt": 0.025}, ticks=62)
    for name in ("v", "w"):
        assert there[60].command[name] == pytest.approx(plain[60].command[name], abs=0.03)


def test_only_what_is_built_in_needs_a_new_controller():
    config = Config({})
    building = {"horizon": 20, "dt": 0.1, "limits.v": [0.0, 1.0], "solver.max_iterations": 9}
    for key, value in (building | {"transcription": "rk4", "bandwidth": 50}).items():
        assert config.rebuilds(config.changed({key: value}))
    others = {"weights.position": 3.0, "obstacles": [1.0, 1.0, 1.0], "max_state_age": 1.0}
    assert not config.rebuilds(config.changed(others))
    assert not config.rebuilds(config.changed({}))


def test_several_are_changed_at_once_or_not_at_all():
    config = Config({})
    before = dict(config.values)
    with pytest.raises(ConfigError, match=r"dt is -1\.0; allowed are numbers from 0 to 10"):
        config.changed({"horizon": 20, "dt": -1.0})
    assert config.values == before
    assert config.changed({"horizon": 20, "dt": 0.1}).parameters.horizon == 20
    assert config.parameters.horizon == 0


@pytest.mark.parametrize("robot", BUILT_IN)
def test_what_is_read_only_can_be_set_to_what_it_is_and_to_nothing_else(robot):
    config = Config({"robot": robot})
    fixed = [key for key, entry in config.table.items() if entry.read_only]
    assert {"robot", "enable_stamped_cmd_vel"} <= set(fixed)
    for key in fixed:
        assert config.changed({key: config.values[key]}).values == config.values
    with pytest.raises(ConfigError, match="enable_stamped_cmd_vel is False; it holds from"):
        config.changed({"enable_stamped_cmd_vel": False})


def test_too_small_a_bandwidth_is_refused_and_the_robot_drives_on():
    config = Config({"horizon": 8})
    loop = ControlLoop(config)
    controller = loop.controller
    with pytest.raises(BandwidthError):
        loop.adopt(config.changed({"bandwidth": 2}))
    with pytest.raises(ConfigError, match="robot is 'bicycle'"):
        loop.adopt(Config({"robot": "bicycle"}))
    assert (loop.config, loop.controller) == (config, controller)


KEYS = st.one_of(st.sampled_from(sorted(entries_of(load_robot("unicycle")))), st.text(max_size=8))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=4,
)


@settings(max_examples=300)
@given(updates=st.dictionaries(KEYS, VALUES, max_size=3))
def test_garbage_changes_nothing_and_raises_nothing_but_config_errors(updates):
    config = Config({})
    before = dict(config.values)
    changed = None
    with suppress(ConfigError):
        changed = config.changed(updates)
    if changed is not None:
        again = Config(changed.values)
        assert again.values == changed.values
        assert {k: v for k, v in changed.values.items() if k not in updates} == {
            k: v for k, v in before.items() if k not in updates
        }
    assert config.values == before


def test_every_number_has_a_unit_or_is_one_by_its_nature():
    """Counts, shares and relative tolerances have none; lengths, times and rates do."""
    bare = [key for key, e in GENERAL.items() if isinstance(e.default, float) and not e.unit]
    assert all(key.startswith("solver.") or key == "deadline" for key in bare)
    assert np.isfinite([GENERAL[key].lower for key in bare]).all()
