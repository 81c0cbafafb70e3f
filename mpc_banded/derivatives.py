# SPDX-License-Identifier: Apache-2.0
"""All derivatives that a Newton step needs, taken from the merit function in one pass.

Reverse mode only: forward-mode differentiation keeps its nesting level in a module global and is
not thread-safe. The Hessian comes from combs of Hessian-vector products (comb.py), the Jacobians
from combs of rows: defects of every second interval share no variable, so two combs for each
state hold them all (Curtis, Powell and Reid 1974).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpc_banded.comb import Comb, check_band, hessian_vector_products
from mpc_banded.transcription import StageData, Terms, Transcription, merit


@dataclass(frozen=True)
class Values:
    """Terms of one trajectory as arrays.

    Attributes:
        costs: Weighted named costs, (number of costs,).
        defects: (N, nx).
        inequalities: (N, m).
    """

    costs: np.ndarray
    defects: np.ndarray
    inequalities: np.ndarray

    @property
    def cost(self) -> float:
        """Sum of all costs."""
        return float(self.costs.sum())


@dataclass(frozen=True)
class Evaluation:
    """Values and derivatives at one trajectory.

    Attributes:
        values: The terms.
        gradient: Of the sum of costs, (n,).
        bands: Hessian of the merit function, lower band storage (b + 1, n).
        defect_jacobian: (N, nx, 2 nx + nu): of d_k by (x_k, u_k, x_{k+1}).
        inequality_jacobian: (N, m, nu + nx): of h_k by (u_k, x_{k+1}).
    """

    values: Values
    gradient: np.ndarray
    bands: np.ndarray
    defect_jacobian: np.ndarray
    inequality_jacobian: np.ndarray


class Derivatives:
    """Evaluates a transcription and its derivatives, eagerly.

    Args:
        transcription: What to differentiate.
        half_bandwidth: Of the band storage; 0 takes the derived one, a larger one works.
        recovery: How the band is recovered from probes, see comb.py.
    """

    def __init__(
        self, transcription: Transcription, half_bandwidth: int = 0, recovery: str = "direct"
    ) -> None:
        self.transcription = transcription
        self.half_bandwidth = half_bandwidth or transcription.half_bandwidth
        self.comb = Comb(transcription.n, self.half_bandwidth, recovery)
        self._defect_rows = _defect_rows(transcription)

    def values(self, candidates: np.ndarray, data: StageData) -> list[Values]:
        """Terms of several trajectories (c, n) in one call."""
        with torch.no_grad():
            terms = self.transcription.terms(torch.from_numpy(candidates), data)
        arrays = (terms.costs.numpy(), terms.defects.numpy(), terms.inequalities.numpy())
        return [Values(*row) for row in zip(*arrays, strict=True)]

    def evaluate(
        self,
        z: np.ndarray,
        data: StageData,
        multipliers: np.ndarray,
        penalty: float,
        inequality_multipliers: np.ndarray,
    ) -> Evaluation:
        """Values, gradient, Newton matrix and Jacobians at ``z`` (n,).

        The Newton matrix is ``H_L + rho J'J`` with the Hessian H_L of the Lagrangian at the
        given multipliers: shifting them by ``-rho d`` takes the curvature that the penalty of
        a nonzero defect would add out again.
        """
        point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        terms = self.transcription.terms(point, data)
        rho = torch.tensor(penalty, dtype=torch.float64)
        shifted = torch.from_numpy(multipliers) - rho * terms.defects.detach()
        scalar = merit(terms, shifted, rho, torch.from_numpy(inequality_multipliers))
        (slope,) = torch.autograd.grad(scalar, point, create_graph=True)
        bands = self.comb.decompress(hessian_vector_products(slope, point, self.comb.probes))
        defect_jacobian, inequality_jacobian = self._jacobians(terms, point)
        gradient = (
            slope.detach().numpy()
            - defects_transposed(defect_jacobian, multipliers)
            + inequalities_transposed(inequality_jacobian, inequality_multipliers)
        )
        values = Values(
            *(t.detach().numpy() for t in (terms.costs, terms.defects, terms.inequalities))
        )
        return Evaluation(values, gradient, bands, defect_jacobian, inequality_jacobian)

    def check(self, z: np.ndarray, data: StageData, seed: int = 0) -> None:
        """Raises BandwidthError if the Hessian at ``z`` does not fit the half bandwidth.

        Random multipliers, so that the curvature of every defect and inequality is seen.
        """
        generator = torch.Generator().manual_seed(seed)
        point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        terms = self.transcription.terms(point, data)
        lam = torch.randn(terms.defects.shape, dtype=torch.float64, generator=generator)
        nu = torch.rand(terms.inequalities.shape, dtype=torch.float64, generator=generator)
        scalar = merit(terms, lam, torch.tensor(1.0, dtype=torch.float64), nu)
        (slope,) = torch.autograd.grad(scalar, point, create_graph=True)
        bands = self.comb.decompress(hessian_vector_products(slope, point, self.comb.probes))
        check_band(bands, slope, point, generator=generator)

    def _jacobians(self, terms: Terms, point: Tensor) -> tuple[np.ndarray, np.ndarray]:
        problem, block = self.transcription.problem, self.transcription.block
        rows = self._defect_rows.reshape(-1, problem.horizon, problem.nx)
        products = hessian_vector_products(terms.defects, point, rows).numpy()
        padded = np.pad(products, ((0, 0), (problem.nx, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, block + problem.nx, axis=1)
        windows = windows[:, ::block].reshape(2, problem.nx, problem.horizon, block + problem.nx)
        stages = np.arange(problem.horizon)
        defect_jacobian = windows[stages % 2, :, stages]

        m = terms.inequalities.shape[-1]
        unit = torch.eye(m, dtype=torch.float64)[:, None, :].expand(m, problem.horizon, m)
        if m == 0:
            return defect_jacobian, np.zeros((problem.horizon, 0, block))
        products = hessian_vector_products(terms.inequalities, point, unit).numpy()
        return defect_jacobian, products.reshape(m, problem.horizon, block).swapaxes(0, 1)


def defects_times(jacobian: np.ndarray, z: np.ndarray) -> np.ndarray:
    """J z of the defect Jacobian (N, nx, 2 nx + nu) and a vector (n,); (N, nx)."""
    _, nx, width = jacobian.shape
    padded = np.concatenate([np.zeros(nx), z])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[:: width - nx]
    return np.matmul(jacobian, windows[:, :, None])[:, :, 0]


def defects_transposed(jacobian: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """J' lambda of the defect Jacobian and multipliers (N, nx); (n,)."""
    nx = jacobian.shape[1]
    parts = np.matmul(multipliers[:, None, :], jacobian)[:, 0, :]
    result = parts[:, nx:].copy()
    result[:-1, -nx:] += parts[1:, :nx]
    return result.reshape(-1)


def inequalities_times(jacobian: np.ndarray, z: np.ndarray) -> np.ndarray:
    """J z of the inequality Jacobian (N, m, nu + nx) and a vector (n,); (N, m)."""
    horizon, _, block = jacobian.shape
    return np.matmul(jacobian, z.reshape(horizon, block, 1))[:, :, 0]


def inequalities_transposed(jacobian: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """J' nu of the inequality Jacobian and multipliers (N, m); (n,)."""
    return np.matmul(multipliers[:, None, :], jacobian).reshape(-1)


def _defect_rows(transcription: Transcription) -> Tensor:
    """Row combs of the defects, (2 nx, N, nx): one state of every second interval each."""
    nx, horizon = transcription.problem.nx, transcription.problem.horizon
    rows = torch.zeros(2, nx, horizon, nx, dtype=torch.float64)
    for parity in range(2):
        rows[parity, :, parity::2] = torch.eye(nx, dtype=torch.float64)[:, None, :]
    return rows.reshape(2 * nx, horizon, nx)
