# SPDX-License-Identifier: Apache-2.0
"""Scipy's sequential quadratic programming: another method for the same problems."""

import warnings

import numpy as np
import scipy.optimize
import torch
from problems import Case

from mpc_banded.barrier import Barrier
from mpc_banded.transcription import Transcription


def sequential_quadratic_programming(
    case: Case, scheme: str, start: np.ndarray, soft: bool
) -> tuple[float, np.ndarray]:
    """Scipy's SLSQP on the same transcription; slack variables follow z where rows are soft."""
    transcription = Transcription(case.problem, scheme)
    data, barrier, n = case.data(transcription), Barrier(case.problem), transcription.n
    linear, quadratic = barrier.penalty if soft else np.zeros((2, 0))
    slacks, rows, unit = len(linear), barrier.penalty.shape[1], np.eye(n)

    def terms(name):
        return lambda z: getattr(transcription.terms(z, data), name).reshape(-1)

    def value(name, w):
        return terms(name)(torch.as_tensor(w[:n])).numpy()

    def jacobian(name, w):
        return torch.func.jacrev(terms(name))(torch.as_tensor(w[:n])).numpy()

    def cost(w):
        s = w[n:]
        return value("costs", w).sum() + linear @ s + 0.5 * quadratic @ (s * s)

    def slope(w):
        return np.concatenate([jacobian("costs", w).sum(axis=0), linear + quadratic * w[n:]])

    def row_values(w):
        values = barrier.rows(w[:n], value("inequalities", w))
        return values + w[n:] if soft else values

    def row_jacobian(w):
        bounds = unit[barrier.at_lower], -unit[barrier.at_upper]
        of_z = np.vstack([jacobian("inequalities", w), *bounds])
        return np.hstack([of_z, np.eye(rows)]) if soft else of_z

    def defect_jacobian(w):
        return np.pad(jacobian("defects", w), ((0, 0), (0, slacks)))

    constraints = [{"type": "eq", "fun": lambda w: value("defects", w), "jac": defect_jacobian}]
    if rows:
        constraints.append({"type": "ineq", "fun": row_values, "jac": row_jacobian})
    lower, upper = np.full(n + slacks, -np.inf), np.full(n + slacks, np.inf)
    lower[barrier.inputs], upper[barrier.inputs], lower[n:] = barrier.lower, barrier.upper, 0.0
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
