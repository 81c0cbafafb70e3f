# SPDX-License-Identifier: Apache-2.0
"""What the node costs, and whether it lasts: writes docs/node.md.

``python -m benchmarks.node`` lets the node drive the simulated unicycle at 50 Hz with a horizon of
40, and takes the processor time of its process apart: solver, publishing, and executor, which is
all the rest, threads of DDS included. It takes turns with a bare rclpy node with the same topics,
services and timers, which is spun as ``rclpy.spin`` does it, and whose callbacks do nothing; and
with the same on the executor of ours. Then the node drives for ``--soak`` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
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

from benchmarks.hessian import processor, wrapped
from benchmarks.study import ROOT
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.record import Cycle, Journal
from mpc_banded.robots import messages
from mpc_banded.ros import executable, interfaces, node, telemetry
from mpc_banded.ros.demo.scenarios import config_file, figure_of_eight
from mpc_banded.ros.diagnostics import Diagnostics
from mpc_banded.ros.task import MpcTask
from mpc_banded.ros.visualization import Visualization

PAGE = ROOT / "docs" / "node.md"
FREQUENCY, HORIZON = 50.0, 40
#: Time until everything has been compiled and settled, at most, and length of one measurement.
SETTLED_S, MEASURED_S = 60.0, 20.0
#: Measurements of each node.
ROUNDS = 3
#: How often memory is read, and when the node has all that it will have, in seconds.
SAMPLE_S, GROWN_S = 5.0, 20.0
#: The path is published again and again, so that it does not end.
AGAIN_S = 20.0
ALLOWED = 1.2
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


# The node, with a stopwatch in it, and the bare one. Both run in processes of their own.

_spent = {"solver": 0.0, "publishing": 0.0}


def _timed(owner: Any, name: str, part: str) -> None:
    """Add the processor time of a method's calls to a part."""
    method = getattr(owner, name)

    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*arguments, **named)
        finally:
            _spent[part] += time.thread_time() - began

    setattr(owner, name, call)


def _report_when_asked() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: print(json.dumps(_spent), flush=True))


def run_ours(arguments: list[str]) -> int:
    """The node with a stopwatch."""
    for owner, name in ((ControlLoop, "tick"), (ControlLoop, "on_message")):
        _timed(owner, name, "solver")
    for owner, name in (
        (MpcTask, "_send"),
        (Journal, "cycle"),
        (telemetry.RecordPublisher, "publish"),
        (telemetry.Telemetry, "publish"),
        (Visualization, "publish"),
        (Diagnostics, "publish"),
    ):
        _timed(owner, name, "publishing")
    _report_when_asked()
    return node.main(arguments)


def _ignore(message: Any) -> None:
    del message


def run_bare(executor_class: Callable[[], Any]) -> int:
    """A node with the same topics, services and timers, which says and decides nothing."""
    _report_when_asked()
    ended: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: ended.append(number))
    config = Config.load(config_file("unicycle"))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Node("mpc_node")
    loop = ControlLoop(config)
    states = {topic.topic for topic in config.robot.state_topics}
    for topic, kind in loop.input_topics.items():
        quality = interfaces.NEWEST if topic in states else 1
        node.create_subscription(interfaces.message_class(kind), topic, _ignore, quality)
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
    """Poses of the path, and the milliseconds that rclpy takes to make a message of its bytes."""
    points, times = figure_of_eight(), []
    data = serialize_message(_path(points))
    for _ in range(20):
        began = time.perf_counter()
        deserialize_message(data, PathMessage)
        times.append(1e3 * (time.perf_counter() - began))
    return len(points), float(np.median(times))


class Watch:
    """Publishes the path again and again, and hears of every cycle.

    Attributes:
        cycles: Number of the cycle, late and skipped ones so far, derivatives.
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
        self.node.create_subscription(DiagnosticArray, "mpc_node/cycle", self._hear, 100)
        self.node.create_timer(AGAIN_S, self._publish)
        self._points = figure_of_eight()

    def _hear(self, message: Any) -> None:
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
        self._points = self._points + 1e-6  # another path, so it begins anew
        self._plans.publish(_path(self._points))

    def until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Listen until something holds; whether it came to that."""
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end:
                return False
            self._executor.spin_once(timeout_sec=0.1)
        return True

    def wait(self, seconds: float) -> None:
        """Listen for that long."""
        self.until(lambda: False, seconds)

    def begin(self) -> None:
        """Publish the path once somebody listens."""
        if not self.until(lambda: self._plans.get_subscription_count() > 0, SETTLED_S):
            raise RuntimeError("no node has come up")
        self._publish()

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown()


@contextmanager
def _driving(kind: str, folder: Path) -> Iterator[tuple[Watch, subprocess.Popen[bytes], Path]]:
    """A node of a kind, and the simulator; with where the node's reports go."""
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


def _asked(process: subprocess.Popen[bytes], report: Path, watch: Watch) -> dict[str, float]:
    """What the stopwatch of a node says now."""
    before = len(report.read_text().splitlines())
    process.send_signal(signal.SIGUSR1)
    if not watch.until(lambda: len(report.read_text().splitlines()) > before, 10.0):
        raise RuntimeError("the node does not report")
    told: dict[str, float] = json.loads(report.read_text().splitlines()[-1])
    return told


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
        began, used, spent = time.monotonic(), _used_s(process.pid), _asked(process, report, watch)
        watch.wait(seconds)
        elapsed = time.monotonic() - began
        total = _used_s(process.pid) - used
        now = _asked(process, report, watch)
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


def page(found: dict[str, list[dict[str, float]]], long: Soak, seconds: float) -> str:
    """The text of docs/node.md.

    Args:
        found: Kind of node -> its shares in each round.
        long: The long drive.
        seconds: Of one measurement.
    """
    median = {kind: _medians(rounds) for kind, rounds in found.items()}
    executor = {kind: shares_["executor"] for kind, shares_ in median.items()}
    each = [
        ours_["executor"] / bare["executor"]
        for ours_, bare in zip(found["ours"], found["bare"], strict=True)
    ]
    ratio = executor["ours"] / executor["bare"]
    same = executor["ours"] / executor["bare_events"]
    verdict = "not above" if ratio <= ALLOWED else "above"
    rows = [(what, [median[kind][part] for kind in KINDS]) for part, what in PARTS.items()]
    rows.append(("together", [sum(median[kind].values()) for kind in KINDS]))
    table = [
        f"| {what} | " + " | ".join(f"{x:.1f}" for x in values) + " |" for what, values in rows
    ]
    memory = long.memory_mb or [float("nan")]
    introduction = wrapped(
        "What the node costs beside the solver, and whether it lasts. Made by `python -m "
        f"benchmarks.node`, with Python {platform.python_version()} on {processor()}: the "
        f"unicycle at {FREQUENCY:g} Hz with a horizon of {HORIZON}, driven by the simulator over "
        f"DDS, processor time over {seconds:g} s in percent of one core, medians of {ROUNDS} "
        "rounds."
    )
    comparison = wrapped(
        "The bare node has the same subscriptions, publishers, services and timers, is spun as "
        "`rclpy.spin` does it, and its callbacks do nothing. All that is neither solver nor "
        f"publishing counts as executor here. That is {ratio:.2f} times as much as there "
        f"(by round {', '.join(f'{x:.2f}' for x in each)}), which is {verdict} the "
        f"{ALLOWED:.2f} times that are allowed. The difference is rclpy's events executor, which "
        "mpc_node runs on where rclpy has it (Jazzy and newer; `executor` in `/diagnostics` "
        f"tells); beside a bare node on that one the ratio is {same:.2f}: timing, counters and "
        "lifecycle are ours, and so are the threads of DDS that deliver what is published."
    )
    poses, unpack_ms = unpacking()
    drive = wrapped(
        f"In {long.seconds:.0f} s the node went through {long.cycles} cycles and reported "
        f"{long.late} late and {long.skipped} skipped ones; {long.unreported} were missed without "
        f"a report. Every {AGAIN_S:g} s a new path came, of {poses} poses, which rclpy takes "
        f"{unpack_ms:.0f} ms to unpack; a period is {1e3 / FREQUENCY:g} ms. Its memory was "
        f"{memory[0]:.1f} MB at the beginning and {memory[-1]:.1f} MB at "
        f"the end, {long.growth_mb_per_hour:+.1f} MB an hour by a straight line through all "
        f"samples after {GROWN_S:g} s."
    )
    lines = [
        "# The node: what it costs",
        "",
        *introduction.splitlines(),
        "",
        "| part | " + " | ".join(f"{name}, %" for name in KINDS.values()) + " |",
        "| --- |" + " ---: |" * len(KINDS),
        *table,
        "",
        *comparison.splitlines(),
        "",
        "## A long drive",
        "",
        *drive.splitlines(),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, and write the page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.node", description=__doc__)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=MEASURED_S, help="of a measurement")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of the long drive")
    parser.add_argument("--output", type=Path, default=PAGE, help="where the page goes")
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
    text = page(found, long, options.seconds)
    options.output.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
