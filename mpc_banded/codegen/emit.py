# SPDX-License-Identifier: Apache-2.0
"""Writes the C source of kernels from traced functions.

A kernel applies functions of one stage to all stages of a trajectory and adds their results into
one output array. It is one C function, so a call from Python takes a few microseconds, allocates
one array and keeps the interpreter lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mpc_banded.codegen.graph import LONGEST, Graph, Node
from mpc_banded.codegen.trace import trace


@dataclass(frozen=True)
class Argument:
    """A tensor that a function reads at stage k, at ``array[offset + k * stride + entry]``.

    Attributes:
        array: Name of the array; sections that use a name share the array.
        shape: Shape of the tensor.
        stride: Doubles between two stages; with 0 all stages read the same tensor.
        offset: Place of stage 0 in the array.
    """

    array: str
    shape: tuple[int, ...]
    stride: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Result:
    """A result that is added at stage k, to ``out[offset + k * stride + entries]``.

    Attributes:
        offset: Place of stage 0 in the output array.
        stride: Doubles between two stages; where stages overlap their results add up.
        entries: Place of each entry of the flattened tensor; entries with a negative place are
            dropped. By default the entries lie one after another.
    """

    offset: int
    stride: int = 0
    entries: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Section:
    """A function applied to a number of stages.

    Attributes:
        function: Torch function of the arguments at one stage; returns a tensor for each result.
        arguments: Tensors that the function reads.
        results: Places to which its results are added.
        stages: Number of stages.
        probed: Whether to evaluate the function, which must be linear in its last argument, for
            all unit vectors of that argument. A result with e entries then has the shape (e,
            number of unit vectors). Operations that do not depend on the unit vector run once;
            the rest runs for several vectors at a time in the vector unit.
    """

    function: Callable[..., Sequence[torch.Tensor]]
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]
    stages: int
    probed: bool = False


def c_function(
    name: str,
    arrays: Sequence[str],
    parts: Sequence[Section | str],
    size: int,
    limit: int = LONGEST,
) -> str:
    """Return the C source of ``void name(const double *array, ..., double *out)``.

    Args:
        name: Name of the kernel.
        arrays: Names of the arrays that it reads, in the order of its parameters.
        parts: Its body in order: sections, or C statements that are copied as they are.
        size: Doubles in ``out``, which is cleared first.
        limit: Largest number of nodes of a section's graph.

    Raises:
        UnsupportedOperation: A section's function has no scalar form.
        TooLong: A section's graph exceeds the limit.
    """
    lines = [f"void {name}("]
    lines += [f"    const double *restrict {array}," for array in arrays]
    lines += ["    double *restrict out)", "{", f"    memset(out, 0, {size} * sizeof *out);"]
    for part in parts:
        lines += [part] if isinstance(part, str) else _loop(part, limit)
    return "\n".join([*lines, "}", ""])


def _loop(section: Section, limit: int) -> list[str]:
    """Return the statements of a section."""
    graph = Graph(limit)
    shapes = [argument.shape for argument in section.arguments]
    results = [numbers.ravel() for numbers in trace(section.function, shapes, graph)]
    lines = [f"    for (int k = 0; k < {section.stages}; ++k) {{"]
    probed = len(section.arguments) - 1 if section.probed else -1
    for i, argument in enumerate(section.arguments):
        if i != probed:
            start = f"{argument.array} + {argument.offset} + k * {argument.stride}"
            lines.append(f"        const double *a{i} = {start};")
    for i, result in enumerate(section.results):
        lines.append(f"        double *o{i} = out + {result.offset} + k * {result.stride};")
    stored = _probed if section.probed else _stored
    return [*lines, *stored(section, graph, results), "    }"]


def _stored(section: Section, graph: Graph, results: Sequence[np.ndarray]) -> list[str]:
    stores = [
        (f"o{i}[{place}]", int(number))
        for i, (result, numbers) in enumerate(zip(section.results, results, strict=True))
        for place, number in zip(_places(result, len(numbers)), numbers, strict=True)
        if place >= 0 and number != graph.zero
    ]
    lines = _statements(graph, graph.reachable([number for _, number in stores]))
    lines += [f"{place} += {_c_operand(graph, number)};" for place, number in stores]
    return [f"        {line}" for line in lines]


def _probed(section: Section, graph: Graph, results: Sequence[np.ndarray]) -> list[str]:
    count, probe = math.prod(section.arguments[-1].shape), len(section.arguments) - 1
    needed = graph.reachable(np.concatenate(results).tolist())
    varying = graph.depending(needed, probe)
    table = ", ".join(str(int(i == j)) for i in range(count) for j in range(count))
    lines = [f"static const double unit[{count * count}] = {{{table}}};"]
    lines += _statements(graph, [number for number in needed if number not in varying])
    sizes = [len(numbers) for numbers in results]
    lines += [f"double product{i}[{size * count}];" for i, size in enumerate(sizes)]
    lines.append(f"for (int j = 0; j < {count}; ++j) {{")
    lines += _statements(graph, [n for n in needed if n in varying], (probe, count))
    for i, numbers in enumerate(results):
        lines += [
            f"product{i}[{entry * count} + j] = {_c_operand(graph, int(number))};"
            for entry, number in enumerate(numbers)
            if number != graph.zero
        ]
    lines.append("}")
    for i, (result, numbers) in enumerate(zip(section.results, results, strict=True)):
        places = np.reshape(_places(result, len(numbers) * count), (-1, count)).copy()
        places[numbers == graph.zero] = -1
        runs = _runs(places.ravel())
        if not runs:
            continue
        table = ", ".join(f"{{{begin}, {place}, {length}}}" for begin, place, length in runs)
        lines += [
            f"static const int runs{i}[][3] = {{{table}}};",
            f"for (int r = 0; r < {len(runs)}; ++r)",
            f"    for (int e = 0; e < runs{i}[r][2]; ++e)",
            f"        o{i}[runs{i}[r][1] + e] += product{i}[runs{i}[r][0] + e];",
        ]
    return [f"        {line}" for line in lines]


def _runs(places: np.ndarray) -> list[tuple[int, int, int]]:
    """Return runs of consecutive places: first entry, its place, number of entries."""
    kept = np.flatnonzero(places >= 0)
    breaks = (np.diff(kept) != 1) | (np.diff(places[kept]) != 1)
    stretches = np.split(kept, np.flatnonzero(breaks) + 1)
    return [(int(s[0]), int(places[s[0]]), len(s)) for s in stretches if len(s)]


def _places(result: Result, size: int) -> Sequence[int]:
    return range(size) if result.entries is None else result.entries


def _statements(
    graph: Graph, numbers: Sequence[int], probe: tuple[int, int] | None = None
) -> list[str]:
    """Define each node; ``probe`` is the position and number of the unit vectors."""
    lines = []
    for number in numbers:
        node = graph.nodes[number]
        if node.operation == "constant":
            continue
        if probe is not None and node.operation == "input" and node.operands[0] == probe[0]:
            value = f"unit[{node.operands[1] * probe[1]} + j]"
        else:
            value = _c_expression(graph, node)
        lines.append(f"const double t{number} = {value};")
    return lines


def _c_operand(graph: Graph, number: int) -> str:
    value = graph.value(number)
    if value is None:
        return f"t{number}"
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    return f"({value!r})"


_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "eq": "==", "ne": "!=", "and": "&&", "or": "||",
}  # fmt: skip
_CALLS = {"not": "!", "neg": "-", "xor": "xor_", "sign": "sign_"}

PRELUDE = """\
#include <math.h>
#include <string.h>
static inline double sign_(double a) { return (a > 0) - (a < 0); }
static inline double xor_(double a, double b) { return !a != !b; }
static inline double maximum(double a, double b) { return a > b || a != a ? a : b; }
static inline double minimum(double a, double b) { return a < b || a != a ? a : b; }
"""


def _c_expression(graph: Graph, node: Node) -> str:
    if node.operation == "input":
        position, entry = node.operands
        return f"a{position}[{entry}]"
    operands = [_c_operand(graph, number) for number in node.operands]
    if node.operation == "where":
        return "{} ? {} : {}".format(*operands)
    if node.operation in _INFIX:
        return f" {_INFIX[node.operation]} ".join(operands)
    return f"{_CALLS.get(node.operation, node.operation)}({', '.join(operands)})"
