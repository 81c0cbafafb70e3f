# SPDX-License-Identifier: Apache-2.0
"""The demo: node and simulator as processes of their own, watched over DDS until the end.

What the robot did is taken from the messages alone: the figures, the plot and the recording show
what anybody else on the network could have seen.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mpc_banded.control.config import Config
from mpc_banded.control.path import PathReference
from mpc_banded.offline import drive
from mpc_banded.offline.recording import Recording
from mpc_banded.ros.observer import Observer

#: Seconds within which the first command must come.
FIRST_COMMAND_S = 10.0
TELEMETRY = (
    "solve_time_ms",
    "iterations",
    "kkt_residual",
    "defect_norm",
    "converged",
    "missed_deadline",
)
Summary = dict[str, Any]


def figure_of_eight() -> np.ndarray:
    """Lemniscate of Gerono, 5 m wide, one and a half times round; (M, 2) in m."""
    angle = np.linspace(0.0, 3.0 * np.pi, 900)
    return np.column_stack([2.5 * np.sin(angle), 2.5 * np.sin(angle) * np.cos(angle)])


def lane_change() -> np.ndarray:
    """Straight on, then 3 m to the left between 45 m and 65 m; (M, 2) in m."""
    x = np.linspace(0.0, 130.0, 800)
    share = np.clip((x - 45.0) / 20.0, 0.0, 1.0)
    return np.column_stack([x, 3.0 * share**3 * (10.0 - 15.0 * share + 6.0 * share**2)])


def upright_since(run: drive.Run) -> float:
    """Seconds after the start from which on the pole stays within 0.1 rad of upright."""
    tilted = np.abs(np.angle(np.exp(1j * run.state("pole")))) > 0.1
    return float(run.state_times[tilted].max(initial=0.0)) if not tilted[-1] else math.inf


@dataclass(frozen=True)
class Scenario:
    """A robot's task, and what it must have done.

    Attributes:
        path: What it follows, (M, 2); None for none.
        duration_s: How long it drives.
        demands: Text -> test of summary and run.
    """

    path: Callable[[], np.ndarray] | None
    duration_s: float
    demands: dict[str, Callable[[Summary, drive.Run], bool]]


ALWAYS: dict[str, Callable[[Summary, drive.Run], bool]] = {
    "every command within its bounds": lambda s, _: s["bound_violations"] == 0,
    f"first command within {FIRST_COMMAND_S:g} s": lambda s, _: (
        s["first_command_s"] <= FIRST_COMMAND_S
    ),
    "node and simulator ended with code 0": lambda s, _: not any(s["exit_codes"]),
}
SCENARIOS = {
    "unicycle": Scenario(
        figure_of_eight,
        20.0,
        {
            "RMS error below 0.05 m away from the obstacle": lambda s, _: (
                s["rms_tracking_error_m"] < 0.05
            ),
            "no contact": lambda s, _: s["min_obstacle_clearance_m"] > 0.0,
        },
    ),
    "bicycle": Scenario(
        lane_change,
        20.0,
        {
            "no contact": lambda s, _: s["min_obstacle_clearance_m"] > 0.0,
            "back on the path at the end, within 0.1 m": lambda s, _: (
                s["final_tracking_error_m"] < 0.1
            ),
        },
    ),
    "cartpole": Scenario(
        None,
        15.0,
        {"upright within 4 s, and until the end": lambda _, run: upright_since(run) < 4.0},
    ),
}


def parameter_file(robot: str) -> Path:
    """The parameter file that comes with a robot: in the source tree, or where it is installed."""
    source = Path(__file__).resolve().parents[2] / "config" / f"{robot}.yaml"
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    installed = [Path(p) / "share" / "mpc_banded" / "config" / source.name for p in prefixes]
    found = next((file for file in (source, *installed) if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"there is no {source.name} in {source.parent} or any share folder"
        )
    return found


def run_demo(robot: str, duration_s: float | None, output: Path) -> int:
    """Drive, print, write ``summary.json``, ``plot.png`` and ``bag``; returns the exit status."""
    scenario = SCENARIOS[robot]
    parameters = parameter_file(robot)
    config = Config.load(parameters)
    console = Console()
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / "bag", ignore_errors=True)
    points = scenario.path() if scenario.path else None
    path = PathReference(points, config["reference_speed"]) if points is not None else None
    console.print(f"[bold]{robot}[/bold]: {parameters}")
    watch, first_s, codes = _drive(
        config, parameters, points, duration_s or scenario.duration_s, output / "bag", console
    )
    run = watch.run
    if not run.commands or not run.telemetry or codes is None:
        console.print("[red]no command came; the node's messages are above[/red]")
        return 1
    summary = _summary(watch, config, path, first_s, codes)
    file = output / "summary.json"
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    title = f"{robot}: {summary['cycles']} cycles, {summary['solve_ms_median']:.1f} ms median"
    drive.plot(run, config, path, config.robot.radius, title, output / "plot.png")
    return _verdict(summary, run, scenario, output, console)


def _summary(
    watch: _Watch, config: Config, path: PathReference | None, first_s: float, codes: list[int]
) -> Summary:
    run = watch.run
    summary: Summary = {"robot": config.robot.name}
    summary |= drive.summarise(run, config, path, config.robot.radius)
    if path is None:
        upright = upright_since(run)
        summary["upright_since_s"] = upright if math.isfinite(upright) else None
    return summary | {
        "derivatives_at_the_end": watch.derivatives,
        "first_command_s": round(first_s, 3),
        "exit_codes": codes,
    }


def _verdict(
    summary: Summary, run: drive.Run, scenario: Scenario, output: Path, console: Console
) -> int:
    table = Table(title="What the messages say", title_justify="left", show_header=False)
    for key, value in summary.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(key, "-" if value is None else text)
    console.print(table)
    failed = False
    for text, holds in (scenario.demands | ALWAYS).items():
        good = bool(holds(summary, run))
        failed |= not good
        console.print(f"{'[green]yes[/green]' if good else '[red]NO [/red]'} {text}")
    console.print(
        f"written: {', '.join(str(output / n) for n in ('summary.json', 'plot.png', 'bag'))}"
    )
    return int(failed)


@contextmanager
def _processes(parameters: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Node and simulator; ended by SIGINT, as a launch file or a keyboard does."""
    arguments = ["--ros-args", "--params-file", str(parameters), "--log-level", "warn"]
    modules = ("mpc_banded.ros.simulator", "mpc_banded.ros.node")
    started = [subprocess.Popen([sys.executable, "-m", name, *arguments]) for name in modules]
    try:
        yield started
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGINT)
        for process in started:
            try:
                process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _drive(
    config: Config,
    parameters: Path,
    points: np.ndarray | None,
    duration_s: float,
    bag: Path,
    console: Console,
) -> tuple[_Watch, float, list[int] | None]:
    """Let the robot drive; returns what was heard, the time to the first command, exit codes."""
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    began = time.monotonic()
    with Recording(bag) as recording, _processes(parameters) as processes:
        watch = _Watch(config, recording)
        observer = Observer(watch.topics, watch.hear, points)
        try:
            while not watch.driving and all(p.poll() is None for p in processes):
                observer.spin_once(0.1)
                if time.monotonic() - began > 6.0 * FIRST_COMMAND_S:
                    break
            first_s = time.monotonic() - began
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TimeElapsedColumn(),
                TextColumn("{task.fields[line]}"),
            )
            with Progress(*columns, console=console) as progress:
                task = progress.add_task("driving", total=duration_s, line="")
                start = time.monotonic()
                while watch.driving and time.monotonic() - start < duration_s:
                    if any(p.poll() is not None for p in processes):
                        break
                    observer.spin_once(0.05)
                    progress.update(task, completed=time.monotonic() - start, line=watch.line())
        finally:
            observer.close()
    codes = [process.returncode for process in processes]
    return watch, first_s, codes if watch.driving else None


class _Watch:
    """Sorts what is heard into a run, and records it.

    Attributes:
        derivatives: Which ones the node said last that it used, eager or compiled.
    """

    def __init__(self, config: Config, recording: Recording) -> None:
        robot = config.robot
        self.run = drive.Run()
        self.derivatives = ""
        self._moving = False
        self._robot = robot
        self._recording = recording
        self._state, self._command = robot.state_topics[0], config.command_topic
        self.topics = {
            self._state.topic: self._state.type,
            self._command.topic: self._command.type,
            **{f"mpc_node/telemetry/{name}": "std_msgs/msg/Float64" for name in TELEMETRY},
            "diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
            **{topic.topic: topic.type for topic in robot.reference_topics},
        }
        if robot.state_message == "odometry":
            self.topics["mpc_node/optimal_path"] = "nav_msgs/msg/Path"

    @property
    def driving(self) -> bool:
        """Whether a command other than the stop has been heard."""
        return self._moving

    def hear(self, topic: str, kind: str, now_ns: int, data: bytes, message: Any) -> None:
        """Take one message."""
        self._recording.write(topic, kind, now_ns, data)
        now = 1e-9 * now_ns
        name = topic.removeprefix("/")
        if name == self._state.topic:
            self.run.states.append((now, dict(self._state.read(message))))
        elif name == self._command.topic:
            self.run.commands.append((now, dict(self._command.read(message))))
            if not self._moving and any(self.run.commands[-1][1].values()):
                self._moving = True
                self.run.started_s = now
        elif kind == "std_msgs/msg/Float64":
            self.run.telemetry.setdefault(Path(name).name, []).append((now, message.data))
        elif name == "diagnostics":
            values = [pair for status in message.status for pair in status.values]
            told = [pair.value for pair in values if pair.key == "derivatives"]
            self.derivatives = told[-1] if told else self.derivatives

    def line(self) -> str:
        """The newest figures in one line."""
        last = {name: pairs[-1][1] for name, pairs in self.run.telemetry.items()}
        if not last or not self.run.states:
            return ""
        state = self._robot.state(self.run.states[-1][1])
        pairs = zip(self._robot.states[:2], state, strict=False)
        shown = "  ".join(f"{name} {x:6.2f}" for name, x in pairs)
        return (
            f"{last.get('solve_time_ms', math.nan):5.1f} ms  "
            f"{last.get('iterations', math.nan):2.0f} Newton  {shown}"
        )
