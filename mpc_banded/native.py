# SPDX-License-Identifier: Apache-2.0
"""Machine code for functions of stages: C from scalar graphs, built and loaded.

A kernel runs over the stages of a trajectory and calls, at each, the scalar code of one traced
function; what it returns is added into one output array. One C function does all of it, so a call
from Python costs a few microseconds, allocates one array and holds no lock.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mpc_banded.expressions import Graph, Node, trace

#: No -ffast-math: NaN and infinity must reach the checks of the solver.
FLAGS = ("-O2", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")


class NoCompiler(RuntimeError):
    """There is no C compiler on this machine, or none that works."""


@dataclass(frozen=True)
class Argument:
    """Where a function reads one of its tensors at stage k: ``array[offset + k stride + entry]``.

    Attributes:
        array: Name of the array; sections share arrays by name.
        shape: Of the tensor.
        stride: Doubles between two stages; 0 gives each stage the same.
        offset: Of stage 0.
    """

    array: str
    shape: tuple[int, ...]
    stride: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Result:
    """Where a function's result goes at stage k: added at ``offset + k stride + entries``.

    Attributes:
        offset: Of stage 0 in the output array.
        stride: Doubles between two stages; stages that overlap add up.
        entries: Place of each entry of the tensor, flattened; negative ones are not kept. One
            after another if not given.
    """

    offset: int
    stride: int = 0
    entries: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Section:
    """One function, applied to a number of stages.

    Attributes:
        function: Torch function of the arguments, for one stage; returns a tensor per result.
        arguments, results: Where it reads and writes.
        stages: Number of stages.
    """

    function: Callable[..., Sequence[torch.Tensor]]
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]
    stages: int


def c_function(name: str, arrays: Sequence[str], sections: Sequence[Section], size: int) -> str:
    """C source of ``void name(const double *array .., double *out)`` with ``out`` of that size.

    Beside it stands ``name_size``, by which a caller can tell that both mean the same function.
    """
    lines = [f"const long {name}_size = {size};", f"void {name}("]
    lines += [f"    const double *restrict {array}," for array in arrays]
    lines += ["    double *restrict out)", "{", f"    memset(out, 0, {size} * sizeof *out);"]
    for section in sections:
        lines += _loop(section)
    return "\n".join([*lines, "}", ""])


def _loop(section: Section) -> list[str]:
    graph = Graph()
    shapes = [argument.shape for argument in section.arguments]
    results = trace(section.function, shapes, graph)
    stores: list[tuple[str, int]] = []
    for i, (result, numbers) in enumerate(zip(section.results, results, strict=True)):
        flat = numbers.ravel()
        places = range(len(flat)) if result.entries is None else result.entries
        for place, number in zip(places, flat, strict=True):
            if place >= 0 and int(number) != graph.zero:
                stores.append((f"o{i}[{place}]", int(number)))
    lines = [f"    for (int k = 0; k < {section.stages}; ++k) {{"]
    for i, argument in enumerate(section.arguments):
        start = f"{argument.array} + {argument.offset} + k * {argument.stride}"
        lines.append(f"        const double *a{i} = {start};")
    for i, result in enumerate(section.results):
        lines.append(f"        double *o{i} = out + {result.offset} + k * {result.stride};")
    for number in graph.reachable([number for _, number in stores]):
        node = graph.nodes[number]
        if node.operation != "constant":
            lines.append(f"        const double t{number} = {_c_expression(graph, node)};")
    lines += [f"        {place} += {_c_operand(graph, number)};" for place, number in stores]
    return [*lines, "        (void)0;", "    }"]


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
static inline double sign_(double a) { return (a > 0) - (a < 0) + 0 * a; }
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


class Library:
    """A loaded shared library of kernels.

    Args:
        path: Of the shared library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))

    def function(self, name: str, pointers: int, size: int) -> Callable[..., None]:
        """A kernel by name, to be called with that many addresses, the last one of its output.

        Raises:
            ValueError: The library has no such kernel with an output of that size.
        """
        try:
            found = ctypes.c_long.in_dll(self._library, f"{name}_size").value
        except ValueError:
            found = -1
        if found != size:
            raise ValueError(f"{self.path} is not of this problem: {name} has size {found}")
        kernel = self._library[name]
        kernel.restype = None
        kernel.argtypes = [ctypes.c_void_p] * pointers
        return kernel


def c_compiler() -> str:
    """The C compiler: ``$CC``, or the first of cc, gcc and clang.

    Raises:
        NoCompiler: None is installed.
    """
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        found = shutil.which(name)
        if found:
            return found
    raise NoCompiler("no C compiler: CC, cc, gcc and clang were looked for in PATH")


def build(source: str, path: Path) -> None:
    """Compile C source to a shared library.

    Raises:
        NoCompiler: There is none, or it fails; the message holds what it said.
    """
    command = [c_compiler(), *FLAGS, "-x", "c", "-", "-o", str(path), "-lm"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoCompiler(f"{' '.join(command)} failed: {done.stderr.strip()[:500]}")
