# SPDX-License-Identifier: Apache-2.0
"""locuslab's mpc.pytorch: box-constrained iterative LQR, one iteration a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mpc import mpc
from torch import Tensor
from torch.func import jacfwd, vmap

from benchmarks.peers.peer import Outcome, ShootingPeer
from benchmarks.peers.torch_terms import TORCH, TorchTask, at, tensors
from benchmarks.task import Task

#: The first step of a run takes so many iterations.
_FIRST_ITERATIONS = 30


class _Dynamics(torch.nn.Module):
    """Discrete dynamics with their Jacobians for all stages at once."""

    def __init__(self, terms: TorchTask) -> None:
        super().__init__()
        self.terms = terms
        self.jacobians = vmap(jacfwd(lambda x, u: terms.advanced(x, u, {}), argnums=(0, 1)))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.terms.advanced(x, u, {})

    def grad_input(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.jacobians(x, u)


class MpcPytorch(ShootingPeer):
    """Its quadratic cost is the Gauss-Newton model of the task's along the shifted plan.

    Its functions of a stage do not get the stage's number, so costs of its own kind (a module)
    could not follow a reference in time. Penalties enter the model where they are active.

    Args:
        task: What to solve.
        folder: Unused.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        super().__init__(task, folder)
        self.terms = TorchTask(task)
        self.dynamics = _Dynamics(self.terms)
        bounds = [np.tile(bound, (task.horizon + 1, 1, 1)) for bound in task.input_bounds]
        self.lower, self.upper = (torch.as_tensor(bound) for bound in bounds)
        self.stage = vmap(jacfwd(lambda x, u, p: task.residuals(TORCH, x, u, p), argnums=(0, 1)))
        self.end = jacfwd(lambda x, p: task.terminal_residuals(TORCH, x, p))
        self.rows = vmap(jacfwd(self.terms.soft_rows))

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        first = self.states is None
        self.start(state, parameters)
        p = tensors(parameters)
        iterations = _FIRST_ITERATIONS if first else 1
        for _ in range(iterations):
            inputs = torch.as_tensor(np.vstack([self.inputs, np.zeros((1, self.task.nu))]))
            C, c = self._model(torch.as_tensor(self.states), inputs, p)
            solver = mpc.MPC(
                self.task.nx,
                self.task.nu,
                self.task.horizon + 1,
                u_lower=self.lower,
                u_upper=self.upper,
                u_init=inputs[:, None],
                lqr_iter=1,
                grad_method=mpc.GradMethods.ANALYTIC,
                verbose=-1,
                n_batch=1,
                exit_unconverged=False,
                detach_unconverged=False,
                backprop=False,
            )
            x0 = torch.as_tensor(state)[None]
            x, u, _ = solver(x0, mpc.QuadCost(C[:, None], c[:, None]), self.dynamics)
            self.states = x[:, 0].detach().numpy()
            self.inputs = u[:-1, 0].detach().numpy()
        return Outcome(self.inputs[0], iterations, False)

    def _model(self, x: Tensor, u: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """C (N + 1, n, n) and c (N + 1, n), n = nx + nu, about a trajectory."""
        task, terms, nx = self.task, self.terms, self.task.nx
        n = nx + task.nu
        C = 1e-6 * torch.eye(n, dtype=torch.float64).repeat(task.horizon + 1, 1, 1)
        slope = torch.zeros(task.horizon + 1, n, dtype=torch.float64)
        now = at(p, slice(0, -1))
        J = torch.cat(self.stage(x[:-1], u[:-1], now), dim=-1)
        weighted = 2.0 * torch.as_tensor(task.weights)[:, None] * J
        C[:-1] += J.mT @ weighted
        r = task.residuals(TORCH, x[:-1], u[:-1], now)
        slope[:-1] += (weighted.mT @ r[..., None])[..., 0]
        J = self.end(x[-1], at(p, -1))
        weighted = 2.0 * torch.as_tensor(task.terminal_weights)[:, None] * J
        C[-1, :nx, :nx] += J.mT @ weighted
        slope[-1, :nx] += weighted.mT @ task.terminal_residuals(TORCH, x[-1], at(p, -1))
        after = at(p, slice(1, None))
        h = terms.soft_rows(x[1:], after)
        if h.shape[-1]:
            J = self.rows(x[1:], after)
            s = torch.relu(-h)
            active = (s > 0.0).double()
            C[1:, :nx, :nx] += J.mT @ ((terms.quadratic * active)[..., None] * J)
            force = terms.linear * active + terms.quadratic * s
            slope[1:, :nx] -= (J.mT @ force[..., None])[..., 0]
        tau = torch.cat([x, u], dim=-1)
        return C, slope - (C @ tau[..., None])[..., 0]
