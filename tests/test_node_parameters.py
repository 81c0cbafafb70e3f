# SPDX-License-Identifier: Apache-2.0
"""Parameters are set while a robot drives: all at once or not at all, without a stop or a jump."""

import numpy as np
import pytest
from faults import AHEAD, DRIVING, EASY, assert_robot_does_as_it_says
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.parameter import Parameter
from ros_harness import Robot

from mpc_banded.codegen import build

pytestmark = pytest.mark.ros

#: A compiler that waits until it may, so that the test knows when a rebuild can be done.
PATIENT = """#!/bin/sh
while ! [ -e {folder}/go ]; do sleep 0.1; done
exec {real} "$@"
"""


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """The file that lets the compiler go on."""
    return tmp_path_factory.mktemp("compiler") / "go"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, go):
    script = go.parent / "cc"
    script.write_text(PATIENT.format(folder=go.parent, real=build.c_compiler()[0]))
    script.chmod(0o700)
    environment = {"MPC_BANDED_CACHE": str(go.parent / "cache"), "CC": str(script)}
    folder = tmp_path_factory.mktemp("parameters")
    robot = Robot("unicycle", folder, "live", environment=environment, **EASY)
    yield robot
    robot.close()


@pytest.fixture
def robot(shared):
    """A robot that drives steadily."""
    shared.publish_plan(AHEAD)
    shared.until(lambda: shared.code == DRIVING and is_steady(shared), "driving steadily")
    del shared.cycles[:-1], shared.commands[:-1]
    yield shared
    assert_robot_does_as_it_says(shared)


def speeds(robot):
    return np.array([cycle.command["v"] for cycle in robot.cycles])


def is_steady(robot):
    return len(robot.cycles) > 10 and np.ptp(speeds(robot)[-10:]) < 0.02 < speeds(robot)[-1]


def plan_length(robot):
    robot.paths.clear()
    robot.until(lambda: robot.paths, "a path")
    return len(robot.paths[-1].poses) - 1


def assert_nothing_was_felt(robot):
    """The robot drove in every cycle, and its command went on as the acceleration allows."""
    assert {cycle.code for cycle in robot.cycles} == {DRIVING}
    elapsed_s = 1e-9 * np.diff([cycle.now_ns for cycle in robot.cycles])
    assert (np.abs(np.diff(speeds(robot))) <= 0.02 + elapsed_s).all()
    assert speeds(robot).min() > 0.3


def test_some_values_wrong_means_nothing_is_set(robot):
    before = plan_length(robot)
    reason = robot.set_at_once(weights__position=33.0, horizon=20, dt=-1.0)
    assert "dt" in reason
    names = GetParameters.Request(names=["weights.position", "horizon"])
    values = robot.request(GetParameters, "mpc_node/get_parameters", names).values
    assert values[0].double_value == robot.config.parameters.weights["position"]
    assert values[1].integer_value == before == robot.config.parameters.horizon
    assert plan_length(robot) == before


def test_a_list_is_set_one_by_one(robot):
    given = {
        "weights.position": 20,
        "weights.heading": -1.0,
        "weights.speed": "much",
        "robot": "bicycle",
        "no.such": 1.0,
    }
    parameters = [Parameter(name, value=x).to_parameter_msg() for name, x in given.items()]
    request = SetParameters.Request(parameters=parameters)
    results = robot.request(SetParameters, "mpc_node/set_parameters", request).results
    assert [result.successful for result in results] == [True, False, False, False, False]
    assert "weights.heading" in results[1].reason
    assert "much" in results[2].reason
    assert "read-only" in results[3].reason
    names = GetParameters.Request(names=["weights.position"])
    (value,) = robot.request(GetParameters, "mpc_node/get_parameters", names).values
    assert value.integer_value == 20
    assert not robot.set_at_once(weights__position=robot.config.parameters.weights["position"])
    assert_nothing_was_felt(robot)


def test_horizon_and_dt_change_at_once_with_eager_derivatives(robot):
    assert robot.facts.get("derivatives", "eager") == "eager"
    assert not robot.set_at_once(horizon=20, dt=0.08)
    robot.until(lambda: plan_length(robot) == 20, "the new horizon")
    robot.hear_more(20)
    assert not robot.set_at_once(horizon=EASY["horizon"], dt=EASY["dt"])
    robot.until(lambda: plan_length(robot) == EASY["horizon"], "the old horizon")
    assert_nothing_was_felt(robot)


def test_compiled_problem_is_rebuilt_aside_while_the_old_one_drives(robot, go):
    go.touch()
    robot.until(lambda: robot.facts["derivatives"] == "compiled", "compiled")
    go.unlink()
    robot.until(lambda: is_steady(robot), "steady")
    del robot.cycles[:-1]
    for horizon in range(16, 24):  # the last one counts
        assert not robot.set_at_once(
            horizon=horizon,
            limits__v=[-0.3, 1.1],
            limits__linear_acceleration=[-0.9, 0.9],
        )
    robot.until(lambda: "being built" in robot.facts["under way"], "said to be under way")
    # What needs no rebuild does not wait for one.
    assert not robot.set_at_once(weights__speed=1.5)
    robot.hear_more(10)
    assert plan_length(robot) == EASY["horizon"]
    go.touch()
    robot.until(lambda: plan_length(robot) == 23, "the new horizon")
    robot.hear_more(10)
    robot.until(lambda: not robot.facts["under way"], "nothing under way")
    assert robot.facts["derivatives"] == "compiled"
    assert_nothing_was_felt(robot)
    changed = [name for cycle in robot.cycles for name in cycle.changed]
    assert changed.index("weights.speed") < changed.index("horizon")
    assert changed.count("horizon") == 1


def test_frequency_changes_while_the_robot_drives(robot):
    assert not robot.set_at_once(controller_frequency=5.0)
    robot.hear_more(12)
    times = [cycle.now_ns for cycle in robot.cycles[-6:]]
    assert np.median(np.diff(times)) == pytest.approx(0.2e9, rel=0.3)
    assert not robot.set_at_once(controller_frequency=1.0)
    robot.hear_more(3)
    assert not robot.set_at_once(controller_frequency=robot.config.parameters.controller_frequency)
    before = robot.metric("skipped_cycles")
    robot.hear_more(5)
    # One period of a second is no nine skipped ones of a tenth.
    assert robot.metric("skipped_cycles") - before < 5


def test_garbage_is_refused_a_thousand_times_while_the_robot_drives(robot):
    generator = np.random.default_rng(4)
    names = [n for n in robot.config.table if n != "robot"] + ["nothing", "robot", "use_sim_tim"]
    values = [
        "",
        "x",
        float("nan"),
        -1e9,
        [True],
        ["a", "b"],
        [1.0] * 7,
        b"\x00",
        [float("nan")] * 2,
    ]
    cycles = len(robot.cycles)
    refused = 0
    for _ in range(40):
        parameters = []
        for _ in range(25):
            name = names[generator.integers(len(names))]
            value = values[generator.integers(len(values))]
            if name == "transcription" and value == "":
                continue  # no garbage: the robot's own scheme
            if name in ("state_frame",) and isinstance(value, str):
                continue
            unset = isinstance(value, bytes)
            parameter = Parameter(name) if unset else Parameter(name, value=value)
            parameter = parameter.to_parameter_msg()
            parameters.append(parameter)
        request = SetParameters.Request(parameters=parameters)
        results = robot.request(SetParameters, "mpc_node/set_parameters", request).results
        accepted = [
            (p.name, p.value) for p, r in zip(parameters, results, strict=True) if r.successful
        ]
        assert not accepted
        refused += len(results)
    assert refused > 900
    robot.until(lambda: len(robot.cycles) > cycles + 10, "cycles in the meantime")
    assert_nothing_was_felt(robot)
    request = GetParameters.Request(names=list(robot.config.table))
    values = robot.request(GetParameters, "mpc_node/get_parameters", request).values
    assert len(values) == len(robot.config.table)
    assert all(value.type for value in values)


def test_every_parameter_is_described(robot):
    names = list(robot.config.table)
    request = DescribeParameters.Request(names=names)
    service = "mpc_node/describe_parameters"
    answer = robot.request(DescribeParameters, service, request).descriptors
    for name, described in zip(names, answer, strict=True):
        entry = robot.config.table[name]
        assert described.description.startswith(entry.description)
        assert (f"[{entry.unit}]" in described.description) == bool(entry.unit)
        assert entry.allowed in described.additional_constraints
        assert described.read_only == entry.read_only
        ranges = [*described.floating_point_range, *described.integer_range]
        for each in ranges:
            assert (each.from_value, each.to_value) == (entry.lower, entry.upper)
