# SPDX-License-Identifier: Apache-2.0
"""Recovers the banded Hessian of a scalar torch function from a few Hessian-vector products.

Probing with unit vectors takes n products, and most entries of each are known to be zero. A
*comb*, a vector that is one at every q-th variable, yields many columns in one product; the combs
shifted by 0 .. q-1 yield all of them. To *compress* is to form the products of all probes in one
batched backward pass; to *decompress* is to sort them into the lower band storage of banded.py.

==============  =================  ============================================================
recovery        probes             decompressed by
==============  =================  ============================================================
direct          2 b + 1            reading: each product entry is one entry of the band
substitution    b + 1              alternating sums along chains of entries (symmetry)
phase           2 b + 1            an inverse Fourier transform of each row
random          2 b + 1 + 4        a least-squares solve for each row
==============  =================  ============================================================

Where n is smaller than 2 b + 1 or b + 1, n probes are enough. No linear scheme needs fewer than
b + 1. Direct, the default, recovers each entry to its own rounding error. Substitution suits
products that are expensive: its rounding errors add up along a chain, to some tens of eps at
n = 10 000, and small entries between large ones are only as exact as the large ones. Phase and
random mix the entries of a row and save nothing; they are here for comparison.

Only reverse mode is used: forward-mode differentiation keeps its nesting level in a module
global, so two threads would disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpc_banded.ocp.banded import matvec
from mpc_banded.ocp.differences import check_function

# Numbers in one batch of vectors; bounds the memory that large problems take.
_BATCH = 1 << 20
# Numbers in all Hessian columns that are examined to measure a half bandwidth.
_MEASURED = 1 << 27
_EXTRA_RANDOM_PROBES = 4


class BandwidthError(ValueError):
    """The Hessian reaches beyond the stated half bandwidth.

    Attributes:
        configured: The stated half bandwidth.
        measured: The measured half bandwidth.
        coupled: Two variables that far apart whose second derivative is not zero.
        exact: False if the Hessian was too large to examine every suspicious column, so that
            ``measured`` is a lower bound.
    """

    def __init__(
        self, configured: int, measured: int, coupled: tuple[int, int], exact: bool = True
    ) -> None:
        super().__init__(configured, measured, coupled, exact)
        self.configured, self.measured, self.coupled, self.exact = self.args

    def __str__(self) -> str:
        i, j = self.coupled
        return (
            f"half_bandwidth={self.configured} is too small: the Hessian couples variables {i} "
            f"and {j}, half bandwidth {'' if self.exact else 'of at least '}{self.measured} "
            f"measured; pass half_bandwidth >= {self.measured}"
        )


def banded_hessian(
    f: Callable[[Tensor], Tensor],
    z: Tensor,
    half_bandwidth: int,
    recovery: str = "direct",
    check: bool = True,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Return the Hessian of ``f`` at ``z`` as bands, at the cost of a few gradients.

    Where the Hessian is positive definite, the Newton step is
    ``scipy.linalg.solveh_banded(bands, -gradient, lower=True)``.

    Args:
        f: Any twice differentiable torch function of a vector (n,) to a scalar of shape (),
            made of operations that torch can batch (``torch.vmap``).
        z: Point (n,), float32 or float64.
        half_bandwidth: b >= 0, with ``H[i, j] == 0`` for ``|i - j| > b``; it may be n or more.
        recovery: "direct", "substitution", "phase" or "random"; see the module's table.
        check: Compare the result with the Hessian along one more probe, a random one, and compare
            the first two derivatives of ``f`` along a random direction with finite differences.
        generator: Draws the random probes, on the CPU; by default a new one with seed 0, so that
            the same call returns the same result.

    Returns:
        NumPy array (b + 1, n) of the dtype of ``z`` in lower band storage, Fortran-ordered:
        ``bands[d, j] == H[j + d, j]``, zero in the corner.

    Raises:
        BandwidthError: ``check`` finds that the Hessian reaches beyond ``half_bandwidth``.
        WrongDerivative: ``check`` finds that autograd's derivatives are not those of ``f``, for
            example because a tensor is detached.
        FloatingPointError: The Hessian is not finite at ``z``, or its entries differ so much in
            scale that the bands do not reproduce it.
    """
    gradient, point = _gradient(f, z)
    generator = generator or torch.Generator().manual_seed(0)
    if check:
        check_function(f, point)
    comb = Comb(point.numel(), half_bandwidth, recovery, point.dtype, generator)
    products = hessian_vector_products(gradient, point, comb.probes.to(point.device))
    _require_finite(products, point)
    bands = comb.decompress(products)
    if check:
        check_band(bands, gradient, point, generator)
    return bands


class Comb:
    """Probes for a band, and the recovery of the band from their products.

    The constructor does all index arithmetic once; one comb serves every Hessian of its shape.

    Args:
        n: Number of variables.
        half_bandwidth: Half bandwidth of the Hessian.
        recovery: "direct", "substitution", "phase" or "random"; see the module's table.
        dtype: dtype of the probes.
        generator: Draws the random probes; by default a new one with seed 0.

    Attributes:
        probes: The probes (p, n), on the CPU.
    """

    def __init__(
        self,
        n: int,
        half_bandwidth: int,
        recovery: str = "direct",
        dtype: torch.dtype = torch.float64,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value, least in (("n", n, 1), ("half_bandwidth", half_bandwidth, 0)):
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        if recovery not in _SCHEMES:
            raise ValueError(f"recovery must be one of {', '.join(_SCHEMES)}; got {recovery!r}")
        generator = generator or torch.Generator().manual_seed(0)
        probes, self._table, place = _SCHEMES[recovery](n, half_bandwidth, generator)
        self.probes = torch.as_tensor(probes, dtype=dtype)

        column = np.arange(n)[:, None]  # one row for each column of the Hessian: Fortran's order
        row = column + np.arange(half_bandwidth + 1)
        self._inside = row < n
        row = np.minimum(row, n - 1)
        self._lower, self._upper = place(row, column), place(column, row)

    def decompress(self, products: Tensor | np.ndarray) -> np.ndarray:
        """Return the Hessian in band storage (b + 1, n) from its products with the probes (p, n).

        Entries off the diagonal occur in two rows and are averaged. The dtype stays the same.
        """
        products = _array(products)
        table = self._table(products)
        bands = (table.take(self._lower) + table.take(self._upper)) / 2
        return np.where(self._inside, bands, 0).astype(products.dtype, copy=False).T


def hessian_vector_products(gradient: Tensor, z: Tensor, probes: Tensor) -> Tensor:
    """Return the product of each probe with the Hessian, by one batched backward pass.

    Args:
        gradient: Gradient at ``z``, computed with ``create_graph=True``; its graph is kept.
            With any other function of ``z``, the products are those of its Jacobian from the left.
        z: Point (n,).
        probes: Probes (p, *gradient.shape), of the gradient's dtype and device.

    Returns:
        Products (p, n), detached; zero where the gradient does not depend on ``z``.
    """
    if not gradient.requires_grad:
        return probes.new_zeros(len(probes), z.numel())
    products = []
    for batch in probes.split(max(1, _BATCH // z.numel())):
        (product,) = torch.autograd.grad(
            gradient, z, batch, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
        products.append(batch.new_zeros(len(batch), z.numel()) if product is None else product)
    return torch.cat(products)


def check_band(
    bands: np.ndarray,
    gradient: Tensor,
    z: Tensor,
    generator: torch.Generator | None = None,
) -> None:
    """Compare bands with the Hessian along one random probe, at the cost of one product.

    Rows may differ by sqrt(eps) of their own entries plus 10 eps of those of the largest row: a
    smaller coupling outside the band counts as zero. A mismatch costs more: a direct recovery, and
    the columns of the Hessian that do not fit.

    Args:
        bands: Band storage (b + 1, n).
        gradient: Gradient at ``z``, computed with ``create_graph=True``.
        z: Point (n,).
        generator: Draws the probe; by default a new one with seed 0.

    Raises:
        BandwidthError: The Hessian is wider than the bands; it tells the measured half bandwidth.
        FloatingPointError: The Hessian is not finite, or the bands do not reproduce it although
            no entry is found outside of them.
    """
    generator = generator or torch.Generator().manual_seed(0)
    # Entries of size 1 to 2 and random sign neither scale an entry away nor let two cancel.
    size, sign = torch.rand(2, z.numel(), generator=generator, dtype=torch.float64)
    probe = torch.where(sign < 0.5, 1 + size, -1 - size).to(z)
    product = hessian_vector_products(gradient, z, probe[None])
    _require_finite(product, z)
    residual, tolerance = _residual(bands, probe, product)
    if (residual <= tolerance).all():
        return

    # Other recoveries smear one coupling over many rows. After a mismatch, a small part of the
    # tolerance is suspicious: a coupling may show most in another row with smaller entries.
    half_bandwidth = len(bands) - 1
    comb = Comb(z.numel(), half_bandwidth, "direct", z.dtype)
    products = hessian_vector_products(gradient, z, comb.probes.to(z.device))
    _require_finite(products, z)
    residual, tolerance = _residual(comb.decompress(products), probe, product)
    suspicious = tolerance / 100
    rows = np.flatnonzero(residual > suspicious)
    step = max(1, -(-rows.size * z.numel() // _MEASURED))
    i, j = _widest_coupling(gradient, z, rows[::step], suspicious)
    if j - i > half_bandwidth:
        raise BandwidthError(half_bandwidth, j - i, (i, j), exact=step == 1)
    raise FloatingPointError(
        f"the bands do not reproduce the Hessian, yet nothing beyond half_bandwidth="
        f"{half_bandwidth} stands out of the rounding errors: they belong to another z, or the "
        f"entries are too far apart in scale for this recovery in {z.dtype}"
    )


def _gradient(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of ``f`` with its graph, and the copy of ``z`` that it starts from."""
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a torch tensor, got {type(z).__name__}")
    if z.dim() != 1 or z.numel() == 0 or z.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "z must be a vector (n,) of float32 or float64 with n at least 1, "
            f"got shape {tuple(z.shape)} of {z.dtype}"
        )
    # The caller may have disabled gradients; without a graph every Hessian would be zero.
    with torch.inference_mode(False), torch.enable_grad():
        point = z.detach().clone().requires_grad_()
        value = f(point)
        if not isinstance(value, Tensor):
            raise TypeError(f"f must return a scalar tensor, got {type(value).__name__}")
        if value.dim() != 0:
            raise ValueError(f"f must return a scalar of shape (), got {tuple(value.shape)}")
        if not value.requires_grad:
            return torch.zeros_like(point), point
        (gradient,) = torch.autograd.grad(
            value, point, create_graph=True, allow_unused=True, materialize_grads=True
        )
    return gradient, point


def _require_finite(products: Tensor, z: Tensor) -> None:
    bad = (~torch.isfinite(products)).any(dim=0).nonzero()[:, 0].tolist()
    if bad:
        raise FloatingPointError(
            f"the Hessian of f is not finite in {len(bad)} of {z.numel()} rows, first in row "
            f"{bad[0]}, where z[{bad[0]}] = {z[bad[0]].item()}"
        )


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def _residual(bands: np.ndarray, probe: Tensor, product: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the error of bands times probe, and the error allowed, (n,) each."""
    v, expected = _array(probe), _array(product)[0]
    eps = np.finfo(expected.dtype).eps
    scale = matvec(np.abs(bands), np.abs(v))
    return np.abs(matvec(bands, v) - expected), np.sqrt(eps) * scale + 10 * eps * scale.max()


def _widest_coupling(
    gradient: Tensor, z: Tensor, rows: np.ndarray, negligible: np.ndarray
) -> tuple[int, int]:
    """Return the two variables i <= j farthest apart among those that these rows couple.

    Each row is summed from both ends inwards until the sum exceeds what is negligible (n,).
    """
    widest = (0, 0)
    size = max(1, _BATCH // z.numel())
    for start in range(0, rows.size, size):
        part = rows[start : start + size]
        order = np.arange(part.size)
        unit = torch.zeros(part.size, z.numel(), dtype=z.dtype, device=z.device)
        unit[order, part] = 1
        columns = np.abs(_array(hessian_vector_products(gradient, z, unit)))
        columns[order, part] = np.inf  # the sums stop at the diagonal at the latest
        limit = negligible[part, None]
        first = (np.cumsum(columns, axis=1) > limit).argmax(axis=1)
        last = z.numel() - 1 - (np.cumsum(columns[:, ::-1], axis=1) > limit).argmax(axis=1)
        for i, j in ((first, part), (part, last)):
            k = (j - i).argmax()
            widest = max(widest, (int(i[k]), int(j[k])), key=lambda pair: pair[1] - pair[0])
    return widest


class _Scheme(NamedTuple):
    """A recovery; ``table(products)``, flattened, has the entry (i, j) at ``place(i, j)``."""

    probes: np.ndarray | Tensor
    table: Callable[[np.ndarray], np.ndarray]
    place: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _direct(n: int, b: int, _: torch.Generator) -> _Scheme:
    """Use combs so wide that no row meets one twice (Curtis, Powell and Reid 1974)."""
    stride = min(2 * b + 1, n)
    return _Scheme(
        probes=_combs(n, stride),
        table=lambda products: products,
        place=lambda i, j: j % stride * n + i,
    )


def _substitution(n: int, b: int, _: torch.Generator) -> _Scheme:
    """Use combs of stride b + 1, untangled by symmetry (Powell and Toint 1979).

    Row i meets its own class ``i % stride`` once, on the diagonal, and any other class twice, to
    the left and to the right. The rows of two classes A < B, in order A, B, A + stride, B +
    stride, ..., form a chain: neighbours share an entry of the Hessian, e_k between the k-th and
    the next, and the k-th observes ``y_k = e_{k-1} + e_k``. So e_k is the alternating sum of the
    observations to the left, or of those to the right. Errors add up like the terms, so each
    entry is taken from the side where the sum of ``|y|`` is less: small entries do not inherit
    the rounding errors of large ones, which may lie at either end or in the middle.
    """
    stride = min(b + 1, n)
    low, high = np.triu_indices(stride, 1)
    chain = np.zeros((stride, stride), dtype=int)
    chain[low, high] = chain[high, low] = np.arange(low.size)

    laps = -(-n // stride)
    row = np.stack([low, high], axis=1)[:, None, :] + stride * np.arange(laps)[:, None]
    row = row.reshape(low.size, 2 * laps)  # (chains, length), the last ones beyond n
    other = np.tile(np.stack([high, low], axis=1), (1, laps))
    real = row < n
    observed = other * n + np.minimum(row, n - 1)
    diagonal = np.arange(n) % stride * n + np.arange(n)
    signs = np.resize([1.0, -1.0], 2 * laps)

    def table(products: np.ndarray) -> np.ndarray:
        y = np.where(real, products.take(observed), 0)
        left, left_weight = np.cumsum(signs * y, axis=1), np.cumsum(np.abs(y), axis=1)
        right, right_weight = _sums_after(signs * y), _sums_after(np.abs(y))
        entries = signs * np.where(left_weight < right_weight, left, -right)
        return np.concatenate([products.take(diagonal), entries.reshape(-1)])

    def place(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        i, j = np.minimum(i, j), np.maximum(i, j)
        a, b = i % stride, j % stride
        entry = chain[a, b] * 2 * laps + 2 * (i // stride) + (a > b)
        return np.where(i == j, i, n + entry)

    return _Scheme(_combs(n, stride), table, place)


def _phase(n: int, b: int, _: torch.Generator) -> _Scheme:
    """Use probes ``exp(2 pi i j k / period)``: products of a row are its Fourier transform.

    The Hessian is real, so half of the waves are enough, each as a cosine and a sine; wave 0 and
    the last wave of an even period have no sine.
    """
    period = min(2 * b + 1, n)
    waves, sines = period // 2 + 1, (period - 1) // 2
    # The remainder keeps the angles, hence the probes, accurate for large n.
    turns = np.arange(waves)[:, None] * np.arange(n) % period
    wave = np.exp(2j * np.pi / period * turns)

    def table(products: np.ndarray) -> np.ndarray:
        transform = products[:waves].astype(complex)
        transform[1 : sines + 1] += 1j * products[waves:]
        return np.fft.irfft(wave * transform.conj(), n=period, axis=0)

    return _Scheme(
        probes=np.concatenate([wave.real, wave.imag[1 : sines + 1]]),
        table=table,
        place=lambda i, j: (j - i) % period * n + i,
    )


def _random(n: int, b: int, generator: torch.Generator) -> _Scheme:
    """Use Gaussian probes; the band's part of a row solves a small least-squares problem.

    With as many probes as unknowns, some of n = 10 000 rows have a condition number of 1e5
    (b = 9); with four more the worst one is about 100. At both ends all rows share the outermost
    window of columns.
    """
    width = min(2 * b + 1, n)
    probes = torch.randn(width + _EXTRA_RANDOM_PROBES, n, generator=generator, dtype=torch.float64)
    first = np.clip(np.arange(n) - b, 0, n - width)
    windows = probes.unfold(1, width, 1).permute(1, 0, 2)  # (n - width + 1, p, width), a view

    def table(products: np.ndarray) -> np.ndarray:
        finite = np.isfinite(products).all(axis=0)  # LAPACK refuses other values
        rhs = torch.from_numpy(np.where(finite, products, 0).T).to(torch.float64)[:, :, None]
        size = max(1, _BATCH // (len(probes) * width))
        batches = [slice(start, start + size) for start in range(0, n, size)]
        # The last bits of torch's default driver depend on where the arrays lie in memory.
        rows = [
            torch.linalg.lstsq(windows[first[k]], rhs[k], driver="gels").solution for k in batches
        ]
        return np.where(finite[:, None, None], torch.cat(rows).numpy(), np.nan)

    return _Scheme(probes, table, place=lambda i, j: i * width + j - first[i])


def _combs(n: int, stride: int) -> np.ndarray:
    """Return the combs (stride, n): comb c is one at c, c + stride, c + 2 stride, ..."""
    return (np.arange(n) % stride == np.arange(stride)[:, None]).astype(float)


def _sums_after(values: np.ndarray) -> np.ndarray:
    """Return at k the sum of what comes after k, along the last axis, without subtracting."""
    sums = np.zeros_like(values)
    sums[:, :-1] = np.cumsum(values[:, :0:-1], axis=1)[:, ::-1]
    return sums


_SCHEMES = {
    "direct": _direct,
    "substitution": _substitution,
    "phase": _phase,
    "random": _random,
}

#: Names of the recoveries.
RECOVERIES = tuple(_SCHEMES)
