# SPDX-License-Identifier: Apache-2.0
"""Solves that exceed their budget many times are counted, reported, and end with the cycle."""

import numpy as np
import pytest
from faults import DRIVING
from ros_harness import Robot, on_path

pytestmark = pytest.mark.ros

#: A robot whose cost sleeps as long as a file is there.
SLEEPY = """
import os
import time
import torch
from mpc_banded.robots import Robot

def position(x, u, p):
    if os.path.exists({file!r}):
        time.sleep(1.0)
    return (x[..., 0] - p["reference"][..., 0] - 1.0) ** 2

robot = Robot(
    name="sleepy", states=("rail", "rail_velocity"), inputs=("force",),
    state_message="joint_states", command_message="effort",
    reference_message="joint_trajectory", reference=("rail",), horizon=10,
    dynamics=lambda x, u, p: torch.stack([x[..., 1], u[..., 0]], dim=-1),
    stage_costs={{"position": position, "effort": lambda x, u, p: u[..., 0] ** 2}},
    limits={{"force": (-1.0, 1.0)}},
)
"""


@pytest.fixture
def sleep(tmp_path, monkeypatch):
    """The file that makes the robot's cost sleep ten times its budget."""
    file = tmp_path / "sleep"
    (tmp_path / "sleepy_robots.py").write_text(SLEEPY.format(file=str(file)))
    monkeypatch.syspath_prepend(str(tmp_path))
    return file


@pytest.fixture
def robot(tmp_path, sleep):
    assert not sleep.exists()
    file = tmp_path / "sleepy.yaml"
    file.write_text("/**:\n  ros__parameters:\n    robot: sleepy_robots:robot\n    dt: 0.1\n")
    robot = Robot(
        "sleepy",
        tmp_path,
        "sleepy",
        environment=on_path(tmp_path),
        file=file,
        compile=False,
        max_state_age=2.0,
    )
    yield robot
    robot.close()


def test_solves_of_ten_times_their_budget_are_counted_and_the_loop_recovers(robot, sleep):
    robot.until(lambda: robot.code == DRIVING, "driving")
    robot.until(lambda: all(robot.metrics.values()), "all of the telemetry")
    del robot.cycles[:-1]
    late, skipped = (robot.metric(f"{kind}_cycles") for kind in ("late", "skipped"))
    sleep.touch()
    robot.until(lambda: robot.metric("skipped_cycles") >= skipped + 8, "skipped cycles counted")
    assert robot.metric("late_cycles") > late
    robot.until(lambda: "late" in robot.reason, "reported")
    sleep.unlink()
    robot.until(
        lambda: robot.code == DRIVING and not robot.metric("missed_deadline"),
        "in time again",
    )
    robot.hear_more(10)
    times = np.array([cycle.now_ns for cycle in robot.cycles])
    # Cycles that were missed are not caught up with, and the grid stays what it was.
    assert np.diff(times).min() > 0.0
    since = len(robot.cycles) - 8
    assert np.diff(times[since:]).min() > 0.2e9 * robot.config.period_s
    assert all(abs(c.command["force"]) <= 1.0 for c in robot.cycles)
    assert "a cycle was late: it waited" in robot.node.output
    assert robot.node.alive
