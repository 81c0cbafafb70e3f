# SPDX-License-Identifier: Apache-2.0
"""mpc_node: a lifecycle node around the control loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from rclpy.node import Node

from mpc_banded.ros import executable
from mpc_banded.ros.lifecycle import ManagedNode

if TYPE_CHECKING:
    from mpc_banded.ros.parameters import LiveParameters
    from mpc_banded.ros.task import MpcTask

PURPOSE = "Drive a robot: a lifecycle node that computes a command from its state in each cycle."


class TaskBuilder:
    """Builds the task of a node each time it is configured, from its parameters at that time."""

    def __init__(self) -> None:
        self._live: LiveParameters | None = None

    def __call__(self, node: Node) -> MpcTask:
        """Return a new task; raises ValueError or ArithmeticError if parameters are refused."""
        # These import torch; without them an unconfigured node starts at once and stays small.
        try:
            from mpc_banded.ros.parameters import LiveParameters
            from mpc_banded.ros.task import MpcTask
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the Python module {error.name} is not installed; README.md says what comes "
                "from pip"
            ) from error

        if self._live is None:
            self._live = LiveParameters(node)
        return MpcTask(node, self._live)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run mpc_node; the process ends with 0 after a signal, and with 2 if it is refused."""
    name = "mpc_node"
    executable.run(name, PURPOSE, lambda: ManagedNode(name, TaskBuilder()), arguments)


if __name__ == "__main__":
    main()
