# SPDX-License-Identifier: Apache-2.0
"""The eager evaluator: torch functions, differentiated by autograd in one pass.

Only reverse mode is used, because forward-mode differentiation keeps its nesting level in a module
global and is not thread-safe. The Hessian can be found in two ways:

- *Combs* over z (comb.py) treat the merit function as a black box and take ``2 b + 1`` probes,
  ``b = nu + 2 nx - 1``. Jacobians come from combs of rows: the defects of every second interval
  share no variable, so two combs for each state cover them all (Curtis, Powell and Reid 1974).
- *Stagewise*, each interval gets its own copies of ``w_k = (x_k, u_k, x_{k+1})``. Over the copies
  the Hessian is block diagonal, so the comb with period ``nu + 2 nx`` finds all of it without
  aliasing, ``nx`` combs of rows find the Jacobian, and adding the blocks where they overlap gives
  the band (element Hessians: Griewank and Toint 1982).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpc_banded.ocp import banded, comb
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.evaluator import Merit
from mpc_banded.ocp.newton import (
    NewtonStep,
    NewtonSystem,
    Point,
    Scaling,
    newton_step,
    summary,
    transposed_product,
)
from mpc_banded.ocp.transcription import StageData, Terms, Transcription, constraints

#: Ways to find the Hessian.
RECOVERIES = ("stagewise", *comb.RECOVERIES)


class EagerEvaluator:
    """Evaluates a transcription by calling its torch functions; see Evaluator.

    Args:
        transcription: The transcription to evaluate.
        half_bandwidth: Half bandwidth of the band storage; 0 takes the one derived from the
            couplings, larger ones are allowed.
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
        self.barrier = Barrier(transcription.problem)
        self.half_bandwidth = half_bandwidth or transcription.half_bandwidth
        self.recovery = recovery
        self._values: tuple[Mapping[str, np.ndarray] | None, dict[str, Tensor]] = (None, {})
        self._comb = None
        if recovery != "stagewise":
            self._comb = comb.Comb(transcription.n, self.half_bandwidth, recovery)

    @functools.cached_property
    def _defect_rows(self) -> Tensor:
        return _defect_rows(self.transcription)

    @functools.cached_property
    def _stage_probes(self) -> tuple[Tensor, ...]:
        return _stage_probes(self.transcription)

    def system(self, point: Point, data: StageData, scaling: Scaling) -> NewtonSystem:
        """See Evaluator.system."""
        mu = _scalar(point.mu)
        duals = torch.from_numpy(point.duals)
        inside: list[Tensor] = []

        def of_inequalities(h: Tensor) -> Tensor:
            """Return the multipliers of the inequalities, from duals limited at this point."""
            rows, distances = self._distances(point.z, h, mu)
            safe = self.barrier.safeguarded(duals, distances, mu)
            inside[:] = rows, distances, safe
            return self.barrier.of_inequalities(safe)

        lagrangian = _Lagrangian(point.multipliers, scaling.penalties, of_inequalities)
        parts = self._derive(point.z, data, lagrangian)
        rows, distances, safe = inside
        row_jacobian = self.barrier.row_jacobian(torch.from_numpy(parts.inequality_jacobian))
        gradient = self.barrier.gradient(row_jacobian, distances, mu)
        curvature = self.barrier.curvature(row_jacobian, distances, safe)
        banded.add_blocks(parts.bands, curvature.numpy())
        costs, defects = parts.terms.costs.detach().numpy(), parts.terms.defects.detach().numpy()
        of_barrier = gradient.numpy().reshape(-1)
        of_dynamics = transposed_product(parts.defect_jacobian, point.multipliers)
        kkt_residual, defect_norm = summary(
            parts.gradient, of_barrier, of_dynamics, defects, scaling
        )
        finite = np.isfinite(kkt_residual + defect_norm) and np.isfinite(parts.bands).all()
        return NewtonSystem(
            Point(point.z, point.multipliers, safe.numpy(), point.mu),
            float(costs.sum()),
            kkt_residual,
            defect_norm,
            bool(finite),
            float(self.barrier.value(distances, mu).sum()),
            costs,
            defects,
            rows.numpy(),
            distances.numpy(),
            parts.gradient + of_barrier,
            parts.gradient,
            of_barrier,
            of_dynamics,
            parts.bands,
            parts.defect_jacobian,
            row_jacobian.numpy(),
        )

    def newton_step(
        self, system: NewtonSystem, scaling: Scaling, shift: float, accuracy: float
    ) -> NewtonStep:
        """See Evaluator.newton_step."""
        return newton_step(system, self.barrier, scaling, shift, accuracy)

    def merit(
        self,
        z: np.ndarray,
        multipliers: np.ndarray,
        mu: float,
        data: StageData,
        scaling: Scaling,
    ) -> Merit:
        """See Evaluator.merit."""
        with torch.no_grad():
            terms = self.transcription.terms(torch.from_numpy(z), data)
            _, distances = self._distances(z, terms.inequalities, _scalar(mu))
            barrier = self.barrier.value(distances, _scalar(mu)).sum()
            d = terms.defects
            dynamics = (torch.from_numpy(multipliers) * d).sum()
            squares = 0.5 * (torch.from_numpy(scaling.of_defects) * d * d).sum()
        return Merit(*map(float, (terms.costs.sum(), barrier, dynamics, squares)))

    def central_duals(self, z: np.ndarray, mu: float, data: StageData) -> np.ndarray:
        """See Evaluator.central_duals."""
        with torch.no_grad():
            h = self.transcription.terms(torch.from_numpy(z), data).inequalities
            _, distances = self._distances(z, h, _scalar(mu))
        return mu / distances.numpy()

    def _distances(self, z: np.ndarray, h: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (N, r), distances (N, 2 nu + 2 r) at ``z`` with its inequalities (N, m)."""
        problem = self.transcription.problem
        stages = torch.from_numpy(z).reshape(problem.horizon, self.transcription.block)
        rows = self.barrier.row_values(stages[:, problem.nu :], h)
        return rows, self.barrier.distances(stages[:, : problem.nu], rows, mu)

    def rollout(self, inputs: np.ndarray, data: StageData) -> np.ndarray:
        """See Evaluator.rollout."""
        return self.transcription.rollout(inputs, data).states

    def dynamics(
        self, x: np.ndarray, u: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """See Evaluator.dynamics."""
        if values is not self._values[0]:
            self._values = (values, {name: torch.from_numpy(v) for name, v in values.items()})
        with torch.inference_mode():
            rate = self.transcription.problem.dynamics(
                torch.from_numpy(x), torch.from_numpy(u), self._values[1]
            )
        return rate.numpy()

    def cost_curvature(self, z: np.ndarray, data: StageData) -> np.ndarray:
        """See Evaluator.cost_curvature."""
        problem = self.transcription.problem
        nothing = np.zeros((problem.horizon, problem.nx))
        parts = self._derive(z, data, _Lagrangian(nothing, np.zeros(1), torch.zeros_like))
        return parts.bands[0]

    def lagrangian_hessian(
        self,
        z: np.ndarray,
        data: StageData,
        multipliers: np.ndarray,
        penalty: float | np.ndarray,
        inequality_multipliers: Tensor,
    ) -> np.ndarray:
        """Return the bands (b + 1, n) of ``H_L + J' rho J`` at z (n,), without the barrier's.

        The penalty rho is one number, or one for each state, (nx,).
        """
        rho = np.atleast_1d(np.asarray(penalty, dtype=np.float64))
        lagrangian = _Lagrangian(multipliers, rho, lambda _: inequality_multipliers)
        return self._derive(z, data, lagrangian).bands

    def _derive(self, z: np.ndarray, data: StageData, lagrangian: _Lagrangian) -> _Parts:
        """Return the derivatives of a Lagrangian and its parts at ``z`` (n,)."""
        way = self._by_stages if self._comb is None else self._by_combs
        return way(z, data, lagrangian)

    def _by_stages(self, z: np.ndarray, data: StageData, lagrangian: _Lagrangian) -> _Parts:
        problem, block = self.transcription.problem, self.transcription.block
        nx, width = problem.nx, block + problem.nx
        padded = np.concatenate([data.state, z])
        windows = np.lib.stride_tricks.sliding_window_view(padded, width)[::block]
        # One replica for each probe: one plain backward pass serves them all, without the overhead
        # of vectorising every operation.
        count = len(self._stage_probes[0])
        copies = torch.tensor(np.broadcast_to(windows, (count, *windows.shape)))
        copies.requires_grad_()
        x, u, x_next = copies.split([nx, problem.nu, nx], dim=-1)
        terms = self.transcription.stage_terms(x, u, x_next, data)
        multipliers = torch.from_numpy(lagrangian.multipliers)
        of_h = lagrangian.of_inequalities(terms.inequalities[0].detach())
        of_costs = _gradient(terms.costs.sum(), copies)
        none = torch.zeros_like(multipliers[0, 0])
        slope = of_costs + _gradient(constraints(terms, multipliers, none, of_h), copies)
        outputs = (slope, terms.defects, terms.inequalities)
        live = [
            pair for pair in zip(outputs, self._stage_probes, strict=True) if pair[0].requires_grad
        ]
        (rows,) = torch.autograd.grad(
            [out for out, _ in live], copies, [probe for _, probe in live]
        )
        blocks, of_defects, jacobian = np.split(
            rows.numpy().swapaxes(0, 1), [width, width + nx], axis=1
        )
        of_defects[0, :, :nx] = 0.0  # x_0 is no unknown
        weighted = lagrangian.penalty[:, None] * of_defects
        blocks = blocks + np.matmul(of_defects.swapaxes(1, 2), weighted)
        each = of_costs[0].detach().numpy()
        total = each[:, nx:].copy()
        total[:-1, -nx:] += each[1:, :nx]
        bands = _overlapped(blocks, nx, self.half_bandwidth)
        first = Terms(terms.costs[0], terms.defects[0], terms.inequalities[0])
        return _Parts(first, total.reshape(-1), bands, of_defects, jacobian[:, :, nx:])

    def _by_combs(self, z: np.ndarray, data: StageData, lagrangian: _Lagrangian) -> _Parts:
        assert self._comb is not None
        point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        terms = self.transcription.terms(point, data)
        rho = torch.from_numpy(lagrangian.penalty)
        of_h = lagrangian.of_inequalities(terms.inequalities.detach())
        # Shifting the multipliers removes the curvature that the penalty adds at nonzero defects.
        shifted = torch.from_numpy(lagrangian.multipliers) - rho * terms.defects.detach()
        of_costs = _gradient(terms.costs.sum(), point)
        slope = of_costs + _gradient(constraints(terms, shifted, rho, of_h), point)
        products = comb.hessian_vector_products(slope, point, self._comb.probes)
        bands = self._comb.decompress(products)
        gradient = of_costs.detach().numpy()
        return _Parts(terms, gradient, bands, *self._jacobians(terms, point))

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


@dataclass(frozen=True)
class _Lagrangian:
    """The Lagrangian whose Hessian H_L is wanted, with a penalty on the dynamics.

    Attributes:
        multipliers: Of the dynamics, (N, nx).
        penalty: rho in ``H_L + J' rho J``, (1,) or one for each state (nx,).
        of_inequalities: Returns the multipliers of the inequalities for their values (N, m).
    """

    multipliers: np.ndarray
    penalty: np.ndarray
    of_inequalities: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Parts:
    """Terms and derivatives of costs and dynamics.

    Attributes:
        terms: Values.
        gradient: Of the costs, (n,).
        bands: ``H_L + rho J'J``, (b + 1, n).
        defect_jacobian: (N, nx, 2 nx + nu).
        inequality_jacobian: (N, m, nu + nx).
    """

    terms: Terms
    gradient: np.ndarray
    bands: np.ndarray
    defect_jacobian: np.ndarray
    inequality_jacobian: np.ndarray


def _gradient(value: Tensor, by: Tensor) -> Tensor:
    """Gradient with its graph; zero where the value does not depend on ``by``."""
    if not value.requires_grad:
        return torch.zeros_like(by)
    (gradient,) = torch.autograd.grad(
        value, by, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _stage_probes(transcription: Transcription) -> tuple[Tensor, ...]:
    """Return one probe a replica: each picks a column of the slope, defects or inequalities.

    Returns:
        Probes (replicas, N, columns) of the three: one at the column picked and zero elsewhere.
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
    """Return the sum of blocks (N, m, m) along the diagonal, each overlapping the next.

    Returns lower band storage (b + 1, N (m - overlap)), without the first ``overlap`` columns.
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


def _defect_rows(transcription: Transcription) -> Tensor:
    """Return combs of rows of the defects, (2 nx, N, nx): one state of every second interval."""
    nx, horizon = transcription.problem.nx, transcription.problem.horizon
    rows = torch.zeros(2, nx, horizon, nx, dtype=torch.float64)
    for parity in range(2):
        rows[parity, :, parity::2] = torch.eye(nx, dtype=torch.float64)[:, None, :]
    return rows.reshape(2 * nx, horizon, nx)
