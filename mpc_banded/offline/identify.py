# SPDX-License-Identifier: Apache-2.0
"""What a recording says of delay, lag and gain, written into a copy of the parameter file."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.state import StateEstimate
from mpc_banded.ocp.comb import BandwidthError
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.lag import (
    Drive,
    Estimate,
    Fit,
    Model,
    Motion,
    NothingToFind,
    Prediction,
    Response,
    fit,
    prediction_errors,
)
from mpc_banded.robots import Axis, Robot

matplotlib.use("Agg")
from matplotlib import pyplot as plt

#: Over how long the rate of a position is taken, in s. The model's rate is a mean over the same
#: time, so no window makes the result wrong; long ones average noise, short ones tell more.
WINDOW_S = 0.2
#: Shortest lag that is written into a model, in s.
SHORTEST_LAG_S = 0.01
#: How much of the recording a plot shows, in s.
SHOWN_S = 20.0
Series = tuple[np.ndarray, np.ndarray]


@dataclass
class Recorded:
    """Commands and states of a recording by name, each as times in s and values.

    Attributes:
        commands, states: Name -> (K,) times and (K,) values.
        rejected: Why messages were rejected, and how many.
    """

    commands: dict[str, Series] = field(default_factory=dict)
    states: dict[str, Series] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Found:
    """One axis.

    Attributes:
        name: Of the axis.
        axis: What it is.
        fit: None where there is nothing to be found.
        verdict: In words.
        predictions: Errors before and after, by horizon.
        before, after: The models compared.
        updates: Parameter -> new value, of this axis alone.
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
    """The axes of a robot: its own, or those that the names of its commands tell."""
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


def read(path: Path, config: Config, topics: Mapping[str, str]) -> Recorded:
    """Commands and accepted states of a bag.

    Args:
        path: Of the bag.
        config: Of the robot.
        topics: Relative name of a topic -> its name in the bag, where they differ.

    Raises:
        BagError: The bag cannot be read, or lacks a topic.
    """
    recorded = Recorded()
    states: dict[str, list[tuple[float, float]]] = {name: [] for name in config.robot.states}
    commands: dict[str, list[tuple[float, float]]] = {}
    estimate = StateEstimate(config)
    with Bag(path) as bag:
        by_name = {
            bag.need(t.topic, t.type, topics.get(t.topic)): t for t in config.robot.state_topics
        }
        command = config.robot.command_topic
        heard = bag.need(command.topic, command.type, topics.get(command.topic))

        def note_bad(topic: str, reason: str) -> None:
            recorded.rejected[f"{topic} is {reason}"] += 1

        for topic, time_ns, message in bag.messages([*by_name, heard], note_bad):
            if topic == heard:
                for name, value in _command(command, message, recorded).items():
                    commands.setdefault(name, []).append((1e-9 * (time_ns - bag.start_ns), value))
                continue
            part = by_name[topic]
            if why := estimate.take(part, message, time_ns):
                recorded.rejected[_kind_of(why)] += 1
            elif estimate.state is not None:
                at_s = 1e-9 * (estimate.measured_ns(part.topic) - bag.start_ns)
                for name in part.read(message):
                    if name in states:
                        value = estimate.state[config.robot.states.index(name)]
                        states[name].append((at_s, float(value)))
    recorded.commands = {name: _series(pairs) for name, pairs in commands.items()}
    recorded.states = {name: _series(pairs) for name, pairs in states.items()}
    return recorded


def _command(topic: Any, message: Any, recorded: Recorded) -> dict[str, float]:
    try:
        values = {name: float(value) for name, value in topic.read(message).items()}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        recorded.rejected[f"{topic.topic} is no command: {error}"] += 1
        return {}
    if not np.isfinite(list(values.values())).all():
        recorded.rejected[f"{topic.topic} is not finite"] += 1
        return {}
    return values


def _series(pairs: list[tuple[float, float]]) -> Series:
    table = np.array(sorted(pairs, key=lambda pair: pair[0])).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _kind_of(why: str) -> str:
    """A reason without its figures, so that reasons can be counted."""
    return re.sub(r"\b\d[\d.]*(e[-+]\d+)?", "…", why.split("; ")[0])


def identify(config: Config, recorded: Recorded) -> list[Found]:
    """What the recording says of each axis of the robot."""
    return [_axis(config, recorded, *item) for item in axes_of(config.robot).items()]


def _axis(config: Config, recorded: Recorded, name: str, axis: Axis) -> Found:
    model = config.parameters.model
    times, values = recorded.states.get(axis.moves or name, (np.zeros(0), np.zeros(0)))
    try:
        drive = _drive(recorded, axis, model)
        motion = Motion(times, values)
        if axis.is_rate and len(times):
            motion = Motion.of_position(times, values, WINDOW_S)
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
    """The model's constant that makes the gain one: the drive is a power of it."""
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
        return "follows the command; the delay is known poorly, more steps would help"
    return "follows the command"


def combined(found: list[Found]) -> dict[str, Estimate]:
    """New values of all parameters; what several axes say is weighed by what they know."""
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
    # Where the axes differ by more than they should, the interval holds them all.
    apart = max(abs(e.value - value) - e.upper + e.value for e in estimates)
    if apart > 0.0:
        return Estimate(value, min(e.value for e in estimates), max(e.value for e in estimates))
    half = float((halves**-2).sum() ** -0.5)
    return Estimate(value, max(0.0, value - half), value + half)


def write_parameters(source: Path, target: Path, updates: Mapping[str, Estimate]) -> None:
    """Copy a parameter file with some values replaced; comments, order and the rest stay.

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
        place[last] = _rounded(estimate)
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


def _rounded(estimate: Estimate) -> float:
    """The value to a hundredth of its interval or so."""
    width = estimate.upper - estimate.lower
    digits = 1 - math.floor(math.log10(max(width, 1e-12)))
    return round(estimate.value, digits)


def report(found: list[Found], recorded: Recorded) -> dict[str, Any]:
    """All figures, for JSON."""
    return {
        "axes": {
            one.name: {
                "verdict": one.verdict,
                "significant": one.significant,
                "fit": asdict(one.fit) if one.fit else None,
                "prediction_error": [asdict(p) for p in one.predictions],
            }
            for one in found
        },
        "parameters": {key: asdict(e) for key, e in combined(found).items()},
        "rejected": dict(recorded.rejected),
    }


def table(found: list[Found]) -> Table:
    """The figures for people."""
    grid = Table(title="From command to motion, with 95 % intervals", title_justify="left")
    for head in ("axis", "delay [s]", "lag [s]", "sum [s]", "gain", "R", "error after/before"):
        grid.add_column(head)
    for one in found:
        if one.fit is None:
            continue
        ratios = [f"{p.horizon_s:g} s: {p.ratio.value:.2f}" for p in one.predictions]
        grid.add_row(
            one.name,
            *(
                f"{e.value:.3f}\n{e.lower:.3f} to {e.upper:.3f}"
                for e in (one.fit.delay, one.fit.lag, one.fit.total)
            ),
            f"{one.fit.gain.value:.3g}\n{one.fit.gain.lower:.3g} to {one.fit.gain.upper:.3g}",
            f"{one.fit.correlation:.2f}",
            "\n".join(ratios),
        )
    return grid


def plot(found: list[Found], config: Config, recorded: Recorded, file: Path) -> None:
    """Measured and modelled motion where it moves most, and the prediction errors."""
    shown = [(one, one.after) for one in found if one.after is not None]
    if not shown:
        return
    figure, grid = plt.subplots(
        len(shown),
        2,
        figsize=(12, 3.2 * len(shown)),
        squeeze=False,
        layout="constrained",
        width_ratios=[2.2, 1],
    )
    for (left, right), (one, after) in zip(grid, shown, strict=True):
        drive = _drive(recorded, one.axis, config.parameters.model)
        times, values = recorded.states[one.axis.moves or one.name]
        motion = Motion(times, values)
        if one.axis.is_rate:
            motion = Motion.of_position(times, values, WINDOW_S)
        response = Response(drive, float(motion.times[-1]))
        model = after.gain * response.at(motion, after.delay, after.lag)
        begin = _liveliest(drive, motion)
        left.plot(motion.times, motion.values, ".", ms=5, color="#374151", label="measured")
        left.plot(motion.times, model + after.bias, color="#1f5fa8", label="model")
        left.step(
            drive.times,
            after.gain * drive.values + after.bias,
            where="post",
            color="#d97706",
            lw=1,
            label="command x gain",
        )
        left.set_xlim(begin, begin + SHOWN_S)
        seen = (motion.times >= begin) & (motion.times <= begin + SHOWN_S)
        low, high = np.percentile(np.append(motion.values[seen], model[seen]), [0.5, 99.5])
        left.set_ylim(low - 0.3 * (high - low) - 1e-9, high + 0.3 * (high - low) + 1e-9)
        left.set_title(f"{one.name}: {one.verdict}", loc="left", fontsize=10)
        left.set_xlabel("time [s]")
        left.legend(loc="upper right", ncols=3, frameon=False, fontsize=8)
        horizons = [p.horizon_s for p in one.predictions]
        for label, colour in (("before", "#9aa3ad"), ("after", "#1f5fa8")):
            errors = [getattr(p, label) for p in one.predictions]
            right.plot(horizons, [e.value for e in errors], "o-", color=colour, label=label)
            bounds = [e.lower for e in errors], [e.upper for e in errors]
            right.fill_between(horizons, *bounds, color=colour, alpha=0.25, lw=0)
        right.set_title("RMS prediction error over the horizon", loc="left", fontsize=10)
        right.set_xlabel("horizon [s]")
        right.set_ylim(0.0, None)
        right.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _liveliest(drive: Drive, motion: Motion) -> float:
    """Beginning of the stretch in which the command changes most."""
    begins = np.arange(motion.times[0], max(motion.times[-1] - SHOWN_S, motion.times[0] + 1), 1.0)
    change = np.abs(np.diff(drive.values, prepend=drive.values[0]))
    total = np.concatenate([[0.0], np.cumsum(change)])
    ends = np.searchsorted(drive.times, [begins, begins + SHOWN_S])
    return float(begins[np.argmax(total[ends[1]] - total[ends[0]])])


def run_identify(bag: Path, params: Path, output: Path | None, topics: Mapping[str, str]) -> int:
    """Identify, print the table, and write the new parameter file, its figures and a plot.

    Args:
        bag: Folder or file.
        params: The parameter file.
        output: The new one; None puts it beside the old one.
        topics: Relative name -> name in the bag.

    Returns:
        0 where something was written, 1 where no motion follows the command, 2 where the bag or
        the parameters cannot be used.
    """
    try:
        return _run(bag, params, output, topics, Console())
    except (BagError, ConfigError, BandwidthError, OSError) as error:
        print(f"mpc_banded identify: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(
    bag: Path, params: Path, output: Path | None, topics: Mapping[str, str], console: Console
) -> int:
    output = output or params.with_name(f"{params.stem}.identified{params.suffix}")
    if output.exists() and output.samefile(params):
        raise ConfigError(f"output is {output}, the parameter file itself; name another file")
    config = Config.load(params)
    recorded = read(bag, config, topics)
    found = identify(config, recorded)
    if not found:
        console.print(f"{config.robot.name} names no axis, and its commands tell none")
        return 1
    if any(one.fit for one in found):
        console.print(table(found))
    for one in found:
        console.print(f"{one.name}: {one.verdict}", highlight=False, markup=False)
    for why, count in recorded.rejected.most_common():
        console.print(f"{count} messages rejected: {why}", highlight=False, markup=False)
    updates = combined(found)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(
        json.dumps(report(found, recorded), indent=2) + "\n", encoding="utf-8"
    )
    plot(found, config, recorded, output.with_suffix(".png"))
    if not updates:
        console.print("nothing is known well enough to be written")
        return 1
    write_parameters(params, output, updates)
    for key, estimate in updates.items():
        console.print(
            f"{key}: {config.values[key]:.4g} -> {_rounded(estimate):.4g} "
            f"({estimate.lower:.3g} to {estimate.upper:.3g})",
            highlight=False,
        )
    console.print(f"written to {output}, with .json and .png beside it", highlight=False)
    return 0
