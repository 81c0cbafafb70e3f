# SPDX-License-Identifier: Apache-2.0
"""Faults of the state while a robot drives: it does as its reason says, and drives on after.

The simulator is a separate process; its messages pass through the test, which falsifies them.
"""

import math

import pytest
from faults import (
    AHEAD,
    DRIVING,
    HOLDING,
    RelayedRobot,
    assert_robot_does_as_it_says,
    edited,
)

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    robot = RelayedRobot(tmp_path_factory.mktemp("state"), "state")
    yield robot
    robot.close()


@pytest.fixture
def robot(shared):
    """A robot that drives, and must drive again once the fault is over."""
    shared.drive()
    yield shared
    shared.fault = None
    shared.until(lambda: shared.code == DRIVING and shared.is_driving(), "driving again")
    assert_robot_does_as_it_says(shared)


class Frozen:
    """The first message again and again, with or without stamps that move on."""

    def __init__(self, stamps_move):
        self.stamps_move, self.first = stamps_move, None

    def __call__(self, message):
        self.first = self.first or message
        again = edited(self.first)
        if self.stamps_move:
            again.header.stamp = message.header.stamp
        return [again]


class Bursts:
    """Keeps messages back, and hands them on together."""

    def __init__(self, size):
        self.size, self.kept, self.handed_on = size, [], 0

    def __call__(self, message):
        self.kept.append(message)
        if len(self.kept) < self.size:
            return []
        together, self.kept = self.kept, []
        self.handed_on += 1
        return together


#: What makes the robot stop: the fault, and what the reason must name.
STOPPING = {
    "stops": (lambda: lambda _: [], "s old, max_state_age is 0.8 s"),
    "freezes": (lambda: Frozen(stamps_move=True), "frozen"),
    "repeats": (lambda: Frozen(stamps_move=False), "repeats the stamp"),
    "not finite": (lambda: lambda m: [edited(m, x=math.nan)], "x of the state message is not"),
    "ten seconds old": (lambda: lambda m: [edited(m, later_s=-10)], "the state is 10.0"),
    "a minute old": (lambda: lambda m: [edited(m, later_s=-60)], "if the clocks differ"),
    "future": (lambda: lambda m: [edited(m, later_s=10)], "s ahead of the clock"),
}


@pytest.mark.parametrize("fault", STOPPING)
def test_robot_is_stopped_and_says_why(robot, fault):
    make, why = STOPPING[fault]
    robot.fault = make()
    robot.until(lambda: robot.code == HOLDING, "held")
    robot.until(lambda: any(why in c.reason for c in robot.cycles), f"said {why!r}")
    robot.until(lambda: "holding the stop" in robot.reason, "reported")
    codes = {cycle.code for cycle in robot.cycles}
    assert codes >= {DRIVING, HOLDING}
    # No command is computed from a state older than allowed.
    newest_ns = 0
    for cycle in robot.cycles:
        stamps = [r.stamp_ns for r in cycle.received if r.topic == "odom"]
        newest_ns = max([newest_ns, *(s for s in stamps if s <= cycle.now_ns)])
        if cycle.code == DRIVING and newest_ns:
            assert cycle.now_ns - newest_ns <= 1e9 * robot.config.parameters.max_state_age


def test_robot_drives_on_states_without_a_stamp_and_says_so(robot):
    robot.fault = lambda m: [edited(m, unstamped=True)]
    robot.until(
        lambda: robot.code == DRIVING and "has no stamp" in robot.cycles[-1].reason, "driving"
    )
    robot.until(lambda: "has no stamp" in robot.reason, "reported")


def test_single_wild_states_are_rejected_while_the_robot_drives(robot):
    count = 0

    def wild(message):
        nonlocal count
        count += 1
        return [edited(message, further=10.0) if count % 5 == 0 else message]

    robot.fault = wild
    start = robot.states[-1].pose.pose.position.x
    robot.until(lambda: int(robot.facts["rejected messages"]) > 3, "rejections counted")
    robot.until(lambda: robot.states[-1].pose.pose.position.x > start + 1.0, "driven on")


def test_robot_that_was_moved_plans_from_there(robot):
    robot.fault = lambda m: [edited(m, further=10.0)]
    robot.until(lambda: "jumped by" in robot.node.output, "rejected at first")

    def drives_there():
        robot.paths.clear()
        robot.until(lambda: robot.paths, "a path")
        here = robot.states[-1].pose.pose.position.x
        return abs(robot.paths[-1].poses[0].pose.position.x - here - 10.0) < 1.0

    robot.until(lambda: robot.code == DRIVING and drives_there(), "driving 10 m further on")


def test_bursts_of_old_and_new_states_do_no_harm(robot):
    robot.fault = bursts = Bursts(20)
    robot.until(lambda: bursts.handed_on >= 10, "ten bursts")


def test_simulator_is_killed_and_started_again(robot):
    robot.processes = (robot.node,)
    robot.simulator.kill()
    robot.until(lambda: robot.code == HOLDING, "held")
    robot.restart_simulator()
    robot.until(lambda: robot.code == DRIVING, "driving again")
    robot.publish_plan(AHEAD)
