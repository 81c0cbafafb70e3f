# SPDX-License-Identifier: Apache-2.0
"""Node and simulator on simulated time that runs, stands still, and jumps both ways."""

import pytest
from builtin_interfaces.msg import Time
from faults import AHEAD, DRIVING, EASY, assert_robot_does_as_it_says
from ros_harness import Robot
from rosgraph_msgs.msg import Clock

pytestmark = pytest.mark.ros

TICK_S = 0.02


class SimulatedRobot(Robot):
    """A unicycle whose time is told by the tests.

    Attributes:
        now_s: Simulated time.
        running: Whether it goes on.
    """

    def __init__(self, folder):
        super().__init__(
            "unicycle",
            folder,
            "timed",
            both_arguments=("-p", "use_sim_time:=true"),
            **EASY,
        )
        self.now_s, self.running = 1000.0, True
        self._clock = self.observer.create_publisher(Clock, "/clock", 10)
        self.observer.create_timer(TICK_S, self._tell)

    def _tell(self):
        if self.running:
            self.now_s += TICK_S
            seconds = int(self.now_s)
            nanoseconds = int(1e9 * (self.now_s - seconds))
            self._clock.publish(Clock(clock=Time(sec=seconds, nanosec=nanoseconds)))

    def drive(self):
        self.running = True
        self.publish_plan(AHEAD)
        self.until(lambda: self.code == DRIVING and self.is_driving(), "driving")
        del self.cycles[:-1], self.commands[:-1], self.states[:-1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    robot = SimulatedRobot(tmp_path_factory.mktemp("timed"))
    yield robot
    robot.close()


@pytest.fixture
def robot(shared):
    shared.drive()
    yield shared
    shared.drive()
    shared.hear_more(10)
    assert_robot_does_as_it_says(shared)
    assert "Traceback" not in shared.node.output + shared.simulator.output


def stamp_s(message):
    return message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec


def test_stamps_are_those_of_the_simulated_clock(robot):
    begin_s = robot.now_s
    robot.hear_more(10)
    robot.until(lambda: robot.paths, "a path")
    for message in (*robot.commands[1:], robot.paths[-1], robot.states[-1]):
        assert begin_s - 2.0 <= stamp_s(message) <= robot.now_s
    assert all(begin_s - 2.0 <= 1e-9 * c.now_ns <= robot.now_s for c in robot.cycles)


def test_paused_clock_pauses_the_robot_and_is_named(robot):
    robot.running = False
    robot.until(lambda: "stands still" in robot.reason, "said that time stands still")
    robot.drain()
    commands, states = len(robot.commands), len(robot.states)
    robot.statuses.clear()
    robot.until(lambda: len(robot.statuses) > 1, "further statuses")
    assert len(robot.commands) == commands
    assert len(robot.states) == states
    robot.running = True
    robot.hear_more(10)
    assert {cycle.code for cycle in robot.cycles} == {DRIVING}, "a pause is no fault"


@pytest.mark.parametrize("jump_s", [-5.0, 20.0])
def test_clock_jumps_and_the_robot_drives_on(robot, jump_s):
    before = robot.now_s
    robot.now_s += jump_s
    wanted = before + jump_s
    robot.until(lambda: abs(1e-9 * robot.cycles[-1].now_ns - wanted) < 3.0, "a cycle after it")
    robot.until(lambda: robot.code == DRIVING, "driving again")
    assert robot.metric("skipped_cycles") < 50, "a jump is no pile of missed cycles"
