# SPDX-License-Identifier: Apache-2.0
"""Figures of each cycle, in messages that plot tools draw without being told how."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import Float64

from mpc_banded.control.loop import Tick
from mpc_banded.control.record import Cycle
from mpc_banded.ros.health import Counters
from mpc_banded.ros.interfaces import RECORDS
from mpc_banded.ros.pace import Timing

#: Figures of every cycle, and of those with a solve.
OF_ALL = (
    *("state_age_s", "driving", "computing_time_ms", "waiting_time_ms", "jitter_ms"),
    *("missed_deadline", "late_cycles", "skipped_cycles"),
)
OF_SOLVES = ("solve_time_ms", "iterations", "kkt_residual", "defect_norm", "converged")


class Telemetry:
    """Publishes the record of each cycle on ``~/cycle``, and its figures below ``~/telemetry``.

    A figure is a std_msgs/Float64, sent only while somebody listens to it. Times are in the unit
    that the name ends with, ``converged``, ``driving`` and ``missed_deadline`` are 0 or 1,
    ``cost/<name>`` is a weighted share, ``late_cycles`` and ``skipped_cycles`` count from the
    start.

    Args:
        node: That publishes.
        cost_names: Of the problem.
    """

    def __init__(self, node: Node, cost_names: tuple[str, ...]) -> None:
        self._node = node
        self._name = f"{node.get_fully_qualified_name().lstrip('/')}: cycle"
        self._cycles = node.create_publisher(DiagnosticArray, "~/cycle", RECORDS)
        names = (*OF_ALL, *OF_SOLVES, *(f"cost/{name}" for name in cost_names))
        self._figures = {
            name: node.create_publisher(Float64, f"~/telemetry/{name}", 10) for name in names
        }

    def close(self) -> None:
        """Publish nothing any more."""
        for publisher in (self._cycles, *self._figures.values()):
            self._node.destroy_publisher(publisher)

    def figures(self, tick: Tick, timing: Timing, counters: Counters) -> dict[str, float]:
        """Figures of a cycle that the record does not have from the tick itself."""
        figures = {
            "driving": float(tick.driving),
            "computing_time_ms": 1e3 * timing.computed_s,
            "waiting_time_ms": 1e3 * timing.waited_s,
            "jitter_ms": 1e3 * timing.jitter_s,
            "missed_deadline": float(timing.late),
            "late_cycles": float(counters.late_cycles),
            "skipped_cycles": float(counters.skipped_cycles),
        }
        if tick.step is not None:
            figures["solve_time_ms"] = 1e3 * tick.step.solve_time_s
        return figures

    def publish(self, cycle: Cycle) -> None:
        """Publish the record of a cycle, and its figures."""
        pairs = [KeyValue(key=key, value=value) for key, value in cycle.values().items()]
        status = DiagnosticStatus(name=self._name, message=cycle.reason, values=pairs)
        array = DiagnosticArray(status=[status])
        array.header.stamp = Time(nanoseconds=cycle.now_ns).to_msg()
        self._cycles.publish(array)
        for name, value in cycle.figures.items():
            publisher = self._figures.get(name)
            if publisher is not None and publisher.get_subscription_count():
                publisher.publish(Float64(data=float(value)))
