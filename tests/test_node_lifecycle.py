# SPDX-License-Identifier: Apache-2.0
"""A lifecycle manager takes the node through its states, by the usual services."""

import gc
import threading
import weakref
from pathlib import Path

import pytest
import rclpy
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import State, Transition, TransitionEvent
from lifecycle_msgs.srv import (
    ChangeState,
    GetAvailableStates,
    GetAvailableTransitions,
    GetState,
)
from nav_msgs.msg import Path as PathMessage
from rclpy.context import Context
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_harness import Process, Robot, Watcher

from mpc_banded.ros.demo.scenarios import figure_of_eight
from mpc_banded.ros.lifecycle import SUCCESS, ManagedNode
from mpc_banded.ros.node import TaskBuilder

pytestmark = pytest.mark.ros

UNCONFIGURED, INACTIVE = State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_INACTIVE
ACTIVE, FINALIZED = State.PRIMARY_STATE_ACTIVE, State.PRIMARY_STATE_FINALIZED
#: What Nav2's lifecycle manager asks for at start-up and at shutdown.
UP = ((Transition.TRANSITION_CONFIGURE, INACTIVE), (Transition.TRANSITION_ACTIVATE, ACTIVE))
DOWN = (
    (Transition.TRANSITION_DEACTIVATE, INACTIVE),
    (Transition.TRANSITION_CLEANUP, UNCONFIGURED),
)


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """A unicycle whose node waits for a lifecycle manager."""
    folder = tmp_path_factory.mktemp("lifecycle")
    robot = Robot("unicycle", folder, "managed", node_parameters={"autostart": False})
    yield robot
    robot.close()


def state(robot):
    return robot.request(GetState, "mpc_node/get_state", GetState.Request()).current_state.id


def change(robot, transition, label=""):
    request = ChangeState.Request(transition=Transition(id=transition, label=label))
    return robot.request(ChangeState, "mpc_node/change_state", request).success


def go(robot, steps):
    for transition, reached in steps:
        assert change(robot, transition)
        assert state(robot) == reached


def test_manager_brings_the_node_up_and_down_again_and_again(waiting):
    robot = waiting
    assert state(robot) == UNCONFIGURED
    events = []
    topic = "mpc_node/transition_event"
    listener = robot.observer.create_subscription(
        TransitionEvent, topic, events.append, QoSProfile(depth=50)
    )
    robot.until(lambda: robot.observer.count_publishers(topic), "transition events on offer")
    for _ in range(2):
        robot.commands.clear()
        go(robot, UP[:1])
        robot.publish_plan(figure_of_eight())  # is kept until the node is active
        robot.drain()
        assert not robot.commands, "an inactive node commands"
        go(robot, UP[1:])
        robot.until(robot.is_driving, "driving")
        go(robot, DOWN[:1])
        robot.until(lambda: robot.is_stopped(1), "a stop as the last command")
        robot.drain()
        assert robot.is_stopped(1)
        silent = len(robot.commands)
        robot.statuses.clear()
        robot.until(lambda: robot.statuses, "a status while inactive")
        assert robot.reason == "inactive: no command is sent"
        assert len(robot.commands) == silent
        go(robot, DOWN[1:])
    robot.until(lambda: len(events) >= 16, "an event of each transition")
    robot.observer.destroy_subscription(listener)
    robot.assert_commands_allowed()


def test_robot_that_was_stopped_mid_drive_is_not_moved_by_activating_without_a_state(waiting):
    robot = waiting
    go(robot, UP)
    robot.publish_plan(figure_of_eight())
    robot.until(lambda: robot.is_driving() and robot.code == "driving", "driving")
    go(robot, DOWN[:1])
    robot.until(lambda: robot.is_stopped(1), "a stop as the last command")
    robot.switch("simulator_node/publish", False)
    robot.drain()
    robot.commands.clear()
    go(robot, UP[1:])
    robot.hear_more(20)
    assert robot.is_stopped(len(robot.commands))
    robot.switch("simulator_node/publish", True)
    robot.until(robot.is_driving, "driving")
    go(robot, DOWN)


def test_cleanup_forgets_the_reference_and_that_the_robot_was_disabled(waiting):
    robot = waiting
    go(robot, UP)
    robot.publish_plan(figure_of_eight())
    robot.until(robot.is_driving, "driving")
    robot.switch("mpc_node/enable", False)
    robot.until(lambda: robot.code == "disabled", "disabled")
    go(robot, DOWN)
    robot.cycles.clear()
    go(robot, UP)
    robot.until(lambda: robot.code == "no reference yet", "waiting for a reference")
    assert "disabled" not in {cycle.code for cycle in robot.cycles}
    go(robot, DOWN)


def test_cleanup_gives_back_all_that_configure_built():
    tasks = []

    class Tracked(TaskBuilder):
        def __call__(self, node):
            task = super().__call__(node)
            tasks.append(weakref.ref(task))
            return task

    rclpy.init(args=["--ros-args", "-r", "__ns:=/within"])
    try:
        node = ManagedNode("mpc_node", Tracked())
        for _ in range(2):
            assert node.trigger_configure() is SUCCESS
            assert node.trigger_cleanup() is SUCCESS
        gc.collect()
        assert [task() for task in tasks] == [None, None]
        assert not gc.get_freeze_count()
        node.destroy_node()
    finally:
        rclpy.shutdown()


def test_impossible_transition_is_refused_by_name_and_changes_nothing(waiting):
    assert not change(waiting, Transition.TRANSITION_ACTIVATE)
    assert not change(waiting, 0, "nonsense")
    assert state(waiting) == UNCONFIGURED
    go(waiting, UP[:1])
    assert not change(waiting, Transition.TRANSITION_CONFIGURE)
    assert state(waiting) == INACTIVE
    assert "transition nonsense in the state unconfigured, which allows" in waiting.node.output
    assert "transition 1 in the state inactive, which allows cleanup (2)" in waiting.node.output
    assert change(waiting, 0, "cleanup")
    assert state(waiting) == UNCONFIGURED


def test_states_and_transitions_are_those_of_every_lifecycle_node(waiting):
    states = waiting.request(
        GetAvailableStates, "mpc_node/get_available_states", GetAvailableStates.Request()
    ).available_states
    assert {s.label for s in states} >= {"unconfigured", "inactive", "active", "finalized"}
    service = "mpc_node/get_available_transitions"
    answer = waiting.request(GetAvailableTransitions, service, GetAvailableTransitions.Request())
    labels = {t.transition.label for t in answer.available_transitions}
    assert labels == {"configure", "shutdown"}


def test_parameters_set_in_between_hold_after_the_next_configure(waiting):
    assert not waiting.set_at_once(weights__position=7.5, horizon=25)
    go(waiting, UP[:1])
    assert "horizon 25" in waiting.node.output
    assert "weights.position 7.5" in waiting.node.output
    go(waiting, DOWN[1:])


def test_node_outlives_neighbours_that_come_and_go_while_it_is_torn_down(waiting):
    robot, ended = waiting, threading.Event()
    wrong = [
        QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
    ]

    def disturb():
        context = Context()
        rclpy.init(context=context)
        node = Node("crowd", context=context, namespace=robot.namespace)
        while not ended.wait(0.01):
            listeners = [
                node.create_subscription(kind, topic, print, quality)
                for kind, topic in ((TwistStamped, "cmd_vel"), (PathMessage, "mpc_node/reference"))
                for quality in wrong
            ]
            speakers = [node.create_publisher(PathMessage, "plan", quality) for quality in wrong]
            for listener in listeners:
                node.destroy_subscription(listener)
            for speaker in speakers:
                node.destroy_publisher(speaker)
        node.destroy_node()
        rclpy.shutdown(context=context)

    crowd = threading.Thread(target=disturb)
    crowd.start()
    try:
        for _ in range(5):
            go(robot, (*UP, *DOWN))
    finally:
        ended.set()
        crowd.join()


def test_shutdown_from_active_stops_the_robot_and_the_process_ends_with_code_0(waiting):
    robot = waiting
    go(robot, UP)
    robot.publish_plan(figure_of_eight())
    robot.until(robot.is_driving, "driving")
    go(robot, ((Transition.TRANSITION_ACTIVE_SHUTDOWN, FINALIZED),))
    robot.until(lambda: robot.is_stopped(1), "a stop as the last command")
    assert robot.node.stop() == 0
    assert "Traceback" not in robot.node.output


def test_torch_comes_with_configure(tmp_path):
    node = Process("node", tmp_path / "log", "-p", "autostart:=false", "-r", "__ns:=/small")
    robot = Watcher("small", node)

    def mapped():
        return "libtorch" in Path(f"/proc/{node.pid}/maps").read_text()

    try:
        assert state(robot) == UNCONFIGURED
        assert not mapped()
        go(robot, UP[:1])
        assert mapped()
    finally:
        robot.close()


def test_refused_configuration_leaves_a_waiting_node_unconfigured(tmp_path):
    arguments = ["-p", "autostart:=false", "-p", "horizn:=30", "-r", "__ns:=/refused"]
    node = Process("node", tmp_path / "log", *arguments)
    robot = Watcher("refused", node)
    try:
        assert not change(robot, Transition.TRANSITION_CONFIGURE)
        assert state(robot) == UNCONFIGURED
        node.until_it_says("did you mean 'horizon'")
        assert node.stop() == 0
    finally:
        robot.close()
