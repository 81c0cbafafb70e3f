# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG001, ARG005
"""A problem in other units has the same solution, found by the same iterations."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from problems import CASES, Case, compiled_evaluator, solver_of, source_of, squared

from mpc_banded import OptimalControlProblem, RecedingHorizonController, Status
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.solver import NewtonSolver, SolverOptions
from mpc_banded.ocp.transcription import Transcription

START = np.array([1.0, 0.0])


def double_integrator(weight=10.0, **options):
    """At rest one metre away: bang-bang with one switch, but for its small effort."""
    return {
        "nx": 2,
        "nu": 1,
        "horizon": 30,
        "dt": 0.1,
        "dynamics": lambda x, u, p: torch.stack([x[..., 1], u[..., 0]], dim=-1),
        "stage_costs": {
            "q": lambda x, u, p: x[..., 0] ** 2 + 0.1 * x[..., 1] ** 2 + 0.01 * u[..., 0] ** 2
        },
        "terminal_costs": {"f": lambda x, p: weight * squared(x)},
        **options,
    }


def bryson_denham(weight, horizon=50):
    """Least effort to turn back below 1/9 (Bryson and Ho, 1975, section 3.11): 4 / (9 l) = 4."""
    dt, end = 1.0 / horizon, torch.tensor([0.0, -1.0], dtype=torch.float64)
    return {
        "nx": 2,
        "nu": 1,
        "horizon": horizon,
        "dt": dt,
        "dynamics": lambda x, u, p: torch.stack([x[..., 1], u[..., 0]], dim=-1),
        "stage_costs": {"effort": lambda x, u, p: 0.5 * dt * u[..., 0] ** 2},
        "terminal_costs": {"end": lambda x, p: weight * squared(x - end)},
        "state_bounds": ([-np.inf, -np.inf], [1.0 / 9.0, np.inf]),
    }


def reactor():
    """A stirred tank (Klatt and Engell, 1998): feed per hour, and cooling of up to 8500 kJ/h."""

    def dynamics(x, u, p):
        a, b, inside, jacket = x.unbind(-1)
        feed, heat = u.unbind(-1)
        fast = 1.287e12 * torch.exp(-9758.3 / (inside + 273.15))
        slow = 9.043e9 * torch.exp(-8560.0 / (inside + 273.15))
        exchanged = 4032.0 * 0.215 * (jacket - inside)
        reaction = fast * a * 4.2 - fast * b * 11.0 - slow * a * a * 41.85
        return torch.stack(
            [
                feed * (5.1 - a) - fast * a - slow * a * a,
                -feed * b + fast * (a - b),
                -reaction / (0.9342 * 3.01)
                + feed * (130.0 - inside)
                + exchanged / (0.9342 * 3.01 * 10.01),
                (heat - exchanged) / (5.0 * 2.0),
            ],
            dim=-1,
        )

    return {
        "nx": 4,
        "nu": 2,
        "horizon": 20,
        "dt": 0.005,
        "dynamics": dynamics,
        "stage_costs": {"product": lambda x, u, p: (x[..., 1] - 0.6) ** 2},
        "terminal_costs": {"end": lambda x, p: (x[..., 1] - 0.6) ** 2},
        "input_bounds": ([5.0, -8500.0], [100.0, 0.0]),
    }


#: Arguments of the problem, initial state, and its optimum. No table has them on these grids: they
#: come from this solver with a smaller barrier, and the dense KKT residual below judges them. That
#: of Bryson and Denham is 4 in continuous time.
TABLE = {
    "bounded": (lambda: double_integrator(input_bounds=(-1.0, 1.0)), START, 9.01605),
    "free": (double_integrator, START, 6.02254),
    "free, heavy end": (lambda: double_integrator(1e8), START, 6.02255),
    "Bryson-Denham, 1e2": (lambda: bryson_denham(1e2), np.array([0.0, 1.0]), 3.58426),
    "Bryson-Denham, 1e4": (lambda: bryson_denham(1e4), np.array([0.0, 1.0]), 3.99455),
    "Bryson-Denham, 1e6": (lambda: bryson_denham(1e6), np.array([0.0, 1.0]), 4.00335),
    "Bryson-Denham, 1e8": (lambda: bryson_denham(1e8), np.array([0.0, 1.0]), 4.00344),
    "reactor": (reactor, np.array([0.8, 0.5, 134.14, 130.0]), 0.0134970),
}
IN_ALL_UNITS = [name for name in TABLE if not name.startswith("Bryson")]


def in_units(arguments, states, inputs, time, costs):
    """The same problem with its states, inputs, time and costs multiplied by these factors."""
    x_unit, u_unit = torch.as_tensor(states), torch.as_tensor(inputs)
    f, stage, end = (arguments[k] for k in ("dynamics", "stage_costs", "terminal_costs"))
    changed = {
        "dt": time * arguments["dt"],
        "dynamics": lambda x, u, p: f(x / x_unit, u / u_unit, p) * x_unit / time,
        "stage_costs": {
            k: lambda x, u, p, c=c: costs * c(x / x_unit, u / u_unit, p) for k, c in stage.items()
        },
        "terminal_costs": {k: lambda x, p, c=c: costs * c(x / x_unit, p) for k, c in end.items()},
    }
    if "input_bounds" in arguments:
        changed["input_bounds"] = tuple(
            inputs * np.asarray(bound) for bound in arguments["input_bounds"]
        )
    return OptimalControlProblem(**{**arguments, **changed})


def solved(problem, state):
    controller = RecedingHorizonController(problem, "rk4" if problem.nx == 2 else "midpoint")
    return controller.step(state, {})


@functools.cache
def reference(name):
    make, state, _ = TABLE[name]
    return solved(OptimalControlProblem(**make()), state)


@pytest.mark.parametrize("name", TABLE)
def test_known_optima_are_found(name):
    step = reference(name)
    assert step.status is Status.CONVERGED
    assert sum(step.cost_terms.values()) == pytest.approx(TABLE[name][2], rel=1e-3)


powers = st.floats(-8.0, 8.0).map(lambda e: 10.0**e)


@given(
    st.sampled_from(IN_ALL_UNITS),
    st.lists(powers, min_size=4, max_size=4),
    st.lists(powers, min_size=2, max_size=2),
    powers,
    powers,
)
@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
def test_results_do_not_depend_on_units(name, states, inputs, time, costs):
    make, state, _ = TABLE[name]
    arguments = make()
    states, inputs = np.array(states[: arguments["nx"]]), np.array(inputs[: arguments["nu"]])
    expected = reference(name)
    step = solved(in_units(arguments, states, inputs, time, costs), states * state)
    assert step.status is expected.status
    assert abs(step.iterations - expected.iterations) <= 2
    cost = sum(expected.cost_terms.values())
    assert sum(step.cost_terms.values()) / costs == pytest.approx(cost, rel=1e-6)


def test_powers_of_two_change_no_bit():
    """Those of the costs are even, for pivots have square roots."""
    arguments = TABLE["bounded"][0]()
    states, inputs = np.array([2.0**20, 2.0**-13]), np.array([2.0**7])
    step = solved(in_units(arguments, states, inputs, 1.0, 2.0**10), states * START)
    expected = reference("bounded")
    np.testing.assert_array_equal(step.plan.states / states, expected.plan.states)
    np.testing.assert_array_equal(step.plan.inputs / inputs, expected.plan.inputs)
    assert step.iterations == expected.iterations


@pytest.mark.parametrize("name", ["bounded", "Bryson-Denham, 1e8"])
def test_machine_code_finds_the_same_solution(libraries, name):
    make, state, _ = TABLE[name]
    eager = EagerEvaluator(Transcription(OptimalControlProblem(**make()), "rk4"))
    machine = compiled_evaluator(eager, libraries.library(source_of(eager)))
    case = Case(eager.transcription.problem, state)
    data = case.data(eager.transcription)
    start = np.zeros(eager.transcription.n)
    found, expected = (
        NewtonSolver(e, SolverOptions()).solve(start, data) for e in (machine, eager)
    )
    assert found.status is expected.status is Status.CONVERGED
    assert len(found.iterations) == len(expected.iterations)
    np.testing.assert_allclose(found.point.z, expected.point.z, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e8])
def test_what_is_called_converged_has_a_small_residual(name, factor):
    """From dense first derivatives, in the units that the solver has measured."""
    case = CASES[name](state_bounds=(-np.inf, np.inf), inequalities={}, penalties={})
    problem = case.problem
    solver = solver_of(case)
    transcription = solver.evaluator.transcription
    weights = {name: factor * w for name, w in problem.weights.items()}
    data = case.data(transcription, weights)
    solution = solver.solve(np.zeros(transcription.n), data)
    assert solution.status is Status.CONVERGED
    z, units = torch.as_tensor(solution.point.z), solver.units(solution.point.z, data)

    def jacobian(part):
        function = lambda v: getattr(transcription.terms(v, data), part).reshape(-1)  # noqa: E731
        return torch.func.jacrev(function)(z).numpy(), function(z).numpy()

    of_costs, costs = jacobian("costs")
    of_defects, defects = jacobian("defects")
    inputs = solution.point.z.reshape(problem.horizon, -1)[:, : problem.nu]
    lower, upper = problem.input_bounds
    of_barrier = np.zeros((problem.horizon, transcription.block))
    of_barrier[:, : problem.nu] = solution.point.mu * (1 / (upper - inputs) - 1 / (inputs - lower))
    gradient = of_costs.sum(axis=0) + of_defects.T @ solution.point.multipliers.ravel()
    residual = (gradient.reshape(of_barrier.shape) + of_barrier) * units.variables
    size = np.abs(of_costs.sum(axis=0).reshape(of_barrier.shape) * units.variables).max()
    size = max(size, np.abs(of_barrier * units.variables).max())
    assert np.abs(residual).max() <= 1.001e-6 * (units.cost + size)
    assert np.abs(defects.reshape(problem.horizon, -1) / units.states).max() <= 1e-6
    assert solution.point.mu <= 1.001e-5 * units.cost
    assert np.isfinite(costs).all()
