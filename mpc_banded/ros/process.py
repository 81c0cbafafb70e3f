# SPDX-License-Identifier: Apache-2.0
"""The life of a process with one node: start, spin, and stop in good order."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Protocol

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

try:
    # The executor that is written in C++ and waits for events takes a third of the processor time
    # of the one that builds a wait set in Python for each message. Jazzy (7.1.4) was the first to
    # have it.
    from rclpy.experimental.events_executor import EventsExecutor as Executor
except ImportError:
    from rclpy.executors import SingleThreadedExecutor as Executor

#: Exit codes: stopped by SIGINT or SIGTERM, refused to start.
STOPPED, REFUSED = 0, 2
#: How long a signal may go unnoticed while nothing else happens.
PATIENCE_S = 0.1


class Task(Protocol):
    """What a node does, armed and disarmed apart from being built."""

    def activate(self) -> None:
        """Begin to act."""

    def deactivate(self) -> None:
        """Cease to act, and leave the robot stopped."""


class Actor(Protocol):
    """A node with a task, and when that task is built, begun and ended."""

    @property
    def node(self) -> Node:
        """The node."""

    def begin(self) -> bool:
        """Begin as the parameters say; False if they are refused."""

    def end(self) -> None:
        """Leave the robot stopped; the node is destroyed after that."""


class Plain:
    """A node whose task begins with the process and ends with it.

    Args:
        name: Of the node.
        build: Gives the node its task; raises ValueError or ArithmeticError to refuse.
    """

    def __init__(self, name: str, build: Callable[[Node], Task]) -> None:
        self.node = Node(name)
        self._build = build
        self._task: Task | None = None

    def begin(self) -> bool:
        """Build the task and begin."""
        try:
            self._task = self._build(self.node)
        except (ValueError, ArithmeticError) as error:
            self.node.get_logger().fatal(str(error))
            return False
        self._task.activate()
        return True

    def end(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.deactivate()


def run(name: str, make: Callable[[], Actor], arguments: list[str] | None) -> int:
    """Run a node until SIGINT or SIGTERM; returns the exit code of the process.

    Args:
        name: For what is said before there is a node.
        make: Makes the node.
        arguments: Command line; that of the process if None.
    """
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not rclpy's handlers: they tear the context down before the robot has been stopped.
        signal.signal(number, lambda number, _: signals.append(number))
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # arguments or parameter file cannot be read
        print(f"{name}: {error}", file=sys.stderr)
        return REFUSED
    try:
        actor = make()
    except ParameterException as error:
        print(f"{name}: {error}", file=sys.stderr)
        rclpy.shutdown()
        return REFUSED
    executor = Executor()
    executor.add_node(actor.node)
    try:
        if not actor.begin():
            return REFUSED
        while not signals:
            executor.spin_once(timeout_sec=PATIENCE_S)
        return STOPPED
    finally:
        actor.end()
        executor.shutdown()
        actor.node.destroy_node()
        rclpy.shutdown()
