# SPDX-License-Identifier: Apache-2.0
"""Nav2's action ``follow_path``: a client sends a path, and receives feedback and the result.

The node takes the place of Nav2's controller server. The server turns a goal into a path for the
control loop, and the loop's decisions into feedback and a result. Definitions of the action
differ between distributions, so fields and error codes are filled by name, where they exist.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nav_msgs.msg import Path
from rclpy.action.server import ActionServer, CancelResponse, GoalResponse
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from std_msgs.msg import Header

from mpc_banded.control.inputs import GOAL_PATH
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.text import printable
from mpc_banded.control.tick import Reason, Tick
from mpc_banded.robots import messages

ACTION = "follow_path"
#: Time for which the result of a goal is kept, in s; a client that replans sends many goals.
RESULT_KEPT_S = 10
#: Reasons of a goal that makes progress.
WELL = (Reason.DRIVING, Reason.PLANNING, Reason.FOLLOWING, Reason.ARRIVED)
#: Error codes of other reasons, once they have lasted too long.
ERRORS = {
    Reason.NO_STATE: "TF_ERROR",
    Reason.NO_REFERENCE: "TF_ERROR",  # the path waits for the pose of its frame
    Reason.BLIND: "CONTROLLER_TIMED_OUT",
}


class DeferredServer(ActionServer):  # type: ignore[type-arg]
    """An action server whose goals are executed in the cycles of the node, which ends them.

    In rclpy's own server a callback executes a goal from beginning to end. If it waits meanwhile,
    it needs a thread of its own, or the executor polls it without a pause.
    """

    def notify_execute(self, goal_handle: Any, execute_callback: Any) -> None:
        """Leave the goal to the node."""

    def finish(self, goal_handle: Any, end: Callable[[], None], result: Any) -> None:
        """End a goal.

        Args:
            goal_handle: The goal.
            end: Function that brings it into its last state.
            result: Result for its client.
        """

        def execute(_: Any) -> Any:
            end()
            return result

        super().notify_execute(goal_handle, execute)

    def _send_result_response(self, *arguments: Any) -> None:
        # The executor may have this call in its queue when the server is destroyed.
        with suppress(rclpy_implementation.InvalidHandle):
            super()._send_result_response(*arguments)


class FollowPath:
    """Serves the action for a task.

    One goal is followed at a time; a newer one takes over, with the progress on the path of the
    one before. Once there has been a client, paths come from goals alone, and without a goal the
    node sends no commands: other nodes may drive the robot then.

    Args:
        node: The node.
        loop: The control loop that follows the paths.
        hand_over: Hands a path to the loop; returns why it was rejected, or None.
        begin: Called before the robot is driven again after a pause.
    """

    def __init__(
        self,
        node: Node,
        loop: ControlLoop,
        hand_over: Callable[[Path], str | None],
        begin: Callable[[], None],
    ) -> None:
        self._node, self._loop = node, loop
        self._hand_over, self._begin = hand_over, begin
        self._type = importlib.import_module("nav2_msgs.action").FollowPath
        self._goal: Any = None
        self._is_active = self._is_ending = False
        self._has_client = self.is_silent = False
        self._trouble_since_ns: int | None = None
        self._paths = node.create_publisher(Path, GOAL_PATH.topic, 1)
        self._server = DeferredServer(
            node,
            self._type,
            ACTION,
            execute_callback=lambda _: None,
            goal_callback=self._answer,
            handle_accepted_callback=self._start,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            result_timeout=RESULT_KEPT_S,
        )
        self._heard_by = node.resolve_topic_name(f"{ACTION}/_action/feedback")

    def activate(self) -> None:
        """Accept goals from now on."""
        self._is_active, self.is_silent = True, False

    def deactivate(self) -> None:
        """Abort the goal, and reject others."""
        self._is_active = False
        if self._goal is not None:
            self._abort("UNKNOWN", "the node was deactivated")

    def close(self) -> None:
        """Destroy the server."""
        self._server.destroy()
        self._node.destroy_publisher(self._paths)

    @property
    def has_client(self) -> bool:
        """Whether there has been a client."""
        if not self._has_client and self._node.count_subscribers(self._heard_by):
            self._has_client = True
            self._node.get_logger().info(
                f"{ACTION} has a client: its goals are followed from now on, and no other path"
            )
        return self._has_client

    def report(self, tick: Tick, header: Header) -> None:
        """Send feedback on a cycle to the client, and end the goal if that was its last.

        Args:
            tick: The newest tick.
            header: Header with the frame of the state.
        """
        if self._goal is None:
            self.is_silent = self.has_client and _stands(tick)
        elif self._goal.is_cancel_requested:
            self._cancel(tick)
        elif tick.code is Reason.ARRIVED:
            self._end(self._goal.succeed)
            self._forget_path()
        elif error := self._error(tick):
            self._abort(error, tick.reason)
        else:
            self._goal.publish_feedback(self._feedback(tick, header))

    def _answer(self, _: Any) -> GoalResponse:
        return GoalResponse.ACCEPT if self._is_active else GoalResponse.REJECT

    def _start(self, goal: Any) -> None:
        """Follow a goal that was just accepted, in place of any other."""
        goal.execute()
        if self._goal is None:
            self._trouble_since_ns = None
        else:
            self._end(self._goal.abort, "UNKNOWN", "a newer goal took its place")
        self._goal, self._is_ending = goal, False
        if refused := self._refused(goal.request):
            self._abort(*refused)

    def _refused(self, request: Any) -> tuple[str, str] | None:
        """Hand the path of a goal to the loop; returns error code and sentence, or None."""
        known, asked = self._loop.config.parameters.controller_plugins, request.controller_id
        if asked and asked not in known:
            return "INVALID_CONTROLLER", (
                f"controller_id is {printable(asked, 50)!r}; allowed are {known} "
                "(controller_plugins), or none"
            )
        if not request.path.poses:
            return "INVALID_PATH", "the path has no poses"
        if self.is_silent:
            self._begin()
            self.is_silent = False
        rejected = self._follow(request.path)
        if rejected and self._loop.tracker.lacks_frame and self._loop.transform is not None:
            self._forget_path()  # the robot slows down while the path waits for its frame
            self._follow(request.path)
            return None
        if rejected:
            return "TF_ERROR" if self._loop.tracker.lacks_frame else "INVALID_PATH", rejected
        return None

    def _follow(self, path: Path) -> str | None:
        """Hand a path to the loop, and publish it, so that it is recorded."""
        self._paths.publish(path)
        return self._hand_over(path)

    def _forget_path(self) -> None:
        path = Path()
        path.header.stamp = self._node.get_clock().now().to_msg()
        self._follow(path)

    def _cancel(self, tick: Tick) -> None:
        """Slow down, and end the goal once the robot stands."""
        if not self._is_ending:
            self._forget_path()
            self._is_ending = True
        elif _stands(tick):
            self._end(self._goal.canceled)

    def _error(self, tick: Tick) -> str:
        """Return the error code of a goal without progress for too long; empty otherwise."""
        if tick.code in WELL:
            self._trouble_since_ns = None
            return ""
        if tick.stalled:
            return "FAILED_TO_MAKE_PROGRESS"
        if self._trouble_since_ns is None or tick.now_ns < self._trouble_since_ns:
            self._trouble_since_ns = tick.now_ns
        patience_s = self._loop.config.parameters.failure_tolerance
        lasted_s = 1e-9 * (tick.now_ns - self._trouble_since_ns)
        if patience_s < 0.0 or lasted_s < patience_s:
            return ""
        return ERRORS.get(tick.code, "PATIENCE_EXCEEDED" if patience_s else "NO_VALID_CONTROL")

    def _abort(self, error: str, why: str) -> None:
        self._node.get_logger().warning(f"a goal of {ACTION} is aborted, {error}: {why}")
        self._end(self._goal.abort, error, why)
        self._forget_path()

    def _end(self, end: Callable[[], None], error: str = "NONE", why: str = "") -> None:
        """End the goal, as canceled if its client has asked for that."""
        goal, self._goal = self._goal, None
        result = self._type.Result()
        if goal.is_cancel_requested:
            end = goal.canceled
        else:
            code = getattr(self._type.Result, error, 0)
            _fill(result, error_code=code, error_msg=printable(why))
        self._server.finish(goal, end, result)

    def _feedback(self, tick: Tick, header: Header) -> Any:
        feedback = self._type.Feedback()
        left = self._loop.tracker.distance_left or 0.0
        _fill(feedback, distance_to_goal=left, speed=_speed(tick))
        tracking = getattr(feedback, "tracking_feedback", None)
        if tracking is not None:  # since Lyrical
            state = self._loop.state
            tracking.header = tracking.robot_pose.header = header
            pose = tracking.robot_pose.pose
            pose.position.x, pose.position.y = state["x"], state["y"]
            messages.set_yaw(pose.orientation, state.get("yaw", 0.0))
            ahead = {name: float(column[0]) for name, column in self._loop.reference_ahead.items()}
            if set(messages.POSE) <= set(ahead) and "yaw" in state:
                dx, dy = state["x"] - ahead["x"], state["y"] - ahead["y"]
                tracking.position_tracking_error = (
                    math.cos(ahead["yaw"]) * dy - math.sin(ahead["yaw"]) * dx
                )
                tracking.heading_tracking_error = math.remainder(
                    ahead["yaw"] - state["yaw"], math.tau
                )
            _fill(tracking, distance_to_goal=left, remaining_path_length=left, speed=_speed(tick))
        return feedback


def _fill(message: Any, **values: Any) -> None:
    """Set the fields that a message has."""
    for name, value in values.items():
        if hasattr(message, name):
            setattr(message, name, value)


def _speed(tick: Tick) -> float:
    """Return the commanded speed in m/s."""
    return math.hypot(tick.command.get("v", 0.0), tick.command.get("vy", 0.0))


def _stands(tick: Tick) -> bool:
    """Return whether a cycle commands no motion."""
    return not any(tick.command.get(name) for name in ("v", "vy", "w"))
