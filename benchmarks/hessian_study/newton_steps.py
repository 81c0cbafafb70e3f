# SPDX-License-Identifier: Apache-2.0
"""Two ways to one Newton step of an equality-constrained problem: KKT matrix and definite form."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from benchmarks.hessian_study.stagewise import Evaluation
from mpc_banded.ocp import banded
from mpc_banded.ocp.transcription import Transcription


class KktSystem:
    """The KKT matrix, banded because its unknowns are interleaved as (u_k, lambda_k, x_{k+1}).

    With an explicit scheme its half bandwidth is that of the definite form, ``nu + 2 nx - 1``;
    with an implicit one x_k meets x_{k+1} across lambda_k, ``nu + 3 nx - 1``.

    Args:
        transcription: Problem without inequalities.
        explicit: Whether x_{k+1} enters each defect linearly.
    """

    def __init__(self, transcription: Transcription, explicit: bool) -> None:
        problem, block = transcription.problem, transcription.block
        nx, nu, n = problem.nx, problem.nu, transcription.n
        self.half_bandwidth = nu + (2 if explicit else 3) * nx - 1
        self.size = n + problem.horizon * nx
        stage, entry = np.divmod(np.arange(n), block)
        self.of_z = stage * (block + nx) + entry + nx * (entry >= nu)
        stages = np.arange(problem.horizon)[:, None]
        self.of_multipliers = stages * (block + nx) + nu + np.arange(nx)

        row = np.arange(n)[:, None] + np.arange(transcription.half_bandwidth + 1)  # (n, b + 1)
        row, column = self.of_z[np.minimum(row, n - 1)], self.of_z[:, None]
        self._known = (np.arange(n)[:, None] + np.arange(row.shape[1]) < n) & (
            row - column <= self.half_bandwidth
        )
        row, column = np.broadcast_arrays(row, column)
        self._hessian = self._both(row[self._known], column[self._known])
        window = np.arange(-nx, block) + block * stages  # (N, 2 nx + nu)
        self._real = np.broadcast_to(
            (window >= 0)[:, None], (*stages.shape[:1], nx, window.shape[1])
        )
        column = self.of_z[np.maximum(window, 0)][:, None]
        row, column = np.broadcast_arrays(self.of_multipliers[:, :, None], column)
        self._jacobian = self._both(row[self._real], column[self._real])
        self._diagonal = self.half_bandwidth, self.of_z

    def _both(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat places in band storage of entries (row, column), and of (column, row)."""
        middle = self.half_bandwidth
        lower = (middle + row - column) * self.size + column
        return lower, (middle + column - row) * self.size + row

    def bands(self, hessian: np.ndarray, jacobian: np.ndarray, shift: float) -> np.ndarray:
        """Band storage (2 w + 1, n + N nx) of ``[[H + shift I, J'], [J, 0]]``."""
        matrix = np.zeros((2 * self.half_bandwidth + 1, self.size))
        for places, values in (
            (self._hessian, hessian.T[self._known]),
            (self._jacobian, jacobian[self._real]),
        ):
            for place in places:
                matrix.ravel()[place] = values
        matrix[self._diagonal] += shift
        return matrix

    def dense(self, bands: np.ndarray) -> np.ndarray:
        """The whole matrix of some bands."""
        w = self.half_bandwidth
        matrix = np.zeros((self.size, self.size))
        for d in range(-w, w + 1):
            there = bands[w + d, max(0, -d) : self.size - max(0, d)]
            column = np.arange(max(0, -d), self.size - max(0, d))
            matrix[column + d, column] = there
        return matrix

    def right_hand_side(self, gradient: np.ndarray, defects: np.ndarray) -> np.ndarray:
        """Minus the gradient of the costs and the defects, interleaved."""
        rhs = np.empty(self.size)
        rhs[self.of_z], rhs[self.of_multipliers] = -gradient, -defects
        return rhs

    def solve(self, e: Evaluation, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Step (n,) and new multipliers (N, nx), by banded LU, from an evaluation at rho = 0."""
        w = self.half_bandwidth
        matrix = self.bands(e.bands, e.jacobian, shift)
        rhs = self.right_hand_side(e.gradient, e.defects)
        solution = scipy.linalg.solve_banded((w, w), matrix, rhs, check_finite=False)
        return solution[self.of_z], solution[self.of_multipliers]


def definite_step(
    bands: np.ndarray,
    e: Evaluation,
    multipliers: np.ndarray,
    rho: float,
    sweeps: int,
    accuracy: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Step and multipliers by ``bands`` of ``H + rho J'J``, with sweeps until J s = -d.

    Raises:
        NotPositiveDefinite: There is no factor.
    """
    factor = banded.cholesky(bands)
    for _ in range(sweeps):
        target = multipliers + rho * e.defects
        step = factor.solve(-e.gradient - e.defects_transposed(target))
        change = e.defects + e.defects_times(step)
        multipliers = multipliers + rho * change
        if np.abs(change).max() <= accuracy:
            break
    return step, multipliers
