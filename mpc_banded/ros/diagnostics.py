# SPDX-License-Identifier: Apache-2.0
"""Publishes the diagnostics of the node: counts of its cycles, and one plain sentence a second."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.timer import Timer

from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.rebuild import Rebuild
from mpc_banded.control.tick import Reason, Tick
from mpc_banded.ocp.solver import Status
from mpc_banded.ros import graph
from mpc_banded.ros.timing import Timing

#: Reasons that are no error although no new plan drives the robot: it was asked to stand, waits
#: for a message, is blocked, has arrived, or follows its last plan.
HARMLESS = (
    *(Reason.DISABLED, Reason.NO_STATE, Reason.NO_REFERENCE, Reason.PLANNING),
    *(Reason.FOLLOWING, Reason.ARRIVED, Reason.BLOCKED),
)
#: Time until one kind of warning is repeated, and largest number of kinds.
REPEAT_S, KINDS = 5.0, 50
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@dataclass
class Counters:
    """Numbers of cycles since the start, by their outcome."""

    cycles: int = 0
    driven: int = 0
    late_cycles: int = 0
    skipped_cycles: int = 0
    unconverged: int = 0
    rejected_messages: int = 0
    failed_callbacks: int = 0


class Diagnostics:
    """Counts cycles, and publishes a status at 1 Hz of real time, even while the clock is paused.

    The topic is ``/diagnostics``, the only absolute name in this package: every tool reads it
    (REP 107), and the status carries the full name of the node.

    Args:
        node: The node that publishes.
        loop: The control loop that is reported on.
        commands: The publisher of the commands; other nodes on its topic are reported.
        rebuild: Knows the derivatives in use and what is being built.

    Attributes:
        counters: Counts of the cycles so far.
        is_shared: Whether others may drive the robot while there is no reference.
    """

    def __init__(
        self, node: Node, loop: ControlLoop, commands: Publisher[Any], rebuild: Rebuild
    ) -> None:
        self._node, self._loop, self._commands = node, loop, commands
        self._rebuild = rebuild
        self._is_active = self.is_shared = False
        self.counters = Counters()
        self._reported = Counters()
        self._tick: Tick | None = None
        self._counted_s = 0.0
        self._rejection = ""
        self._told: dict[str, float] = {}
        self._name = f"{node.get_fully_qualified_name().lstrip('/')}: control loop"
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._timer: Timer | None = node.create_timer(
            1.0, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def activate(self) -> None:
        """Start to report, now that the node sends commands."""
        self._is_active, self._tick, self._counted_s = True, None, time.monotonic()

    def deactivate(self) -> None:
        """Report the node as inactive."""
        self._is_active = False

    def close(self) -> None:
        """Destroy the publisher and the timer."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        self._node.destroy_publisher(self._publisher)

    def count_rejected(self, topic: str, why: str) -> None:
        """Count a rejected message, and log each kind of reason every few seconds."""
        self.counters.rejected_messages += 1
        self._rejection = f"{topic} rejected: {why}"
        kind, now_s = re.sub(r"[-+.\d]+", "", self._rejection), time.monotonic()
        if now_s - self._told.get(kind, -math.inf) >= REPEAT_S:
            if len(self._told) >= KINDS:
                self._told.clear()
            self._told[kind] = now_s
            self._node.get_logger().warning(self._rejection)

    def count(self, tick: Tick, timing: Timing) -> None:
        """Count one cycle, and log a new kind of reason and late cycles."""
        log = self._node.get_logger()
        if self._tick is None or tick.code is not self._tick.code:
            if tick.driving or tick.code in HARMLESS:
                log.info(tick.reason)
            else:
                log.error(tick.reason)
        self._tick, self._counted_s = tick, time.monotonic()
        self.counters.cycles += 1
        self.counters.driven += tick.driving
        self.counters.late_cycles += timing.late
        self.counters.skipped_cycles += timing.skipped
        if timing.late:
            log.warning(
                f"a cycle was late: it waited {1e3 * timing.waited_s:.1f} ms and computed "
                f"{1e3 * timing.computed_s:.1f} ms; {self.counters.late_cycles} late and "
                f"{self.counters.skipped_cycles} skipped of {self.counters.cycles} so far",
                throttle_duration_sec=REPEAT_S,
            )
        if tick.step is not None:
            self.counters.unconverged += tick.step.status is not Status.CONVERGED

    def publish(self) -> None:
        """Publish the present status."""
        if self._timer is None:
            return  # the executor had this call in its queue when the timer was destroyed
        self.counters.failed_callbacks = getattr(self._node, "failures", 0)
        level, message = self._level_and_sentence()
        tick = self._tick
        facts: dict[str, object] = {
            "code": tick.code.name if tick and self._is_active else "INACTIVE",
            "reason": tick.reason if tick and self._is_active else "",
            "state age [s]": f"{tick.state_age_s:.3f}" if tick else "inf",
            "derivatives": self._rebuild.derivatives,
            "under way": self._rebuild.under_way,
            "refused change": self._rebuild.refused,
            "executor": type(self._node.executor).__name__,
            "last rejection": self._rejection,
        }
        counts: Mapping[str, int] = vars(self.counters)
        facts |= {name.replace("_", " "): count for name, count in counts.items()}
        status = DiagnosticStatus(
            level=level,
            name=self._name,
            message=message,
            values=[KeyValue(key=key, value=str(value)) for key, value in facts.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)
        self._reported = Counters(**vars(self.counters))

    def _level_and_sentence(self) -> tuple[bytes, str]:
        """Judge the cycles since the last status."""
        failed = self.counters.failed_callbacks - self._reported.failed_callbacks
        if failed:
            return ERROR, f"{failed} callbacks failed, and the log says how"
        if not self._is_active:
            return OK, "inactive: no command is sent"
        tick = self._tick
        patience_s = 1.0 + 2.0 * self._loop.config.period_s
        if time.monotonic() - self._counted_s > patience_s:
            return WARN, "no cycle of late: the clock of the node stands still, or it is overrun"
        if tick is None:
            return OK, "active: the first cycle is due"
        about_others = graph.complaints(self._node, self._commands, shared=self.is_shared)
        remarks = [*self._bad_cycles(), *about_others]
        is_well = tick.driving or tick.code is Reason.ARRIVED
        is_well |= self.is_shared and tick.code is Reason.NO_REFERENCE
        # Derivatives that are being compiled are no trouble.
        is_well &= not (remarks or tick.held)
        sentence = "; ".join(filter(None, [tick.reason, *remarks, self._rebuild.under_way]))
        if tick.driving or tick.code in HARMLESS:
            return OK if is_well else WARN, sentence
        return ERROR, sentence

    def _bad_cycles(self) -> list[str]:
        before, now = self._reported, self.counters
        counts = {
            "late": now.late_cycles - before.late_cycles,
            "skipped": now.skipped_cycles - before.skipped_cycles,
            "not converged": now.unconverged - before.unconverged,
        }
        told = [f"{count} {what}" for what, count in counts.items() if count]
        cycles = now.cycles - before.cycles
        result = [f"of {cycles} cycles {', '.join(told)}"] if told else []
        rejected = now.rejected_messages - before.rejected_messages
        if rejected:
            result.append(f"{rejected} messages rejected, last {self._rejection}")
        return result
