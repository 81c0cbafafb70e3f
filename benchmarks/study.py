# SPDX-License-Identifier: Apache-2.0
"""What the parts of the Hessian study share: timing, robots to study, tables and plots.

A part measures first and writes afterwards: ``measure(quick)`` returns figures, ``write(figures,
images)`` turns them into a chapter of the page. No figure of the text is typed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from mpc_banded.codegen.build import NoCompiler, c_compiler
from mpc_banded.codegen.cache import LibraryCache
from mpc_banded.control.build import build_problem
from mpc_banded.control.config import Config
from mpc_banded.control.joints import JointReference
from mpc_banded.control.path import PathReference
from mpc_banded.control.reference import stacked
from mpc_banded.ocp.compiled import compile_evaluator
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.evaluator import Evaluator
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.ocp.transcription import StageData, Transcription

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
ROBOTS = ("unicycle", "bicycle", "cartpole")

# Okabe and Ito's colours, told apart by everyone.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#666666", "#000000")
MARKERS = "osD^vPX*"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.markersize": 4,
}


def _compiled(transcription: Transcription) -> Evaluator:
    return compile_evaluator(EagerEvaluator(transcription), LibraryCache())


#: Ways to the package's derivatives; the last one that there is, is judged.
BACKENDS: dict[str, Callable[[Transcription], Evaluator]] = {
    "eager": EagerEvaluator,
    "compiled": _compiled,
}


def available_backends() -> list[str]:
    """Those that this machine has: compiled derivatives need a C compiler."""
    try:
        c_compiler()
    except NoCompiler:
        return ["eager"]
    return list(BACKENDS)


@dataclass(frozen=True)
class Verdict:
    """One idea, judged.

    Attributes:
        idea: As the text that started all put it, in a few words.
        holds: Whether the figures bear it out.
        reason: One sentence with the figure.
    """

    idea: str
    holds: bool
    reason: str

    def __str__(self) -> str:
        return f"- **{self.idea}: {'right' if self.holds else 'wrong'}.** {self.reason}"


@dataclass(frozen=True)
class Chapter:
    """A part of the page in Markdown, and what it says about the ideas."""

    title: str
    text: str
    verdicts: tuple[Verdict, ...]


# Time

Name = TypeVar("Name")
#: How long a turn of a candidate lasts at least.
TURN_S = 1e-3


def interleaved(
    candidates: Mapping[Name, Callable[[], object]], seconds: float, at_least: int = 3
) -> dict[Name, float]:
    """Median processor time of each candidate in seconds.

    All candidates have their turn in each round, so that what disturbs the machine disturbs all;
    what takes less than TURN_S is called several times in its turn. Rounds go on for ``seconds``;
    the first one warms up and does not count. Everything runs in one thread, so processor time
    is wall time on a machine that does nothing else.
    """
    samples: dict[Name, list[float]] = {name: [] for name in candidates}
    calls = dict.fromkeys(candidates, 1)
    began = time.process_time()
    rounds = 0
    while rounds <= at_least or time.process_time() - began < seconds:
        for name, candidate in candidates.items():
            if calls[name] > 1:
                candidate()  # what ran before it has emptied the caches
            start = time.process_time()
            for _ in range(calls[name]):
                candidate()
            samples[name].append((time.process_time() - start) / calls[name])
        if not rounds:
            calls = {name: int(np.clip(TURN_S / t[0], 1, 50)) for name, t in samples.items()}
        rounds += 1
        if rounds > 400:
            break
    return {name: float(np.median(times[1:])) for name, times in samples.items()}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x, by least squares; NaN for a single point, or with zeros."""
    if len(x) < 2 or min(y) <= 0.0:
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# Robots


@dataclass(frozen=True)
class Task:
    """A robot's problem at one moment.

    Attributes:
        name: Of the robot.
        transcription: Its problem, discrete.
        data: State, parameters and weights.
    """

    name: str
    transcription: Transcription
    data: StageData

    @cached_property
    def start(self) -> np.ndarray:
        """Where a cold solve begins, (n,): no input but a little noise, and where that leads."""
        problem = self.transcription.problem
        noise = np.random.default_rng(0).standard_normal((problem.horizon, problem.nu))
        return self.transcription.pack(self.transcription.rollout(1e-3 * noise, self.data))

    @property
    def coasting(self) -> np.ndarray:
        """The bicycle going straight on at its speed, (n,): at hand for any horizon."""
        problem, state = self.transcription.problem, self.data.initial_state.numpy()
        states = np.tile(state, (problem.horizon + 1, 1))
        states[:, 0] += state[3] * problem.dt * np.arange(problem.horizon + 1)
        inputs = np.zeros((problem.horizon, problem.nu))
        return self.transcription.pack(Trajectory(states, inputs, problem.dt))


#: Where each robot stands and what it is to follow: the hard moments of the demonstrations.
_STATES = {
    "unicycle": [0.0, 0.5, 0.0, 0.0, 0.0],
    "bicycle": [12.0, 0.5, 0.0, 5.0],
    "cartpole": [0.0, np.pi, 0.0, 0.0],
}


def task(robot: str, horizon: int = 0, **changes: Any) -> Task:
    """A robot in front of its obstacle, or with its pole hanging down.

    Args:
        robot: One of ROBOTS; the parameters are those of its file in config/.
        horizon: Number of intervals; 0 takes the file's.
        changes: Other parameters of the file.
    """
    overrides = {"horizon": horizon} if horizon else {}
    config = Config.load(ROOT / "config" / f"{robot}.yaml", {**overrides, **changes})
    problem = build_problem(config)
    transcription = Transcription(
        problem,
        config.parameters.transcription or config.robot.transcription,
        config.parameters.substeps,
    )
    state = np.array(_STATES[robot])
    times = np.arange(problem.horizon + 1) * problem.dt
    if config.robot.reference_message == "path":
        along = np.linspace(
            0.0, 10.0 + config.parameters.reference_speed * times[-1] + state[0], 500
        )
        reference: Any = PathReference(
            np.column_stack([along, np.zeros(500)]), config.parameters.reference_speed
        )
    else:
        reference = JointReference(dict.fromkeys(config.robot.reference, 0.0))
    columns = reference.columns(dict(zip(config.robot.states, state, strict=True)), times)
    parameters: dict[str, Any] = dict(config.parameters.model)
    parameters["reference"] = stacked(columns, config.robot.reference, times)
    if config.robot.obstacles:
        parameters["obstacles"] = config.obstacles()
    data = transcription.stage_data(state, parameters, problem.weights)
    return Task(robot, transcription, data)


# Text and pictures


_THIN = "\N{NO-BREAK SPACE}"


def number(value: float | int, digits: int = 2) -> str:
    """A figure as one reads it: few digits, no needless exponent."""
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", _THIN)
    if not np.isfinite(value):
        return "–"
    if value == 0.0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
        return f"{value:,.{decimals}f}".replace(",", _THIN)
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is left-aligned, numbers are formatted."""

    def cell(value: object) -> str:
        return number(value) if isinstance(value, int | float | np.number) else str(value)

    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(name: str, caption: str) -> str:
    """The Markdown of a plot that ``axes`` has saved."""
    return f"![{caption}](images/{name}.png)"


@contextmanager
def axes(images: Path, name: str, columns: int, rows: int = 1) -> Iterator[list[Axes]]:
    """Axes in rows, saved as ``name``.png when done."""
    with matplotlib.rc_context(STYLE):
        size = (4.4 * columns + 0.4, 3.4 * rows + 0.2)
        picture, grid = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False
        )
        yield list(grid.flat)
        images.mkdir(parents=True, exist_ok=True)
        picture.savefig(images / f"{name}.png", dpi=130)
        plt.close(picture)


def line(at: Axes, index: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
    """One curve with markers."""
    at.plot(x, y, MARKERS[index] + "-", color=COLORS[index], label=label, lw=1.5)


def plain(axis: Axis) -> None:
    """Logarithmic, with 1, 2, 5, 10, ... written out: for a range of a decade or two."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def run_alone(measure: Callable[[bool], Any], write: Callable[[Any, Path], Chapter]) -> None:
    """The command line of a part by itself: print its chapter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it out")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the plots")
    arguments = parser.parse_args()
    settle()
    chapter = write(measure(arguments.quick), arguments.images)
    print(f"## {chapter.title}\n\n{chapter.text}\n")
    print(*chapter.verdicts, sep="\n")


def settle() -> None:
    """One thread on one core: what is compared must not depend on how well it is spread."""
    if not {os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")} <= {"1"}:
        raise SystemExit("set OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1, as make does")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
