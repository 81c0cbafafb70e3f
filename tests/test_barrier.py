# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""Slacks are minimisers, derivatives are slopes, and nothing leaves its bounds."""

import math
from dataclasses import fields

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from problems import bicycle, random_point, tangled, unicycle, van_der_pol

from mpc_banded import banded
from mpc_banded.barrier import TO_BOUNDARY, Barrier, Duals, optimal_slacks
from mpc_banded.derivatives import Derivatives
from mpc_banded.problem import STATE_BOUND_PENALTY, OptimalControlProblem
from mpc_banded.transcription import Transcription

BOUNDED = {
    "unicycle": unicycle,
    "bicycle": bicycle,
    "van_der_pol": van_der_pol,
    "tangled": lambda: tangled(
        3,
        2,
        5,
        inequalities=3,
        input_bounds=([-np.inf, -2.0], [3.0, np.inf]),
        state_bounds=([-1.0, -np.inf, -3.0], [0.5, 2.0, np.inf]),
    ),
    "free": lambda: tangled(2, 1, 3, inequalities=0),
}
every_problem = pytest.mark.parametrize("name", BOUNDED)


def powers(low, high):
    return st.floats(low, high).map(lambda e: 10.0**e)


values_of_c = st.builds(lambda sign, size: sign * size, st.sampled_from([-1, 0, 1]), powers(-9, 4))
penalties = st.one_of(
    st.tuples(powers(-3, 6), powers(-3, 6)),
    st.tuples(powers(-3, 6), st.just(0.0)),
    st.tuples(st.just(0.0), powers(-3, 6)),
)
barriers = powers(-12, 2)


def slacks_of(c, penalty, mu):
    arguments = (np.array([a], dtype=float) for a in (c, *penalty))
    v, t = optimal_slacks(*arguments, mu)
    return float(v[0]), float(t[0])


def phi(c, penalty, mu):
    v, t = slacks_of(c, penalty, mu)
    return penalty[0] * v + 0.5 * penalty[1] * v * v - mu * math.log(v) - mu * math.log(t)


def root_of_slope(c, penalty, mu):
    """The slacks by bisection for the logarithm of the smaller one."""
    size, violation = abs(c), max(-c, 0.0)

    def slope(log):
        small = math.exp(log)
        pull = penalty[0] + penalty[1] * (small + violation)
        return pull - mu / small - mu / (small + size)

    small = math.exp(scipy.optimize.brentq(slope, -120.0, 60.0, xtol=1e-14, rtol=1e-14))
    return (small, small + size) if c >= 0.0 else (small + size, small)


@given(values_of_c, penalties, barriers)
def test_slacks_are_where_the_slope_vanishes(c, penalty, mu):
    assert slacks_of(c, penalty, mu) == pytest.approx(root_of_slope(c, penalty, mu), rel=1e-11)


@given(values_of_c, penalties, barriers)
def test_slacks_are_positive_and_differ_by_the_constraint(c, penalty, mu):
    v, t = slacks_of(c, penalty, mu)
    assert v > 0.0
    assert t > 0.0
    assert t - v == pytest.approx(c, rel=1e-9, abs=1e-12 * max(v, t))


@given(st.floats(-3.0, 3.0), st.floats(0.0, 4.0), st.floats(0.5, 4.0), powers(-3, 0))
def test_slacks_minimise_phi(c, linear, quadratic, mu):
    """Among twenty thousand others."""
    v = max(-c, 0.0) + np.exp(np.linspace(-14.0, 4.0, 20_001))
    values = linear * v + 0.5 * quadratic * v * v - mu * np.log(v) - mu * np.log(c + v)
    assert phi(c, (linear, quadratic), mu) <= values.min() + 1e-12
    near = v[max(values.argmin() - 1, 0)], v[min(values.argmin() + 1, 20_000)]
    assert near[0] <= slacks_of(c, (linear, quadratic), mu)[0] <= near[1]


@given(st.floats(-10.0, 10.0), penalties, powers(-8, 0))
def test_the_slope_of_phi_is_minus_the_multiplier(c, penalty, mu):
    _, t = slacks_of(c, penalty, mu)
    step = 1e-4 * min(slacks_of(c, penalty, mu))
    assume(step > 1e-9 * abs(c))  # or a difference quotient would be all rounding
    multipliers = [-mu / slacks_of(at, penalty, mu)[1] for at in (c - step, c, c + step)]
    integral = (multipliers[0] + 4.0 * multipliers[1] + multipliers[2]) / 6.0 * 2.0 * step
    change = phi(c + step, penalty, mu) - phi(c - step, penalty, mu)
    noise = 1e-13 * (abs(phi(c, penalty, mu)) + penalty[0] + penalty[1] * (c * c + 1.0))
    assert change == pytest.approx(integral, rel=1e-5, abs=noise)
    assert multipliers[1] == -mu / t


@given(st.floats(-10.0, 10.0), penalties, powers(-8, 0))
def test_phi_falls_and_is_convex(c, penalty, mu):
    """So the multiplier is positive and grows with the violation."""
    further = c - abs(c) * 0.1 - 1e-3
    here, there = (mu / slacks_of(at, penalty, mu)[1] for at in (c, further))
    assert 0.0 < here <= there * (1.0 + 1e-12)


@pytest.mark.parametrize(("penalty"), [(50.0, 0.0), (50.0, 20.0), (0.0, 20.0)])
@pytest.mark.parametrize("c", [-2.0, -0.1, 0.0, 0.1, 2.0])
def test_a_thin_barrier_is_the_penalty(c, penalty):
    violation = max(-c, 0.0)
    expected = penalty[0] * violation + 0.5 * penalty[1] * violation**2
    assert phi(c, penalty, 1e-12) == pytest.approx(expected, abs=1e-8)


class Example:
    """A barrier with everything that it is given, at a random point inside the input bounds."""

    def __init__(self, name, mu=0.01, seed=0):
        self.case, self.mu = BOUNDED[name](), mu
        transcription = Transcription(self.case.problem, "midpoint")
        self.derivatives = Derivatives(transcription)
        self.data = self.case.data(transcription)
        self.barrier = Barrier(self.case.problem)
        z = random_point(transcription, self.case, seed)
        self.z = self.barrier.interior(z, 0.1)
        self.slacks = self.slacks_at(self.z)
        self.duals = self.barrier.duals(self.slacks, mu)

    def rows_at(self, z):
        (values,) = self.derivatives.values(z[None], self.data)
        return self.barrier.rows(z, values.inequalities)

    def slacks_at(self, z):
        return self.barrier.slacks(z, self.rows_at(z), self.mu)

    def evaluation_at(self, z):
        problem = self.case.problem
        none = np.zeros((problem.horizon, sum(problem.inequality_widths.values())))
        zero = np.zeros((problem.horizon, problem.nx))
        return self.derivatives.evaluate(z, self.data, zero, 0.0, none)

    def gradient_at(self, z):
        return self.barrier.gradient(self.evaluation_at(z), self.slacks_at(z), self.mu)

    def curvature(self, duals, slacks=None):
        e = self.evaluation_at(self.z)
        bands = np.zeros_like(e.bands)
        self.barrier.add_curvature(bands, e, slacks or self.slacks, duals)
        return banded.to_dense(bands)


@every_problem
def test_rows_are_inequalities_then_lower_then_upper_state_bounds(name):
    example = Example(name)
    problem = example.case.problem
    trajectory = example.derivatives.transcription.unpack(example.z, example.case.state)
    p = {k: torch.as_tensor(v) for k, v in example.data.parameters.items()}
    expected, penalties = [], []
    for k in range(problem.horizon):
        x, u = torch.as_tensor(trajectory.states[k + 1]), torch.as_tensor(trajectory.inputs[k])
        for key, h in problem.inequalities.items():
            value = h(x, u, {name: v[k + 1] for name, v in p.items()}).numpy()
            expected += [*value]
            penalties += [problem.penalties[key]] * len(value)
    lower, upper = problem.state_bounds
    for side in (
        trajectory.states[1:, np.isfinite(lower)] - lower[np.isfinite(lower)],
        upper[np.isfinite(upper)] - trajectory.states[1:, np.isfinite(upper)],
    ):
        expected += [*side.ravel()]
        penalties += [STATE_BOUND_PENALTY] * side.size
    np.testing.assert_allclose(example.rows_at(example.z), expected, atol=1e-12)
    np.testing.assert_array_equal(example.barrier.penalty, np.reshape(penalties, (-1, 2)).T)
    parts = example.barrier.split(np.arange(len(expected)))
    np.testing.assert_array_equal(np.concatenate([a.ravel() for a in parts]), range(len(expected)))


@every_problem
def test_the_gradient_is_the_slope_of_the_value(name):
    example = Example(name)

    def value(z):
        return example.barrier.value(example.slacks_at(z), example.mu)

    gradient = example.gradient_at(example.z)
    step = 1e-6
    slopes = [
        (value(example.z + step * e) - value(example.z - step * e)) / (2 * step)
        for e in np.eye(len(example.z))
    ]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-5 * (1 + abs(gradient).max()))


@pytest.mark.parametrize("name", ["bicycle", "van_der_pol", "free"])
def test_the_curvature_is_exact_on_the_central_path(name):
    """Of bounds, whose rows are linear: no curvature of their own is missing."""
    example = Example(name)
    expected = scipy.optimize.approx_fprime(example.z, example.gradient_at, 1e-7)
    scale = 1.0 + np.abs(expected).max()
    np.testing.assert_allclose(example.curvature(example.duals), expected, atol=1e-5 * scale)


@every_problem
def test_the_curvature_is_the_schur_complement_of_the_duals(name):
    """For any duals, on the central path or off it."""
    example = Example(name)
    random = np.random.default_rng(1)
    arrays = (getattr(example.duals, f.name) for f in fields(Duals))
    duals = Duals(*(a * random.uniform(0.1, 10.0, a.shape) for a in arrays))
    s, at = example.slacks, example.barrier.inputs
    of_t, of_v = s.t / duals.rows, 1.0 / (example.barrier.penalty[1] + duals.slacks / s.v)
    e = example.evaluation_at(example.z)
    jacobian = np.array([example.barrier.row_step(e, unit) for unit in np.eye(len(example.z))]).T
    expected = jacobian.T @ np.diag(1.0 / (of_t + of_v)) @ jacobian
    expected[at, at] += duals.lower / s.lower + duals.upper / s.upper
    np.testing.assert_allclose(example.curvature(duals), expected, rtol=1e-9, atol=1e-9)


@every_problem
def test_the_change_of_rows_along_a_step_is_their_slope(name):
    example = Example(name)
    step = np.random.default_rng(2).standard_normal(len(example.z))
    ahead, behind = (example.rows_at(example.z + s * 1e-6 * step) for s in (1, -1))
    change = example.barrier.row_step(example.evaluation_at(example.z), step)
    np.testing.assert_allclose(change, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)


def input_step(example, inputs):
    step = np.zeros(len(example.z))
    step[example.barrier.inputs] = inputs
    return step


@given(hnp.arrays(float, 10, elements=st.integers(-(10**12), 10**12)), st.floats(1e-9, 0.4))
def test_the_longest_step_stays_inside_and_is_the_longest(inputs, share):
    example = Example("tangled")
    barrier = example.barrier
    z = barrier.interior(example.z, share)
    slacks, step = example.slacks_at(z), input_step(example, inputs)
    length = barrier.longest(slacks, step)
    assert 0.0 < length <= 1.0
    moved = (z + length * step)[barrier.inputs]
    assert (moved > barrier.lower).all()
    assert (moved < barrier.upper).all()
    if length < 1.0:
        longer = (z + 1.01 / TO_BOUNDARY * length * step)[barrier.inputs]
        assert ((longer < barrier.lower) | (longer > barrier.upper)).any()


@every_problem
def test_points_are_brought_inside_and_those_inside_stay(name):
    example = Example(name)
    barrier = example.barrier
    for scale in (1.0, 1e9):
        z = scale * np.random.default_rng(0).standard_normal(len(example.z))
        moved = barrier.interior(z)
        u = moved[barrier.inputs]
        assert (u > barrier.lower).all()
        assert (u < barrier.upper).all()
        others = np.setdiff1d(np.arange(len(z)), barrier.inputs)
        np.testing.assert_array_equal(moved[others], z[others])
        np.testing.assert_array_equal(barrier.interior(moved), moved)


def test_outside_the_input_bounds_the_barrier_is_infinite():
    example = Example("unicycle")
    assert np.isfinite(example.barrier.value(example.slacks, example.mu))
    for edge in (example.barrier.lower[0], example.barrier.upper[0], 1e3):
        z = example.z.copy()
        z[example.barrier.inputs[0]] = edge
        assert example.barrier.value(example.slacks_at(z), example.mu) == np.inf


def all_positive(barrier, duals):
    finite_lower, finite_upper = np.isfinite(barrier.lower), np.isfinite(barrier.upper)
    return (
        (duals.lower[finite_lower] > 0).all()
        and (duals.upper[finite_upper] > 0).all()
        and (duals.lower[~finite_lower] == 0).all()
        and (duals.upper[~finite_upper] == 0).all()
        and (duals.rows > 0).all()
        and (duals.slacks > 0).all()
    )


@every_problem
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_duals_stay_positive_along_any_step(name, scale):
    example = Example(name)
    barrier, mu = example.barrier, example.mu
    step = scale * np.random.default_rng(3).standard_normal(len(example.z))
    e = example.evaluation_at(example.z)
    duals = barrier.stepped(example.duals, e, example.slacks, step, mu)
    assert all_positive(barrier, duals)
    length = barrier.longest(example.slacks, step)
    slacks = example.slacks_at(example.z + length * step)
    assert all_positive(barrier, barrier.safeguarded(duals, slacks, mu))


@every_problem
def test_no_step_keeps_the_duals_of_the_central_path(name):
    example = Example(name)
    e, zero = example.evaluation_at(example.z), np.zeros(len(example.z))
    duals = example.barrier.stepped(example.duals, e, example.slacks, zero, example.mu)
    for f in fields(Duals):
        np.testing.assert_allclose(
            getattr(duals, f.name), getattr(example.duals, f.name), rtol=1e-12
        )


@every_problem
def test_duals_converge_to_the_central_path_of_a_smaller_barrier(name):
    """Newton's method in the duals alone: at fixed slacks one step solves them."""
    example = Example(name)
    slacks, mu = example.slacks, example.mu
    off = Duals(*(1.3 * getattr(example.duals, f.name) for f in fields(Duals)))
    e, zero = example.evaluation_at(example.z), np.zeros(len(example.z))
    duals = example.barrier.stepped(off, e, slacks, zero, mu)
    for f in fields(Duals):
        np.testing.assert_allclose(
            getattr(duals, f.name), getattr(example.duals, f.name), rtol=1e-12
        )


@every_problem
def test_duals_far_from_the_central_path_are_brought_near(name):
    example = Example(name)
    wild = Duals(*(getattr(example.duals, f.name) * 1e30 for f in fields(Duals)))
    tame = example.barrier.safeguarded(wild, example.slacks, example.mu)
    for f in fields(Duals):
        np.testing.assert_allclose(
            getattr(tame, f.name), 1e8 * getattr(example.duals, f.name), rtol=1e-12
        )
    near = Duals(*(getattr(example.duals, f.name) * 100.0 for f in fields(Duals)))
    same = example.barrier.safeguarded(near, example.slacks, example.mu)
    np.testing.assert_array_equal(same.rows, near.rows)


@every_problem
def test_resampled_duals_follow_their_stages_and_stay_positive(name):
    example = Example(name)
    barrier, horizon = example.barrier, example.case.problem.horizon
    assert all_positive(barrier, barrier.resampled(example.duals, lambda a: 0.3 * a + 0.7 * a[:1]))

    def numbered(array):
        return np.repeat(np.arange(1.0, horizon + 1), array.size // horizon)

    rows = np.concatenate([numbered(part) for part in barrier.split(example.duals.rows)])
    stages = Duals(numbered(example.duals.lower), numbered(example.duals.upper), rows, rows)
    later = barrier.resampled(stages, lambda a: np.vstack([a[1:], a[-1:]]))
    for f in fields(Duals):
        expected = np.minimum(getattr(stages, f.name) + 1.0, horizon)
        np.testing.assert_array_equal(getattr(later, f.name), expected)


def test_a_free_problem_has_an_empty_barrier():
    example = Example("free")
    assert example.barrier.value(example.slacks, example.mu) == 0.0
    assert not example.gradient_at(example.z).any()
    assert not example.curvature(example.duals).any()
    assert example.barrier.longest(example.slacks, 1e9 * np.ones(len(example.z))) == 1.0


def test_a_one_sided_bound_repels_from_its_side_only():
    problem = OptimalControlProblem(
        nx=1,
        nu=1,
        horizon=1,
        dt=1.0,
        dynamics=lambda x, u, p: u,
        stage_costs={"none": lambda x, u, p: 0.0 * u[..., 0]},
        input_bounds=(0.0, np.inf),
    )
    barrier = Barrier(problem)
    slacks = barrier.slacks(np.array([2.0, 0.0]), np.zeros(0), 0.5)
    duals = barrier.duals(slacks, 0.5)
    assert (duals.lower[0], duals.upper[0]) == (0.25, 0.0)
    assert barrier.value(slacks, 0.5) == pytest.approx(-0.5 * math.log(2.0))
    assert barrier.longest(slacks, np.array([1e9, 0.0])) == 1.0
    assert barrier.longest(slacks, np.array([-4.0, 0.0])) == pytest.approx(TO_BOUNDARY / 2.0)
