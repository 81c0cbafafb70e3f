# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG001, ARG005
"""The flat vector is the trajectory, the band has its derived width, schemes their order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from problems import CASES, Case, dense_hessian, random_point, rollout, squared, tangled, unicycle
from scipy.integrate import solve_ivp

from mpc_banded import BandwidthError, RecedingHorizonController, SolverOptions
from mpc_banded.ocp.problem import OptimalControlProblem, Trajectory
from mpc_banded.ocp.transcription import SCHEMES, Transcription, merit

ORDERS = {"euler": 1, "midpoint": 2, "trapezoid": 2, "rk4": 4}
SIZES = [(1, 1, 2), (1, 3, 4), (2, 1, 3), (3, 2, 2), (4, 2, 5), (2, 4, 3)]


def dense_merit_hessian(case, transcription, seed=0):
    """Hessian of the merit function at a random point with random multipliers, (n, n)."""
    data = case.data(transcription)
    z = torch.as_tensor(random_point(transcription, case, seed))
    terms = transcription.terms(z, data)
    generator = torch.Generator().manual_seed(seed)
    lam = torch.randn(terms.defects.shape, generator=generator, dtype=torch.float64)
    nu = torch.rand(terms.inequalities.shape, generator=generator, dtype=torch.float64)
    rho = torch.tensor(2.0, dtype=torch.float64)
    return dense_hessian(lambda v: merit(transcription.terms(v, data), lam, rho, nu), z)


def measured_half_bandwidth(matrix):
    i, j = torch.nonzero(matrix.abs() > 1e-9 * matrix.abs().max(), as_tuple=True)
    return int((i - j).abs().max())


@pytest.mark.parametrize("substeps", [0, -1, 1.0, True])
def test_substeps_are_positive_integers(substeps):
    with pytest.raises(ValueError, match=f"substeps is {substeps!r}"):
        Transcription(unicycle().problem, "rk4", substeps)


def test_a_scheme_that_is_unknown_or_has_no_substeps_is_named():
    with pytest.raises(ValueError, match=r"'simpson'.*allowed.*euler.*midpoint.*rk4.*trapezoid"):
        Transcription(unicycle().problem, "simpson")
    with pytest.raises(ValueError, match="substeps is 2; 'midpoint'"):
        Transcription(unicycle().problem, "midpoint", 2)


@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_pack_and_unpack_are_inverse(data, horizon, nx, nu):
    problem = OptimalControlProblem(
        nx, nu, horizon, 0.5, lambda x, u, p: x, {"cost": lambda x, u, p: squared(x)}
    )
    transcription = Transcription(problem, "euler")
    numbers = st.floats(-1e6, 1e6)
    states = data.draw(hnp.arrays(float, (horizon + 1, nx), elements=numbers))
    inputs = data.draw(hnp.arrays(float, (horizon, nu), elements=numbers))
    z = transcription.pack(Trajectory(states, inputs, problem.dt))
    assert z.shape == (transcription.n,) == (horizon * (nx + nu),)
    again = transcription.unpack(z, states[0])
    np.testing.assert_array_equal(again.states, states)
    np.testing.assert_array_equal(again.inputs, inputs)
    assert again.dt == problem.dt
    np.testing.assert_array_equal(transcription.pack(again), z)


def test_the_unknowns_are_ordered_stage_by_stage():
    transcription = Transcription(unicycle(horizon=2).problem, "euler")
    states, inputs = np.arange(9.0).reshape(3, 3), np.array([[10.0, 11.0], [20.0, 21.0]])
    z = transcription.pack(Trajectory(states, inputs, 0.2))
    np.testing.assert_array_equal(z, [10, 11, 3, 4, 5, 20, 21, 6, 7, 8])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("nx", "nu", "horizon"), SIZES)
def test_the_derived_half_bandwidth_is_the_measured_one(nx, nu, horizon, scheme):
    case = tangled(nx, nu, horizon, seed=horizon)
    transcription = Transcription(case.problem, scheme)
    assert transcription.half_bandwidth == 2 * nx + nu - 1
    hessian = dense_merit_hessian(case, transcription)
    assert measured_half_bandwidth(hessian) == transcription.half_bandwidth


@pytest.mark.parametrize("scheme", SCHEMES)
def test_check_accepts_larger_half_bandwidths_and_refuses_smaller_ones(scheme):
    case = tangled(2, 2, 6)
    right = 5
    for half_bandwidth in (0, right, right + 1, right + 7, 200):
        options = SolverOptions(half_bandwidth=half_bandwidth)
        controller = RecedingHorizonController(case.problem, scheme, options=options)
        controller.check(case.state, case.parameters)
    for half_bandwidth in (1, 3, right - 1):
        options = SolverOptions(half_bandwidth=half_bandwidth)
        controller = RecedingHorizonController(case.problem, scheme, options=options)
        with pytest.raises(BandwidthError, match=f"half_bandwidth={half_bandwidth} ") as caught:
            controller.check(case.state, case.parameters)
        assert (caught.value.configured, caught.value.measured) == (half_bandwidth, right)


def test_check_finds_a_coupling_that_only_combs_can_see():
    """Inputs of neighbouring stages fit the band, but are no matter of one stage."""
    problem = OptimalControlProblem(
        nx=2,
        nu=1,
        horizon=8,
        dt=0.1,
        dynamics=lambda x, u, p: torch.cat([x[..., 1:], u], dim=-1),
        stage_costs={
            "state": lambda x, u, p: squared(x),
            "smoothness": lambda x, u, p: squared(torch.diff(u, dim=-2, append=u[..., -1:, :])),
        },
    )
    with pytest.raises(ValueError, match=r"couples stages.*'stagewise' cannot.*'direct' can"):
        RecedingHorizonController(problem).check(np.zeros(2), {})
    options = SolverOptions(recovery="direct")
    RecedingHorizonController(problem, options=options).check(np.zeros(2), {})


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_check_finds_a_cost_that_couples_stages_even_while_it_weighs_nothing(weight):
    def smoothness(x, u, p):
        change = torch.diff(u, dim=-2, n=2, append=u[..., -1:, :], prepend=u[..., :1, :])
        return squared(change)

    problem = OptimalControlProblem(
        nx=1,
        nu=2,
        horizon=8,
        dt=0.1,
        dynamics=lambda x, u, p: u[..., :1],
        stage_costs={"state": lambda x, u, p: squared(x) + squared(u), "smoothness": smoothness},
        weights={"smoothness": weight},
    )
    controller = RecedingHorizonController(problem)
    with pytest.raises(BandwidthError) as caught:
        controller.check(np.zeros(1), {})
    assert caught.value.measured == 6  # u_k and u_{k+2}, a block of three apart


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", CASES)
def test_defects_vanish_on_what_the_scheme_generates(name, scheme):
    case = CASES[name](horizon=5)
    transcription = Transcription(case.problem, scheme)
    inputs = 0.3 * np.random.default_rng(0).standard_normal((5, case.problem.nu))
    states = rollout(case, scheme, inputs)
    z = transcription.pack(Trajectory(states, inputs, case.problem.dt))
    defects = transcription.terms(torch.as_tensor(z), case.data(transcription)).defects
    assert defects.abs().max() < 1e-9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_defect_is_the_next_state_minus_the_prediction(scheme):
    case = unicycle(horizon=4)
    transcription = Transcription(case.problem, scheme)
    states = rollout(case, scheme, np.full((4, 2), 0.5))
    states[3, 1] += 1e-3
    z = transcription.pack(Trajectory(states, np.full((4, 2), 0.5), case.problem.dt))
    defects = transcription.terms(torch.as_tensor(z), case.data(transcription)).defects
    assert defects[2, 1] == pytest.approx(1e-3, rel=1e-3)
    assert defects[:2].abs().max() < 1e-9


def exact(case, inputs, repeat):
    """The last state of the continuous dynamics; each input is held for ``repeat`` intervals."""
    problem, state = case.problem, case.state
    for u in inputs:
        solution = solve_ivp(
            lambda _, x, u=u: problem.dynamics(*map(torch.as_tensor, (x, u)), {}).numpy(),
            (0.0, repeat * problem.dt),
            state,
            rtol=1e-12,
            atol=1e-13,
        )
        state = solution.y[:, -1]
    return state


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["van_der_pol", "cartpole"])
def test_schemes_are_of_their_order(name, scheme):
    inputs = np.array([[0.5], [-0.7], [0.2]])
    start, coarse = CASES[name](), 0.1
    errors = []
    for repeat in (1, 2, 4):
        problem = start.problem.with_grid(3 * repeat, coarse / repeat)
        case = Case(problem, start.state)
        reached = rollout(case, scheme, np.repeat(inputs, repeat, axis=0))[-1]
        errors.append(np.linalg.norm(reached - exact(case, inputs, repeat)))
    order = np.log2(errors[1] / errors[2])
    assert order == pytest.approx(ORDERS[scheme], abs=0.2)
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("scheme", ["euler", "rk4"])
def test_substeps_are_intervals_of_their_own(scheme):
    case = CASES["van_der_pol"](horizon=4)
    inputs = 0.3 * np.random.default_rng(0).standard_normal((4, 1))
    fine = Case(case.problem.with_grid(12, case.problem.dt / 3), case.state)
    states = rollout(fine, scheme, np.repeat(inputs, 3, axis=0))[::3]
    transcription = Transcription(case.problem, scheme, substeps=3)
    z = transcription.pack(Trajectory(states, inputs, case.problem.dt))
    defects = transcription.terms(torch.as_tensor(z), case.data(transcription)).defects
    assert defects.abs().max() < 1e-9
    assert transcription.half_bandwidth == Transcription(case.problem, scheme).half_bandwidth


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("inequalities", [0, 3])
def test_a_batch_is_each_trajectory_by_itself(scheme, inequalities):
    case = tangled(2, 1, 4, inequalities=inequalities)
    transcription = Transcription(case.problem, scheme)
    data = case.data(transcription)
    points = np.array([random_point(transcription, case, seed) for seed in range(6)])
    batch = transcription.terms(torch.as_tensor(points.reshape(2, 3, -1)), data)
    assert batch.inequalities.shape == (2, 3, 4, inequalities)
    for k, point in enumerate(points):
        one = transcription.terms(torch.as_tensor(point), data)
        for name in ("costs", "defects", "inequalities"):
            torch.testing.assert_close(getattr(batch, name)[k // 3, k % 3], getattr(one, name))


def test_each_function_sees_its_stage_and_that_stages_parameters():
    """States, inputs and parameters carry their stage number; functions multiply them."""
    problem = OptimalControlProblem(
        nx=1,
        nu=1,
        horizon=3,
        dt=1.0,
        dynamics=lambda x, u, p: 100.0 * p["s"] + 10.0 * u + x,
        stage_costs={"stage": lambda x, u, p: (1e4 * p["s"] + 100.0 * u + x)[..., 0] ** 3},
        terminal_costs={"end": lambda x, p: (100.0 * p["s"] + x)[..., 0]},
        weights={"stage": 2.0, "end": 3.0},
        inequalities={"h": lambda x, u, p: torch.cat([x, u, p["s"]], dim=-1)},
        penalties={"h": (1.0, 0.0)},
        parameters={"s": (1,)},
    )
    transcription = Transcription(problem, "euler")
    x, u = np.array([5.0, 6.0, 7.0, 8.0]), np.array([1.0, 2.0, 3.0])
    s = np.array([11.0, 12.0, 13.0, 14.0])
    data = transcription.stage_data(x[:1], {"s": s[:, None]}, problem.weights)
    z = transcription.pack(Trajectory(x[:, None], u[:, None], 1.0))
    terms = transcription.terms(torch.as_tensor(z), data)
    stage = sum((1e4 * s[k] + 100 * u[k] + x[k]) ** 3 for k in range(3))
    np.testing.assert_allclose(terms.costs, [2.0 * stage, 3.0 * (100 * s[3] + x[3])])
    np.testing.assert_allclose(
        terms.defects[:, 0], x[1:] - x[:-1] - (100 * s[:3] + 10 * u + x[:3])
    )
    np.testing.assert_allclose(terms.inequalities, np.column_stack([x[1:], u, s[1:]]))


def test_live_inputs_are_copied():
    case = unicycle()
    transcription = Transcription(case.problem, "midpoint")
    state, goal = case.state.copy(), case.parameters["goal"].copy()
    data = transcription.stage_data(state, {**case.parameters, "goal": goal}, case.problem.weights)
    state[:], goal[:] = np.nan, np.nan
    assert torch.isfinite(data.initial_state).all()
    assert torch.isfinite(data.parameters["goal"]).all()


def test_rollout_follows_the_dynamics():
    case = CASES["cartpole"](horizon=6)
    transcription = Transcription(case.problem, "midpoint")
    inputs = np.random.default_rng(0).standard_normal((6, 1))
    trajectory = transcription.rollout(inputs, case.data(transcription))
    np.testing.assert_allclose(trajectory.states, rollout(case, "rk4", inputs), atol=1e-10)
    np.testing.assert_array_equal(trajectory.inputs, inputs)


@pytest.mark.parametrize("stiffness", [50.0, 1e3, 1e200])
def test_rollout_does_not_explode_where_dynamics_are_too_fast_for_the_grid(stiffness):
    problem = OptimalControlProblem(
        nx=2,
        nu=1,
        horizon=40,
        dt=0.1,
        dynamics=lambda x, u, p: torch.cat([x[..., 1:], stiffness * (u - x[..., 1:])], dim=-1),
        stage_costs={"state": lambda x, u, p: squared(x)},
    )
    transcription = Transcription(problem, "midpoint")
    data = transcription.stage_data(np.array([1.0, 2.0]), {}, problem.weights)
    trajectory = transcription.rollout(np.zeros((40, 1)), data)
    assert np.abs(trajectory.states).max() < 20.0
