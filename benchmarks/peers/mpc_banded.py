# SPDX-License-Identifier: Apache-2.0
"""This package, with its defaults."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

import mpc_banded as mb
from benchmarks.peers.peer import TOLERANCE, Outcome, Peer
from benchmarks.peers.torch_terms import TORCH
from benchmarks.tasks import Task
from mpc_banded.cache import LibraryCache


def problem(task: Task) -> mb.OptimalControlProblem:
    """The task as the package takes it."""
    inequality = task.inequality
    return mb.OptimalControlProblem(
        nx=task.nx,
        nu=task.nu,
        horizon=task.horizon,
        dt=task.dt,
        dynamics=lambda x, u, p: task.dynamics(TORCH, x, u, p),
        stage_costs={"stage": lambda x, u, p: task.stage_cost(TORCH, x, u, p)},
        terminal_costs={"terminal": lambda x, p: task.terminal_cost(TORCH, x, p)},
        input_bounds=task.input_bounds,
        state_bounds=task.state_bounds,
        inequalities={"h": lambda x, u, p: inequality(TORCH, x, p)} if inequality else {},
        penalties={"h": task.penalty} if inequality else {},
        parameters={name: (size,) for name, size in task.parameters.items()},
    )


class MpcBanded(Peer):
    """The receding horizon controller.

    Args:
        task: What to solve.
        folder: Unused.
        iterations: Newton iterations a step at most; 0 for the package's limit.
        cache: "" drives on eager derivatives; "cold" compiles them into an empty cache, "warm"
            finds them there (the entry with the cold cache is set up first).
    """

    def __init__(self, task: Task, folder: Path, iterations: int = 0, cache: str = "") -> None:
        super().__init__(task, folder)
        limit = {"max_iterations": iterations} if iterations else {}
        options = mb.SolverOptions(kkt_tolerance=TOLERANCE, defect_tolerance=TOLERANCE, **limit)
        self.controller = mb.RecedingHorizonController(
            problem(task), "rk4", task.substeps, options
        )
        if cache:
            libraries = folder.parent / "mpc_banded-cache" / task.name
            if cache == "cold":
                shutil.rmtree(libraries, ignore_errors=True)
            self.controller.compile(LibraryCache(libraries))

    def reset(self) -> None:
        self.controller.reset()

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        self.last = self.controller.step(state, parameters)
        converged = self.last.status is mb.Status.CONVERGED
        return Outcome(self.last.command, self.last.iterations, converged, self.last.solve_time_s)

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        return self.last.plan.states, self.last.plan.inputs
