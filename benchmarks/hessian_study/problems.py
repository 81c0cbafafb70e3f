# SPDX-License-Identifier: Apache-2.0
"""The problems of the study: built-in robots in the hard moments of their demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.pages import ROOT
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
from mpc_banded.ocp.problem import Inequality, Parameters, Trajectory
from mpc_banded.ocp.transcription import StageData, Transcription

ROBOTS = ("unicycle", "bicycle", "cartpole")


def _compiled(transcription: Transcription) -> Evaluator:
    return compile_evaluator(EagerEvaluator(transcription), LibraryCache())


#: Derivatives of the package by name.
BACKENDS: dict[str, Callable[[Transcription], Evaluator]] = {
    "eager": EagerEvaluator,
    "compiled": _compiled,
}


def available_backends() -> list[str]:
    """Names of the backends that work here; compiled derivatives need a C compiler."""
    try:
        c_compiler()
    except NoCompiler:
        return ["eager"]
    return list(BACKENDS)


def verdict(holds: bool) -> str:
    """How the page says whether an idea holds."""
    return "right" if holds else "wrong"


@dataclass(frozen=True)
class Task:
    """A robot's problem at one moment.

    Attributes:
        name: Name of the robot.
        transcription: Discrete problem.
        data: State, parameters and weights.
    """

    name: str
    transcription: Transcription
    data: StageData

    @cached_property
    def start(self) -> np.ndarray:
        """Cold start (n,): inputs that are a little noise, and the states that they lead to."""
        problem = self.transcription.problem
        noise = np.random.default_rng(0).standard_normal((problem.horizon, problem.nu))
        return self.transcription.pack(self.transcription.rollout(1e-3 * noise, self.data))

    @property
    def coasting(self) -> np.ndarray:
        """Bicycle that goes straight on at its speed, (n,); quick to make for any horizon."""
        problem, state = self.transcription.problem, self.data.initial_state.numpy()
        states = np.tile(state, (problem.horizon + 1, 1))
        states[:, 0] += state[3] * problem.dt * np.arange(problem.horizon + 1)
        inputs = np.zeros((problem.horizon, problem.nu))
        return self.transcription.pack(Trajectory(states, inputs, problem.dt))


#: State of each robot.
_STATES = {
    "unicycle": [0.0, 0.5, 0.0, 0.0, 0.0],
    "bicycle": [12.0, 0.5, 0.0, 5.0],
    "cartpole": [0.0, np.pi, 0.0, 0.0],
}


def task(robot: str, horizon: int = 0, **changes: Any) -> Task:
    """A robot in front of its obstacle, or with its pole hanging down.

    Args:
        robot: One of ROBOTS; the parameters are those of its file in config/.
        horizon: Number of intervals; 0 for that of the file.
        changes: Changes to the parameters of the file.
    """
    overrides = {"horizon": horizon} if horizon else {}
    config = Config.load(ROOT / "config" / f"{robot}.yaml", {**overrides, **changes})
    problem = build_problem(config)
    values = config.parameters
    scheme = values.transcription or config.robot.transcription
    transcription = Transcription(problem, scheme, values.substeps)
    state = np.array(_STATES[robot])
    times = np.arange(problem.horizon + 1) * problem.dt
    if config.robot.reference_message == "path":
        along = np.linspace(0.0, 10.0 + values.reference_speed * times[-1] + state[0], 500)
        reference: Any = PathReference(
            np.column_stack([along, np.zeros(500)]), values.reference_speed
        )
    else:
        reference = JointReference(dict.fromkeys(config.robot.reference, 0.0))
    columns = reference.columns(dict(zip(config.robot.states, state, strict=True)), times)
    parameters: dict[str, Any] = dict(values.model)
    parameters["reference"] = stacked(columns, config.robot.reference, times)
    if config.robot.obstacles:
        parameters["obstacles"] = config.obstacles()
    data = transcription.stage_data(state, parameters, problem.weights)
    return Task(robot, transcription, data)


def without_inequalities(task: Task, softness: float = 0.0) -> Task:
    """The same robot and costs, constrained by its dynamics alone.

    Args:
        task: A task whose inequalities do not depend on inputs.
        softness: If positive, ``softness / 2`` times the squares of all violations of bounds and
            inequalities is added to the costs.
    """
    problem = task.transcription.problem
    stage, terminal = dict(problem.stage_costs), dict(problem.terminal_costs)
    weights = dict(problem.weights)
    if softness:
        of_inputs = _outside(*problem.input_bounds)
        of_states, rows = _outside(*problem.state_bounds), problem.inequalities.values()
        stage["violation"] = lambda x, u, p: of_inputs(u) + of_states(x) + _missing(rows, x, u, p)
        terminal["final violation"] = lambda x, p: of_states(x) + _missing(rows, x, None, p)
        weights |= {"violation": 0.5 * softness, "final violation": 0.5 * softness}
    freed = replace(
        problem,
        stage_costs=stage,
        terminal_costs=terminal,
        weights=weights,
        inequalities={},
        penalties={},
        input_bounds=(-np.inf, np.inf),
        state_bounds=(-np.inf, np.inf),
    )
    transcription = Transcription(freed, task.transcription.scheme, task.transcription.substeps)
    data = transcription.stage_data(
        task.data.initial_state.numpy(), task.data.parameters, freed.weights
    )
    return Task(task.name, transcription, data)


def _outside(lower: np.ndarray, upper: np.ndarray) -> Callable[[Tensor], Tensor]:
    low, high = torch.from_numpy(lower), torch.from_numpy(upper)

    def squares(values: Tensor) -> Tensor:
        return (torch.relu(low - values) ** 2 + torch.relu(values - high) ** 2).sum(dim=-1)

    return squares


def _missing(rows: Iterable[Inequality], x: Tensor, u: Tensor | None, p: Parameters) -> Tensor:
    total = x.new_zeros(x.shape[:-1])
    for h in rows:
        total = total + (torch.relu(-h(x, u, p)) ** 2).sum(dim=-1)
    return total
