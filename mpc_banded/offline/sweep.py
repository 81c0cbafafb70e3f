# SPDX-License-Identifier: Apache-2.0
"""Replays one recording for each point of a grid of parameters, several at a time.

The points are joblib tasks, which run in local processes by default, or on a cluster inside
``joblib.parallel_config``.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from joblib import Parallel, delayed
from rich.text import Text

from mpc_banded.control.config import Config
from mpc_banded.control.text import printable
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.replay import Replay
from mpc_banded.offline.results import Results
from mpc_banded.offline.style import BLUE, GREEN, ORANGE, RED, STYLE
from mpc_banded.offline.transforms import Pose

from matplotlib import pyplot as plt  # isort: skip  (style.py chooses the backend)

#: Column of the table, or the part before its dot, -> heading; as Text, since "[ms]" in a string
#: would be markup.
FIGURES = {
    "score": Text("score"),
    "plan_error": Text("error of the plan"),
    "command_difference": Text("from recorded command"),
    "effort": Text("effort"),
    "iterations_mean": Text("iterations, mean"),
    "converged_percent": Text("converged [%]"),
    "solve_ms_mean": Text("solve [ms], mean"),
    "solve_ms_p99": Text("solve [ms], p99"),
}
#: Groups of columns to draw, with their colours.
PLOTTED = {"plan_error": BLUE, "effort": ORANGE, "iterations_mean": GREEN, "solve_ms_mean": RED}


@dataclass(frozen=True)
class Request:
    """A recording and how to replay it, in plain values that can be sent to other processes.

    Attributes:
        bag: Folder or file.
        parameters: Parameter file; None takes the recorded parameters.
        overrides: Parameter -> value.
        topics: Relative name -> name in the recording.
        compiled: Whether to use compiled derivatives.
        plan: A CSV file, ``driven``, or None.
        transforms: (frame, frame within it) -> x, y, yaw.
        types: Folders with definitions of message types.
        window_s: Time over which errors of plans are taken; None takes the horizon.
    """

    bag: Path
    parameters: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    compiled: bool = True
    plan: str | None = None
    transforms: Mapping[tuple[str, str], Pose] = field(default_factory=dict)
    types: Sequence[Path] = ()
    window_s: float | None = None

    def open(self) -> Bag:
        """Return the recording, a context manager."""
        return Bag(self.bag, folders=self.types)

    def replay(self, bag: Bag) -> Replay:
        """Return the replay of an open recording; raises BagError and ConfigError."""
        torch.set_num_threads(1)  # sums come out the same on any number of cores
        config = None if self.parameters is None else Config.load(self.parameters)
        return Replay(
            bag,
            config,
            overrides=self.overrides,
            topics=self.topics,
            compiled=self.compiled,
            transforms=self.transforms,
            plan=self.plan,
            window_s=self.window_s,
        )


def grid(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of the values of each parameter, the last one fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep(
    request: Request, axes: Mapping[str, Sequence[Any]], jobs: int = -1
) -> list[dict[str, Any]]:
    """Replay each point of the grid; returns a row of parameters and figures for each.

    Errors of plans are taken over the shortest horizon of the grid, so that they are comparable.
    The score combines errors of different units: it is the root mean square over the names of each
    error relative to the largest one of the grid.

    Args:
        request: The recording and what all points share.
        axes: Parameter -> values.
        jobs: Number of points at a time; -1 for as many as there are cores.

    Raises:
        BagError: The recording cannot be used.
        ConfigError: A point has a value that is not allowed; nothing has run then.
    """
    points = [replace(request, overrides={**request.overrides, **point}) for point in grid(axes)]
    window_s = min(_horizons_s(request, points))
    tasks = [delayed(_figures)(replace(point, window_s=window_s)) for point in points]
    rows = Parallel(n_jobs=jobs)(tasks)
    failed = next((row["error"] for row in rows if "error" in row), None)
    if failed is not None:
        raise BagError(failed)
    scores = _scores(rows)
    return [
        {**point, "score": score, **row}
        for point, score, row in zip(grid(axes), scores, rows, strict=True)
    ]


def _horizons_s(request: Request, points: Sequence[Request]) -> list[float]:
    """Return the length of the horizon of each point; checks all values on the way."""
    if request.parameters is not None:
        base = Config.load(request.parameters)
    else:
        with request.open() as bag:
            base = replace(request, compiled=False).replay(bag).loop.config
    configs = [base.changed(point.overrides) for point in points]
    return [config.horizon * config.dt for config in configs]


def _figures(request: Request) -> dict[str, Any]:
    try:
        with request.open() as bag:
            replay = request.replay(bag)
            results = Results(replay, None)
            for replayed in replay.cycles():
                results.add(replayed)
    except Exception as error:  # some backends cannot carry an exception home
        return {"error": str(error) or repr(error)}
    summary, timing = results.close(), results.timing()
    by_name = {
        f"{key}.{name}": value
        for key in ("plan_error", "command_difference", "effort")
        for name, value in summary[f"{key}_rms"].items()
    }
    return {
        **by_name,
        "iterations_mean": summary["iterations_mean"],
        "converged_percent": 100.0 * summary["converged"] / max(1, summary["solved"]),
        "solve_ms_mean": timing["mean"],
        "solve_ms_p99": timing["p99"],
    }


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Return the error of each row without a unit; None where nothing was planned."""
    names = [key for key in rows[0] if key.startswith("plan_error.")]
    largest = {name: max((row[name] or 0.0 for row in rows), default=0.0) for name in names}
    scores: list[float | None] = []
    for row in rows:
        shares = [row[name] / (largest[name] or 1.0) for name in names if row[name] is not None]
        mean = sum(share**2 for share in shares) / len(shares) if shares else None
        scores.append(None if mean is None else math.sqrt(mean))
    return scores


def best_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows by their score, those without one last."""
    return sorted(rows, key=lambda row: math.inf if row["score"] is None else row["score"])


def heading(column: str) -> Text:
    """Return the heading of a column."""
    group, _, name = column.partition(".")
    if group not in FIGURES:
        return Text(printable(column))
    return FIGURES[group] + Text(f": {printable(name)}") if name else FIGURES[group]


def write_table(rows: list[dict[str, Any]], file: Path) -> None:
    """Write the rows as CSV."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def plot(rows: list[dict[str, Any]], axes: Mapping[str, Sequence[Any]], file: Path) -> None:
    """Draw errors, effort, iterations and solve time over the last parameter of the grid."""
    *others, last = axes
    labels = [str(value) for value in axes[last]]
    places: Sequence[float] = range(len(labels))
    numeric = all(type(value) in (int, float) for value in axes[last])
    if numeric:
        places = [float(value) for value in axes[last]]
    shown = [key for key in rows[0] if key not in axes and key.partition(".")[0] in PLOTTED]
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        count = math.ceil(len(shown) / 2)
        figure, panels = plt.subplots(
            count, 2, figsize=(10, 3 * count), sharex=True, squeeze=False, layout="constrained"
        )
        for axis, key in zip(panels.flat, shown, strict=False):
            for k in range(0, len(rows), len(labels)):
                group = rows[k : k + len(labels)]
                which = ", ".join(f"{other} {group[0][other]}" for other in others)
                values = [math.nan if row[key] is None else row[key] for row in group]
                shade = 1.0 if not others else 1.0 - 0.75 * k / len(rows)
                color = PLOTTED[key.partition(".")[0]]
                look: Any = {"color": color, "alpha": shade, "clip_on": False}
                axis.plot(places, values, "o-", label=which or None, **look)
            axis.set_title(heading(key).plain)
            axis.set_ylim(0.0, None)
            if others:
                axis.legend()
        for axis in panels[-1]:
            axis.set_xlabel(last)
            axis.set_xticks(places, labels)
        figure.savefig(file, dpi=130)
        plt.close(figure)
