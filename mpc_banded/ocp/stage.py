# SPDX-License-Identifier: Apache-2.0
"""One stage of a transcription as torch functions: what the compiler traces.

Every term belongs to one stage, so the terms of one stage and their derivatives are all that has
to be compiled. The functions here take the tensors of a single stage, without batch dimensions;
torch differentiates them inside the trace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpc_banded.codegen.graph import TooLong
from mpc_banded.codegen.trace import UnsupportedOperation
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.transcription import SCHEMES, Transcription


class Stage:
    """Terms of one stage and their derivatives.

    Tensors: ``w`` is ``(x_k, u_k, x_{k+1})``; ``weights`` holds the factors of all costs;
    ``parameters`` are those of the stage and then those of the next one, each in the order of the
    problem, or those of the last stage alone where a function belongs to the end of the horizon.

    Args:
        transcription: The transcription that is compiled.
        barrier: The inequalities of its problem.
    """

    def __init__(self, transcription: Transcription, barrier: Barrier) -> None:
        self._t, self._problem, self._barrier = transcription, transcription.problem, barrier
        self._names = tuple(transcription.problem.parameters)

    def terms(
        self, w: Tensor, weights: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted stage costs, defect (nx,) and inequalities (m,)."""
        p = self._problem
        half = len(self._names)
        now, after = self._named(parameters[:half]), self._named(parameters[half:])
        x, u, x_next = w.split([p.nx, p.nu, p.nx])
        costs = [
            _traced(f"stage_costs[{name!r}]", cost, x, u, now)
            for name, cost in p.stage_costs.items()
        ]
        weighted = torch.stack(costs) * weights[: len(costs)] if costs else weights[:0]
        scheme = SCHEMES[self._t.scheme]
        dynamics = functools.partial(_traced, "dynamics", p.dynamics)
        defect = scheme(dynamics, x, u, x_next, now, p.dt, self._t.substeps)
        rows = [
            _traced(f"inequalities[{name!r}]", h, x_next, u, after)
            for name, h in p.inequalities.items()
        ]
        return weighted, defect, torch.cat(rows) if rows else w[:0]

    def dynamics(self, x: Tensor, u: Tensor, *parameters: Tensor) -> list[Tensor]:
        """Return the rate of the state (nx,), with the parameters of one stage."""
        return [_traced("dynamics", self._problem.dynamics, x, u, self._named(parameters))]

    def system(
        self,
        w: Tensor,
        multipliers: Tensor,
        duals: Tensor,
        mu: Tensor,
        penalty: Tensor,
        weights: Tensor,
        *parameters: Tensor,
        second_order: bool,
    ) -> list[Tensor]:
        """Return the stage's share of the Newton system.

        Args:
            w: Variables of the stage.
            multipliers: lambda_k, (nx,).
            duals: Duals of the inequalities, see Barrier.
            mu: Barrier parameter.
            penalty: rho of each defect, (nx,).
            weights: See Stage.
            parameters: See Stage.
            second_order: Whether the matrix has the Hessian of the Lagrangian and ``rho J'J``, and
                the defect's Jacobian is returned too; otherwise it is the barrier's curvature.

        Returns:
            The costs, the barrier's value, the defect, rows, distances and safe duals; gradients
            of costs, barrier and dynamics; the matrix; the Jacobian of the rows.
        """
        barrier, nx, nu = self._barrier, self._problem.nx, self._problem.nu
        w.requires_grad_()
        costs, defect, h = self.terms(w, weights, parameters)
        rows = barrier.row_values(w[nx + nu :].detach(), h.detach())
        distances = barrier.distances(w[nx : nx + nu].detach(), rows, mu)
        safe = barrier.safeguarded(duals, distances, mu)
        of_dynamics = (multipliers * defect).sum()
        row_jacobian = barrier.row_jacobian(_jacobian(h, w)[:, nx:])
        curvature = barrier.curvature(row_jacobian, distances, safe)
        matrix = torch.nn.functional.pad(curvature, (nx, 0, nx, 0))
        derived = []
        if second_order:
            lagrangian = costs.sum() + of_dynamics
            lagrangian = lagrangian - (barrier.of_inequalities(safe) * h).sum()
            of_defect = _jacobian(defect, w)
            hessian = _jacobian(_gradient(lagrangian, w), w)
            matrix = hessian + of_defect.T @ (penalty[:, None] * of_defect) + matrix
            derived = [of_defect]
        return [
            costs,
            barrier.value(distances, mu),
            defect,
            rows,
            distances,
            safe,
            _gradient(costs.sum(), w),
            barrier.gradient(row_jacobian, distances, mu),
            _gradient(of_dynamics, w),
            matrix,
            row_jacobian,
            *derived,
        ]

    def slope(
        self,
        w: Tensor,
        multipliers: Tensor,
        duals: Tensor,
        mu: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``w``, the multipliers, and the gradient of the Lagrangian by ``w``."""
        p, barrier = self._problem, self._barrier
        w.requires_grad_()
        multipliers.requires_grad_()
        costs, defect, h = self.terms(w, weights, parameters)
        u, x_next = w[p.nx : p.nx + p.nu].detach(), w[p.nx + p.nu :].detach()
        distances = barrier.distances(u, barrier.row_values(x_next, h.detach()), mu)
        of_h = barrier.of_inequalities(barrier.safeguarded(duals, distances, mu))
        slope = _gradient(costs.sum() + (multipliers * defect).sum() - (of_h * h).sum(), w)
        return w, multipliers, slope

    def hessian_products(self, curved: list[int], *arguments: Tensor) -> list[Tensor]:
        """Return products of the Lagrangian's Hessian and of the defect's Jacobian with a probe.

        The gradient of the Lagrangian is linear in the multipliers, so the derivative by them of
        its slope along a probe is a column of the Jacobian.

        Args:
            curved: The entry of ``w`` that each entry of the probe belongs to.
            arguments: Those of ``slope``, and the probe.
        """
        w, multipliers, slope = self.slope(*arguments[:-1])
        along = (slope[curved] * arguments[-1][: len(curved)]).sum()
        return [_gradient(along, w), _gradient(along, multipliers)]

    def jacobian_products(self, entries: list[int], *arguments: Tensor) -> list[Tensor]:
        """Return products of the defect's Jacobian with a probe; see ``hessian_products``."""
        _, multipliers, slope = self.slope(*arguments[:-1])
        return [_gradient((slope[entries] * arguments[-1]).sum(), multipliers)]

    def merit(
        self,
        w: Tensor,
        multipliers: Tensor,
        mu: Tensor,
        of_defects: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> list[Tensor]:
        """Return the stage's share of the merit function's parts; see Merit and Scaling."""
        barrier, nx, nu = self._barrier, self._problem.nx, self._problem.nu
        costs, defect, h = self.terms(w, weights, parameters)
        rows = barrier.row_values(w[nx + nu :], h)
        value = barrier.value(barrier.distances(w[nx : nx + nu], rows, mu), mu)
        half = 0.5 * (of_defects * defect * defect).sum()
        return [costs.sum(), value, (multipliers * defect).sum(), half]

    def advance(self, *arguments: Tensor) -> list[Tensor]:
        """Barrier.advance."""
        return list(self._barrier.advance(*arguments))

    def predicted(self, x: Tensor, u: Tensor, *parameters: Tensor) -> list[Tensor]:
        """Return the next state; see Transcription.predicted."""
        return [self._t.predicted(x, u, self._named(parameters))]

    def cost_curvature(self, w: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
        """Diagonal of the Hessian of the stage costs."""
        w.requires_grad_()
        costs, _, _ = self.terms(w, weights, parameters)
        return [_jacobian(_gradient(costs.sum(), w), w).diagonal()]

    def terminal_costs(self, x: Tensor, weights: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Weighted terminal costs of the last state."""
        named = self._named(parameters)
        costs = [
            _traced(f"terminal_costs[{name!r}]", cost, x, named)
            for name, cost in self._problem.terminal_costs.items()
        ]
        first = len(self._problem.stage_costs)
        return torch.stack(costs) * weights[first:] if costs else weights[:0]

    def terminal_system(self, x: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
        """Terminal costs, their gradient and their Hessian."""
        x.requires_grad_()
        costs = self.terminal_costs(x, weights, parameters)
        slope = _gradient(costs.sum(), x)
        return [costs, slope, _jacobian(slope, x)]

    def terminal_merit(self, x: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
        """Sum of the terminal costs."""
        return [self.terminal_costs(x, weights, parameters).sum()]

    def terminal_curvature(self, x: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
        """Diagonal of the Hessian of the terminal costs."""
        x.requires_grad_()
        cost = self.terminal_costs(x, weights, parameters).sum()
        return [_jacobian(_gradient(cost, x), x).diagonal()]

    def _named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._names, values, strict=True))


def _traced(name: str, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function of the problem; errors name it if it cannot be traced."""
    try:
        return function(*arguments)
    except TooLong:
        raise
    except UnsupportedOperation as error:
        raise UnsupportedOperation(f"{name}: {error}") from error
    except Exception as error:
        raise UnsupportedOperation(
            f"{name} fails on one stage without batch dimensions (write x[..., i]): {error}"
        ) from error


def _gradient(value: Tensor, by: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(by)
    (result,) = torch.autograd.grad(
        value, by, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return result


def _jacobian(values: Tensor, by: Tensor) -> Tensor:
    """Derivative (rows, entries) of a vector, a row at a time."""
    rows = [_gradient(values[i], by) for i in range(len(values))]
    return torch.stack(rows) if rows else by.new_zeros(0, len(by))
