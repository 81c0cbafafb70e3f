# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG001, ARG005
"""Every status of a solve occurs when it should, and wrong options are named."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    CASES,
    Case,
    double_integrator,
    interior,
    scalar,
    solve,
    solver_of,
    squared,
    standing,
    unicycle,
)

from mpc_banded.ocp import solver as solver_module
from mpc_banded.ocp.solver import SolverOptions, Status

# Statuses


def test_iteration_limit():
    for limit in (1, 2, 5):
        solution = solve(unicycle(), max_iterations=limit)
        assert solution.status is Status.ITERATION_LIMIT
        assert len(solution.iterations) == limit
        assert np.isfinite(solution.point.z).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_wherever_a_solve_is_cut_off_it_returns_its_best(name):
    """By the exact penalty: costs, and defects weighted with twice the largest multiplier."""
    case = CASES[name]()
    solver = solver_of(case)
    data = case.data(solver.evaluator.transcription)

    def cut_off(**limits):
        solver.reset()
        return solver.solve(standing(case), data, **limits)

    whole = cut_off()
    heaviest = 2.0 * np.abs(whole.point.multipliers).max()

    def penalty(solution):
        terms = solver.evaluator.transcription.terms(torch.as_tensor(solution.point.z), data)
        return solution.costs.sum() + heaviest * float(terms.defects.abs().sum())

    ends = [cut_off(max_iterations=k) for k in range(1, len(whole.iterations))]
    reached = np.array([penalty(end) for end in [cut_off(deadline=0.0), *ends]])
    best = np.minimum.accumulate(reached)
    assert (best[1:] < reached[0]).all()
    assert (reached <= 1.25 * best).all()  # the homotopy of the barrier may cost a little


def test_a_deadline_in_the_past_leaves_the_start_as_it_was():
    case = unicycle()
    solver = solver_of(case)
    data = case.data(solver.evaluator.transcription)
    solution = solver.solve(standing(case), data, deadline=time.perf_counter() - 1.0)
    assert solution.status is Status.DEADLINE
    assert not solution.iterations
    np.testing.assert_array_equal(solution.point.z, interior(case, standing(case)))


class Clock:
    """Replaces the time: each reading is a hundredth of a second after the one before."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(solver_module.time, "perf_counter", self.read)

    def read(self):
        self.now += 0.01
        return self.now


@pytest.mark.parametrize("budget", [0.1, 0.2, 0.5])
def test_no_iteration_is_begun_that_would_end_after_the_deadline(monkeypatch, budget):
    case = unicycle()
    solver = solver_of(case)
    data = case.data(solver.evaluator.transcription)
    clock = Clock(monkeypatch)
    deadline = clock.now + budget
    solution = solver.solve(standing(case), data, deadline)
    assert solution.status is Status.DEADLINE
    assert 1 <= len(solution.iterations) < 22
    assert clock.now <= deadline + 1e-9
    assert clock.now >= deadline - 0.1


def test_one_slow_iteration_does_not_bar_all_later_ones(monkeypatch):
    clock = Clock(monkeypatch)
    late = []

    def dynamics(x, u, p):
        if late and x.requires_grad:  # while derivatives are taken
            clock.now += late.pop()
        return u - x**3

    case = scalar(dynamics, lambda x, u, p: squared(x) + squared(u))
    solver = solver_of(case)
    transcription = solver.evaluator.transcription
    point = solver.solve(standing(case), case.data(transcription)).point
    moved = Case(case.problem, np.array([1.5])).data(transcription)
    late.append(10.0)
    assert solver.solve(point, moved).iterations  # one of them takes ten seconds
    counts = []
    for _ in range(12):
        solution = solver.solve(point, moved, clock.now + 0.5)
        assert solution.status in (Status.CONVERGED, Status.DEADLINE)
        counts.append(len(solution.iterations))
    assert not late
    assert counts[0] == 0
    assert min(counts[-3:]) > 1


@pytest.mark.parametrize(
    ("dynamics", "cost"),
    [
        (lambda x, u, p: x.log() + u, lambda x, u, p: squared(x) + squared(u)),
        (lambda x, u, p: u, lambda x, u, p: (x - 2.0).sqrt()[..., 0] + squared(u)),
        (lambda x, u, p: 0.0 * u / (x - x), lambda x, u, p: squared(u)),
        (lambda x, u, p: u, lambda x, u, p: (1e3 * x.exp()).exp()[..., 0] + squared(u)),
        (lambda x, u, p: u, lambda x, u, p: (x - 1.0).abs().sqrt()[..., 0] + squared(u)),
    ],
    ids=["log", "sqrt", "division", "overflow", "slope"],
)
def test_values_that_are_not_finite_have_a_status(dynamics, cost):
    case = scalar(dynamics, cost)
    state = Case(case.problem, np.array([-1.0 if "log" in dynamics.__code__.co_names else 1.0]))
    solution = solve(state)
    assert solution.status is Status.NON_FINITE
    assert not solution.iterations


def test_a_cost_whose_slope_is_wrong_fails_the_line_search():
    """It is ``u^2 - 3 u``, but pretends to be ``u^2 + 3 u`` to differentiation."""

    def cost(x, u, p):
        return squared(u) + 3.0 * u[..., 0] - 6.0 * u[..., 0].detach()

    solution = solve(scalar(lambda x, u, p: u, cost))
    assert solution.status is Status.LINE_SEARCH_FAILED
    assert np.isfinite(solution.point.z).all()


def test_a_cost_with_a_jump_fails_the_line_search_but_stays_before_it():
    def cost(x, u, p):
        jump = torch.where(u[..., 0] > 0.5, 1e6, 0.0)
        return (u[..., 0] - 1.0) ** 2 + jump

    solution = solve(scalar(lambda x, u, p: u, cost))
    assert solution.status is Status.LINE_SEARCH_FAILED
    assert (solution.point.z[::2] <= 0.5).all()
    assert solution.point.z[::2].max() > 0.4


def concave(x, u, p):
    return -squared(u) - squared(x)


def test_a_concave_cost_without_bound_is_not_positive_definite():
    case = scalar(lambda x, u, p: u, concave)
    solution = solve(case, regularization_max=1e-2)
    assert solution.status is Status.NOT_POSITIVE_DEFINITE
    assert not solution.iterations
    endless = solve(case)
    assert endless.status is not Status.CONVERGED
    assert endless.iterations[0].regularization > 0.0
    assert endless.iterations[0].factorizations > 1


def test_a_concave_cost_within_bounds_has_a_minimum_at_them():
    case = scalar(lambda x, u, p: u, concave, input_bounds=(-1.0, 1.0))
    solution = solve(case)
    assert solution.status is Status.CONVERGED
    np.testing.assert_allclose(np.abs(solution.point.z[::2]), 1.0, atol=1e-3)


def test_every_status_advises():
    for status in Status:
        assert len(status.value) > 40


@pytest.mark.slow
@given(
    st.sampled_from(["sqrt", "log", "exp", "reciprocal", "square", "tan", "sign", "neg"]),
    st.sampled_from(["sqrt", "log", "exp", "reciprocal", "square", "abs", "atan", "neg"]),
    st.floats(-1e3, 1e3),
    st.sampled_from([1e-6, 1.0, 1e6, 1e30]),
    st.sampled_from([(-1.0, 1.0), (-np.inf, np.inf), (-1e-6, 1e30)]),
)
@settings(max_examples=80)
def test_numerical_trouble_is_a_status_and_never_an_exception(f, cost, state, scale, bounds):
    case = scalar(
        lambda x, u, p: scale * getattr(torch, f)(x) + u,
        lambda x, u, p: scale * getattr(torch, cost)(x + u)[..., 0],
        input_bounds=bounds,
        state_bounds=(-2.0, 5.0),
    )
    solution = solve(Case(case.problem, np.array([state])), max_iterations=12)
    assert isinstance(solution.status, Status)
    if solution.status is Status.CONVERGED:
        assert np.isfinite(solution.point.z).all()
        assert solution.kkt_residual <= 1e-6
    inputs = solution.point.z[::2]
    assert ((bounds[0] <= inputs) & (inputs <= bounds[1])).all()


def test_bad_parameters_once_do_not_spoil_later_cold_solves():
    """The unit of the costs, which all options are relative to, is measured anew."""
    good = scalar(
        lambda x, u, p: u,
        lambda x, u, p: p["w"][..., 0] * (squared(x) + squared(u)),
        input_bounds=(-0.3, 0.3),
        parameters={"w": (1,)},
    )
    good = Case(good.problem, good.state, {"w": np.array([1e3])})
    bad = Case(good.problem, good.state, {"w": np.array([np.nan])})
    solver = solver_of(good)
    transcription = solver.evaluator.transcription
    assert solver.solve(standing(bad), bad.data(transcription)).status is Status.NON_FINITE
    after = solver.solve(standing(good), good.data(transcription))
    np.testing.assert_array_equal(after.point.z, solve(good).point.z)


def test_regularization_is_remembered_and_fades():
    case = scalar(lambda x, u, p: u, concave, input_bounds=(-1.0, 1.0))
    solver = solver_of(case, max_iterations=1)
    data = case.data(solver.evaluator.transcription)
    start, shifts, counts = standing(case), [], []
    for _ in range(16):
        solution = solver.solve(start, data)
        if solution.status is Status.CONVERGED:
            break
        (iteration,) = solution.iterations
        shifts.append(iteration.regularization)
        counts.append(iteration.factorizations)
        start = solution.point
    assert shifts[0] > 0.0
    assert counts[0] > 3  # found from the smallest one up
    assert max(counts[1:3]) <= 3  # found from the one before
    assert shifts[-1] < 1e-2 * shifts[0]  # bounds hold it now


@pytest.mark.parametrize(
    "name",
    [
        "max_iterations",
        "kkt_tolerance",
        "defect_tolerance",
        "barrier",
        "barrier_initial",
        "penalty",
        "merit_penalty",
        "regularization_min",
        "regularization_max",
        "armijo_slope",
    ],
)
@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf])
def test_a_wrong_option_is_named(name, value):
    with pytest.raises(ValueError, match=rf"SolverOptions.{name} is {value!r}"):
        SolverOptions(**{name: value})


def test_an_unknown_recovery_is_named():
    with pytest.raises(ValueError, match=r"recovery is 'fft'; allowed.*stagewise"):
        solver_of(double_integrator(), recovery="fft")
