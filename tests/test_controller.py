# SPDX-License-Identifier: Apache-2.0
"""Commands are always finite and inside their bounds, and optimal where a solve converges."""

import copy
import pickle
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    CASES,
    Case,
    assert_same_bits,
    controller_of,
    double_integrator,
    next_state,
    unicycle,
)

from mpc_banded import CommandSource, Status
from mpc_banded.ocp.controller import ControlStep

NAN = np.full(3, np.nan)


def assert_safe(step: ControlStep, problem) -> None:
    lower, upper = problem.input_bounds
    assert step.command.shape == (problem.nu,)
    assert np.isfinite(step.command).all()
    assert (lower <= step.command).all()
    assert (step.command <= upper).all()
    assert isinstance(step.status, Status)
    assert isinstance(step.source, CommandSource)
    assert step.plan.states.shape == (problem.horizon + 1, problem.nx)
    assert step.plan.inputs.shape == (problem.horizon, problem.nu)


# Safe, whatever happens

nasty = st.one_of(
    st.floats(-2.0, 2.0),
    st.floats(-2.0, 2.0),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e9, -1e9, 1e100, 1e308, 1e-308, 0.0]),
)
ticks = st.tuples(
    st.tuples(nasty, nasty, nasty),
    st.tuples(nasty, nasty),
    st.tuples(nasty, nasty, nasty),
    st.sampled_from([None, 0.0, 1e-9, 0.2, 0.33, 5.0, 1e9]),
    st.sampled_from([None, None, 0.0, -1.0, 1e-4]),
)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["midpoint", "rk4"])
@given(st.lists(ticks, min_size=1, max_size=5))
@settings(max_examples=30)
def test_commands_are_finite_and_inside_their_bounds(scheme, history):
    case = unicycle(horizon=6)
    controller = controller_of(case, scheme, max_iterations=5)
    for state, goal, disc, elapsed_s, deadline_s in history:
        step = controller.step(
            np.array(state),
            {"goal": np.array(goal), "disc": np.array(disc)},
            elapsed_s=elapsed_s,
            deadline_s=deadline_s,
        )
        assert_safe(step, case.problem)
        if not np.isfinite(state).all():
            assert step.status is Status.NON_FINITE
            assert step.source is not CommandSource.SOLUTION
    step = controller.step(case.state, case.parameters)
    assert_safe(step, case.problem)
    assert step.source is CommandSource.SOLUTION


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, np.nan) for name in CASES),
        ("unicycle", -1e9),
        ("cartpole", -1e9),
        ("bicycle", 1e200),
        ("van_der_pol", 1e200),
    ],
)
def test_one_bad_measurement_is_survived(name, value):
    case = CASES[name]()
    controller = controller_of(case, max_iterations=40)
    good = controller.step(case.state, case.parameters)
    assert good.source is CommandSource.SOLUTION
    for i in range(case.problem.nx):
        bad = case.state.copy()
        bad[i] = value
        assert_safe(controller.step(bad, case.parameters), case.problem)
    after = [controller.step(case.state, case.parameters) for _ in range(10)][-1]
    assert after.source is CommandSource.SOLUTION
    reference = controller_of(case).step(case.state, case.parameters)
    np.testing.assert_allclose(after.command, reference.command, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_states_at_the_end_of_all_numbers_are_survived(name):
    case = CASES[name]()
    controller = controller_of(case, max_iterations=5)
    for sign in (1.0, -1.0, 1.0):
        step = controller.step(sign * np.full(case.problem.nx, 1e308), case.parameters)
        assert_safe(step, case.problem)


# Sources


def test_a_solve_that_converges_is_the_solution():
    case = unicycle()
    step = controller_of(case).step(case.state, case.parameters)
    assert (step.status, step.source) == (Status.CONVERGED, CommandSource.SOLUTION)
    assert step.iterations > 0
    assert step.solve_time_s > 0.0
    assert step.kkt_residual <= 1e-6
    assert step.defect_norm <= 1e-6
    np.testing.assert_array_equal(step.command, step.plan.inputs[0])


def test_without_plan_and_solve_there_is_the_fallback():
    case = unicycle()
    for state, parameters in (
        (NAN, case.parameters),
        (case.state, {**case.parameters, "goal": np.full(2, np.nan)}),
    ):
        controller = controller_of(case, fallback=np.array([0.3, 9.0]))
        step = controller.step(state, parameters)
        assert (step.status, step.source) == (Status.NON_FINITE, CommandSource.FALLBACK)
        np.testing.assert_array_equal(step.command, [0.3, 1.5])  # moved into the bounds
        assert np.isnan(step.kkt_residual)
        assert step.iterations == 0
        assert step.cost_terms == step.violations == {}
    step = controller_of(case).step(case.state, case.parameters, deadline_s=0.0)
    assert (step.status, step.source) == (Status.DEADLINE, CommandSource.FALLBACK)
    np.testing.assert_array_equal(step.command, 0.0)


@pytest.mark.parametrize("reason", ["state", "parameters", "deadline"])
def test_a_plan_is_driven_on_while_it_lasts_and_no_longer(reason):
    case = unicycle(horizon=8)
    controller = controller_of(case)
    plan = controller.step(case.state, case.parameters).plan
    state = NAN if reason == "state" else case.state
    goal = np.full(2, np.nan) if reason == "parameters" else case.parameters["goal"]
    parameters = {**case.parameters, "goal": goal}
    deadline_s = 0.0 if reason == "deadline" else None
    for k in range(1, 12):
        step = controller.step(state, parameters, deadline_s=deadline_s)
        assert step.status is (Status.DEADLINE if deadline_s == 0.0 else Status.NON_FINITE)
        if k < 8:
            assert step.source is CommandSource.SHIFTED
            np.testing.assert_allclose(step.command, plan.inputs[k], atol=1e-12)
        else:
            assert step.source is CommandSource.FALLBACK
            np.testing.assert_array_equal(step.command, 0.0)
    assert controller.step(case.state, case.parameters).source is CommandSource.SOLUTION


def rising_unicycle():
    """Where ``rise`` is 1 the costs are higher at every evaluation: no line search succeeds."""
    case = unicycle(horizon=20, dt=0.1)
    goal, calls = case.problem.stage_costs["goal"], count()
    problem = replace(
        case.problem,
        stage_costs={
            **case.problem.stage_costs,
            "goal": lambda x, u, p: goal(x, u, p) + 1e3 * next(calls) * p["rise"][..., 0],
        },
        parameters={**case.problem.parameters, "rise": (1,)},
    )
    return Case(problem, case.state, {**case.parameters, "rise": np.zeros(1)})


def test_a_reference_that_is_not_finite_costs_one_cycle():
    """The plan is not at fault if a cold start is not finite either: it stays the warm start."""
    case = unicycle()
    controller, undisturbed = controller_of(case), controller_of(case)
    for each in (controller, undisturbed):
        assert each.step(case.state, case.parameters).status is Status.CONVERGED
    bad = {name: np.full_like(value, np.nan) for name, value in case.parameters.items()}
    step = controller.step(case.state, bad, elapsed_s=0.0)
    assert (step.source, step.status) == (CommandSource.SHIFTED, Status.NON_FINITE)
    step = controller.step(case.state, case.parameters, max_iterations=1)
    assert step.source is CommandSource.SOLUTION
    expected = undisturbed.step(case.state, case.parameters, max_iterations=1)
    np.testing.assert_allclose(step.command, expected.command, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_after_a_failure_few_iterations_a_cycle_are_enough_to_recover(limit):
    """Solves go on where the last one stopped; until they converge the plan is driven."""
    case = rising_unicycle()
    cold = controller_of(case).step(case.state, case.parameters)
    assert cold.iterations > 2 * limit
    controller = controller_of(case)
    wanted = controller.step(case.state, case.parameters).command
    rise = {**case.parameters, "rise": np.ones(1)}
    step = controller.step(case.state + 0.1, rise, elapsed_s=0.0)
    assert step.status is Status.LINE_SEARCH_FAILED
    plan, cycles = step.plan, 0
    while True:
        step = controller.step(case.state, case.parameters, elapsed_s=0.0, max_iterations=limit)
        cycles += 1
        assert cycles <= -(-cold.iterations // limit) + 1
        if step.source is not CommandSource.SHIFTED:
            break
        np.testing.assert_array_equal(step.plan.inputs, plan.inputs)
    assert step.status is Status.CONVERGED
    assert cycles > 1
    np.testing.assert_allclose(step.command, wanted, atol=1e-4)


def test_a_long_pause_discards_the_plan():
    case = unicycle(horizon=5)
    controller = controller_of(case)
    first = controller.step(case.state, case.parameters)
    step = controller.step(case.state, case.parameters, elapsed_s=1.0, deadline_s=0.0)
    assert step.source is CommandSource.FALLBACK
    controller.reset()
    again = controller.step(case.state, case.parameters)
    assert_same_bits(first, again)
    controller.step(case.state, case.parameters)
    late = controller.step(case.state, case.parameters, elapsed_s=1e9)
    np.testing.assert_array_equal(late.plan.inputs, first.plan.inputs)


@pytest.mark.parametrize("limit", [1, 3, 6])
def test_an_iteration_budget_returns_what_it_has(limit):
    case = unicycle()
    step = controller_of(case, max_iterations=limit).step(case.state, case.parameters)
    assert (step.status, step.source) == (Status.ITERATION_LIMIT, CommandSource.SOLUTION)
    assert step.iterations == limit
    assert np.isfinite(step.kkt_residual)
    assert set(step.cost_terms) == set(case.problem.cost_names)


def test_budgets_spent_over_several_cycles_converge_too():
    case = unicycle()
    controller = controller_of(case, max_iterations=3)
    for _ in range(20):
        step = controller.step(case.state, case.parameters, elapsed_s=0.0)
    assert step.status is Status.CONVERGED
    reference = controller_of(case).step(case.state, case.parameters)
    np.testing.assert_allclose(step.plan.inputs, reference.plan.inputs, atol=1e-3)


# Arguments


def test_wrong_arguments_are_named():
    case = unicycle()
    controller = controller_of(case)
    with pytest.raises(ValueError, match=r"state has shape \(2,\); it must be \(3,\)"):
        controller.step(np.zeros(2), case.parameters)
    for elapsed_s in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"elapsed_s is {elapsed_s}"):
            controller.step(case.state, case.parameters, elapsed_s=elapsed_s)
    with pytest.raises(ValueError, match="deadline_s is nan"):
        controller.step(case.state, case.parameters, deadline_s=np.nan)
    with pytest.raises(ValueError, match=r"parameters\['disc'\] is missing"):
        controller.step(case.state, {"goal": np.zeros(2)})
    for fallback in (np.zeros(3), 0.0, np.array([0.0, np.nan])):
        with pytest.raises(ValueError, match="fallback_command is"):
            controller_of(case, fallback=fallback)


def test_wrong_arguments_leave_the_controller_as_it_was():
    case = unicycle()
    controller, other = controller_of(case), controller_of(case)
    for c in (controller, other):
        c.step(case.state, case.parameters)
    with pytest.raises(ValueError, match="parameters"):
        controller.step(case.state, {})
    assert_same_bits(
        controller.step(case.state, case.parameters), other.step(case.state, case.parameters)
    )


# Closed loop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "share"), [("euler", 1.0), ("midpoint", 0.4), ("trapezoid", 1.0), ("rk4", 0.7)]
)
def test_the_double_integrator_comes_to_rest_within_its_bounds(scheme, share):
    """Also where the controller runs more often than the grid of its plan."""
    case = double_integrator(horizon=25, input_bounds=(-0.8, 0.6))
    controller = controller_of(case, scheme)
    period = share * case.problem.dt
    plant = case.problem.with_grid(1, period)
    state, speeds = np.array([2.0, 1.0]), []
    for _ in range(round(8.0 / period)):
        step = controller.step(state, {}, elapsed_s=period)
        assert step.status is Status.CONVERGED
        assert -0.8 < step.command[0] < 0.6
        state = next_state(plant, "rk4", 1, state, step.command, {})
        speeds.append(step.command[0])
    assert min(speeds) < -0.79  # the bound was active
    assert np.abs(state).max() < 0.02


def test_the_unicycle_drives_round_the_disc_to_its_goal():
    case = unicycle(horizon=15)
    controller = controller_of(case)
    plant = case.problem.with_grid(1, case.problem.dt)
    state, disc, goal = case.state, case.parameters["disc"], case.parameters["goal"]
    clearances, p = [], {k: torch.as_tensor(v) for k, v in case.parameters.items()}
    for _ in range(30):
        step = controller.step(state, case.parameters)
        assert step.source is CommandSource.SOLUTION
        assert_safe(step, case.problem)
        state = next_state(plant, "rk4", 4, state, step.command, p)
        clearances.append(np.hypot(*(state[:2] - disc[:2])) - disc[2])
    assert min(clearances) > -0.01
    assert np.hypot(*(state[:2] - goal)) < 0.15


def test_steps_can_be_kept_sent_and_compared():
    case = unicycle()
    controller = controller_of(case)
    solved = controller.step(case.state, case.parameters)
    failed = controller.step(NAN, case.parameters)
    assert np.isnan(failed.kkt_residual)
    for step in (solved, failed):
        for same in (pickle.loads(pickle.dumps(step)), copy.copy(step), copy.deepcopy(step)):
            assert same == step
        assert step != replace(step, command=step.command + 1.0)
        assert step != replace(step, status=Status.DEADLINE)
    assert solved != failed
