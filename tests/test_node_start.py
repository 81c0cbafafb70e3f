# SPDX-License-Identifier: Apache-2.0
"""Nodes start side by side, stop in good order, or refuse their configuration in one line."""

import math
import signal
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from ros_harness import Process, Robot, Watcher, config_file, on_path, position
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from mpc_banded.ros.demo.scenarios import figure_of_eight, lane_change

pytestmark = pytest.mark.ros

EVENTS = "rclpy.experimental.events_executor"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def two_unicycles(folder):
    """Two robots in namespaces.

    One has a band that is wider than needed and a plain Twist; the other an rclpy that is older
    than its events executor.
    """
    hidden = folder / "old"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(f"import sys; sys.modules[{EVENTS!r}] = None")
    parameters = {"bandwidth": 14, "enable_stamped_cmd_vel": False}
    robots = [
        Robot("unicycle", folder, "left", **parameters),
        Robot("unicycle", folder, "right", environment=on_path(hidden)),
    ]
    yield robots
    for robot in robots:
        robot.close()


def test_two_namespaces_do_not_disturb_each_other(two_unicycles):
    left, right = two_unicycles
    left.publish_plan(figure_of_eight())
    left.until(left.is_driving, "driving")
    right.until(lambda: right.statuses, "a status")
    right.hear_more()
    assert right.is_stopped(len(right.commands))
    waiting = "stopped: waiting for a reference on plan or goal_pose"
    right.until(lambda: waiting in right.reason, "said so")
    right.publish_plan(figure_of_eight())
    right.until(right.is_driving, "driving")
    left.assert_commands_allowed()
    right.assert_commands_allowed()
    is_new = find_spec("rclpy.experimental") is not None
    old, new = "SingleThreadedExecutor", "EventsExecutor" if is_new else "SingleThreadedExecutor"
    left.until(lambda: left.facts.get("executor") == new, f"on {new}")
    right.until(lambda: right.facts.get("executor") == old, f"on {old}")


@pytest.mark.parametrize(("which", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_signal_stops_the_robot_and_ends_with_code_0(two_unicycles, which, number):
    robot = two_unicycles[which]
    robot.publish_plan(figure_of_eight())
    robot.until(robot.is_driving, "driving")
    assert robot.node.stop(number) == 0
    robot.drain()
    assert robot.is_stopped(1)
    assert robot.simulator.stop(number) == 0
    assert "Traceback" not in robot.node.output + robot.simulator.output


def test_bicycle_drives(folder):
    robot = Robot("bicycle", folder, "bicycle")
    try:
        robot.publish_plan(lane_change())
        robot.until(lambda: robot.states and position(robot.states[-1])[0] > 5.0, "5 m ahead")
        robot.until(lambda: robot.paths, "an optimal path")
        robot.assert_commands_allowed()
    finally:
        robot.close()


def test_cartpole_swings(folder):
    robot = Robot("cartpole", folder, "cartpole")
    try:
        robot.until(
            lambda: robot.states and abs(robot.states[-1].position[1] - math.pi) > 1.0,
            "swung by a radian",
        )
        robot.assert_commands_allowed()
    finally:
        robot.close()


def test_arm_follows_a_joint_trajectory(folder):
    robot = Robot("joint_space", folder, "arm")
    try:
        joints = robot.config.values["joints"]
        robot.until(lambda: robot.states, "a state")
        goal = dict(zip(joints, np.linspace(0.2, 0.8, len(joints)), strict=True))
        point = JointTrajectoryPoint(positions=list(goal.values()))
        point.time_from_start.sec = 2
        message = JointTrajectory(joint_names=list(goal), points=[point])
        robot.publish(JointTrajectory, "joint_trajectory", message)

        def error():
            newest = dict(zip(robot.states[-1].name, robot.states[-1].position, strict=True))
            return max(abs(newest[name] - x) for name, x in goal.items())

        robot.until(lambda: error() < 0.05, "at its goal")
        assert robot.commands[-1].joint_names == joints
        robot.assert_commands_allowed()
    finally:
        robot.close()


def test_node_warns_if_its_commands_have_no_subscriber(folder):
    node = Process("node", folder / "lonely.log", "-r", "__ns:=/lonely")
    watcher, told = Watcher("lonely", node), []
    try:
        watcher.listen(DiagnosticArray, "/diagnostics", told.append, 10)
        lonely = "/lonely/cmd_vel has no subscriber"
        watcher.until(lambda: any(lonely in m.status[0].message for m in told), "a warning")
        assert told[-1].status[0].level == DiagnosticStatus.WARN
    finally:
        watcher.close()


def test_missing_message_package_is_named(folder):
    arguments = ["-p", "robot:=bicycle", "-p", "command:=ackermann"]
    if find_spec("ackermann_msgs") is not None:
        pytest.skip("ackermann_msgs is installed")
    process = Process("node", folder / "ackermann.log", *arguments)
    assert process.wait() == 2
    assert "messages of type ackermann_msgs/msg/AckermannDriveStamped" in process.output
    assert "Traceback" not in process.output


def test_missing_torch_is_named(folder):
    (folder / "torchless").mkdir()
    (folder / "torchless" / "sitecustomize.py").write_text(
        "import sys; sys.modules['torch'] = None"
    )
    process = Process("node", folder / "torchless.log", environment=on_path(folder / "torchless"))
    assert process.wait() == 2
    assert "the Python module torch is not installed; README.md says" in process.output
    assert "Traceback" not in process.output


REFUSED = {
    "unknown key": (["-p", "horizn:=30"], ["horizn is 30", "did you mean 'horizon'"]),
    "wrong type": (
        ["-p", "horizon:=much"],
        ["horizon is 'much'", "allowed are integers from 0 to 10000"],
    ),
    "no such robot": (
        ["-p", "robot:=nowhere.to_be:found"],
        ["robot is 'nowhere.to_be:found'", "No module named 'nowhere'"],
    ),
    "narrow band": (["-p", "bandwidth:=5"], ["bandwidth is 5", "allowed are 0", "10 measured"]),
    "empty for a number": (["-p", "dt:=[]"], ["dt is []", "allowed are numbers from 0 to 10"]),
    "no truth value": (["-p", "autostart:=nope"], ["autostart", "BOOL", "STRING"]),
    "no such file": (["--params-file", "nowhere.yaml"], ["nowhere.yaml", "Error opening"]),
}


@pytest.fixture(scope="module")
def refusals(folder):
    """Exit code and output of a node for each wrong configuration."""

    def start(case):
        process = Process("node", folder / f"{case}.log".replace(" ", "_"), *REFUSED[case][0])
        return process.wait(), process.output

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(REFUSED, pool.map(start, REFUSED), strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_node_refuses_with_one_line_and_code_2(refusals, case):
    code, output = refusals[case]
    assert code == 2
    ours = [line for line in output.splitlines() if "mpc_node" in line]
    assert len(ours) == 1
    for text in REFUSED[case][1]:
        assert text in ours[0]
    assert "Traceback" not in output


def test_simulator_refuses_as_the_node_does(folder):
    arguments = ["-p", "simulator.initial_state:=[1.0, 2.0]"]
    process = Process("simulator", folder / "refused_simulator.log", *arguments)
    assert process.wait() == 2
    assert "simulator.initial_state is [1.0, 2.0]" in process.output


MISPLACED = {
    "another name": ("mpc_nod:", "its top-level keys are mpc_nod; allowed are '/**'"),
    "another namespace": ("/left/mpc_node:", "its top-level keys are left/mpc_node"),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_node_does_not_come_up_as_another_robot_than_its_file_says(folder, case):
    key, told = MISPLACED[case]
    file = folder / f"{case}.yaml"
    file.write_text(config_file("cartpole").read_text().replace("/**:", key))
    log = folder / f"{case}.log"
    process = Process("node", log, "--params-file", file, "-r", "__ns:=/right")
    assert process.wait() == 2
    (line,) = process.output.splitlines()
    assert told in line
    assert "no parameters for /right/mpc_node" in line


def test_node_refuses_a_key_that_is_there_twice(folder):
    file = folder / "twice.yaml"
    file.write_text("/**:\n  ros__parameters:\n    dt: 0.1\n    horizon: 9\n    dt: 0.2\n")
    process = Process("node", folder / "twice.log", "--params-file", file)
    assert process.wait() == 2
    assert "has dt twice, in line 3 and in line 5" in process.output
