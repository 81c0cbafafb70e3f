# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""The plan solves its problem, moves forward with time, and follows live changes."""

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
    rollout,
    scalar,
    squared,
    unicycle,
    van_der_pol,
)

from mpc_banded import CommandSource, Status
from mpc_banded.ocp.transcription import SCHEMES

NAN = np.full(3, np.nan)


# The plan


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_what_the_scheme_makes_of_its_inputs(name, scheme):
    case = CASES[name]()
    step = controller_of(case, scheme).step(case.state, case.parameters)
    assert step.status is Status.CONVERGED
    np.testing.assert_array_equal(step.plan.states[0], case.state)
    assert step.plan.dt == case.problem.dt
    expected = rollout(case, scheme, step.plan.inputs)
    np.testing.assert_allclose(step.plan.states, expected, atol=1e-4)
    for k in range(case.problem.horizon):
        p = {
            n: torch.as_tensor(v[k].copy())
            for n, v in case.problem.stage_parameters(case.parameters).items()
        }
        states = step.plan.states
        ahead = next_state(case.problem, scheme, 1, states[k], step.plan.inputs[k], p)
        assert np.abs(states[k + 1] - ahead).max() <= 3.0 * max(step.defect_norm, 1e-9)


def test_cost_terms_are_the_costs_of_the_plan():
    case = unicycle()
    step = controller_of(case).step(case.state, case.parameters)
    goal, terms = case.parameters["goal"], {"goal": 0.0, "effort": 0.0}
    for x, u in zip(step.plan.states[:-1], step.plan.inputs, strict=True):
        terms["goal"] += (x[0] - goal[0]) ** 2 + (x[1] - goal[1]) ** 2
        terms["effort"] += 0.1 * (u[0] ** 2 + u[1] ** 2)
    last = step.plan.states[-1]
    arrival = 4.0 * ((last[0] - goal[0]) ** 2 + (last[1] - goal[1]) ** 2)
    assert step.cost_terms == pytest.approx({**terms, "arrival": arrival}, rel=1e-12)
    assert list(step.cost_terms) == ["goal", "effort", "arrival"]


def test_violations_are_those_of_the_plan():
    """Begun inside the disc, with a wall of states behind it."""
    case = unicycle(state_bounds=([0.72, -np.inf, -np.inf], [np.inf, np.inf, 0.05]))
    disc = case.parameters["disc"]
    step = controller_of(case).step(np.array([0.65, 0.1, 0.4]), case.parameters)
    states = step.plan.states[1:]
    inside = [disc[2] ** 2 - (x[0] - disc[0]) ** 2 - (x[1] - disc[1]) ** 2 for x in states]
    assert step.violations["clearance"] == pytest.approx(max(0.0, *inside), rel=1e-9)
    assert step.violations["clearance"] > 0.0
    beyond = max(0.0, *(0.72 - states[:, 0]), *(states[:, 2] - 0.05))
    assert step.violations["state_bounds"] == pytest.approx(beyond, rel=1e-9)
    assert list(step.violations) == ["clearance", "state_bounds"]


def test_each_inequality_has_its_own_violation():
    case = scalar(
        lambda x, u, p: u,
        lambda x, u, p: squared(x) + squared(u),
        inequalities={
            "two": lambda x, u, p: torch.cat([x + 9.0, x - 7.0], dim=-1),
            "kept": lambda x, u, p: x + 100.0,
            "one": lambda x, u, p: x - 2.0,
        },
        penalties={"two": (0.0, 1e-3), "kept": (1.0, 1.0), "one": (0.0, 1e-3)},
    )
    step = controller_of(case).step(case.state, {})
    lowest = step.plan.states[1:].min()
    assert step.violations == pytest.approx(
        {"two": 7.0 - lowest, "kept": 0.0, "one": 2.0 - lowest, "state_bounds": 0.0}
    )


# Warm start


def shifted_plan(controller, state, parameters, elapsed_s):
    """The warm start itself: no time is left to improve it."""
    step = controller.step(state, parameters, elapsed_s=elapsed_s, deadline_s=0.0)
    assert step.iterations == 0
    assert step.source is not CommandSource.FALLBACK
    return step.plan


@pytest.mark.parametrize("name", CASES)
def test_a_plan_followed_exactly_needs_few_iterations_more(name):
    case = CASES[name](horizon=20)
    controller = controller_of(case)
    state, parameters = case.state, case.parameters
    cold = controller.step(state, parameters)
    counts = []
    for _ in range(4):
        state = rollout(Case(case.problem, state, parameters), "midpoint", cold.plan.inputs[:1])[1]
        cold = controller.step(state, parameters)
        assert cold.status is Status.CONVERGED
        counts.append(cold.iterations)
    assert max(counts) <= 8


def test_the_same_question_again_needs_no_iteration():
    case = unicycle()
    controller = controller_of(case)
    first = controller.step(case.state, case.parameters)
    again = controller.step(case.state, case.parameters, elapsed_s=0.0)
    assert (again.status, again.source) == (Status.CONVERGED, CommandSource.SOLUTION)
    assert again.iterations == 0
    np.testing.assert_array_equal(first.command, again.command)


@given(st.floats(0.0, 0.9))
@settings(max_examples=10)
def test_an_equilibrium_shifted_is_itself(elapsed_s):
    case = double_integrator(horizon=10, input_bounds=(-1.0, 1.0))
    controller = controller_of(case)
    rest = np.zeros(2)
    step = controller.step(rest, {})
    assert step.status is Status.CONVERGED
    np.testing.assert_allclose(step.plan.inputs, 0.0, atol=1e-6)
    plan = shifted_plan(controller, rest, {}, elapsed_s)
    np.testing.assert_allclose(plan.inputs, 0.0, atol=1e-6)
    np.testing.assert_allclose(plan.states, 0.0, atol=1e-6)


def cruising():
    """A cart told to keep its speed, so that its states are linear in time."""
    case = scalar(lambda x, u, p: 1.5 + u, lambda x, u, p: squared(u), horizon=6)
    controller = controller_of(case)
    plan = controller.step(np.array([2.0]), {}).plan
    times = 0.5 * np.arange(7)
    np.testing.assert_allclose(plan.states[:, 0], 2.0 + 1.5 * times, atol=1e-9)
    return controller, times


@given(st.floats(0.0, 0.5))
@settings(max_examples=10)
def test_states_linear_in_time_stay_linear_when_shifted(elapsed_s):
    controller, times = cruising()
    now = np.array([2.0 + 1.5 * elapsed_s])
    plan = shifted_plan(controller, now, {}, elapsed_s)
    np.testing.assert_allclose(plan.states[:, 0], 2.0 + 1.5 * (times + elapsed_s), atol=1e-9)


def test_many_small_shifts_are_one_large_shift():
    controller, times = cruising()
    for k in range(1, 11):
        plan = shifted_plan(controller, np.array([2.0 + 0.15 * k]), {}, 0.1)
    np.testing.assert_allclose(plan.states[:5, 0], 2.0 + 1.5 * (times[:5] + 1.0), atol=1e-9)


def test_all_of_a_solution_is_shifted_its_multipliers_too():
    """At rest by the end of its horizon: the next problem's solution but for that end."""
    case = double_integrator(horizon=80)
    controller = controller_of(case)
    plan = controller.step(case.state, {}).plan
    step = controller.step(plan.states[1], {}, deadline_s=0.0)
    assert step.kkt_residual < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_shifted_by_whole_intervals_the_plan_moves_up_and_holds_its_end(steps):
    case = van_der_pol(horizon=8)
    controller = controller_of(case)
    plan = controller.step(case.state, {}).plan
    now = plan.states[steps]
    moved = shifted_plan(controller, now, {}, steps * case.problem.dt)
    np.testing.assert_allclose(moved.inputs[: 8 - steps], plan.inputs[steps:], atol=1e-12)
    np.testing.assert_array_equal(moved.inputs[8 - steps :], plan.inputs[[-1] * steps])
    np.testing.assert_allclose(moved.states[: 9 - steps], plan.states[steps:], atol=1e-12)
    assert np.isfinite(moved.states).all()


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
def test_between_intervals_inputs_are_means(fraction):
    case = van_der_pol(horizon=8)
    controller = controller_of(case)
    plan = controller.step(case.state, {}).plan
    moved = shifted_plan(controller, case.state, {}, fraction * case.problem.dt)
    mean = (1.0 - fraction) * plan.inputs[:-1] + fraction * plan.inputs[1:]
    np.testing.assert_allclose(moved.inputs[:-1], mean, atol=1e-12)
    mean = (1.0 - fraction) * plan.states[1:-1] + fraction * plan.states[2:]
    np.testing.assert_allclose(moved.states[1:-1], mean, atol=1e-12)


# Live changes


def test_weights_change_from_the_next_step_on():
    case = unicycle()
    controller = controller_of(case)
    before = controller.step(case.state, case.parameters)
    controller.set_weights({"effort": 10.0})
    assert dict(controller.weights) == {"goal": 1.0, "effort": 10.0, "arrival": 4.0}
    after = controller.step(case.state, case.parameters, elapsed_s=0.0)
    assert after.status is Status.CONVERGED
    assert np.abs(after.plan.inputs).sum() < 0.7 * np.abs(before.plan.inputs).sum()
    fresh = controller_of(Case(unicycle().problem, case.state))
    fresh.set_weights({"effort": 10.0})
    expected = fresh.step(case.state, case.parameters)
    np.testing.assert_allclose(after.plan.inputs, expected.plan.inputs, atol=1e-3)
    assert dict(case.problem.weights)["effort"] == 0.1


def test_another_unit_of_all_weights_changes_nothing():
    case = double_integrator(input_bounds=(-0.8, 0.8))
    controller = controller_of(case, kkt_tolerance=1e-9)
    first = controller.step(case.state, {})
    controller.set_weights({name: 1e4 * w for name, w in case.problem.weights.items()})
    again = controller.step(case.state, {}, elapsed_s=0.0)
    assert again.status is Status.CONVERGED
    np.testing.assert_allclose(again.plan.inputs, first.plan.inputs, atol=1e-7)


@pytest.mark.parametrize(
    "wrong",
    [{"goal": 2.0, "efort": 1.0}, {"goal": 2.0, "effort": -1.0}, {"goal": 2.0, "effort": np.nan}],
)
def test_wrong_weights_change_nothing(wrong):
    case = unicycle()
    controller, other = controller_of(case), controller_of(case)
    for c in (controller, other):
        c.step(case.state, case.parameters)
    before = dict(controller.weights)
    with pytest.raises(ValueError, match="weights"):
        controller.set_weights(wrong)
    assert dict(controller.weights) == before
    assert_same_bits(
        controller.step(case.state, case.parameters), other.step(case.state, case.parameters)
    )


def test_changed_weights_keep_the_warm_start():
    case = unicycle(horizon=20)
    controller = controller_of(case)
    cold = controller.step(case.state, case.parameters)
    controller.set_weights({"effort": 0.11})
    warm = controller.step(case.state, case.parameters, elapsed_s=0.0)
    assert warm.status is Status.CONVERGED
    assert warm.iterations < cold.iterations


def drive(controller, case, count=6):
    steps, state = [], case.state
    for k in range(count):
        state = NAN if k == 3 else case.state + 0.02 * k
        steps.append(controller.step(state, case.parameters, elapsed_s=0.05 * k))
    return steps


def test_after_a_reset_a_run_repeats_bit_for_bit():
    case = unicycle()
    controller = controller_of(case)
    first = drive(controller, case)
    controller.reset()
    second = drive(controller, case)
    third = drive(controller_of(case), case)
    for steps in (second, third):
        for one, other in zip(first, steps, strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("limit", [3, 5])
def test_a_reset_forgets_the_regularization_too(limit):
    case = unicycle()
    controller = controller_of(case, max_iterations=limit)
    first = controller.step(case.state, case.parameters)
    controller.reset()
    assert_same_bits(first, controller.step(case.state, case.parameters))


def test_what_the_caller_does_to_its_arrays_afterwards_does_not_matter():
    case = unicycle()
    controller = controller_of(case)
    state = case.state.copy()
    step = controller.step(state, case.parameters)
    step.plan.inputs[:], step.plan.states[:], step.command[:] = np.nan, np.nan, np.nan
    state[:] = np.nan
    shifted = controller.step(state, case.parameters)
    assert shifted.source is CommandSource.SHIFTED
    assert np.isfinite(shifted.plan.states).all()
    np.testing.assert_array_equal(shifted.plan.states[0], case.state)
