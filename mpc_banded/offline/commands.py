# SPDX-License-Identifier: Apache-2.0
"""The commands on bags: replay, comparison and sweep, with their progress and exit status."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mpc_banded.control.config import ConfigError
from mpc_banded.ocp.comb import BandwidthError
from mpc_banded.offline import compare, sweep
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.replay import Replay
from mpc_banded.offline.report import write_page
from mpc_banded.offline.results import PAGE, SUMMARY, ResultError, Results, whole_folder
from mpc_banded.offline.sweep import Request

#: Exit status: as expected, different from the reference, refused.
SAME, DIFFERENT, REFUSED = 0, 1, 2
#: Columns of a table that no terminal shows.
WIDE = 160
#: What a user can mend, told in one sentence.
MENDABLE = (
    BagError,
    BandwidthError,
    ConfigError,
    ResultError,
    compare.ComparisonError,
    OSError,
)


def run_replay(
    request: Request,
    output: Path,
    *,
    reference: Path | None = None,
    tolerances: Mapping[str, float] | None = None,
    update: bool = False,
) -> int:
    """Replay a bag into a folder, and compare it with a stored result; returns the exit status.

    Args:
        request: What is replayed.
        output: Folder for the results.
        reference: A stored result to compare with.
        tolerances: Allowed differences, by field.
        update: Make this result the reference instead.
    """
    console = Console(stderr=True)
    with _told() as status:
        if reference is not None and not update and not compare.stored_file(reference).is_file():
            raise compare.ComparisonError(
                f"{compare.stored_file(reference)} does not exist; create it with --update"
            )
        verdict = None
        with whole_folder(output) as folder:
            with Bag(request.bag) as bag:
                replay = request.replay(bag)
                results, summary = _replayed(replay, folder, console)
            if reference is not None and not update:
                verdict = compare.compare(folder, reference, tolerances)
            text = verdict.sentence if verdict else None
            write_page(results, summary, folder / PAGE, text)
        _tell(summary, results, console)
        console.print(f"written: {output / PAGE}, {output / SUMMARY}, {output / 'bag'}")
        if reference is not None and update:
            console.print(f"accepted: {compare.accept(output, reference)}")
        if verdict is not None:
            console.print(verdict.sentence, style="red" if verdict.differences else "green")
            for other in verdict.differences[1:]:
                console.print(f"  also {other.field}, {other.count} cycles, {other.largest:.3g}")
            status[0] = DIFFERENT if verdict.differences else SAME
    return status[0]


def run_sweep(
    request: Request,
    axes: Mapping[str, Sequence[Any]],
    output: Path,
    jobs: int,
    scheduler: str | None = None,
) -> int:
    """Replay a grid of parameters; prints a table, leaves a CSV file and a plot.

    Args:
        request: What all points share.
        axes: Parameter -> values.
        output: Folder for the results.
        jobs: Points at a time.
        scheduler: Address of a Dask scheduler whose workers take the points.
    """
    console = Console(stderr=True)
    with _told() as status, whole_folder(output) as folder, _backend(scheduler):
        with console.status(f"{len(sweep.grid(axes))} replays"):
            rows = sweep.sweep(request, axes, jobs)
        sweep.write_table(rows, folder / "sweep.csv")
        sweep.plot(rows, axes, folder / "sweep.png")
        (folder / SUMMARY).write_text(json.dumps({"sweep": rows}, indent=2) + "\n", "utf-8")
        table = Table(title=f"Replays of {request.bag.name}", title_justify="left")
        for title in (*axes, *sweep.FIGURES.values()):
            table.add_column(title, justify="right", overflow="fold")
        for row in rows:
            cells = [str(row[key]) for key in axes]
            cells += ["-" if row[k] is None else f"{row[k]:.4g}" for k in sweep.FIGURES]
            table.add_row(*cells)
        width = None if sys.stdout.isatty() else WIDE  # a log is not cut off at 80
        Console(width=width).print(table)
        console.print(f"written: {output / 'sweep.csv'}, {output / 'sweep.png'}")
    return status[0]


@contextlib.contextmanager
def _told() -> Iterator[list[int]]:
    """Turn what a user can mend into one sentence and an exit status."""
    status = [SAME]
    try:
        yield status
    except MENDABLE as error:
        text = " ".join(str(error).split())
        print(f"mpc_banded replay: {text}", file=sys.stderr)
        status[0] = REFUSED


@contextlib.contextmanager
def _backend(scheduler: str | None) -> Iterator[None]:
    """Where the points of a sweep run."""
    if scheduler is None:
        yield
        return
    try:
        import joblib
        from dask.distributed import Client
    except ImportError as error:
        raise ResultError("--scheduler needs Dask: pip install 'dask[distributed]'") from error
    with Client(scheduler), joblib.parallel_config(backend="dask"):
        yield


def _replayed(replay: Replay, folder: Path, console: Console) -> tuple[Results, dict[str, Any]]:
    """Go through the bag with a progress bar; results are on the disk as they come."""
    results = Results(replay, folder)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[line]}"),
    )
    start, end = replay.bag.start_ns, replay.bag.end_ns
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("replaying", total=max(1, end - start), line="")
            for number, replayed in enumerate(replay.cycles()):
                results.add(replayed)
                if number % 20 == 0:
                    done = min(max(0, replayed.tick.now_ns - start), end - start)
                    progress.update(task, completed=done, line=replayed.tick.code.value)
        return results, results.close()
    finally:
        results.abandon()


def _tell(summary: Mapping[str, Any], results: Results, console: Console) -> None:
    table = Table(title=f"Replay of {summary['bag']}", title_justify="left", show_header=False)
    codes = ", ".join(f"{count} {code}" for code, count in summary["codes"].items())
    table.add_row("cycles", f"{summary['cycles']}: {codes}")
    for key in (
        "converged",
        "iterations_mean",
        "tracking_error_rms",
        "plan_error_rms",
        "command_difference_rms",
        "largest_difference_from_the_record",
    ):
        if summary.get(key) is not None:
            table.add_row(key.replace("_", " "), f"{summary[key]:.6g}")
    mean = results.timing()["mean"]
    table.add_row("solve time, mean", "-" if mean is None else f"{mean:.2f} ms")
    console.print(table)
    for note in summary["remarks"]:
        console.print(f"[yellow]note[/yellow] {note}")
    for why, count in summary["rejected"].items():
        console.print(f"[yellow]rejected[/yellow] {count} × {why}", markup=True)
