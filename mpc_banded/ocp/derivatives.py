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

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mpc_banded.ocp import banded, comb
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.newton import (
    NewtonStep,
    NewtonSystem,
    Point,
    newton_step,
    summary,
    transposed_product,
)
from mpc_banded.ocp.transcription import StageData, Terms, Transcription, merit


@dataclass(frozen=True)
class Merit:
    """The parts of the merit function at some trajectory.

    Attributes:
        cost: Sum of the weighted costs.
        barrier: Value of the barrier terms; infinite outside the input bounds.
        dynamics: ``sum_k lambda_k' d_k``.
        defects: ``sum_k |d_k|^2 / 2``.
    """

    cost: float
    barrier: float
    dynamics: float
    defects: float

    def value(self, penalty: float) -> float:
        """The merit function with a penalty on the defects."""
        return self.cost + self.barrier + self.dynamics + penalty * self.defects


#: Names of the ways to the Hessian.
RECOVERIES = ("stagewise", *comb.RECOVERIES)
#: Steps of the central differences that gradients are checked with.
DIFFERENCES = (1e-3, 1e-5)


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
        self.barrier = Barrier(transcription.problem)
        self.half_bandwidth = half_bandwidth or transcription.half_bandwidth
        self.recovery = recovery
        self._comb = None
        if recovery != "stagewise":
            self._comb = comb.Comb(transcription.n, self.half_bandwidth, recovery)

    @functools.cached_property
    def _defect_rows(self) -> Tensor:
        return _defect_rows(self.transcription)

    @functools.cached_property
    def _stage_probes(self) -> tuple[Tensor, ...]:
        return _stage_probes(self.transcription)

    def system(self, point: Point, data: StageData, penalty: float) -> NewtonSystem:
        """The Newton system at a point, with the penalty rho of its matrix."""
        mu = _scalar(point.mu)
        duals = torch.from_numpy(point.duals)
        inside: list[Tensor] = []

        def of_inequalities(h: Tensor) -> Tensor:
            """Their multipliers, from duals made safe at this point."""
            rows, distances = self._distances(point.z, h, mu)
            safe = self.barrier.safeguarded(duals, distances, mu)
            inside[:] = rows, distances, safe
            return self.barrier.of_inequalities(safe)

        parts = self._derive(point.z, data, point.multipliers, penalty, of_inequalities)
        rows, distances, safe = inside
        row_jacobian = self.barrier.row_jacobian(torch.from_numpy(parts.inequality_jacobian))
        gradient = self.barrier.gradient(row_jacobian, distances, mu)
        curvature = self.barrier.curvature(row_jacobian, distances, safe)
        banded.add_blocks(parts.bands, curvature.numpy())
        costs, defects = parts.terms.costs.detach().numpy(), parts.terms.defects.detach().numpy()
        of_barrier = gradient.numpy().reshape(-1)
        of_dynamics = transposed_product(parts.defect_jacobian, point.multipliers)
        kkt_residual, defect_norm = summary(parts.gradient, of_barrier, of_dynamics, defects)
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
        self, system: NewtonSystem, penalty: float, shift: float, accuracy: float
    ) -> NewtonStep:
        """The step from a system; see newton.newton_step."""
        return newton_step(system, self.barrier, penalty, shift, accuracy)

    def merit(self, z: np.ndarray, multipliers: np.ndarray, mu: float, data: StageData) -> Merit:
        """The merit function at one trajectory (n,)."""
        with torch.no_grad():
            terms = self.transcription.terms(torch.from_numpy(z), data)
            _, distances = self._distances(z, terms.inequalities, _scalar(mu))
            barrier = self.barrier.value(distances, _scalar(mu)).sum()
            d = terms.defects
            dynamics = (torch.from_numpy(multipliers) * d).sum()
        return Merit(*map(float, (terms.costs.sum(), barrier, dynamics, 0.5 * (d * d).sum())))

    def central_duals(self, z: np.ndarray, mu: float, data: StageData) -> np.ndarray:
        """Duals ``mu / distance`` at a trajectory (n,): those of a cold start."""
        with torch.no_grad():
            h = self.transcription.terms(torch.from_numpy(z), data).inequalities
            _, distances = self._distances(z, h, _scalar(mu))
        return mu / distances.numpy()

    def _distances(self, z: np.ndarray, h: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, r) and distances (N, 2 nu + 2 r) at ``z`` with its inequalities (N, m)."""
        problem = self.transcription.problem
        stages = torch.from_numpy(z).reshape(problem.horizon, self.transcription.block)
        rows = self.barrier.row_values(stages[:, problem.nu :], h)
        return rows, self.barrier.distances(stages[:, : problem.nu], rows, mu)

    def rollout(self, inputs: np.ndarray, data: StageData) -> np.ndarray:
        """The states (N + 1, nx) that inputs (N, nu) lead to; see Transcription.predicted."""
        return self.transcription.rollout(inputs, data).states

    def mean_curvature(self, z: np.ndarray, data: StageData) -> float:
        """Mean absolute diagonal of the costs' Hessian at ``z`` (n,)."""
        problem = self.transcription.problem
        nothing = np.zeros((problem.horizon, problem.nx))
        parts = self._derive(z, data, nothing, 0.0, torch.zeros_like)
        return float(np.abs(parts.bands[0]).mean())

    def check(self, z: np.ndarray, data: StageData, seed: int = 0) -> None:
        """Compares gradients and bands with the functions as black boxes, along random probes.

        Random multipliers, so that the curvature of every defect and inequality is seen.

        Raises:
            BandwidthError: The Hessian does not fit the half bandwidth.
            ValueError: It does, but a term couples stages that it does not belong to, which the
                stagewise recovery cannot see; or a gradient is not that of the values.
        """
        generator = torch.Generator().manual_seed(seed)
        self._check_slopes(torch.tensor(z, dtype=torch.float64), data, generator)
        point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        terms = self.transcription.terms(point, data)
        lam = torch.randn(terms.defects.shape, dtype=torch.float64, generator=generator)
        nu = torch.rand(terms.inequalities.shape, dtype=torch.float64, generator=generator)
        scalar = merit(terms, lam - terms.defects.detach(), torch.ones_like(lam[0, 0]), nu)
        (slope,) = torch.autograd.grad(scalar, point, create_graph=True)
        bands = self._derive(z, data, lam.numpy(), 1.0, lambda _: nu).bands
        try:
            comb.check_band(bands, slope, point, generator=generator)
        except FloatingPointError:
            if self._comb is not None or not np.isfinite(bands).all():
                raise
            raise ValueError(
                "a cost or inequality couples stages that it does not belong to: recovery "
                "'stagewise' cannot see that, 'direct' can"
            ) from None

    def _check_slopes(self, z: Tensor, data: StageData, generator: torch.Generator) -> None:
        """Raises ValueError if a term's values change otherwise than its gradient says."""
        problem = self.transcription.problem
        direction, mixed = (
            torch.randn(shape, dtype=torch.float64, generator=generator)
            for shape in (z.shape, (problem.horizon, 1))
        )

        def values(step: Tensor | float) -> Tensor:
            terms = self.transcription.terms(z + step * direction, data)
            rows = [(mixed * each).sum(dim=0) for each in (terms.defects, terms.inequalities)]
            return torch.cat([terms.costs, *rows])

        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        here = values(step)
        names = [f"cost {name!r}" for name in problem.cost_names]
        names += [f"the dynamics of state {i}" for i in range(problem.nx)]
        names += [f"inequality {i}" for i in range(len(here) - len(names))]
        with torch.no_grad():
            changes = [((values(h) - values(-h)) / (2.0 * h)).tolist() for h in DIFFERENCES]
        for name, value, *found in zip(names, here, *changes, strict=True):
            told = 0.0
            if value.requires_grad:
                (slope,) = torch.autograd.grad(
                    value, step, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                told = float(slope)
            # The smallest error counts: a step may cross a kink, or be lost in rounding.
            errors = [abs(told - x) - 1e-3 * (abs(told) + abs(x)) for x in found]
            if min(errors) > 1e-6 * (1.0 + abs(float(value.detach()))):
                raise ValueError(
                    f"the gradient of {name} is not that of its values: {told:.4g} along a random "
                    f"direction, {found[-1]:.4g} by differences; look for detach, item, numpy or "
                    "no_grad inside the function"
                )

    def _derive(
        self,
        z: np.ndarray,
        data: StageData,
        multipliers: np.ndarray,
        penalty: float,
        of_inequalities: Callable[[Tensor], Tensor],
    ) -> _Parts:
        """Gradient of the costs, ``H_L + rho J'J`` and Jacobians at ``z`` (n,).

        H_L is the Hessian of the Lagrangian at multipliers (N, nx), and at those of the
        inequalities, which are asked for once their values (N, m) are known.
        """
        way = self._by_stages if self._comb is None else self._by_combs
        parts, of_h = way(z, data, torch.from_numpy(multipliers), penalty, of_inequalities)
        gradient = (
            parts.gradient
            - transposed_product(parts.defect_jacobian, multipliers)
            + inequalities_transposed(parts.inequality_jacobian, of_h.numpy())
        )
        return replace(parts, gradient=gradient)

    def _by_stages(
        self,
        z: np.ndarray,
        data: StageData,
        multipliers: Tensor,
        penalty: float,
        of_inequalities: Callable[[Tensor], Tensor],
    ) -> tuple[_Parts, Tensor]:
        problem, block = self.transcription.problem, self.transcription.block
        nx, width = problem.nx, block + problem.nx
        padded = np.concatenate([data.state, z])
        windows = np.lib.stride_tricks.sliding_window_view(padded, width)[::block]
        # One replica for each probe: a plain backward pass then serves them all, without the
        # overhead of vectorising every operation.
        count = len(self._stage_probes[0])
        copies = torch.tensor(np.broadcast_to(windows, (count, *windows.shape)))
        copies.requires_grad_()
        x, u, x_next = copies.split([nx, problem.nu, nx], dim=-1)
        terms = self.transcription.stage_terms(x, u, x_next, data)
        of_h = of_inequalities(terms.inequalities[0].detach())
        scalar = merit(terms, multipliers, torch.zeros_like(multipliers[0, 0]), of_h)
        (slope,) = torch.autograd.grad(scalar, copies, create_graph=True)
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
        blocks = blocks + penalty * np.matmul(of_defects.swapaxes(1, 2), of_defects)
        each = slope[0].detach().numpy()
        total = each[:, nx:].copy()
        total[:-1, -nx:] += each[1:, :nx]
        bands = _overlapped(blocks, nx, self.half_bandwidth)
        first = Terms(terms.costs[0], terms.defects[0], terms.inequalities[0])
        return _Parts(first, total.reshape(-1), bands, of_defects, jacobian[:, :, nx:]), of_h

    def _by_combs(
        self,
        z: np.ndarray,
        data: StageData,
        multipliers: Tensor,
        penalty: float,
        of_inequalities: Callable[[Tensor], Tensor],
    ) -> tuple[_Parts, Tensor]:
        assert self._comb is not None
        point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        terms = self.transcription.terms(point, data)
        rho = _scalar(penalty)
        of_h = of_inequalities(terms.inequalities.detach())
        # Shifting the multipliers takes the curvature that the penalty of a nonzero defect adds
        # out again.
        scalar = merit(terms, multipliers - rho * terms.defects.detach(), rho, of_h)
        (slope,) = torch.autograd.grad(scalar, point, create_graph=True)
        products = comb.hessian_vector_products(slope, point, self._comb.probes)
        bands = self._comb.decompress(products)
        gradient = slope.detach().numpy()
        return _Parts(terms, gradient, bands, *self._jacobians(terms, point)), of_h

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
class _Parts:
    """Terms and derivatives of the costs and dynamics: of the Lagrangian's gradient at first."""

    terms: Terms
    gradient: np.ndarray
    bands: np.ndarray
    defect_jacobian: np.ndarray
    inequality_jacobian: np.ndarray


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


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
