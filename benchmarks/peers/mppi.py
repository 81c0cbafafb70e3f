# SPDX-License-Identifier: Apache-2.0
"""pytorch-mppi: sampled inputs, weighted by what their rollouts cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pytorch_mppi import MPPI
from torch import Tensor

from benchmarks.peers.peer import Outcome, Peer
from benchmarks.peers.torch_terms import TorchTask, at, tensors
from benchmarks.task import Task

SAMPLES = 500
#: First steps of a run refine the plan so often.
_FIRST_REFINEMENTS = 20


class Mppi(Peer):
    """Noise of a fifth of the input range, temperature of one.

    Args:
        task: What to solve.
        folder: Unused.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        super().__init__(task, folder)
        torch.manual_seed(0)
        self.terms = TorchTask(task)
        lower, upper = (torch.as_tensor(bound) for bound in task.input_bounds)
        self.sampler = MPPI(
            self._dynamics,
            self._cost,
            task.nx,
            torch.diag((0.2 * (upper - lower)) ** 2),
            num_samples=SAMPLES,
            horizon=task.horizon,
            lambda_=1.0,
            u_min=lower,
            u_max=upper,
            terminal_state_cost=self._terminal,
            step_dependent_dynamics=True,
        )

    def _dynamics(self, x: Tensor, u: Tensor, k: int) -> Tensor:
        self.before = x
        return self.terms.advanced(x, u, at(self.p, k))

    def _cost(self, x: Tensor, u: Tensor, k: int) -> Tensor:
        """Cost of stage k, whose state is the one before x, and the penalties of x."""
        cost = self.terms.stage_cost(self.before, u, at(self.p, k))
        return cost + self.terms.penalty_cost(x, at(self.p, k + 1))

    def _terminal(self, states: Tensor, _: Tensor) -> Tensor:
        return self.terms.terminal_cost(states[0, :, -1], at(self.p, -1))

    def reset(self) -> None:
        self.sampler.U = torch.zeros(self.task.horizon, self.task.nu, dtype=torch.float64)
        self.first = True

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        self.p = tensors(parameters)
        self.values = parameters
        self.state = state
        x = torch.as_tensor(state)
        with torch.no_grad():
            for _ in range(_FIRST_REFINEMENTS if self.first else 0):
                self.sampler.command(x, shift_nominal_trajectory=False)
            command = self.sampler.command(x, shift_nominal_trajectory=not self.first)
        refinements = _FIRST_REFINEMENTS + 1 if self.first else 1
        self.first = False
        return Outcome(command.numpy(), refinements, False)

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.clip(self.sampler.U.numpy(), *self.task.input_bounds)
        return self.task.rollout(self.state, inputs, self.values), inputs
