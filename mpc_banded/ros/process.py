# SPDX-License-Identifier: Apache-2.0
"""The life of a process with one node: start, spin, and stop in good order."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Protocol

import rclpy
import torch
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from mpc_banded.comb import BandwidthError

#: Exit codes: stopped by SIGINT or SIGTERM, refused to start.
STOPPED, REFUSED = 0, 2
#: How long a signal may go unnoticed while nothing else happens.
PATIENCE_S = 0.1


class Task(Protocol):
    """What a node does, armed and disarmed apart from being built, as managed nodes are."""

    def activate(self) -> None:
        """Begin to act."""

    def deactivate(self) -> None:
        """Cease to act, and leave the robot stopped."""


def run(name: str, configure: Callable[[Node], Task], arguments: list[str] | None) -> int:
    """Run a node until SIGINT or SIGTERM; returns the exit code of the process.

    Args:
        name: Of the node.
        configure: Gives the node its task; raises ValueError or ArithmeticError to refuse.
        arguments: Command line; that of the process if None.
    """
    torch.set_num_threads(1)  # one core is enough here, and the others have work of their own
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not rclpy's handlers: they tear the context down before the robot has been stopped.
        signal.signal(number, lambda number, _: signals.append(number))
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # arguments or parameter file cannot be read
        print(f"{name}: {error}", file=sys.stderr)
        return REFUSED
    node = Node(name)
    try:
        task = configure(node)
    except BandwidthError as error:
        node.get_logger().fatal(
            f"bandwidth is {error.configured}; allowed are 0, which derives it, and "
            f"{error.measured} or more: {error}"
        )
        return REFUSED
    except (ValueError, ArithmeticError) as error:
        node.get_logger().fatal(str(error))
        return REFUSED
    else:
        _spin(node, task, signals)
        return STOPPED
    finally:
        node.destroy_node()
        rclpy.shutdown()


def _spin(node: Node, task: Task, signals: list[int]) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    task.activate()
    try:
        while not signals:
            executor.spin_once(timeout_sec=PATIENCE_S)
    finally:
        task.deactivate()
        executor.shutdown()
