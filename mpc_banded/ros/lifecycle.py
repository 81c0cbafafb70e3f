# SPDX-License-Identifier: Apache-2.0
"""Wraps a task in a lifecycle node: configure builds it, activate arms it, cleanup removes it.

The services ``~/change_state``, ``~/get_state`` and so on are those of every lifecycle node, so
``ros2 lifecycle`` and Nav2's lifecycle manager drive it. rclpy manages publishers only; the task
itself keeps everything else at rest while the node is inactive.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.service import Service
from rclpy.subscription import Subscription
from rclpy.timer import Timer

from mpc_banded.ros import executable

SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)
AUTOSTART = "autostart"
#: How often failures of callbacks are logged at most, in s.
REPEAT_S = 1.0


class ManagedTask(executable.Task, Protocol):
    """A task that can be taken off its node again."""

    def close(self) -> None:
        """Destroy every publisher, subscription, service and timer."""


class NoEvents:
    """Event callbacks of a publisher or subscription that does not follow its peers.

    An endpoint that is destroyed while such an event of it is in the queue of rclpy's events
    executor takes the process with it (ros2/rclpy#1644).
    """

    def create_event_handlers(self, *_: Any) -> list[Any]:
        """Return no handlers."""
        return []


NO_EVENTS = NoEvents()


class ManagedNode(LifecycleNode):
    """A lifecycle node whose task, with publishers and subscriptions, comes and goes.

    Whatever one of its callbacks raises is logged as an ERROR, and the node goes on.

    With the parameter ``autostart`` it configures and activates itself at launch, and a refused
    configuration ends the process. Otherwise it waits for a lifecycle manager to do so, and a
    refused configuration leaves it unconfigured.

    Args:
        name: Name of the node.
        build: Builds the task of the node; raises ValueError or ArithmeticError to refuse.

    Attributes:
        failures: How many callbacks have raised.
    """

    failures = 0  # rclpy creates services before there is an instance of ours

    def __init__(self, name: str, build: Callable[[Node], ManagedTask]) -> None:
        super().__init__(name)
        self._build = build
        self._task: ManagedTask | None = None
        descriptor = ParameterDescriptor(
            description="Configure and activate at launch.", read_only=True
        )
        self._autostart = bool(self.declare_parameter(AUTOSTART, True, descriptor).value)
        service = self._service_change_state
        self._change_state, service.callback = service.callback, self._change_if_possible

    @property
    def node(self) -> Node:
        """The node itself."""
        return self

    def create_publisher(self, *arguments: Any, **named: Any) -> Publisher[Any]:
        """Create a publisher without events of its peers."""
        return super().create_publisher(*arguments, **{"event_callbacks": NO_EVENTS} | named)

    def create_subscription(  # type: ignore[override]
        self, kind: Any, topic: str, callback: Callable[..., Any], *more: Any, **named: Any
    ) -> Subscription[Any]:
        """Create a subscription without events of its peers, whose callback may raise."""
        callback, named = self._surviving(callback), {"event_callbacks": NO_EVENTS} | named
        return super().create_subscription(kind, topic, callback, *more, **named)

    def create_timer(  # type: ignore[override]
        self, period_s: float, callback: Callable[..., Any], *more: Any, **named: Any
    ) -> Timer:
        """Create a timer whose callback may raise."""
        return super().create_timer(period_s, self._surviving(callback), *more, **named)

    def create_service(  # type: ignore[override]
        self, kind: Any, name: str, callback: Callable[..., Any], *more: Any, **named: Any
    ) -> Service[Any, Any]:
        """Create a service whose callback may raise; the response is an empty one then."""
        return super().create_service(kind, name, self._surviving(callback), *more, **named)

    def _surviving(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Return a callback that logs what the given one raises, and returns its last argument."""

        @wraps(callback)
        def surviving(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception:
                self.failures += 1
                self.get_logger().error(
                    f"a callback failed, the node goes on: {traceback.format_exc()}",
                    throttle_duration_sec=REPEAT_S,
                )
                return arguments[-1] if arguments else None  # of a service: the response

        return surviving

    def begin(self) -> bool:
        """Configure and activate if ``autostart`` is set; False if that is refused."""
        if not self._autostart:
            self.get_logger().info("unconfigured: waiting for a transition on ~/change_state")
            return True
        return self.trigger_configure() is SUCCESS and self.trigger_activate() is SUCCESS

    def end(self) -> None:
        """Go through the shutdown transition from any primary state."""
        primary = (
            State.PRIMARY_STATE_UNCONFIGURED,
            State.PRIMARY_STATE_INACTIVE,
            State.PRIMARY_STATE_ACTIVE,
        )
        if self._state_machine.current_state[0] in primary:
            self.trigger_shutdown()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Build the task."""
        del state
        try:
            self._task = self._build(self)
        except (ValueError, ArithmeticError) as error:
            self.get_logger().fatal(str(error))
            return FAILURE
        except Exception:
            return self._fail()
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Arm the task."""
        del state
        return self._apply(lambda task: task.activate())

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Disarm the task; the robot is left stopped."""
        del state
        return self._apply(lambda task: task.deactivate())

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear the task down."""
        del state
        result = self._apply(lambda task: task.close())
        self._task = None
        return result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Disarm the task and tear it down."""
        result = SUCCESS
        if state.state_id == State.PRIMARY_STATE_ACTIVE:
            result = self.on_deactivate(state)
        if self._task is not None:
            self.on_cleanup(state)
        return result

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot after a failed transition, and return to unconfigured."""
        if self._task is not None:
            self._apply(lambda task: task.deactivate())
            self.on_cleanup(state)
        return SUCCESS

    def _change_if_possible(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Refuse a transition that the present state does not have.

        Jazzy's rclpy raises at one, which ends the process (ros2/rclpy#1209).
        """
        asked, machine = request.transition, self._state_machine
        possible = [transition[:2] for transition in machine.available_transitions]
        if any(asked.label == label if asked.label else asked.id == i for i, label in possible):
            return self._change_state(request, response)
        named = ", ".join(f"{label} ({i})" for i, label in possible) or "no transition"
        self.get_logger().error(
            f"refused: transition {asked.label or asked.id} in the state "
            f"{machine.current_state[1]}, which allows {named}"
        )
        response.success = False
        return response

    def _apply(self, action: Callable[[ManagedTask], None]) -> TransitionCallbackReturn:
        assert self._task is not None
        try:
            action(self._task)
        except Exception:
            return self._fail()
        return SUCCESS

    def _fail(self) -> TransitionCallbackReturn:
        """Log the exception, which rclpy would swallow."""
        self.get_logger().fatal(f"a transition failed: {traceback.format_exc()}")
        return ERROR
