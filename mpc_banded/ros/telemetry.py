# SPDX-License-Identifier: Apache-2.0
"""What the node says of itself: figures of each cycle, and its health once a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from std_msgs.msg import Float64

from mpc_banded.controller import ControlStep
from mpc_banded.loop import Reason, Tick
from mpc_banded.solver import Status

#: The robot stands, but that is what was asked for or is not yet to be had.
PATIENT = (Reason.DISABLED, Reason.NO_STATE, Reason.NO_REFERENCE, Reason.PLANNING)


class Telemetry:
    """Publishes each figure as a std_msgs/Float64 below ``~/telemetry``.

    Plot tools draw that without being told how. Times are in the unit that the name ends with,
    ``converged`` and ``missed_deadline`` are 0 or 1, ``cost/<name>`` is a weighted share.

    Args:
        node: That publishes.
        cost_names: Of the problem.
    """

    def __init__(self, node: Node, cost_names: tuple[str, ...]) -> None:
        names = ["solve_time_ms", "iterations", "kkt_residual", "defect_norm"]
        names += ["converged", "missed_deadline", "state_age_s"]
        names += [f"cost/{name}" for name in cost_names]
        self._publishers = {
            name: node.create_publisher(Float64, f"~/telemetry/{name}", 10) for name in names
        }

    def publish(self, tick: Tick, missed: bool) -> None:
        """Publish the figures of one cycle; nothing if the controller was not asked."""
        if tick.step is not None:
            for name, value in _figures(tick.step, tick.state_age_s, missed).items():
                self._publishers[name].publish(Float64(data=float(value)))


def _figures(step: ControlStep, state_age_s: float, missed: bool) -> dict[str, float]:
    return {
        "solve_time_ms": 1e3 * step.solve_time_s,
        "iterations": step.iterations,
        "kkt_residual": step.kkt_residual,
        "defect_norm": step.defect_norm,
        "converged": step.status is Status.CONVERGED,
        "missed_deadline": missed,
        "state_age_s": state_age_s,
        **{f"cost/{name}": value for name, value in step.cost_terms.items()},
    }


@dataclass
class Counters:
    """Cycles since the start, by how they went."""

    cycles: int = 0
    driven: int = 0
    missed_deadlines: int = 0
    unconverged: int = 0
    rejected_messages: int = 0


class Diagnostics:
    """Counts cycles, and publishes diagnostics at 1 Hz of real time, paused clock or not.

    The topic is ``/diagnostics``, the only absolute name of this package: every tool reads that
    one (REP 107), and the status carries the full name of the node.

    Args:
        node: That publishes.

    Attributes:
        counters: Cycles so far.
        derivatives: Which ones are in use, eager or compiled.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.derivatives = "eager"
        self.counters = Counters()
        self._reported = Counters()
        self._tick: Tick | None = None
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 1)
        node.create_timer(1.0, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def count(self, tick: Tick, missed: bool) -> None:
        """Take one cycle into account; a new kind of reason is logged."""
        if self._tick is None or tick.code is not self._tick.code:
            if tick.driving or tick.code in PATIENT:
                self._node.get_logger().info(tick.reason)
            else:
                self._node.get_logger().error(tick.reason)
        self._tick = tick
        self.counters.cycles += 1
        self.counters.driven += tick.driving
        self.counters.missed_deadlines += missed
        if tick.step is not None:
            self.counters.unconverged += tick.step.status is not Status.CONVERGED

    def publish(self) -> None:
        """Publish the state of things."""
        if self._tick is None:
            return
        level, message = self._verdict(self._tick)
        values: Mapping[str, object] = {
            "code": self._tick.code.name,
            "reason": self._tick.reason,
            "state age [s]": f"{self._tick.state_age_s:.3f}",
            "derivatives": self.derivatives,
            **{name.replace("_", " "): n for name, n in vars(self.counters).items()},
        }
        status = DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name().lstrip('/')}: control loop",
            message=message,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)
        self._reported = Counters(**vars(self.counters))

    def _verdict(self, tick: Tick) -> tuple[bytes, str]:
        """Level and sentence, in view of what happened since the last report."""
        if not tick.driving:
            patient = tick.code in PATIENT
            return DiagnosticStatus.WARN if patient else DiagnosticStatus.ERROR, tick.reason
        before, now = self._reported, self.counters
        troubles = {
            "late": now.missed_deadlines - before.missed_deadlines,
            "not converged": now.unconverged - before.unconverged,
            "with a rejected message": now.rejected_messages - before.rejected_messages,
        }
        told = [f"{count} {what}" for what, count in troubles.items() if count]
        if told:
            cycles = now.cycles - before.cycles
            return DiagnosticStatus.WARN, f"of {cycles} cycles {', '.join(told)}; {tick.reason}"
        return DiagnosticStatus.OK, tick.reason
