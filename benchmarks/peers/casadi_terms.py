# SPDX-License-Identifier: Apache-2.0
"""The tasks' formulas in CasADi."""

from __future__ import annotations

from typing import Any

import casadi as ca
import numpy as np

from benchmarks.task import STATE_BOUND_PENALTY, Operations, Task

CASADI = Operations(
    sin=ca.sin,
    cos=ca.cos,
    tan=ca.tan,
    sqrt=ca.sqrt,
    part=lambda x, i, j: x[i:j],
    join=lambda parts: ca.vertcat(*parts),
    total=ca.sum1,
    constant=ca.DM,
)


def symbols(task: Task) -> tuple[ca.SX, ca.SX, ca.SX, dict[str, ca.SX]]:
    """x, u, the parameters of a stage as one vector, and the same by name."""
    x, u = ca.SX.sym("x", task.nx), ca.SX.sym("u", task.nu)
    named = {name: ca.SX.sym(name, size) for name, size in task.parameters.items()}
    return x, u, ca.vertcat(ca.SX(0, 1), *named.values()), named


def stacked(task: Task, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """Parameter values of all stages, (horizon + 1, entries), in the order of ``symbols``."""
    columns = [parameters[name] for name in task.parameters]
    return np.hstack(columns) if columns else np.zeros((task.horizon + 1, 0))


def soft_rows(task: Task, x: ca.SX, named: dict[str, ca.SX]) -> tuple[ca.SX, np.ndarray]:
    """All softened rows, wanted >= 0, and their (linear, quadratic) weights (rows, 2)."""
    rows: list[Any] = []
    weights = []
    if task.inequality:
        rows.append(task.inequality(CASADI, x, named))
        weights += [task.penalty] * task.inequality_size
    for bound, sign in zip(task.state_bounds, (1.0, -1.0), strict=True):
        for i in np.flatnonzero(np.isfinite(bound)):
            rows.append(sign * (x[int(i)] - bound[i]))
            weights.append(STATE_BOUND_PENALTY)
    return ca.vertcat(ca.SX(0, 1), *rows), np.array(weights).reshape(-1, 2)
