# SPDX-License-Identifier: Apache-2.0
"""The tasks' formulas in torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.task import STATE_BOUND_PENALTY, Operations, Task

TORCH = Operations(
    sin=torch.sin,
    cos=torch.cos,
    tan=torch.tan,
    sqrt=torch.sqrt,
    part=lambda x, i, j: x[..., i:j],
    join=lambda parts: torch.cat(parts, dim=-1),
    total=lambda x: x.sum(dim=-1),
    constant=lambda values: torch.as_tensor(values, dtype=torch.float64),
)


class TorchTask:
    """A task's model, costs and penalties in torch, float64.

    Args:
        task: What to evaluate.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        torch.set_num_threads(1)
        bounded = list(task.bounded_states)
        lower, upper = task.state_bounds
        self.bounds = [
            (sign, i, bound[i])
            for bound, sign in ((lower, 1.0), (upper, -1.0))
            for i in bounded
            if np.isfinite(bound[i])
        ]
        penalties = [task.penalty] * task.inequality_size
        penalties += [STATE_BOUND_PENALTY] * len(self.bounds)
        weights = torch.tensor(penalties, dtype=torch.float64).reshape(-1, 2)
        self.linear, self.quadratic = weights.T

    def advanced(self, x: Tensor, u: Tensor, p: dict[str, Tensor]) -> Tensor:
        """The state one interval later (..., nx)."""
        return self.task.advanced(TORCH, x, u, p)

    def stage_cost(self, x: Tensor, u: Tensor, p: dict[str, Tensor]) -> Tensor:
        """Without penalties (...)."""
        return self.task.stage_cost(TORCH, x, u, p)

    def terminal_cost(self, x: Tensor, p: dict[str, Tensor]) -> Tensor:
        """Without penalties (...)."""
        return self.task.terminal_cost(TORCH, x, p)

    def soft_rows(self, x: Tensor, p: dict[str, Tensor]) -> Tensor:
        """All softened rows (..., rows), wanted >= 0."""
        rows = [x[..., :0]]
        if self.task.inequality:
            rows.append(self.task.inequality(TORCH, x, p))
        rows += [sign * (x[..., i : i + 1] - bound) for sign, i, bound in self.bounds]
        return torch.cat(rows, dim=-1)

    def penalty_cost(self, x: Tensor, p: dict[str, Tensor]) -> Tensor:
        """What violations cost (...)."""
        s = torch.relu(-self.soft_rows(x, p))
        return (self.linear * s + 0.5 * self.quadratic * s * s).sum(dim=-1)


def tensors(parameters: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Parameter values as torch takes them."""
    return {name: torch.as_tensor(value) for name, value in parameters.items()}


def at(parameters: dict[str, Tensor], part: int | slice) -> dict[str, Tensor]:
    """Those of one stage or of some."""
    return {name: value[part] for name, value in parameters.items()}
