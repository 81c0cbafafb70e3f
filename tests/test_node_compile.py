# SPDX-License-Identifier: Apache-2.0
"""The node drives while a compiler runs, and switches to the result without a jump."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from ros_harness import PATIENCE_S, Process, Robot, on_path

from mpc_banded.codegen import build

pytestmark = pytest.mark.ros

#: Easy enough for eager derivatives on a busy machine, and nothing in the way.
EASY = {
    **{"horizon": 10, "dt": 0.1, "controller_frequency": 5.0},
    **{"obstacles": [-9.0, 0.0, 0.1], "max_state_age": 2.0},
}
AHEAD = np.column_stack([np.linspace(0.0, 100.0, 200), np.full(200, 0.5)])
#: A compiler that waits for its release, so that the test knows when the switch can come.
PATIENT = """#!/bin/sh
echo $$ > {folder}/compiler
while ! [ -e {folder}/go ]; do sleep 0.1; done
exec {real} "$@"
"""


#: What the node says, once, if that comes to nothing.
STAYS_EAGER = "derivatives stay eager, so solves take longer; they are not compiled: "
#: A robot whose cost sorts, which cannot be compiled.
SORTS = """
import torch
from mpc_banded.robots import Robot

robot = Robot(
    name="sorts", states=("rail", "rail_velocity"), inputs=("force",),
    state_message="joint_states", command_message="effort",
    reference_message="joint_trajectory", reference=("rail",), horizon=10,
    dynamics=lambda x, u, p: torch.stack([x[..., 1], u[..., 0]], dim=-1),
    stage_costs={"least": lambda x, u, p: (torch.sort(x).values[..., 0] - 1.0) ** 2,
                 "effort": lambda x, u, p: u[..., 0] ** 2},
)
"""


@pytest.fixture
def environment(tmp_path):
    """Gives a node an empty cache of its own, and a shell script for a compiler."""

    def variables(compiler):
        script = tmp_path / "cc"
        script.write_text(compiler.format(folder=tmp_path, real=build.c_compiler()[0]))
        script.chmod(0o700)
        return {"MPC_BANDED_CACHE": str(tmp_path / "cache"), "CC": str(script)}

    return variables


@pytest.fixture
def unicycle(tmp_path, environment):
    """Starts a unicycle that drives straight ahead; ends it with the test."""
    robots = []

    def started(compiler):
        robot = Robot("unicycle", tmp_path, environment=environment(compiler), **EASY)
        robots.append(robot)
        robot.publish_plan(AHEAD)
        robot.until(robot.is_driving, "driving")
        return robot

    yield started
    for robot in robots:
        robot.close()


def stat(pid):
    """Fields of a process from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent(pid):
    return int(stat(pid)[1])


def alive(pid):
    try:
        return stat(pid)[0] != "Z"
    except OSError:
        return False


def resident_mb(pid):
    """Memory of a process in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024.0


def compiling(node, folder):
    """Id of the compiler, once the node has got so far."""
    file, end = folder / "compiler", time.monotonic() + PATIENCE_S
    while not (file.is_file() and file.read_text()):
        assert node.alive, node.output
        assert time.monotonic() < end, node.output
        time.sleep(0.05)
    compiler = int(file.read_text())
    assert parent(compiler) == node.pid
    return compiler


def next_facts(robot):
    robot.statuses.clear()
    robot.until(lambda: robot.statuses, "a status")
    return robot.facts


def test_switch_misses_no_cycle_and_cannot_be_felt(unicycle, tmp_path):
    robot = unicycle(PATIENT)
    compiler = compiling(robot.node, tmp_path)
    assert robot.facts.get("derivatives", "eager") == "eager"

    def velocities():
        return np.array([[v["v"], v["w"]] for v in robot.values(robot.commands)])

    def is_steady():
        return len(robot.commands) > 20 and np.ptp(velocities()[-20:], axis=0).max() < 1e-6

    robot.until(is_steady, "steady")
    before, before_mb = next_facts(robot), resident_mb(robot.node.pid)
    assert before["derivatives"] == "eager"
    del robot.commands[:-1]
    (tmp_path / "go").touch()
    robot.until(lambda: robot.facts["derivatives"] == "compiled", "compiled")
    robot.hear_more(10)
    after = next_facts(robot)
    for count in ("late cycles", "unconverged"):
        assert after[count] == before[count]
    stamps = [m.header.stamp.sec + 1e-9 * m.header.stamp.nanosec for m in robot.commands]
    assert np.diff(stamps).max() < 2.0 * robot.config.period_s
    assert np.abs(np.diff(velocities(), axis=0)).max() < 1e-6
    assert velocities()[-1, 0] > 0.5
    # The library takes 0.1 MB.
    assert resident_mb(robot.node.pid) < before_mb + 5.0
    assert not alive(compiler)
    (library,) = (tmp_path / "cache").glob("*.so")
    assert robot.node.output.count(f"s: {library}") == 1
    robot.assert_commands_allowed()


def test_node_drives_on_where_the_compiler_fails_and_says_so_once(unicycle):
    robot = unicycle("#!/bin/sh\necho my disk is full >&2\nexit 1\n")
    robot.until(lambda: STAYS_EAGER in robot.node.output, "given up")
    robot.hear_more()
    assert robot.is_driving()
    assert next_facts(robot)["derivatives"] == "eager"
    (line,) = [text for text in robot.node.output.splitlines() if STAYS_EAGER in text]
    assert line.endswith("failed: my disk is full")


def no_cache(folder):
    (folder / "file").touch()
    return {"MPC_BANDED_CACHE": str(folder / "file" / "cache")}, []


def no_scalar_form(folder):
    (folder / "sorting_robots.py").write_text(SORTS)
    return on_path(folder), ["-p", "robot:=sorting_robots:robot"]


@pytest.mark.parametrize(
    ("obstacle", "why"),
    [(no_cache, "cannot be used: [Errno 17] File exists"), (no_scalar_form, "aten.sort")],
)
def test_node_says_in_one_line_what_keeps_it_from_compiling(tmp_path, environment, obstacle, why):
    variables, arguments = obstacle(tmp_path)
    node = Process(
        "node", tmp_path / "log", *arguments, environment=environment(PATIENT) | variables
    )
    node.until_it_says(STAYS_EAGER)
    assert node.stop() == 0
    (line,) = [text for text in node.output.splitlines() if STAYS_EAGER in text]
    assert why in line
    assert "Traceback" not in node.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_compilation_ends_all_processes_and_leaves_nothing(
    tmp_path, environment, number
):
    node = Process("node", tmp_path / "log", environment=environment(PATIENT))
    compiler = compiling(node, tmp_path)
    assert node.stop(number) == 0
    assert not alive(compiler)
    assert list((tmp_path / "cache").iterdir()) == []
    assert "Traceback" not in node.output
