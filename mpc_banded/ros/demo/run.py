# SPDX-License-Identifier: Apache-2.0
"""Runs the demo: starts node and simulator, watches them drive, and judges the drive.

The results come from the messages alone: summary, plot and recording show what any other node on
the network could have received.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mpc_banded.control.config import Config
from mpc_banded.offline.drive import Run, plot, summarise
from mpc_banded.offline.recording import Recording
from mpc_banded.offline.results import ResultError, whole_folder
from mpc_banded.ros.demo.observer import Monitor, Observer
from mpc_banded.ros.demo.scenarios import (
    ALWAYS,
    SCENARIOS,
    Reference,
    Scenario,
    config_file,
    upright_since,
)

#: Exit codes: all demands are met, one is not, there was no drive.
DONE, MISSED, REFUSED = 0, 1, 2
#: Time to wait for the first command, and for the end of a process, in s.
PATIENCE_S, FAREWELL_S = 60.0, 10.0
#: Time to the first command in s above which the demo adds a note.
SLOW_START_S = 10.0
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
        derivatives: The derivatives in use at the end, eager or compiled.
        first_command_s: Time from the start of the processes to the first command.
        exit_codes: Exit codes of simulator and node.
    """

    run: Run
    derivatives: str
    first_command_s: float
    exit_codes: list[int]


def run_demo(robot: str, duration_s: float | None, output: Path) -> int:
    """Drive, print, and write ``summary.json``, ``plot.png`` and ``bag``; returns the exit code.

    Args:
        robot: Name of a scenario.
        duration_s: Duration of the drive; None takes the scenario's.
        output: Folder of the results; it is replaced once all of them are complete.
    """
    scenario, console = SCENARIOS[robot], Console()
    file = config_file(robot)
    config = Config.load(file)
    reference = scenario.reference(config)
    target = reference.target if isinstance(reference, Reference) else reference
    console.print(f"[bold]{robot}[/bold]: {file}")
    try:
        with whole_folder(output) as folder:
            drive = _drive(
                config,
                file,
                reference if isinstance(reference, Reference) else None,
                duration_s or scenario.duration_s,
                folder / "bag",
                console,
            )
            summary: dict[str, Any] = {"robot": robot}
            summary |= summarise(drive.run, config, target, config.footprint.reach)
            summary |= _remarks(drive)
            text = json.dumps(summary, indent=2) + "\n"
            (folder / "summary.json").write_text(text, encoding="utf-8")
            title = (
                f"{robot}: {summary['cycles']} cycles, {summary['solve_ms_median']:.1f} ms median"
            )
            plot(drive.run, config, target, config.footprint.reach, title, folder / "plot.png")
    except (NoDriveError, ResultError) as error:
        print(f"mpc_banded demo: {error}", file=sys.stderr)
        return REFUSED
    code = _judge(summary, drive.run, scenario, console)
    names = ", ".join(str(output / name) for name in ("summary.json", "plot.png", "bag"))
    console.print(f"written: {names}")
    return code


def _remarks(drive: Drive) -> dict[str, Any]:
    remarks: dict[str, Any] = {}
    if "pole" in drive.run.states[-1][1]:
        upright_s = upright_since(drive.run)
        remarks["upright_since_s"] = upright_s if math.isfinite(upright_s) else None
    return remarks | {
        "derivatives_at_the_end": drive.derivatives,
        "first_command_s": round(drive.first_command_s, 3),
        "exit_codes": drive.exit_codes,
    }


def _judge(summary: Mapping[str, Any], run: Run, scenario: Scenario, console: Console) -> int:
    """Print the summary and whether each demand is met; returns the exit code."""
    table = Table(title="What the messages say", title_justify="left", show_header=False)
    for key, value in summary.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(key, "-" if value is None else text)
    console.print(table)
    code = DONE
    for text, fulfils in (scenario.demands | ALWAYS).items():
        good = bool(fulfils(summary, run))
        code = code if good else MISSED
        console.print(f"{'[green]yes[/green]' if good else '[red]NO [/red]'} {text}")
    if summary["first_command_s"] > SLOW_START_S:
        console.print(
            f"[yellow]note[/yellow] the first command took {summary['first_command_s']:.0f} s: "
            "starting the processes and loading PyTorch was slow, the control loop is not judged "
            "by that"
        )
    return code


@contextmanager
def _processes(file: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start simulator and node, and end them: SIGTERM also ends one that is still starting."""
    arguments = ["--ros-args", "--params-file", str(file), "--log-level", "warn"]
    modules = ("mpc_banded.ros.simulator", "mpc_banded.ros.node")
    started = [subprocess.Popen([sys.executable, "-m", name, *arguments]) for name in modules]
    try:
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


def _drive(
    config: Config,
    file: Path,
    reference: Reference | None,
    duration_s: float,
    bag: Path,
    console: Console,
) -> Drive:
    """Let the robot drive.

    Raises:
        NoDriveError: No command or no state was received.
    """
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    began_s = time.monotonic()
    with Recording(bag) as recording, _processes(file) as processes:
        monitor = Monitor(config, recording)
        observer = Observer(monitor.topics, monitor.hear, reference)
        try:
            while not monitor.driving and time.monotonic() - began_s < PATIENCE_S:
                _check_alive(processes)
                observer.spin_once(0.1)
            first_command_s = time.monotonic() - began_s
            with Progress(*COLUMNS, console=console) as progress:
                task = progress.add_task("driving", total=duration_s, line="")
                start_s = time.monotonic()
                while monitor.driving and time.monotonic() - start_s < duration_s:
                    _check_alive(processes)
                    observer.spin_once(0.05)
                    passed_s = time.monotonic() - start_s
                    progress.update(task, completed=passed_s, line=monitor.line())
        finally:
            observer.close()
    run = monitor.run
    if not (monitor.driving and run.states and run.figure("solve_time_ms").size):
        raise NoDriveError(
            f"the robot did not drive: {len(run.states)} states and {len(run.commands)} commands "
            f"were heard within {PATIENCE_S:g} s; the messages of the nodes are above"
        )
    codes = [process.returncode for process in processes]
    return Drive(run, monitor.derivatives, first_command_s, codes)


def _check_alive(processes: list[subprocess.Popen[bytes]]) -> None:
    for name, process in zip(("simulator_node", "mpc_node"), processes, strict=True):
        code = process.poll()
        if code is not None:
            raise NoDriveError(f"{name} ended with code {code}; its messages are above")
