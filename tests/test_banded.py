# SPDX-License-Identifier: Apache-2.0
"""Every operation on bands agrees with its dense twin."""

import pickle

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpc_banded.ocp import banded

SIZES = [(1, 0), (1, 3), (2, 5), (5, 0), (6, 2), (4, 3), (4, 4), (40, 9), (120, 40)]


def random_band(n, half_bandwidth, seed=0):
    """A random symmetric dense matrix, zero beyond the half bandwidth."""
    matrix = np.random.default_rng(seed).standard_normal((n, n))
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return np.where(distance <= half_bandwidth, matrix + matrix.T, 0.0)


def positive_band(n, half_bandwidth, seed=0):
    matrix = random_band(n, half_bandwidth, seed)
    return matrix + np.diag(np.abs(matrix).sum(axis=0) + 0.1)


@st.composite
def bands_and_masks(draw):
    n, b = draw(st.integers(1, 12)), draw(st.integers(0, 14))
    matrix = positive_band(n, b, draw(st.integers(0, 2**32 - 1)))
    return banded.from_dense(matrix, b), draw(hnp.arrays(bool, n))


@pytest.mark.parametrize(("n", "b"), SIZES)
def test_storage_is_the_lower_diagonals_with_zero_corners(n, b):
    matrix = random_band(n, b)
    bands = banded.from_dense(matrix, b)
    assert bands.shape == (b + 1, n)
    for d in range(b + 1):
        for j in range(n):
            assert bands[d, j] == (matrix[j + d, j] if j + d < n else 0.0)
    np.testing.assert_array_equal(banded.to_dense(bands), matrix)


def test_from_dense_refuses_to_drop_entries():
    with pytest.raises(ValueError, match="half_bandwidth=1"):
        banded.from_dense(random_band(5, 2), 1)


@pytest.mark.parametrize(("n", "b"), SIZES)
def test_matvec_is_the_dense_product(n, b):
    matrix, vector = random_band(n, b), np.random.default_rng(1).standard_normal(n)
    product = banded.matvec(banded.from_dense(matrix, b), vector)
    np.testing.assert_allclose(product, matrix @ vector, rtol=1e-12, atol=1e-12)


def test_matvec_never_reads_the_corner_cells():
    bands = banded.from_dense(random_band(6, 3), 3)
    expected = banded.matvec(bands, np.ones(6))
    for d in range(1, 4):
        bands[d, 6 - d :] = np.nan
    np.testing.assert_array_equal(banded.matvec(bands, np.ones(6)), expected)


def test_a_vector_of_another_length_is_refused():
    bands = banded.from_dense(positive_band(4, 2), 2)
    with pytest.raises(ValueError, match=r"\(4,\).*\(5,\)"):
        banded.matvec(bands, np.ones(5))
    with pytest.raises(ValueError, match=r"\(4,\).*\(5,\)"):
        banded.cholesky(bands).solve(np.ones(5))
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        banded.cholesky(bands).solve(np.ones((3, 2)))


@pytest.mark.parametrize(("n", "b"), SIZES)
@pytest.mark.parametrize("columns", [(), (1,), (3,)])
def test_solve_agrees_with_numpy_and_scipy(n, b, columns):
    matrix = positive_band(n, b)
    bands = banded.from_dense(matrix, b)
    rhs = np.random.default_rng(2).standard_normal((n, *columns))
    before = bands.copy(), rhs.copy()
    factor = banded.cholesky(bands)
    solution = factor.solve(rhs)
    assert solution.shape == rhs.shape
    np.testing.assert_allclose(matrix @ solution, rhs, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, rhs), rtol=1e-10, atol=1e-12)
    if b < n:  # SciPy's own limit
        twin = scipy.linalg.solveh_banded(bands, rhs, lower=True)
        np.testing.assert_allclose(solution, twin, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(bands, before[0])
    np.testing.assert_array_equal(rhs, before[1])
    np.testing.assert_array_equal(factor.solve(rhs), solution)


@pytest.mark.parametrize(("n", "b"), SIZES)
def test_the_factor_is_the_dense_one(n, b):
    matrix = positive_band(n, b)
    factor = banded.cholesky(banded.from_dense(matrix, b)).factor
    np.testing.assert_allclose(
        np.tril(banded.to_dense(factor)), np.linalg.cholesky(matrix), rtol=1e-12, atol=1e-14
    )


def test_any_memory_order_and_precision_gives_the_same_factor():
    bands = banded.from_dense(np.round(positive_band(20, 4)), 4)
    expected = banded.cholesky(bands).factor
    for variant in (np.ascontiguousarray(bands), np.asfortranarray(bands), bands.astype("f4")):
        np.testing.assert_array_equal(banded.cholesky(variant).factor, expected)


@pytest.mark.parametrize(("n", "b"), SIZES)
def test_an_indefinite_matrix_names_its_first_bad_leading_minor(n, b):
    for bad in {0, n // 2, n - 1}:
        matrix = positive_band(n, b)
        matrix[bad, bad] = -1.0
        minors = [np.linalg.eigvalsh(matrix[:k, :k]).min() > 0 for k in range(1, n + 1)]
        with pytest.raises(banded.NotPositiveDefinite, match="positive definite") as caught:
            banded.cholesky(banded.from_dense(matrix, b))
        assert caught.value.index == minors.index(False) == bad


def test_a_singular_matrix_is_not_positive_definite():
    with pytest.raises(ArithmeticError) as caught:
        banded.cholesky(np.zeros((2, 3)))
    assert caught.value.index == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("n", "b"), SIZES)
def test_a_matrix_that_is_not_finite_has_no_factor(n, b, value):
    """NaN passes LAPACK without a complaint, so every cell is tried."""
    cells = [(d, j) for d in range(min(b + 1, n)) for j in range(n - d)]
    for d, j in cells[:: max(1, len(cells) // 50)]:
        bands = banded.from_dense(positive_band(n, b), b)
        bands[d, j] = value
        if d == 0 and value == np.inf:
            expected = range(j, min(j + b + 1, n))  # an infinite pivot: the row, or what it meets
        else:
            expected = [j + d]
        with pytest.raises(banded.NotPositiveDefinite) as caught:
            banded.cholesky(bands)
        assert caught.value.index in expected


def test_the_first_of_two_faults_is_named():
    bands = banded.from_dense(positive_band(10, 2), 2)
    bands[0, 7], bands[0, 4] = -1.0, np.nan
    with pytest.raises(banded.NotPositiveDefinite) as caught:
        banded.cholesky(bands)
    assert caught.value.index == 4
    assert pickle.loads(pickle.dumps(caught.value)).index == 4


@given(st.integers(1, 5), st.integers(0, 6), st.booleans(), st.integers(0, 2**32 - 1))
def test_add_blocks_is_the_dense_sum(m, count, overlapping, seed):
    rng = np.random.default_rng(seed)
    n = max(1, count * m + 2)
    starts = rng.integers(0, n - m + 1, count) if overlapping and n >= m else None
    blocks = rng.standard_normal((count, m, m))
    blocks += blocks.swapaxes(1, 2)
    bands = banded.from_dense(random_band(n, m), m)
    dense = banded.to_dense(bands)
    for k, block in enumerate(blocks):
        start = k * m if starts is None else starts[k]
        dense[start : start + m, start : start + m] += block
    banded.add_blocks(bands, blocks, starts)
    np.testing.assert_allclose(banded.to_dense(bands), dense, rtol=1e-13, atol=1e-13)


def test_blocks_that_do_not_fit_are_refused():
    bands = np.zeros((2, 5))
    with pytest.raises(ValueError, match="entries beyond a half bandwidth of 1"):
        banded.add_blocks(bands, np.ones((1, 3, 3)))
    with pytest.raises(ValueError, match="rows 0 to 4 do not fit a matrix of 5 rows"):
        banded.add_blocks(bands, np.ones((3, 2, 2)))
    with pytest.raises(ValueError, match="rows -1 to -1"):
        banded.add_blocks(bands, np.ones((1, 2, 2)), np.array([-1]))
    assert not bands.any()


def test_blocks_may_be_wider_than_the_band_that_holds_their_entries():
    bands, block = np.zeros((2, 4)), np.diag([1.0, 2.0, 3.0]) + np.eye(3, k=1) + np.eye(3, k=-1)
    banded.add_blocks(bands, block[None], np.array([1]))
    wanted = np.zeros((4, 4))
    wanted[1:, 1:] = block
    np.testing.assert_array_equal(banded.to_dense(bands), wanted)
