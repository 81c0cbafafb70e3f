# SPDX-License-Identifier: Apache-2.0
"""The messages of one run, and the metrics that judge it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.path import PathReference

#: Time at the beginning that does not count for tracking, in s, and clearance up to which an
#: obstacle is near and may keep the robot off its path, in m.
SETTLING_S, NEAR_M = 3.0, 0.5


@dataclass(frozen=True)
class Target:
    """Values that some states must reach and hold.

    Attributes:
        values: Name of a state -> value to hold.
        unit: Unit of the values, for names and labels: ``m`` or ``rad``; empty if it is unknown.
        settled_s: Time from the start in s after which they must hold.
        times_s: Times (M,) from the start at which they lead through ``columns``, in s.
        columns: Name -> values (M,) on the way.
        heading: Yaw in rad at a goal in the plane.
    """

    values: Mapping[str, float]
    unit: str
    settled_s: float = SETTLING_S
    times_s: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    heading: float | None = None


@dataclass
class Run:
    """The messages of one run; times are in seconds on one clock.

    Attributes:
        states: (time, name -> value) of each state message.
        commands: (time, name -> value) of each command message.
        telemetry: Name of a metric -> list of (time, value).
        started_s: Time at which the robot began to drive.
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


def clearance(run: Run, config: Config) -> np.ndarray:
    """Return the distance in m from the robot's outline to the nearest obstacle at each state."""
    circles, footprint = config.obstacles(), config.footprint
    yaw = run.state("yaw") if "yaw" in config.robot.states else np.zeros(len(run.states))
    centres = footprint.centres(np.column_stack([run.state("x"), run.state("y"), yaw]))
    apart = np.linalg.norm(centres[:, :, None] - circles[:, :2], axis=-1)  # (M, F, circles)
    gaps = apart - circles[:, 2] - footprint.radii[:, None]
    return gaps.reshape(len(gaps), -1).min(axis=1, initial=np.inf)


def summarise(run: Run, config: Config, target: PathReference | Target) -> dict[str, float | None]:
    """Return the metrics of a run; None for those that have no meaning for the robot."""
    solve_ms = run.figure("solve_time_ms")
    times = run.state_times
    suffix, settled_s = "_m", SETTLING_S
    if isinstance(target, Target):
        suffix, settled_s = f"_{target.unit}".rstrip("_"), target.settled_s
    settled = times > settled_s
    nearest: float | None = None
    if config.robot.planar is not None:
        gaps = clearance(run, config)
        settled &= gaps > NEAR_M
        nearest = float(gaps[times >= 0].min())
    error = tracking_error(run, target)
    return {
        f"rms_tracking_error{suffix}": None if error is None else _rms(error[settled]),
        f"final_tracking_error{suffix}": None if error is None else float(error[-1]),
        "min_obstacle_clearance_m": nearest if nearest != np.inf else None,
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


def tracking_error(run: Run, target: PathReference | Target) -> np.ndarray | None:
    """Return the distance from a path in m, or the largest of a state from its target; (M,).

    A goal in the plane counts by its position, and a moving target by its place at that time.

    Returns:
        None if there is neither a path nor a target.
    """
    if isinstance(target, Target):
        if not target.values:
            return None
        gaps = [run.state(name) - _wanted(target, name, run) for name in target.values]
        if target.heading is not None:
            return np.linalg.norm(gaps, axis=0)
        return np.array(np.max(np.abs(gaps), axis=0))
    return np.array(
        [target.distance(p) for p in np.column_stack([run.state("x"), run.state("y")])]
    )


def _wanted(target: Target, name: str, run: Run) -> np.ndarray:
    """Return the value that a state should have at each time, (M,)."""
    if target.times_s is None:
        return np.full(len(run.states), target.values[name])
    return np.interp(run.state_times, target.times_s, target.columns[name])


def bound_violations(run: Run, config: Config) -> int:
    """Return the number of command values that are not finite or outside their limits."""
    count = 0
    for _, values in run.commands:
        for name, value in values.items():
            limit = f"limits.{name.partition('@')[0]}"  # of a point in time
            lower, upper = config.values.get(limit, (-np.inf, np.inf))
            count += not lower - 1e-9 <= value <= upper + 1e-9
    return count
