# SPDX-License-Identifier: Apache-2.0
"""Writes the results of a replay into a folder that appears once it is complete.

``bag``, ``cycles.csv`` and ``summary.json`` depend only on the recording, the parameters and the
version. Solve times, which depend on the machine, are in ``timing.csv`` and in the page.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpc_banded import __version__
from mpc_banded.codegen.build import machine
from mpc_banded.offline.recording import Recording
from mpc_banded.offline.replay import Replay, Replayed
from mpc_banded.offline.timeline import Timeline
from mpc_banded.offline.tracking import differences, error_names, tracking_errors
from mpc_banded.robots.messages import CommandTopic, fill_path

CYCLES, SUMMARY, TIMING, PAGE = "cycles.csv", "summary.json", "timing.csv", "report.html"
#: Prefix of all topics in the resulting bag, so that it can be opened beside the original.
PREFIX = "/replay"
#: Columns of cycles.csv before those named after states, commands and costs.
COLUMNS = ("cycle", "time_ns", "code", "state_age_s", "iterations", "converged")
RESIDUALS = ("kkt_residual", "defect_norm")


class ResultError(Exception):
    """The folder for the results cannot be used; the message says why."""


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Write into a folder that becomes ``target`` if all goes well, and vanishes if not.

    Raises:
        ResultError: The target exists and is not an earlier result.
    """
    target = target.absolute()
    if target.exists() and not _may_be_replaced(target):
        raise ResultError(
            f"{target} is not empty and no earlier result; name another folder with --output"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():
            target.rename(old)
        scratch.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _may_be_replaced(target: Path) -> bool:
    return target.is_dir() and ((target / SUMMARY).is_file() or not any(target.iterdir()))


class Results:
    """Writes the cycles of a replay one by one, and keeps what a report needs.

    Args:
        replay: The replay.
        folder: Folder to write into; None keeps only the metrics.

    Attributes:
        states, references, commands, recorded: Name -> values over seconds since the first tick.
        errors, plan_errors: Name (tracking.py) -> distance of the state, and of the plan, from
            the reference.
        efforts, differences: Name -> first input of the plan, and distance of the command from
            the recorded one.
        codes: Code of each tick, as its place in ``known_codes``.
        iterations, solve_ms, ages: Iterations and time of the solves, and age of the states.
    """

    def __init__(self, replay: Replay, folder: Path | None) -> None:
        self.replay = replay
        self.folder = folder
        robot = replay.loop.robot
        self.states = {name: Timeline() for name in robot.states}
        self.references = {name: Timeline() for name in robot.reference}
        self.commands = {name: Timeline() for name in robot.command_names}
        self.recorded = {name: Timeline() for name in robot.command_names}
        self.codes, self.known_codes = Timeline(), list[str]()
        self.iterations, self.solve_ms = Timeline(), Timeline()
        self.ages = Timeline()
        names = error_names([name for name in robot.reference if name in robot.states])
        self.errors = {name: Timeline() for name in names}
        self.plan_errors = {name: Timeline() for name in names}
        self.efforts = {name: Timeline() for name in robot.inputs}
        self.differences = {name: Timeline() for name in robot.command_names}
        self.counts: Counter[str] = Counter()
        self.converged = 0
        self.exact_difference = 0.0
        self.start_ns: int | None = None
        self.end_ns = 0
        self._digest = hashlib.sha256()
        self._files: list[Any] = []
        if folder is not None:
            self._open(folder)

    def _open(self, folder: Path) -> None:
        robot = self.replay.loop.robot
        self._columns = [*COLUMNS, *RESIDUALS]
        self._columns += [f"plan_error.{name}" for name in self.plan_errors]
        self._columns += [f"command.{name}" for name in robot.command_names]
        self._columns += [f"state.{name}" for name in robot.states]
        self._columns += [f"reference.{name}" for name in robot.reference]
        names = self.replay.loop.controller.problem.cost_names
        self._columns += [f"cost.{name}" for name in names]
        self._cycles = (folder / CYCLES).open("w", encoding="utf-8", newline="")
        self._timing = (folder / TIMING).open("w", encoding="utf-8", newline="")
        self._files = [self._cycles, self._timing]
        self._table = csv.writer(self._cycles, lineterminator="\n")
        self._table.writerow(self._columns)
        self._clock = csv.writer(self._timing, lineterminator="\n")
        self._clock.writerow(["cycle", "time_ns", "solve_time_ms"])
        self._recording = Recording(folder / "bag", self.replay.bag.types, flush_s=math.inf)
        self._recording.__enter__()
        self._files.append(self._recording)

    def add(self, replayed: Replayed) -> None:
        """Write one cycle."""
        tick = replayed.tick
        self.start_ns = tick.now_ns if self.start_ns is None else self.start_ns
        self.end_ns = tick.now_ns
        self._keep(replayed, 1e-9 * (tick.now_ns - self.start_ns))
        if replayed.original is not None:
            ours, theirs = replayed.cycle.command, replayed.original.command
            gaps = differences(ours, theirs, self.replay.loop.robot.cyclic)
            missing = [math.inf for name in {**ours, **theirs} if name not in gaps]
            self.exact_difference = max(
                [self.exact_difference, *map(abs, gaps.values()), *missing]
            )
        if self.folder is not None:
            self._write(replayed)

    def _keep(self, replayed: Replayed, time_s: float) -> None:
        tick, step = replayed.tick, replayed.tick.step
        cyclic, inputs = self.replay.loop.robot.cyclic, self.replay.loop.robot.inputs
        for timelines, values in (
            (self.states, replayed.state),
            (self.references, replayed.reference),
            (self.commands, tick.command),
            (self.recorded, replayed.recorded),
            (self.plan_errors, replayed.plan_errors),
            (self.errors, tracking_errors(replayed.state, replayed.reference, cyclic)),
            (self.differences, differences(tick.command, replayed.recorded, cyclic)),
            (
                self.efforts,
                {} if step is None else dict(zip(inputs, step.plan.inputs[0], strict=True)),
            ),
        ):
            for name, timeline in timelines.items():
                timeline.add(time_s, values.get(name, math.nan))
        code = tick.code.value
        if code not in self.known_codes:
            self.known_codes.append(code)
        self.counts[code] += 1
        self.codes.add(time_s, float(self.known_codes.index(code)))
        self.ages.add(time_s, tick.state_age_s)
        self.iterations.add(time_s, math.nan if step is None else float(step.iterations))
        self.solve_ms.add(time_s, math.nan if step is None else 1e3 * step.solve_time_s)
        self.converged += bool(replayed.metrics.get("converged"))

    def _write(self, replayed: Replayed) -> None:
        tick, metrics = replayed.tick, replayed.metrics
        row: list[Any] = [replayed.cycle.number, tick.now_ns, tick.code.name]
        row += [_cell(metrics.get(name)) for name in COLUMNS[3:]]
        row += [_cell(metrics.get(name)) for name in RESIDUALS]
        row += [_cell(replayed.plan_errors.get(name)) for name in self.plan_errors]
        row += [_cell(tick.command.get(name)) for name in self.commands]
        row += [_cell(replayed.state.get(name)) for name in self.states]
        row += [_cell(replayed.reference.get(name)) for name in self.references]
        costs = self._columns[len(row) :]
        row += [_cell(metrics.get(name.replace(".", "/", 1))) for name in costs]
        self._table.writerow(row)
        self._digest.update(repr(row).encode())
        if tick.step is not None:
            ms = f"{1e3 * tick.step.solve_time_s:.3f}"
            self._clock.writerow([replayed.cycle.number, tick.now_ns, ms])
        self._publish(replayed)

    def _publish(self, replayed: Replayed) -> None:
        tick, cycle, write = replayed.tick, replayed.cycle, self._recording.publish
        topic, now_ns = self.replay.loop.config.command_topic, tick.now_ns
        if tick.command:  # a robot without a position to stop at has none
            fill = partial(_filled, topic, tick.command)
            write(f"{PREFIX}/{topic.topic}", topic.type, now_ns, fill)
        metrics = dict(replayed.metrics)
        metrics |= {f"plan_error/{name}": x for name, x in replayed.plan_errors.items()}
        metrics |= {f"command/{name}": x for name, x in tick.command.items()}
        metrics |= {f"reference/{name}": x for name, x in replayed.reference.items()}
        for name, value in metrics.items():
            if math.isfinite(value):
                self._recording.number(f"{PREFIX}/mpc_node/telemetry/{name}", now_ns, value)
        self._recording.cycle(f"{PREFIX}/mpc_node/cycle", now_ns, cycle.values(), tick.reason)
        planar = self.replay.loop.robot.planar
        if tick.step is not None and planar is not None and planar.yaw is not None:
            points = planar.poses(tick.step.plan.states)
            pose = self._recording.blank
            write(
                f"{PREFIX}/mpc_node/optimal_path",
                "nav_msgs/msg/Path",
                now_ns,
                lambda m: fill_path(m, points, lambda: pose("geometry_msgs/msg/PoseStamped")),
                frame=self.replay.frame,
            )

    def close(self) -> dict[str, Any]:
        """Finish the files, and write and return the summary."""
        self.abandon()
        summary = self.summary()
        if self.folder is not None:
            text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
            (self.folder / SUMMARY).write_text(text, encoding="utf-8")
        return summary

    def abandon(self) -> None:
        """Close the unfinished files."""
        files, self._files = self._files, []
        for file in files:
            file.__exit__(None, None, None)

    def summary(self) -> dict[str, Any]:
        """Return the metrics that do not depend on the speed of the machine."""
        replay = self.replay
        config, remarks = replay.loop.config, replay.remarks
        defaults = {key: entry.default for key, entry in config.table.items()}
        cycles = sum(self.counts.values())
        result: dict[str, Any] = {
            "version": __version__,
            "bag": replay.bag.path.name,
            "robot": config.robot.name,
            "parameters": {k: _plain(v) for k, v in config.values.items() if v != defaults[k]},
            "topics": replay.names,
            "derivatives": replay.derivatives,
            "cycles": cycles,
            "duration_s": 1e-9 * (self.end_ns - (self.start_ns or 0)),
            "codes": dict(self.counts),
            "solved": self.iterations.count,
            "converged": self.converged,
            "iterations_mean": _number(self.iterations.mean),
            "iterations_max": _number(self.iterations.greatest),
            "tracking_error_rms": _all_rms(self.errors),
            "plan_error_rms": _all_rms(self.plan_errors),
            "effort_rms": _all_rms(self.efforts),
            "command_rms": _all_rms(self.commands),
            "recorded_command_rms": _all_rms(self.recorded),
            "command_difference_rms": _all_rms(self.differences),
            "rejected": dict(remarks.rejected.most_common(20)),
            "remarks": remarks.notes,
            "follows_the_record": replay.exact,
            "machine": machine(),
        }
        if replay.exact:
            result["messages_missing"] = remarks.missing
            result["messages_missing_until_cycle"] = remarks.missing_until
            result["largest_difference_from_the_record"] = _number(self.exact_difference)
            result["recorded_on"] = replay.recorded_on or None
        if self.folder is not None:
            result["digest"] = self._digest.hexdigest()
        return result

    def timing(self) -> dict[str, float | None]:
        """Return statistics of the solve time in ms, which depend on the machine."""
        values = self.solve_ms.rows[:, 2]
        values = values[np.isfinite(values)]
        return {
            "mean": _number(self.solve_ms.mean),
            "p99": float(np.percentile(values, 99)) if len(values) else None,
            "max": _number(self.solve_ms.greatest),
        }


def _filled(topic: CommandTopic, values: Mapping[str, float], message: Any) -> None:
    topic.fill(message, values)


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Write infinite limits as strings, because JSON has no such numbers."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _all_rms(timelines: Mapping[str, Timeline]) -> dict[str, float | None]:
    """Return the root mean square of each name, each in its own unit."""
    return {name: _number(timeline.rms) for name, timeline in timelines.items()}
