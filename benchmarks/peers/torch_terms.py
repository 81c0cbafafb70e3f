# SPDX-License-Identifier: Apache-2.0
"""The tasks' formulas in torch."""

from __future__ import annotations

import torch

from benchmarks.tasks import Operations

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
