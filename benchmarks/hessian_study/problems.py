# SPDX-License-Identifier: Apache-2.0
"""The problem of the study: the built-in bicycle on a long straight road."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.pages import ROOT
from mpc_banded.codegen.build import NoCompiler, c_compiler
from mpc_banded.codegen.cache import LibraryCache
from mpc_banded.control.build import build_problem
from mpc_banded.control.config import Config
from mpc_banded.control.obstacles_ahead import UNUSED
from mpc_banded.control.path import PathReference
from mpc_banded.control.reference import stacked
from mpc_banded.ocp.compiled import compile_evaluator
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.evaluator import Evaluator
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.ocp.transcription import StageData, Transcription

#: Position, yaw and speed of the bicycle.
_STATE = np.array([12.0, 0.5, 0.0, 5.0])


def _compiled(transcription: Transcription) -> Evaluator:
    return compile_evaluator(EagerEvaluator(transcription), LibraryCache())


#: Evaluators of the package by name.
EVALUATORS: dict[str, Callable[[Transcription], Evaluator]] = {
    "eager": EagerEvaluator,
    "compiled": _compiled,
}


def available_evaluators() -> list[str]:
    """Names of the evaluators that work here; compiled ones need a C compiler."""
    try:
        c_compiler()
    except NoCompiler:
        return ["eager"]
    return list(EVALUATORS)


def verdict(holds: bool) -> str:
    """How the page says whether an idea holds."""
    return "right" if holds else "wrong"


@dataclass(frozen=True)
class Task:
    """The bicycle's problem at one moment.

    Attributes:
        transcription: Discrete problem.
        data: State, parameters and weights.
    """

    transcription: Transcription
    data: StageData

    @property
    def coasting(self) -> np.ndarray:
        """Bicycle that goes straight on at its speed, (n,); quick to make for any horizon."""
        problem, state = self.transcription.problem, self.data.initial_state.numpy()
        states = np.tile(state, (problem.horizon + 1, 1))
        states[:, 0] += state[3] * problem.dt * np.arange(problem.horizon + 1)
        inputs = np.zeros((problem.horizon, problem.nu))
        return self.transcription.pack(Trajectory(states, inputs, problem.dt))


def bicycle(horizon: int, **changes: Any) -> Task:
    """The bicycle in front of its obstacle.

    Args:
        horizon: Number of intervals.
        changes: Changes to the parameters of its file in config/.
    """
    config = Config.load(ROOT / "config" / "bicycle.yaml", {"horizon": horizon, **changes})
    problem, values, robot = build_problem(config), config.parameters, config.robot
    scheme = values.transcription or robot.transcription
    transcription = Transcription(problem, scheme, values.substeps)
    times = np.arange(horizon + 1) * problem.dt
    along = np.linspace(0.0, 10.0 + values.reference_speed * times[-1] + _STATE[0], 500)
    road = PathReference(np.column_stack([along, np.zeros(500)]), values.reference_speed)
    columns = road.columns(dict(zip(robot.states, _STATE, strict=True)), times)
    parameters: dict[str, Any] = dict(values.model)
    parameters["reference"] = stacked(columns, robot.reference, times)
    unused = np.tile(UNUSED, (robot.obstacles, 1))
    parameters["obstacles"] = np.vstack([config.obstacles(), unused])[: robot.obstacles]
    parameters["footprint"] = config.footprint.table
    return Task(transcription, transcription.stage_data(_STATE, parameters, problem.weights))
