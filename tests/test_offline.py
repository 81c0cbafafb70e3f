# SPDX-License-Identifier: Apache-2.0
"""Metrics, plots and recordings of a run, and the commands that need no ROS."""

from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from mpc_banded.cli import main
from mpc_banded.control.config import Config
from mpc_banded.control.path import PathReference
from mpc_banded.offline.drive import Run, Target, summarise
from mpc_banded.offline.drive_plot import plot
from mpc_banded.offline.recording import Recording
from mpc_banded.ros.demo.scenarios import SCENARIOS, config_file, figure_of_eight, lane_change

CONFIG = Path(__file__).resolve().parents[1] / "config"


def straight_run(offset, speed=0.8):
    """A run along y = offset beside a path along y = 0."""
    times = np.arange(0.0, 10.0, 0.05)
    run = Run()
    for t in times:
        x = {"x": speed * t, "y": offset, "yaw": 0.0, "v": speed, "w": 0.0}
        run.states.append((t, x))
        run.commands.append((t, {"v": speed, "vy": 0.0, "w": 0.0}))
    figures = {"solve_time_ms": 2.0, "iterations": 3.0, "missed_deadline": 0.0, "converged": 1.0}
    run.telemetry = {name: [(t, value) for t in times] for name, value in figures.items()}
    return run


@pytest.fixture
def config():
    return Config.load(CONFIG / "unicycle.yaml", {"obstacles": [4.0, 1.0, 0.25]})


@pytest.fixture
def path():
    return PathReference(np.array([[0.0, 0.0], [10.0, 0.0]]), 0.8)


def test_summary_of_a_run_that_is_known(config, path):
    summary = summarise(straight_run(0.02), config, path)
    assert summary["rms_tracking_error_m"] == pytest.approx(0.02)
    assert summary["min_obstacle_clearance_m"] == pytest.approx(0.98 - 0.25 - 0.25)
    assert (summary["cycles"], summary["unconverged_cycles"]) == (200, 0)
    assert (summary["solve_ms_median"], summary["solve_ms_p99"]) == (2.0, 2.0)
    assert (summary["missed_deadlines"], summary["bound_violations"]) == (0, 0)


def test_a_command_beyond_its_limit_or_not_a_number_is_counted(config, path):
    run = straight_run(0.0)
    run.commands[3] = (0.15, {"v": 1.3, "vy": 0.0, "w": float("nan")})
    assert summarise(run, config, path)["bound_violations"] == 2


def test_the_plot_is_a_picture(config, path, tmp_path):
    plot(straight_run(0.1), config, path, "straight", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def arm():
    """An arm whose second joint is 0.1 rad off, the last of them only in the end."""
    config = Config({"robot": "joint_space", "joints": ["a", "b"]})
    run = straight_run(0.0)
    run.states = [
        (t, {"a": 0.5, "b": 0.1 if t < 9.0 else 0.02, "a_velocity": 0.0, "b_velocity": 0.0})
        for t, _ in run.states
    ]
    command = {"a@0.05": 0.5, "a_velocity@0.05": 0.1, "a@0.1": 0.5, "a_velocity@0.1": 0.1}
    run.commands = [(t, dict(command)) for t, _ in run.states]
    return run, config


def test_a_target_is_judged_by_the_joint_that_is_furthest_from_it(arm):
    run, config = arm
    target = Target({"a": 0.5, "b": 0.0}, "rad", settled_s=9.0)
    summary = summarise(run, config, target)
    assert summary["rms_tracking_error_rad"] == pytest.approx(0.02)
    assert summary["final_tracking_error_rad"] == pytest.approx(0.02)
    assert summary["min_obstacle_clearance_m"] is None
    assert summary["bound_violations"] == 0


def test_every_point_of_a_trajectory_is_held_against_the_limits(arm, tmp_path):
    run, config = arm
    run.commands[5][1]["a_velocity@0.1"] = 2.5
    run.commands[6][1]["a@0.05"] = -4.0
    target = Target({"a": 0.5, "b": 0.0}, "rad")
    assert summarise(run, config, target)["bound_violations"] == 2
    plot(run, config, target, "arm", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_recorded_is_read_back(tmp_path):
    types = get_typestore(Stores.ROS2_KILTED)
    float64 = types.types["std_msgs/msg/Float64"]
    with Recording(tmp_path / "bag") as recording:
        for k in range(3):
            data = types.serialize_cdr(float64(data=0.5 * k), "std_msgs/msg/Float64")
            recording.write("/figure", "std_msgs/msg/Float64", 1000 + k, data)
    with AnyReader([tmp_path / "bag"]) as reader:
        read = [
            (stamp, reader.deserialize(raw, connection.msgtype).data)
            for connection, stamp, raw in reader.messages()
        ]
    assert read == [(1000, 0.0), (1001, 0.5), (1002, 1.0)]


@pytest.mark.parametrize("robot", SCENARIOS)
def test_every_demo_has_its_parameter_file(robot):
    assert Config.load(config_file(robot)).robot.name == robot


@pytest.mark.parametrize("points", [figure_of_eight(), lane_change()])
def test_paths_of_the_demo_are_smooth(points):
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    headings = np.unwrap(np.arctan2(*np.diff(points, axis=0).T[::-1]))
    assert 0.0 < steps.min() <= steps.max() < 0.2
    assert np.abs(np.diff(headings)).max() < 0.05


def test_check_says_what_it_found(capsys):
    assert main(["check", str(CONFIG / "bicycle.yaml")]) == 0
    said = capsys.readouterr().out
    assert "300 unknowns, half bandwidth 9 derived" in said


@pytest.mark.parametrize("content", ["robot: nobody", "horizont: 20", "bandwidth: 3"])
def test_check_refuses_with_the_key_and_status_2(content, tmp_path, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text("/**:\n  ros__parameters:\n    " + content + "\n", encoding="utf-8")
    assert main(["check", str(file)]) == 2
    key = content.split(":")[0]
    said = capsys.readouterr().err
    assert key in said
    assert "Traceback" not in said
