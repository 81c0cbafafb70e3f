# SPDX-License-Identifier: Apache-2.0
"""scipy's general optimisers on the same nonlinear program, with gradients from torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.optimize import Bounds, NonlinearConstraint, minimize
from torch import Tensor
from torch.func import grad, jacfwd, vmap

from benchmarks.peers.peer import TOLERANCE, Outcome, ShootingPeer
from benchmarks.peers.torch_terms import TorchTask, at, tensors
from benchmarks.task import Task


class ScipyGeneral(ShootingPeer):
    """Multiple shooting over (u, x, s), slacks s >= 0; dense Jacobians.

    Args:
        task: What to solve.
        folder: Unused.
        method: SLSQP or trust-constr.
    """

    def __init__(self, task: Task, folder: Path, method: str) -> None:
        super().__init__(task, folder)
        self.method = method
        self.terms = TorchTask(task)
        N, nx, nu = task.horizon, task.nx, task.nu
        self.rows = len(self.terms.linear)
        self.sizes = (N * nu, N * nx, N * self.rows)
        lower = np.concatenate(
            [np.tile(task.input_bounds[0], N), np.full(N * nx, -np.inf), np.zeros(N * self.rows)]
        )
        upper = np.full(len(lower), np.inf)
        upper[: N * nu] = np.tile(task.input_bounds[1], N)
        self.bounds = Bounds(lower, upper)
        self.stage = vmap(jacfwd(self.terms.advanced, argnums=(0, 1)))
        self.soft = vmap(jacfwd(self.terms.soft_rows))
        self.gradient = grad(self._objective)

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        task = self.task
        u, x, s = torch.split(z, self.sizes)
        states = torch.cat([self.x0[None], x.reshape(-1, task.nx)])
        return states, u.reshape(-1, task.nu), s.reshape(task.horizon, self.rows)

    def _objective(self, z: Tensor) -> Tensor:
        x, u, s = self._parts(z)
        soft = (self.terms.linear * s + 0.5 * self.terms.quadratic * s * s).sum()
        stages = self.terms.stage_cost(x[:-1], u, at(self.p, slice(0, -1))).sum()
        return stages + self.terms.terminal_cost(x[-1], at(self.p, -1)) + soft

    def _defects(self, z: np.ndarray) -> np.ndarray:
        x, u, _ = self._parts(torch.as_tensor(z))
        return (x[1:] - self.terms.advanced(x[:-1], u, at(self.p, slice(0, -1)))).numpy().ravel()

    def _defect_jacobian(self, z: np.ndarray) -> np.ndarray:
        task, N = self.task, self.task.horizon
        x, u, _ = self._parts(torch.as_tensor(z))
        of_x, of_u = self.stage(x[:-1], u, at(self.p, slice(0, -1)))
        J = np.zeros((N, task.nx, len(z)))
        start = self.sizes[0]
        for k in range(N):
            J[k, :, k * task.nu : (k + 1) * task.nu] = -of_u[k]
            J[k, :, start + k * task.nx : start + (k + 1) * task.nx] = np.eye(task.nx)
            if k:
                J[k, :, start + (k - 1) * task.nx : start + k * task.nx] = -of_x[k]
        return J.reshape(-1, len(z))

    def _softened(self, z: np.ndarray) -> np.ndarray:
        x, _, s = self._parts(torch.as_tensor(z))
        return (self.terms.soft_rows(x[1:], at(self.p, slice(1, None))) + s).numpy().ravel()

    def _softened_jacobian(self, z: np.ndarray) -> np.ndarray:
        task, N = self.task, self.task.horizon
        x, _, _ = self._parts(torch.as_tensor(z))
        of_x = self.soft(x[1:], at(self.p, slice(1, None)))
        J = np.zeros((N, self.rows, len(z)))
        for k in range(N):
            first = self.sizes[0] + k * task.nx
            J[k, :, first : first + task.nx] = of_x[k]
            first = self.sizes[0] + self.sizes[1] + k * self.rows
            J[k, :, first : first + self.rows] = np.eye(self.rows)
        return J.reshape(-1, len(z))

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        self.start(state, parameters)
        self.p, self.x0 = tensors(parameters), torch.as_tensor(state)
        assert self.states is not None
        h = self.terms.soft_rows(torch.as_tensor(self.states[1:]), at(self.p, slice(1, None)))
        excess = np.maximum(-h.numpy(), 0.0)
        z = np.concatenate([self.inputs.ravel(), self.states[1:].ravel(), excess.ravel()])
        found = minimize(
            lambda z: float(self._objective(torch.as_tensor(z))),
            np.clip(z, self.bounds.lb, self.bounds.ub),
            jac=lambda z: self.gradient(torch.as_tensor(z)).numpy(),
            method=self.method,
            bounds=self.bounds,
            constraints=self._constraints(),
            options=self._options(),
        )
        x, u, _ = self._parts(torch.as_tensor(found.x))
        self.states, self.inputs = x.numpy(), u.numpy()
        return Outcome(self.inputs[0], int(found.nit), bool(found.success))

    def _options(self) -> dict[str, float]:
        if self.method == "SLSQP":
            return {"ftol": TOLERANCE, "maxiter": 200}
        return {"gtol": TOLERANCE, "xtol": TOLERANCE, "maxiter": 200}

    def _constraints(self) -> list[object]:
        if self.method == "SLSQP":
            found = [{"type": "eq", "fun": self._defects, "jac": self._defect_jacobian}]
            if self.rows:
                soft = {"type": "ineq", "fun": self._softened, "jac": self._softened_jacobian}
                found.append(soft)
            return found
        result: list[object] = [
            NonlinearConstraint(self._defects, 0.0, 0.0, jac=self._defect_jacobian)
        ]
        if self.rows:
            result.append(
                NonlinearConstraint(self._softened, 0.0, np.inf, jac=self._softened_jacobian)
            )
        return result
