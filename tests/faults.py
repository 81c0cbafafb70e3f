# SPDX-License-Identifier: Apache-2.0
"""Fixtures and laws of the fault tests: a robot whose state passes through the test."""

import copy

import numpy as np
from nav_msgs.msg import Odometry
from ros_harness import Robot

from mpc_banded.control.tick import Reason

DRIVING, FOLLOWING = Reason.DRIVING.value, Reason.FOLLOWING.value
SLOWING, HOLDING = Reason.SLOWING.value, Reason.HOLDING.value
#: An easy task for a busy machine: straight ahead, slowly, nothing in the way, for a long time.
AHEAD = np.column_stack([np.linspace(0.0, 200.0, 400), np.full(400, 0.5)])
EASY = {
    "horizon": 15,
    "dt": 0.1,
    "obstacles": [-50.0, 0.0, 0.1],
    "max_state_age": 0.8,
    "simulator.frequency": 50.0,
}


class RelayedRobot(Robot):
    """A unicycle whose node gets the state through the test, which relays the simulator's.

    Attributes:
        fault: Message -> what is handed on instead; None hands on as it is.
    """

    def __init__(self, folder, namespace, **parameters):
        self.fault = None
        super().__init__(
            "unicycle",
            folder,
            namespace,
            node_arguments=("-r", "odom:=relayed"),
            **EASY | parameters,
        )
        self._relay = self.observer.create_publisher(Odometry, "relayed", 50)
        self.listen(Odometry, "odom", self._hand_on, 50)

    def _hand_on(self, message):
        for each in [message] if self.fault is None else self.fault(message):
            self._relay.publish(each)

    def moves(self):
        """Whether the simulated robot moves."""
        return bool(self.states) and self.states[-1].twist.twist.linear.x > 0.3

    def drive(self):
        """Drive until the robot moves without faults."""
        self.fault = None
        self.publish_plan(AHEAD)
        self.until(lambda: self.code == DRIVING and self.moves(), "driving")
        del self.cycles[:-1], self.commands[:-1]


def edited(message, **changes):
    """A copy with another x, or a stamp moved by ``later_s``."""
    result = copy.deepcopy(message)
    pose, stamp = result.pose.pose.position, result.header.stamp
    pose.x = changes.get("x", pose.x) + changes.get("further", 0.0)
    if "later_s" in changes:
        stamp.sec += changes["later_s"]
    if changes.get("unstamped"):
        stamp.sec = stamp.nanosec = 0
    return result


def assert_robot_does_as_it_says(robot):
    """Check that every command is allowed, and that each cycle does what its reason code says.

    Holding is the stop, slowing is no faster than before, and whoever has just been held drives
    only after a plan.
    """
    robot.assert_commands_allowed()
    assert robot.cycles
    before = None
    for cycle in robot.cycles:
        values = list(cycle.command.values())
        assert np.isfinite(values).all()
        for name, value in cycle.command.items():
            lower, upper = robot.config.values.get(f"limits.{name}", (-np.inf, np.inf))
            assert lower <= value <= upper, cycle
        if cycle.code == HOLDING:
            assert not any(values), cycle
        follows = before is not None and cycle.number == before.number + 1
        if cycle.code == SLOWING and follows:
            assert np.all(np.abs(values) <= np.abs(list(before.command.values())) + 1e-9), cycle
        before = cycle
    assert robot.node.alive
