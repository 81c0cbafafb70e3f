# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""A Newton step solves the KKT system of its point, by torch and numpy as by machine code."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import (
    CASES,
    compiled_evaluator,
    plain,
    random_iterate,
    source_of,
    squared,
    tangled,
)

from mpc_banded.ocp import banded
from mpc_banded.ocp.banded import NotPositiveDefinite
from mpc_banded.ocp.checks import check_problem
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.newton import Point, product, transposed_product
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.ocp.transcription import SCHEMES, Transcription

#: nx, nu, N. Windows of 2 nx + nu entries are padded to whole vectors, columns taken four at once:
#: every remainder of both is here.
SIZES = [(1, 1, 1), (1, 1, 2), (1, 3, 3), (2, 1, 4), (3, 2, 3), (2, 3, 5), (4, 2, 3), (5, 3, 2)]
PENALTY = 1e3


@cache
def problem(name):
    """Eager derivatives of a problem with everything coupled, a random point, its data."""
    case = CASES[name]() if isinstance(name, str) else tangled(*name, input_bounds=(-2.0, 3.0))
    eager = EagerEvaluator(Transcription(case.problem, "rk4"))
    return eager, random_iterate(eager, case), case.data(eager.transcription)


@pytest.fixture(params=["eager", "compiled"])
def made(request, libraries):
    """Derivatives for eager ones: themselves, or compiled."""

    def make(eager):
        if request.param == "eager":
            return eager
        return compiled_evaluator(eager, libraries.library(source_of(eager)))

    return make


def definite(system):
    """A shift with which any matrix is definite."""
    return 2.0 * np.abs(banded.to_dense(system.bands)).sum(axis=0).max()


def dense_jacobian(system):
    """(N nx, n)."""
    n = len(system.gradient)
    return np.stack([product(system.defect_jacobian, unit).ravel() for unit in np.eye(n)], axis=1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["unicycle", "cartpole", (3, 2, 4)])
def test_products_with_the_jacobian_are_dense_products(name, scheme):
    case = CASES[name]() if isinstance(name, str) else tangled(*name)
    transcription = Transcription(case.problem, scheme)
    derivatives, data = EagerEvaluator(transcription), case.data(transcription)
    point, random = random_iterate(derivatives, case), np.random.default_rng(0)
    jacobian = torch.func.jacrev(lambda z: transcription.terms(z, data).defects)(
        torch.from_numpy(point.z)
    ).numpy()
    of_stages = derivatives.system(point, data, plain(derivatives, 1.0)).defect_jacobian
    step, multipliers = random.standard_normal(transcription.n), point.multipliers
    np.testing.assert_allclose(product(of_stages, step), jacobian @ step, atol=1e-11)
    np.testing.assert_allclose(
        transposed_product(of_stages, multipliers), np.tensordot(multipliers, jacobian), atol=1e-11
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_step_is_a_dense_solve_and_its_multipliers_follow(made, name):
    """``(H + shift) z + gradient + J' lambda = 0``, however far the sweeps have come."""
    eager, point, data = problem(name)
    derivatives = made(eager)
    system = derivatives.system(point, data, plain(derivatives, PENALTY))
    shift, jacobian = definite(system), dense_jacobian(system)
    matrix = banded.to_dense(system.bands) + shift * np.eye(len(point.z))
    step = derivatives.newton_step(system, plain(derivatives, PENALTY), shift, np.inf)
    shifted = point.multipliers + PENALTY * system.defects
    first = np.linalg.solve(matrix, -system.gradient - jacobian.T @ shifted.ravel())
    scale = np.abs(first).max()
    np.testing.assert_allclose(step.z, first, atol=1e-10 * scale)
    swept = derivatives.newton_step(system, plain(derivatives, PENALTY), shift, 0.0)
    assert np.abs(swept.z - first).max() > 1e-6 * scale
    for each in (step, swept):
        np.testing.assert_allclose(each.defect_change.ravel(), jacobian @ each.z, atol=1e-9)
        residual = matrix @ each.z - PENALTY * jacobian.T @ (jacobian @ each.z)
        residual += system.gradient + jacobian.T @ each.multipliers.ravel()
        assert np.abs(residual).max() < 1e-9 * max(1.0, np.abs(matrix).max() * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unicycle", "cartpole", "van_der_pol"])
def test_sweeps_make_the_linearised_defects_vanish(made, name):
    """At a penalty as the solver has it, the step is that of the dense KKT system."""
    eager, point, data = problem(name)
    derivatives, penalty = made(eager), 1e7
    system = derivatives.system(point, data, plain(derivatives, penalty))
    jacobian = dense_jacobian(system)
    matrix = banded.to_dense(system.bands) - penalty * jacobian.T @ jacobian
    shift = 1.0 + max(0.0, -np.linalg.eigvalsh(matrix)[0])
    step = derivatives.newton_step(system, plain(derivatives, penalty), shift, 1e-10)
    assert np.abs(system.defects + step.defect_change).max() <= 1e-10
    rows = len(jacobian)
    kkt = np.block(
        [[matrix + shift * np.eye(len(matrix)), jacobian.T], [jacobian, np.zeros((rows, rows))]]
    )
    solution = np.linalg.solve(kkt, -np.concatenate([system.gradient, system.defects.ravel()]))
    z, multipliers = np.split(solution, [len(matrix)])
    np.testing.assert_allclose(step.z, z, atol=1e-6 * np.abs(z).max())
    np.testing.assert_allclose(
        step.multipliers.ravel(), multipliers, atol=1e-5 * np.abs(multipliers).max()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unicycle", "bicycle", (3, 2, 3)])
def test_slopes_are_those_of_the_merit_function(made, name):
    eager, point, data = problem(name)
    derivatives = made(eager)
    system = derivatives.system(point, data, plain(derivatives, PENALTY))
    step = derivatives.newton_step(system, plain(derivatives, PENALTY), definite(system), 0.0)
    h = 1e-6 / np.abs(step.z).max()
    ahead, behind = (
        derivatives.merit(
            point.z + s * step.z, step.multipliers, point.mu, data, plain(derivatives)
        )
        for s in (h, -h)
    )
    here = derivatives.merit(point.z, step.multipliers, point.mu, data, plain(derivatives))
    slope = (ahead.value(0.0) - behind.value(0.0)) / (2.0 * h)
    assert step.slope == pytest.approx(slope, rel=1e-5, abs=1e-7 * abs(here.value(0.0)) / h)
    bend = (ahead.defects - behind.defects) / (2.0 * h)
    assert step.bend == pytest.approx(bend, rel=1e-5, abs=1e-7 * here.defects / h)
    assert step.dynamics == pytest.approx(here.dynamics, rel=1e-12)
    assert step.squared_defects == pytest.approx(here.defects, rel=1e-12)


@pytest.mark.parametrize("name", ["unicycle", "bicycle", (2, 3, 5)])
def test_a_step_advances_every_stage_as_its_barrier_does(made, name):
    eager, point, data = problem(name)
    derivatives = made(eager)
    system = derivatives.system(point, data, plain(derivatives, PENALTY))
    step = derivatives.newton_step(
        system, plain(derivatives, PENALTY), definite(system) / 1e3, 0.0
    )
    lengths, mu = [], torch.tensor(point.mu, dtype=torch.float64)
    for k, of_stage in enumerate(step.z.reshape(len(system.defects), -1)):
        arrays = (system.point.duals[k], system.distances[k], system.row_jacobian[k], of_stage)
        length, duals = derivatives.barrier.advance(*map(torch.from_numpy, arrays), mu)
        lengths.append(float(length))
        np.testing.assert_allclose(step.duals[k], duals, rtol=1e-11)
    assert step.longest == pytest.approx(min(lengths), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_what_is_not_positive_definite_is_refused_at_the_unknown_where_it_shows(made, name):
    eager, point, data = problem(name)
    derivatives = made(eager)
    system = derivatives.system(point, data, plain(derivatives, PENALTY))
    for share in (-1.0, -0.05):
        matrix = system.bands.copy()
        matrix[0] += share * definite(system)
        with pytest.raises(NotPositiveDefinite) as expected:
            banded.cholesky(matrix)
        with pytest.raises(NotPositiveDefinite) as found:
            derivatives.newton_step(
                system, plain(derivatives, PENALTY), share * definite(system), 0.0
            )
        assert found.value.index == expected.value.index


@pytest.mark.slow
@pytest.mark.parametrize("entry", [0, 3, -1])
def test_what_is_not_finite_is_seen_and_refused(made, entry):
    eager, point, data = problem((3, 2, 3))
    derivatives = made(eager)
    assert derivatives.system(point, data, plain(derivatives, PENALTY)).finite
    z = point.z.copy()
    z[entry] = np.nan
    broken = derivatives.system(replace(point, z=z), data, plain(derivatives, PENALTY))
    assert not broken.finite
    with pytest.raises(NotPositiveDefinite):
        derivatives.newton_step(broken, plain(derivatives, PENALTY), 1e9, 0.0)


def test_a_smaller_half_bandwidth_that_suffices_gives_the_same_step(libraries):
    """Where stages couple less than they could: two states with nothing in common."""
    problem = OptimalControlProblem(
        nx=2,
        nu=1,
        horizon=6,
        dt=0.1,
        dynamics=lambda x, u, p: torch.stack([x[..., 0].sin(), u[..., 0] - x[..., 1]], dim=-1),
        stage_costs={"all": lambda x, u, p: squared(x) + squared(u)},
    )
    transcription = Transcription(problem, "euler")
    data = transcription.stage_data(np.array([0.5, -0.2]), {}, problem.weights)
    z, multipliers, steps = np.zeros(transcription.n), np.zeros((6, 2)), []
    for half_bandwidth in (transcription.half_bandwidth, transcription.half_bandwidth - 1):
        eager = EagerEvaluator(transcription, half_bandwidth)
        check_problem(eager, z + 0.1, data)
        machine = compiled_evaluator(eager, libraries.library(source_of(eager)))
        point = Point(z, multipliers, eager.central_duals(z, 0.1, data), 0.1)
        for derivatives in (eager, machine):
            system = derivatives.system(point, data, plain(derivatives, 10.0))
            steps.append(derivatives.newton_step(system, plain(derivatives, 10.0), 0.0, 1e-12).z)
    for step in steps[1:]:
        np.testing.assert_allclose(step, steps[0], atol=1e-12)
