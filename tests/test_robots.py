# SPDX-License-Identifier: Apache-2.0
"""Laws of the built-in robots, and a user's robot from outside the package."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.robots import Robot, clearance, distance, load_robot
from mpc_banded.robots.messages import (
    Goal,
    ReferenceTopic,
    StateTopic,
    fill_joint_state,
)
from mpc_banded.robots.robot import BUILT_IN


def parameters(robot, generator, batch):
    shape = (*batch, len(robot.reference))
    p = {"reference": torch.randn(shape, generator=generator, dtype=torch.float64)}
    p["obstacles"] = torch.rand((*batch, 4, 3), generator=generator, dtype=torch.float64)
    p["footprint"] = torch.rand((*batch, 2, 2), generator=generator, dtype=torch.float64)
    return p | {name: torch.full(batch, value).double() for name, value in robot.model.items()}


def functions(robot):
    """Every torch function of a robot, as one of (x, u, p)."""
    yield "dynamics", robot.dynamics
    yield from robot.stage_costs.items()
    yield from robot.inequalities.items()
    for name, cost in robot.terminal_costs.items():
        yield name, lambda x, _, p, cost=cost: cost(x, p)


@pytest.mark.parametrize("name", BUILT_IN)
def test_functions_treat_a_batch_as_its_members_one_by_one(name, generator):
    robot = load_robot(name)
    x = torch.randn(5, len(robot.states), generator=generator, dtype=torch.float64)
    u = torch.randn(5, len(robot.inputs), generator=generator, dtype=torch.float64)
    p = parameters(robot, generator, (5,))
    for _, function in functions(robot):
        one_by_one = [function(x[i], u[i], {k: v[i] for k, v in p.items()}) for i in range(5)]
        torch.testing.assert_close(function(x, u, p), torch.stack(one_by_one))


@pytest.mark.parametrize("name", BUILT_IN)
def test_costs_are_never_negative_and_nothing_is_gained_by_full_turns(name, generator):
    robot = load_robot(name)
    x = torch.randn(50, len(robot.states), generator=generator, dtype=torch.float64)
    u = torch.randn(50, len(robot.inputs), generator=generator, dtype=torch.float64)
    p = parameters(robot, generator, (50,))
    turned = x.clone()
    turned[:, [robot.states.index(state) for state in robot.cyclic]] += 2.0 * math.pi
    for kind, function in functions(robot):
        value = function(x, u, p)
        torch.testing.assert_close(function(turned, u, p), value, rtol=0, atol=1e-12)
        assert kind in ("dynamics", *robot.inequalities) or (value >= 0).all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_standing_at_the_goal_costs_nothing_and_moves_nowhere(name):
    robot = load_robot(name)
    x, u = torch.zeros(len(robot.states)).double(), torch.zeros(len(robot.inputs)).double()
    p = {"reference": torch.zeros(len(robot.reference)).double()}
    p |= {name: torch.tensor(value) for name, value in robot.model.items()}
    costs = {**robot.stage_costs, **robot.terminal_costs}
    total = sum(float(f(x, u, p)) for kind, f in functions(robot) if kind in costs)
    assert total == 0.0
    assert not robot.dynamics(x, u, p).any()


SPEEDS = st.floats(0.2, 6.0)


@given(v=SPEEDS, acceleration=st.floats(-3.0, 3.0), steering=st.floats(-0.5, 0.5))
def test_car_steers_as_it_was_planned(v, acceleration, steering):
    """What the car makes of a command, at the speed the command was meant for, is the input."""
    robot = load_robot("bicycle")
    state = np.array([0.0, 0.0, 0.0, v])
    plan = Trajectory(np.tile(state, (2, 1)), np.array([[acceleration, steering]]), 0.05)
    command = robot.command_values(plan, 0.0, robot.model)
    made = robot.input_of(state, command, robot.model)
    assert made == pytest.approx([0.0, steering], abs=1e-12)


@given(lead=st.floats(0.0, 0.2))
def test_command_of_a_base_is_the_planned_velocity_one_lead_ahead(lead):
    robot = load_robot("unicycle")
    states = np.random.default_rng(0).standard_normal((5, 5))
    plan = Trajectory(states, np.zeros((4, 2)), 0.05)
    command = robot.command_values(plan, lead, robot.model)
    assert (command["v"], command["w"]) == tuple(plan.state_at(lead)[3:])


def test_distance_is_that_to_the_rim_less_the_margin():
    x = torch.tensor([3.0, 4.0, 7.0], dtype=torch.float64)
    circles = torch.tensor([[0.0, 0.0, 1.0], [3.0, 4.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([5.0 - 1.0 - 0.5, -2.0 - 0.5], dtype=torch.float64)
    torch.testing.assert_close(distance(x, circles, 0.5), expected, atol=1.1e-3, rtol=0)


def test_clearance_is_that_of_each_circle_of_the_footprint_to_each_obstacle():
    x = torch.tensor([1.0, 2.0, math.pi / 2], dtype=torch.float64)
    p = {
        "obstacles": torch.tensor([[1.0, 5.0, 0.5], [4.0, 2.0, 1.0]], dtype=torch.float64),
        "footprint": torch.tensor([[1.0, 0.3], [0.0, 0.4]], dtype=torch.float64),
    }
    expected = [2.0 - 0.5, math.hypot(3.0, 1.0) - 1.0, 3.0 - 0.5, 3.0 - 1.0]
    expected = torch.tensor(expected) - torch.tensor([0.3, 0.3, 0.4, 0.4]) - 0.1
    torch.testing.assert_close(clearance(x, p, 0.1), expected.double(), atol=1e-3, rtol=0)


def test_state_from_values_names_what_is_missing():
    robot = load_robot("cartpole")
    with pytest.raises(KeyError, match="pole_velocity"):
        robot.state({"cart": 0.0, "pole": 0.0, "cart_velocity": 0.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_message": "smell"}, "state_message is 'smell'; allowed are"),
        ({"command_message": "wish"}, "command_message is 'wish'; allowed are"),
        ({"reference_message": "dream"}, "reference_message is 'dream'; allowed are"),
        ({"inputs": ("x", "y")}, "must differ"),
        ({"limits": {"speed": (0.0, 1.0)}}, "limits has unknown names"),
        ({"cyclic": ("heading",)}, "cyclic has unknown names"),
    ],
)
def test_robot_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(load_robot("unicycle"), **change)


def named(robot, generator):
    """A state (nx,) of a robot, and its values by name."""
    state = torch.randn(len(robot.states), generator=generator, dtype=torch.float64).numpy()
    return state, dict(zip(robot.states, state, strict=True))


def robot_with(states, **change):
    """A robot of which only the names count."""
    robot = load_robot("unicycle")
    limits = {name: pair for name, pair in robot.limits.items() if name in states}
    return replace(
        robot,
        **{"states": states, "limits": limits, "velocities": {}, "cyclic": ()} | change,
    )


@pytest.mark.parametrize(
    "states",
    [
        ("x", "y", "yaw", "v", "w"),
        ("w", "yaw", "v", "y", "x"),
        ("y", "vy", "x"),
    ],
)
def test_planar_geometry_finds_the_pose_by_name_in_any_order(states, generator):
    planar = robot_with(states).planar
    state, values = named(robot_with(states), generator)
    pose = (values["x"], values["y"], values.get("yaw", 0.0))
    assert planar.pose(state) == pose
    batch = np.stack([state, 2.0 * state])
    assert np.array_equal(planar.poses(batch), [pose, [2.0 * c for c in pose]])
    assert np.array_equal(planar.positions(batch), planar.poses(batch)[:, :2])
    assert (planar.yaw is None) == ("yaw" not in states)
    assert (planar.strafes, planar.pivots) == ("vy" in states, "w" in states)


def test_only_robots_with_a_position_in_the_plane_are_planar():
    found = {name for name in BUILT_IN if load_robot(name).planar is not None}
    assert found == {"unicycle", "omni", "bicycle"}
    car = load_robot("bicycle")
    assert not car.planar.pivots
    assert car.planar.turning_radius({"steering": (-0.4, 0.5)}, {"wheelbase": 2.0}) == (
        pytest.approx(2.0 / math.tan(0.36))
    )
    assert load_robot("unicycle").planar.turning_radius({}, {}) == 0.0


def test_planar_geometry_follows_the_fields_that_are_replaced():
    robot = load_robot("unicycle")
    assert replace(robot, turning=lambda *_: 3.0).planar.turning_radius({}, {}) == 3.0


def test_pose_is_refused_by_a_robot_that_is_not_planar():
    topic = ReferenceTopic("goal", "x/msg/Goal", lambda _: Goal(1.0, 2.0, 0.0, ""))
    config = Config({"robot": "cartpole"})
    config.robot = replace(config.robot, reference_message=(topic,))
    why = ControlLoop(config).on_message("goal", SimpleNamespace(), 10**9)
    assert why.startswith("goal holds a pose or a path, which needs the states x and y")


OWN = """
import torch
from mpc_banded.robots import Robot

def dynamics(x, u, p):
    return u - p["friction"][..., None] * x

def off(x, u, p):
    return (x[..., 0] - p["reference"][..., 0]) ** 2

def effort(x, u, p):
    return u[..., 0] ** 2

slider = Robot(
    name="slider", states=("rail",), inputs=("speed",), state_message="joint_states",
    command_message="velocity", reference_message="joint_trajectory", reference=("rail",),
    dynamics=dynamics, stage_costs={"off": off, "effort": effort},
    weights={"effort": 0.01}, limits={"speed": (-0.5, 0.5)}, model={"friction": 0.1},
    horizon=15, dt=0.1,
)
crashing = slider.bogus
"""


class Fields:
    pass


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "slides.py").write_text(OWN.replace("crashing = slider.bogus\n", ""))
    (package / "broken.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "elsewhere.slides"
    for name in [name for name in sys.modules if name.startswith("elsewhere")]:
        del sys.modules[name]


def test_robot_from_outside_the_package_is_driven(own_module):
    config = Config({"robot": f"{own_module}:slider", "weights.off": 5, "model.friction": 0.2})
    loop, simulation = ControlLoop(config), Simulation(config)
    trajectory, point, message = Fields(), Fields(), Fields()
    point.positions, trajectory.joint_names, trajectory.points = [0.8], ["rail"], [point]
    assert loop.on_message("joint_trajectory", trajectory, 0) is None
    commands = []
    for k in range(80):
        fill_joint_state(message, simulation.values)
        now_ns = round(k * 1e9 * config.period_s)
        assert loop.on_message("joint_states", message, now_ns) is None
        tick = loop.tick(now_ns)
        assert tick.driving
        commands.append(tick.command["speed"])
        simulation.advance(tick.command, config.period_s)
    # There the derivative of 5 (x - 0.8)^2 + 0.01 (friction x)^2 vanishes.
    balance = 5.0 * 0.8 / (5.0 + 0.01 * 0.2**2)
    assert simulation.values["rail"] == pytest.approx(balance, abs=1e-2)
    assert max(commands) <= 0.5
    assert max(commands) == pytest.approx(0.5, abs=1e-3)


def reading(topic, *names):
    """A topic whose messages carry centimetres in fields of the given names."""
    return StateTopic(topic, "x/msg/Y", lambda m: {n: 0.01 * getattr(m, n) for n in names})


def test_state_and_reference_may_come_over_several_topics_of_any_type():
    held = lambda name: lambda m: {name: 0.01 * m.cm}  # noqa: E731
    robot = replace(
        load_robot("cartpole"),
        state_message=(
            reading("a", "cart", "cart_velocity"),
            reading("b", "pole", "pole_velocity"),
        ),
        reference_message=(ReferenceTopic("goal", "x/msg/Z", held("cart")),),
    )
    assert [topic.topic for topic in robot.state_topics] == ["a", "b"]
    config = Config({"robot": "cartpole", "use_header_stamps": False})
    config.robot = robot
    loop, now = ControlLoop(config), 10**9
    assert loop.input_topics == {"a": "x/msg/Y", "b": "x/msg/Y", "goal": "x/msg/Z"}
    assert loop.on_message("a", SimpleNamespace(cart=20.0, cart_velocity=3.0), now) is None
    assert loop.tick(now).reason == "stopped: waiting for the first b"
    assert loop.on_message("b", SimpleNamespace(pole=5.0, pole_velocity=7.0), now + 10**8) is None
    assert loop.on_message("goal", SimpleNamespace(cm=50.0), now) is None
    tick = loop.tick(now + 10**8)
    assert tick.driving
    assert tick.state_age_s == pytest.approx(0.1)  # that of the older part


@pytest.mark.parametrize(
    "change",
    [
        {"state_message": ()},
        {"state_message": (reading("odom"), reading("odom"))},
        {"state_message": (reading("plan"),)},
    ],
)
def test_topics_must_have_names_of_their_own(change):
    with pytest.raises(ValueError, match="allowed are at least one topic"):
        replace(load_robot("unicycle"), **change)


def test_robot_from_outside_the_package_has_its_parameters_checked(own_module):
    with pytest.raises(ConfigError, match=r"weights.on is 1.0, but robot 'slider'"):
        Config({"robot": f"{own_module}:slider", "weights.on": 1.0})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hovercraft",
            r"allowed are \['unicycle', 'omni', 'bicycle', 'cartpole', 'joint_space'\]",
        ),
        ("nowhere.to_be:found", "ModuleNotFoundError: No module named 'nowhere'"),
        ("elsewhere.slides:glider", "AttributeError: .* no attribute 'glider'"),
        ("elsewhere.broken:slider", "AttributeError: 'Robot' object has no attribute 'bogus'"),
        ("elsewhere.slides:effort", "a function; it must be a Robot"),
        (":slider", "cannot be imported"),
        ("elsewhere.slides:", "cannot be imported"),
    ],
)
@pytest.mark.usefixtures("own_module")
def test_robot_that_cannot_be_loaded_is_named(name, message):
    with pytest.raises(ConfigError, match=message) as error:
        Config({"robot": name})
    assert str(error.value).startswith(f"robot is {name!r}")


def test_built_in_robots_are_found_by_name_alone():
    assert {name: load_robot(name).name for name in BUILT_IN} == {name: name for name in BUILT_IN}
    assert all(isinstance(load_robot(name), Robot) for name in BUILT_IN)
