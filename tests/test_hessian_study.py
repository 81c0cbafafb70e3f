# SPDX-License-Identifier: Apache-2.0
"""The study of banded Hessians: its subjects have slow twins, and the laws of its page hold."""

import warnings

import numpy as np
import pytest
import torch

from benchmarks import pages
from benchmarks.hessian_study import (
    growth,
    recoveries,
    routes,
)
from benchmarks.hessian_study.__main__ import PAGE, PARTS
from benchmarks.timing import SOLVE_PARTS
from mpc_banded.ocp import banded
from mpc_banded.ocp.comb import RECOVERIES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures():
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
