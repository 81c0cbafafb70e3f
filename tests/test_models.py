# SPDX-License-Identifier: Apache-2.0
"""Models, costs and commands of the built-in robots have textbooks and slow, obvious twins."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.tick import Reason
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.robots import load_robot
from mpc_banded.robots.bicycle import variant as car_with
from mpc_banded.robots.joint_space import braked
from mpc_banded.robots.joint_space import variant as arm_with
from mpc_banded.robots.messages import fill_joint_state

ARM = arm_with(("a", "b"), "joint_trajectory")
LIMITS = {"a_acceleration": (-2.0, 3.0), "b_acceleration": (-4.0, 0.5)}


def random_point(robot, seed):
    """State, input and parameters, of which none is special."""
    random = np.random.default_rng(seed)
    x, u, reference = (
        torch.from_numpy(random.uniform(0.2, 0.9, len(names)))
        for names in (robot.states, robot.inputs, robot.reference)
    )
    model = {k: torch.tensor(v * random.uniform(0.5, 2.0)) for k, v in robot.model.items()}
    return x, u, {"reference": reference} | model


# Dynamics


def rate_of(quantity, robot, x, u, p):
    """How fast a function of the state changes."""
    return torch.autograd.functional.jvp(quantity, x, robot.dynamics(x, u, p))[1]


@pytest.mark.parametrize("seed", range(3))
def test_neither_axle_of_the_car_slips_sideways(seed):
    robot = load_robot("bicycle")
    x, u, p = random_point(robot, seed)

    def front(x):
        ahead = torch.stack([torch.cos(x[2]), torch.sin(x[2])])
        return x[:2] + p["wheelbase"] * ahead

    for axle, angle in ((lambda x: x[:2], x[2]), (front, x[2] + u[1])):
        velocity = rate_of(axle, robot, x, u, p)
        across = -torch.sin(angle) * velocity[0] + torch.cos(angle) * velocity[1]
        assert float(across) == pytest.approx(0.0, abs=1e-12)
        assert float(velocity.norm()) >= float(x[3]) - 1e-12
    assert float(rate_of(lambda x: x[:2], robot, x, u, p).norm()) == pytest.approx(float(x[3]))
    assert float(rate_of(lambda x: x[3], robot, x, u, p)) == float(u[0])


@pytest.mark.parametrize("seed", range(3))
def test_base_rolls_along_its_heading(seed):
    robot = load_robot("unicycle")
    x, u, p = random_point(robot, seed)
    there = x[3] * torch.stack([torch.cos(x[2]), torch.sin(x[2])])
    torch.testing.assert_close(robot.dynamics(x, u, p), torch.cat([there, x[4:], u]))


@pytest.mark.parametrize("seed", range(3))
def test_omnidirectional_base_moves_as_its_velocity_turned_by_its_heading(seed):
    robot = load_robot("omni")
    x, u, p = random_point(robot, seed)
    there = torch.view_as_real(torch.polar(torch.ones_like(x[2]), x[2]) * torch.complex(*x[3:5]))
    torch.testing.assert_close(robot.dynamics(x, u, p), torch.cat([there, x[5:], u]))


@pytest.mark.parametrize("seed", range(3))
def test_cart_and_pole_gain_the_momentum_and_the_energy_of_the_force(seed):
    robot = load_robot("cartpole")
    x, u, p = random_point(robot, seed)
    cart, pole, length, gravity = (
        p[name] for name in ("cart_mass", "pole_mass", "pole_length", "gravity")
    )

    def momentum(x):
        return cart * x[2] + pole * (x[2] + length * torch.cos(x[1]) * x[3])

    def energy(x):
        across, up = x[2] + length * torch.cos(x[1]) * x[3], -length * torch.sin(x[1]) * x[3]
        kinetic = 0.5 * cart * x[2] ** 2 + 0.5 * pole * (across**2 + up**2)
        return kinetic + pole * gravity * length * torch.cos(x[1])

    torch.testing.assert_close(rate_of(momentum, robot, x, u, p), u[0])
    torch.testing.assert_close(rate_of(energy, robot, x, u, p), u[0] * x[2])
    torch.testing.assert_close(robot.dynamics(x, u, p)[:2], x[2:])


# Costs


def squares(*names):
    return lambda x, _: sum(x[name] ** 2 for name in names)


def offsets(*names):
    return lambda x, r: sum((x[name] - r[name]) ** 2 for name in names)


def away(x, r):
    return 2.0 * math.sin(0.5 * (x["yaw"] - r["yaw"])) ** 2


def joints(suffix=""):
    return [f"joint{i}{suffix}" for i in range(1, 8)]


PLACE = offsets("x", "y")
#: Twins of the costs: functions of the values of state and input, and of the reference, by name.
COSTS = {
    "unicycle": {
        "position": PLACE,
        "heading": away,
        "speed": offsets("v"),
        "turning": squares("w"),
        "effort": squares("linear_acceleration", "angular_acceleration"),
        "arrival": lambda x, r: PLACE(x, r) + 0.2 * away(x, r),
    },
    "omni": {
        "position": PLACE,
        "heading": away,
        "speed": offsets("v", "vy"),
        "turning": squares("w"),
        "effort": squares("linear_acceleration", "lateral_acceleration", "angular_acceleration"),
        "arrival": lambda x, r: PLACE(x, r) + 0.2 * away(x, r),
    },
    "bicycle": {
        "position": PLACE,
        "heading": away,
        "speed": offsets("v"),
        "acceleration": squares("acceleration"),
        "steering": squares("steering"),
        "arrival": lambda x, r: PLACE(x, r) + 5.0 * away(x, r),
    },
    "cartpole": {
        "cart": offsets("cart"),
        "pole": lambda x, _: 1.0 - math.cos(x["pole"]),
        "rates": squares("cart_velocity", "pole_velocity"),
        "effort": squares("force"),
        "arrival": lambda x, r: (
            offsets("cart")(x, r)
            + 10.0 * (1.0 - math.cos(x["pole"]))
            + squares("cart_velocity", "pole_velocity")(x, r)
        ),
    },
    "joint_space": {
        "position": offsets(*joints()),
        "velocity": offsets(*joints("_velocity")),
        "effort": squares(*joints("_acceleration")),
        "arrival": lambda x, r: (
            offsets(*joints())(x, r) + 0.1 * offsets(*joints("_velocity"))(x, r)
        ),
    },
}


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_what_their_names_say(name):
    robot = load_robot(name)
    x, u, p = random_point(robot, 7)
    values = dict(zip((*robot.states, *robot.inputs), torch.cat([x, u]).tolist(), strict=True))
    reference = dict(zip(robot.reference, p["reference"].tolist(), strict=True))
    found = {kind: float(cost(x, u, p)) for kind, cost in robot.stage_costs.items()}
    found |= {kind: float(cost(x, p)) for kind, cost in robot.terminal_costs.items()}
    twins = {kind: twin(values, reference) for kind, twin in COSTS[name].items()}
    assert found == pytest.approx(twins)


# Commands

#: Lag of the machine behind a commanded rate, in s.
LAGS = {
    "unicycle": (load_robot("unicycle"), {"v": 0.1, "w": 0.1}),
    "omni": (load_robot("omni"), {"v": 0.1, "vy": 0.1, "w": 0.1}),
    "car by twist": (load_robot("bicycle"), {"v": 0.2}),
    "car by angles": (car_with("ackermann"), {"v": 0.2}),
    "arm": (arm_with(("a", "b"), "velocity"), {"a_velocity": 0.1, "b_velocity": 0.1}),
}


@pytest.mark.parametrize("name", LAGS)
def test_machine_nears_a_commanded_rate_by_two_thirds_in_one_lag(name):
    robot, lags = LAGS[name]
    command = dict.fromkeys(robot.command_names, 0.5)
    for value, lag_s in lags.items():
        index, state = robot.states.index(value), np.zeros(len(robot.states))
        state[index] = 0.2
        for _ in range(1000):
            u = torch.from_numpy(robot.input_of(state, command, robot.model))
            p = {k: torch.tensor(v) for k, v in robot.model.items()}
            rates = robot.dynamics(torch.from_numpy(state), u, p).numpy()
            state[index] += 1e-3 * lag_s * rates[index]
        assert 0.5 - state[index] == pytest.approx(0.3 * math.exp(-1.0), rel=1e-3)


def test_car_that_is_told_to_turn_on_the_spot_turns_its_wheels_as_at_a_crawl():
    robot, state = load_robot("bicycle"), np.zeros(4)
    for v in (0.0, 0.05, -0.05):
        steering = robot.input_of(state, {"v": v, "w": 0.02}, {"wheelbase": 2.0})[1]
        assert math.tan(steering) == pytest.approx(0.02 * 2.0 / 0.1)
    back = robot.input_of(state, {"v": -0.12, "w": 0.02}, {"wheelbase": 2.0})[1]
    assert math.tan(back) == pytest.approx(0.02 * 2.0 / -0.12)


def test_car_takes_twists_unless_it_is_told_to_take_angles():
    assert car_with("twist") is load_robot("bicycle")
    assert car_with("ackermann").command_names == ("v", "steering")


def test_point_of_a_trajectory_carries_the_state_there_and_the_input_that_leads_there():
    random = np.random.default_rng(1)
    plan = Trajectory(random.standard_normal((9, 4)), random.standard_normal((8, 2)), 0.1)
    for into, first in ((0.0, 0), (0.07, 1)):
        values = ARM.command_values(plan, 0.3, {}, into)
        assert len(values) == 5 * 6
        for k in range(5):
            at = f"{0.1 * (k + 1):.9g}"
            state = plan.state_at(into + 0.1 * (k + 1))
            found = [values[f"{name}@{at}"] for name in ARM.states]
            assert found == state.tolist()
            found = [values[f"{name}@{at}"] for name in ARM.inputs]
            assert found == plan.inputs[k + first].tolist()


@given(error=st.floats(-1.0, 1.0), a=st.floats(-3.0, 3.0))
def test_arm_follows_the_first_point_and_corrects_its_speed_with_the_lag(error, a):
    """What the correction adds to the planned acceleration has the mean error / lag."""
    command = {"a@0.2": 9.0, "b@0.2": 9.0, "a_velocity@0.2": 0.7, "b_velocity@0.2": -0.3}
    command |= {"a_acceleration@0.2": a, "b_acceleration@0.2": 2.0}
    command |= {key.replace("0.2", "0.4"): 100.0 for key in command}
    inputs = []
    for t in (np.arange(20) + 0.5) / 100.0:
        speeds = [0.7 - a * (0.2 - t) - error, -0.3 - 2.0 * (0.2 - t)]
        inputs.append(ARM.input_of(np.array([0.5, 0.6, *speeds]), command, {}))
    assert np.mean(inputs, axis=0) == pytest.approx([a + error / 0.1, 2.0], abs=1e-9)


def test_arm_without_a_command_comes_to_rest_with_the_lag():
    found = ARM.input_of(np.array([5.0, 6.0, 0.5, -1.0]), {}, {})
    assert found == pytest.approx([-5.0, 10.0])


@given(v=st.floats(-2.0, 2.0), limit=st.floats(0.5, 5.0), seconds=st.floats(0.0, 3.0))
def test_braking_is_a_constant_deceleration_that_never_turns_back(v, limit, seconds):
    q, rate = braked(1.0, v, limit, seconds)
    assert abs(rate) == pytest.approx(max(0.0, abs(v) - limit * seconds), abs=1e-12)
    assert rate * v >= 0.0
    # Work and energy: the way is what the lost speed squared takes.
    assert q - 1.0 == pytest.approx(math.copysign(v**2 - rate**2, v) / (2.0 * limit), abs=1e-12)


@given(elapsed_s=st.floats(0.0, 1.0), v=st.floats(-1.5, 1.5))
def test_arm_slows_down_along_points_that_agree_with_each_other(elapsed_s, v):
    times = ("0.1", "0.2", "0.4")
    last = {f"{name}@{t}": 0.0 for name in (*ARM.states, *ARM.inputs) for t in times}
    last |= {"a@0.1": 1.0, "a_velocity@0.1": v, "b@0.1": -1.0, "b_velocity@0.1": 0.3}
    found = ARM.slow(last, elapsed_s, LIMITS)
    for name, begin, speed, limit in (("a", 1.0, v, 2.0), ("b", -1.0, 0.3, 0.5)):
        for t in times:
            q, rate = braked(begin, speed, limit, elapsed_s + float(t) - 0.1)
            assert found[f"{name}@{t}"] == pytest.approx(q, abs=1e-9)
            assert found[f"{name}_velocity@{t}"] == pytest.approx(rate, abs=1e-9)
            acceleration = found[f"{name}_acceleration@{t}"]
            moving = abs(found[f"{name}_velocity@{t}"]) > 0.0
            assert acceleration == (-math.copysign(limit, speed) if moving else 0.0)
    assert ARM.slow({}, elapsed_s, LIMITS) == {}


# The problem, and what a robot does before it knows better


def test_what_has_no_limit_is_unbounded_and_what_is_given_replaces_the_robots():
    robot = load_robot("cartpole")
    plain = robot.problem(5, 0.1)
    lower, upper = plain.state_bounds
    assert lower.tolist() == [-2.0, -math.inf, -math.inf, -math.inf]
    assert upper.tolist() == [2.0, math.inf, math.inf, math.inf]
    assert plain.weights == robot.weights
    other = robot.problem(5, 0.1, {"pole": 3.0}, {"pole": (-1.0, 4.0)})
    assert [bound[1] for bound in other.state_bounds] == [-1.0, 4.0]
    assert other.weights == {**robot.weights, "pole": 3.0}
    base = load_robot("unicycle").problem(5, 0.1, slots=7, outline=3)
    assert base.parameters["obstacles"] == (7, 3)
    assert base.parameters["footprint"] == (3, 2)


def test_stop_of_a_robot_whose_command_is_not_finite_at_rest_is_zero():
    robot = replace(load_robot("unicycle"), command=lambda x, *_: {"v": 0.3 + x[3], "w": math.nan})
    assert robot.stop_values({}) == {"v": 0.3, "w": 0.0}
    assert robot.command_names == ("v", "w")


@pytest.mark.parametrize(("name", "rests"), [("cartpole", True), ("joint_space", False)])
def test_cart_rests_at_zero_and_the_arm_waits_until_they_are_told_where_to_go(name, rests):
    config = Config({"robot": name, "horizon": 4})
    loop, message = ControlLoop(config), SimpleNamespace()
    fill_joint_state(message, dict.fromkeys(config.robot.states, 0.1))
    assert loop.on_message("joint_states", message, 10**9) is None
    tick = loop.tick(10**9)
    assert tick.driving == rests
    assert (tick.code is Reason.NO_REFERENCE) == (not rests)
