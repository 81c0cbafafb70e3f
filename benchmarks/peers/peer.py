# SPDX-License-Identifier: Apache-2.0
"""What every solver in the comparison has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.task import Task

#: Of all solvers that iterate until they have converged.
TOLERANCE = 1e-6
#: A solver with a fixed budget begins a run with so many solves of the first step at most: one
#: iteration from a cold start is no plan.
FIRST_SOLVES = 100


@dataclass(frozen=True)
class Outcome:
    """What a solver says of one step.

    Attributes:
        command: Input to apply, (nu,).
        iterations: By the solver's own count.
        converged: Whether it says so; False for those with a fixed budget.
        solver_s: Time by the solver's own clock; NaN where it has none.
    """

    command: np.ndarray
    iterations: int
    converged: bool
    solver_s: float = np.nan


@dataclass(frozen=True)
class Answer:
    """One step of a solver, as measured around it.

    Attributes:
        command: (nu,).
        wall_s: Wall time of the step, Python included.
        cpu_s: Processor time of the same.
        solver_s: By the solver's own clock; NaN without.
        iterations: By its own count.
        converged: Whether it says so.
        states: Plan (horizon + 1, nx).
        inputs: Plan (horizon, nu).
        error: What it raised, "" if nothing.
    """

    command: np.ndarray | None = None
    wall_s: float = np.nan
    cpu_s: float = np.nan
    solver_s: float = np.nan
    iterations: int = 0
    converged: bool = False
    states: np.ndarray | None = None
    inputs: np.ndarray | None = None
    error: str = ""


class Peer(ABC):
    """One solver, set up for one task by its constructor.

    Args:
        task: What to solve.
        folder: Where this peer may leave generated code; its own.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self.folder = folder

    @abstractmethod
    def reset(self) -> None:
        """Forget the warm start: the next step is the first of a run."""

    @abstractmethod
    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        """Solve for the measured state (nx,); parameters are name -> (horizon + 1, entries)."""

    @abstractmethod
    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        """States (horizon + 1, nx) and inputs (horizon, nu) of the last step; not timed."""


class ShootingPeer(Peer):
    """A peer that is given states and inputs to start from: those of the last step, shifted.

    The first step of a run starts where no input leads; as does mpc_banded.
    """

    def reset(self) -> None:
        self.states: np.ndarray | None = None
        self.inputs = np.zeros((self.task.horizon, self.task.nu))

    def start(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> None:
        """Set states and inputs to where this step's solve starts."""
        task = self.task
        if self.states is None:
            noise = np.random.default_rng(0).standard_normal(self.inputs.shape)
            self.inputs = 1e-3 * noise
            self.states = task.rollout(state, self.inputs, parameters)
            return
        beyond = 2.0 * self.states[-1] - self.states[-2]
        self.states = np.vstack([self.states[1:], beyond])
        self.states[0] = state
        self.inputs = np.vstack([self.inputs[1:], self.inputs[-1:]])

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.states is not None
        return self.states, self.inputs
