# SPDX-License-Identifier: Apache-2.0
"""The commands on recordings, with their progress bars and exit status.

Texts from recordings and files are printed without markup and terminal escapes.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.text import printable
from mpc_banded.ocp.comb import BandwidthError
from mpc_banded.offline import compare, identify_report, sweep
from mpc_banded.offline.bag import BagError
from mpc_banded.offline.identify import combined, identify, rounded, write_parameters
from mpc_banded.offline.recorded_motion import Recorded, read
from mpc_banded.offline.replay import Replay
from mpc_banded.offline.report import write_page
from mpc_banded.offline.results import PAGE, SUMMARY, ResultError, Results, whole_folder
from mpc_banded.offline.sweep import Request

#: Exit status: as expected; different from the reference; refused.
SAME, DIFFERENT, REFUSED = 0, 1, 2
#: Exit status of an identification: no motion follows the command.
NOTHING_FOUND = 1
#: Width in columns of a table that is written to a file or pipe.
WIDE = 160
#: Errors that a user can mend, printed as one sentence.
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
    must_drive: bool = False,
) -> int:
    """Replay a recording into a folder, compare it with a result; returns the exit status.

    Args:
        request: The recording and how to replay it.
        output: Folder for the results.
        reference: A stored result to compare with.
        tolerances: Allowed differences, by field.
        update: Store this result as the reference instead.
        must_drive: Refuse a result in which the robot never drives, unless it is compared with a
            reference that may not drive either.
    """
    console = Console(stderr=True, highlight=False)
    with _in_one_sentence("replay") as status:
        if reference is not None and not update and not compare.stored_file(reference).is_file():
            raise compare.ComparisonError(
                f"{compare.stored_file(reference)} does not exist; create it with --update"
            )
        verdict = None
        with whole_folder(output) as folder:
            with request.open() as bag:
                replay = request.replay(bag)
                results, summary = _replayed(replay, folder, console)
            if reference is not None and not update:
                verdict = compare.compare(folder, reference, tolerances)
            text = verdict.sentence if verdict else None
            write_page(results, summary, folder / PAGE, text)
        _tell(summary, results, console)
        _show(console, f"written: {output / PAGE}, {output / SUMMARY}, {output / 'bag'}")
        if must_drive and verdict is None and (why := _why_nothing_drives(summary)):
            raise ResultError(why)
        if reference is not None and update:
            _show(console, f"accepted: {compare.accept(output, reference)}")
        if verdict is not None:
            _show(console, verdict.sentence, "red" if verdict.differences else "green")
            for other in verdict.differences[1:]:
                _show(console, f"  also {other.field}, {other.count} cycles, {other.largest:.3g}")
            status[0] = DIFFERENT if verdict.differences else SAME
    return status[0]


def run_identify(
    bag: Path,
    params: Path,
    output: Path | None,
    topics: Mapping[str, str],
    types: Sequence[Path] = (),
) -> int:
    """Identify, print a table, and write the new parameter file, all numbers and a plot.

    Args:
        bag: Folder or file.
        params: The parameter file.
        output: The new one; None puts it beside the old one.
        topics: Relative name -> name in the recording.
        types: Folders with definitions of message types.

    Returns:
        0 if estimates were written, 1 if no motion follows the command, 2 if the recording or the
        parameters cannot be used.
    """
    with _in_one_sentence("identify") as status:
        output = output or params.with_name(f"{params.stem}.identified{params.suffix}")
        if output.exists() and output.samefile(params):
            raise ConfigError(f"output is {output}, the parameter file itself; name another file")
        config = Config.load(params)
        recorded = read(bag, config, topics, types)
        status[0] = _identified(config, recorded, params, output)
    return status[0]


def _identified(config: Config, recorded: Recorded, params: Path, output: Path) -> int:
    """Identify from a recording, print and write the results; returns the exit status."""
    console = Console(highlight=False)
    for remark in recorded.remarks:
        _show(console, f"note: {remark}")
    found = identify(config, recorded)
    if not found:
        _show(console, f"{config.robot.name} names no axis, and its commands tell none")
        return NOTHING_FOUND
    if any(one.fit for one in found):
        console.print(identify_report.table(found))
    for one in found:
        _show(console, f"{one.name}: {one.verdict}")
    for why, count in recorded.rejected.most_common(20):
        _show(console, f"{count} messages rejected: {why}")
    output.parent.mkdir(parents=True, exist_ok=True)
    report = json.dumps(identify_report.report(found, recorded), indent=2) + "\n"
    output.with_suffix(".json").write_text(report, encoding="utf-8")
    identify_report.plot(found, config, recorded, output.with_suffix(".png"))
    updates = combined(found)
    if not updates:
        _show(console, "nothing is known well enough to be written")
        return NOTHING_FOUND
    write_parameters(params, output, updates)
    for key, estimate in updates.items():
        _show(
            console,
            f"{key}: {config.values[key]:.4g} -> {rounded(estimate):.4g} "
            f"({estimate.lower:.3g} to {estimate.upper:.3g})",
        )
    _show(console, f"written to {output}, with .json and .png beside it")
    return SAME


def run_sweep(
    request: Request,
    axes: Mapping[str, Sequence[Any]],
    output: Path,
    jobs: int,
    scheduler: str | None = None,
) -> int:
    """Replay a grid of parameters; prints a table, best first, leaves a CSV file and a plot.

    Args:
        request: The recording and what all points share.
        axes: Parameter -> values.
        output: Folder for the results.
        jobs: Number of points at a time.
        scheduler: Address of a Dask scheduler whose workers take the points.
    """
    console = Console(stderr=True, highlight=False)
    with _in_one_sentence("replay") as status, whole_folder(output) as folder, _backend(scheduler):
        with console.status(f"{len(sweep.grid(axes))} replays"):
            rows = sweep.sweep(request, axes, jobs)
        sweep.write_table(rows, folder / "sweep.csv")
        sweep.plot(rows, axes, folder / "sweep.png")
        (folder / SUMMARY).write_text(json.dumps({"sweep": rows}, indent=2) + "\n", "utf-8")
        title = Text(f"Replays of {printable(request.bag.name)}, best score first")
        table = Table(title=title, title_justify="left")
        for column in rows[0]:
            table.add_column(sweep.heading(column), justify="right", overflow="fold")
        for row in sweep.best_first(rows):
            table.add_row(*(Text(_cell(row[column], column in axes)) for column in row))
        width = None if sys.stdout.isatty() else WIDE  # a log is not cut off at 80 columns
        Console(width=width).print(table)
        _show(console, f"written: {output / 'sweep.csv'}, {output / 'sweep.png'}")
    return status[0]


@contextlib.contextmanager
def _in_one_sentence(command: str) -> Iterator[list[int]]:
    """Turn errors into one sentence and an exit status."""
    status = [SAME]
    try:
        yield status
    except MENDABLE as error:
        print(f"mpc_banded {command}: {printable(str(error))}", file=sys.stderr)
        status[0] = REFUSED
    except Exception as error:  # functions of a robot raise anything, and 1 means "differs"
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = printable(f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})")
        print(f"mpc_banded {command}: {text}", file=sys.stderr)
        status[0] = REFUSED


def _why_nothing_drives(summary: Mapping[str, Any]) -> str:
    """Return why the robot never drives in a replay; empty if it does, or has arrived."""
    codes = summary["codes"]
    if any("driving" in code or "arrived" in code for code in codes):
        return ""
    code, _ = max(codes.items(), key=lambda item: item[1])
    hints = [*summary["remarks"], *summary["rejected"]]
    hint = f"; {hints[0]}" if hints else ""
    return f"the robot drives in none of the {summary['cycles']} cycles: {code}{hint}"


def _show(console: Console, text: str, style: str = "") -> None:
    console.print(Text(printable(text), style))


def _cell(value: Any, is_parameter: bool) -> str:
    if is_parameter:
        return printable(str(value))
    return "-" if value is None else f"{value:.4g}"


@contextlib.contextmanager
def _backend(scheduler: str | None) -> Iterator[None]:
    """Run the points of a sweep here, or on a Dask cluster."""
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
    """Replay the bag with a progress bar; results are written as they come."""
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
    title = Text(f"Replay of {printable(summary['bag'])}")
    table = Table(title=title, title_justify="left", show_header=False)
    codes = ", ".join(f"{count} {code}" for code, count in summary["codes"].items())
    table.add_row("cycles", Text(f"{summary['cycles']}: {codes}"))
    for key in (
        "converged",
        "iterations_mean",
        "tracking_error_rms",
        "plan_error_rms",
        "command_difference_rms",
        "largest_difference_from_the_record",
    ):
        value = summary.get(key)
        values = value if isinstance(value, dict) else {"": value}
        for name, number in values.items():
            if number is not None:
                what = f"{key.replace('_', ' ')}{f': {name}' if name else ''}"
                table.add_row(Text(printable(what)), f"{number:.6g}")
    mean = results.timing()["mean"]
    table.add_row("solve time, mean", "-" if mean is None else f"{mean:.2f} ms")
    console.print(table)
    for note in summary["remarks"]:
        console.print(Text.assemble(("note ", "yellow"), printable(note)))
    for why, count in summary["rejected"].items():
        console.print(Text.assemble(("rejected ", "yellow"), f"{count} × {printable(why)}"))
