# SPDX-License-Identifier: Apache-2.0
"""The study of banded Hessians: its subjects have slow twins, and the laws of its page hold."""

import warnings

import numpy as np
import pytest
import torch

from benchmarks import pages
from benchmarks.hessian_study import (
    definite,
    growth,
    newton_steps,
    optimizers,
    problems,
    recoveries,
    routes,
)
from benchmarks.hessian_study.__main__ import PAGE, PARTS
from benchmarks.hessian_study.problems import without_inequalities
from benchmarks.hessian_study.stagewise import Stagewise
from benchmarks.timing import SOLVE_PARTS
from mpc_banded.ocp import banded
from mpc_banded.ocp.comb import RECOVERIES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPC_BANDED_CACHE", str(tmp_path_factory.mktemp("cache", numbered=True)))
        return {part: part.measure(True) for part in PARTS.values()}


def dense_hessian(f, z):
    with warnings.catch_warnings():  # torch's own, on the first use of forward mode
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.func.hessian(f)(torch.as_tensor(z)).numpy()


# The page


def test_the_page_has_a_place_for_every_figure_and_no_other(figures, tmp_path):
    found = {f"{name}.made" for name in PARTS}
    for name, part in PARTS.items():
        values = part.values(figures[part])
        assert {type(value) for value in values.values()} == {str}
        found |= {f"{name}.{key}" for key in values}
        part.plot(figures[part], tmp_path)
    text = PAGE.read_text()
    # Without a C compiler there are no figures of compiled derivatives.
    assert set(pages.places(text)) - {"growth.compiled"} == found - {"growth.compiled"}
    for picture in tmp_path.iterdir():
        assert f"](images/{picture.name})" in text


# Recoveries


@pytest.mark.parametrize("grading", recoveries.GRADINGS)
@pytest.mark.parametrize(("n", "half_bandwidth"), [(1, 0), (7, 2), (12, 9), (30, 4)])
def test_the_closed_form_is_the_dense_hessian(n, half_bandwidth, grading):
    subject = recoveries.Subject(n, half_bandwidth, grading)
    exact, sizes = recoveries.exact_bands(subject.scales, subject.z.numpy())
    twin = dense_hessian(subject.f, subject.z)
    error = np.abs(banded.to_dense(exact.astype(float)) - twin)
    assert (error <= 30 * np.finfo(float).eps * banded.to_dense(sizes.astype(float))).all()


def test_as_many_probes_are_sent_as_the_page_says(figures):
    for (recovery, n, b, _), cost in figures[recoveries].costs.items():
        direct = min(2 * b + 1, n)
        expected = {"substitution": min(b + 1, n), "random": direct + 4}.get(recovery, direct)
        assert cost.probes == expected


def test_errors_are_as_the_page_says(figures):
    errors = figures[recoveries].errors
    assert {recovery for recovery, *_ in errors} == set(RECOVERIES)
    for (recovery, n, _, _, grading), error in errors.items():
        if recovery == "direct":
            assert error <= 16
        elif recovery == "substitution" and grading != "heavy ends":
            assert error <= 10 * np.sqrt(n)
        elif recovery == "phase" and grading == "level":
            assert error <= 64
    lost = [e for (r, *_, g), e in errors.items() if (r, g) == ("substitution", "heavy ends")]
    assert max(lost) > 1e4


# Ways to the Hessian and of the solve


def test_all_ways_bring_the_dense_hessian_and_all_solvers_the_solution(figures):
    found = figures[routes]
    assert routes.DENSE in {name for name, _ in found.hessian_error}
    assert max(found.hessian_error.values()) < 1e-12
    assert {name for name, _ in found.solve_residual} >= {routes.BANDED, routes.DENSE_LU}
    assert max(found.solve_residual.values()) < 1e-6


@pytest.mark.parametrize("softness", [0.0, 3.0])
@pytest.mark.parametrize("robot", problems.ROBOTS)
def test_stagewise_derivatives_are_the_dense_ones(robot, softness):
    task = without_inequalities(problems.task(robot, 4), softness)
    stages, generator = Stagewise(task), np.random.default_rng(0)
    problem = task.transcription.problem
    z = task.start + generator.standard_normal(len(task.start))
    multipliers = generator.standard_normal((problem.horizon, problem.nx))
    e = stages.evaluate(z, multipliers, 7.0)

    def terms(z):
        return task.transcription.terms(z, task.data)

    point = torch.as_tensor(z)
    jacobian = torch.func.jacrev(lambda z: terms(z).defects.reshape(-1))(point).numpy()
    gradient = torch.func.grad(lambda z: terms(z).costs.sum())(point).numpy()
    lam = torch.from_numpy(multipliers)
    of_lagrangian = dense_hessian(
        lambda z: terms(z).costs.sum() + (lam * terms(z).defects).sum(), z
    )
    step = generator.standard_normal(len(z))
    for found, expected in (
        (e.cost, terms(point).costs.sum().item()),
        (e.defects, terms(point).defects.numpy()),
        (e.gradient, gradient),
        (banded.to_dense(e.bands), of_lagrangian + 7.0 * jacobian.T @ jacobian),
        (e.defects_times(step).reshape(-1), jacobian @ step),
        (e.defects_transposed(multipliers), jacobian.T @ multipliers.reshape(-1)),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_a_violation_costs_half_its_square(generator):
    task = problems.task("bicycle", 3)
    z = task.start + torch.randn(len(task.start), generator=generator).double().numpy()
    z[0], z[5] = 5.0, -1.0  # acceleration and speed of the first interval
    soft, hard = (Stagewise(without_inequalities(task, s)).values(z)[0] for s in (2.0, 0.0))
    problem, terms = (
        task.transcription.problem,
        task.transcription.terms(torch.as_tensor(z), task.data),
    )
    squares = np.minimum(terms.inequalities.numpy(), 0.0) ** 2
    stages = z.reshape(3, -1)
    for values, (lower, upper) in (
        (stages[:, :2], problem.input_bounds),
        (stages[:, 2:], problem.state_bounds),
    ):
        outside = values - np.clip(values, lower, upper)
        squares = np.append(squares, outside**2)
    assert squares.max() >= 1.0
    np.testing.assert_allclose(soft - hard, squares.sum(), rtol=1e-9)


# Methods


@pytest.mark.parametrize("robot", problems.ROBOTS)
def test_newton_system_is_that_of_the_function_that_all_methods_minimise(robot):
    f = optimizers.Penalised(problems.task(robot, 4), 50.0)
    z = f.start + 0.3 * np.random.default_rng(0).standard_normal(len(f.start))
    value, multipliers = f.value(z)
    again, gradient = f.value_and_gradient(z)
    slope, bands = f.newton_system(z, multipliers, exact=True)

    def penalised(z):
        terms = f.stages.transcription.terms(z, f.stages.task.data)
        return terms.costs.sum() + 0.5 * f.rho * (terms.defects**2).sum()

    twin = dense_hessian(penalised, z)
    np.testing.assert_allclose(value, again, rtol=1e-12)
    np.testing.assert_allclose(slope, gradient, rtol=0, atol=1e-10 * np.abs(gradient).max())
    np.testing.assert_allclose(
        banded.to_dense(bands), twin, rtol=0, atol=1e-11 * np.abs(twin).max()
    )


def test_methods_that_arrive_are_at_stationary_points_and_went_downhill(figures):
    found = figures[optimizers]
    assert {method for *_, method in found.traces} == set(optimizers.METHODS)
    for (robot, penalty, _), trace in found.traces.items():
        f = optimizers.Penalised(problems.task(robot, optimizers.QUICK_HORIZON), penalty)
        size = np.abs(f.value_and_gradient(f.start)[1]).max()
        residual = np.abs(f.value_and_gradient(trace.end)[1]).max() / size
        np.testing.assert_allclose(residual, trace.residuals[-1], rtol=1e-3, atol=1e-9)
        assert trace.values[-1] <= trace.values[0]


def test_newton_arrives_everywhere_and_in_fewer_iterations_than_gradient_descent(figures):
    traces = figures[optimizers].traces
    for robot, penalty in {case[:2] for case in traces}:
        exact, plain = (traces[robot, penalty, m] for m in ("Newton", "gradient descent"))
        assert exact.converged
        assert exact.iterations < plain.iterations


# Definite form, KKT, penalty


@pytest.mark.parametrize("robot", problems.ROBOTS)
def test_the_kkt_matrix_is_banded_as_derived_and_both_forms_find_one_step(robot):
    subject = definite.Subject(robot, 4)
    problem, n = subject.transcription.problem, subject.transcription.n
    generator = np.random.default_rng(0)
    z = subject.task.start + 1e-3 * generator.standard_normal(n)
    multipliers = 1e-3 * generator.standard_normal((4, problem.nx))
    plain = subject.evaluate(z, multipliers, 0.0)
    jacobian = np.array([plain.defects_times(unit).reshape(-1) for unit in np.eye(n)]).T
    whole = np.block(
        [
            [banded.to_dense(plain.bands) + 0.25 * np.eye(n), jacobian.T],
            [jacobian, np.zeros((len(jacobian), len(jacobian)))],
        ]
    )
    order = np.concatenate([subject.kkt.of_z, subject.kkt.of_multipliers.reshape(-1)])
    assert sorted(order) == list(range(len(whole)))
    found = subject.kkt.dense(subject.kkt.bands(plain.bands, plain.jacobian, 0.25))
    np.testing.assert_array_equal(found[np.ix_(order, order)], whole)

    rho = 1e4 * subject.scale
    e = subject.evaluate(z, multipliers, rho)
    matrix = e.bands + np.eye(1, len(e.bands)).T * 100.0 * subject.scale
    step, reached = newton_steps.definite_step(matrix, e, multipliers, rho, 40)
    exact, exactly = subject.kkt.solve(plain, 100.0 * subject.scale)
    np.testing.assert_allclose(step, exact, rtol=0, atol=1e-7 * np.abs(exact).max())
    np.testing.assert_allclose(reached, exactly, rtol=0, atol=1e-6 * np.abs(exactly).max())


def test_a_guarded_kkt_step_takes_the_way_of_the_definite_form(figures):
    runs = figures[definite].runs
    for robot in problems.ROBOTS:
        one, other = runs[robot, definite.DEFINITE], runs[robot, definite.GUARDED]
        assert one.converged
        assert other.converged
        np.testing.assert_allclose(one.cost, other.cost, rtol=1e-6)
        assert abs(one.iterations - other.iterations) <= 2


def test_unguarded_lu_may_stay_at_a_saddle(figures):
    """The pole that hangs: stationary, and far from the least cost."""
    runs = figures[definite].runs
    hanging, swung = (runs["cartpole", by] for by in (definite.KKT, definite.DEFINITE))
    assert hanging.cost > 1.2 * swung.cost


def test_the_defect_of_a_penalty_alone_is_its_multiplier_over_rho(figures):
    for (_, rho), penalty in figures[definite].penalties.items():
        if rho >= 1e4:
            assert 0.5 * penalty.predicted < penalty.defect < 2.0 * penalty.predicted
            assert penalty.defect > definite.TOLERANCE


# Growth


def test_the_parts_of_an_iteration_add_up_and_none_is_negative(figures):
    found = figures[growth]
    for backend in found.backends:
        for part in growth.PARTS:
            assert all(found.seconds[backend, part, horizon] > 0.0 for horizon in found.horizons)
    assert min(found.memory_mib.values()) > 0.0


def test_measuring_leaves_the_solver_as_it_was():
    subject = growth.Subject(5, "eager")
    assert set(subject.iteration()) == set(growth.PARTS)
    assert subject.solve() == growth.ITERATIONS
    assert not set(SOLVE_PARTS) & set(vars(subject.evaluator))
