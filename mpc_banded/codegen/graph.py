# SPDX-License-Identifier: Apache-2.0
"""Graphs of scalar operations, simplified while they are built.

Equal operations share one node (hash-consing). Constants, sums with zero, and products with zero
or one are folded. A product or quotient with a constant zero is zero even where floating-point
arithmetic would give NaN because the other operand is infinite, zero or NaN. The sign of zero is
not kept.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Scalar operations by number of operands, named as in C's math.h where it has them.
UNARY = (
    *("neg", "fabs", "sign", "not", "sqrt", "floor", "ceil", "trunc", "rint"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "erf", "erfc"),
    *("sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
)
BINARY = (
    *("add", "sub", "mul", "div", "pow", "atan2", "hypot", "fmod"),
    *("maximum", "minimum", "copysign"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor"),
)
_COMMUTATIVE = frozenset(
    ("add", "mul", "maximum", "minimum", "eq", "ne", "and", "or", "xor", "hypot")
)


#: Default limit on the nodes of a graph; tracing takes seconds then, compiling half a minute.
LONGEST = 60_000


@dataclass(frozen=True)
class Node:
    """One scalar operation.

    Attributes:
        operation: "input", "constant", "where", or one of UNARY and BINARY.
        operands: Numbers of the operands' nodes; for an input its position and entry; for a
            constant its value.
    """

    operation: str
    operands: tuple[Any, ...]


class TooLong(NotImplementedError):
    """A graph has reached its limit of nodes."""


class Graph:
    """Scalar nodes, each after its operands.

    Args:
        limit: Largest number of nodes.
    """

    def __init__(self, limit: int = LONGEST) -> None:
        self._limit = limit
        self.nodes: list[Node] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self.zero, self.one = self.constant(0.0), self.constant(1.0)

    def input(self, position: int, entry: int) -> int:
        """Return the node of an entry of an input."""
        return self._node("input", (position, entry))

    def constant(self, value: float) -> int:
        """Return the node of a constant."""
        # repr distinguishes -0.0 from 0.0, and is the same for each NaN.
        key = ("constant", repr(float(value)))
        if key not in self._numbers:
            self._numbers[key] = len(self.nodes)
            self.nodes.append(Node("constant", (float(value),)))
        return self._numbers[key]

    def value(self, number: int) -> float | None:
        """Return the value of a constant; None for other nodes."""
        node = self.nodes[number]
        return node.operands[0] if node.operation == "constant" else None

    def apply(self, operation: str, *operands: int) -> int:
        """Return the node of an operation on nodes; folds constants, zeros and ones."""
        values = [self.value(number) for number in operands]
        if None not in values:
            return self.constant(_evaluated(operation, values))
        if operation == "where" and values[0] is not None:
            return operands[1] if values[0] else operands[2]
        if operation == "where" and operands[1] == operands[2]:
            return operands[1]
        simple = self._simplified(operation, operands, values)
        if simple is not None:
            return simple
        if operation in _COMMUTATIVE and operands[0] > operands[1]:
            operands = operands[::-1]
        return self._node(operation, operands)

    def _node(self, operation: str, operands: tuple[int, ...]) -> int:
        key = (operation, *operands)
        if key not in self._numbers:
            if len(self.nodes) >= self._limit:
                raise TooLong(f"more than {self._limit} operations in one stage")
            self._numbers[key] = len(self.nodes)
            self.nodes.append(Node(operation, operands))
        return self._numbers[key]

    def _simplified(
        self, operation: str, operands: tuple[int, ...], values: Sequence[float | None]
    ) -> int | None:
        first = operands[0]
        if operation == "neg":
            node = self.nodes[first]
            return node.operands[0] if node.operation == "neg" else None
        if len(operands) != 2:
            return None
        (a, b), second = values, operands[1]
        if operation == "add":
            return second if a == 0.0 else first if b == 0.0 else None
        if operation == "sub":
            return first if b == 0.0 else self.apply("neg", second) if a == 0.0 else None
        if operation == "mul":
            if a == 0.0 or b == 0.0:
                return self.zero
            if a in (1.0, -1.0):
                return second if a == 1.0 else self.apply("neg", second)
            if b in (1.0, -1.0):
                return first if b == 1.0 else self.apply("neg", first)
        if operation == "div":
            return self.zero if a == 0.0 else first if b == 1.0 else None
        if operation == "pow":
            return self._power(first, b)
        return None

    def _power(self, base: int, exponent: float | None) -> int | None:
        if exponent is None or exponent not in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0):
            return None
        if exponent == 0.5:
            return self.apply("sqrt", base)
        result = self.one
        for _ in range(int(abs(exponent))):
            result = self.apply("mul", result, base)
        return self.apply("div", self.one, result) if exponent < 0.0 else result

    def reachable(self, numbers: Sequence[int]) -> list[int]:
        """Return the given nodes and all that they depend on, in order."""
        needed = set()
        stack = [int(number) for number in numbers]
        while stack:
            number = stack.pop()
            if number in needed:
                continue
            needed.add(number)
            if self.nodes[number].operation not in ("input", "constant"):
                stack.extend(self.nodes[number].operands)
        return sorted(needed)

    def depending(self, numbers: Sequence[int], position: int) -> set[int]:
        """Return those of the given nodes that depend on the input at a position.

        Args:
            numbers: Numbers of nodes, in ascending order and closed under their operands.
            position: Position of the input.
        """
        found: set[int] = set()
        for number in numbers:
            node = self.nodes[number]
            if node.operation == "input":
                if node.operands[0] == position:
                    found.add(number)
            elif node.operation != "constant" and not found.isdisjoint(node.operands):
                found.add(number)
        return found


def _evaluated(operation: str, values: Sequence[Any]) -> float:
    """Evaluate one operation on constants, by IEEE 754 where Python would raise an exception."""
    if operation == "where":
        return float(values[1] if values[0] else values[2])
    with np.errstate(all="ignore"):
        return float(_ON_NUMBERS[operation](*(np.float64(value) for value in values)))


_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "not": lambda a: a == 0.0,
    "sign": lambda a: float(a > 0.0) - float(a < 0.0),
    "erf": math.erf,
    "erfc": math.erfc,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "atan2": np.arctan2,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": np.divide,
    "pow": np.power,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}
for _name in (*UNARY, *BINARY):
    if _name not in _ON_NUMBERS:
        _ON_NUMBERS[_name] = getattr(np, _name)
