# SPDX-License-Identifier: Apache-2.0
"""This package, with its defaults."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import mpc_banded as mb
from benchmarks.peers.peer import FIRST_SOLVES, TOLERANCE, Outcome, Peer
from benchmarks.peers.torch_terms import TORCH
from benchmarks.task import Task
from mpc_banded.codegen.cache import LibraryCache
from mpc_banded.ocp.compiled import compile_evaluator


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
        inequalities={"h": lambda x, _, p: inequality(TORCH, x, p)} if inequality else {},
        penalties={"h": task.penalty} if inequality else {},
        parameters={name: (size,) for name, size in task.parameters.items()},
    )


class MpcBanded(Peer):
    """The receding horizon controller.

    Args:
        task: What to solve.
        folder: With the cache of compiled libraries.
        iterations: Newton iterations a step at most; 0 for the package's limit.
        compiled: Whether derivatives are compiled.
    """

    def __init__(
        self, task: Task, folder: Path, iterations: int = 0, compiled: bool = False
    ) -> None:
        super().__init__(task, folder)
        limit = {"max_iterations": iterations} if iterations else {}
        self.limited = bool(iterations)
        options = mb.SolverOptions(kkt_tolerance=TOLERANCE, defect_tolerance=TOLERANCE, **limit)
        self.controller = mb.RecedingHorizonController(
            problem(task), "rk4", task.substeps, options
        )
        if compiled:
            self.controller.evaluator = compile_evaluator(
                self.controller.evaluator, LibraryCache(folder / "cache")
            )

    def reset(self) -> None:
        self.controller.reset()
        self.first = True

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        self.last = self.controller.step(state, parameters)
        iterations = self.last.iterations
        if self.first and self.limited:
            for _ in range(FIRST_SOLVES - 1):
                if self.last.status is mb.Status.CONVERGED:
                    break
                self.last = self.controller.step(state, parameters, elapsed_s=0.0)
                iterations += self.last.iterations
        self.first = False
        converged = self.last.status is mb.Status.CONVERGED
        return Outcome(self.last.command, iterations, converged, self.last.solve_time_s)

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        return self.last.plan.states, self.last.plan.inputs
