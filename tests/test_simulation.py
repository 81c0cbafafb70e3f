# SPDX-License-Identifier: Apache-2.0
"""The simulated robots obey the laws of their dynamics, and agree with another integrator."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from mpc_banded.control.build import build_problem
from mpc_banded.control.config import Config
from mpc_banded.control.motion import Simulation
from mpc_banded.robots.robot import BUILT_IN

COMMANDS = {
    "unicycle": {"v": 0.7, "vy": 0.0, "w": 0.9},
    "omni": {"v": 0.5, "vy": -0.6, "w": 0.9},
    "bicycle": {"v": 4.0, "vy": 0.0, "w": 0.5},
    "cartpole": {"force": 7.0},
    "joint_space": {
        f"joint{i}{part}@0.05": value
        for i in range(1, 8)
        for part, value in (("", 0.0), ("_velocity", 0.1 * i), ("_acceleration", 0.0))
    },
}


@pytest.mark.parametrize("robot", BUILT_IN)
def test_agrees_with_an_adaptive_integrator(robot):
    config = Config({"robot": robot})
    robot, model, command = config.robot, config.parameters.model, COMMANDS[robot]
    p = {name: torch.tensor(value, dtype=torch.float64) for name, value in model.items()}
    bounds = build_problem(config).input_bounds

    def rate(_, x):
        u = np.clip(robot.input_of(x, command, model), *bounds)
        return robot.dynamics(torch.from_numpy(x), torch.from_numpy(u), p).numpy()

    start = config.initial_state()
    twin = solve_ivp(rate, (0.0, 1.0), start, rtol=1e-10, atol=1e-12, max_step=0.01)
    simulation = Simulation(config)
    for _ in range(100):
        simulation.advance(command, 0.01)
    # Where an input leaves its limit the rate has a kink, and each integrator steps over it.
    assert np.allclose(simulation.state, twin.y[:, -1], atol=1e-4)
    assert not np.allclose(simulation.state, start, atol=0.1)


def test_pole_without_force_keeps_its_energy():
    config = Config({"robot": "cartpole", "simulator.initial_state": [0.0, 0.5, 0.3, 1.0]})
    model = config.parameters.model
    simulation = Simulation(config)

    def energy(state):
        _, angle, cart_rate, pole_rate = state
        m, length = model["pole_mass"], model["pole_length"]
        vx = cart_rate + length * pole_rate * np.cos(angle)
        vy = -length * pole_rate * np.sin(angle)
        kinetic = 0.5 * model["cart_mass"] * cart_rate**2 + 0.5 * m * (vx**2 + vy**2)
        return kinetic + m * model["gravity"] * length * np.cos(angle)

    before = energy(simulation.state)
    simulation.advance({"force": 0.0}, 5.0)
    assert abs(simulation.state[1]) > np.pi  # it has fallen over
    assert energy(simulation.state) == pytest.approx(before, abs=1e-6)


def test_inputs_saturate_at_the_limits():
    config = Config({"limits.linear_acceleration": [-0.5, 0.25]})
    simulation = Simulation(config)
    simulation.advance({"v": 100.0, "w": 0.0}, 2.0)
    assert simulation.values["v"] == pytest.approx(0.5)
    simulation.advance({"v": -100.0, "w": 0.0}, 1.0)
    assert simulation.values["v"] == pytest.approx(0.0)


@pytest.mark.parametrize(("robot", "speeds"), [("unicycle", ("v", "w")), ("bicycle", ("v",))])
def test_stop_command_stops(robot, speeds):
    config = Config({"robot": robot})
    simulation = Simulation(config)
    simulation.advance(COMMANDS[robot], 1.0)
    stop = config.robot.stop_values(config.parameters.model)
    simulation.advance(stop, 5.0)
    assert all(abs(simulation.values[name]) < 1e-3 for name in speeds)


def test_no_time_no_motion_and_reset_goes_back():
    config = Config({"simulator.initial_state": [1.0, 2.0, 3.0, 0.5, 0.0]})
    simulation = Simulation(config)
    simulation.advance({"v": 1.0, "w": 0.0}, 0.0)
    assert np.array_equal(simulation.state, config.initial_state())
    simulation.advance({"v": 1.0, "w": 0.0}, 1.0)
    assert not np.array_equal(simulation.state, config.initial_state())
    simulation.reset()
    assert np.array_equal(simulation.state, config.initial_state())


@pytest.mark.parametrize("delay", [0.03, 0.1, 0.35])
def test_delayed_command_acts_as_the_same_command_later(delay):
    config = Config({})
    late, twin = Simulation(config, delay_s=delay), Simulation(config)
    commands = [{"v": v, "w": w} for v, w in np.random.default_rng(3).uniform(-0.3, 1.0, (20, 2))]
    twin.advance(config.robot.stop_values({}), delay)
    for command in commands:
        late.advance(command, 0.05)
        twin.advance(command, 0.05)
    late.advance(commands[-1], delay)
    assert late.state == pytest.approx(twin.state, abs=1e-5)
    late.reset()
    late.advance(commands[0], delay)
    assert np.array_equal(late.state, config.initial_state())
