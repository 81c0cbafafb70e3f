# SPDX-License-Identifier: Apache-2.0
"""Traces a torch function into a graph of scalar operations.

Functions of one stage work on tensors of a few entries, and differentiating them twice mostly
moves zeros around: one-hot vectors, slices written into zeros, and products with them. So the
function runs once on tensors whose entries are *node numbers* instead of values, including the
derivatives that torch takes inside it. Operations that only rearrange entries then cost nothing,
and every other operation becomes scalar nodes of a graph, by the tables in ``aten``. Nodes that no
result depends on are never emitted.
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

from mpc_banded.codegen.aten import BOOLEAN, HINTS, RULES, SHAPES, Nodes, UnsupportedOperation
from mpc_banded.codegen.graph import Graph, TooLong

__all__ = ["UnsupportedOperation", "trace"]


def trace(
    function: Callable[..., Sequence[Tensor]], shapes: Sequence[tuple[int, ...]], graph: Graph
) -> list[np.ndarray]:
    """Run a function on node numbers and add its operations to a graph.

    Args:
        function: A pure function of float64 tensors that returns a sequence of tensors. Tensors
            that it closes over become constants.
        shapes: Shape of each argument.
        graph: Receives the nodes; argument i, flattened, is its input i.

    Returns:
        For each result an array of its shape, with the number of the node of each entry.

    Raises:
        UnsupportedOperation: The function uses an operation that has no scalar form, or its
            control flow depends on values.
        TooLong: The graph has reached its limit.
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
        except Exception as error:  # a user's function may raise anything
            raise UnsupportedOperation(
                f"cannot be traced on one stage, without batch dimensions: {error}"
            ) from error


class _NodeTensor(torch.Tensor):
    """A tensor without data whose entries are node numbers; autograd works on it as usual."""

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
    """Return torch's own decompositions, imported late, as few functions need them."""
    from torch._decomp import core_aten_decompositions

    return dict(core_aten_decompositions())


class _Scalars(TorchDispatchMode):
    """Performs torch operations on node numbers; views share memory, so they see writes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.nodes = Nodes(graph)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first operation imports all of torch.compile

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        writes = name.endswith("_")
        base = name.removesuffix("_")
        if not (base in RULES or base in BOOLEAN or base in SHAPES):
            return self._decomposed(operation, args, kwargs)
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
            numbers = _with_indices(self.nodes.graph, base, args, numbers)
        try:
            result, dtype = self._applied(base, numbers, options, tensors)
            if writes and base not in SHAPES:
                self.nodes.write(numbers[0], result)
        except (TypeError, ValueError, IndexError) as error:
            outside = (
                "into a tensor from outside the function" if "read-only" in str(error) else error
            )
            raise UnsupportedOperation(f"{operation}: {outside}") from error
        if writes and base in SHAPES:  # torch keeps the shape of its own tensor
            with no_dispatch():
                operation(*args, **kwargs)
            args[0].numbers = result
        return args[0] if writes else tree_map(lambda array: _NodeTensor(array, dtype), result)

    def _applied(
        self, name: str, numbers: Any, options: Any, tensors: Sequence[Tensor]
    ) -> tuple[Any, torch.dtype]:
        if name in SHAPES:
            return SHAPES[name](*numbers, **options), tensors[0].dtype
        if name in BOOLEAN:
            return BOOLEAN[name](self.nodes, *numbers, **options), torch.bool
        return RULES[name](self.nodes, *numbers, **options), torch.float64

    def _decomposed(self, operation: Any, args: Any, kwargs: Any) -> Any:
        with self:
            if operation in _decompositions():
                return _decompositions()[operation](*args, **kwargs)
            result = operation.decompose(*args, **kwargs)
        if result is NotImplemented:
            hint = HINTS.get(operation.overloadpacket.__name__, "")
            raise UnsupportedOperation(f"{operation} has no scalar form{hint}")
        return result

    def unwrapped(self, value: Any) -> Any:
        """Return the node numbers of a tensor (constants of a plain one), or any other value."""
        if isinstance(value, _NodeTensor):
            return value.numbers
        if isinstance(value, Tensor):
            _check_dtype(value.dtype)
            with disable_current_modes():
                numbers = self.nodes.constants(value.detach().numpy())
            numbers.flags.writeable = False
            return numbers
        if isinstance(value, torch.dtype):
            _check_dtype(value)
        return value


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype.is_complex or (dtype.is_floating_point and dtype != torch.float64):
        raise UnsupportedOperation(f"a tensor of {dtype}; make it with dtype=torch.float64")


def _with_indices(graph: Graph, name: str, args: Any, numbers: Any) -> list[Any]:
    """Return the arguments of an indexing operation, with integers or masks as its indices."""
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
