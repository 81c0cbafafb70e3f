# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""Every derivative that a Newton step takes is the one that torch finds densely."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from problems import CASES, Case, dense_hessian, random_point, squared, tangled

from mpc_banded import RecedingHorizonController, banded
from mpc_banded.derivatives import (
    RECOVERIES,
    Derivatives,
    defects_times,
    defects_transposed,
    inequalities_times,
    inequalities_transposed,
)
from mpc_banded.problem import OptimalControlProblem
from mpc_banded.transcription import SCHEMES, StageData, Terms, Transcription

PROBLEMS = {
    **{name: lambda name=name: CASES[name](horizon=5) for name in CASES},
    "tangled": lambda: tangled(2, 2, 5),
    "tangled, one stage": lambda: tangled(3, 2, 1),
    "tangled, two stages": lambda: tangled(2, 3, 2),
    "tangled, no inequality": lambda: tangled(2, 1, 4, inequalities=0),
}
RHO = 3.0


@dataclass(frozen=True)
class Dense:
    """All derivatives at one random point, densely, and where they were taken."""

    z: np.ndarray
    multipliers: np.ndarray
    of_h: np.ndarray
    data: StageData
    terms: Terms
    gradient: np.ndarray
    lagrangian: np.ndarray
    defect_jacobian: np.ndarray
    inequality_jacobian: np.ndarray


@cache
def dense(name, scheme):
    case = PROBLEMS[name]()
    transcription = Transcription(case.problem, scheme)
    data = case.data(transcription)
    point = torch.as_tensor(random_point(transcription, case))

    def terms(z):
        return transcription.terms(z, data)

    random = torch.Generator().manual_seed(1)
    lam = torch.randn(terms(point).defects.shape, generator=random, dtype=torch.float64)
    nu = torch.rand(terms(point).inequalities.shape, generator=random, dtype=torch.float64)

    def lagrangian(z):
        t = terms(z)
        return t.costs.sum() + (lam * t.defects).sum() - (nu * t.inequalities).sum()

    return Dense(
        point.numpy(),
        lam.numpy(),
        nu.numpy(),
        data,
        terms(point),
        torch.func.grad(lambda z: terms(z).costs.sum())(point).numpy(),
        dense_hessian(lagrangian, point).numpy(),
        torch.func.jacrev(lambda z: terms(z).defects)(point).numpy(),
        torch.func.jacrev(lambda z: terms(z).inequalities)(point).numpy(),
    )


def evaluated(name, scheme, recovery="stagewise", half_bandwidth=0, penalty=RHO):
    transcription = Transcription(PROBLEMS[name]().problem, scheme)
    d = dense(name, scheme)
    derivatives = Derivatives(transcription, half_bandwidth, recovery)
    return derivatives.evaluate(d.z, d.data, d.multipliers, penalty, d.of_h)


def assert_close(found, expected, digits=11):
    expected = np.asarray(expected)
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=10.0**-digits * scale)


every_problem = pytest.mark.parametrize("name", PROBLEMS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@every_scheme
@every_problem
def test_values_and_gradient_are_those_of_the_terms(name, scheme):
    e, d = evaluated(name, scheme), dense(name, scheme)
    assert_close(e.values.costs, d.terms.costs)
    assert_close(e.values.defects, d.terms.defects)
    assert_close(e.values.inequalities, d.terms.inequalities)
    assert e.values.cost == pytest.approx(float(d.terms.costs.sum()))
    assert_close(e.gradient, d.gradient)


@every_scheme
@every_problem
def test_the_gradient_is_the_slope_of_the_costs(name, scheme):
    d = dense(name, scheme)
    derivatives = Derivatives(Transcription(PROBLEMS[name]().problem, scheme))
    step = 1e-5 * np.eye(len(d.z))
    ahead = derivatives.values(d.z + step, d.data)
    behind = derivatives.values(d.z - step, d.data)
    slopes = [(a.cost - b.cost) / 2e-5 for a, b in zip(ahead, behind, strict=True)]
    assert_close(slopes, d.gradient, digits=6)


@pytest.mark.parametrize("recovery", RECOVERIES)
@every_scheme
@every_problem
def test_the_bands_are_the_hessian_of_the_lagrangian_plus_the_penalty(name, scheme, recovery):
    """Exactly, although the defects are far from zero."""
    d = dense(name, scheme)
    assert np.abs(d.terms.defects.numpy()).max() > 0.01
    flat = d.defect_jacobian.reshape(-1, len(d.z))
    expected = d.lagrangian + RHO * flat.T @ flat
    bands = evaluated(name, scheme, recovery).bands
    digits = 9 if recovery == "random" else 11
    assert_close(banded.to_dense(bands), expected, digits)


@pytest.mark.parametrize("recovery", ["stagewise", "direct"])
@every_problem
def test_a_large_penalty_costs_digits_but_no_curvature(name, recovery):
    d = dense(name, "rk4")
    flat = d.defect_jacobian.reshape(-1, len(d.z))
    bands = evaluated(name, "rk4", recovery, penalty=1e7).bands
    assert_close(banded.to_dense(bands), d.lagrangian + 1e7 * flat.T @ flat)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_a_larger_half_bandwidth_holds_zeros(recovery):
    right = evaluated("tangled", "rk4", recovery).bands
    wide = evaluated("tangled", "rk4", recovery, half_bandwidth=9).bands
    assert wide.shape == (10, right.shape[1])
    assert_close(wide[: len(right)], right, 9)
    assert_close(wide[len(right) :], 0.0, 9)


@pytest.mark.parametrize("recovery", ["stagewise", "direct"])
@every_scheme
@every_problem
def test_jacobians_are_dense_ones_without_their_zeros(name, scheme, recovery):
    e, d = evaluated(name, scheme, recovery), dense(name, scheme)
    horizon, nx, width = e.defect_jacobian.shape
    block = width - nx
    of_defects = np.zeros_like(d.defect_jacobian)
    of_inequalities = np.zeros_like(d.inequality_jacobian)
    for k in range(horizon):
        first = k * block - nx if k else 0  # x_0 is measured, no variable
        of_defects[k, :, first : (k + 1) * block] = e.defect_jacobian[k, :, 0 if k else nx :]
        of_inequalities[k, :, k * block : (k + 1) * block] = e.inequality_jacobian[k]
    assert_close(of_defects, d.defect_jacobian)
    assert_close(of_inequalities, d.inequality_jacobian)


@every_problem
def test_products_with_jacobians_are_dense_products(name):
    e, d = evaluated(name, "trapezoid"), dense(name, "trapezoid")
    random = np.random.default_rng(0)
    z = random.standard_normal(len(d.z))
    of_d = random.standard_normal(d.multipliers.shape)
    of_h = random.standard_normal(d.of_h.shape)
    assert_close(defects_times(e.defect_jacobian, z), d.defect_jacobian @ z)
    assert_close(inequalities_times(e.inequality_jacobian, z), d.inequality_jacobian @ z)
    dense_d = d.defect_jacobian.reshape(-1, len(z))
    dense_h = d.inequality_jacobian.reshape(-1, len(z))
    assert_close(defects_transposed(e.defect_jacobian, of_d), dense_d.T @ of_d.ravel())
    assert_close(inequalities_transposed(e.inequality_jacobian, of_h), dense_h.T @ of_h.ravel())


@every_scheme
def test_values_of_several_are_those_of_each(scheme):
    case = tangled(2, 2, 4)
    transcription = Transcription(case.problem, scheme)
    derivatives, data = Derivatives(transcription), case.data(transcription)
    points = np.array([random_point(transcription, case, seed) for seed in range(5)])
    together = derivatives.values(points, data)
    assert len(together) == 5
    for point, values in zip(points, together, strict=True):
        (alone,) = derivatives.values(point[None], data)
        e = derivatives.evaluate(point, data, np.zeros((4, 2)), 0.0, np.zeros((4, 2)))
        for other in (alone, e.values):
            assert_close(values.costs, other.costs, 13)
            assert_close(values.defects, other.defects, 13)
            assert_close(values.inequalities, other.inequalities, 13)


def test_live_inputs_are_never_remembered():
    case = tangled(2, 1, 3)
    transcription = Transcription(case.problem, "midpoint")
    derivatives = Derivatives(transcription)
    z, lam, nu = random_point(transcription, case), np.ones((3, 2)), np.ones((3, 2))
    first = derivatives.evaluate(z, case.data(transcription), lam, RHO, nu)
    other = Case(case.problem, -case.state, {"a": -case.parameters["a"]})
    weights = {"stage": 5.0, "end": 0.0}
    derivatives.evaluate(z, other.data(transcription, weights), 2 * lam, 7.0, 3 * nu)
    again = derivatives.evaluate(z, case.data(transcription), lam, RHO, nu)
    np.testing.assert_array_equal(first.bands, again.bands)
    np.testing.assert_array_equal(first.gradient, again.gradient)
    fresh = Derivatives(transcription).evaluate(z, other.data(transcription), lam, RHO, nu)
    assert np.abs(fresh.bands - first.bands).max() > 1e-3


def test_the_arguments_are_not_changed():
    case = tangled(2, 1, 3)
    transcription = Transcription(case.problem, "midpoint")
    arguments = random_point(transcription, case), np.ones((3, 2)), np.ones((3, 2))
    copies = [a.copy() for a in arguments]
    z, lam, nu = arguments
    Derivatives(transcription).evaluate(z, case.data(transcription), lam, RHO, nu)
    for argument, copy in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(argument, copy)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_functions_that_are_constant_or_linear_have_derivatives_too(recovery):
    problem = OptimalControlProblem(
        nx=1,
        nu=1,
        horizon=3,
        dt=0.5,
        dynamics=lambda x, u, p: torch.ones_like(x),
        stage_costs={"linear": lambda x, u, p: x[..., 0], "none": lambda x, u, p: 0 * u[..., 0]},
        terminal_costs={"constant": lambda x, p: torch.ones_like(x[..., 0])},
        inequalities={"always": lambda x, u, p: torch.ones_like(x)},
        penalties={"always": (1.0, 0.0)},
    )
    transcription = Transcription(problem, "euler")
    data = transcription.stage_data(np.zeros(1), {}, problem.weights)
    e = Derivatives(transcription, recovery=recovery).evaluate(
        np.zeros(6), data, np.zeros((3, 1)), 2.0, np.ones((3, 1))
    )
    assert_close(e.gradient, [0, 1, 0, 1, 0, 0])
    assert not e.inequality_jacobian.any()
    flat = np.zeros((3, 6))
    flat[0, 1] = flat[1, 3] = flat[2, 5] = 1.0
    flat[1, 1] = flat[2, 3] = -1.0
    assert_close(banded.to_dense(e.bands), 2.0 * flat.T @ flat)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_what_is_not_finite_is_passed_on_without_an_exception(recovery):
    problem = OptimalControlProblem(
        nx=1,
        nu=1,
        horizon=3,
        dt=0.5,
        dynamics=lambda x, u, p: (x - 1.0).sqrt() + u,
        stage_costs={"state": lambda x, u, p: squared(x)},
    )
    transcription = Transcription(problem, "midpoint")
    data = transcription.stage_data(np.zeros(1), {}, problem.weights)
    e = Derivatives(transcription, recovery=recovery).evaluate(
        np.zeros(6), data, np.zeros((3, 1)), 1.0, np.zeros((3, 0))
    )
    assert np.isnan(e.values.defects).any()
    assert np.isnan(e.bands).any()


def test_controllers_in_threads_find_the_bits_that_they_find_alone():
    cases = [CASES[name]() for name in ("unicycle", "cartpole", "bicycle", "van_der_pol")]

    def drive(case):
        controller = RecedingHorizonController(case.problem, "rk4")
        steps = [controller.step(case.state, case.parameters) for _ in range(4)]
        return [np.concatenate([s.plan.states.ravel(), s.plan.inputs.ravel()]) for s in steps]

    alone = [drive(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(drive, cases))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
