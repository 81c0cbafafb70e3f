# SPDX-License-Identifier: Apache-2.0
"""Derivatives of a robot's problem without inequalities, in a few lines of eager torch.

Each interval has its own copies of ``(x_k, u_k, x_{k+1})``, one replica for each probe, and one
backward pass serves all of them. The study uses this and not the package's solver, so that all
methods that it compares pay the same price for the same derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.hessian_study.problems import Task
from mpc_banded.ocp import banded


@dataclass(frozen=True)
class Evaluation:
    """Values and derivatives at one trajectory.

    Attributes:
        cost: Sum of all costs.
        defects: Defects of the dynamics (N, nx).
        gradient: Gradient of the costs (n,).
        bands: ``H_L + rho J'J`` in lower band storage (b + 1, n).
        jacobian: Jacobian of d_k by (x_k, u_k, x_{k+1}), (N, nx, 2 nx + nu).
    """

    cost: float
    defects: np.ndarray
    gradient: np.ndarray
    bands: np.ndarray
    jacobian: np.ndarray

    def defects_times(self, step: np.ndarray) -> np.ndarray:
        """J step, the change of the defects (N, nx) along a step (n,)."""
        nx, width = self.jacobian.shape[1:]
        padded = np.concatenate([np.zeros(nx), step])
        windows = np.lib.stride_tricks.sliding_window_view(padded, width)[:: width - nx]
        return np.matmul(self.jacobian, windows[:, :, None])[:, :, 0]

    def defects_transposed(self, multipliers: np.ndarray) -> np.ndarray:
        """J' lambda (n,) of multipliers (N, nx)."""
        parts = np.matmul(multipliers[:, None, :], self.jacobian)[:, 0, :]
        return _joined(parts, self.jacobian.shape[1])


class Stagewise:
    """Evaluates a task.

    Args:
        task: A task ``without_inequalities``.
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
        """Values and derivatives at z (n,); the Hessian is that at multipliers (N, nx)."""
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
        """Mean absolute diagonal entry of the costs' Hessian at z (n,), the unit of penalties."""
        nothing = np.zeros((self.problem.horizon, self.problem.nx))
        return float(np.abs(self.evaluate(z, nothing, 0.0).bands[0]).mean())


def _joined(parts: np.ndarray, nx: int) -> np.ndarray:
    """Sum (n,) of what the intervals contribute (N, 2 nx + nu); x_0 is left out."""
    result = parts[:, nx:].copy()
    result[:-1, -nx:] += parts[1:, :nx]
    return result.reshape(-1)
