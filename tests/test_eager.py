# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""Every derivative of a Newton step is the one that torch finds densely."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import (
    CASES,
    Case,
    dense_hessian,
    plain,
    random_iterate,
    row_penalties,
    row_values,
    squared,
    tangled,
)

from mpc_banded import RecedingHorizonController
from mpc_banded.ocp import banded
from mpc_banded.ocp.barrier import optimal_slacks
from mpc_banded.ocp.eager import RECOVERIES, EagerEvaluator
from mpc_banded.ocp.newton import NewtonSystem, Point, transposed_product
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.ocp.transcription import SCHEMES, StageData, Terms, Transcription

BOUNDS = {
    "input_bounds": ([-np.inf, -2.0], [3.0, np.inf]),
    "state_bounds": ([-1.0, -np.inf, -3.0], [0.5, 2.0, np.inf]),
}
PROBLEMS = {
    **{name: lambda name=name: CASES[name](horizon=5) for name in CASES},
    "tangled": lambda: tangled(2, 2, 5),
    "tangled, bounded": lambda: tangled(3, 2, 4, **BOUNDS),
    "tangled, one stage": lambda: tangled(3, 2, 1, **BOUNDS),
    "tangled, two stages": lambda: tangled(2, 3, 2),
    "tangled, no inequality": lambda: tangled(2, 1, 4, inequalities=0),
}
RHO = 3.0


@dataclass(frozen=True)
class Dense:
    """All derivatives at one random point, densely, and where they were taken."""

    point: Point
    data: StageData
    terms: Terms
    rows: np.ndarray
    distances: np.ndarray
    barrier: float
    cost_gradient: np.ndarray
    barrier_gradient: np.ndarray
    lagrangian: np.ndarray
    barrier_curvature: np.ndarray
    defect_jacobian: np.ndarray
    row_jacobian: np.ndarray

    def matrix(self, penalty):
        flat = self.defect_jacobian.reshape(-1, len(self.point.z))
        return self.lagrangian + penalty * flat.T @ flat + self.barrier_curvature


@cache
def dense(name, scheme):
    case = PROBLEMS[name]()
    problem, transcription = case.problem, Transcription(case.problem, scheme)
    data = case.data(transcription)
    point = random_iterate(EagerEvaluator(transcription), case)
    z, lam = torch.as_tensor(point.z), torch.as_tensor(point.multipliers)
    linear, quadratic = (torch.as_tensor(w) for w in row_penalties(problem))
    lower, upper = (torch.as_tensor(bound) for bound in problem.input_bounds)
    mu, nu, r = torch.tensor(point.mu, dtype=torch.float64), problem.nu, len(linear)

    def terms(z):
        return transcription.terms(z, data)

    def distances(z):
        u = z.reshape(problem.horizon, -1)[:, :nu]
        v, t = optimal_slacks(row_values(transcription, z, data), linear, quadratic, mu)
        return torch.cat([u - lower, upper - u, t, v], dim=-1)

    def barrier(z):
        each = distances(z)
        v = each[:, 2 * nu + r :]
        bounded = each.isfinite()
        return (linear * v + quadratic * v * v / 2).sum() - mu * each[bounded].log().sum()

    def lagrangian(z):
        t, first = terms(z), 2 * nu
        multipliers = torch.as_tensor(point.duals)[:, first : first + t.inequalities.shape[-1]]
        return t.costs.sum() + (lam * t.defects).sum() - (multipliers * t.inequalities).sum()

    of_rows = torch.func.jacrev(lambda z: row_values(transcription, z, data))(z).numpy()
    of_lower, of_upper, t, v = np.split(distances(z).numpy(), [nu, 2 * nu, 2 * nu + r], axis=1)
    zeta = point.duals / distances(z).numpy()
    of_inputs = np.zeros((problem.horizon, transcription.block))
    of_inputs[:, :nu] = zeta[:, :nu] + zeta[:, nu : 2 * nu]
    of_t, of_v = zeta[:, 2 * nu : 2 * nu + r], quadratic.numpy() + zeta[:, 2 * nu + r :]
    schur = (of_t * of_v / (of_t + of_v)).ravel()
    flat = of_rows.reshape(-1, len(z))
    return Dense(
        point,
        data,
        terms(z),
        row_values(transcription, z, data).numpy(),
        np.hstack([of_lower, of_upper, t, v]),
        float(barrier(z)),
        torch.func.grad(lambda z: terms(z).costs.sum())(z).numpy(),
        torch.autograd.functional.jacobian(barrier, z).numpy(),
        dense_hessian(lagrangian, z).numpy(),
        flat.T @ (schur[:, None] * flat) + np.diag(of_inputs.ravel()),
        torch.func.jacrev(lambda z: terms(z).defects)(z).numpy(),
        of_rows,
    )


def system(name, scheme, recovery="stagewise", half_bandwidth=0, penalty=RHO):
    d = dense(name, scheme)
    derivatives = EagerEvaluator(
        Transcription(PROBLEMS[name]().problem, scheme), half_bandwidth, recovery
    )
    return derivatives.system(d.point, d.data, plain(derivatives, penalty))


def assert_close(found, expected, digits=11):
    expected = np.asarray(expected)
    finite = np.isfinite(expected)
    scale = max(1.0, np.abs(expected[finite]).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=10.0**-digits * scale)


def assert_same_system(one, other):
    np.testing.assert_array_equal(one.point.duals, other.point.duals)
    for field in fields(NewtonSystem):
        if field.name != "point":
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


every_problem = pytest.mark.parametrize("name", PROBLEMS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
every_recovery = pytest.mark.parametrize("recovery", RECOVERIES)


@pytest.mark.slow
@every_recovery
@every_scheme
@every_problem
def test_values_and_gradients_are_those_of_the_terms(name, scheme, recovery):
    s, d = system(name, scheme, recovery), dense(name, scheme)
    assert_close(s.costs, d.terms.costs)
    assert_close(s.defects, d.terms.defects)
    assert_close(s.rows, d.rows)
    assert_close(s.distances, d.distances)
    assert s.barrier == pytest.approx(d.barrier)
    np.testing.assert_array_equal(s.point.duals, d.point.duals)  # they are within their range
    assert_close(s.cost_gradient, d.cost_gradient)
    assert_close(s.barrier_gradient, d.barrier_gradient)
    expected = np.tensordot(d.point.multipliers, d.defect_jacobian, 2)
    assert_close(s.dynamics_gradient, expected)


@every_problem
def test_duals_are_made_safe_before_anything_depends_on_them(name):
    d = dense(name, "midpoint")
    derivatives = EagerEvaluator(Transcription(PROBLEMS[name]().problem, "midpoint"))
    bounded = np.isfinite(d.distances)
    wild = np.where(bounded, 1e30, 0.0)
    s = derivatives.system(replace(d.point, duals=wild), d.data, plain(derivatives, RHO))
    np.testing.assert_allclose(s.point.duals, 1e8 * d.point.mu / d.distances)
    again = derivatives.system(
        replace(d.point, duals=s.point.duals), d.data, plain(derivatives, RHO)
    )
    assert_same_system(s, again)


@every_scheme
@every_problem
def test_the_merit_function_is_that_of_the_system(name, scheme):
    s, d = system(name, scheme), dense(name, scheme)
    derivatives = EagerEvaluator(Transcription(PROBLEMS[name]().problem, scheme))
    merit = derivatives.merit(
        d.point.z, d.point.multipliers, d.point.mu, d.data, plain(derivatives)
    )
    assert merit.cost == pytest.approx(s.costs.sum(), rel=1e-13)
    assert merit.barrier == pytest.approx(s.barrier, rel=1e-13)
    assert merit.dynamics == pytest.approx((d.point.multipliers * s.defects).sum(), rel=1e-12)
    assert merit.defects == pytest.approx(0.5 * (s.defects**2).sum(), rel=1e-13)
    parts = merit.cost + merit.barrier + merit.dynamics
    assert merit.value(0.0) == pytest.approx(parts, rel=1e-15)
    assert merit.value(7.0) == pytest.approx(parts + 7.0 * merit.defects, rel=1e-15)


@every_scheme
@every_problem
def test_gradients_are_the_slopes_of_the_merit_function(name, scheme):
    """Also that of its penalty, ``J' d``, which the line search takes for granted."""
    s, d = system(name, scheme), dense(name, scheme)
    derivatives = EagerEvaluator(Transcription(PROBLEMS[name]().problem, scheme))
    slopes = []
    for step in 1e-5 * np.eye(len(d.point.z)):
        ahead, behind = (
            derivatives.merit(z, d.point.multipliers, d.point.mu, d.data, plain(derivatives))
            for z in (d.point.z + step, d.point.z - step)
        )
        slopes.append(
            [(getattr(ahead, f.name) - getattr(behind, f.name)) / 2e-5 for f in fields(ahead)]
        )
    of_cost, of_barrier, of_dynamics, of_defects = np.transpose(slopes)
    assert_close(s.cost_gradient, of_cost, digits=6)
    assert_close(s.barrier_gradient, of_barrier, digits=6)
    assert_close(s.dynamics_gradient, of_dynamics, digits=6)
    assert_close(transposed_product(s.defect_jacobian, s.defects), of_defects, digits=6)


def test_the_merit_function_is_infinite_outside_the_input_bounds():
    d = dense("tangled, bounded", "midpoint")
    derivatives = EagerEvaluator(Transcription(PROBLEMS["tangled, bounded"]().problem, "midpoint"))
    for entry, value in ((0, 3.0), (0, 1e9), (1, -2.0), (-4, -2.1)):
        z = d.point.z.copy()
        z[entry] = value
        merit = derivatives.merit(z, d.point.multipliers, d.point.mu, d.data, plain(derivatives))
        assert merit.barrier == np.inf
        assert np.isfinite(merit.cost)


@every_recovery
@every_scheme
@every_problem
def test_the_bands_are_the_newton_matrix(name, scheme, recovery):
    """Hessian of the Lagrangian, penalty, curvature of the barrier: though far from feasible."""
    d = dense(name, scheme)
    assert np.abs(d.terms.defects.numpy()).max() > 0.01
    bands = system(name, scheme, recovery).bands
    digits = 9 if recovery == "random" else 11
    assert_close(banded.to_dense(bands), d.matrix(RHO), digits)


@pytest.mark.parametrize("recovery", ["stagewise", "direct"])
@every_problem
def test_a_large_penalty_costs_digits_but_no_curvature(name, recovery):
    bands = system(name, "rk4", recovery, penalty=1e7).bands
    assert_close(banded.to_dense(bands), dense(name, "rk4").matrix(1e7))


@every_recovery
def test_a_larger_half_bandwidth_holds_zeros(recovery):
    right = system("tangled", "rk4", recovery).bands
    wide = system("tangled", "rk4", recovery, half_bandwidth=9).bands
    assert wide.shape == (10, right.shape[1])
    assert_close(wide[: len(right)], right, 9)
    assert_close(wide[len(right) :], 0.0, 9)


@pytest.mark.parametrize("recovery", ["stagewise", "direct"])
@every_scheme
@every_problem
def test_jacobians_are_dense_ones_without_their_zeros(name, scheme, recovery):
    s, d = system(name, scheme, recovery), dense(name, scheme)
    horizon, nx, width = s.defect_jacobian.shape
    block = width - nx
    of_defects = np.zeros_like(d.defect_jacobian)
    of_rows = np.zeros_like(d.row_jacobian)
    for k in range(horizon):
        first = k * block - nx if k else 0  # x_0 is measured, no variable
        of_defects[k, :, first : (k + 1) * block] = s.defect_jacobian[k, :, 0 if k else nx :]
        of_rows[k, :, k * block : (k + 1) * block] = s.row_jacobian[k]
    assert not s.defect_jacobian[0, :, :nx].any()
    assert_close(of_defects, d.defect_jacobian)
    assert_close(of_rows, d.row_jacobian)


@pytest.mark.parametrize("recovery", ["stagewise", "direct"])
@every_problem
def test_the_gradient_of_the_costs_does_not_depend_on_the_multipliers(name, recovery):
    """However large: no digit of it is lost in a difference from the Lagrangian's gradient."""
    d, transcription = dense(name, "rk4"), Transcription(PROBLEMS[name]().problem, "rk4")
    evaluator = EagerEvaluator(transcription, recovery=recovery)
    light, heavy = (
        evaluator.system(
            replace(d.point, multipliers=f * d.point.multipliers), d.data, plain(evaluator, RHO)
        )
        for f in (0.0, 1e12)
    )
    np.testing.assert_array_equal(light.cost_gradient, heavy.cost_gradient)


@every_problem
def test_a_cold_start_is_on_the_central_path(name):
    d = dense(name, "euler")
    derivatives = EagerEvaluator(Transcription(PROBLEMS[name]().problem, "euler"))
    duals = derivatives.central_duals(d.point.z, 0.5, d.data)
    point = replace(d.point, duals=duals, mu=0.5)
    s = derivatives.system(point, d.data, plain(derivatives, RHO))
    finite = np.isfinite(s.distances)
    np.testing.assert_allclose(duals[finite] * s.distances[finite], 0.5, rtol=1e-12)
    assert not duals[~finite].any()


@every_recovery
@every_problem
def test_the_curvature_of_the_costs_is_theirs_alone(name, recovery):
    """No constraint has a part in it."""
    d, transcription = dense(name, "rk4"), Transcription(PROBLEMS[name]().problem, "rk4")
    hessian = dense_hessian(
        lambda z: transcription.terms(z, d.data).costs.sum(), torch.as_tensor(d.point.z)
    )
    found = EagerEvaluator(transcription, recovery=recovery).cost_curvature(d.point.z, d.data)
    assert_close(found, hessian.diagonal(), digits=9)


def test_live_inputs_are_never_remembered():
    case = tangled(2, 1, 3)
    transcription = Transcription(case.problem, "midpoint")
    derivatives = EagerEvaluator(transcription)
    point = random_iterate(derivatives, case)
    first = derivatives.system(point, case.data(transcription), plain(derivatives, RHO))
    other = Case(case.problem, -case.state, {"a": -case.parameters["a"]})
    weights = {"stage": 5.0, "end": 0.0}
    different = replace(
        point, multipliers=2.0 * point.multipliers, duals=3.0 * point.duals, mu=0.3
    )
    derivatives.system(different, other.data(transcription, weights), plain(derivatives, 7.0))
    assert_same_system(
        first, derivatives.system(point, case.data(transcription), plain(derivatives, RHO))
    )
    fresh = EagerEvaluator(transcription).system(
        point, other.data(transcription), plain(derivatives, RHO)
    )
    assert np.abs(fresh.bands - first.bands).max() > 1e-3


def test_the_arguments_are_not_changed():
    case = tangled(3, 2, 3, **BOUNDS)
    transcription = Transcription(case.problem, "midpoint")
    derivatives, data = EagerEvaluator(transcription), case.data(transcription)
    point = random_iterate(derivatives, case)
    arguments = [point.z, point.multipliers, point.duals, data.initial_state.numpy()]
    copies = [a.copy() for a in arguments]
    s = derivatives.system(point, data, plain(derivatives, RHO))
    names = [field.name for field in fields(s) if field.name != "point"]
    before = [np.copy(getattr(s, name)) for name in names]
    derivatives.merit(point.z, point.multipliers, point.mu, data, plain(derivatives))
    derivatives.newton_step(s, plain(derivatives, RHO), 1e3, 0.0)
    derivatives.central_duals(point.z, point.mu, data)
    derivatives.cost_curvature(point.z, data)
    for argument, copy in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(argument, copy)
    for name, copy in zip(names, before, strict=True):
        np.testing.assert_array_equal(getattr(s, name), copy)


@every_recovery
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
    derivatives = EagerEvaluator(transcription, recovery=recovery)
    duals = derivatives.central_duals(np.zeros(6), 0.1, data)
    s = derivatives.system(
        Point(np.zeros(6), np.zeros((3, 1)), duals, 0.1), data, plain(derivatives, 2.0)
    )
    assert_close(s.cost_gradient, [0, 1, 0, 1, 0, 0])
    assert not s.row_jacobian.any()
    assert not s.barrier_gradient.any()
    flat = np.zeros((3, 6))
    flat[0, 1] = flat[1, 3] = flat[2, 5] = 1.0
    flat[1, 1] = flat[2, 3] = -1.0
    assert_close(banded.to_dense(s.bands), 2.0 * flat.T @ flat)


@every_recovery
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
    derivatives = EagerEvaluator(transcription, recovery=recovery)
    z, multipliers = np.zeros(6), np.zeros((3, 1))
    s = derivatives.system(Point(z, multipliers, np.zeros((3, 2)), 0.1), data, plain(derivatives))
    assert np.isnan(s.defects).any()
    assert np.isnan(s.bands).any()
    assert np.isnan(derivatives.merit(z, multipliers, 0.1, data, plain(derivatives)).defects)


@pytest.mark.slow
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
