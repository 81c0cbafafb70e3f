# SPDX-License-Identifier: Apache-2.0
"""Processor time and memory of the node; fills docs/node.md.

``python -m benchmarks.node`` lets the node drive the simulated unicycle and splits the processor
time of its process into solver, publishing, and executor, which is all the rest, threads of DDS
included. The node takes turns with a bare rclpy node that has the same topics, services and
timers, spun as ``rclpy.spin`` does it, and with the same bare node on the executor of mpc_node.
Then the node drives for ``--soak`` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import MarkerArray

from benchmarks.pages import DOCS, ROOT, number, provenance, table, update
from benchmarks.timing import stopwatch
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.record import Cycle, Journal
from mpc_banded.robots import messages
from mpc_banded.ros import executable, interfaces, node, telemetry
from mpc_banded.ros.demo.scenarios import config_file, figure_of_eight
from mpc_banded.ros.diagnostics import Diagnostics
from mpc_banded.ros.task import MpcTask
from mpc_banded.ros.visualization import Visualization

FREQUENCY, HORIZON = 50.0, 40
#: Longest wait until everything is compiled, and length of one measurement, in seconds.
SETTLED_S, MEASURED_S = 60.0, 20.0
#: Measurements of each kind of node.
ROUNDS = 3
#: Interval between readings of the memory, and time after which it should not grow, in seconds.
SAMPLE_S, GROWN_S = 5.0, 20.0
#: Interval between paths, which are published again and again so that the drive does not end.
AGAIN_S = 20.0
PARTS = {
    "solver": "solver: the control loop",
    "publishing": "publishing: command, record, figures, diagnostics",
    "executor": "executor: all the rest, threads of DDS included",
}
KINDS = {
    "ours": "mpc_node",
    "bare": "bare rclpy node",
    "bare_events": "bare on the events executor",
}
EXECUTORS: dict[str, Callable[[], Any]] = {
    "bare": SingleThreadedExecutor,
    "bare_events": executable.Executor,
}
TICKS = os.sysconf("SC_CLK_TCK")


# Nodes in processes of their own

#: Methods that count as solver and as publishing.
_WATCHED: tuple[tuple[Any, dict[str, str]], ...] = (
    (ControlLoop, {"tick": "solver", "on_message": "solver"}),
    (MpcTask, {"_send": "publishing"}),
    (Journal, {"cycle": "publishing"}),
    (telemetry.RecordPublisher, {"publish": "publishing"}),
    (telemetry.Telemetry, {"publish": "publishing"}),
    (Visualization, {"publish": "publishing"}),
    (Diagnostics, {"publish": "publishing"}),
)


def _report_when_spent(watches: Sequence[dict[str, list[float]]] = ()) -> None:
    """On SIGUSR1 print the seconds of each part so far."""

    def report(*_: object) -> None:
        spent = {"solver": 0.0, "publishing": 0.0}
        for watch in watches:
            for part, seconds in watch.items():
                spent[part] += sum(seconds)
        print(json.dumps(spent), flush=True)

    signal.signal(signal.SIGUSR1, report)


def run_ours(arguments: list[str]) -> int:
    """Run mpc_node with a stopwatch."""
    with ExitStack() as stack:
        watches = [
            stack.enter_context(stopwatch(owner, methods, time.thread_time))
            for owner, methods in _WATCHED
        ]
        _report_when_spent(watches)
        return node.main(arguments)


def _ignore(message: Any) -> None:
    del message


def run_bare(executor_class: Callable[[], Any]) -> int:
    """Run a node with the same topics, services and timers whose callbacks do nothing."""
    _report_when_spent()
    ended: list[int] = []
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda received, _: ended.append(received))
    config = Config.load(config_file("unicycle"))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Node("mpc_node")
    loop = ControlLoop(config)
    states = {topic.topic for topic in config.robot.state_topics}
    for topic, kind in interfaces.installed_types(loop.input_topics).items():
        quality = interfaces.NEWEST if topic in states else 1
        node.create_subscription(kind, topic, _ignore, quality)
    port = interfaces.CommandPort(config)
    node.create_publisher(port.message_class, port.topic, 1)
    node.create_publisher(DiagnosticArray, "~/cycle", interfaces.RECORDS)
    node.create_publisher(DiagnosticArray, "/diagnostics", 1)
    for name in ("optimal_path", "reference"):
        node.create_publisher(PathMessage, f"~/{name}", 1)
    node.create_publisher(MarkerArray, "~/obstacles", 1)
    for i in range(len(telemetry.CYCLE_METRICS) + len(telemetry.SOLVE_METRICS)):
        node.create_publisher(Float64, f"~/telemetry/figure_{i}", 10)
    node.create_service(Trigger, "~/reset", lambda _, response: response)
    node.create_service(SetBool, "~/enable", lambda _, response: response)
    node.create_timer(1.0 / FREQUENCY, lambda: None)
    node.create_timer(1.0, lambda: None)
    executor = executor_class()
    executor.add_node(node)
    while not ended:
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    return 0


def _path(points: np.ndarray) -> PathMessage:
    message = PathMessage()
    message.header.frame_id = "odom"
    messages.fill_path(message, np.column_stack([points, np.zeros(len(points))]), PoseStamped)
    return message


def unpacking() -> tuple[int, float]:
    """Number of poses of the path, and milliseconds that rclpy takes to deserialize it."""
    points, times = figure_of_eight(), []
    data = serialize_message(_path(points))
    for _ in range(20):
        began = time.perf_counter()
        deserialize_message(data, PathMessage)
        times.append(1e3 * (time.perf_counter() - began))
    return len(points), float(np.median(times))


class Watch:
    """Publishes the path again and again, and receives the record of every cycle.

    Attributes:
        cycles: (number of the cycle, late cycles and skipped cycles so far, derivatives).
    """

    def __init__(self) -> None:
        rclpy.init()
        self.node = Node("bench")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.cycles: list[tuple[int, float, float, str]] = []
        self._plans = self.node.create_publisher(PathMessage, "plan", 1)
        self._counts = dict.fromkeys(("late_cycles", "skipped_cycles"), 0.0)
        for name in self._counts:
            topic = f"mpc_node/telemetry/{name}"
            self.node.create_subscription(Float64, topic, partial(self._count, name), 100)
        self.node.create_subscription(DiagnosticArray, "mpc_node/cycle", self._take, 100)
        self.node.create_timer(AGAIN_S, self._publish)
        self._points = figure_of_eight()

    def _take(self, message: Any) -> None:
        values = {pair.key: pair.value for pair in message.status[0].values}
        cycle = Cycle.parse(values)
        self.cycles.append(
            (
                cycle.number,
                self._counts["late_cycles"],
                self._counts["skipped_cycles"],
                cycle.derivatives,
            )
        )

    def _count(self, name: str, message: Any) -> None:
        self._counts[name] = message.data

    def _publish(self) -> None:
        self._points = self._points + 1e-6  # another path, so the drive starts again
        self._plans.publish(_path(self._points))

    def until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Listen until a condition holds; returns whether it did in time."""
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end:
                return False
            self._executor.spin_once(timeout_sec=0.1)
        return True

    def wait(self, seconds: float) -> None:
        """Listen for a time."""
        self.until(lambda: False, seconds)

    def begin(self) -> None:
        """Publish the path as soon as somebody subscribes to it."""
        if not self.until(lambda: self._plans.get_subscription_count() > 0, SETTLED_S):
            raise RuntimeError("no node has subscribed to the path")
        self._publish()

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown()


@contextmanager
def _driving(kind: str, folder: Path) -> Iterator[tuple[Watch, subprocess.Popen[bytes], Path]]:
    """Start a node of a kind and the simulator; yields the watch, the node and its report file."""
    parameters = ["--ros-args", "--params-file", str(config_file("unicycle"))]
    parameters += ["-p", f"controller_frequency:={FREQUENCY}", "-p", f"horizon:={HORIZON}"]
    report = folder / f"{kind}.txt"
    with report.open("wb") as output:
        node = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.node", "--child", kind, *parameters],
            stdout=output,
            cwd=ROOT,
        )
    simulator = subprocess.Popen(
        [sys.executable, "-m", "mpc_banded.ros.simulator", *parameters], cwd=ROOT
    )
    watch = Watch()
    try:
        watch.begin()
        yield watch, node, report
    finally:
        watch.close()
        for process in (node, simulator):
            process.send_signal(signal.SIGINT)
            process.wait(30.0)


def _used_s(pid: int) -> float:
    """Processor time that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024.0


def _spent(process: subprocess.Popen[bytes], report: Path, watch: Watch) -> dict[str, float]:
    """Seconds of each part so far, by the stopwatch of a node."""
    before = len(report.read_text().splitlines())
    process.send_signal(signal.SIGUSR1)
    if not watch.until(lambda: len(report.read_text().splitlines()) > before, 10.0):
        raise RuntimeError("the node does not report")
    spent: dict[str, float] = json.loads(report.read_text().splitlines()[-1])
    return spent


def shares(kind: str, folder: Path, seconds: float) -> dict[str, float]:
    """Processor time by part, in percent of one core."""
    with _driving(kind, folder) as (watch, process, report):
        if kind == "ours":
            compiled = watch.until(
                lambda: bool(watch.cycles) and watch.cycles[-1][3] == "compiled", SETTLED_S
            )
            if not compiled:
                print("the derivatives are not compiled; the figures are of eager ones")
        watch.wait(5.0)
        began, used, spent = time.monotonic(), _used_s(process.pid), _spent(process, report, watch)
        watch.wait(seconds)
        elapsed = time.monotonic() - began
        total = _used_s(process.pid) - used
        now = _spent(process, report, watch)
    parts = {name: 100.0 * (now[name] - spent[name]) / elapsed for name in spent}
    parts["executor"] = 100.0 * total / elapsed - sum(parts.values())
    return parts


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([each[name] for each in rounds])) for name in rounds[0]}


@dataclass
class Soak:
    """A long drive.

    Attributes:
        seconds: How long.
        memory_mb: Resident memory over time.
        cycles: Cycles of the node.
        late, skipped: Those that the node reports.
        unreported: Cycles that were due and are neither there nor reported.
    """

    seconds: float = 0.0
    memory_mb: list[float] = field(default_factory=list)
    cycles: int = 0
    late: int = 0
    skipped: int = 0
    unreported: int = 0

    @property
    def growth_mb_per_hour(self) -> float:
        """Slope of the memory, once the node had all that it needs."""
        samples = self.memory_mb[int(GROWN_S / SAMPLE_S) :]
        if len(samples) < 3:
            return float("nan")
        times = SAMPLE_S * np.arange(len(samples))
        return float(np.polyfit(times, samples, 1)[0] * 3600.0)


def soak(folder: Path, seconds: float) -> Soak:
    """Drive for long."""
    result = Soak()
    with _driving("ours", folder) as (watch, process, _):
        watch.until(lambda: bool(watch.cycles), SETTLED_S)
        watch.wait(5.0)
        began, first = time.monotonic(), watch.cycles[-1]
        while time.monotonic() - began < seconds:
            watch.wait(SAMPLE_S)
            result.memory_mb.append(_resident_mb(process.pid))
            del watch.cycles[:-1]
        result.seconds, last = time.monotonic() - began, watch.cycles[-1]
    result.cycles = last[0] - first[0]
    result.late, result.skipped = int(last[1] - first[1]), int(last[2] - first[2])
    due = round(result.seconds * FREQUENCY)
    # One cycle at each end may or may not have been heard in time.
    result.unreported = max(0, due - result.cycles - result.skipped - 2)
    return result


def values(found: dict[str, list[dict[str, float]]], long: Soak, seconds: float) -> dict[str, str]:
    """Everything that docs/node.md has a place for.

    Args:
        found: Kind of node -> its shares in each round.
        long: The long drive.
        seconds: Length of one measurement.
    """
    median = {kind: _medians(rounds) for kind, rounds in found.items()}
    executor = {kind: parts["executor"] for kind, parts in median.items()}
    rows = [
        [what, *(f"{median[kind][part]:.1f}" for kind in KINDS)] for part, what in PARTS.items()
    ]
    rows.append(["together", *(f"{sum(median[kind].values()):.1f}" for kind in KINDS)])
    memory = long.memory_mb or [float("nan")]
    poses, unpack_ms = unpacking()
    return {
        "made": provenance(),
        "seconds": f"{seconds:g}",
        "rounds": str(len(found["ours"])),
        "shares": table(["part", *(f"{title}, %" for title in KINDS.values())], rows),
        "over_bare": f"{executor['ours'] / executor['bare']:.2f}",
        "over_events": f"{executor['ours'] / executor['bare_events']:.2f}",
        "soak.seconds": f"{long.seconds:.0f}",
        "soak.cycles": number(long.cycles),
        "soak.late": str(long.late),
        "soak.skipped": str(long.skipped),
        "soak.unreported": str(long.unreported),
        "soak.poses": str(poses),
        "soak.unpack_ms": f"{unpack_ms:.0f}",
        "soak.memory_first": f"{memory[0]:.1f}",
        "soak.memory_last": f"{memory[-1]:.1f}",
        "soak.growth": f"{long.growth_mb_per_hour:+.1f}",
    }


def main() -> int:
    """Measure and fill the page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.node", description=__doc__)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=MEASURED_S, help="of a measurement")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of the long drive")
    options, others = parser.parse_known_args()
    if options.child:
        if options.child == "ours":
            return run_ours(others)
        return run_bare(EXECUTORS[options.child])
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(ROUNDS):
            for kind, rounds in found.items():
                rounds.append(shares(kind, folder, options.seconds))
                print(kind, {name: round(x, 1) for name, x in rounds[-1].items()}, flush=True)
        long = soak(folder, options.soak)
    update(DOCS / "node.md", values(found, long, options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
