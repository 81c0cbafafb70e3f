# SPDX-License-Identifier: Apache-2.0
"""A torch function as a graph of scalar operations.

Functions of one stage work on tensors of a few entries, and most of what differentiating them
twice does is to move zeros around: one-hot vectors, slices written into zeros, products with
them. So the function is run once on tensors whose entries are *node numbers* instead of numbers;
derivatives that torch takes inside it are part of that run. Operations on the shape of a tensor
then cost nothing, and each remaining operation is one scalar node of a graph (graph.py).
What is not reachable from the results is never emitted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from mpc_banded.codegen.graph import BINARY, UNARY, Graph, TooLong


class UnsupportedOperation(NotImplementedError):
    """A function uses an operation that has no scalar form; the message names it."""


def trace(
    function: Callable[..., Sequence[Tensor]], shapes: Sequence[tuple[int, ...]], graph: Graph
) -> list[np.ndarray]:
    """Node numbers of what a function returns, each an array of the result's shape.

    Args:
        function: Pure; of float64 tensors, returns a sequence of tensors. Tensors that it closes
            over become constants.
        shapes: One for each argument.
        graph: Receives the nodes; argument i, flattened, is its input i.

    Raises:
        UnsupportedOperation: The function does what has no scalar form, or depends on values
            in its control flow.
        TooLong: The graph's limit is reached.
    """
    with _Scalars(graph) as scalars:
        arguments = []
        for i, shape in enumerate(shapes):
            numbers = [graph.input(i, entry) for entry in range(math.prod(shape))]
            arguments.append(_NodeTensor(np.array(numbers, dtype=np.int64).reshape(shape)))
        try:
            return [scalars.unwrapped(result) for result in function(*arguments)]
        except (UnsupportedOperation, TooLong):
            raise
        except Exception as error:  # whatever a function of somebody else's may raise
            raise UnsupportedOperation(
                f"cannot be traced on one stage, without batch dimensions: {error}"
            ) from error


class _NodeTensor(torch.Tensor):
    """A tensor without data: its entries are nodes. Autograd works on it as on any other."""

    numbers: np.ndarray

    @staticmethod
    def __new__(cls, numbers: np.ndarray, dtype: torch.dtype = torch.float64) -> _NodeTensor:
        strides = [stride // numbers.itemsize for stride in numbers.strides]
        made: _NodeTensor = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=strides, dtype=dtype
        )
        made.numbers = numbers
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise UnsupportedOperation(f"{operation} on a traced tensor after the end of its trace")


@functools.cache
def _decompositions() -> dict[Any, Any]:
    """How torch takes other operations apart; a slow import, and most functions need none."""
    from torch._decomp import core_aten_decompositions

    return dict(core_aten_decompositions())


class _Scalars(TorchDispatchMode):
    """Carries out operations on node numbers. Views are views, so writes are seen."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first operation imports all of torch.compile

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        writes = name.endswith("_")
        base = name.removesuffix("_")
        if not (base in _RULES or base in _BOOLEAN or base in _SHAPES):
            return self._taken_apart(operation, args, kwargs)
        if writes and not isinstance(args[0], _NodeTensor):
            raise UnsupportedOperation(f"{operation} into a tensor from outside the function")
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        truths = [value.dtype == torch.bool for value in tensors]
        if (base in ("add", "sub") and all(truths)) or (
            base.startswith("bitwise") and not all(truths)
        ):
            raise UnsupportedOperation(f"{operation} of {[str(t.dtype) for t in tensors]}")
        numbers, options = tree_map(self.unwrapped, (args, kwargs))
        if base.startswith("index"):
            numbers = _with_indices(self.graph, base, args, numbers)
        try:
            result, dtype = self._carried_out(base, numbers, options, tensors)
            if writes and base not in _SHAPES:
                self.write(numbers[0], result)
        except (TypeError, ValueError, IndexError) as error:
            outside = (
                "into a tensor from outside the function" if "read-only" in str(error) else error
            )
            raise UnsupportedOperation(f"{operation}: {outside}") from error
        if writes and base in _SHAPES:  # torch has to know the new shape, too
            with no_dispatch():
                operation(*args, **kwargs)
            args[0].numbers = result
        return args[0] if writes else tree_map(lambda array: _NodeTensor(array, dtype), result)

    def _carried_out(
        self, name: str, numbers: Any, options: Any, tensors: Sequence[Tensor]
    ) -> tuple[Any, torch.dtype]:
        if name in _SHAPES:
            return _SHAPES[name](*numbers, **options), tensors[0].dtype
        if name in _BOOLEAN:
            return _BOOLEAN[name](self, *numbers, **options), torch.bool
        return _RULES[name](self, *numbers, **options), torch.float64

    def _taken_apart(self, operation: Any, args: Any, kwargs: Any) -> Any:
        with self:
            if operation in _decompositions():
                return _decompositions()[operation](*args, **kwargs)
            result = operation.decompose(*args, **kwargs)
        if result is NotImplemented:
            hint = _HINTS.get(operation.overloadpacket.__name__, "")
            raise UnsupportedOperation(f"{operation} has no scalar form{hint}")
        return result

    def unwrapped(self, value: Any) -> Any:
        """Node numbers of a tensor, a plain one's as constants; other values as they are."""
        if isinstance(value, _NodeTensor):
            return value.numbers
        if isinstance(value, Tensor):
            _check_dtype(value.dtype)
            with disable_current_modes():
                numbers = self.constants(value.detach().numpy())
            numbers.flags.writeable = False
            return numbers
        if isinstance(value, torch.dtype):
            _check_dtype(value)
        return value

    def constants(self, values: np.ndarray) -> np.ndarray:
        """Node numbers of an array of numbers."""
        flat = [self.graph.constant(value) for value in values.astype(np.float64).ravel()]
        return np.array(flat, dtype=np.int64).reshape(values.shape)

    def array(self, value: Any) -> np.ndarray:
        """Node numbers of an operand: an array already, or a Python number."""
        if isinstance(value, np.generic):
            raise TypeError("node numbers come in arrays, so that none is taken for a value")
        return value if isinstance(value, np.ndarray) else self.constants(np.asarray(value))

    def elementwise(self, operation: str, *operands: Any) -> np.ndarray:
        """One operation on all entries."""
        arrays = np.broadcast_arrays(*(self.array(operand) for operand in operands))
        flat = [
            self.graph.apply(operation, *map(int, numbers))
            for numbers in zip(*(a.ravel() for a in arrays), strict=True)
        ]
        return np.array(flat, dtype=np.int64).reshape(arrays[0].shape)

    def reduced(
        self, operation: str, a: np.ndarray, dims: Any, keepdim: bool, empty: float | None = None
    ) -> np.ndarray:
        """Entries along some dimensions joined by a binary operation, pair by pair."""
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
        """Largest or smallest entry of a whole tensor."""
        if dims:
            raise UnsupportedOperation("max or min over a dimension; use amax or amin")
        return self.reduced(operation, a, None, False)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Matrix product of (..., i, j) and (..., j, k)."""
        terms = self.elementwise("mul", a[..., :, :, None], b[..., None, :, :])
        return self.reduced("add", terms, [-2], False, 0.0)

    def filled(self, shape: Any, value: Any) -> np.ndarray:
        """A new array of one value."""
        return np.full(tuple(shape), int(self.array(value)), dtype=np.int64)

    def write(self, a: np.ndarray, b: Any) -> np.ndarray:
        """Entries of ``a`` replaced in place."""
        a[...] = self.array(b)
        return a


#: What to write instead.
_HINTS = {
    "_local_scalar_dense": ": no if, float() or item() on values; use torch.where",
    "sort": "; use amax, amin or torch.where",
}


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype.is_complex or (dtype.is_floating_point and dtype != torch.float64):
        raise UnsupportedOperation(f"a tensor of {dtype}; make it with dtype=torch.float64")


def _dims(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)


# How each ATen operation acts on node numbers.

_Rule = Callable[..., Any]


def _elementwise(operation: str) -> _Rule:
    return lambda s, *operands: s.elementwise(operation, *operands)


def _add(s: _Scalars, a: Any, b: Any, alpha: Any = 1) -> np.ndarray:
    return s.elementwise("add", a, s.elementwise("mul", b, alpha))


def _sub(s: _Scalars, a: Any, b: Any, alpha: Any = 1) -> np.ndarray:
    return s.elementwise("sub", a, s.elementwise("mul", b, alpha))


def _div(s: _Scalars, a: Any, b: Any, rounding_mode: str | None = None) -> np.ndarray:
    if rounding_mode != "floor":
        quotient = s.elementwise("div", a, b)
        return s.elementwise(rounding_mode, quotient) if rounding_mode else quotient
    whole = s.elementwise("div", s.elementwise("sub", a, _remainder(s, a, b)), b)
    return s.elementwise("rint", whole)


def _round(s: _Scalars, a: Any, decimals: int = 0) -> np.ndarray:
    scaled = s.elementwise("rint", s.elementwise("mul", a, 10.0**decimals))
    return s.elementwise("div", scaled, 10.0**decimals)


def _remainder(s: _Scalars, a: Any, b: Any) -> np.ndarray:
    rest = s.elementwise("fmod", a, b)
    other_sign = s.elementwise("lt", s.elementwise("mul", rest, b), 0.0)
    return s.elementwise("where", other_sign, s.elementwise("add", rest, b), rest)


def _clamp(s: _Scalars, a: Any, low: Any = None, high: Any = None) -> np.ndarray:
    result = a if low is None else s.elementwise("maximum", a, low)
    return result if high is None else s.elementwise("minimum", result, high)


def _sigmoid(s: _Scalars, a: Any) -> np.ndarray:
    grown = s.elementwise("exp", s.elementwise("neg", a))
    return s.elementwise("div", 1.0, s.elementwise("add", 1.0, grown))


def _softmax(s: _Scalars, a: np.ndarray, dim: int, _: bool) -> np.ndarray:
    shifted = s.elementwise("sub", a, s.reduced("maximum", a, dim, True))
    grown = s.elementwise("exp", shifted)
    return s.elementwise("div", grown, s.reduced("add", grown, dim, True, 0.0))


def _norm(s: _Scalars, a: Any, order: float = 2, dims: Any = None, keepdim: bool = False) -> Any:
    size = s.elementwise("fabs", a)
    if order == 1:
        return s.reduced("add", size, dims, keepdim, 0.0)
    if order == math.inf:
        return s.reduced("maximum", size, dims, keepdim, 0.0)
    if order != 2:
        raise UnsupportedOperation(f"a norm of order {order} has no scalar form")
    squares = s.elementwise("mul", a, a)
    return s.elementwise("sqrt", s.reduced("add", squares, dims, keepdim, 0.0))


def _mean(s: _Scalars, a: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> np.ndarray:
    total = s.reduced("add", a, dims, keepdim, 0.0)
    return s.elementwise("mul", total, total.size / a.size)


def _cumsum(s: _Scalars, a: np.ndarray, dim: int, **_: Any) -> np.ndarray:
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


def _scattered(s: _Scalars, a: np.ndarray, part: np.ndarray, view: _Rule, *at: Any) -> np.ndarray:
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


def _with_indices(graph: Graph, name: str, args: Any, numbers: Any) -> list[Any]:
    """Arguments of an indexing operation, with indices for what they are: integers or masks."""
    at = 2 if name == "index_select" else 1
    given = [args[at]] if name == "index_select" else args[at]
    indices = [_index_values(graph, index) for index in given]
    return [*numbers[:at], indices[0] if name == "index_select" else indices, *numbers[at + 1 :]]


def _index_values(graph: Graph, index: Tensor | None) -> np.ndarray | slice:
    if index is None:
        return slice(None)
    if not isinstance(index, _NodeTensor):
        with disable_current_modes():
            return index.detach().numpy()
    values = [graph.value(int(number)) for number in index.numbers.ravel()]
    if None in values:
        raise UnsupportedOperation("an index that depends on the inputs has no scalar form")
    kind = bool if index.dtype == torch.bool else np.int64
    return np.array(values).astype(kind).reshape(index.numbers.shape)


def _index(s: _Scalars, a: np.ndarray, indices: Sequence[Any]) -> np.ndarray:  # noqa: ARG001
    return a[(*indices, ...)]


def _index_put(
    s: _Scalars, a: np.ndarray, indices: Sequence[Any], part: Any, accumulate: bool = False
) -> np.ndarray:
    at = np.arange(a.size).reshape(a.shape)[(*indices, ...)]
    flat = a.reshape(-1).copy()
    for i, number in zip(
        at.ravel(), np.broadcast_to(s.array(part), at.shape).ravel(), strict=True
    ):
        flat[i] = s.graph.apply("add", int(flat[i]), int(number)) if accumulate else number
    return flat.reshape(a.shape)


def _below(a: np.ndarray, k: int) -> np.ndarray:
    """Whether an entry is on or below the k-th diagonal."""
    row, column = np.ogrid[: a.shape[-2], : a.shape[-1]]
    below: np.ndarray = column - row <= k
    return below


def _addmm(s: _Scalars, c: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> np.ndarray:
    return _add(s, s.elementwise("mul", c, beta), s.product(a, b), alpha)


def _pad(s: _Scalars, a: np.ndarray, pad: Sequence[int], value: float = 0.0) -> np.ndarray:
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


def _filled(
    s: _Scalars, shape: Any, value: Any, dtype: torch.dtype | None = None, **_: Any
) -> Any:
    _check_default(value, dtype)
    return s.filled(shape, value)


def _check_default(values: Any, dtype: torch.dtype | None) -> None:
    """Numbers without a type of their own are of torch's default type."""
    exact = np.asarray(values, dtype=np.float64)
    default = dtype is None and torch.get_default_dtype() != torch.float64
    if default and (exact.astype(np.float32).astype(np.float64) != exact).any():
        raise UnsupportedOperation(f"{values} in torch's default type; name dtype=torch.float64")


def _arange(s: _Scalars, *bounds: float, dtype: torch.dtype | None = None, **_: Any) -> Any:
    values = np.arange(*bounds)
    _check_default(values, dtype)
    return s.constants(values)


def _scalar(s: _Scalars, value: float, dtype: torch.dtype | None = None, **_: Any) -> Any:
    _check_default(value, dtype)
    return s.array(value)


def _to_copy(s: _Scalars, a: np.ndarray, dtype: torch.dtype | None = None, **_: Any) -> np.ndarray:
    if dtype is torch.bool:
        return s.elementwise("ne", a, 0.0)
    if dtype is None or dtype is torch.float64:
        return a.copy()
    return s.elementwise("trunc", a)


#: Of the shape alone: functions of arrays, whatever the entries are.
_SHAPES: dict[str, _Rule] = {
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

_BOOLEAN: dict[str, _Rule] = {
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

_RULES: dict[str, _Rule] = {
    **{name: _elementwise(name) for name in (*UNARY, *BINARY) if name not in _BOOLEAN},
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
