# SPDX-License-Identifier: Apache-2.0
"""Plots one run: the view from above, and each state and command over time with its limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.path import PathReference
from mpc_banded.offline.drive import Run, Target, clearance, tracking_error
from mpc_banded.offline.style import BLUE, GREEN, GREY, RED, STYLE

from matplotlib import pyplot as plt  # isort: skip  (style.py chooses the backend)
from matplotlib.axes import Axes  # isort: skip
from matplotlib.figure import Figure  # isort: skip
from matplotlib.patches import Circle  # isort: skip
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter  # isort: skip

#: Most lines in one panel.
MOST_LINES = 8
#: A limit is drawn if its distance from the data is at most this multiple of their range.
NEAR_LIMIT = 1.0
#: Clearance in m above which it is not drawn.
FAR = 2.0


@dataclass(frozen=True)
class Panel:
    """States or commands that share a unit and limits.

    Attributes:
        names: At least one name.
        unit: Unit; empty if unknown.
        limits: Lower and upper limit, infinite if there are none.
        is_command: Whether they are values of the command.
    """

    names: tuple[str, ...]
    unit: str
    limits: tuple[float, float]
    is_command: bool

    @property
    def title(self) -> str:
        """Names, unit and limits in words."""
        shown = ", ".join(self.names)
        if len(self.names) > 3:
            shown = f"{self.names[0]} ... {self.names[-1]}"
        unit = f" [{self.unit}]" if self.unit else ""
        known = [f"{bound:.3g}" for bound in self.limits if math.isfinite(bound)]
        within = f", limits {' to '.join(known)}" if len(known) == 2 else ""
        if len(known) == 1:
            within = f", limit {known[0]}"
        return f"{'command ' if self.is_command else ''}{shown}{unit}{within}"


def panels_of(config: Config, commanded: Mapping[str, float]) -> list[Panel]:
    """Return the panels of all states, then of all values of a command.

    Neighbours share a panel where unit and limits are the same.
    """
    found = []
    for names, is_command in ((config.robot.states, False), (tuple(commanded), True)):

        def alike(name: str) -> tuple[str, tuple[float, float], bool]:
            limits = config.values.get(f"limits.{name}", (-math.inf, math.inf))
            return config.robot.unit(name), tuple(limits), name.endswith("_velocity")

        for (unit, limits, _), group in groupby(names, alike):
            members = list(group)
            alone = not unit and not members[0].endswith("_velocity") and len(members) < 4
            size = 1 if alone else MOST_LINES
            found += [
                Panel(tuple(members[i : i + size]), unit, limits, is_command)
                for i in range(0, len(members), size)
            ]
    return found


def plot(run: Run, config: Config, target: PathReference | Target, title: str, file: Path) -> None:
    """Draw a run into a PNG.

    Args:
        run: The messages of the run.
        config: Configuration of the robot: names, units, limits and obstacles.
        target: Path or values that the robot had to follow or reach.
        title: Headline.
        file: The picture.
    """
    sent = {name for name in config.robot.command_names if "@" not in name}
    commands = [_first_point(values) for _, values in run.commands]
    commands = [{n: x for n, x in values.items() if n in sent or not sent} for values in commands]
    draws: list[Callable[[Axes], None]] = [
        partial(_draw_panel, run=run, commands=commands, panel=panel, target=target, config=config)
        for panel in panels_of(config, commands[-1])
    ]
    error = tracking_error(run, target)
    if error is not None:
        draws.append(partial(_draw_error, run=run, config=config, target=target, error=error))
    draws.append(partial(_draw_solve_time, run=run, config=config))
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = _figure(title, len(draws), config.robot.planar is not None)
        panels = figure.axes
        if config.robot.planar is not None:
            _draw_from_above(panels.pop(0), run, config, target)
        for axes, draw in zip(panels, draws, strict=True):
            draw(axes)
            axes.set_xlim(0.0, max(run.state_times[-1], 1e-3))
            axes.margins(y=0.08)
        for axes in {panels[math.ceil(len(panels) / 2) - 1], panels[-1]}:  # lowest in a column
            axes.set_xlabel("time [s]")
        figure.savefig(file, dpi=110)
        plt.close(figure)


def _figure(title: str, count: int, has_map: bool) -> Figure:
    """Make a figure with axes for the view from above, if there is one, and for the panels."""
    rows = math.ceil(count / 2)
    height = max(6.0 if has_map else 4.0, 1.75 * rows + 0.6)
    figure = plt.figure(figsize=(16 if has_map else 12, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    widths = [1.35, 1.0, 1.0] if has_map else [1.0, 1.0]
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
    if has_map:
        figure.add_subplot(grid[:, 0])
    for index in range(count):
        figure.add_subplot(grid[index % rows, index // rows + int(has_map)])
    return figure


def _draw_from_above(axes: Axes, run: Run, config: Config, target: PathReference | Target) -> None:
    x, y = run.state("x"), run.state("y")
    yaw = run.state("yaw") if "yaw" in config.robot.states else np.zeros(len(x))
    centres = config.footprint.centres(np.column_stack([x, y, yaw]))
    if isinstance(target, PathReference):
        axes.plot(*target.points.T, color=GREY, lw=1.5, ls="--", label="reference")
    elif target.heading is not None:
        place = (target.values["x"], target.values["y"])
        axes.plot(*place, "*", ms=14, color=GREEN, label="goal")
        tip = (math.cos(target.heading), math.sin(target.heading))
        axes.quiver(*place, *tip, color=GREEN, width=0.004, scale=18)
    axes.plot(x, y, color=BLUE, lw=2, label="driven")
    for cx, cy, r in config.obstacles():
        axes.add_patch(Circle((cx, cy), r, color=RED, alpha=0.75, lw=0))
    if config.parameters.obstacles:
        axes.plot([], [], "o", color=RED, alpha=0.75, label="obstacle")
    nearest = int(np.argmin(clearance(run, config)))
    for index, line in ((0, "-"), (-1, "-"), (nearest, ":")):
        for centre, radius in zip(centres[index], config.footprint.radii, strict=True):
            axes.add_patch(Circle(tuple(centre), radius, fill=False, color=BLUE, lw=1, ls=line))
    for index, word in ((0, "start"), (-1, "end")):
        axes.plot(x[index], y[index], "o" if word == "start" else "s", color=BLUE)
        offset = (7, 7) if word == "start" else (7, -14)
        axes.annotate(word, (x[index], y[index]), xytext=offset, textcoords="offset points")
    axes.set(xlabel="x [m]", ylabel="y [m]", title="From above")
    if np.ptp(y) > 0.1 * np.ptp(x):  # a long road would be a line
        axes.set_aspect("equal", adjustable="datalim")
    else:
        axes.margins(y=0.4)
    axes.legend(loc="upper right")


def _draw_panel(
    axes: Axes,
    run: Run,
    commands: list[dict[str, float]],
    panel: Panel,
    target: PathReference | Target,
    config: Config,
) -> None:
    times = run.state_times
    if panel.is_command:
        times = np.array([time for time, _ in run.commands]) - run.started_s
    wanted = target.columns if isinstance(target, Target) else {}
    drawn = []
    for i, name in enumerate(panel.names):
        color = f"C{i}" if len(panel.names) > 1 else BLUE
        if panel.is_command:
            values = np.array([command.get(name, np.nan) for command in commands])
            axes.step(times, values, where="post", color=color, lw=1.2, label=name)
        else:
            values = run.state(name)
            if name in config.robot.cyclic:
                values = np.unwrap(values)
            axes.plot(times, values, color=color, lw=1.5, label=name)
            _draw_wanted(axes, name, target, color)
            drawn += [np.asarray(wanted.get(name, []))]
        drawn.append(values[times >= 0.0])
    data = np.concatenate(drawn)
    data = data[np.isfinite(data)]
    low, high = (data.min(), data.max()) if data.size else (0.0, 0.0)
    reach = NEAR_LIMIT * max(high - low, 1e-6)
    for bound in panel.limits:
        if low - reach <= bound <= high + reach:
            axes.axhline(bound, color=RED, lw=1, ls=":")
    axes.set_title(panel.title, fontsize=9)
    if len(panel.names) > 1:
        outside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}  # many would hide the lines
        place = outside if len(panel.names) > 3 else {"loc": "upper right"}
        axes.legend(**place, fontsize=7)


def _draw_wanted(axes: Axes, name: str, target: PathReference | Target, color: str) -> None:
    """Draw the wanted values of a state, dashed."""
    if not isinstance(target, Target) or name not in target.values:
        return
    if target.times_s is None:
        axes.axhline(target.values[name], color=color, lw=1, ls="--", alpha=0.7)
    else:
        axes.plot(target.times_s, target.columns[name], color=color, lw=1, ls="--", alpha=0.7)


def _first_point(values: Mapping[str, float]) -> dict[str, float]:
    """Return velocities of the first point of a trajectory; any other command as it is."""
    first = min((name.partition("@")[2] for name in values), key=_seconds, default="")
    suffix = f"_velocity@{first}"
    if not first:
        return dict(values)
    return {name.partition("@")[0]: x for name, x in values.items() if name.endswith(suffix)}


def _seconds(text: str) -> float:
    return float(text) if text else -1.0


def _draw_error(
    axes: Axes, run: Run, config: Config, target: PathReference | Target, error: np.ndarray
) -> None:
    times = run.state_times
    is_path = isinstance(target, PathReference)
    unit = target.unit if isinstance(target, Target) else "m"
    axes.plot(times, error, color=BLUE, label="error")
    has_obstacles = config.robot.planar is not None and config.parameters.obstacles
    if has_obstacles:
        gaps = clearance(run, config)
        axes.plot(times, np.where(gaps < FAR, gaps, np.nan), color=RED, label="clearance")
        axes.legend(loc="upper right", ncols=2)
    axes.axhline(0.0, color=GREY, lw=1)
    what = "distance from the path" if is_path else "distance from the target"
    title = f"{what}{' and from obstacles' if has_obstacles else ''}"
    axes.set_title(f"{title} [{unit}]" if unit else title, fontsize=9)


def _draw_solve_time(axes: Axes, run: Run, config: Config) -> None:
    pairs = [(time, x) for time, x in run.telemetry["solve_time_ms"] if time >= run.started_s]
    times = np.array([time for time, _ in pairs]) - run.started_s
    values = run.figure("solve_time_ms")
    axes.plot(times, values, ".", ms=3, color=GREEN)
    axes.axhline(1e3 * config.period_s, color=RED, lw=1, ls=":")
    axes.set_yscale("log")
    is_wide = len(values) and values.max() > 100.0 * max(values.min(), 1e-6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"solve time [ms], period {1e3 * config.period_s:g}", fontsize=9)
