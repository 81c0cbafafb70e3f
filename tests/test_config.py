# SPDX-License-Identifier: Apache-2.0
"""One table of parameters: its defaults and ranges hold for every reader."""

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node

from mpc_banded.control.build import build_controller, build_problem
from mpc_banded.control.config import Config, ConfigError, read_parameter_file
from mpc_banded.control.parameters import GENERAL, Entry, entries_of
from mpc_banded.ocp.solver import SolverOptions
from mpc_banded.robots import load_robot
from mpc_banded.robots.robot import BUILT_IN
from mpc_banded.ros.parameters import descriptor
from mpc_banded.ros.parameters import given as given_to

FILES = sorted((Path(__file__).resolve().parents[1] / "config").glob("*.yaml"))


@pytest.mark.parametrize("robot", BUILT_IN)
def test_every_default_is_allowed_and_described(robot):
    for name, entry in entries_of(load_robot(robot)).items():
        assert entry.checked(name, entry.default) == entry.default
        assert entry.description.endswith(".")
        assert entry.lower <= entry.upper


@pytest.mark.parametrize("robot", BUILT_IN)
def test_without_a_file_a_robot_is_as_it_describes_itself(robot):
    config, robot = Config({"robot": robot}), load_robot(robot)
    problem = build_problem(config)
    assert (problem.horizon, problem.dt) == (robot.horizon, robot.dt)
    assert dict(problem.weights) == {name: robot.weights[name] for name in problem.cost_names}
    assert build_controller(config).transcription.scheme == robot.transcription
    bounds = zip(robot.inputs, *problem.input_bounds, strict=True)
    assert {name: (low, high) for name, low, high in bounds} == {
        name: robot.limits[name] for name in robot.inputs
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file_of_each_robot_is_allowed_and_names_its_robot(file):
    config = Config.load(file)
    assert config.robot.name == file.stem
    given = read_parameter_file(file)
    assert {key: config.values[key] for key in given} == given


@pytest.mark.ros
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_ros_reads_from_a_file_what_we_read(file, tmp_path):
    extended = tmp_path / "extended.yaml"
    more = "\n    solver:\n      kkt_tolerance: 1e-5\n      penalty: 1E+6\n      barrier: .5\n"
    extended.write_text(file.read_text() + more)
    context = Context()
    rclpy.init(args=["--ros-args", "--params-file", str(extended)], context=context)
    try:
        node = Node("reader", context=context)
        by_ros = Config(given_to(node))
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    assert by_ros.values == Config.load(extended).values
    assert by_ros.parameters.solver.kkt_tolerance == 1e-5


def test_overrides_win_over_the_file_and_are_checked_alike():
    assert Config.load(FILES[0], {"horizon": 7}).parameters.horizon == 7
    with pytest.raises(ConfigError, match=r"horizon is 7\.5; allowed are integers"):
        Config.load(FILES[0], {"horizon": 7.5})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("horizon", "many", "integers from 0 to 10000"),
        ("horizon", True, "integers from 0 to 10000"),
        ("horizon", -1, "integers from 0 to 10000"),
        ("dt", math.nan, "numbers from 0 to 10"),
        ("dt", 11, "numbers from 0 to 10"),
        ("dt", None, "numbers from 0 to 10"),
        ("max_state_age", 0.0, "numbers from 0.01 to 60"),
        ("enable_stamped_cmd_vel", 1, "true or false"),
        ("enable_stamped_cmd_vel", "yes", "true or false"),
        ("transcription", "guess", "one of "),
        ("robot", 3, "strings"),
        ("obstacles", 1.0, "lists of up to 3000 numbers"),
        ("obstacles", "near", "lists of up to 3000 numbers"),
        ("obstacles", [0.0, math.nan, 1.0], "lists of up to 3000 numbers"),
        ("obstacles", [1.0, 2.0], "x, y, radius of any number of circles"),
        ("limits.v", [1.0], "lists of 2 numbers"),
        ("limits.v", [1.0, -1.0], "a lower and a greater upper limit"),
        ("weights.position", -1.0, "numbers from 0 to 1e+30"),
        ("solver.max_iterations", 0, "integers from 1 to 1e+06"),
        ("simulator.initial_state", [1.0, 2.0], "one number for each of x, y, yaw, v, w"),
        ("substeps", 2, "'midpoint' allows 1 only"),
    ],
)
def test_value_that_is_not_allowed_is_named_with_what_is(key, value, allowed):
    with pytest.raises(ConfigError) as error:
        Config({key: value})
    text = str(error.value)
    assert text.startswith(f"{key} is {value!r}; ")
    assert allowed in text


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("horizn", "did you mean 'horizon'?"),
        ("weights.positon", "did you mean 'weights.position'?"),
        ("limits.steering", "did you mean"),  # a name of another robot
        ("qqq", "known are ['actuation_delay', "),
    ],
)
def test_unknown_key_is_named_with_its_value_and_the_nearest(key, hint):
    with pytest.raises(ConfigError) as error:
        Config({key: 12.5})
    assert str(error.value).startswith(
        f"{key} is 12.5, but robot 'unicycle' has no such parameter"
    )
    assert hint in str(error.value)


def test_numbers_may_be_integers_and_lists_tuples():
    config = Config({"dt": 1, "limits.v": (0, np.float64(1.5)), "horizon": np.int64(5)})
    assert (config.parameters.dt, config.parameters.limits["v"], config.parameters.horizon) == (
        1.0,
        (0.0, 1.5),
        5,
    )
    assert [
        type(x)
        for x in (config.parameters.dt, *config.parameters.limits["v"], config.parameters.horizon)
    ] == [
        float,
        float,
        float,
        int,
    ]


def test_every_option_of_the_solver_has_a_key():
    keys = {"half_bandwidth": "bandwidth"}
    for option in fields(SolverOptions):
        if option.name == "recovery":  # a choice of the Python interface alone
            assert "recovery" not in GENERAL
            continue
        assert keys.get(option.name, f"solver.{option.name}") in GENERAL
    given = {"bandwidth": 13, "solver.max_iterations": 3}
    options = build_controller(Config(given)).options
    assert (options.half_bandwidth, options.max_iterations) == (13, 3)


def test_any_number_of_obstacles_is_taken():
    obstacles = Config({"obstacles": [1, 2, 0.5] * 30}).obstacles()
    assert obstacles.tolist() == [[1.0, 2.0, 0.5]] * 30
    with pytest.raises(ConfigError, match=r"obstacles is .*; allowed are none"):
        Config({"robot": "cartpole", "obstacles": [1, 2, 0.5]})


@pytest.mark.parametrize("limits", [{"limits.v": [0.3, 1.2]}, {"limits.w": [-1.0, -0.1]}])
def test_limits_that_exclude_the_stop_are_refused(limits):
    with pytest.raises(ConfigError, match="allowed are limits that include 0, at which the robot"):
        Config(limits)


def test_every_number_has_a_finite_range():
    for robot in BUILT_IN:
        for key, entry in entries_of(load_robot(robot)).items():
            is_number = isinstance(entry.default, int | float) and not isinstance(
                entry.default, bool
            )
            if is_number or key == "obstacles":
                assert math.isfinite(entry.lower), key
                assert math.isfinite(entry.upper), key


def test_variant_of_a_robot_is_one_robot_for_the_same_options(tmp_path, monkeypatch):
    (tmp_path / "own_car.py").write_text(
        "from dataclasses import replace\n"
        "from mpc_banded.robots.bicycle import bicycle, variant\n"
        "def fresh(command):\n"
        "    return replace(variant(command), name='own')\n"
        "car = replace(bicycle, variant=fresh)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    one, same, other = (
        Config({"robot": "own_car:car", "command": command})
        for command in ("ackermann", "ackermann", "twist")
    )
    assert one.robot is same.robot
    assert one.robot is not other.robot
    assert not one.rebuilds(one.changed({"reference_speed": 1.0}))


def test_sections_drop_their_prefix():
    config = Config({"robot": "bicycle", "model.wheelbase": 3})
    assert config.parameters.model == {"wheelbase": 3.0}
    assert config.period_s == 1.0 / config.parameters.controller_frequency


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{[", "cannot be read"),
        ("horizon: 3", "'ros__parameters'"),
        ("mpc_nod: {ros__parameters: {horizon: 3}}", "allowed are '/**'"),
    ],
)
def test_file_that_is_no_parameter_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"wrong\.yaml") as error:
        read_parameter_file(file)
    assert message in str(error.value)


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        read_parameter_file(tmp_path / "nowhere.yaml")


def test_descriptor_has_a_range_where_both_ends_are_finite():
    whole = descriptor(Entry(3, "Count.", "", 0, 10), read_only=True)
    assert (whole.integer_range[0].from_value, whole.integer_range[0].to_value) == (0, 10)
    real = descriptor(Entry(3.0, "Length.", "m", 0.0, 10.0), read_only=False)
    assert (real.floating_point_range[0].to_value, real.description) == (10.0, "Length. [m]")
    assert (real.read_only, real.dynamic_typing) == (False, True)
    open_ended = descriptor(Entry(3.0, "Length.", lower=0.0), read_only=True)
    assert not open_ended.floating_point_range


EXTREMES = (
    *(math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0, -1, 2**63, 10**400, True),
    *("", "x" * 10**6, "\x1b[2J", None, [], [[]], [math.nan] * 2, [-1e308, 1e308], [10**400] * 2),
    *([0.5] * 10**6, ["a"] * 10**6, b"\x00", {"a": 1.0}),
)


@pytest.mark.parametrize("robot", ["unicycle", "joint_space"])
def test_extreme_values_are_taken_or_refused_in_one_short_line_with_the_range(robot):
    base = Config({"robot": robot})
    for key in base.table:
        taken = 0
        for value in EXTREMES:
            try:
                config = Config({"robot": robot, key: value})
            except ConfigError as error:
                text = str(error)
                assert text.isprintable()
                assert len(text) < 1000
                assert "allowed" in text
            else:
                taken += 1
                assert np.isfinite(config.period_s)
        assert taken < len(EXTREMES) / 2, key


def test_unknown_names_are_refused_in_one_short_line():
    for name in ("", "x" * 10**6, "limits.\x1b[2J", "\n"):
        with pytest.raises(ConfigError) as error:
            Config({name: [1.0] * 10**6})
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 3000


def test_limits_at_which_a_function_of_the_robot_fails_are_refused():
    for steering in ([0.0, 0.5], [-0.5, 0.0], [-3.0, 3.0]):
        with pytest.raises(ConfigError, match=r"turning radius|do not suit the robot"):
            Config({"robot": "bicycle", "limits.steering": steering})


@pytest.mark.parametrize("outline", [[-0.1], [0.3, 0.2, -0.3], [0.3, -0.2]])
def test_footprint_is_a_radius_or_circles(outline):
    assert Config({"footprint": [0.4]}).footprint.table.tolist() == [[0.0, 0.4]]
    assert Config({"footprint": [0.3, 0.2, -0.3, 0.1]}).footprint.reach == 0.5
    assert Config({}).footprint.reach == Config({}).robot.radius
    with pytest.raises(ConfigError, match="footprint is"):
        Config({"footprint": outline})


def test_slots_and_the_circles_of_the_footprint_shape_the_problem():
    config = Config({"obstacle_slots": 7, "footprint": [0.3, 0.2, -0.3, 0.1]})
    problem = build_problem(config)
    assert problem.parameters["obstacles"] == (7, 3)
    assert problem.inequality_widths == {"clearance": 14}
    assert Config({}).rebuilds(config)
