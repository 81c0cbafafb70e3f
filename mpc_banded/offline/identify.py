# SPDX-License-Identifier: Apache-2.0
"""Identifies delay, lag and gain from a recording, and writes them into a parameter file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from mpc_banded.control.config import Config
from mpc_banded.offline.lag import Drive, Estimate, Fit, Model, Motion, NothingToFind, fit
from mpc_banded.offline.prediction import Prediction, prediction_errors
from mpc_banded.offline.recorded_motion import Recorded
from mpc_banded.robots import Axis, Robot

#: Window over which the rate of a position is taken, in s. The model's rate is a mean over the
#: same window, so its length adds no error: long ones average noise, short ones resolve more.
WINDOW_S = 0.2
#: Shortest lag that is written into a parameter file, in s.
SHORTEST_LAG_S = 0.01


@dataclass(frozen=True)
class Found:
    """The result of one axis.

    Attributes:
        name: Name of the axis.
        axis: Its description by the robot.
        fit: Estimates; None if the data allow none.
        verdict: Result in words.
        predictions: Errors of both models, by horizon.
        before, after: The model of the parameter file, and the identified one.
        updates: Parameter -> new value, from this axis alone.
    """

    name: str
    axis: Axis
    fit: Fit | None
    verdict: str
    predictions: list[Prediction] = field(default_factory=list)
    before: Model | None = None
    after: Model | None = None
    updates: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def significant(self) -> bool:
        """Whether the motion follows the command."""
        return self.fit is not None and self.fit.significant


def axes_of(robot: Robot) -> dict[str, Axis]:
    """Return the axes of a robot: its own, or those that follow from the names of its commands."""
    if robot.axes:
        return dict(robot.axes)
    found = {}
    for name in robot.command_names:
        driven = [p for p, rates in robot.velocities.items() if rates == (name,)]
        if name == "w" and "yaw" in robot.states:
            driven = ["yaw"]
        if name in robot.states:
            found[name] = Axis(_itself(name), moves=name)
        elif len(driven) == 1:
            found[name] = Axis(_itself(name), moves=driven[0], is_rate=True)
    return found


def _itself(name: str) -> Any:
    def drive(command: Mapping[str, float], model: Mapping[str, float]) -> float:
        del model
        return command[name]

    return drive


def identify(config: Config, recorded: Recorded) -> list[Found]:
    """Identify each axis of the robot from a recording."""
    return [_axis(config, recorded, *item) for item in axes_of(config.robot).items()]


def _axis(config: Config, recorded: Recorded, name: str, axis: Axis) -> Found:
    model = config.parameters.model
    times, values = recorded.states.get(axis.moves or name, (np.zeros(0), np.zeros(0)))
    try:
        drive, motion = drive_and_motion(config, recorded, name, axis)
        fitted = fit(drive, motion)
    except NothingToFind as error:
        return Found(name, axis, None, str(error))
    before = Model(
        config.parameters.actuation_delay,
        model[axis.lag] if axis.lag else config.parameters.command_lead,
        1.0,
    )
    after = Model(fitted.delay.value, fitted.lag.value, fitted.gain.value, fitted.bias)
    errors = prediction_errors(drive, times, values, axis.is_rate, before, after)
    updates: dict[str, Estimate] = {}
    if fitted.significant:
        updates["actuation_delay"] = fitted.delay
        lag = fitted.lag
        if axis.lag:  # a model divides by it
            shortest = max(lag.value, SHORTEST_LAG_S)
            updates[f"model.{axis.lag}"] = Estimate(shortest, lag.lower, max(lag.upper, shortest))
        else:
            updates["command_lead"] = lag
        if axis.gain and 0.0 < fitted.gain.lower:
            updates[f"model.{axis.gain}"] = _constant(recorded, axis, model, fitted.gain)
    return Found(name, axis, fitted, _verdict(fitted), errors, before, after, updates)


def drive_and_motion(
    config: Config, recorded: Recorded, name: str, axis: Axis
) -> tuple[Drive, Motion]:
    """Return the values that the commands ask of an axis, and those measured.

    Raises:
        NothingToFind: There are no commands, or not the same values in all of them.
    """
    drive = _drive(recorded, axis, config.parameters.model)
    times, values = recorded.states.get(axis.moves or name, (np.zeros(0), np.zeros(0)))
    if axis.is_rate and len(times):
        return drive, Motion.of_position(times, values, WINDOW_S)
    return drive, Motion(times, values)


def _drive(recorded: Recorded, axis: Axis, model: Mapping[str, float]) -> Drive:
    names = list(recorded.commands)
    if not names:
        raise NothingToFind("there are no commands")
    if len({len(times) for times, _ in recorded.commands.values()}) > 1:
        raise NothingToFind("the commands do not all carry the same values")
    columns = np.column_stack([recorded.commands[name][1] for name in names])
    values = [axis.drive(dict(zip(names, row, strict=True)), model) for row in columns.tolist()]
    return Drive(recorded.commands[names[0]][0], np.array(values, dtype=np.float64))


def _constant(
    recorded: Recorded, axis: Axis, model: Mapping[str, float], gain: Estimate
) -> Estimate:
    """Return the model's constant for which the gain is one; the drive is a power of it."""
    value, bigger = model[axis.gain], 1.01 * model[axis.gain]
    drive = _drive(recorded, axis, model).values
    scaled = _drive(recorded, axis, {**model, axis.gain: bigger}).values
    power = math.log(float(scaled @ drive) / float(drive @ drive)) / math.log(1.01)
    ends = sorted(value * end ** (1.0 / power) for end in (gain.lower, gain.upper))
    return Estimate(value * gain.value ** (1.0 / power), *ends)


def _verdict(fitted: Fit) -> str:
    if not fitted.significant:
        return (
            f"no significant relation: {100 * fitted.chance:.0f} % of arbitrary shifts in time "
            "fit as well, or the gain may be zero"
        )
    if fitted.delay.upper - fitted.delay.lower > 0.3:
        return "follows the command; the delay is uncertain, more steps would help"
    return "follows the command"


def combined(found: list[Found]) -> dict[str, Estimate]:
    """Return new values of all parameters; several axes are weighted by their certainty."""
    said: dict[str, list[Estimate]] = {}
    for one in found:
        for key, estimate in one.updates.items():
            said.setdefault(key, []).append(estimate)
    return {key: _mean(estimates) for key, estimates in said.items()}


def _mean(estimates: list[Estimate]) -> Estimate:
    if len(estimates) == 1:
        return estimates[0]
    halves = np.array([max(e.upper - e.value, 1e-6) for e in estimates])
    weights = halves**-2 / (halves**-2).sum()
    value = float(weights @ [e.value for e in estimates])
    # If the axes differ by more than their intervals allow, the interval covers them all.
    apart = max(abs(e.value - value) - e.upper + e.value for e in estimates)
    if apart > 0.0:
        return Estimate(value, min(e.value for e in estimates), max(e.value for e in estimates))
    half = float((halves**-2).sum() ** -0.5)
    return Estimate(value, max(0.0, value - half), value + half)


def write_parameters(source: Path, target: Path, updates: Mapping[str, Estimate]) -> None:
    """Copy a parameter file with some values replaced; comments and order stay.

    Args:
        source: The parameter file.
        target: The new one; it must load.
        updates: Parameter -> estimate.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 10_000
    document = yaml.load(source.read_text(encoding="utf-8"))
    parameters = next(iter(document.values()))["ros__parameters"]
    for key, estimate in updates.items():
        place, last = parameters, key
        while last not in place and "." in last:
            section, last = last.split(".", 1)
            place = place.setdefault(section, {}) if section not in place else place[section]
        is_new = last not in place
        place[last] = rounded(estimate)
        commented = getattr(place, "ca", None)
        if commented is not None and (is_new or not commented.items.get(last)):
            place.yaml_add_eol_comment(
                f"identified, 95 %: {estimate.lower:.3g} to {estimate.upper:.3g}", last
            )
    draft = target.with_name(f".{target.name}.part")
    with draft.open("w", encoding="utf-8") as stream:
        yaml.dump(document, stream)
    Config.load(draft)
    draft.replace(target)


def rounded(estimate: Estimate) -> float:
    """Round a value to about a hundredth of its interval."""
    width = estimate.upper - estimate.lower
    digits = 1 - math.floor(math.log10(max(width, 1e-12)))
    return round(estimate.value, digits)
