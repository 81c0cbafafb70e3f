# SPDX-License-Identifier: Apache-2.0
"""SciPy's sequential quadratic programming: another method for the same problems."""

import warnings

import numpy as np
import scipy.optimize
import torch
from problems import Case, inputs_of, row_penalties, row_values

from mpc_banded.ocp.transcription import Transcription


def sequential_quadratic_programming(
    case: Case, scheme: str, start: np.ndarray, soft: bool
) -> tuple[float, np.ndarray]:
    """Scipy's SLSQP on the same transcription; slack variables follow z where rows are soft."""
    transcription, problem = Transcription(case.problem, scheme), case.problem
    data, n = case.data(transcription), transcription.n
    penalties = np.tile(row_penalties(problem), problem.horizon)
    linear, quadratic = penalties if soft else np.zeros((2, 0))
    slacks, rows = len(linear), penalties.shape[1]
    functions = {
        "costs": lambda z: transcription.terms(z, data).costs,
        "defects": lambda z: transcription.terms(z, data).defects.reshape(-1),
        "rows": lambda z: row_values(transcription, z, data).reshape(-1),
    }

    def value(name, w):
        return functions[name](torch.as_tensor(w[:n])).numpy()

    def jacobian(name, w):
        return torch.func.jacrev(functions[name])(torch.as_tensor(w[:n])).numpy()

    def cost(w):
        s = w[n:]
        return value("costs", w).sum() + linear @ s + 0.5 * quadratic @ (s * s)

    def slope(w):
        return np.concatenate([jacobian("costs", w).sum(axis=0), linear + quadratic * w[n:]])

    def soft_rows(w):
        return value("rows", w) + w[n:] if soft else value("rows", w)

    def row_jacobian(w):
        of_z = jacobian("rows", w)
        return np.hstack([of_z, np.eye(rows)]) if soft else of_z

    def defect_jacobian(w):
        return np.pad(jacobian("defects", w), ((0, 0), (0, slacks)))

    constraints = [{"type": "eq", "fun": lambda w: value("defects", w), "jac": defect_jacobian}]
    if rows:
        constraints.append({"type": "ineq", "fun": soft_rows, "jac": row_jacobian})
    lower, upper = np.full(n + slacks, -np.inf), np.full(n + slacks, np.inf)
    for bounds, bound in zip((lower, upper), problem.input_bounds, strict=True):
        inputs_of(problem, bounds[:n])[:] = bound
    lower[n:] = 0.0
    with warnings.catch_warnings():  # it tries points slightly outside of the bounds
        warnings.simplefilter("ignore", RuntimeWarning)
        w = scipy.optimize.minimize(
            cost,
            np.concatenate([start, np.full(slacks, 0.1)]),
            jac=slope,
            method="SLSQP",
            bounds=scipy.optimize.Bounds(lower, upper),
            constraints=constraints,
            options={"maxiter": 500, "ftol": 1e-13},
        ).x
    assert np.abs(value("defects", w)).max() < 1e-6
    return cost(w), w[:n]
