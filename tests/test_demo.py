# SPDX-License-Identifier: Apache-2.0
"""A demo sends any robot a reference that it can follow, and judges its drive."""

import math
from dataclasses import replace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rehearsal import rehearse

from mpc_banded import cli
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.offline.drive import Run, summarise
from mpc_banded.offline.drive_plot import Panel, panels_of, plot
from mpc_banded.robots.messages import STATES
from mpc_banded.ros.demo import observer, references, run, scenarios
from mpc_banded.ros.demo.references import UnfitReferenceError, reference_of

UNICYCLE = {"robot": "unicycle", "reference_speed": 0.8}


def poses_of(config, *words):
    """The poses (M, 3) of the path that is sent."""
    message = reference_of(config, words).message(Time())
    points = [(pose.pose.position.x, pose.pose.position.y) for pose in message.poses]
    yaws = [2.0 * math.atan2(p.pose.orientation.z, p.pose.orientation.w) for p in message.poses]
    return np.column_stack([points, yaws])


def test_the_command_line_offers_every_shape():
    assert tuple(references.SHAPES) == cli.SHAPES


@pytest.mark.parametrize("shape", cli.SHAPES)
@pytest.mark.parametrize("robot", ["unicycle", "bicycle"])
def test_a_shape_begins_where_the_robot_is_and_looks(shape, robot):
    begin = [1.0, -2.0, 2.5] + [0.0] * (2 if robot == "unicycle" else 1)
    config = Config({"robot": robot, "simulator.initial_state": begin})
    poses = poses_of(config, shape)
    np.testing.assert_allclose(poses[0, :2], begin[:2], atol=1e-9)
    assert poses[0, 2] == pytest.approx(begin[2], abs=0.05)
    if shape != "line":
        np.testing.assert_allclose(poses[-1, :2], begin[:2], atol=1e-6)


@pytest.mark.parametrize("shape", cli.SHAPES)
def test_no_curve_of_a_shape_is_narrower_than_a_car_can_turn(shape):
    config = Config({"robot": "bicycle", "reference_speed": 1.0})
    poses = poses_of(config, shape)
    steps = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
    turns = np.abs(np.angle(np.exp(1j * np.diff(poses[:, 2]))))[:-1]
    assert (turns <= 1.02 * steps[:-1] / references.radius_of(config)).all()


@pytest.mark.slow
@pytest.mark.parametrize("words", ["goal 1.5 -1.0 -1.57", "square", "line"])
def test_a_base_ends_on_the_reference_that_was_asked_for(words):
    config = Config({**UNICYCLE, "limits.v": [-0.3, 1.2]})
    drive, summary, verdicts = rehearse(config, scenarios.scenario_of(config, words.split(), None))
    assert all(verdict is True for verdict in verdicts.values()), verdicts
    assert summary["bound_violations"] == 0
    assert len(drive.states) == len(drive.commands)


def test_a_drive_that_is_cut_short_is_judged_by_the_path_alone():
    config = Config(UNICYCLE)
    _, _, verdicts = rehearse(config, scenarios.scenario_of(config, ["line"], 2.0))
    assert set(verdicts.values()) == {True}
    assert any("when the time is over" in text for text in verdicts)


def standing(config, at):
    """A run of a robot that does not move; ``at`` gives its state."""
    state = dict.fromkeys(config.robot.states, 0.0) | at
    stop = dict.fromkeys(config.robot.command_names, 0.0)
    figures = {name: [(0.0, 1.0)] for name in observer.TELEMETRY}
    times = 0.1 * np.arange(9)
    return Run([(t, dict(state)) for t in times], [(t, dict(stop)) for t in times], figures)


def test_a_robot_that_stands_misses_its_demands_by_what_is_told():
    config = Config({**UNICYCLE, "obstacles": [1.0, 0.0, 0.9]})  # 0.15 m of it below the robot
    scenario = scenarios.scenario_of(config, ["line"], None)
    drive = standing(config, {"y": 0.02})
    summary = summarise(drive, config, scenario.reference(config).target)
    told = {text.split(",")[0]: ask(summary, drive) for text, ask in scenario.demands.items()}
    assert told == {
        "it moved": "x changed most, by 0",
        "no contact": "0.15 m inside",
        "at the end of the path": "8.00 m before it, 0.02 m beside the path",
    }


def test_joints_follow_a_file_and_end_where_it_ends(tmp_path):
    file = tmp_path / "wave.csv"
    file.write_text("t, b, a\n1.0, 0.3, 0.1\n2.5, -0.2, 0.4\n")
    config = Config({"robot": "joint_space", "joints": ["a", "b"]})
    drive, _, verdicts = rehearse(config, scenarios.scenario_of(config, [str(file)], None))
    assert all(verdict is True for verdict in verdicts.values()), verdicts
    assert drive.states[-1][1]["b"] == pytest.approx(-0.2, abs=0.01)


def test_a_path_from_a_file_is_sent_as_it_is(tmp_path):
    file = tmp_path / "path.csv"
    file.write_text("\ufeffx,y\n0,0\n1,0\n1,1\n")
    poses = poses_of(Config(UNICYCLE), str(file))
    np.testing.assert_allclose(poses[:, :2], [[0, 0], [1, 0], [1, 1]])
    np.testing.assert_allclose(poses[:, 2], [0.0, math.pi / 2, math.pi / 2])
    file.write_text("x,y,yaw\n0,0,0.5\n1,0,-0.5\n")
    np.testing.assert_allclose(poses_of(Config(UNICYCLE), str(file))[:, 2], [0.5, -0.5])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("", "cannot be read"),
        ("x,y\n", "cannot be read"),
        ("x,y\n1,2,3\n", "cannot be read"),
        ("x,y\n1,nan\n", "finite"),
        ("x,y\n1,two\n", "two"),
        ("x,y\n1,2\n", "two or more"),
        ("x,z\n1,2\n2,3\n", "needed are x, y, allowed beside them yaw"),
    ],
)
def test_a_file_that_is_no_path_is_refused_with_what_is_needed(text, told, tmp_path):
    file = tmp_path / "path.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UnfitReferenceError, match=told):
        reference_of(Config(UNICYCLE), [str(file)])


def test_a_reference_of_another_kind_is_refused_with_what_fits(tmp_path):
    config = Config({"robot": "joint_space", "joints": ["a", "b"]})
    with pytest.raises(UnfitReferenceError, match="CSV files with the columns t, a, b"):
        reference_of(config, ["figure8"])
    file = tmp_path / "late.csv"
    file.write_text("t,a,b\n1,0,0\n1,1,1\n")
    with pytest.raises(UnfitReferenceError, match="increase"):
        reference_of(config, [str(file)])


def alone():
    """A cart with a pole that takes no reference at all, and begins off its rest."""
    config = Config({"robot": "cartpole", "simulator.initial_state": [0.3, 0.0, 0.0, 0.0]})
    config.robot = replace(config.robot, reference_message=())
    return config


def test_a_robot_without_reference_topics_drives_to_zero():
    config = alone()
    assert reference_of(config, []) is None
    with pytest.raises(UnfitReferenceError, match="takes its reference on no topic"):
        reference_of(config, ["line"])
    drive, _, verdicts = rehearse(config, scenarios.scenario_of(config, [], 6.0))
    assert verdicts == {"it moved": True}
    assert drive.states[-1][1]["cart"] == pytest.approx(0.0, abs=0.02)


def test_a_robot_that_rests_by_itself_and_begins_elsewhere_gets_no_reference():
    config = Config({"robot": "cartpole", "simulator.initial_state": [0.3, 0.0, 0.0, 0.0]})
    assert reference_of(config, []) is None
    assert reference_of(Config({"robot": "cartpole"}), []) is not None


def test_a_robot_whose_state_cannot_be_published_is_refused():
    config = Config(UNICYCLE)
    config.robot = replace(config.robot, state_message=(replace(STATES["odometry"], fill=None),))
    with pytest.raises(run.NoDriveError, match="'odom' has no fill"):
        run._check_simulated(config)


def test_a_slow_start_says_what_was_slow():
    said = run._slow_start({"first_state_s": 12.3, "first_cycle_s": 31.0, "first_command_s": 31.4})
    assert "simulator's first state came after 12 s" in said
    assert "node's first cycle came after 31 s" in said


def test_every_state_and_command_has_its_panel_with_unit_and_limits():
    config = Config({"robot": "joint_space", "joints": [f"j{i}" for i in range(9)]})
    sent = {f"j{i}_velocity": 0.0 for i in range(9)}
    panels = panels_of(config, sent)
    shown = [name for panel in panels if not panel.is_command for name in panel.names]
    assert shown == list(config.robot.states)
    assert [n for panel in panels if panel.is_command for n in panel.names] == list(sent)
    assert max(len(panel.names) for panel in panels) <= 8
    assert panels[0].title == "j0 ... j7 [rad], limits -3.14 to 3.14"
    speed = panels_of(Config(UNICYCLE), {"v": 0.0})[-1]
    assert speed == Panel(("v",), "m/s", (-0.3, 1.2), True)
    assert speed.title == "command v [m/s], limits -0.3 to 1.2"


def test_a_robot_with_no_limits_no_units_and_no_reference_is_drawn(tmp_path):
    config = alone()
    drive = standing(config, {})
    target = scenarios.scenario_of(config, [], None).reference(config)
    plot(drive, config, target, "$alone$", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_loop_is_sent_is_taken():
    for robot in ("unicycle", "bicycle", "joint_space", "cartpole"):
        config = Config({"robot": robot})
        reference = reference_of(config, [])
        loop = ControlLoop(config)
        assert loop.on_message(reference.topic, reference.message(Time()), 1) is None
