# SPDX-License-Identifier: Apache-2.0
"""The report of a replay: one HTML file that holds its plots."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from mpc_banded.control.text import printable
from mpc_banded.offline.results import Results
from mpc_banded.offline.style import BLUE, GREEN, GREY, ORANGE, RED, STYLE
from mpc_banded.offline.timeline import Timeline
from mpc_banded.robots.messages import has_position

from matplotlib import pyplot as plt  # isort: skip  (style.py chooses the backend)
from matplotlib.axes import Axes  # isort: skip
from matplotlib.figure import Figure  # isort: skip

#: Most rows of states; a robot with more shows those that have a reference first.
STATE_ROWS = 8
#: Most tiles for one kind of metric.
MOST_TILES = 3
SHEET = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #f4f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p.sub { color: #52606d; margin: 0 0 1.5rem; }
section { background: #fff; border: 1px solid #e1e6eb; border-radius: 8px;
          padding: 1rem 1.2rem; margin: 0 0 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem;
         margin: 0 0 1.2rem; }
.tile { background: #fff; border: 1px solid #e1e6eb; border-radius: 8px; padding: .7rem 1rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; }
.tile span { color: #52606d; font-size: .85rem; }
img { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; padding: .25rem .6rem .25rem 0; vertical-align: top;
         border-bottom: 1px solid #edf0f3; overflow-wrap: anywhere; }
th { color: #52606d; font-weight: 500; width: 16rem; }
ul { margin: 0; padding-left: 1.2rem; } .good { color: #2f855a; } .bad { color: #b91c1c; }
"""


def write_page(
    results: Results, summary: Mapping[str, Any], file: Path, verdict: str | None = None
) -> None:
    """Write the report.

    Args:
        results: All cycles.
        summary: Their metrics.
        file: File to write.
        verdict: Result of the comparison with a reference.
    """
    sections = [_tiles(results, summary)]
    if verdict:
        tone = "good" if verdict.startswith("no difference") else "bad"
        sections.append(
            f'<section><h2>Comparison</h2><p class="{tone}">{_escaped(verdict)}</p></section>'
        )
    notes = [*summary["remarks"]]
    notes += [f"{count} × rejected: {why}" for why, count in summary["rejected"].items()]
    if notes:
        items = "".join(f"<li>{_escaped(note)}</li>" for note in notes)
        sections.append(f"<section><h2>Remarks</h2><ul>{items}</ul></section>")
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        if has_position(results.states):
            sections.append(_section("Path", _path(results)))
        sections.append(_section("State against reference", _states(results)))
        sections.append(_section("Command against the recorded command", _commands(results)))
        sections.append(_section("Status and age of the state", _status(results)))
        sections.append(_section("Iterations, solve time and error of the plan", _solves(results)))
    sections.append(_table("Figures", summary))
    title = f"Replay of {_escaped(summary['bag'])}"
    body = "\n".join(sections)
    how = "the cycles on record" if summary["follows_the_record"] else "the configured rate"
    file.write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{SHEET}</style></head>'
        f"<body><main><h1>{title}</h1><p class='sub'>robot {_escaped(summary['robot'])}, "
        f"{summary['cycles']} cycles in {summary['duration_s']:.1f} s at {how}, "
        f"{_escaped(summary['derivatives'])} derivatives, "
        f"mpc_banded {_escaped(summary['version'])}</p>\n"
        f"{body}</main></body></html>\n",
        encoding="utf-8",
    )


def _tiles(results: Results, summary: Mapping[str, Any]) -> str:
    timing = results.timing()
    driving = summary["codes"].get("driving", 0) / max(1, summary["cycles"])
    solved = summary["converged"] / max(1, summary["solved"])
    shown = {
        "of the cycles driving": f"{100 * driving:.1f} %",
        "of the solves converged": f"{100 * solved:.1f} %",
        "iterations, mean": _short(summary["iterations_mean"]),
        "solve time, mean": f"{_short(timing['mean'])} ms",
        "solve time, p99": f"{_short(timing['p99'])} ms",
    }
    for title, key in (
        ("tracking error", "tracking_error_rms"),
        ("from the recorded command", "command_difference_rms"),
    ):
        values = list(summary[key].items())[:MOST_TILES]
        shown |= {f"{title}, RMS: {name}": _short(value) for name, value in values}
    tiles = (
        f'<div class="tile"><b>{_escaped(v)}</b><span>{_escaped(k)}</span></div>'
        for k, v in shown.items()
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _table(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{_escaped(key)}</th><td>{_escaped(_text(value))}</td></tr>"
        for key, value in values.items()
        if key not in ("remarks", "rejected")
    )
    return f"<section><h2>{title}</h2><table>{rows}</table></section>"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) or "none"
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)


def _escaped(text: str) -> str:
    """Return any text, escaped for HTML."""
    return html.escape(printable(str(text)))


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _section(title: str, figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=130, format="png")
    plt.close(figure)
    data = base64.b64encode(stream.getvalue()).decode()
    picture = f'<img alt="{_escaped(title)}" src="data:image/png;base64,{data}">'
    return f"<section><h2>{title}</h2>{picture}</section>"


def draw(axes: Axes, timeline: Timeline, color: str, label: str, **style: Any) -> None:
    """Draw a line, with a shade from the least to the greatest value of each bucket."""
    rows = timeline.rows
    if not np.isfinite(rows[:, 3]).any():
        return
    time, low, high, last = rows.T
    if (high > low).any():
        axes.fill_between(time, low, high, color=color, alpha=0.25, lw=0)
    axes.plot(time, last, color=color, label=label, **{"lw": 1.4, **style})


def _grid(rows: int, height: float = 1.5) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(
        rows,
        1,
        sharex=True,
        squeeze=False,
        figsize=(10, 0.6 + height * rows),
        layout="constrained",
    )
    axes[-1, 0].set_xlabel("time since the first cycle [s]")
    return figure, list(axes[:, 0])


def _path(results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for timelines, color, label, dashes in (
        (results.references, GREY, "reference", "--"),
        (results.states, BLUE, "state", "-"),
    ):
        if has_position(timelines):
            x, y = timelines["x"].rows[:, 3], timelines["y"].rows[:, 3]
            axes.plot(x, y, color=color, label=label, lw=1.6, ls=dashes)
    axes.set(xlabel="x [m]", ylabel="y [m]")
    axes.set_aspect("equal", adjustable="datalim")
    axes.ticklabel_format(useOffset=True)
    axes.legend(loc="upper right")
    return figure


def _states(results: Results) -> Figure:
    names = sorted(results.states, key=lambda name: name not in results.references)[:STATE_ROWS]
    figure, axes = _grid(len(names))
    for row, name in zip(axes, names, strict=True):
        if name in results.references:
            draw(row, results.references[name], GREY, "reference", ls="--")
        draw(row, results.states[name], BLUE, "state")
        row.set_title(name)
        _legend(row)
    return figure


def _commands(results: Results) -> Figure:
    limits = results.replay.loop.config.parameters.limits
    figure, axes = _grid(len(results.commands), 1.9)
    for row, (name, timeline) in zip(axes, results.commands.items(), strict=True):
        draw(row, results.recorded[name], ORANGE, "recorded", drawstyle="steps-post")
        draw(row, timeline, BLUE, "replayed", drawstyle="steps-post")
        row.set_title(name)
        for bound in limits.get(name, ()):
            if np.isfinite(bound):
                row.axhline(bound, color=RED, lw=0.8, ls=":")
        _legend(row)
    return figure


def _status(results: Results) -> Figure:
    figure, axes = plt.subplots(
        2, 1, sharex=True, figsize=(10, 3.6), layout="constrained", height_ratios=[2, 1]
    )
    time, low, high, _ = results.codes.rows.T
    for index, code in enumerate(results.known_codes):
        seen = (low <= index) & (high >= index)
        color = GREEN if code == "driving" else ORANGE
        axes[0].plot(time[seen], np.full(seen.sum(), index), "|", color=color, ms=11)
    axes[0].set_yticks(range(len(results.known_codes)), results.known_codes)
    axes[0].set_ylim(len(results.known_codes) - 0.5, -0.5)
    axes[0].grid(axis="y", color="#e1e6eb")
    draw(axes[1], results.ages, BLUE, "age of the state")
    axes[1].axhline(results.replay.loop.config.parameters.max_state_age, color=RED, lw=0.8, ls=":")
    axes[1].set(title="Age of the state [s]", xlabel="time since the first cycle [s]")
    return figure


def _solves(results: Results) -> Figure:
    shown = [
        (results.iterations, "Newton iterations", ORANGE),
        (results.solve_ms, "Solve time on this machine [ms]", GREEN),
    ]
    errors = list(results.plan_errors.items())[:STATE_ROWS]
    shown += [(timeline, f"Error of the plan: {name}", BLUE) for name, timeline in errors]
    figure, axes = _grid(len(shown), 1.6)
    for row, (timeline, title, color) in zip(axes, shown, strict=True):
        time, _, high, _ = timeline.rows.T
        row.plot(time, high, ".", ms=2.5, color=color)
        row.set_title(title)
        row.set_ylim(0.0, None)
    return figure


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        place = (1.0, 0.97)  # beside the title, where no curve runs
        axes.legend(loc="lower right", bbox_to_anchor=place, ncols=2, borderaxespad=0.0)
