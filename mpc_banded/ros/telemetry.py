# SPDX-License-Identifier: Apache-2.0
"""Publishes the record of each cycle for replay, and its metrics for plot tools."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import Float64

from mpc_banded.control.record import Cycle, solve_metrics
from mpc_banded.control.tick import Tick
from mpc_banded.ros.diagnostics import Counters
from mpc_banded.ros.interfaces import RECORDS
from mpc_banded.ros.timing import Timing

#: Metrics of every cycle, and of those with a solve.
CYCLE_METRICS = (
    *("state_age_s", "driving", "computing_time_ms", "waiting_time_ms", "jitter_ms"),
    *("missed_deadline", "late_cycles", "skipped_cycles"),
)
SOLVE_METRICS = ("solve_time_ms", "iterations", "kkt_residual", "defect_norm", "converged")


class RecordPublisher:
    """Publishes the record of each cycle on ``~/cycle``, with all that a replay needs.

    Args:
        node: The node that publishes.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._name = f"{node.get_fully_qualified_name().lstrip('/')}: cycle"
        self._publisher = node.create_publisher(DiagnosticArray, "~/cycle", RECORDS)

    def close(self) -> None:
        """Destroy the publisher."""
        self._node.destroy_publisher(self._publisher)

    def publish(self, cycle: Cycle) -> None:
        """Publish one record."""
        pairs = [KeyValue(key=key, value=value) for key, value in cycle.values().items()]
        status = DiagnosticStatus(name=self._name, message=cycle.reason, values=pairs)
        array = DiagnosticArray(status=[status])
        array.header.stamp = Time(nanoseconds=cycle.now_ns).to_msg()
        self._publisher.publish(array)


class Telemetry:
    """Publishes the metrics of each cycle below ``~/telemetry``, one topic each.

    A metric is a std_msgs/Float64, which PlotJuggler and Foxglove plot without any configuration;
    it is sent only while somebody subscribes to it. Times have the unit that the name ends with,
    ``converged``, ``driving`` and ``missed_deadline`` are 0 or 1, ``cost/<name>`` is the weighted
    share of a cost, ``late_cycles`` and ``skipped_cycles`` count from the start.

    Args:
        node: The node that publishes.
        cost_names: Names of the costs of the problem.
    """

    def __init__(self, node: Node, cost_names: tuple[str, ...]) -> None:
        self._node = node
        names = (*CYCLE_METRICS, *SOLVE_METRICS, *(f"cost/{name}" for name in cost_names))
        self._publishers = {
            name: node.create_publisher(Float64, f"~/telemetry/{name}", 10) for name in names
        }

    def close(self) -> None:
        """Destroy all publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)

    def publish(self, tick: Tick, timing: Timing, counters: Counters) -> None:
        """Publish the metrics of one cycle that have subscribers."""
        wanted = {
            name: publisher
            for name, publisher in self._publishers.items()
            if publisher.get_subscription_count()
        }
        if not wanted:
            return
        for name, value in _metrics(tick, timing, counters).items():
            if name in wanted:
                wanted[name].publish(Float64(data=float(value)))


def _metrics(tick: Tick, timing: Timing, counters: Counters) -> dict[str, float]:
    metrics = {
        **solve_metrics(tick),
        "driving": float(tick.driving),
        "computing_time_ms": 1e3 * timing.computed_s,
        "waiting_time_ms": 1e3 * timing.waited_s,
        "jitter_ms": 1e3 * timing.jitter_s,
        "missed_deadline": float(timing.late),
        "late_cycles": float(counters.late_cycles),
        "skipped_cycles": float(counters.skipped_cycles),
    }
    if tick.step is not None:
        metrics["solve_time_ms"] = 1e3 * tick.step.solve_time_s
    return metrics
