# SPDX-License-Identifier: Apache-2.0
"""Runs the demo: starts node and simulator, watches them drive, and judges the drive.

The results come from the messages alone: summary, plot and recording show what any other node on
the network could have received.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.text import printable
from mpc_banded.offline.drive import Run, summarise
from mpc_banded.offline.drive_plot import plot
from mpc_banded.offline.recording import Recording
from mpc_banded.offline.results import ResultError, whole_folder
from mpc_banded.ros.demo.observer import Monitor, Observer
from mpc_banded.ros.demo.references import Reference, UnfitReferenceError
from mpc_banded.ros.demo.scenarios import (
    ALWAYS,
    SCENARIOS,
    Scenario,
    config_file,
    scenario_of,
    upright_since,
)

#: Exit codes: all demands are met, one is not, there was no drive.
DONE, MISSED, REFUSED = 0, 1, 2
#: Time in s for which a running node may stand still until the demo gives up.
PATIENCE_S = 30.0
#: Longest wait for the end of a process, in s.
FAREWELL_S = 30.0
#: Time in s between messages while it waits; a start that takes longer counts as slow.
REPEAT_S, SLOW_START_S = 15.0, 10.0
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=16),
    TimeElapsedColumn(),
    TextColumn("{task.fields[line]}"),
)


class NoDriveError(RuntimeError):
    """The robot did not drive; the message gives the known reasons."""


@dataclass(frozen=True)
class Drive:
    """One drive by its messages.

    Attributes:
        run: States, commands and telemetry.
        facts: The newest diagnostics of the node.
        starts_s: Times from the start of the processes to the first state, cycle and command.
        exit_codes: Exit codes of simulator and node.
    """

    run: Run
    facts: Mapping[str, str]
    starts_s: Mapping[str, float]
    exit_codes: list[int]


def run_demo(
    robot: str | None,
    params: Path | None,
    words: Sequence[str],
    duration_s: float | None,
    output: Path,
) -> int:
    """Drive, print, and write ``summary.json``, ``plot.png`` and ``bag``; returns the exit code.

    Args:
        robot: Name of a built-in scenario, which has its own parameter file; or None.
        params: Parameter file of any robot, if ``robot`` is None.
        words: The reference (references.py); empty leaves it to the scenario or the kind of robot.
        duration_s: Duration of the drive; None takes the scenario's.
        output: Folder of the results; it is replaced once all of them are complete.
    """
    console = Console(highlight=False)
    try:
        file = params or config_file(str(robot))
        config = Config.load(file)
        _check_simulated(config)
        scenario = SCENARIOS.get(robot or "")
        if scenario is None or words:
            scenario = scenario_of(config, words, duration_s)
        console.print(f"[bold]{config.robot.name}[/bold]: {printable(str(file))}")
        with whole_folder(output) as folder:
            summary, run = _results(config, file, scenario, duration_s, folder, console)
    except (NoDriveError, ResultError, UnfitReferenceError, ConfigError, OSError) as error:
        print(f"mpc_banded demo: {error}", file=sys.stderr)
        return REFUSED
    code = _judge(summary, run, scenario, console)
    names = ", ".join(str(output / name) for name in ("summary.json", "plot.png", "bag"))
    console.print(f"written: {printable(names)}")
    return code


def _check_simulated(config: Config) -> None:
    """Refuse a robot whose simulated state could not be published."""
    mute = [topic.topic for topic in config.robot.state_topics if topic.fill is None]
    if mute:
        raise NoDriveError(
            f"{config.robot.name} cannot be simulated: its StateTopic {mute[0]!r} has no fill, "
            "which writes a state into a message"
        )


def _results(
    config: Config,
    file: Path,
    scenario: Scenario,
    duration_s: float | None,
    folder: Path,
    console: Console,
) -> tuple[dict[str, Any], Run]:
    """Drive, and write the results into a folder."""
    made = scenario.reference(config)
    sent = made if isinstance(made, Reference) else None
    target = made.target if isinstance(made, Reference) else made
    duration_s = duration_s or scenario.duration_s
    drive = _drive(config, file, sent, duration_s, scenario.until_arrival, folder / "bag", console)
    summary: dict[str, Any] = {"robot": config.robot.name}
    summary |= summarise(drive.run, config, target) | _remarks(drive)
    text = json.dumps(summary, indent=2) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
    solves = f"{summary['cycles']} cycles, solved in {summary['solve_ms_median']:.1f} ms (median)"
    plot(drive.run, config, target, f"{config.robot.name}: {solves}", folder / "plot.png")
    return summary, drive.run


def _remarks(drive: Drive) -> dict[str, Any]:
    remarks: dict[str, Any] = {}
    if "pole" in drive.run.states[-1][1]:
        upright_s = upright_since(drive.run)
        remarks["upright_since_s"] = upright_s if math.isfinite(upright_s) else None
    return (
        remarks
        | {
            "derivatives_at_the_end": drive.facts.get("derivatives", ""),
            "diagnostics_at_the_end": drive.facts.get("message", ""),
        }
        | {f"first_{word}_s": round(at_s, 3) for word, at_s in drive.starts_s.items()}
        | {"exit_codes": drive.exit_codes}
    )


def _judge(summary: Mapping[str, Any], run: Run, scenario: Scenario, console: Console) -> int:
    """Print the summary and whether each demand is met; returns the exit code."""
    table = Table(title="What the messages say", title_justify="left", show_header=False)
    for key, value in summary.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(key, "-" if value is None else escape(printable(text)))
    console.print(table)
    code = DONE
    for text, fulfils in (scenario.demands | ALWAYS).items():
        verdict = fulfils(summary, run)
        why = verdict if isinstance(verdict, str) else ""
        good = bool(verdict) and not why
        code = code if good else MISSED
        mark = "[green]yes[/green]" if good else "[red]NO [/red]"
        console.print(f"{mark} {escape(text)}{escape(f': {why}' if why else '')}")
    if summary["first_command_s"] > SLOW_START_S:
        console.print(f"[yellow]note[/yellow] {_slow_start(summary)}")
    return code


def _slow_start(summary: Mapping[str, Any]) -> str:
    """Say which part of the start was slow."""
    state_s, cycle_s = summary["first_state_s"], summary["first_cycle_s"]
    parts = {
        "the simulator's first state": state_s,
        "the node's first cycle": cycle_s,
        "the first command": summary["first_command_s"],
    }
    told = ", ".join(f"{what} came after {at_s:.0f} s" for what, at_s in parts.items())
    return f"the start was slow: {told}; what is judged begins with the first command"


@contextmanager
def _processes(file: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start simulator and node, and end them: SIGTERM also ends one that is still starting."""
    arguments = ["--ros-args", "--params-file", str(file), "--log-level", "warn"]
    modules = ("mpc_banded.ros.simulator", "mpc_banded.ros.node")
    started: list[subprocess.Popen[bytes]] = []
    try:
        with _signals_held_back():  # a process whose start is interrupted would be left behind
            for name in modules:
                started.append(subprocess.Popen([sys.executable, "-m", name, *arguments]))
        yield started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=FAREWELL_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Handle SIGINT and SIGTERM only afterwards."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for arrived in came:
        signal.raise_signal(arrived)


def _drive(
    config: Config,
    file: Path,
    reference: Reference | None,
    duration_s: float,
    until_arrival: bool,
    bag: Path,
    console: Console,
) -> Drive:
    """Let the robot drive.

    Raises:
        NoDriveError: No command or no state was received.
    """
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    began_s = time.time()
    with Recording(bag) as recording, _processes(file) as processes:
        monitor = Monitor(config, recording)
        observer = Observer(monitor.topics, monitor.take, reference)
        try:
            _wait_for_motion(monitor, observer, processes, console)
            with Progress(*COLUMNS, console=console) as progress:
                task = progress.add_task("driving", total=duration_s, line="")
                start_s = time.monotonic()
                while (passed_s := time.monotonic() - start_s) < duration_s:
                    _check_alive(processes)
                    observer.spin_once(0.05)
                    progress.update(task, completed=passed_s, line=monitor.line())
                    if until_arrival and monitor.facts.get("code") == "ARRIVED":
                        break
        finally:
            observer.close()
    if not (monitor.run.states and monitor.run.figure("solve_time_ms").size):
        raise NoDriveError(
            f"nothing can be judged: {len(monitor.run.states)} states and no solve were heard; "
            "the messages of the nodes are above"
        )
    codes = [process.returncode for process in processes]
    starts = {word: monitor.first_s.get(word, math.nan) - began_s for word in STARTS}
    return Drive(monitor.run, monitor.facts, starts, codes)


#: What the demo waits for, one after the other, in words.
STARTS = {
    "state": "the first state of the simulator",
    "cycle": "the first cycle of the node, which loads PyTorch and builds the problem",
    "command": "the first command",
}


def _wait_for_motion(
    monitor: Monitor,
    observer: Observer,
    processes: list[subprocess.Popen[bytes]],
    console: Console,
) -> None:
    """Wait for the first command; however long the processes take to start.

    Raises:
        NoDriveError: A process has ended, or the node runs but sends the robot nowhere.
    """
    began_s = told_s = time.monotonic()
    running_s: float | None = None
    while not monitor.driving:
        _check_alive(processes)
        observer.spin_once(0.1)
        now_s = time.monotonic()
        if running_s is None and "cycle" in monitor.first_s and "state" in monitor.first_s:
            running_s = now_s
        if running_s is not None and now_s - running_s > PATIENCE_S:
            raise NoDriveError(
                f"the robot did not drive within {PATIENCE_S:g} s, although the node runs; it "
                f"says: {monitor.facts.get('message', 'nothing')}"
            )
        if now_s - told_s > REPEAT_S:
            told_s = now_s
            missing = next(text for word, text in STARTS.items() if word not in monitor.first_s)
            console.print(f"waiting for {missing}, for {now_s - began_s:.0f} s now")


def _check_alive(processes: list[subprocess.Popen[bytes]]) -> None:
    for name, process in zip(("simulator_node", "mpc_node"), processes, strict=True):
        code = process.poll()
        if code is not None:
            raise NoDriveError(f"{name} ended with code {code}; its messages are above")
