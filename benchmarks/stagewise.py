# SPDX-License-Identifier: Apache-2.0
"""Derivatives of a robot's problem without inequalities, in eager torch and a few lines.

Each interval gets copies of its own of ``(x_k, u_k, x_{k+1})``, one replica for each probe, and a
plain backward pass serves them all. The study stands on this and not on the package's solver, so
that all methods that it compares pay the same price for the same derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.study import Task
from mpc_banded.ocp import banded
from mpc_banded.ocp.problem import Inequality, Parameters
from mpc_banded.ocp.transcription import Transcription


def without_inequalities(task: Task, softness: float = 0.0) -> Task:
    """The same robot and costs, with its dynamics alone to obey.

    Args:
        task: Its inequalities must not depend on inputs.
        softness: Where positive, this half times the squares of all violations of bounds and
            inequalities joins the costs.
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


@dataclass(frozen=True)
class Evaluation:
    """Values and derivatives at one trajectory.

    Attributes:
        cost: Sum of all costs.
        defects: (N, nx).
        gradient: Of the costs, (n,).
        bands: ``H_L + rho J'J`` in lower band storage (b + 1, n).
        jacobian: Of d_k by (x_k, u_k, x_{k+1}), (N, nx, 2 nx + nu).
    """

    cost: float
    defects: np.ndarray
    gradient: np.ndarray
    bands: np.ndarray
    jacobian: np.ndarray

    def defects_times(self, step: np.ndarray) -> np.ndarray:
        """Change of the defects (N, nx) along a step (n,)."""
        nx, width = self.jacobian.shape[1:]
        padded = np.concatenate([np.zeros(nx), step])
        windows = np.lib.stride_tricks.sliding_window_view(padded, width)[:: width - nx]
        return np.matmul(self.jacobian, windows[:, :, None])[:, :, 0]

    def defects_transposed(self, multipliers: np.ndarray) -> np.ndarray:
        """J' lambda (n,) of multipliers (N, nx)."""
        parts = np.matmul(multipliers[:, None, :], self.jacobian)[:, 0, :]
        return _joined(parts, self.jacobian.shape[1])


class Stagewise:
    """Evaluates a task without inequalities.

    Args:
        task: See ``without_inequalities``.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.transcription = task, task.transcription
        self.problem = self.transcription.problem
        self.width = self.transcription.block + self.problem.nx
        count = self.width + self.problem.nx
        unit = torch.eye(count, dtype=torch.float64)[:, None, :]
        self._probes = unit.expand(count, self.problem.horizon, count).split(
            [self.width, self.problem.nx], dim=-1
        )

    def values(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum of the costs and defects (N, nx) at z (n,)."""
        with torch.no_grad():
            terms = self.transcription.terms(torch.from_numpy(z), self.task.data)
        return terms.costs.sum().item(), terms.defects.numpy()

    def evaluate(self, z: np.ndarray, multipliers: np.ndarray, penalty: float) -> Evaluation:
        """Values and derivatives at z (n,), the Hessian's at multipliers (N, nx)."""
        problem, block, nx = self.problem, self.transcription.block, self.problem.nx
        padded = np.concatenate([self.task.data.initial_state.numpy(), z])
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.width)[::block]
        copies = torch.tensor(np.broadcast_to(windows, (len(self._probes[0]), *windows.shape)))
        copies.requires_grad_()
        parts = copies.split([nx, problem.nu, nx], dim=-1)
        terms = self.transcription.stage_terms(*parts, self.task.data)
        lagrangian = terms.costs.sum() + (torch.from_numpy(multipliers) * terms.defects).sum()
        (slope,) = torch.autograd.grad(lagrangian, copies, create_graph=True)
        (rows,) = torch.autograd.grad([slope, terms.defects], copies, self._probes)
        blocks, jacobian = np.split(rows.numpy().swapaxes(0, 1), [self.width], axis=1)
        jacobian[0, :, :nx] = 0.0  # x_0 is no unknown
        blocks = blocks + penalty * np.matmul(jacobian.swapaxes(1, 2), jacobian)
        bands = np.zeros((nx + self.transcription.n, self.transcription.half_bandwidth + 1)).T
        banded.add_blocks(bands, blocks, np.arange(problem.horizon) * block)
        evaluation = Evaluation(
            terms.costs[0].sum().item(),
            terms.defects[0].detach().numpy(),
            _joined(slope[0].detach().numpy(), nx),
            bands[:, nx:],
            jacobian,
        )
        of_dynamics = evaluation.defects_transposed(multipliers)
        return replace(evaluation, gradient=evaluation.gradient - of_dynamics)

    def mean_curvature(self, z: np.ndarray) -> float:
        """Mean size of the diagonal of the costs' Hessian: the unit of penalties."""
        nothing = np.zeros((self.problem.horizon, self.problem.nx))
        return float(np.abs(self.evaluate(z, nothing, 0.0).bands[0]).mean())


def _joined(parts: np.ndarray, nx: int) -> np.ndarray:
    """One vector (n,) of the intervals' own (N, 2 nx + nu): without x_0, overlaps added."""
    result = parts[:, nx:].copy()
    result[:-1, -nx:] += parts[1:, :nx]
    return result.reshape(-1)
