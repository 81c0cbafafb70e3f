# SPDX-License-Identifier: Apache-2.0
"""Replays one bag for each point of a grid of parameters, several at a time.

The points are joblib tasks, so whatever backend joblib has can run them: processes here by
default, or a cluster inside ``joblib.parallel_config``.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from joblib import Parallel, delayed

from mpc_banded.control.config import Config
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.replay import Replay
from mpc_banded.offline.results import Results
from mpc_banded.offline.style import BLUE, GREEN, ORANGE, RED, STYLE
from mpc_banded.offline.transforms import Pose

from matplotlib import pyplot as plt  # isort: skip  (style.py chooses the backend)

#: Column of the table -> its title with unit, where there is one for all robots.
FIGURES = {
    "plan_error": "error of the plan",
    "command_difference": "from recorded command",
    "effort": "effort",
    "iterations_mean": "iterations, mean",
    "converged_percent": "converged [%]",
    "solve_ms_mean": "solve [ms], mean",
    "solve_ms_p99": "solve [ms], p99",
}
PLOTTED = (
    ("plan_error", "Error of the plan", BLUE),
    ("effort", "Effort", ORANGE),
    ("iterations_mean", "Iterations, mean", GREEN),
    ("solve_ms_mean", "Solve time [ms], mean", RED),
)


@dataclass(frozen=True)
class Request:
    """What is replayed, and how; plain values, so it travels to other processes.

    Attributes:
        bag: Folder or file.
        parameters: File; None takes what the bag has on record.
        overrides: Parameter -> value.
        topics: Relative name -> name in the bag.
        compiled: Whether compiled derivatives are used.
        plan: A CSV file, ``driven``, or None.
        transforms: (frame, frame within it) -> x, y, yaw.
    """

    bag: Path
    parameters: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    compiled: bool = True
    plan: str | None = None
    transforms: Mapping[tuple[str, str], Pose] = field(default_factory=dict)

    def replay(self, bag: Bag) -> Replay:
        """The replay of an open bag; raises BagError and ConfigError."""
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
        )


def grid(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values of each parameter, the last one fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep(
    request: Request, axes: Mapping[str, Sequence[Any]], jobs: int = -1
) -> list[dict[str, Any]]:
    """Replay each point of the grid; returns a row of parameters and figures for each.

    Args:
        request: What all points share.
        axes: Parameter -> values.
        jobs: Points at a time; -1 for as many as there are cores.

    Raises:
        BagError: The bag cannot be used.
        ConfigError: A point has a value that is not allowed; nothing has run then.
    """
    points = [replace(request, overrides={**request.overrides, **point}) for point in grid(axes)]
    if request.parameters is not None:
        base = Config.load(request.parameters)
        for point in points:
            base.changed(point.overrides)
    rows = Parallel(n_jobs=jobs)(delayed(_figures)(point) for point in points)
    failed = next((row["error"] for row in rows if "error" in row), None)
    if failed is not None:
        raise BagError(failed)
    return [{**point, **row} for point, row in zip(grid(axes), rows, strict=True)]


def _figures(request: Request) -> dict[str, Any]:
    try:
        with Bag(request.bag) as bag:
            replay = request.replay(bag)
            results = Results(replay, None)
            for replayed in replay.cycles():
                results.add(replayed)
    except (BagError, ValueError, ArithmeticError) as error:
        return {"error": str(error)}  # some backends cannot carry an exception home
    summary, timing = results.close(), results.timing()
    return {
        "plan_error": summary["plan_error_rms"],
        "command_difference": summary["command_difference_rms"],
        "effort": summary["effort_rms"],
        "iterations_mean": summary["iterations_mean"],
        "converged_percent": 100.0 * summary["converged"] / max(1, summary["solved"]),
        "solve_ms_mean": timing["mean"],
        "solve_ms_p99": timing["p99"],
    }


def write_table(rows: list[dict[str, Any]], file: Path) -> None:
    """Write the rows as CSV."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def plot(rows: list[dict[str, Any]], axes: Mapping[str, Sequence[Any]], file: Path) -> None:
    """Draw error, effort, iterations and solve time over the last parameter of the grid."""
    *others, last = axes
    labels = [str(value) for value in axes[last]]
    places: Sequence[float] = range(len(labels))
    numeric = all(isinstance(value, (int, float)) for value in axes[last])
    if numeric:
        places = [float(value) for value in axes[last]]
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure, panels = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
        for axis, (name, title, color) in zip(panels.flat, PLOTTED, strict=True):
            for k in range(0, len(rows), len(labels)):
                group = rows[k : k + len(labels)]
                which = ", ".join(f"{key} {group[0][key]}" for key in others)
                values = [row[name] for row in group]
                shade = 1.0 if not others else 1.0 - 0.75 * k / len(rows)
                look: Any = {"color": color, "alpha": shade, "clip_on": False}
                axis.plot(places, values, "o-", label=which or None, **look)
            axis.set_title(title)
            axis.set_ylim(0.0, None)
            if others:
                axis.legend()
        for axis in panels[-1]:
            axis.set_xlabel(last)
            axis.set_xticks(places, labels)
        figure.savefig(file, dpi=130)
        plt.close(figure)
