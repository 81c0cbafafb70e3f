# SPDX-License-Identifier: Apache-2.0
"""The meaning of each ATen operation, as scalar operations on node numbers.

A new operation is an entry in one of three tables: ``SHAPES`` for operations that only rearrange
entries, ``BOOLEAN`` for those whose result is a truth value, and ``RULES`` for all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mpc_banded.codegen.graph import BINARY, UNARY, Graph

Rule = Callable[..., Any]


class UnsupportedOperation(NotImplementedError):
    """A function uses an operation that has no scalar form; the message names it."""


class Nodes:
    """Array operations on node numbers; each entry of an array is one node of a graph.

    Args:
        graph: Receives the nodes.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def constants(self, values: np.ndarray) -> np.ndarray:
        """Return the node numbers of an array of numbers."""
        flat = [self.graph.constant(value) for value in values.astype(np.float64).ravel()]
        return np.array(flat, dtype=np.int64).reshape(values.shape)

    def array(self, value: Any) -> np.ndarray:
        """Return the node numbers of an operand: an array of them, or a Python number."""
        if isinstance(value, np.generic):
            raise TypeError("node numbers come in arrays, so that none is taken for a value")
        return value if isinstance(value, np.ndarray) else self.constants(np.asarray(value))

    def elementwise(self, operation: str, *operands: Any) -> np.ndarray:
        """Apply one operation to all entries, with broadcasting."""
        arrays = np.broadcast_arrays(*(self.array(operand) for operand in operands))
        flat = [
            self.graph.apply(operation, *map(int, numbers))
            for numbers in zip(*(a.ravel() for a in arrays), strict=True)
        ]
        return np.array(flat, dtype=np.int64).reshape(arrays[0].shape)

    def reduced(
        self, operation: str, a: np.ndarray, dims: Any, keepdim: bool, empty: float | None = None
    ) -> np.ndarray:
        """Reduce some dimensions by a binary operation, from first to last entry."""
        axes = range(a.ndim) if dims is None or dims == [] else _dims(dims)
        if any(not -a.ndim <= axis < max(a.ndim, 1) for axis in axes):
            raise IndexError(f"dimension out of range: {dims} of {a.ndim}")
        axes = sorted({axis % max(a.ndim, 1) for axis in axes} if a.ndim else set())
        kept = [axis for axis in range(a.ndim) if axis not in axes]
        joined = math.prod(a.shape[axis] for axis in axes)
        rows = a.transpose(*kept, *axes).reshape(*(a.shape[axis] for axis in kept), joined)
        if rows.shape[-1] == 0:
            assert empty is not None
            result = np.full(rows.shape[:-1], self.graph.constant(empty))
        else:
            result = rows[..., 0]
            for i in range(1, rows.shape[-1]):
                result = self.elementwise(operation, result, rows[..., i])
        return np.expand_dims(result, tuple(axes)) if keepdim else result

    def extreme(self, operation: str, a: np.ndarray, dims: Sequence[Any]) -> np.ndarray:
        """Return the largest or smallest entry of a whole tensor."""
        if dims:
            raise UnsupportedOperation("max or min over a dimension; use amax or amin")
        return self.reduced(operation, a, None, False)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the matrix product of (..., i, j) and (..., j, k)."""
        terms = self.elementwise("mul", a[..., :, :, None], b[..., None, :, :])
        return self.reduced("add", terms, [-2], False, 0.0)

    def filled(self, shape: Any, value: Any) -> np.ndarray:
        """Return a new array filled with one value."""
        return np.full(tuple(shape), int(self.array(value)), dtype=np.int64)

    def write(self, a: np.ndarray, b: Any) -> np.ndarray:
        """Replace the entries of ``a`` in place."""
        a[...] = self.array(b)
        return a


#: Operation without a rule -> advice.
HINTS = {
    "_local_scalar_dense": ": no if, float() or item() on values; use torch.where",
    "sort": "; use amax, amin or torch.where",
}


def _dims(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)


def _elementwise(operation: str) -> Rule:
    return lambda s, *operands: s.elementwise(operation, *operands)


def _add(s: Nodes, a: Any, b: Any, alpha: Any = 1) -> np.ndarray:
    return s.elementwise("add", a, s.elementwise("mul", b, alpha))


def _sub(s: Nodes, a: Any, b: Any, alpha: Any = 1) -> np.ndarray:
    return s.elementwise("sub", a, s.elementwise("mul", b, alpha))


def _div(s: Nodes, a: Any, b: Any, rounding_mode: str | None = None) -> np.ndarray:
    if rounding_mode != "floor":
        quotient = s.elementwise("div", a, b)
        return s.elementwise(rounding_mode, quotient) if rounding_mode else quotient
    whole = s.elementwise("div", s.elementwise("sub", a, _remainder(s, a, b)), b)
    return s.elementwise("rint", whole)


def _round(s: Nodes, a: Any, decimals: int = 0) -> np.ndarray:
    scaled = s.elementwise("rint", s.elementwise("mul", a, 10.0**decimals))
    return s.elementwise("div", scaled, 10.0**decimals)


def _remainder(s: Nodes, a: Any, b: Any) -> np.ndarray:
    rest = s.elementwise("fmod", a, b)
    other_sign = s.elementwise("lt", s.elementwise("mul", rest, b), 0.0)
    return s.elementwise("where", other_sign, s.elementwise("add", rest, b), rest)


def _clamp(s: Nodes, a: Any, low: Any = None, high: Any = None) -> np.ndarray:
    result = a if low is None else s.elementwise("maximum", a, low)
    return result if high is None else s.elementwise("minimum", result, high)


def _sigmoid(s: Nodes, a: Any) -> np.ndarray:
    grown = s.elementwise("exp", s.elementwise("neg", a))
    return s.elementwise("div", 1.0, s.elementwise("add", 1.0, grown))


def _softmax(s: Nodes, a: np.ndarray, dim: int, _: bool) -> np.ndarray:
    shifted = s.elementwise("sub", a, s.reduced("maximum", a, dim, True))
    grown = s.elementwise("exp", shifted)
    return s.elementwise("div", grown, s.reduced("add", grown, dim, True, 0.0))


def _norm(s: Nodes, a: Any, order: float = 2, dims: Any = None, keepdim: bool = False) -> Any:
    size = s.elementwise("fabs", a)
    if order == 1:
        return s.reduced("add", size, dims, keepdim, 0.0)
    if order == math.inf:
        return s.reduced("maximum", size, dims, keepdim, 0.0)
    if order != 2:
        raise UnsupportedOperation(f"a norm of order {order} has no scalar form")
    squares = s.elementwise("mul", a, a)
    return s.elementwise("sqrt", s.reduced("add", squares, dims, keepdim, 0.0))


def _mean(s: Nodes, a: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> np.ndarray:
    total = s.reduced("add", a, dims, keepdim, 0.0)
    return s.elementwise("mul", total, total.size / a.size)


def _cumsum(s: Nodes, a: np.ndarray, dim: int, **_: Any) -> np.ndarray:
    result = np.moveaxis(a, dim, 0).copy()
    for i in range(1, len(result)):
        result[i, ...] = s.elementwise("add", result[i - 1, ...], result[i, ...])
    return np.moveaxis(result, 0, dim)


def _select(a: np.ndarray, dim: int, index: int) -> np.ndarray:
    return np.moveaxis(a, dim, 0)[index, ...]


def _slice(
    a: np.ndarray,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> np.ndarray:
    return np.moveaxis(np.moveaxis(a, dim, 0)[slice(start, end, step)], 0, dim)


def _scattered(s: Nodes, a: np.ndarray, part: np.ndarray, view: Rule, *at: Any) -> np.ndarray:
    s.write(view(a, *at), part)
    return a


def _expand(a: np.ndarray, shape: Sequence[int], **_: Any) -> np.ndarray:
    padded = (1,) * (len(shape) - a.ndim) + a.shape
    wanted = [old if new == -1 else new for old, new in zip(padded, shape, strict=True)]
    return np.broadcast_to(a, wanted)


def _squeeze(a: np.ndarray, dims: Any = None) -> np.ndarray:
    axes = range(a.ndim) if dims is None else _dims(dims)
    return np.squeeze(a, tuple(axis for axis in axes if a.ndim and a.shape[axis] == 1))


def _split(a: np.ndarray, sizes: Any, dim: int = 0) -> list[np.ndarray]:
    if isinstance(sizes, int):
        return np.split(a, range(sizes, a.shape[dim], sizes), axis=dim)
    return np.split(a, np.cumsum(sizes)[:-1], axis=dim)


def _index(s: Nodes, a: np.ndarray, indices: Sequence[Any]) -> np.ndarray:  # noqa: ARG001
    return a[(*indices, ...)]


def _index_put(
    s: Nodes, a: np.ndarray, indices: Sequence[Any], part: Any, accumulate: bool = False
) -> np.ndarray:
    at = np.arange(a.size).reshape(a.shape)[(*indices, ...)]
    flat = a.reshape(-1).copy()
    for i, number in zip(
        at.ravel(), np.broadcast_to(s.array(part), at.shape).ravel(), strict=True
    ):
        flat[i] = s.graph.apply("add", int(flat[i]), int(number)) if accumulate else number
    return flat.reshape(a.shape)


def _below(a: np.ndarray, k: int) -> np.ndarray:
    """Return whether an entry is on or below the k-th diagonal."""
    row, column = np.ogrid[: a.shape[-2], : a.shape[-1]]
    below: np.ndarray = column - row <= k
    return below


def _addmm(s: Nodes, c: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> np.ndarray:
    return _add(s, s.elementwise("mul", c, beta), s.product(a, b), alpha)


def _pad(s: Nodes, a: np.ndarray, pad: Sequence[int], value: float = 0.0) -> np.ndarray:
    sides = [(0, 0)] * (a.ndim - len(pad) // 2)
    sides += [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    widths = [(max(before, 0), max(after, 0)) for before, after in sides]
    padded = np.pad(a, widths, constant_values=s.graph.constant(value))
    kept = [
        slice(max(-before, 0), size - max(-after, 0))
        for (before, after), size in zip(sides, padded.shape, strict=True)
    ]
    return padded[tuple(kept)]


def _diagonal(a: np.ndarray, offset: int = 0, i: int = 0, j: int = 1) -> np.ndarray:
    b = np.moveaxis(a, (i, j), (-2, -1))
    b = b[..., max(-offset, 0) :, max(offset, 0) :]
    shape = (*b.shape[:-2], min(b.shape[-2:]))
    strides = (*b.strides[:-2], b.strides[-2] + b.strides[-1])
    return np.lib.stride_tricks.as_strided(b, shape, strides)


def _as_strided(
    a: np.ndarray, shape: Sequence[int], strides: Sequence[int], offset: int = 0
) -> np.ndarray:
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if not a.flags.c_contiguous or min((0, offset, *strides)) < 0 or last >= max(a.size, 1):
        raise UnsupportedOperation("as_strided of a view, or beyond its tensor")
    sizes = [stride * a.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(a.reshape(-1)[offset:], shape, sizes)


def _filled(s: Nodes, shape: Any, value: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
    _check_default(value, dtype)
    return s.filled(shape, value)


def _check_default(values: Any, dtype: torch.dtype | None) -> None:
    """Refuse numbers that torch's default type would round."""
    exact = np.asarray(values, dtype=np.float64)
    default = dtype is None and torch.get_default_dtype() != torch.float64
    if default and (exact.astype(np.float32).astype(np.float64) != exact).any():
        raise UnsupportedOperation(f"{values} in torch's default type; name dtype=torch.float64")


def _arange(s: Nodes, *bounds: float, dtype: torch.dtype | None = None, **_: Any) -> Any:
    values = np.arange(*bounds)
    _check_default(values, dtype)
    return s.constants(values)


def _scalar(s: Nodes, value: float, dtype: torch.dtype | None = None, **_: Any) -> Any:
    _check_default(value, dtype)
    return s.array(value)


def _to_copy(s: Nodes, a: np.ndarray, dtype: torch.dtype | None = None, **_: Any) -> np.ndarray:
    if dtype is torch.bool:
        return s.elementwise("ne", a, 0.0)
    if dtype is None or dtype is torch.float64:
        return a.copy()
    return s.elementwise("trunc", a)


#: Operations that rearrange entries: functions of arrays, whatever the entries are.
SHAPES: dict[str, Rule] = {
    "view": lambda a, shape: a.reshape(shape),
    "reshape": lambda a, shape: a.reshape(shape),
    "_unsafe_view": lambda a, shape: a.reshape(shape),
    "expand": _expand,
    "permute": lambda a, dims: a.transpose(dims),
    "transpose": lambda a, i, j: a.swapaxes(i, j),
    "t": lambda a: a.T,
    "unsqueeze": lambda a, dim: np.expand_dims(a, dim),
    "squeeze": _squeeze,
    "select": _select,
    "slice": _slice,
    "cat": lambda parts, dim=0: np.concatenate(parts, axis=dim),
    "stack": lambda parts, dim=0: np.stack(parts, axis=dim),
    "unbind": lambda a, dim=0: [np.moveaxis(a, dim, 0)[i, ...] for i in range(a.shape[dim])],
    "split": _split,
    "split_with_sizes": _split,
    "flip": lambda a, dims: np.flip(a, dims).copy(),
    "roll": lambda a, shifts, dims=None: np.roll(a, shifts, dims or None),
    "repeat": lambda a, counts: np.tile(a, counts),
    "diagonal": _diagonal,
    "alias": lambda a: a,
    "detach": lambda a: a,
    "lift_fresh": lambda a: a.copy(),
    "as_strided": _as_strided,
    "clone": lambda a, **_: a.copy(),
}

#: Operations whose result is a truth value: functions of ``Nodes`` and arrays.
BOOLEAN: dict[str, Rule] = {
    **{name: _elementwise(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{f"logical_{name}": _elementwise(name) for name in ("and", "or", "xor", "not")},
    **{f"bitwise_{name}": _elementwise(name) for name in ("and", "or", "xor", "not")},
    "isnan": lambda s, a: s.elementwise("ne", a, a),
    "isinf": lambda s, a: s.elementwise("eq", s.elementwise("fabs", a), math.inf),
    "any": lambda s, a, dims=None, keepdim=False: s.reduced(
        "or", s.elementwise("ne", a, 0.0), dims, keepdim, 0.0
    ),
    "all": lambda s, a, dims=None, keepdim=False: s.reduced(
        "and", s.elementwise("ne", a, 0.0), dims, keepdim, 1.0
    ),
}

#: All other operations, whose result is a number: functions of ``Nodes`` and arrays.
RULES: dict[str, Rule] = {
    **{name: _elementwise(name) for name in (*UNARY, *BINARY) if name not in BOOLEAN},
    "abs": _elementwise("fabs"),
    "sgn": _elementwise("sign"),
    "round": _round,
    "where": _elementwise("where"),
    "add": _add,
    "sub": _sub,
    "rsub": lambda s, a, b, alpha=1: _sub(s, b, a, alpha),
    "div": _div,
    "reciprocal": lambda s, a: s.elementwise("div", 1.0, a),
    "rsqrt": lambda s, a: s.elementwise("div", 1.0, s.elementwise("sqrt", a)),
    "relu": lambda s, a: s.elementwise("maximum", a, 0.0),
    "sigmoid": _sigmoid,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda s, a, high: _clamp(s, a, None, high),
    "remainder": _remainder,
    "masked_fill": lambda s, a, mask, value: s.elementwise("where", mask, value, a),
    "sum": lambda s, a, dims=None, keepdim=False, **_: s.reduced("add", a, dims, keepdim, 0.0),
    "prod": lambda s, a, dims=None, keepdim=False, **_: s.reduced("mul", a, dims, keepdim, 1.0),
    "amax": lambda s, a, dims=None, keepdim=False: s.reduced("maximum", a, dims, keepdim),
    "amin": lambda s, a, dims=None, keepdim=False: s.reduced("minimum", a, dims, keepdim),
    "max": lambda s, a, *dims: s.extreme("maximum", a, dims),
    "min": lambda s, a, *dims: s.extreme("minimum", a, dims),
    "mean": _mean,
    "cumsum": _cumsum,
    "linalg_vector_norm": _norm,
    "_softmax": _softmax,
    "mm": lambda s, a, b: s.product(a, b),
    "bmm": lambda s, a, b: s.product(a, b),
    "mv": lambda s, a, b: s.product(a, b[:, None])[:, 0],
    "dot": lambda s, a, b: s.product(a[None, :], b[:, None])[0, 0, ...],
    "addmm": _addmm,
    "addmv": lambda s, c, a, b, **scales: _addmm(s, c[:, None], a, b[:, None], **scales)[:, 0],
    "baddbmm": _addmm,
    "select_scatter": lambda s, a, part, *at: _scattered(s, a.copy(), part, _select, *at),
    "diagonal_scatter": lambda s, a, part, *at: _scattered(s, a.copy(), part, _diagonal, *at),
    "slice_scatter": lambda s, a, part, *at: _scattered(s, a.copy(), part, _slice, *at),
    "select_backward": lambda s, part, shape, *at: _scattered(
        s, s.filled(shape, 0.0), part, _select, *at
    ),
    "slice_backward": lambda s, part, shape, *at: _scattered(
        s, s.filled(shape, 0.0), part, _slice, *at
    ),
    "tril": lambda s, a, k=0: np.where(_below(a, k), a, s.graph.zero),
    "triu": lambda s, a, k=0: np.where(_below(a, k - 1), s.graph.zero, a),
    "index": _index,
    "index_select": lambda s, a, dim, index: np.moveaxis(
        _index(s, np.moveaxis(a, dim, 0), [index]), 0, dim
    ),
    "index_put": _index_put,
    "constant_pad_nd": _pad,
    "_to_copy": _to_copy,
    "copy": lambda s, a, b, *_: np.broadcast_to(s.array(b), a.shape).copy(),
    "fill": lambda s, a, value: s.filled(a.shape, value),
    "zero": lambda s, a: s.filled(a.shape, 0.0),
    "zeros": lambda s, shape, **_: s.filled(shape, 0.0),
    "ones": lambda s, shape, **_: s.filled(shape, 1.0),
    "empty": lambda s, shape, **_: s.filled(shape, 0.0),
    "new_empty": lambda s, _, shape, **__: s.filled(shape, 0.0),
    "new_empty_strided": lambda s, _, shape, *__, **___: s.filled(shape, 0.0),
    "_efficientzerotensor": lambda s, shape, **_: s.filled(shape, 0.0),
    "full": _filled,
    "zeros_like": lambda s, a, **_: s.filled(a.shape, 0.0),
    "ones_like": lambda s, a, **_: s.filled(a.shape, 1.0),
    "empty_like": lambda s, a, **_: s.filled(a.shape, 0.0),
    "full_like": lambda s, a, value, **_: s.filled(a.shape, value),
    "new_zeros": lambda s, _, shape, **__: s.filled(shape, 0.0),
    "new_ones": lambda s, _, shape, **__: s.filled(shape, 1.0),
    "new_full": lambda s, _, shape, value, **__: s.filled(shape, value),
    "scalar_tensor": _scalar,
    "eye": lambda s, *shape, **_: s.constants(np.eye(*shape)),
    "arange": _arange,
}
