# SPDX-License-Identifier: Apache-2.0
"""The decisions of the control loop, with their reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mpc_banded.ocp.controller import ControlStep


class Reason(Enum):
    """The kinds of reasons why the robot drives or stands, for programs to compare.

    ``Tick.reason`` says the same in a sentence.
    """

    DRIVING = "driving"
    DISABLED = "disabled"
    NO_STATE = "no state yet"
    FOLLOWING = "following the last plan"
    SLOWING = "slowing down"
    HOLDING = "holding the stop"
    NO_REFERENCE = "no reference yet"
    PLANNING = "first plan not converged yet"
    ARRIVED = "arrived"
    BLOCKED = "blocked"
    BLIND = "obstacles too old"


#: After these the next solve starts from the plan before; after all others it starts cold.
KEEPS_PLAN = (Reason.DRIVING, Reason.FOLLOWING, Reason.PLANNING)


@dataclass(frozen=True)
class Tick:
    """The decision of one cycle.

    Attributes:
        command: Name -> value for the command message; finite and within the limits.
        code: Kind of the reason.
        reason: One sentence on what the robot does and why.
        step: The controller's step; None if nothing was solved.
        state_age_s: Age of the state estimate in seconds; infinite before the first one.
        now_ns, latency_s: As given to ``ControlLoop.tick``.
        held: Whether one cost holds the robot far from its reference; the reason names it.
        stalled: Whether it is blocked because it does not get on, not by an obstacle.
    """

    command: dict[str, float]
    code: Reason
    reason: str
    step: ControlStep | None
    state_age_s: float
    now_ns: int = 0
    latency_s: float = 0.0
    held: bool = False
    stalled: bool = False

    @property
    def driving(self) -> bool:
        """Whether the command comes from the solve of this cycle, not from a fallback."""
        return self.code is Reason.DRIVING


@dataclass(frozen=True)
class Instant:
    """The time of one cycle, and how much of it the solve may take.

    Attributes:
        now_ns: Time of the tick.
        effect_ns: When a command sent now takes effect.
        state_age_s: Age of the state estimate in seconds; infinite before the first one,
            negative if the clock went back.
        latency_s: Expected time from the tick until its command is sent.
        deadline_s: Time that the solve may take, in s; None for as long as it needs.
        iterations: Largest number of Newton iterations; None for that of the configuration.
    """

    now_ns: int
    effect_ns: int
    state_age_s: float
    latency_s: float
    deadline_s: float | None = None
    iterations: int | None = None

    def tick(
        self,
        command: dict[str, float],
        code: Reason,
        reason: str,
        step: ControlStep | None = None,
        held: bool = False,
    ) -> Tick:
        """Return the decision of this cycle."""
        age_s, now_ns, latency_s = self.state_age_s, self.now_ns, self.latency_s
        return Tick(command, code, reason, step, age_s, now_ns, latency_s, held)
