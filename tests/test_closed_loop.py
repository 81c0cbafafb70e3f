# SPDX-License-Identifier: Apache-2.0
"""The robots in closed loop, against a plant that does not use the transcription."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from mpc_banded import Status
from mpc_banded.codegen.build import NoCompiler
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.path import PathReference
from mpc_banded.offline.drive import Run, bound_violations, clearance, tracking_error
from mpc_banded.robots.messages import fill_joint_state, fill_odometry
from mpc_banded.ros.demo.scenarios import figure_of_eight, lane_change

CONFIG = Path(__file__).resolve().parents[1] / "config"


def control_loop(name):
    """Compiled, as users have it, where there is a compiler."""
    loop = ControlLoop(Config.load(CONFIG / f"{name}.yaml"))
    with suppress(NoCompiler):
        loop.controller.compile()
    return loop


def fields(**values):
    return SimpleNamespace(**values)


def state_message(robot, state):
    """A message with the fields of nav_msgs/Odometry and sensor_msgs/JointState."""
    vector = lambda: fields(x=0.0, y=0.0, z=0.0, w=1.0)  # noqa: E731
    pose = fields(pose=fields(position=vector(), orientation=vector()))
    twist = fields(twist=fields(linear=vector(), angular=vector()))
    message = fields(pose=pose, twist=twist, name=[], position=[], velocity=[])
    fill = fill_odometry if robot.state_message == "odometry" else fill_joint_state
    fill(message, dict(zip(robot.states, state, strict=True)))
    return message


def drive(loop, state, duration_s):
    """Closed loop from a state; the run and all ticks."""
    config, robot, model = loop.config, loop.robot, loop.config.parameters.model
    bounds = loop.controller.problem.input_bounds
    p = {name: torch.tensor(value) for name, value in model.items()}
    state = np.array(state, dtype=float)
    run, ticks = Run(), []
    for k in range(round(duration_s / config.period_s)):
        now = k * config.period_s
        run.states.append((now, dict(zip(robot.states, state, strict=True))))
        topic, message = robot.state_topics[0].topic, state_message(robot, state)
        assert loop.on_message(topic, message, int(1e9 * now)) is None
        tick = loop.tick(int(1e9 * now))
        run.commands.append((now, tick.command))
        ticks.append(tick)

        def rate(_, x, command=tick.command):
            u = np.clip(robot.input_of(x, command, model), *bounds)
            return robot.dynamics(torch.from_numpy(x), torch.from_numpy(u), p).numpy()

        plant = solve_ivp(rate, (0.0, config.period_s), state, rtol=1e-7, atol=1e-9)
        state = plant.y[:, -1]
    assert all(tick.driving for tick in ticks)
    assert bound_violations(run, config) == 0
    return run, ticks


def assert_iterations(ticks, first, mean, most):
    """Newton iterations of the first step, and mean and maximum of the others, at most.

    No machine changes them, so a loss of convergence shows here; the limits leave half as much
    again as is needed.
    """
    counts = np.array([tick.step.iterations for tick in ticks])
    assert counts[0] <= first
    assert counts[1:].mean() <= mean
    assert counts[1:].max() <= most


@pytest.mark.slow
def test_unicycle_follows_a_figure_of_eight_past_an_obstacle():
    loop = control_loop("unicycle")
    path = PathReference(figure_of_eight(), 0.8)
    loop.reference = PathReference(figure_of_eight(), 0.8)
    run, ticks = drive(loop, [0.0, 0.5, 0.0, 0.0, 0.0], 20.0)
    gaps = clearance(run, loop.config)
    error = tracking_error(run, path)
    counted = (run.state_times > 3.0) & (gaps > 0.5)
    assert counted.sum() > 200
    assert np.sqrt((error[counted] ** 2).mean()) < 0.05
    assert gaps.min() > 0.0
    assert (
        path.distance(np.array(loop.config.parameters.obstacles[:2]))
        < loop.config.parameters.obstacles[2]
    )
    assert run.state("v")[run.state_times > 3.0].mean() == pytest.approx(0.8, abs=0.1)
    assert all(tick.step.status is Status.CONVERGED for tick in ticks)
    assert_iterations(ticks, first=24, mean=3.8, most=14)


@pytest.mark.slow
def test_bicycle_changes_lane_past_an_obstacle():
    loop = control_loop("bicycle")
    path = PathReference(lane_change(), 5.0)
    loop.reference = PathReference(lane_change(), 5.0)
    run, ticks = drive(loop, [0.0, 0.0, 0.0, 5.0], 18.0)
    circle = np.array(loop.config.parameters.obstacles)
    assert path.distance(circle[:2]) < circle[2]
    assert clearance(run, loop.config).min() > 0.0
    assert tracking_error(run, path)[-1] < 0.1
    assert run.state("v").mean() == pytest.approx(5.0, abs=0.5)
    assert all(tick.step.status is Status.CONVERGED for tick in ticks)
    assert_iterations(ticks, first=5, mean=2.9, most=17)


def upright(run):
    return np.abs(np.angle(np.exp(1j * run.state("pole")))) < 0.1


def test_cartpole_swings_up_from_hanging_at_rest_and_stays_up():
    loop = control_loop("cartpole")
    run, ticks = drive(loop, [0.0, np.pi, 0.0, 0.0], 14.0)
    assert_iterations(ticks, first=100, mean=1.5, most=8)
    assert upright(run)[run.state_times > 4.0].all()
    assert np.abs(run.state("cart")).max() < 2.0 + 1e-3


@pytest.mark.slow
def test_cartpole_gets_upright_from_anywhere():
    generator = np.random.default_rng(7)
    starts = generator.uniform([-1.0, -np.pi, -1.0, -3.0], [1.0, np.pi, 1.0, 3.0], (50, 4))
    loop = control_loop("cartpole")
    late = []
    for start in starts:
        loop.reset()
        run, _ = drive(loop, start, 5.0)
        if not upright(run)[run.state_times > 4.0].all():
            late.append(start)
    assert not late
