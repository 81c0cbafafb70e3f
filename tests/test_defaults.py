# SPDX-License-Identifier: Apache-2.0
"""Defaults that protect people or machines: changing one fails a test and needs a decision.

The tables repeat the values on purpose. The laws below them relate the values to each other.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mpc_banded.control import fallback, gates, state
from mpc_banded.control.config import Config
from mpc_banded.control.parameters import entries_of
from mpc_banded.ocp.problem import STATE_BOUND_PENALTY
from mpc_banded.robots import load_robot
from mpc_banded.robots.robot import BUILT_IN

FILES = Path(__file__).resolve().parents[1] / "config"
PROTECTING = {
    "controller_frequency": 20.0,
    "deadline": 0.8,
    "max_state_age": 0.3,
    "use_header_stamps": True,
    "max_frozen_time": 1.0,
    "jump_margin": 0.5,
    "jump_samples": 5,
    "obstacle_timeout": 0.5,
    "timed_paths": False,
    "path_orientation": "auto",
    "minimum_rotation_angle": 0.785,
    "inversion_xy_tolerance": 0.2,
    "inversion_yaw_tolerance": 0.4,
    "xy_goal_tolerance": 0.25,
    "yaw_goal_tolerance": 0.25,
    "trans_stopped_velocity": 0.25,
    "rot_stopped_velocity": 0.25,
    "required_movement_radius": 0.5,
    "required_movement_angle": 0.5,
    "movement_time_allowance": 10.0,
    "compile": True,
    "enable_stamped_cmd_vel": True,
    "substeps": 1,
    "bandwidth": 0,
    "simulator.frequency": 100.0,
    "simulator.actuation_delay": 0.0,
    "fallback.follow_time": 0.3,
    "fallback.slow_time": 3.0,
    "actuation_delay": 0.0,
    "command_lead": 0.1,
    "reference_speed": 0.5,
    "simulator.command_timeout": 0.5,
    "solver.max_iterations": 100,
    "solver.kkt_tolerance": 1e-6,
    "solver.defect_tolerance": 1e-6,
    "solver.barrier": 1e-5,
}
LIMITS = {
    "unicycle": {
        "v": (-0.3, 1.2),
        "w": (-1.8, 1.8),
        "linear_acceleration": (-1.0, 1.0),
        "angular_acceleration": (-4.0, 4.0),
    },
    "omni": {
        "v": (-1.0, 1.0),
        "vy": (-1.0, 1.0),
        "w": (-1.8, 1.8),
        "linear_acceleration": (-1.0, 1.0),
        "lateral_acceleration": (-1.0, 1.0),
        "angular_acceleration": (-4.0, 4.0),
    },
    "bicycle": {"v": (0.0, 8.0), "acceleration": (-4.0, 3.0), "steering": (-0.5, 0.5)},
    "cartpole": {"cart": (-2.0, 2.0), "force": (-15.0, 15.0)},
    "joint_space": {
        **{f"joint{i}": (-math.pi, math.pi) for i in range(1, 8)},
        **{f"joint{i}_velocity": (-2.0, 2.0) for i in range(1, 8)},
        **{f"joint{i}_acceleration": (-5.0, 5.0) for i in range(1, 8)},
    },
}
WEIGHTS = {
    "unicycle": {
        "position": 10.0,
        "heading": 1.0,
        "speed": 1.0,
        "turning": 0.01,
        "effort": 0.02,
        "arrival": 50.0,
    },
    "omni": {
        "position": 10.0,
        "heading": 5.0,
        "speed": 1.0,
        "turning": 0.01,
        "effort": 0.02,
        "arrival": 50.0,
    },
    "bicycle": {
        "position": 1.0,
        "heading": 5.0,
        "speed": 1.0,
        "acceleration": 0.1,
        "steering": 2.0,
        "arrival": 10.0,
    },
    "cartpole": {"cart": 1.0, "pole": 20.0, "rates": 0.02, "effort": 0.002, "arrival": 10.0},
    "joint_space": {"position": 10.0, "velocity": 1.0, "effort": 0.02, "arrival": 50.0},
}
MODELS = {
    "unicycle": {},
    "omni": {"max_speed": 1.0},
    "bicycle": {"wheelbase": 2.5},
    "cartpole": {"cart_mass": 1.0, "pole_mass": 0.1, "pole_length": 0.8, "gravity": 9.81},
    "joint_space": {},
}
#: Scheme, intervals, their duration in s, and slots for obstacles.
GRIDS = {
    "unicycle": ("midpoint", 40, 0.05, 4),
    "omni": ("midpoint", 40, 0.05, 4),
    "bicycle": ("rk4", 50, 0.05, 4),
    "cartpole": ("midpoint", 40, 0.05, 0),
    "joint_space": ("midpoint", 20, 0.05, 0),
}
#: Parameters that hold from the start on.
READ_ONLY = {
    "robot", "compile", "state_frame", "enable_stamped_cmd_vel", "command", "joints",
    "simulator.frequency", "simulator.initial_state", "simulator.actuation_delay",
    "simulator.command_timeout",
}  # fmt: skip
#: Radius of the footprint, margin beyond it, both in m, and the penalty of the clearance.
CLEARANCES = {
    "unicycle": (0.25, 0.05, (1000.0, 1000.0)),
    "omni": (0.3, 0.05, (1000.0, 1000.0)),
    "bicycle": (1.0, 0.2, (1000.0, 1000.0)),
}


@pytest.mark.parametrize(("key", "value"), PROTECTING.items())
def test_parameter_that_protects_keeps_its_default(key, value):
    assert Config({}).values[key] == value


def test_constants_that_protect_keep_their_values():
    assert gates.FIRST_PLAN_NS == 2_000_000_000
    assert fallback.LONGEST_CYCLE_S == 0.5
    assert state.AHEAD_NS == 50_000_000
    assert state.FROZEN == 0.1
    assert STATE_BOUND_PENALTY == (1e3, 1e3)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_a_robot_are_those_of_its_table_and_its_file(name):
    assert dict(load_robot(name).limits) == LIMITS[name]
    config = Config.load(FILES / f"{name}.yaml")
    assert {key: tuple(config.values[f"limits.{key}"]) for key in LIMITS[name]} == LIMITS[name]


@pytest.mark.parametrize("name", WEIGHTS)
def test_tuning_and_constants_of_a_robot_are_those_of_its_table(name):
    robot = load_robot(name)
    assert (robot.weights, robot.model) == (WEIGHTS[name], MODELS[name])
    assert (robot.transcription, robot.horizon, robot.dt, robot.obstacles) == GRIDS[name]


def test_parameters_that_are_read_at_the_start_cannot_change_while_a_robot_drives():
    tables = [entries_of(load_robot(name)) for name in BUILT_IN]
    found = {key for table in tables for key, entry in table.items() if entry.read_only}
    assert found >= READ_ONLY


@pytest.mark.parametrize("name", CLEARANCES)
def test_plan_keeps_the_margin_between_the_rim_and_an_obstacle(name):
    robot, (radius, margin, penalty) = load_robot(name), CLEARANCES[name]
    assert (robot.radius, robot.penalties["clearance"]) == (radius, penalty)
    obstacles = torch.tensor([[3.0, 4.0, 0.5]], dtype=torch.float64)
    x = torch.zeros(len(robot.states), dtype=torch.float64)
    u = torch.zeros(len(robot.inputs), dtype=torch.float64)
    footprint = torch.tensor([[0.0, radius]], dtype=torch.float64)
    p = {"obstacles": obstacles, "footprint": footprint}
    free = robot.inequalities["clearance"](x, u, p)
    np.testing.assert_allclose(free, [5.0 - 0.5 - radius - margin], atol=1e-6)


@pytest.mark.parametrize("name", CLEARANCES)
def test_robot_that_lost_its_state_stands_before_slowing_down_is_cut_short(name):
    robot, config = load_robot(name), Config.load(FILES / f"{name}.yaml")
    strongest = -robot.limits[robot.braking["v"]][0]
    assert robot.limits["v"][1] / strongest < config.values["fallback.slow_time"]


@pytest.mark.parametrize("name", CLEARANCES)
def test_horizon_is_long_enough_to_stop_in(name):
    robot = load_robot(name)
    strongest = -robot.limits[robot.braking["v"]][0]
    assert robot.limits["v"][1] / strongest < robot.horizon * robot.dt
