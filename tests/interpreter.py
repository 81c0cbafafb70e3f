# SPDX-License-Identifier: Apache-2.0
"""Evaluates scalar graphs with NumPy, node by node: the slow twin of their machine code."""

import math

import numpy as np

from mpc_banded.codegen.graph import BINARY, UNARY

ON_ARRAYS = {
    **{name: getattr(np, name) for name in (*UNARY, *BINARY) if hasattr(np, name)},
    **{name: getattr(np, f"arc{name[1:]}") for name in UNARY if name.startswith("a")},
    "neg": np.negative,
    "sign": lambda a: np.where(a > 0.0, 1.0, 0.0) - np.where(a < 0.0, 1.0, 0.0),
    "erf": np.vectorize(math.erf, otypes=[float]),
    "erfc": np.vectorize(math.erfc, otypes=[float]),
    "atan2": np.arctan2,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "where": np.where,
    **{name: getattr(np, f"logical_{name}") for name in ("and", "or", "xor", "not")},
}


def interpreted(graph, results, inputs):
    """Values of traced results, at many points at once: each input is (points, *shape)."""
    values, points = {}, len(inputs[0])
    for number in graph.reachable([n for result in results for n in result.ravel()]):
        node = graph.nodes[number]
        if node.operation == "input":
            position, entry = node.operands
            values[number] = inputs[position].reshape(points, -1)[:, entry]
        elif node.operation == "constant":
            values[number] = np.full(points, node.operands[0])
        else:
            operands = [values[operand] for operand in node.operands]
            with np.errstate(all="ignore"):
                values[number] = ON_ARRAYS[node.operation](*operands).astype(float)
    return [
        np.array([values[int(n)] for n in result.ravel()]).T.reshape(points, *result.shape)
        for result in results
    ]
