# SPDX-License-Identifier: Apache-2.0
"""Whether the robot has arrived, and whether it gets on: the goal and the progress checker.

The parameters and their meaning are Nav2's (nav2_controller, ``StoppedGoalChecker`` and
``PoseProgressChecker``). Arriving takes one thing more than being within the tolerances: the
reference has been driven to its end, or the robot has settled before it; otherwise a robot would
stop at the rim of the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mpc_banded.control.dubins import Pose

#: How long a robot stands within the tolerances, short of the end, until it has arrived, in s.
SETTLED_S = 1.0
#: Speed in m/s and rad/s below which it stands.
SETTLED = 0.02
#: By how much further than the tolerances a robot must be moved to have left its goal.
LEFT = 1.5


@dataclass(frozen=True)
class GoalTolerance:
    """How near a robot must be to its goal.

    Attributes:
        position: In m.
        heading: In rad.
        speed: In m/s.
        turn_rate: In rad/s.
    """

    position: float = 0.25
    heading: float = 0.25
    speed: float = 0.25
    turn_rate: float = 0.25


class GoalChecker:
    """Says when the robot has arrived, and remembers it until the robot or the goal moves.

    Args:
        tolerance: How near the robot must be.

    Attributes:
        tolerance: As given; may be changed.
    """

    def __init__(self, tolerance: GoalTolerance) -> None:
        self.tolerance = tolerance
        self.reset()

    def reset(self) -> None:
        """Forget that the robot has arrived: there is another goal."""
        self._arrived = False
        self._settled_ns: int | None = None

    def check(
        self, goal: Pose, state: Mapping[str, float], reference_ended: bool, now_ns: int
    ) -> bool:
        """Return whether the robot has arrived.

        Args:
            goal: x, y in m, yaw in rad, in the frame of the state.
            state: With x and y; yaw, v, vy and w where the robot has them.
            reference_ended: Whether the reference has been driven to its end.
            now_ns: Time of the state.
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
        if speed > SETTLED or rate > SETTLED:
            self._settled_ns = None
        elif self._settled_ns is None:
            self._settled_ns = now_ns
        settled = self._settled_ns is not None and 1e-9 * (now_ns - self._settled_ns) >= SETTLED_S
        slow = speed <= wanted.speed and rate <= wanted.turn_rate
        self._arrived = settled or (reference_ended and slow)
        return self._arrived


class ProgressChecker:
    """Says for how long the robot has not got on.

    Args:
        radius: A move that counts, in m.
        angle: A turn that counts, in rad.
    """

    def __init__(self, radius: float, angle: float) -> None:
        self.radius, self.angle = radius, angle
        self.reset()

    def reset(self) -> None:
        """Begin to count anew: the robot was not meant to move."""
        self._pose: Pose | None = None
        self._since_ns = 0

    def idle_s(self, pose: Pose, now_ns: int) -> float:
        """Return how long ago the robot last moved or turned by what counts, in s."""
        known = self._pose
        if (
            known is None
            or now_ns < self._since_ns
            or math.hypot(pose[0] - known[0], pose[1] - known[1]) > self.radius
            or abs(math.remainder(pose[2] - known[2], math.tau)) > self.angle
        ):
            self._pose, self._since_ns = pose, now_ns
        return 1e-9 * (now_ns - self._since_ns)
