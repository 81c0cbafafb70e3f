# SPDX-License-Identifier: Apache-2.0
"""This package, with its defaults."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import mpc_banded as mb
from benchmarks.peers.peer import TOLERANCE, Outcome, Peer
from benchmarks.peers.torch_terms import TORCH
from benchmarks.tasks import Task


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
        compiled: Whether derivatives are compiled.
    """

    def __init__(
        self, task: Task, folder: Path, iterations: int = 0, compiled: bool = False
    ) -> None:
        super().__init__(task, folder)
        limit = {"max_iterations": iterations} if iterations else {}
        options = mb.SolverOptions(kkt_tolerance=TOLERANCE, defect_tolerance=TOLERANCE, **limit)
        # The one place that knows how compiled derivatives are asked for.
        extra = {"compiled": True} if compiled else {}
        self.controller = mb.RecedingHorizonController(
            problem(task), "rk4", task.substeps, options, **extra
        )

    def reset(self) -> None:
        self.controller.reset()

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        self.last = self.controller.step(state, parameters)
        converged = self.last.status is mb.Status.CONVERGED
        return Outcome(self.last.command, self.last.iterations, converged, self.last.solve_time_s)

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        return self.last.plan.states, self.last.plan.inputs
