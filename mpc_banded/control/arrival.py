# SPDX-License-Identifier: Apache-2.0
"""Checks whether the robot has arrived at its goal, and whether it makes progress.

The parameters and their meaning are Nav2's (nav2_controller, ``StoppedGoalChecker`` and
``PoseProgressChecker``). Being within the tolerances is not enough to arrive: the robot must also
have driven the reference to its end, or have settled before it; otherwise it would stop at the
edge of the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mpc_banded.control.dubins import Pose

#: Time in s after which a robot that stands within the tolerances, short of the end, has arrived.
SETTLED_S = 1.0
#: Speed in m/s and rad/s below which it counts as standing.
SETTLED = 0.02
#: Factor of the tolerances beyond which a robot has left its goal.
LEFT = 1.5


@dataclass(frozen=True)
class GoalTolerance:
    """Largest errors of a robot that has arrived.

    Attributes:
        position: Distance in m.
        heading: Heading error in rad.
        speed: Speed in m/s.
        turn_rate: Turn rate in rad/s.
    """

    position: float = 0.25
    heading: float = 0.25
    speed: float = 0.25
    turn_rate: float = 0.25


class GoalChecker:
    """Decides when the robot has arrived, and remembers it until the robot or the goal moves.

    Args:
        tolerance: Largest errors.

    Attributes:
        tolerance: Largest errors; may be changed.
    """

    def __init__(self, tolerance: GoalTolerance) -> None:
        self.tolerance = tolerance
        self.reset()

    def reset(self) -> None:
        """Forget that the robot has arrived: there is another goal."""
        self._arrived = False
        self._settled_ns: int | None = None

    def check(
        self,
        goal: Pose,
        state: Mapping[str, float],
        reference_ended: bool,
        now_ns: int,
        left: float = 0.0,
    ) -> bool:
        """Return whether the robot has arrived.

        Args:
            goal: x, y in m, yaw in rad, in the frame of the state.
            state: With x and y; yaw, v, vy and w where the robot has them.
            reference_ended: Whether the reference has been driven to its end.
            now_ns: Time of the state.
            left: Way to the end along the path, in m: a robot that stands at the start of a path
                which leads back there has not arrived.
        """
        away = math.hypot(state["x"] - goal[0], state["y"] - goal[1])
        turned = abs(math.remainder(state.get("yaw", goal[2]) - goal[2], math.tau))
        speed = math.hypot(state.get("v", 0.0), state.get("vy", 0.0))
        rate = abs(state.get("w", 0.0))
        wanted = self.tolerance
        if self._arrived:
            near = away <= LEFT * wanted.position and turned <= LEFT * wanted.heading
            self._arrived = near
            return near
        if away > wanted.position or turned > wanted.heading:
            self._settled_ns = None
            return False
        if speed > SETTLED or rate > SETTLED or left > wanted.position:
            self._settled_ns = None
        elif self._settled_ns is None:
            self._settled_ns = now_ns
        settled = self._settled_ns is not None and 1e-9 * (now_ns - self._settled_ns) >= SETTLED_S
        slow = speed <= wanted.speed and rate <= wanted.turn_rate
        self._arrived = settled or (reference_ended and slow)
        return self._arrived


class ProgressChecker:
    """Measures for how long the robot has made no progress.

    Args:
        radius: Smallest move that counts as progress, in m.
        angle: Smallest turn that counts as progress, in rad.
    """

    def __init__(self, radius: float, angle: float) -> None:
        self.radius, self.angle = radius, angle
        self.reset()

    def reset(self) -> None:
        """Start to count again, after the robot was not meant to move."""
        self._pose: Pose | None = None
        self._since_ns = 0

    def idle_s(self, pose: Pose, now_ns: int) -> float:
        """Return the time in s since the robot last made progress."""
        known = self._pose
        if (
            known is None
            or now_ns < self._since_ns
            or math.hypot(pose[0] - known[0], pose[1] - known[1]) > self.radius
            or abs(math.remainder(pose[2] - known[2], math.tau)) > self.angle
        ):
            self._pose, self._since_ns = pose, now_ns
        return 1e-9 * (now_ns - self._since_ns)
