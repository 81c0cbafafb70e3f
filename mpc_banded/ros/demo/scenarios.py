# SPDX-License-Identifier: Apache-2.0
"""The task of each robot in the demo, and the demands on its drive."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.path import PathReference
from mpc_banded.offline.drive import SETTLING_S, Run, Target, tracking_error
from mpc_banded.ros.demo.references import (
    Reference,
    motion,
    path,
    reference_of,
    with_headings,
)

Summary = Mapping[str, Any]
#: True if a demand is met; False, or a text that says by how much it is missed.
Verdict = bool | str
Demands = dict[str, Callable[[Summary, Run], Verdict]]


@dataclass(frozen=True)
class Scenario:
    """The task of a robot.

    Attributes:
        reference: Makes the reference from the configuration, or only the target of the states
            if the robot needs no reference.
        duration_s: Duration of the drive.
        demands: Sentence -> function that says whether summary and run meet it.
        until_arrival: Whether the drive ends once the node says that the robot has arrived.
    """

    reference: Callable[[Config], Reference | Target]
    duration_s: float
    demands: Demands = field(default_factory=dict)
    until_arrival: bool = False


def figure_of_eight() -> np.ndarray:
    """Return a lemniscate of Gerono, 5 m wide, one and a half times around; (M, 2) in m."""
    angle = np.linspace(0.0, 3.0 * np.pi, 900)
    return np.column_stack([2.5 * np.sin(angle), 2.5 * np.sin(angle) * np.cos(angle)])


def lane_change() -> np.ndarray:
    """Return a line that shifts 3 m to the left between 45 m and 65 m; (M, 2) in m."""
    x = np.linspace(0.0, 130.0, 800)
    share = np.clip((x - 45.0) / 20.0, 0.0, 1.0)
    return np.column_stack([x, 3.0 * share**3 * (10.0 - 15.0 * share + 6.0 * share**2)])


def along(points: np.ndarray, yaw: float | None = None) -> Callable[[Config], Reference]:
    """Follow a path through positions (M, 2) in m."""
    if yaw is None:
        return lambda config: path(config, with_headings(points))
    return lambda config: path(config, np.column_stack([points, np.full(len(points), yaw)]))


#: Joint angles of the arm in rad as multiples of a fan-shaped posture, and when they are reached.
WAYPOINTS = ((2.0, 1.0), (4.0, -0.5), (6.0, 0.8))
HOLD_S = 4.0


def wave(config: Config) -> Reference:
    """Move all joints through three postures, and hold the last one."""
    joints = list(config.values["joints"])
    times, factors = np.transpose(WAYPOINTS)
    postures = dict(
        zip(joints, np.outer(np.linspace(0.2, 0.8, len(joints)), factors), strict=True)
    )
    rates = {f"{name}_velocity": np.zeros(len(times)) for name in joints}
    return motion(config, times, postures | rates)


def upright_since(run: Run) -> float:
    """Return the time in s from the start after which the pole stays within 0.1 rad of upright."""
    tilted = np.abs(np.angle(np.exp(1j * run.state("pole")))) > 0.1
    return float(run.state_times[tilted].max(initial=0.0)) if not tilted[-1] else math.inf


#: Heading in rad that the omnidirectional base keeps all the way.
OMNI_YAW = 0.5


def largest_turn(run: Run) -> float:
    """Return how far the heading is from OMNI_YAW at most after the first 3 s, in rad."""
    return float(np.abs(run.state("yaw") - OMNI_YAW)[run.state_times > SETTLING_S].max())


ALWAYS: Demands = {
    "every command within its bounds": lambda s, _: s["bound_violations"] == 0,
    "node and simulator ended with code 0": lambda s, _: not any(s["exit_codes"]),
}
SCENARIOS = {
    "unicycle": Scenario(
        along(figure_of_eight()),
        20.0,
        {
            "RMS error below 0.05 m away from the obstacle": lambda s, _: (
                s["rms_tracking_error_m"] < 0.05
            ),
            "no contact": lambda s, _: s["min_obstacle_clearance_m"] > 0.0,
        },
    ),
    "omni": Scenario(
        along(figure_of_eight(), yaw=OMNI_YAW),
        20.0,
        {
            "RMS error below 0.05 m away from the obstacle": lambda s, _: (
                s["rms_tracking_error_m"] < 0.05
            ),
            "heading within 0.1 rad after 3 s": lambda _, run: largest_turn(run) < 0.1,
            "no contact": lambda s, _: s["min_obstacle_clearance_m"] > 0.0,
        },
    ),
    "bicycle": Scenario(
        along(lane_change()),
        20.0,
        {
            "no contact": lambda s, _: s["min_obstacle_clearance_m"] > 0.0,
            "back on the path at the end, within 0.1 m": lambda s, _: (
                s["final_tracking_error_m"] < 0.1
            ),
        },
    ),
    "cartpole": Scenario(
        lambda _: Target({"cart": 0.0}, "m"),
        15.0,
        {"upright within 4 s, and until the end": lambda _, run: upright_since(run) < 4.0},
    ),
    "joint_space": Scenario(
        wave,
        WAYPOINTS[-1][0] + HOLD_S,
        {
            "at the last posture at the end, within 0.01 rad": lambda s, _: (
                s["final_tracking_error_rad"] < 0.01
            ),
        },
    ),
}


#: Change of a state that counts as a move.
MOVED = 0.01
#: Largest error of a joint at the end, in rad or m.
JOINT_TOLERANCE = 0.05
#: Extra time for a reference beyond that at full speed, in s, and as a share of its time.
EXTRA_S, EXTRA_SHARE = 8.0, 0.3
#: Duration of a drive without a reference, in s.
ALONE_S = 10.0


def scenario_of(config: Config, words: Sequence[str], duration_s: float | None) -> Scenario:
    """Return a scenario for any robot.

    Args:
        config: Configuration of the robot.
        words: The reference, as ``reference_of`` takes it.
        duration_s: Duration of the drive; None leaves enough time for the reference.

    Raises:
        UnfitReferenceError: The reference does not fit the robot.
    """
    reference = reference_of(config, words)
    demands: Demands = {"it moved": _moved}
    if config.robot.planar is not None and config.parameters.obstacles:
        demands["no contact"] = lambda s, _: (
            s["min_obstacle_clearance_m"] > 0.0
            or (f"{-s['min_obstacle_clearance_m']:.2g} m inside")
        )
    if reference is None:
        rests = config.robot.rests and config.robot.reference_message == "joint_trajectory"
        joints = config.robot.reference if rests else ()
        target = Target({name: 0.0 for name in joints if name in config.robot.states}, "")
        if target.values:
            demands |= _at_rest(target, ALONE_S)
        return Scenario(lambda _: target, duration_s or ALONE_S, demands)
    needed_s = reference.duration_s * (1.0 + EXTRA_SHARE) + EXTRA_S
    driven_s = duration_s or needed_s
    is_long_enough = driven_s >= reference.duration_s + 0.5 * EXTRA_S
    if isinstance(reference.target, PathReference):
        demands |= _on_path(config, reference.target, is_long_enough)
    elif reference.target.heading is None:
        demands |= _at_rest(reference.target, driven_s)
    elif is_long_enough:
        demands |= _at_goal(config, reference.target)
    return Scenario(lambda _: reference, driven_s, demands, until_arrival=duration_s is None)


def _moved(_: Summary, run: Run) -> Verdict:
    first, last = run.states[0][1], [values for _, values in run.states]
    change = {name: max(abs(values[name] - x) for values in last) for name, x in first.items()}
    name = max(change, key=lambda name: change[name])
    return change[name] > MOVED or f"{name} changed most, by {change[name]:.2g}"


def _on_path(config: Config, way: PathReference, to_its_end: bool) -> Demands:
    tolerance = config.parameters.xy_goal_tolerance

    def is_on_path(summary: Summary, _: Run) -> Verdict:
        away = summary["final_tracking_error_m"]
        return away <= tolerance or f"{away:.2f} m away from it"

    def is_at_end(summary: Summary, run: Run) -> Verdict:
        away = math.hypot(run.state("x")[-1] - way.goal[0], run.state("y")[-1] - way.goal[1])
        near = summary["final_tracking_error_m"]
        return away <= tolerance or f"{away:.2f} m before it, {near:.2f} m beside the path"

    if to_its_end:
        return {f"at the end of the path, within {tolerance:g} m": is_at_end}
    return {f"on the path when the time is over, within {tolerance:g} m": is_on_path}


def _at_goal(config: Config, goal: Target) -> Demands:
    tolerance, turned = config.parameters.xy_goal_tolerance, config.parameters.yaw_goal_tolerance

    def is_at_goal(summary: Summary, _: Run) -> Verdict:
        away = summary["final_tracking_error_m"]
        return away <= tolerance or f"{away:.2f} m away"

    def looks_there(_: Summary, run: Run) -> Verdict:
        error = abs(math.remainder(run.state("yaw")[-1] - (goal.heading or 0.0), math.tau))
        return error <= turned or f"{error:.2f} rad turned away"

    demands: Demands = {f"at the goal, within {tolerance:g} m": is_at_goal}
    if "yaw" in config.robot.states:
        demands[f"with its heading, within {turned:g} rad"] = looks_there
    return demands


def _at_rest(target: Target, driven_s: float) -> Demands:
    unit = f" {target.unit}" if target.unit else ""

    def is_there(_: Summary, run: Run) -> Verdict:
        error = tracking_error(run, target)
        away = 0.0 if error is None else float(error[-1])
        return away <= JOINT_TOLERANCE or f"{away:.3g}{unit} away"

    what = ", ".join(f"{name} at {value:.3g}" for name, value in list(target.values.items())[:3])
    more = " ..." if len(target.values) > 3 else ""
    if target.times_s is not None and driven_s < target.times_s[-1]:
        return {f"where it should be at the end, within {JOINT_TOLERANCE:g}{unit}": is_there}
    return {f"{what}{more} at the end, within {JOINT_TOLERANCE:g}{unit}": is_there}


def config_file(robot: str) -> Path:
    """Find the parameter file of a robot: in the source tree, or where it is installed."""
    source = Path(__file__).resolve().parents[3] / "config" / f"{robot}.yaml"
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    installed = [Path(p) / "share" / "mpc_banded" / "config" / source.name for p in prefixes]
    found = next((file for file in (source, *installed) if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"there is no {source.name} in {source.parent} or any share folder"
        )
    return found
