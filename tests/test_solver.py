# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""Solutions equal those of independent methods, and have the properties of solutions."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    CASES,
    Case,
    bicycle,
    cartpole,
    double_integrator,
    inputs_of,
    row_penalties,
    row_values,
    scalar,
    solve,
    solver_of,
    squared,
    standing,
    tangled,
    unicycle,
    van_der_pol,
)
from sqp import sequential_quadratic_programming

from mpc_banded.ocp.barrier import optimal_slacks
from mpc_banded.ocp.eager import RECOVERIES, EagerEvaluator
from mpc_banded.ocp.problem import Trajectory
from mpc_banded.ocp.solver import NewtonSolver, SolverOptions, Status
from mpc_banded.ocp.transcription import SCHEMES, Transcription


def trajectory_of(case, solution) -> Trajectory:
    return Transcription(case.problem, "euler").unpack(solution.point.z, case.state)


def defects_of(case, scheme, solution) -> float:
    transcription = Transcription(case.problem, scheme)
    terms = transcription.terms(torch.as_tensor(solution.point.z), case.data(transcription))
    return float(terms.defects.abs().max())


def with_problem(case, **changes) -> Case:
    return Case(replace(case.problem, **changes), case.state, case.parameters)


# Linear-quadratic problems


def discrete(scheme, dt):
    """The matrices that a scheme makes of the double integrator's."""
    a, b, one = np.array([[0.0, 1.0], [0.0, -0.2]]), np.array([[0.0], [1.0]]), np.eye(2)
    if scheme == "euler":
        return one + dt * a, dt * b
    if scheme == "rk4":
        return (
            one + dt * a @ (one + dt / 2 * a @ (one + dt / 3 * a @ (one + dt / 4 * a))),
            dt * (one + dt / 2 * a @ (one + dt / 3 * a @ (one + dt / 4 * a))) @ b,
        )
    implicit = np.linalg.inv(one - dt / 2 * a)  # both schemes, where all is linear
    return implicit @ (one + dt / 2 * a), dt * implicit @ b


def riccati(case, scheme):
    """States and inputs by the backward recursion of the finite-horizon regulator."""
    problem = case.problem
    a, b = discrete(scheme, problem.dt)
    cost_to_go, gains = 5.0 * np.eye(2), []
    for _ in range(problem.horizon):
        gain = np.linalg.solve(0.1 * np.eye(1) + b.T @ cost_to_go @ b, b.T @ cost_to_go @ a)
        cost_to_go = np.eye(2) + a.T @ cost_to_go @ (a - b @ gain)
        gains.append(gain)
    states, inputs = [case.state], []
    for gain in reversed(gains):
        inputs.append(-gain @ states[-1])
        states.append(a @ states[-1] + b @ inputs[-1])
    return np.array(states), np.array(inputs)


@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_linear_quadratic_regulator_is_riccatis(scheme, recovery):
    case = double_integrator(horizon=40)
    solution = solve(case, scheme, recovery=recovery)
    states, inputs = riccati(case, scheme)
    assert solution.status is Status.CONVERGED
    assert len(solution.iterations) <= 4
    found = trajectory_of(case, solution)
    np.testing.assert_allclose(found.states, states, atol=1e-6)
    np.testing.assert_allclose(found.inputs, inputs, atol=1e-6)


@pytest.mark.parametrize("bound", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_bounded_quadratic_program_is_solved_as_by_an_active_set(scheme, bound):
    case = double_integrator(horizon=15, input_bounds=(-bound, 0.4 * bound))
    problem = case.problem
    a, b = discrete(scheme, problem.dt)
    # All states as functions of the inputs, so that only bounds are left.
    free, forced = [case.state], [np.zeros((2, 15))]
    for k in range(15):
        free.append(a @ free[-1])
        forced.append(a @ forced[-1])
        forced[-1][:, k] += b[:, 0]
    root = np.sqrt([1.0] * 15 + [5.0])[:, None]
    matrix = np.vstack(
        [*(r * f for r, f in zip(root, forced, strict=True)), np.sqrt(0.1) * np.eye(15)]
    )
    target = np.concatenate([*(-r * f for r, f in zip(root, free, strict=True)), np.zeros(15)])
    bounds = (-bound, 0.4 * bound)
    oracle = scipy.optimize.lsq_linear(matrix, target, bounds, method="bvls", tol=1e-14)
    solution = solve(case, scheme, barrier=1e-9)
    found = trajectory_of(case, solution)
    assert solution.status is Status.CONVERGED
    assert (oracle.active_mask != 0).sum() >= 2
    # An input that may just touch its bound keeps a distance of the order of sqrt(mu).
    np.testing.assert_allclose(found.inputs[:, 0], oracle.x, atol=1.5e-4)
    np.testing.assert_allclose(solution.costs.sum(), 2.0 * oracle.cost, rtol=1e-6)


# Nonlinear problems


def soft_cost(case, solution):
    linear, quadratic = row_penalties(case.problem)
    s = solution.violations
    return solution.costs.sum() + (linear * s + 0.5 * quadratic * s * s).sum()


NONLINEAR = {
    "unicycle past a disc": (unicycle, "rk4"),
    "unicycle inside the disc": (
        lambda **o: Case(
            (case := unicycle(**o)).problem, np.array([0.65, 0.1, 0.0]), case.parameters
        ),
        "midpoint",
    ),
    "bicycle": (bicycle, "midpoint"),
    "bicycle, tight states": (
        lambda **o: bicycle(state_bounds=([-9, -9, -0.3, 0.0], [9, 9, 0.15, 5.1]), **o),
        "midpoint",
    ),
    "cartpole": (cartpole, "rk4"),
    "cartpole, weak": (lambda **o: cartpole(input_bounds=(-6.0, 4.0), **o), "trapezoid"),
    "van_der_pol": (van_der_pol, "trapezoid"),
    "van_der_pol, one side": (
        lambda **o: van_der_pol(input_bounds=(-np.inf, 0.3), **o),
        "euler",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_problems_are_solved_as_by_sequential_quadratic_programming(name):
    build, scheme = NONLINEAR[name]
    case = build(horizon=8)
    solution = solve(case, scheme, barrier=1e-7)
    assert solution.status is Status.CONVERGED
    noise = 0.05 * np.random.default_rng(0).standard_normal(len(solution.point.z))
    soft = solution.violations.any()  # else the penalties are exact: hard rows do the same
    assert soft == (name in ("unicycle inside the disc", "van_der_pol, one side"))
    near = solution.point.z + noise
    cost, z = sequential_quadratic_programming(case, scheme, near, soft)
    assert soft_cost(case, solution) == pytest.approx(cost, rel=1e-5)
    np.testing.assert_allclose(solution.point.z, z, atol=2e-3)


# What a solution is


def multiplier_of(c, linear, quadratic, mu):
    """``mu / t`` of the softened row, by bisection for ``log t``."""

    def slope(log):
        t = np.exp(log)
        v = t - c
        return linear + quadratic * v - mu / v - mu / t

    lowest = np.log(c * (1.0 + 1e-15)) if c > 0 else -80.0
    return mu / np.exp(scipy.optimize.brentq(slope, lowest + 1e-12, 40.0, xtol=1e-15))


@pytest.mark.parametrize("scheme", ["midpoint", "rk4"])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_the_lagrangian_vanishes_at_a_solution(name, scheme):
    """Computed from first principles: nothing of it is taken from the solver but z, lambda."""
    case = CASES[name]()
    problem = case.problem
    solution = solve(case, scheme, kkt_tolerance=1e-8)
    assert solution.status is Status.CONVERGED
    mu = solution.point.mu
    transcription = Transcription(problem, scheme)
    data, z = case.data(transcription), torch.as_tensor(solution.point.z)

    def part(name):
        return lambda v: getattr(transcription.terms(v, data), name).reshape(-1)

    cost_gradient = torch.func.jacrev(part("costs"))(z).sum(dim=0).numpy()
    of_dynamics = (
        torch.func.jacrev(part("defects"))(z).numpy().T @ solution.point.multipliers.ravel()
    )
    blocks = solution.point.z.reshape(problem.horizon, -1)
    u, x = blocks[:, : problem.nu], blocks[:, problem.nu :]
    lower, upper = problem.input_bounds
    of_bounds = np.zeros_like(blocks)
    of_bounds[:, : problem.nu] = mu / (upper - u) - mu / (u - lower)
    of_rows = np.zeros_like(cost_gradient)
    jacobian = torch.func.jacrev(part("inequalities"))(z).numpy()
    penalties = [
        problem.penalties[k] for k, m in problem.inequality_widths.items() for _ in range(m)
    ]
    for i, c in enumerate(part("inequalities")(z).numpy()):
        of_rows -= multiplier_of(c, *penalties[i % len(penalties)], mu) * jacobian[i]
    for sign, bound in zip((1.0, -1.0), problem.state_bounds, strict=True):
        for k, i in zip(*np.nonzero(np.isfinite(np.broadcast_to(bound, x.shape))), strict=True):
            multiplier = multiplier_of(sign * (x[k, i] - bound[i]), 1e3, 1e3, mu)
            of_bounds[k, problem.nu + i] -= sign * multiplier
    total = cost_gradient + of_dynamics + of_bounds.ravel() + of_rows
    assert np.abs(total).max() < 1e-6 * (1.0 + np.abs(cost_gradient).max())
    assert np.abs(part("defects")(z).numpy()).max() < 1e-6


@pytest.mark.parametrize("name", ["unicycle", "bicycle", "cartpole", "van_der_pol"])
def test_the_duals_of_a_solution_are_its_multipliers(name):
    """Positive, complementary, and bounded by the penalties: l + q v of a row is split in two."""
    case = CASES[name]()
    solver = solver_of(case, kkt_tolerance=1e-9)
    data = case.data(solver.evaluator.transcription)
    solution = solver.solve(standing(case), data)
    mu, duals = solution.point.mu, solution.point.duals
    u, z = inputs_of(case.problem, solution.point.z), torch.as_tensor(solution.point.z)
    lower, upper = case.problem.input_bounds
    c = row_values(solver.evaluator.transcription, z, data)
    penalty = torch.as_tensor(row_penalties(case.problem))
    v, t = (slack.numpy() for slack in optimal_slacks(c, *penalty, torch.tensor(mu)))
    distances = np.hstack([u - lower, upper - u, t, v])
    finite = np.isfinite(distances)
    np.testing.assert_allclose(duals[finite] * distances[finite], mu, rtol=0.02)
    assert not duals[~finite].any()
    of_rows, of_violations = np.split(duals[:, 2 * case.problem.nu :], 2, axis=1)
    linear, quadratic = row_penalties(case.problem)
    np.testing.assert_allclose(
        of_rows + of_violations, linear + quadratic * v, rtol=1e-3, atol=1e-6
    )


class Spy(EagerEvaluator):
    """Remembers every point that derivatives are taken at, and every candidate."""

    def __init__(self, transcription):
        super().__init__(transcription)
        self.seen = []

    def system(self, point, *arguments):
        self.seen.append(point.z.copy())
        return super().system(point, *arguments)

    def merit(self, z, *arguments):
        self.seen.append(z.copy())
        return super().merit(z, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["unicycle", "bicycle", "cartpole", "van_der_pol"])
def test_no_iterate_ever_touches_an_input_bound(name, scheme):
    case = CASES[name]()
    solver = NewtonSolver(Spy(Transcription(case.problem, scheme)), SolverOptions())
    data = case.data(solver.evaluator.transcription)
    far = standing(case)
    inputs_of(case.problem, far)[:] = 1e9
    for start in (standing(case), far):
        solver.reset()
        solution = solver.solve(start, data)
        again = solver.solve(solution.point, data)
        assert again.status is Status.CONVERGED
    lower, upper = case.problem.input_bounds
    assert len(solver.evaluator.seen) > 20
    for z in solver.evaluator.seen:
        u = inputs_of(case.problem, z)
        assert (lower < u).all()
        assert (u < upper).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_converging_takes_a_moderate_number_of_iterations(name):
    for scheme in SCHEMES:
        solution = solve(CASES[name](), scheme)
        assert solution.status is Status.CONVERGED
        assert len(solution.iterations) <= 60
        assert solution.kkt_residual <= 1e-6
        assert solution.defect_norm <= 1e-6


@pytest.mark.slow
@given(st.floats(-3.0, 3.0))
@settings(max_examples=25)
def test_the_unit_of_the_costs_does_not_move_the_minimiser(exponent):
    case = cartpole(input_bounds=(-8.0, 8.0))
    factor = 10.0**exponent
    tight = {"kkt_tolerance": 1e-9, "defect_tolerance": 1e-9}
    reference = solve(case, **tight)
    scaled = {name: factor * weight for name, weight in case.problem.weights.items()}
    solution = solve(case, weights=scaled, **tight)
    np.testing.assert_allclose(solution.point.z, reference.point.z, atol=1e-5)
    assert solution.costs.sum() == pytest.approx(factor * reference.costs.sum(), rel=1e-6)


@pytest.mark.parametrize("name", ["unicycle", "cartpole", "van_der_pol"])
def test_newton_steps_converge_quadratically(name):
    """Halve the distance to the solution, and what one step leaves of it falls to a quarter."""
    free = {"input_bounds": (-np.inf, np.inf), "state_bounds": (-np.inf, np.inf)}
    case = CASES[name](**free)
    if name == "unicycle":
        case = with_problem(case, inequalities={}, penalties={})
    tight = {"kkt_tolerance": 1e-12, "defect_tolerance": 1e-12}
    solution = solve(case, max_iterations=30, **tight)
    random = np.random.default_rng(0)
    away = random.standard_normal(len(solution.point.z))
    shift = random.standard_normal(solution.point.multipliers.shape)
    left = []
    for distance in (0.04, 0.02, 0.01):
        start = replace(
            solution.point,
            z=solution.point.z + distance * away,
            multipliers=solution.point.multipliers + distance * shift,
        )
        step = solve(case, start=start, max_iterations=1, **tight)
        assert step.iterations[0].step_length == 1.0
        left.append(np.linalg.norm(step.point.z - solution.point.z))
    assert left[0] / left[1] > 3.0
    assert left[1] / left[2] > 3.0
    assert left[2] < 0.3 * 0.01 * np.linalg.norm(away)


def test_the_residuals_of_a_warm_solve_fall_faster_and_faster():
    case = unicycle()
    solution = solve(case)
    moved = Case(case.problem, case.state + np.array([0.02, -0.01, 0.03]), case.parameters)
    again = solve(moved, start=solution.point, kkt_tolerance=1e-9)
    assert again.status is Status.CONVERGED
    residuals = [i.kkt_residual for i in again.iterations] + [again.kkt_residual]
    assert len(residuals) <= 15
    assert residuals[-1] < 1e-3 * residuals[-2]
    assert all(i.step_length == 1.0 for i in again.iterations[-2:])


def test_a_solution_is_its_own_warm_start():
    case = bicycle()
    solver = solver_of(case)
    data = case.data(solver.evaluator.transcription)
    solution = solver.solve(standing(case), data)
    again = solver.solve(solution.point, data)
    assert again.status is Status.CONVERGED
    assert not again.iterations
    np.testing.assert_allclose(again.point.z, solution.point.z, atol=1e-9)


def test_an_interrupted_solve_goes_on_where_it_was():
    case = unicycle()
    whole = solve(case)
    solver = solver_of(case, max_iterations=5)
    data, point, barriers = case.data(solver.evaluator.transcription), standing(case), []
    for _ in range(20):
        solution = solver.solve(point, data)
        barriers += [i.barrier for i in solution.iterations]
        point = solution.point
        if solution.status is Status.CONVERGED:
            break
    np.testing.assert_allclose(point.z, whole.point.z, atol=1e-5)
    assert len(barriers) <= len(whole.iterations) + 5
    assert barriers == sorted(barriers, reverse=True)


@pytest.mark.parametrize("name", ["unicycle", "bicycle"])
def test_a_warm_start_at_or_beyond_the_input_bounds_is_brought_inside(name):
    case = CASES[name]()
    solver = solver_of(case)
    data = case.data(solver.evaluator.transcription)
    first = solver.solve(standing(case), data)
    z = first.point.z.copy()
    lower, upper = case.problem.input_bounds
    inputs = inputs_of(case.problem, z)
    inputs[:] = 1.5 * np.sign(inputs) * np.maximum(np.abs(lower), upper)
    again = solver.solve(replace(first.point, z=z), data)
    assert again.status is Status.CONVERGED
    np.testing.assert_allclose(again.point.z, first.point.z, atol=1e-4)


def test_solving_again_from_the_same_start_gives_the_same_bits():
    case = unicycle()
    solver = solver_of(case)
    data = case.data(solver.evaluator.transcription)
    first = solver.solve(standing(case), data)
    solver.reset()
    again = solver.solve(standing(case), data)
    np.testing.assert_array_equal(first.point.z, again.point.z)
    assert len(first.iterations) == len(again.iterations)


# Softened rows


def test_state_bounds_that_cannot_hold_are_violated_as_little_as_possible():
    """The cart is told to be beyond 2 m at once, but its force is bounded."""
    case = double_integrator(
        input_bounds=(-1.0, 1.0), state_bounds=([2.0, -np.inf], [np.inf, np.inf])
    )
    solution = solve(case)
    assert solution.status is Status.CONVERGED
    found = trajectory_of(case, solution)
    assert np.isfinite(found.states).all()
    np.testing.assert_allclose(found.inputs[:8], 1.0, atol=1e-3)  # what else it costs is little
    np.testing.assert_allclose(
        solution.violations[:, 0], np.maximum(2.0 - found.states[1:, 0], 0.0), atol=1e-12
    )
    assert solution.violations[0] > 0.8


def test_bounds_that_contradict_an_inequality_meet_in_the_middle():
    case = scalar(
        lambda x, u, p: u,
        lambda x, u, p: 1e-3 * squared(u),
        inequalities={
            "above": lambda x, u, p: x - 3.0,
            "below": lambda x, u, p: 1.0 - x,
        },
        penalties={"above": (0.0, 10.0), "below": (0.0, 10.0)},
    )
    solution = solve(case, barrier=1e-7)
    assert solution.status is Status.CONVERGED
    assert solution.point.z[-1] == pytest.approx(2.0, abs=1e-3)
    np.testing.assert_allclose(solution.violations[-1], 1.0, atol=1e-3)


def test_an_exact_penalty_holds_what_can_be_held():
    case = van_der_pol()
    solution = solve(case)
    found = trajectory_of(case, solution)
    assert found.states[1:, 1].min() == pytest.approx(-0.4, abs=1e-3)  # it is active
    assert not solution.violations.any()


@pytest.mark.slow
@pytest.mark.parametrize("recovery", RECOVERIES)
def test_recoveries_and_half_bandwidths_change_no_solution(recovery):
    case = unicycle()
    reference = solve(case, kkt_tolerance=1e-9)
    for half_bandwidth in (0, 12):
        solution = solve(
            case, kkt_tolerance=1e-9, recovery=recovery, half_bandwidth=half_bandwidth
        )
        assert solution.status is Status.CONVERGED
        np.testing.assert_allclose(solution.point.z, reference.point.z, atol=1e-6)


def test_a_horizon_of_one_interval_is_a_problem_too():
    solution = solve(tangled(2, 2, 1, input_bounds=(-1.0, 1.0)))
    assert solution.status is Status.CONVERGED
