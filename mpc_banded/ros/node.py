# SPDX-License-Identifier: Apache-2.0
"""mpc_node: a managed node around the control loop."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rclpy.node import Node

from mpc_banded.ros import process
from mpc_banded.ros.lifecycle import Managed

if TYPE_CHECKING:
    from mpc_banded.ros.parameters import LiveParameters
    from mpc_banded.ros.task import MpcTask


class Builder:
    """Builds the task of a node, again and again with the parameters of the moment."""

    def __init__(self) -> None:
        self._live: LiveParameters | None = None

    def __call__(self, node: Node) -> MpcTask:
        """A new task; raises ValueError or ArithmeticError where the parameters are refused."""
        # Torch comes with these: a node that nobody has configured yet is small and up at once.
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


def main(arguments: list[str] | None = None) -> int:
    """Run mpc_node; returns 0 when stopped by a signal, 2 if it refuses its configuration."""
    name = "mpc_node"
    return process.run(name, lambda: Managed(name, Builder()), arguments)


if __name__ == "__main__":
    sys.exit(main())
