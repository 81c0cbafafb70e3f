# SPDX-License-Identifier: Apache-2.0
"""Symmetric banded matrices: storage, products and Cholesky factors.

A symmetric (n, n) matrix A of half bandwidth b, ``A[i, j] == 0`` for ``|i - j| > b``, is kept as
the array ``bands`` of shape (b + 1, n) with ``bands[d, j] == A[j + d, j]``: row 0 holds the
diagonal, row d the d-th diagonal below it, each from column 0 on. For n = 5, b = 2::

    a00                          bands[0] = a00 a11 a22 a33 a44
    a10 a11        (symmetric)   bands[1] = a10 a21 a32 a43  0
    a20 a21 a22                  bands[2] = a20 a31 a42  0   0
     0  a31 a32 a33
     0   0  a42 a43 a44

The cells in the corner, outside of the matrix, are zero; b may be n or more. This is LAPACK's
lower form, which ``scipy.linalg.solveh_banded(bands, rhs, lower=True)`` takes. LAPACK expects
Fortran order: an array ``rows`` (n, b + 1) in C order, one row per column of A, has it without a
copy as ``rows.T``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.linalg.blas import dsbmv

# Looked up once: the look-up costs as much as a small solve.
_dpbtrf, _dpbtrs = get_lapack_funcs(("pbtrf", "pbtrs"), dtype=np.float64)


class NotPositiveDefinite(ArithmeticError):
    """The matrix has no Cholesky factor.

    Attributes:
        index: First row, from 0, at which the factorisation fails: the leading minor of order
            ``index + 1`` is not positive, or holds NaN or infinity.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index

    def __str__(self) -> str:
        return f"the leading minor of order {self.index + 1} is not positive definite"


@dataclass(frozen=True)
class BandedCholesky:
    """The Cholesky factor L of ``A = L L'``, which solves for many right-hand sides.

    Attributes:
        factor: L in lower band storage, (b + 1, n).
    """

    factor: np.ndarray

    def solve(self, rhs: np.ndarray) -> np.ndarray:
        """Return the solution x of ``A x = rhs`` for right-hand sides (n,) or (n, k)."""
        rhs = np.asarray(rhs)
        n = self.factor.shape[1]
        # SciPy's wrapper accepts a right-hand side of any length and returns nonsense for it.
        if rhs.ndim not in (1, 2) or rhs.shape[0] != n:
            raise ValueError(f"rhs must have shape ({n},) or ({n}, k), got {rhs.shape}")
        solution, _ = _dpbtrs(self.factor, rhs, lower=1)
        return solution


def cholesky(bands: np.ndarray) -> BandedCholesky:
    """Factor a positive definite matrix in O(n b^2), in float64 (LAPACK dpbtrf).

    ``bands`` (b + 1, n) is left as it is: its one copy is factored in place.

    Raises:
        NotPositiveDefinite: The matrix is not positive definite, or holds NaN or infinity.
    """
    copy = np.array(bands, dtype=np.float64, order="F")
    factor, info = _dpbtrf(copy, lower=1, overwrite_ab=1)
    # NaN passes LAPACK with info = 0, but always reaches the diagonal of its row of L.
    finite = np.isfinite(factor[0, : info - 1 if info else None])
    if not finite.all():
        raise NotPositiveDefinite(int(finite.argmin()))
    if info:
        raise NotPositiveDefinite(info - 1)
    return BandedCholesky(factor)


def matvec(bands: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return the product ``A v`` with a vector (n,), in float64."""
    half_bandwidth, n = len(bands) - 1, bands.shape[1]
    if vector.shape != (n,):
        raise ValueError(f"vector must have shape ({n},), got {vector.shape}")
    return dsbmv(half_bandwidth, 1.0, bands, vector, lower=1)


def add_blocks(bands: np.ndarray, blocks: np.ndarray, starts: np.ndarray | None = None) -> None:
    """Add small symmetric blocks along the diagonal, in place.

    Args:
        bands: (b + 1, n), changed in place.
        blocks: (K, m, m), without entries beyond the band; only their lower triangles are read.
        starts: First row of each block, (K,); they may overlap. By default one block follows
            another from row 0: ``k * m``.
    """
    count, m, _ = blocks.shape
    starts = np.arange(count) * m if starts is None else np.asarray(starts)
    half_bandwidth, n = len(bands) - 1, bands.shape[1]
    if np.tril(blocks, -half_bandwidth - 1).any():
        raise ValueError(f"blocks have entries beyond a half bandwidth of {half_bandwidth}")
    if count and not (0 <= starts.min() and starts.max() + m <= n):
        raise ValueError(
            f"blocks of size {m} starting at rows {starts.min()} to {starts.max()} "
            f"do not fit a matrix of {n} rows"
        )
    row, column = np.tril_indices(m)
    inside = row - column <= half_bandwidth
    row, column = row[inside], column[inside]
    np.add.at(bands, (row - column, starts[:, None] + column), blocks[:, row, column])


def to_dense(bands: np.ndarray) -> np.ndarray:
    """Return the full symmetric matrix (n, n)."""
    n = bands.shape[1]
    dense = np.zeros((n, n), dtype=bands.dtype)
    for d in range(min(len(bands), n)):
        column = np.arange(n - d)
        dense[column + d, column] = dense[column, column + d] = bands[d, : n - d]
    return dense


def from_dense(matrix: np.ndarray, half_bandwidth: int) -> np.ndarray:
    """Return a symmetric matrix (n, n), of which only the lower triangle is read, in band storage.

    Raises:
        ValueError: The matrix has entries beyond the half bandwidth.
    """
    if np.tril(matrix, -half_bandwidth - 1).any():
        raise ValueError(f"matrix has entries beyond half_bandwidth={half_bandwidth}")
    n = len(matrix)
    bands = np.zeros((n, half_bandwidth + 1), dtype=matrix.dtype).T
    for d in range(min(half_bandwidth + 1, n)):
        bands[d, : n - d] = np.diagonal(matrix, -d)
    return bands
