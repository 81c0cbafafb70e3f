# SPDX-License-Identifier: Apache-2.0
"""Computes metrics of one run, and plots it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.path import PathReference
from mpc_banded.offline.style import BLUE, GREEN, GREY, ORANGE, RED, STYLE

from matplotlib import pyplot as plt  # isort: skip  (style.py chooses the backend)
from matplotlib.axes import Axes  # isort: skip
from matplotlib.patches import Circle  # isort: skip
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter  # isort: skip

#: Time at the beginning that does not count for tracking, in s, and clearance up to which an
#: obstacle is near and may keep the robot off its path, in m.
SETTLING_S, NEAR_M = 3.0, 0.5


@dataclass(frozen=True)
class Target:
    """Values that some states must reach and hold.

    Attributes:
        values: Name of a state -> value to hold.
        unit: Unit of the values, for names and labels: ``m`` or ``rad``.
        settled_s: Time from the start in s after which they must hold.
    """

    values: Mapping[str, float]
    unit: str
    settled_s: float = SETTLING_S


@dataclass
class Run:
    """The messages of one run; times are in seconds on one clock.

    Attributes:
        states: (time, name -> value) of each state message.
        commands: (time, name -> value) of each command message.
        telemetry: Name of a metric -> list of (time, value).
        started_s: When the robot began to drive.
    """

    states: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)
    commands: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)
    telemetry: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    started_s: float = 0.0

    def state(self, name: str) -> np.ndarray:
        """Return one state over time, (M,)."""
        return np.array([values[name] for _, values in self.states])

    @property
    def state_times(self) -> np.ndarray:
        """Times of the states since the start, (M,) in s."""
        return np.array([time for time, _ in self.states]) - self.started_s

    def figure(self, name: str) -> np.ndarray:
        """Return the values of one metric while the robot drives, (K,)."""
        pairs = self.telemetry.get(name, [])
        return np.array([value for time, value in pairs if time >= self.started_s])


def clearance(run: Run, config: Config, radius: float) -> np.ndarray:
    """Return the distance in m from the robot's rim to the nearest obstacle at each state."""
    circles = np.array(config.parameters.obstacles).reshape(-1, 3)
    position = np.column_stack([run.state("x"), run.state("y")])
    distances = np.linalg.norm(position[:, None] - circles[None, :, :2], axis=2)
    return (distances - circles[:, 2]).min(axis=1, initial=np.inf) - radius


def summarise(
    run: Run, config: Config, target: PathReference | Target, radius: float
) -> dict[str, float | None]:
    """Return the metrics of a run; None for those that have no meaning for the robot."""
    solve_ms = run.figure("solve_time_ms")
    times = run.state_times
    unit, settled_s = "m", SETTLING_S
    if isinstance(target, Target):
        unit, settled_s = target.unit, target.settled_s
    settled = times > settled_s
    error = tracking_error(run, target)
    nearest: float | None = None
    if isinstance(target, PathReference):
        gaps = clearance(run, config, radius)
        settled &= gaps > NEAR_M
        nearest = float(gaps[times >= 0].min())
    return {
        f"rms_tracking_error_{unit}": _rms(error[settled]),
        f"final_tracking_error_{unit}": float(error[-1]),
        "min_obstacle_clearance_m": nearest,
        "solve_ms_median": float(np.median(solve_ms)),
        "solve_ms_p99": float(np.percentile(solve_ms, 99)),
        "iterations_mean": float(run.figure("iterations").mean()),
        "cycles": len(solve_ms),
        "missed_deadlines": int(run.figure("missed_deadline").sum()),
        "unconverged_cycles": int(len(solve_ms) - run.figure("converged").sum()),
        "bound_violations": bound_violations(run, config),
        "duration_s": float(times[-1]),
    }


def _rms(values: np.ndarray) -> float | None:
    return float(np.sqrt((values**2).mean())) if values.size else None


def tracking_error(run: Run, target: PathReference | Target) -> np.ndarray:
    """Return the distance from a path in m, or the largest of a state from its target; (M,)."""
    if isinstance(target, Target):
        gaps = [np.abs(run.state(name) - value) for name, value in target.values.items()]
        return np.array(np.max(gaps, axis=0))
    return np.array(
        [target.distance(p) for p in np.column_stack([run.state("x"), run.state("y")])]
    )


def bound_violations(run: Run, config: Config) -> int:
    """Return the number of command values that are not finite or outside their limits."""
    count = 0
    for _, values in run.commands:
        for name, value in values.items():
            limit = f"limits.{name.partition('@')[0]}"  # name@time has the limits of its name
            lower, upper = config.values.get(limit, (-np.inf, np.inf))
            count += not lower - 1e-9 <= value <= upper + 1e-9
    return count


def plot(
    run: Run,
    config: Config,
    target: PathReference | Target,
    radius: float,
    title: str,
    file: Path,
) -> None:
    """Draw path or angles, commands against limits, error and solve time into a PNG."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = plt.figure(figsize=(12, 7), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
        grid = figure.add_gridspec(3, 2, width_ratios=[1.25, 1])
        left = figure.add_subplot(grid[:, 0])
        if isinstance(target, PathReference):
            _draw_path(left, run, config, target, radius)
        elif "pole" in run.states[-1][1]:
            _draw_pole(left, run)
        else:
            _draw_states(left, run, target)
        _draw_commands(figure.add_subplot(grid[0, 1]), run, config)
        _draw_error(figure.add_subplot(grid[1, 1]), run, config, target, radius)
        _draw_solve_time(figure.add_subplot(grid[2, 1]), run, config)
        figure.savefig(file, dpi=130)
        plt.close(figure)


def _draw_path(axes: Axes, run: Run, config: Config, path: PathReference, radius: float) -> None:
    axes.plot(*path.points.T, color=GREY, lw=1.5, ls="--", label="reference")
    x, y = run.state("x"), run.state("y")
    axes.plot(x, y, color=BLUE, lw=2, label="driven")
    for cx, cy, r in np.array(config.parameters.obstacles).reshape(-1, 3):
        axes.add_patch(Circle((cx, cy), r, color=RED, alpha=0.75, lw=0))
        axes.add_patch(Circle((cx, cy), r + radius, fill=False, color=RED, lw=1, ls=":"))
    axes.plot([], [], color=RED, ls=":", lw=1, label="contact")
    axes.plot(x[0], y[0], "o", color=BLUE)
    axes.annotate("start", (x[0], y[0]), xytext=(6, 6), textcoords="offset points")
    axes.set(xlabel="x [m]", ylabel="y [m]")
    axes.set_title("Path")
    if np.ptp(y) > 0.2 * np.ptp(x):  # otherwise a long road would be a thin line
        axes.set_aspect("equal", adjustable="datalim")
    axes.legend(loc="upper right")


def _draw_states(axes: Axes, run: Run, target: Target) -> None:
    for i, (name, value) in enumerate(target.values.items()):
        axes.plot(run.state_times, run.state(name), color=f"C{i}", label=name)
        axes.axhline(value, color=f"C{i}", lw=1, ls="--")
    axes.set(xlabel="time [s]", ylabel=f"position [{target.unit}]", xlim=(0.0, None))
    axes.set_title("States, and where they must come to rest")
    axes.legend(loc="upper right", ncols=2)


def _draw_pole(axes: Axes, run: Run) -> None:
    times = run.state_times
    pole = np.degrees(np.unwrap(run.state("pole")))
    upright = 360.0 * np.round(pole[-1] / 360.0)
    axes.plot(times, pole - upright, color=BLUE, lw=2)
    axes.axhline(0.0, color=GREY, lw=1, ls="--")
    axes.set(xlabel="time [s]", ylabel="angle from upright [deg]", title="Pole")
    axes.set_xlim(0.0, None)
    inset = axes.inset_axes((0.45, 0.08, 0.52, 0.3))
    inset.plot(times, run.state("cart"), color=ORANGE)
    inset.set_title("Cart [m]")
    inset.set_xlim(0.0, None)


def _draw_commands(axes: Axes, run: Run, config: Config) -> None:
    times = np.array([time for time, _ in run.commands]) - run.started_s
    commands = [_first_point(values) for _, values in run.commands]
    names = [name for name in commands[-1] if f"limits.{name}" in config.values]
    for name, color in zip(names, (BLUE, ORANGE), strict=False):
        values = [command.get(name, np.nan) for command in commands]
        axes.step(times, values, where="post", color=color, label=name)
        for bound in config.parameters.limits[name]:
            axes.axhline(bound, color=color, lw=1, ls=":")
    axes.set_xlim(0.0, None)
    axes.set_title("Commands and their limits")
    axes.legend(loc="upper right", ncols=2)


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
    axes: Axes, run: Run, config: Config, target: PathReference | Target, radius: float
) -> None:
    times = run.state_times
    is_path = isinstance(target, PathReference)
    unit = target.unit if isinstance(target, Target) else "m"
    label = "distance from the path" if is_path else "distance from the target"
    axes.plot(times, tracking_error(run, target), color=BLUE, label=label)
    if is_path and config.parameters.obstacles:
        gaps = clearance(run, config, radius)
        axes.plot(times, np.where(gaps < 2.0, gaps, np.nan), color=RED, label="clearance")
    axes.axhline(0.0, color=GREY, lw=1)
    axes.set_xlim(0.0, None)
    axes.set_title(f"Error{' and clearance' if is_path else ''} [{unit}]")
    axes.legend(loc="upper right", ncols=2)


def _draw_solve_time(axes: Axes, run: Run, config: Config) -> None:
    pairs = run.telemetry.get("solve_time_ms", [])
    times = np.array([time for time, _ in pairs]) - run.started_s
    values = np.array([value for _, value in pairs])
    axes.plot(times, values, ".", ms=3, color=GREEN)
    axes.axhline(1e3 * config.period_s, color=RED, lw=1, ls=":", label="period")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="time [s]", xlim=(0.0, None))
    axes.set_title("Solve time [ms]")
    axes.legend(loc="upper right")
