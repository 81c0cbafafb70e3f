# SPDX-License-Identifier: Apache-2.0
"""Bands from combs equal the dense Hessian, at the stated cost, or an error says why not."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.ocp import banded, comb
from mpc_banded.ocp.comb import BandwidthError, Comb, banded_hessian, check_band

RECOVERIES = ["direct", "substitution", "phase", "random"]
DTYPES = ["float64", "float32"]
# Largest error over largest entry, in eps, for n up to some tens.
ERROR = {"direct": 8, "substitution": 20, "phase": 40, "random": 400}


def coupled(half_bandwidth):
    """A nonlinear function in which every variable meets its next ``half_bandwidth`` ones."""

    def f(z):
        value = (z**4 / 12 + torch.cos(z)).sum()
        for d in range(1, min(half_bandwidth, len(z) - 1) + 1):
            value = value + (torch.sin(z[d:] * z[:-d]) / d).sum() + (z[d:] * z[:-d] ** 2).mean()
        return value

    return f


def quadratic(bands):
    """``z' A z / 2`` without ever forming A."""
    rows = torch.from_numpy(np.ascontiguousarray(bands))

    def f(z):
        value = (rows[0] * z * z).sum() / 2
        for d in range(1, min(len(rows), len(z))):
            value = value + (rows[d, : len(z) - d] * z[d:] * z[:-d]).sum()
        return value

    return f


def random_bands(n, half_bandwidth, scale=None, seed=0, dtype="float64"):
    """Random entries in (-1, 1) with full mantissas; ``scale`` (n,) grades the diagonal."""
    bands = np.tanh(np.random.default_rng(seed).standard_normal((half_bandwidth + 1, n)))
    return (bands * entry_scale(np.ones(n) if scale is None else scale, bands.shape)).astype(dtype)


def entry_scale(scale, shape):
    """sqrt(scale_i scale_j) in band storage, zero in the corner."""
    bands = np.zeros(shape)
    for d in range(min(shape)):
        bands[d, : len(scale) - d] = np.sqrt(scale[d:] * scale[: len(scale) - d])
    return bands


def point(n, dtype="float64"):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, generator=generator, dtype=getattr(torch, dtype))


@cache
def dense_twin(n, half_bandwidth, dtype):
    """The Hessian of ``coupled`` as torch finds it, in float64 whatever the dtype of the point."""
    z = point(n, dtype).double()
    with warnings.catch_warnings():  # torch's own, on the first use of forward mode
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.func.hessian(coupled(half_bandwidth))(z).numpy()


# What it finds


@pytest.mark.slow
@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize(
    ("half_bandwidth", "dtype"),
    [*((b, "float64") for b in (0, 1, 2, 3, 4, 7, 8)), (1, "float32"), (4, "float32")],
)
def test_the_bands_are_those_of_the_dense_hessian(half_bandwidth, dtype, recovery):
    # About one and two half bandwidths, where combs get another tooth, and far beyond.
    edges = {k * half_bandwidth + d for k in (1, 2) for d in (0, 1, 2)}
    for n in sorted({1, 2, 3, 27} | edges - {0}):
        z = point(n, dtype)
        bands = banded_hessian(coupled(half_bandwidth), z, half_bandwidth, recovery)
        assert bands.shape == (half_bandwidth + 1, n)
        assert bands.dtype == dtype
        twin = dense_twin(n, half_bandwidth, dtype)
        error = np.abs(banded.to_dense(bands) - twin).max()
        assert error <= ERROR[recovery] * np.finfo(bands.dtype).eps * np.abs(twin).max()


@given(st.integers(1, 40), st.integers(0, 45), st.sampled_from(RECOVERIES), st.integers(0, 99))
def test_decompress_undoes_compress(n, half_bandwidth, recovery, seed):
    bands = random_bands(n, half_bandwidth, seed=seed)
    prepared = Comb(n, half_bandwidth, recovery)
    found = prepared.decompress(prepared.probes.numpy() @ banded.to_dense(bands))
    eps = np.finfo(float).eps
    np.testing.assert_allclose(found, bands, rtol=0, atol=5 * ERROR[recovery] * eps)
    for d in range(half_bandwidth + 1):
        assert not found[d, max(0, n - d) :].any()


@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scipy_solves_with_the_result_as_it_is(recovery, dtype):
    n, half_bandwidth = 30, 4
    bands = random_bands(n, half_bandwidth, dtype=dtype)
    bands[0] = 2 * np.abs(banded.to_dense(bands)).sum(axis=0)
    found = banded_hessian(quadratic(bands), point(n, dtype), half_bandwidth, recovery)
    assert found.flags.f_contiguous
    rhs = np.arange(n, dtype=found.dtype)
    solution = scipy.linalg.solveh_banded(found, rhs, lower=True)
    expected = np.linalg.solve(banded.to_dense(bands), rhs)
    np.testing.assert_allclose(solution, expected, rtol=1e3 * np.finfo(found.dtype).eps)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_a_linear_or_constant_function_has_hessian_zero(recovery):
    z = point(6)
    weight = torch.ones(6, dtype=torch.float64, requires_grad=True)
    functions = {
        "linear": lambda z: (3 * z).sum(),
        "constant": lambda _: torch.tensor(2.0),
        "constant with a graph of its own": lambda _: (weight**2).sum(),
        "linear with a graph of its own": lambda z: (weight**2 * z).sum(),
        "piecewise linear": lambda z: z.abs().sum(),
    }
    for name, f in functions.items():
        np.testing.assert_array_equal(banded_hessian(f, z, 2, recovery), np.zeros((3, 6)), name)
    assert weight.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_mode_of_the_caller_and_the_point_are_left_alone(mode):
    expected = banded_hessian(coupled(2), point(7), 2)
    with mode():
        z = point(7)
        before = torch.is_grad_enabled(), z.clone()
        np.testing.assert_array_equal(banded_hessian(coupled(2), z, 2), expected)
        assert torch.is_grad_enabled() == before[0]
    assert torch.equal(z, before[1])
    assert not z.requires_grad
    assert z.grad is None


# What it costs


@pytest.fixture
def rows_sent(monkeypatch):
    """Sizes of the batches of vectors that reach the backward pass."""
    sizes = []
    grad = torch.autograd.grad

    def counting(*args, **options):
        if options.get("is_grads_batched"):
            sizes.append(len(args[2]))
        return grad(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    return sizes


@pytest.mark.parametrize("half_bandwidth", range(9))
@pytest.mark.parametrize("n", [1, 4, 9, 60])
def test_as_many_probes_are_sent_as_theory_says(half_bandwidth, n, rows_sent):
    direct, substitution = min(2 * half_bandwidth + 1, n), min(half_bandwidth + 1, n)
    counts = {
        "direct": direct,
        "substitution": substitution,
        "phase": direct,
        "random": direct + 4,
    }
    for recovery, count in counts.items():
        for check in (False, True):
            rows_sent.clear()
            banded_hessian(coupled(half_bandwidth), point(n), half_bandwidth, recovery, check)
            assert sum(rows_sent) == count + check
            assert Comb(n, half_bandwidth, recovery).probes.shape == (count, n)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_batches_bound_the_memory_and_change_nothing(recovery, monkeypatch, rows_sent):
    whole = banded_hessian(coupled(3), point(25), 3, recovery)
    assert rows_sent == [Comb(25, 3, recovery).probes.shape[0], 1]
    rows_sent.clear()
    monkeypatch.setattr(comb, "_BATCH", 60)
    parts = banded_hessian(coupled(3), point(25), 3, recovery)
    assert max(rows_sent) == 2
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


# How accurately


def noisy_recovery(bands, recovery, seed=0):
    """Recovery from the products with ``bands``, each entry of them off by one eps."""
    prepared = Comb(bands.shape[1], len(bands) - 1, recovery)
    products = np.stack([banded.matvec(bands, probe.numpy()) for probe in prepared.probes])
    sign = np.random.default_rng(seed).choice([-1, 1], products.shape)
    return prepared.decompress(products * (1 + sign * np.finfo(float).eps))


ROW = np.arange(200)
GRADINGS = {
    "level": np.ones(200),
    "heavy last": np.where(ROW >= 190, 1e6, 1.0),
    "heavy first": np.where(ROW < 10, 1e6, 1.0),
    "heavy spike in the middle": np.where(np.abs(ROW - 100) < 3, 1e6, 1.0),
    "rising": 10.0 ** (ROW * 6 / 199),
    "falling": 10.0 ** (ROW * -6 / 199),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grading", GRADINGS)
@pytest.mark.parametrize(("recovery", "limit"), [("direct", 2), ("substitution", 50)])
def test_light_entries_of_a_graded_band_keep_their_digits(grading, recovery, limit, dtype):
    scale = GRADINGS[grading]
    bands = random_bands(200, 9, scale, dtype=dtype)
    unit = np.finfo(dtype).eps * entry_scale(scale, bands.shape)
    found = banded_hessian(quadratic(bands), point(200, dtype), 9, recovery)
    assert (np.abs(found - bands) <= limit * unit).all()


@pytest.mark.parametrize("grading", GRADINGS)
@pytest.mark.parametrize(("recovery", "limit"), [("direct", 2), ("substitution", 50)])
def test_so_they_do_if_every_product_is_off_by_one_eps(grading, recovery, limit):
    scale = GRADINGS[grading]
    bands = random_bands(200, 9, scale)
    unit = np.finfo(float).eps * entry_scale(scale, bands.shape)
    assert (np.abs(noisy_recovery(bands, recovery) - bands) <= limit * unit).all()


def test_between_heavy_ends_substitution_is_only_as_exact_as_the_heavy_entries():
    scale = np.where((ROW < 10) | (ROW >= 190), 1e6, 1.0)
    bands = random_bands(200, 9, scale)
    eps = np.finfo(float).eps
    error = np.abs(noisy_recovery(bands, "substitution") - bands).max()
    assert 1e3 * eps < error < 1e6 * 100 * eps
    unit = eps * entry_scale(scale, bands.shape)
    assert (np.abs(noisy_recovery(bands, "direct") - bands) <= 4 * unit).all()


@pytest.mark.parametrize("n", [100, 1000, 10_000])
def test_errors_of_substitution_grow_no_faster_than_a_random_walk(n):
    bands = random_bands(n, 9)
    eps = np.finfo(float).eps
    assert np.abs(noisy_recovery(bands, "direct") - bands).max() <= 2 * eps
    assert np.abs(noisy_recovery(bands, "substitution") - bands).max() <= np.sqrt(n) * eps


# What it refuses


def with_couplings(n, half_bandwidth, couplings, strength=0.37):
    """A quadratic whose Hessian has entries of the given pairs, besides its band."""
    matrix = banded.to_dense(random_bands(n, half_bandwidth))
    for i, j in couplings:
        matrix[i, j] += strength
        matrix[j, i] += strength
    return matrix


def of_matrix(matrix, dtype="float64"):
    tensor = torch.from_numpy(matrix).to(getattr(torch, dtype))
    return lambda z: z @ tensor @ z / 2


COUPLINGS = {
    "just outside": (30, 3, [(7, 11)]),
    "corner to corner": (30, 3, [(0, 29)]),
    "aliased to the diagonal of a direct comb": (30, 3, [(5, 12)]),
    "aliased to the diagonal of a substitution comb": (30, 3, [(5, 9), (5, 13)]),
    "aliased to a neighbour": (30, 3, [(6, 14)]),
    "several at different distances": (60, 4, [(3, 9), (20, 41), (50, 56), (12, 19)]),
    "two from one row that cancel under equal probes": (30, 2, [(4, 10), (10, 16)]),
    "diagonal stated": (12, 0, [(3, 4), (5, 8)]),
    "small": (3, 1, [(0, 2)]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("case", COUPLINGS)
def test_a_coupling_outside_the_band_is_named_with_the_measured_bandwidth(case, recovery, dtype):
    n, half_bandwidth, couplings = COUPLINGS[case]
    widest = max(couplings, key=lambda pair: pair[1] - pair[0])
    measured = widest[1] - widest[0]
    f = of_matrix(with_couplings(n, half_bandwidth, couplings), dtype)
    with pytest.raises(BandwidthError) as caught:
        banded_hessian(f, point(n, dtype), half_bandwidth, recovery)
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.configured, error.measured, error.coupled) == (half_bandwidth, measured, widest)
    assert str(error) == (
        f"half_bandwidth={half_bandwidth} is too small: the Hessian couples variables "
        f"{widest[0]} and {widest[1]}, half bandwidth {measured} measured; "
        f"pass half_bandwidth >= {measured}"
    )
    banded_hessian(f, point(n, dtype), measured, recovery)


@given(st.data(), st.sampled_from(RECOVERIES), st.integers(0, 4))
def test_the_measured_bandwidth_is_exact(data, recovery, half_bandwidth):
    n = data.draw(st.integers(half_bandwidth + 2, 30))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    outside = pairs.filter(lambda pair: pair[1] - pair[0] > half_bandwidth)
    couplings = data.draw(st.sets(outside, min_size=1, max_size=5))
    strength = data.draw(st.sampled_from([1e-5, -1.0, 1e5]))
    f = of_matrix(with_couplings(n, half_bandwidth, couplings, strength))
    with pytest.raises(BandwidthError) as caught:
        banded_hessian(f, point(n), half_bandwidth, recovery)
    assert caught.value.measured == max(j - i for i, j in couplings)
    assert caught.value.exact


def test_the_products_of_substitution_cannot_betray_a_symmetric_coupling():
    """The reason for one more probe: the wrong band explains every product it came from."""
    n, half_bandwidth = 30, 3
    matrix = with_couplings(n, half_bandwidth, [(8, 18)])
    prepared = Comb(n, half_bandwidth, "substitution")
    products = prepared.probes.numpy() @ matrix
    wrong = banded.to_dense(prepared.decompress(products))
    assert np.abs(wrong - matrix).max() > 0.3
    np.testing.assert_allclose(prepared.probes.numpy() @ wrong, products, rtol=0, atol=1e-13)
    with pytest.raises(BandwidthError, match="variables 8 and 18, half bandwidth 10 measured"):
        banded_hessian(of_matrix(matrix), point(n), half_bandwidth, "substitution")


def test_a_coupling_in_light_rows_of_a_graded_band_is_found():
    bands = random_bands(200, 9, GRADINGS["rising"])
    band, coupling = quadratic(bands), 1e-3
    for recovery in RECOVERIES:
        with pytest.raises(BandwidthError, match="variables 2 and 40, half bandwidth 38"):
            banded_hessian(lambda z: band(z) + coupling * z[2] * z[40], point(200), 9, recovery)


def test_a_coupling_that_shows_only_in_another_row_is_found():
    """Between heavy rows 10 and 16 it is lost, but a direct comb reads it as an entry of row 9."""
    matrix = with_couplings(30, 3, [(10, 16)], strength=1.0)
    matrix[10, 10] = matrix[16, 16] = 1e9
    with pytest.raises(BandwidthError, match="variables 10 and 16, half bandwidth 6"):
        banded_hessian(of_matrix(matrix), point(30), 3)


def test_without_the_check_a_coupling_goes_unseen():
    matrix = with_couplings(20, 2, [(0, 9)])
    assert banded_hessian(of_matrix(matrix), point(20), 2, check=False).shape == (3, 20)


def test_a_hessian_too_large_to_measure_gives_a_lower_bound(monkeypatch):
    monkeypatch.setattr(comb, "_MEASURED", 20 * 40)
    monkeypatch.setattr(comb, "_BATCH", 3 * 40)
    matrix = banded.to_dense(random_bands(40, 12))
    with pytest.raises(BandwidthError, match="half bandwidth of at least 12 measured") as caught:
        banded_hessian(of_matrix(matrix), point(40), 2)
    assert not caught.value.exact


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(BandwidthError(3, 5, (7, 12))))
    assert (error.configured, error.measured, error.coupled) == (3, 5, (7, 12))
    assert "couples variables 7 and 12, half bandwidth 5 measured" in str(error)


def test_bands_of_another_point_are_distinguished_from_a_bandwidth_too_small():
    f, z = coupled(2), point(12).requires_grad_()
    (gradient,) = torch.autograd.grad(f(z), z, create_graph=True)
    bands = banded_hessian(f, z, 2)
    check_band(bands, gradient, z)
    stale = bands.copy()
    for wrong in (0.1, np.nan, np.inf):
        stale[1, 4] += wrong
        with pytest.raises(FloatingPointError, match="half_bandwidth=2"):
            check_band(stale, gradient, z)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_a_hessian_that_is_not_finite_names_the_variable(recovery):
    z = torch.tensor([1.0, 4.0, 0.0, 1.0], dtype=torch.float64)
    with pytest.raises(FloatingPointError, match=r"1 of 4 rows, first in row 2, .*z\[2\] = 0.0"):
        banded_hessian(lambda z: z.sqrt().sum(), z, 1, recovery)
    (gradient,) = torch.autograd.grad(z.requires_grad_().sqrt().sum(), z, create_graph=True)
    with pytest.raises(FloatingPointError, match="first in row 2"):
        check_band(np.zeros((2, 4)), gradient, z)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"z": np.zeros(3)}, TypeError, "z must be a torch tensor, got ndarray"),
        ({"z": torch.zeros(2, 3)}, ValueError, r"z must be a vector .* got shape \(2, 3\)"),
        ({"z": torch.zeros(0)}, ValueError, r"z must be a vector .* got shape \(0,\)"),
        ({"z": torch.zeros(3, dtype=torch.int64)}, ValueError, "torch.int64"),
        ({"z": torch.zeros(3, dtype=torch.float16)}, ValueError, "float32 or float64"),
        ({"f": lambda z: z}, ValueError, r"f must return a scalar .* got \(3,\)"),
        ({"f": lambda _: 1.0}, TypeError, "f must return a scalar tensor, got float"),
        ({"half_bandwidth": -1}, ValueError, "half_bandwidth must be an integer >= 0, got -1"),
        ({"half_bandwidth": 1.5}, ValueError, "half_bandwidth must be an integer >= 0, got 1.5"),
        (
            {"recovery": "fft"},
            ValueError,
            "recovery must be one of direct, substitution, phase, random; got 'fft'",
        ),
    ],
)
def test_a_bad_argument_is_named(change, error, message):
    arguments = {"f": torch.sum, "z": torch.zeros(3), "half_bandwidth": 1, **change}
    with pytest.raises(error, match=message):
        banded_hessian(**arguments)


# How it is used


@pytest.mark.slow
@pytest.mark.parametrize("recovery", RECOVERIES)
def test_threads_do_not_disturb_each_other(recovery):
    """Forward-mode differentiation fails this, and once silently."""
    expected = [banded_hessian(coupled(3), point(n), 3, recovery) for n in range(20, 28)]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(
            lambda n: banded_hessian(coupled(3), point(n), 3, recovery), [*range(20, 28)] * 8
        )
        for k, result in enumerate(results):
            np.testing.assert_array_equal(result, expected[k % 8])


def test_random_probes_are_reproducible():
    def bands(generator=None):
        return banded_hessian(coupled(3), point(30), 3, "random", generator=generator)

    np.testing.assert_array_equal(bands(), bands())
    other = [bands(torch.Generator().manual_seed(7)) for _ in range(2)]
    np.testing.assert_array_equal(*other)
    assert not np.array_equal(other[0], bands())


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_one_comb_serves_every_hessian_of_its_shape(recovery):
    prepared = Comb(20, 3, recovery)
    for seed in range(3):
        bands = random_bands(20, 3, seed=seed)
        products = prepared.probes.numpy() @ banded.to_dense(bands)
        found = prepared.decompress(products)
        np.testing.assert_allclose(found, bands, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(prepared.decompress(torch.from_numpy(products)), found)


def test_products_are_those_of_the_dense_jacobian_of_any_output():
    z = point(5).requires_grad_()
    output = torch.stack([z[1:] * z[:-1], z[1:].exp()])
    vectors = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1)).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda z: torch.stack([z[1:] * z[:-1], z[1:].exp()]), z.detach()
    )
    for _ in range(2):  # the graph is kept
        products = comb.hessian_vector_products(output, z, vectors)
        assert not products.requires_grad
        expected = torch.einsum("pij,ijk->pk", vectors, jacobian)
        torch.testing.assert_close(products, expected)
