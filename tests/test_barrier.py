# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""Slacks are minimisers, derivatives are slopes, and no step leaves its bounds."""

import math
from functools import cached_property

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from problems import (
    bicycle,
    inputs_of,
    interior,
    random_point,
    row_penalties,
    row_values,
    tangled,
    unicycle,
    van_der_pol,
)

from mpc_banded.ocp.barrier import TO_BOUNDARY, Barrier, optimal_slacks
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.ocp.transcription import Transcription

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
    arguments = (torch.tensor(a, dtype=torch.float64) for a in (c, *penalty, mu))
    v, t = optimal_slacks(*arguments)
    return float(v), float(t)


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
        self.case, self.mu = BOUNDED[name](), torch.tensor(mu, dtype=torch.float64)
        self.problem, self.barrier = self.case.problem, Barrier(self.case.problem)
        self.transcription = Transcription(self.problem, "midpoint")
        self.data = self.case.data(self.transcription)
        z = interior(self.case, random_point(self.transcription, self.case, seed), 0.1)
        self.z = torch.as_tensor(z)
        self.step = torch.as_tensor(np.random.default_rng(2).standard_normal(len(z)))
        self.distances = self.distances_at(self.z)
        self.duals = self.mu / self.distances
        self.finite = self.distances.isfinite()

    def stages(self, vector):
        return vector.reshape(self.problem.horizon, -1)

    def rows_at(self, z):
        h = self.transcription.terms(z, self.data).inequalities
        return self.barrier.row_values(self.stages(z)[:, self.problem.nu :], h)

    def distances_at(self, z):
        u = self.stages(z)[:, : self.problem.nu]
        return self.barrier.distances(u, self.rows_at(z), self.mu)

    def value_at(self, z):
        return float(self.barrier.value(self.distances_at(z), self.mu).sum())

    def row_jacobian_at(self, z):
        """Jacobian of each stage's rows by its own variables: others do not matter to them."""
        jacobian = torch.func.jacrev(lambda z: self.transcription.terms(z, self.data).inequalities)
        stages = self.problem.horizon
        blocks = jacobian(z).unflatten(-1, (stages, -1))[range(stages), :, range(stages)]
        return self.barrier.row_jacobian(blocks)

    @cached_property
    def row_jacobian(self):
        return self.row_jacobian_at(self.z)

    def gradient_at(self, z):
        jacobian = self.row_jacobian_at(z)
        return self.barrier.gradient(jacobian, self.distances_at(z), self.mu).reshape(-1).numpy()

    def curvature(self, duals):
        blocks = self.barrier.curvature(self.row_jacobian, self.distances, duals)
        return torch.block_diag(*blocks).numpy()

    def advanced(self, duals, step):
        """Longest length of any stage, and the duals."""
        longest, stepped = self.barrier.advance(
            duals, self.distances, self.row_jacobian, self.stages(step), self.mu
        )
        return float(longest.min()), stepped

    def parts(self, array):
        """Lower, upper, t and v of distances or duals."""
        nu, rows = self.problem.nu, self.barrier.rows
        return torch.split(array, [nu, nu, rows, rows], dim=-1)

    def off_the_central_path(self, low=0.1, high=10.0):
        random = np.random.default_rng(1)
        return self.duals * torch.as_tensor(random.uniform(low, high, self.duals.shape))


@every_problem
def test_rows_are_inequalities_then_lower_then_upper_state_bounds(name):
    """Stage by stage, each at the state that the stage leads to."""
    example = Example(name)
    problem = example.problem
    trajectory = example.transcription.unpack(example.z.numpy(), example.case.state)
    lower, upper = problem.state_bounds
    expected = []
    for k in range(problem.horizon):
        x, u = torch.as_tensor(trajectory.states[k + 1]), torch.as_tensor(trajectory.inputs[k])
        p = {key: value[k + 1] for key, value in example.data.parameters.items()}
        row = [h(x, u, p).numpy() for h in problem.inequalities.values()]
        row += [(x.numpy() - lower)[np.isfinite(lower)], (upper - x.numpy())[np.isfinite(upper)]]
        expected.append(np.concatenate(row))
    np.testing.assert_allclose(example.rows_at(example.z), expected, atol=1e-12)
    assert example.barrier.rows == len(expected[0])
    assert example.barrier.width == 2 * problem.nu + 2 * len(expected[0])


@every_problem
def test_distances_are_those_to_the_bounds_and_the_slacks_of_the_rows(name):
    """Each row with its own penalty: the slope of phi is zero in v."""
    example = Example(name)
    problem = example.problem
    below, above, t, v = (part.numpy() for part in example.parts(example.distances))
    u, mu = inputs_of(problem, example.z.numpy()), float(example.mu)
    np.testing.assert_array_equal(below, u - problem.input_bounds[0])
    np.testing.assert_array_equal(above, problem.input_bounds[1] - u)
    rows = row_values(example.transcription, example.z, example.data).numpy()
    np.testing.assert_allclose(t - v, rows, rtol=1e-12, atol=1e-12)
    linear, quadratic = row_penalties(problem)
    np.testing.assert_allclose(mu / t + mu / v, linear + quadratic * v, rtol=1e-10)


@every_problem
def test_the_value_is_the_sum_of_phi_and_of_the_logarithms(name):
    example = Example(name)
    mu = float(example.mu)
    below, above, _, _ = example.parts(example.distances)
    expected = -mu * sum(
        math.log(distance)
        for distance in torch.cat([below, above]).ravel().tolist()
        if math.isfinite(distance)
    )
    rows = row_values(example.transcription, example.z, example.data)
    for stage in rows.tolist():
        expected += sum(
            phi(c, penalty, mu)
            for c, penalty in zip(stage, row_penalties(example.problem).T, strict=True)
        )
    assert example.value_at(example.z) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@every_problem
def test_the_gradient_is_the_slope_of_the_value(name):
    example = Example(name)
    gradient = example.gradient_at(example.z)
    steps = 1e-6 * torch.eye(len(example.z), dtype=torch.float64)
    slopes = [
        (example.value_at(example.z + step) - example.value_at(example.z - step)) / 2e-6
        for step in steps
    ]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-5 * (1 + abs(gradient).max()))


@pytest.mark.parametrize("name", ["bicycle", "van_der_pol", "free"])
def test_the_curvature_is_exact_on_the_central_path(name):
    """The rows of bounds are linear, so they have no curvature of their own to miss."""
    example = Example(name)
    expected = scipy.optimize.approx_fprime(
        example.z.numpy(), lambda z: example.gradient_at(torch.as_tensor(z)), 1e-7
    )
    scale = 1.0 + np.abs(expected).max()
    np.testing.assert_allclose(example.curvature(example.duals), expected, atol=1e-5 * scale)


@every_problem
def test_the_curvature_is_the_schur_complement_of_the_duals(name):
    """For any duals, on the central path or off it."""
    example = Example(name)
    duals = example.off_the_central_path()
    below, above, t, v = (part.numpy() for part in example.parts(example.distances))
    of_below, of_above, of_t, of_v = (part.numpy() for part in example.parts(duals))
    jacobian = torch.func.jacrev(lambda z: row_values(example.transcription, z, example.data))
    jacobian = jacobian(example.z).flatten(0, 1).numpy()
    weights = 1.0 / (t / of_t + 1.0 / (row_penalties(example.problem)[1] + of_v / v))
    of_inputs = np.zeros(len(example.z))
    inputs_of(example.problem, of_inputs)[:] = of_below / below + of_above / above
    expected = jacobian.T @ np.diag(weights.ravel()) @ jacobian + np.diag(of_inputs)
    np.testing.assert_allclose(example.curvature(duals), expected, rtol=1e-9, atol=1e-9)


@every_problem
def test_the_change_of_rows_along_a_step_is_their_slope(name):
    example = Example(name)
    ahead, behind = (example.rows_at(example.z + s * 1e-6 * example.step) for s in (1, -1))
    stages = example.stages(example.step)[:, :, None]
    change = (example.row_jacobian @ stages)[..., 0]
    np.testing.assert_allclose(change, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)


def input_step(example, inputs):
    step = torch.zeros_like(example.z)
    example.stages(step)[:, : example.problem.nu] = torch.as_tensor(inputs).reshape(
        example.problem.horizon, -1
    )
    return step


@given(hnp.arrays(float, 10, elements=st.integers(-(10**12), 10**12)), st.floats(1e-9, 0.4))
def test_the_longest_step_stays_inside_and_is_the_longest(inputs, share):
    example = Example("tangled")
    lower, upper = example.problem.input_bounds
    z = interior(example.case, example.z.numpy(), share)
    example.distances, step = example.distances_at(torch.as_tensor(z)), input_step(example, inputs)
    length, _ = example.advanced(example.duals, step)
    assert 0.0 < length <= 1.0
    moved = inputs_of(example.problem, z + length * step.numpy())
    assert (moved > lower).all()
    assert (moved < upper).all()
    if length < 1.0:
        longer = inputs_of(example.problem, z + 1.01 / TO_BOUNDARY * length * step.numpy())
        assert ((longer < lower) | (longer > upper)).any()


@every_problem
def test_steps_that_stay_far_from_the_bounds_are_taken_whole(name):
    example = Example(name)
    for scale in (0.0, 1e-9, 1e-3):
        assert example.advanced(example.duals, scale * example.step)[0] == 1.0


@every_problem
def test_inputs_are_brought_inside_and_those_inside_stay(name):
    example = Example(name)
    lower, upper = example.problem.input_bounds
    shape = (example.problem.horizon, example.problem.nu)
    for scale in (1.0, 1e9):
        given_inputs = scale * np.random.default_rng(0).standard_normal(shape)
        moved = example.barrier.interior(given_inputs)
        assert (moved > lower).all()
        assert (moved < upper).all()
        np.testing.assert_array_equal(example.barrier.interior(moved), moved)
        free = np.isinf(lower) & np.isinf(upper)
        np.testing.assert_array_equal(moved[:, free], given_inputs[:, free])


def test_outside_the_input_bounds_the_barrier_is_infinite():
    example = Example("unicycle")
    assert np.isfinite(example.value_at(example.z))
    lower, upper = example.problem.input_bounds
    for edge in (lower[0], upper[0], 1e3):
        z = example.z.clone()
        z[0] = edge
        assert example.value_at(z) == np.inf


def all_positive(example, duals):
    """Zero where there is no bound."""
    return (duals[example.finite] > 0).all() and (duals[~example.finite] == 0).all()


@every_problem
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_duals_stay_positive_along_any_step(name, scale):
    example = Example(name)
    length, duals = example.advanced(example.duals, scale * example.step)
    assert all_positive(example, duals)
    distances = example.distances_at(example.z + length * scale * example.step)
    assert all_positive(example, example.barrier.safeguarded(duals, distances, example.mu))


@every_problem
def test_duals_solve_the_linearised_complementarity(name):
    """``distance * dual = mu`` to first order, where no dual had to be shortened."""
    example = Example(name)
    off, step = example.off_the_central_path(0.5, 2.0), 1e-3 * example.step
    _, duals = example.advanced(off, step)
    *_, v = example.parts(example.distances)
    *_, of_t, of_v = example.parts(duals)
    u_step = example.stages(step)[:, : example.problem.nu]
    row_step = (example.row_jacobian @ example.stages(step)[:, :, None])[..., 0]
    # The slacks move so that the slope of phi in v stays zero: l + q v = nu + kappa.
    linear, quadratic = (torch.as_tensor(w) for w in row_penalties(example.problem))
    v_step = (of_t + of_v - linear - quadratic * v) / quadratic
    changes = torch.cat([u_step, -u_step, row_step + v_step, v_step], dim=-1)
    product = duals * example.distances + off * changes
    known = example.finite & (duals > 0.006 * off)
    assert known.sum() >= 0.4 * example.finite.sum()
    np.testing.assert_allclose(product[known], float(example.mu), rtol=1e-9)


@every_problem
def test_no_step_keeps_the_duals_of_the_central_path(name):
    example = Example(name)
    _, duals = example.advanced(example.duals, torch.zeros_like(example.z))
    np.testing.assert_allclose(duals, example.duals, rtol=1e-12)


@every_problem
def test_duals_converge_to_the_central_path_of_a_smaller_barrier(name):
    """Newton's method in the duals alone: at fixed slacks one step solves them."""
    example = Example(name)
    _, duals = example.advanced(1.3 * example.duals, torch.zeros_like(example.z))
    np.testing.assert_allclose(duals, example.duals, rtol=1e-12)


@every_problem
def test_duals_far_from_the_central_path_are_brought_near(name):
    example = Example(name)

    def safeguarded(duals):
        return example.barrier.safeguarded(duals, example.distances, example.mu)

    for factor in (1e8, 1e-8):
        wild = factor**3 * example.duals
        np.testing.assert_allclose(safeguarded(wild), factor * example.duals, rtol=1e-12)
    near = 100.0 * example.duals
    np.testing.assert_array_equal(safeguarded(near), near)


@every_problem
def test_a_stage_is_the_same_alone_as_in_a_batch(name):
    example = Example(name)
    barrier, mu = example.barrier, example.mu
    duals, steps = example.off_the_central_path(), example.stages(example.step)

    def everything(u, x, h, of_h, duals, step):
        rows, jacobian = barrier.row_values(x, h), barrier.row_jacobian(of_h)
        distances = barrier.distances(u, rows, mu)
        return (
            rows,
            barrier.value(distances, mu),
            barrier.gradient(jacobian, distances, mu),
            barrier.curvature(jacobian, distances, barrier.safeguarded(duals, distances, mu)),
            *barrier.advance(duals, distances, jacobian, step, mu),
        )

    u, x = example.stages(example.z).tensor_split([example.problem.nu], dim=-1)
    h = example.transcription.terms(example.z, example.data).inequalities
    of_h = example.row_jacobian[:, : h.shape[-1]]
    arguments = (u, x, h, of_h, duals, steps)
    together = everything(*arguments)
    twice = everything(*(a.expand(2, *a.shape) for a in arguments))
    for k in range(example.problem.horizon):
        alone = everything(*(a[k] for a in arguments))
        for one, all_stages, two in zip(alone, together, twice, strict=True):
            np.testing.assert_allclose(one, all_stages[k], rtol=1e-13, atol=1e-13)
            np.testing.assert_allclose(
                two[:, k], one.expand(2, *one.shape), rtol=1e-13, atol=1e-13
            )


def test_a_free_problem_has_an_empty_barrier():
    example = Example("free")
    assert example.value_at(example.z) == 0.0
    assert not example.gradient_at(example.z).any()
    assert not example.curvature(example.duals).any()
    assert example.advanced(example.duals, 1e9 * torch.ones_like(example.z))[0] == 1.0


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
    barrier, mu = Barrier(problem), torch.tensor(0.5, dtype=torch.float64)
    u, nothing = torch.tensor([2.0], dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    jacobian = barrier.row_jacobian(nothing.reshape(0, 2))
    distances = barrier.distances(u, barrier.row_values(u, nothing), mu)
    duals = mu / distances
    assert duals.tolist() == [0.25, 0.0]
    assert float(barrier.value(distances, mu)) == pytest.approx(-0.5 * math.log(2.0))

    def longest(step):
        step = torch.tensor([step, 0.0], dtype=torch.float64)
        return float(barrier.advance(duals, distances, jacobian, step, mu)[0])

    assert longest(1e9) == 1.0
    assert longest(-4.0) == pytest.approx(TO_BOUNDARY / 2.0)
