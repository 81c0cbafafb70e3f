# SPDX-License-Identifier: Apache-2.0
"""Runs a node executable: reads its command line, spins one node, and stops in good order."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, Protocol

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from mpc_banded import __version__
from mpc_banded.control import parameter_file
from mpc_banded.control.parameter_file import ParameterFileError
from mpc_banded.robots.modules import look_beside

try:
    # The executor that is written in C++ and waits for events takes a third of the processor time
    # of the one that builds a wait set in Python for each message. Jazzy (7.1.4) was the first to
    # have it.
    from rclpy.experimental.events_executor import EventsExecutor as Executor
except ImportError:
    from rclpy.executors import SingleThreadedExecutor as Executor

#: Exit codes: stopped by SIGINT or SIGTERM, refused to start.
STOPPED, REFUSED = 0, 2
#: Longest time in s for which a signal may go unnoticed while nothing else happens.
PATIENCE_S = 0.1
USAGE = "%(prog)s [-h] [--version] [--ros-args -p NAME:=VALUE --params-file FILE ...]"
EPILOG = """\
`mpc_banded check FILE` checks a parameter file without starting anything.
Exit codes: 0 after SIGINT or SIGTERM, 2 if the command line or the parameters are refused."""


class Task(Protocol):
    """The work of a node; it is built first, and armed and disarmed later."""

    def activate(self) -> None:
        """Start to act."""

    def deactivate(self) -> None:
        """Stop acting, and leave the robot stopped."""


class TaskNode(Protocol):
    """A node that decides when its task is built, started and ended."""

    @property
    def node(self) -> Node:
        """The node."""

    def begin(self) -> bool:
        """Start as the parameters say; False if they are refused."""

    def end(self) -> None:
        """Leave the robot stopped; the node is destroyed after that."""


class PlainNode:
    """A node whose task starts and ends with the process.

    Args:
        name: Name of the node.
        build: Builds the task of the node; raises ValueError or ArithmeticError to refuse.
    """

    def __init__(self, name: str, build: Callable[[Node], Task]) -> None:
        self.node = Node(name)
        self._build = build
        self._task: Task | None = None

    def begin(self) -> bool:
        """Build the task and start it."""
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


def run(
    name: str, purpose: str, make: Callable[[], TaskNode], arguments: list[str] | None
) -> NoReturn:
    """Run a node until SIGINT or SIGTERM, and end the process.

    The process ends without the teardown of its modules, which takes Python and torch most of a
    second of processor time: the robot has been stopped, and all files are closed.

    Args:
        name: Name of the executable, for its help and for errors before there is a node.
        purpose: One sentence for its help.
        make: Creates the node.
        arguments: Command line; that of the process if None.
    """
    code = _run(name, purpose, make, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(
    name: str, purpose: str, make: Callable[[], TaskNode], arguments: list[str] | None
) -> int:
    """Run a node until SIGINT or SIGTERM; returns the exit code of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not rclpy's handlers: they tear the context down before the robot has been stopped.
        signal.signal(number, lambda number, _: signals.append(number))
    try:
        _parse(name, purpose, remove_ros_args(arguments))
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # the ROS arguments or the parameter file cannot be read
        print(f"{name}: {error}", file=sys.stderr)
        return REFUSED
    try:
        task_node = make()
        take_parameter_files(arguments, task_node.node)
    except (ParameterException, ParameterFileError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        rclpy.shutdown()
        return REFUSED
    executor = Executor()
    executor.add_node(task_node.node)
    try:
        if not task_node.begin():
            return REFUSED
        while not signals:
            executor.spin_once(timeout_sec=PATIENCE_S)
        return STOPPED
    finally:
        task_node.end()
        executor.shutdown()
        task_node.node.destroy_node()
        rclpy.shutdown()


def take_parameter_files(arguments: list[str], node: Node) -> None:
    """Refuse what ``mpc_banded check`` refuses, and let robots be imported from their folders.

    rcl would silently ignore a file that has nothing for the node, and the node would start as the
    built-in robot of the defaults.

    Args:
        arguments: Command line of the process.
        node: The node, which knows its full name.

    Raises:
        ParameterFileError: A file has nothing for the node, or is ambiguous.
    """
    for word, following in pairwise(arguments):
        if word == "--params-file":
            file = Path(following)
            parameter_file.read(file, node.get_fully_qualified_name())
            look_beside(file)


def _parse(name: str, purpose: str, arguments: list[str]) -> None:
    """Answer ``--help`` and ``--version``, and refuse any other word that is not for ROS."""
    parser = argparse.ArgumentParser(
        prog=name,
        usage=USAGE,
        description=purpose,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.parse_args(arguments)
