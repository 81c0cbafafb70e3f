# SPDX-License-Identifier: Apache-2.0
"""All derivatives that a Newton step needs, taken from the merit function in one pass.

Reverse mode only: forward-mode differentiation keeps its nesting level in a module global and is
not thread-safe. There are two ways to the Hessian:

- *Combs* over z (comb.py) see the merit function as a black box, ``2 b + 1`` probes with
  ``b = nu + 2 nx - 1``. Jacobians come from combs of rows: defects of every second interval share
  no variable, so two combs for each state hold them all (Curtis, Powell and Reid 1974).
- *Stagewise*, each interval gets copies of its own of ``w_k = (x_k, u_k, x_{k+1})``. Over the
  copies the Hessian is block diagonal, so the comb with period ``nu + 2 nx`` brings all of it
  without aliasing, ``nx`` combs of rows bring the Jacobian, and adding the blocks where they
  overlap gives the band (element Hessians: Griewank and Toint 1982).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpc_banded import comb
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


#: Names of the ways to the Hessian.
RECOVERIES = ("stagewise", *comb.RECOVERIES)


class Derivatives:
    """Evaluates a transcription and its derivatives, eagerly.

    Args:
        transcription: What to differentiate.
        half_bandwidth: Of the band storage; 0 takes the derived one, a larger one works.
        recovery: One of RECOVERIES.

    Raises:
        ValueError: Unknown recovery.
    """

    def __init__(
        self, transcription: Transcription, half_bandwidth: int = 0, recovery: str = "stagewise"
    ) -> None:
        if recovery not in RECOVERIES:
            raise ValueError(f"recovery is {recovery!r}; allowed are {', '.join(RECOVERIES)}")
        self.transcription = transcription
        self.half_bandwidth = half_bandwidth or transcription.half_bandwidth
        self._comb = None
        if recovery != "stagewise":
            self._comb = comb.Comb(transcription.n, self.half_bandwidth, recovery)
        self._defect_rows = _defect_rows(transcription)
        self._stage_probes = _stage_probes(transcription)

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
        given multipliers (N, nx) and inequality multipliers (N, m).
        """
        way = self._by_stages if self._comb is None else self._by_combs
        terms, slope, bands, of_defects, of_inequalities = way(
            z,
            data,
            torch.from_numpy(multipliers),
            penalty,
            torch.from_numpy(inequality_multipliers),
        )
        gradient = (
            slope
            - defects_transposed(of_defects, multipliers)
            + inequalities_transposed(of_inequalities, inequality_multipliers)
        )
        values = Values(
            *(t.detach().numpy() for t in (terms.costs, terms.defects, terms.inequalities))
        )
        return Evaluation(values, gradient, bands, of_defects, of_inequalities)

    def check(self, z: np.ndarray, data: StageData, seed: int = 0) -> None:
        """Compares the bands with the merit function as a black box, along a random probe.

        Random multipliers, so that the curvature of every defect and inequality is seen.

        Raises:
            BandwidthError: The Hessian does not fit the half bandwidth.
            ValueError: It does, but a term couples stages that it does not belong to, which the
                stagewise recovery cannot see.
        """
        generator = torch.Generator().manual_seed(seed)
        point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        terms = self.transcription.terms(point, data)
        lam = torch.randn(terms.defects.shape, dtype=torch.float64, generator=generator)
        nu = torch.rand(terms.inequalities.shape, dtype=torch.float64, generator=generator)
        scalar = merit(terms, lam - terms.defects.detach(), torch.ones_like(lam[0, 0]), nu)
        (slope,) = torch.autograd.grad(scalar, point, create_graph=True)
        bands = self.evaluate(z, data, lam.numpy(), 1.0, nu.numpy()).bands
        try:
            comb.check_band(bands, slope, point, generator=generator)
        except FloatingPointError:
            if self._comb is not None or not np.isfinite(bands).all():
                raise
            raise ValueError(
                "a cost or inequality couples stages that it does not belong to: recovery "
                "'stagewise' cannot see that, 'direct' can"
            ) from None

    def _by_stages(
        self, z: np.ndarray, data: StageData, multipliers: Tensor, penalty: float, of_h: Tensor
    ) -> _Parts:
        problem, block = self.transcription.problem, self.transcription.block
        nx, width = problem.nx, block + problem.nx
        padded = np.concatenate([data.initial_state.numpy(), z])
        windows = np.lib.stride_tricks.sliding_window_view(padded, width)[::block]
        # One replica for each probe: a plain backward pass then serves them all, without the
        # overhead of vectorising every operation.
        count = len(self._stage_probes[0])
        copies = torch.tensor(np.broadcast_to(windows, (count, *windows.shape)))
        copies.requires_grad_()
        x, u, x_next = copies.split([nx, problem.nu, nx], dim=-1)
        terms = self.transcription.stage_terms(x, u, x_next, data)
        scalar = merit(terms, multipliers, torch.zeros_like(multipliers[0, 0]), of_h)
        (slope,) = torch.autograd.grad(scalar, copies, create_graph=True)
        outputs = (slope, terms.defects, terms.inequalities)
        live = [
            pair for pair in zip(outputs, self._stage_probes, strict=True) if pair[0].requires_grad
        ]
        (rows,) = torch.autograd.grad(
            [out for out, _ in live], copies, [probe for _, probe in live]
        )
        blocks, of_defects, of_inequalities = np.split(
            rows.numpy().swapaxes(0, 1), [width, width + nx], axis=1
        )
        of_defects[0, :, :nx] = 0.0  # x_0 is no unknown
        blocks = blocks + penalty * np.matmul(of_defects.swapaxes(1, 2), of_defects)
        each = slope[0].detach().numpy()
        total = each[:, nx:].copy()
        total[:-1, -nx:] += each[1:, :nx]
        bands = _overlapped(blocks, nx, self.half_bandwidth)
        first = Terms(terms.costs[0], terms.defects[0], terms.inequalities[0])
        return first, total.reshape(-1), bands, of_defects, of_inequalities[:, :, nx:]

    def _by_combs(
        self, z: np.ndarray, data: StageData, multipliers: Tensor, penalty: float, of_h: Tensor
    ) -> _Parts:
        assert self._comb is not None
        point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        terms = self.transcription.terms(point, data)
        rho = torch.tensor(penalty, dtype=torch.float64)
        # Shifting the multipliers takes the curvature that the penalty of a nonzero defect adds
        # out again.
        scalar = merit(terms, multipliers - rho * terms.defects.detach(), rho, of_h)
        (slope,) = torch.autograd.grad(scalar, point, create_graph=True)
        products = comb.hessian_vector_products(slope, point, self._comb.probes)
        bands = self._comb.decompress(products)
        return terms, slope.detach().numpy(), bands, *self._jacobians(terms, point)

    def _jacobians(self, terms: Terms, point: Tensor) -> tuple[np.ndarray, np.ndarray]:
        problem, block = self.transcription.problem, self.transcription.block
        rows = self._defect_rows.reshape(-1, problem.horizon, problem.nx)
        products = comb.hessian_vector_products(terms.defects, point, rows).numpy()
        padded = np.pad(products, ((0, 0), (problem.nx, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, block + problem.nx, axis=1)
        windows = windows[:, ::block].reshape(2, problem.nx, problem.horizon, block + problem.nx)
        stages = np.arange(problem.horizon)
        m = terms.inequalities.shape[-1]
        if m == 0:
            return windows[stages % 2, :, stages], np.zeros((problem.horizon, 0, block))
        unit = torch.eye(m, dtype=torch.float64)[:, None, :].expand(m, problem.horizon, m)
        of_h = comb.hessian_vector_products(terms.inequalities, point, unit).numpy()
        of_h = of_h.reshape(m, problem.horizon, block).swapaxes(0, 1)
        return windows[stages % 2, :, stages], of_h


_Parts = tuple[Terms, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _stage_probes(transcription: Transcription) -> tuple[Tensor, ...]:
    """What each replica asks for: one column of the slope, the defects or the inequalities.

    Returns:
        Probes (replicas, N, columns) of the three, one where asked and zero elsewhere.
    """
    problem = transcription.problem
    counts = (
        transcription.block + problem.nx,
        problem.nx,
        sum(problem.inequality_widths.values()),
    )
    unit = torch.eye(sum(counts), dtype=torch.float64)[:, None, :]
    probes = unit.expand(sum(counts), problem.horizon, sum(counts)).split(counts, dim=-1)
    return tuple(probe.contiguous() for probe in probes)


def _overlapped(blocks: np.ndarray, overlap: int, half_bandwidth: int) -> np.ndarray:
    """Band of blocks (N, m, m) along the diagonal that overlap; the first part is cut off.

    Returns lower band storage (b + 1, N (m - overlap)).
    """
    count, m, _ = blocks.shape
    column, offset = np.ogrid[:m, :m]
    row = column + offset
    flat = np.where(row < m, np.minimum(row, m - 1) * m + column, m * m)
    lower = np.pad(blocks.reshape(count, -1), ((0, 0), (0, 1)))[:, flat]
    shown = min(m, half_bandwidth + 1)
    bands = np.zeros((count, m - overlap, half_bandwidth + 1))
    bands[:, :, :shown] += lower[:, overlap:, :shown]
    bands[:-1, -overlap:, :shown] += lower[1:, :overlap, :shown]
    return bands.reshape(-1, half_bandwidth + 1).T


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
