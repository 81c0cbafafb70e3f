# SPDX-License-Identifier: Apache-2.0
"""simulator_node: a simulated robot that obeys commands and publishes its state."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NoReturn

from rclpy.node import Node
from rclpy.timer import Timer
from std_srvs.srv import SetBool, Trigger

from mpc_banded.robots import messages
from mpc_banded.ros import executable, interfaces

#: Longest simulated step in s; the robot does not jump when the clock does.
LONGEST_STEP_S = 0.5
#: Time until an error is logged again, in s.
REPEAT_S = 5.0
FRAME = "odom"
PURPOSE = "Simulate a robot: obey the commands of mpc_node, and publish the state."


class SimulatorTask:
    """Moves the simulated robot on the node's clock.

    ``~/reset`` puts it back to its initial state; ``~/publish`` can suppress the state while the
    robot moves on, as if the topic were lost.

    Args:
        node: The node.

    Raises:
        ConfigError: A parameter is unknown or its value not allowed.
    """

    def __init__(self, node: Node) -> None:
        # These import torch, which takes seconds. Discovery of the other nodes goes on meanwhile;
        # it would take a second or two longer if the node had topics from the start.
        from mpc_banded.control.motion import Simulation
        from mpc_banded.ros import parameters

        self._node = node
        config = parameters.declare(node, live=False)
        self._simulation = Simulation(config, delay_s=config.parameters.simulator.actuation_delay)
        self._period_s = 1.0 / config.parameters.simulator.frequency
        self._command_timeout_ns = 1e9 * config.parameters.simulator.command_timeout
        self._stop = config.robot.stop_values(config.parameters.model)
        self._command: messages.Values = self._stop
        self._command_ns = self._moved_ns = 0
        self._is_publishing = True
        self._timer: Timer | None = None
        self._port = interfaces.CommandPort(config)
        self._states = [
            (node.create_publisher(kind, topic.topic, 10), kind, topic.fill)
            for topic in config.robot.state_topics
            if (kind := interfaces.message_class(topic.type)) and topic.fill is not None
        ]
        node.create_subscription(self._port.message_class, self._port.topic, self._on_command, 1)
        node.create_service(Trigger, "~/reset", self._reset)
        node.create_service(SetBool, "~/publish", self._set_publishing)
        node.get_logger().info(
            f"{config.robot.name}: obeys {self._port.topic}, publishes "
            f"{' and '.join(topic.topic for topic in config.robot.state_topics)}"
        )

    def activate(self) -> None:
        """Start the simulated time."""
        self._moved_ns = self._now_ns()
        self._timer = self._node.create_timer(self._period_s, self._move)

    def deactivate(self) -> None:
        """Stop the simulated time."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _on_command(self, message: Any) -> None:
        try:
            values = self._port.values(message)
        except ValueError as error:
            self._ignore(str(error))
            return
        if all(math.isfinite(value) for value in values.values()):
            self._command, self._command_ns = values, self._now_ns()
        else:
            self._ignore("it is not finite")

    def _ignore(self, why: str) -> None:
        self._node.get_logger().error(
            f"a command is ignored: {why}", throttle_duration_sec=REPEAT_S
        )

    def _move(self) -> None:
        now_ns = self._now_ns()
        elapsed_s = 1e-9 * (now_ns - self._moved_ns)
        self._moved_ns = now_ns
        obeyed = 0 <= now_ns - self._command_ns <= self._command_timeout_ns
        command = self._command if obeyed else self._stop
        self._simulation.advance(command, min(max(elapsed_s, 0.0), LONGEST_STEP_S))
        if self._is_publishing:
            self._publish()

    def _publish(self) -> None:
        for publisher, kind, fill in self._states:
            message = kind()
            message.header.stamp = self._node.get_clock().now().to_msg()
            message.header.frame_id = FRAME
            if hasattr(message, "child_frame_id"):
                message.child_frame_id = interfaces.BASE_FRAME
            fill(message, self._simulation.values)
            publisher.publish(message)

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._simulation.reset()
        self._command = self._stop
        response.success, response.message = True, "back at the initial state"
        return response

    def _set_publishing(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        self._is_publishing = request.data
        response.success = True
        response.message = "publishing" if request.data else "not publishing"
        return response


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run simulator_node; the process ends with 0 after a signal, and with 2 if it is refused."""
    name = "simulator_node"
    make = partial(executable.PlainNode, name, SimulatorTask)
    executable.run(name, PURPOSE, make, arguments)


if __name__ == "__main__":
    main()
