# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""A trace is its function: its graph has the values and derivatives that torch finds."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpreted
from torch.nn import functional

from mpc_banded.codegen import trace as trace_module
from mpc_banded.codegen.graph import BINARY, UNARY, Graph
from mpc_banded.codegen.trace import UnsupportedOperation, trace


def traced(function, *shapes):
    graph = Graph()
    return graph, trace(function, shapes, graph)


def assert_as_torch(function, *inputs, exactly=False):
    """The graph of a function has the values that torch has, at each of the points."""
    inputs = [np.asarray(a, dtype=float) for a in inputs]
    graph, results = traced(function, *(a.shape[1:] for a in inputs))
    found = interpreted(graph, results, inputs)
    for point in range(len(inputs[0])):
        wanted = function(*(torch.tensor(a[point]) for a in inputs))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(
                one[point],
                other.detach().double().numpy(),
                rtol=0.0 if exactly else 1e-12,
                atol=0.0 if exactly else 1e-12,
            )


def with_derivatives(function):
    """The function, the gradients of a sum of its squares, and products with its Hessian."""

    def derived(*arguments):
        arguments = [a.requires_grad_() for a in arguments]
        value = function(*arguments).double()
        if not value.requires_grad:
            return [value]
        gradients = gradients_of((value * value + value).sum(), arguments)
        along = sum((gradient * (1.0 + gradient.detach())).sum() for gradient in gradients)
        if not along.requires_grad:
            return [value, *gradients]
        return [value, *gradients, *gradients_of(along, arguments)]

    return derived


def gradients_of(value, arguments):
    return torch.autograd.grad(
        value, arguments, create_graph=True, allow_unused=True, materialize_grads=True
    )


def points(*shapes, count=3, low=-2.0, high=2.0, seed=0):
    random = np.random.default_rng(seed)
    return [random.uniform(low, high, (count, *shape)) for shape in shapes]


MATRIX = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.5, 0.25], [1.0, 0.0, -0.75]], dtype=torch.float64)
ONE = torch.tensor(1.0, dtype=torch.float64)
SHAPES = (3,), (3,), (3, 3)

# Of two vectors and a matrix, wherever they are.
SMOOTH = {
    "add": lambda x, y, m: x + y,
    "add, scaled": lambda x, y, m: torch.add(x, y, alpha=3),
    "sub": lambda x, y, m: x - y,
    "sub, scaled": lambda x, y, m: torch.sub(x, y, alpha=0.5),
    "rsub": lambda x, y, m: torch.rsub(x, y, alpha=2.0) + (1.0 - x),
    "neg": lambda x, y, m: -x,
    "mul": lambda x, y, m: x * y,
    "div": lambda x, y, m: x / (1.0 + y * y),
    "reciprocal": lambda x, y, m: (2.5 + x).reciprocal() + 2.0 / (y + 3.0),
    "rsqrt": lambda x, y, m: (2.5 + x).rsqrt(),
    "square": lambda x, y, m: x.square(),
    "sqrt": lambda x, y, m: (x * x + 1.0).sqrt(),
    "exp": lambda x, y, m: x.exp(),
    "exp2": lambda x, y, m: x.exp2(),
    "expm1": lambda x, y, m: x.expm1(),
    "log": lambda x, y, m: (x + 3.0).log(),
    "log2": lambda x, y, m: (x + 3.0).log2(),
    "log10": lambda x, y, m: (x + 3.0).log10(),
    "log1p": lambda x, y, m: (x * x).log1p(),
    "sin": lambda x, y, m: x.sin(),
    "cos": lambda x, y, m: x.cos(),
    "tan": lambda x, y, m: (0.5 * x).tan(),
    "asin": lambda x, y, m: (0.4 * x).asin(),
    "acos": lambda x, y, m: (0.4 * x).acos(),
    "atan": lambda x, y, m: x.atan(),
    "sinh": lambda x, y, m: x.sinh(),
    "cosh": lambda x, y, m: x.cosh(),
    "tanh": lambda x, y, m: x.tanh(),
    "asinh": lambda x, y, m: x.asinh(),
    "acosh": lambda x, y, m: (x + 4.0).acosh(),
    "atanh": lambda x, y, m: (0.4 * x).atanh(),
    "erf": lambda x, y, m: x.erf(),
    "erfc": lambda x, y, m: x.erfc(),
    "sigmoid": lambda x, y, m: x.sigmoid(),
    "softmax": lambda x, y, m: x.softmax(dim=0) * m.softmax(dim=-1)[0],
    "softplus": lambda x, y, m: functional.softplus(x),
    "silu": lambda x, y, m: functional.silu(x),
    "logsumexp": lambda x, y, m: torch.logsumexp(x, dim=-1),
    "atan2": lambda x, y, m: torch.atan2(x, y),
    "hypot": lambda x, y, m: torch.hypot(x, y),
    "pow": lambda x, y, m: (x * x + 1.0) ** y,
    "pow of a number": lambda x, y, m: 2.0**x,
    "pow 1.5": lambda x, y, m: (x + 3.0) ** 1.5,
    **{
        f"pow {exponent}": lambda x, y, m, exponent=exponent: (x + 3.0) ** exponent
        for exponent in (0, 0.5, 1, 2, 3, 4, 5, -0.5, -1, -2, -3)
    },
    "pow 3 of negatives": lambda x, y, m: x**3 + x**-1.0,
    "lerp": lambda x, y, m: torch.lerp(x, y, 0.3),
    "addcmul": lambda x, y, m: torch.addcmul(x, x, y, value=0.5),
    # Reductions
    "sum": lambda x, y, m: (x * y).sum(),
    "sum of rows": lambda x, y, m: (m * m).sum(dim=-1),
    "sum of columns": lambda x, y, m: (m * m).sum(dim=0, keepdim=True),
    "sum of both": lambda x, y, m: (m * m).sum(dim=(0, 1)),
    "sum of nothing": lambda x, y, m: x[:0].sum() + x,
    "mean": lambda x, y, m: m.mean() + (m * m).mean(dim=-1, keepdim=True),
    "norm": lambda x, y, m: x.norm() + torch.linalg.norm(y),
    "norm of rows": lambda x, y, m: torch.linalg.vector_norm(m, dim=-1, keepdim=True),
    "cumsum": lambda x, y, m: (x * y).cumsum(dim=0),
    "cumsum of columns": lambda x, y, m: m.cumsum(dim=0) * m.cumsum(dim=-1),
    "prod": lambda x, y, m: x[0].prod() * (1.0 + x[:0].prod()),
    # Products
    "vector times vector": lambda x, y, m: (x @ y) * x,
    "vector times matrix": lambda x, y, m: x @ m,
    "matrix times vector": lambda x, y, m: m @ x,
    "matrix times matrix": lambda x, y, m: m @ m.T,
    "matrix with stages": lambda x, y, m: torch.matmul(m.expand(2, 3, 3), x[:, None])[..., 0],
    "bmm": lambda x, y, m: torch.bmm(m[None], m[None]),
    "baddbmm": lambda x, y, m: torch.baddbmm(m[None], m[None], m[None], beta=0.5, alpha=2.0),
    "addmv": lambda x, y, m: torch.addmv(x, m, y, beta=0.5, alpha=2.0),
    "addmm": lambda x, y, m: torch.addmm(m, m, m, beta=0.5, alpha=2.0),
    "dot": lambda x, y, m: torch.dot(x, y),
    "outer": lambda x, y, m: torch.outer(x, y),
    "einsum": lambda x, y, m: torch.einsum("i,ij,j->", x, m, y),
    "linear": lambda x, y, m: functional.linear(x, m, y),
    "a matrix from outside": lambda x, y, m: x @ MATRIX.T + MATRIX[0],
    "cross": lambda x, y, m: torch.linalg.cross(x, y),
    # Shapes
    "select": lambda x, y, m: x[0] * x[..., -1] * m[1, 2],
    "slice": lambda x, y, m: x[1:] * x[:-1] + m[:2, 1],
    "slice with a step": lambda x, y, m: m[::2, 0] * x[::2],
    "index": lambda x, y, m: x[[2, 0, 0]] * y[..., [1, 1, 2]],
    "index by a tensor": lambda x, y, m: x[torch.tensor([2, 0])] * m[torch.tensor([0, 1]), 1],
    "index by two": lambda x, y, m: m[[0, 2], [1, 1]] * m[:, [2, 2]][0],
    "index by a mask": lambda x, y, m: x[torch.tensor([True, False, True])],
    "index_select": lambda x, y, m: m.index_select(1, torch.tensor([2, 0])),
    "view": lambda x, y, m: m.view(9) * m.reshape(-1),
    "reshape of a transpose": lambda x, y, m: m.T.reshape(9) * m.reshape(9),
    "flatten": lambda x, y, m: m.flatten() * 2.0,
    "expand": lambda x, y, m: x.expand(2, 3) * y[:, None].expand(-1, 2).T,
    "broadcasting": lambda x, y, m: x * m + y[:, None] - m[None],
    "permute": lambda x, y, m: m[None].permute(2, 0, 1) * x,
    "transpose": lambda x, y, m: m.transpose(0, 1) * m.T * m.mT,
    "squeeze": lambda x, y, m: x[None, :, None].squeeze(0).squeeze() * x[None].squeeze(),
    "unsqueeze": lambda x, y, m: x.unsqueeze(-1) * y[None],
    "cat": lambda x, y, m: torch.cat([x, y[:1], m[0]]) ** 2,
    "cat of columns": lambda x, y, m: torch.cat([m, m * m], dim=-1),
    "stack": lambda x, y, m: torch.stack([x[0], y[1], x[0]]) * torch.stack([x, y], dim=-1)[:, 0],
    "unbind": lambda x, y, m: m.unbind(-1)[1] * m.unbind()[2],
    "unbind of a vector": lambda x, y, m: x.unbind(-1)[1] * y.unbind()[0] - x.unbind()[2],
    "unpacked": lambda x, y, m: product_of_three(*x),
    "split": lambda x, y, m: x.split([1, 2])[1] * m.split(2, dim=1)[0][0],
    "chunk": lambda x, y, m: x.chunk(2)[0] * 3.0,
    "flip": lambda x, y, m: x.flip(0) * y + m.flip([0, 1])[0],
    "roll": lambda x, y, m: x.roll(1) * m.roll((1, 1), (0, 1)) * m.roll(1),
    "repeat": lambda x, y, m: x.repeat(2) * torch.cat([y, y]) + m.repeat(2, 2)[0],
    "tril, triu": lambda x, y, m: m.tril() @ m.triu(1) + m.tril(-1) * m.triu(-1),
    "diagonal": lambda x, y, m: m.diagonal() * x,
    "pad": lambda x, y, m: functional.pad(x * x, (2, 1), value=3.0),
    "pad of a matrix": lambda x, y, m: functional.pad(m * m, (1, 0, 0, 2)),
    "select_scatter": lambda x, y, m: torch.select_scatter(x, y[0] * y[1], 0, 1) * x,
    "slice_scatter": lambda x, y, m: torch.slice_scatter(x, y[:2] ** 2, 0, 1, 3) * x,
    "diagonal_scatter": lambda x, y, m: torch.diagonal_scatter(m, x * x) @ m,
    "diag": lambda x, y, m: torch.diag(x) @ m + torch.diag_embed(y),
    "diff": lambda x, y, m: (x * x).diff(),
    # New tensors
    "ones": lambda x, y, m: torch.ones(3, dtype=torch.float64) + torch.ones_like(x) * x,
    "zeros": lambda x, y, m: torch.cat([torch.zeros(1, dtype=torch.float64), x * x]),
    "new": lambda x, y, m: x.new_zeros(3) + x.new_ones(3) * y + x.new_full((3,), 0.1),
    "full": lambda x, y, m: torch.full((3,), 0.1, dtype=torch.float64) + torch.full_like(x, 2.0),
    "eye": lambda x, y, m: x @ torch.eye(3, dtype=torch.float64) + torch.eye(3, 3)[0] * y,
    "arange": lambda x, y, m: torch.arange(3) * x + torch.arange(1, 7, 2) * y,
    "tensor": lambda x, y, m: x * torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
    "integers": lambda x, y, m: x * torch.tensor([1, 2, 3]) + torch.tensor(2),
    "new_tensor": lambda x, y, m: x * x.new_tensor([0.1, 0.2, 0.3]),
    "detach": lambda x, y, m: x * y.detach() * x.detach(),
    "types": lambda x, y, m: x.double() * x.to(torch.float64) * x.type_as(y),
    # Writes
    "clone": lambda x, y, m: x.clone() * x,
    "write of a detached": lambda x, y, m: written(x.detach().clone(), m.detach()) * y,
    "write into zeros": lambda x, y, m: assembled(torch.zeros_like(x), x, y),
    "alias": lambda x, y, m: torch.ops.aten.alias(x) * y,
    "as_strided": lambda x, y, m: torch.as_strided(m * m, (2,), (4,), 1),
    "write into new ones": lambda x, y, m: (
        assembled(x.new_empty(3), x, y) * assembled(torch.empty(3, dtype=x.dtype), y, x)
    ),
    "write into empty": lambda x, y, m: assembled(torch.empty_like(x), x, y),
    "write into a column": lambda x, y, m: column_written(torch.zeros_like(m), x, y),
    "write into a sum along rows": lambda x, y, m: row_written(m.cumsum(dim=-1), x),
    "write into chosen columns": lambda x, y, m: row_written(
        m.index_select(1, torch.tensor([2, 0, 1])), x
    ),
    "write into a transpose": lambda x, y, m: row_written((m * m).T, x) * y,
    "write into a copy of a transpose": lambda x, y, m: row_written(m.T.clone(), x) * y,
    "functions in place": lambda x, y, m: (x * y).add_(y, alpha=2.0).sin_(),
    "reshaped in place": lambda x, y, m: reshaped((x * x)[None]),
}

# Also where they meet a kink, a jump or a tie.
KINKED = {
    "abs": lambda x, y, m: x.abs(),
    "sign": lambda x, y, m: x.sign() * y + y.sgn(),
    "relu": lambda x, y, m: torch.relu(x),
    "maximum": lambda x, y, m: torch.maximum(x, y),
    "minimum": lambda x, y, m: torch.minimum(x, y),
    "clamp": lambda x, y, m: x.clamp(-1.0, 1.0) * y,
    "clamp from below": lambda x, y, m: x.clamp(min=0.0) * y + torch.clamp_min(x, 1.0),
    "clamp from above": lambda x, y, m: x.clamp(max=0.0) * y + torch.clamp_max(x, 1.0),
    "clamp by tensors": lambda x, y, m: torch.clamp(x, y - 1.0, y + 1.0),
    "clamp, crossed": lambda x, y, m: x.clamp(1.0, -1.0),
    "amax": lambda x, y, m: x.amax(dim=-1) + m.amax(dim=(0, 1)),
    "max, min": lambda x, y, m: x.max() * y + m.min() * x,
    "norms of other orders": lambda x, y, m: (
        torch.linalg.vector_norm(x, ord=1) * y + torch.linalg.vector_norm(m, ord=math.inf)
    ),
    "finite or not": lambda x, y, m: (
        torch.where(torch.isnan(x) | torch.isinf(y), m[0], x) * torch.isfinite(m[0])
    ),
    "amin": lambda x, y, m: x.amin(dim=-1, keepdim=True) * m.amin(dim=0),
    "where": lambda x, y, m: torch.where(x > 0.0, x * y, -y),
    "where of numbers": lambda x, y, m: torch.where(x >= 0.0, y, 2.0) + torch.where(y < 0, 1, 0),
    "masked_fill": lambda x, y, m: x.masked_fill(x > 0.0, 2.0) * y,
    "floor": lambda x, y, m: (1.5 * x).floor() * y,
    "ceil": lambda x, y, m: (1.5 * x).ceil() * y,
    "trunc": lambda x, y, m: (1.5 * x).trunc() * y,
    "round": lambda x, y, m: (0.5 * x).round() * y,
    "round to decimals": lambda x, y, m: torch.round(1.2345 * x, decimals=2) + y,
    "to integers": lambda x, y, m: (1.7 * x).long() * y,
    "fmod": lambda x, y, m: torch.fmod(x, 0.75) * y,
    "remainder": lambda x, y, m: torch.remainder(x, 0.75) * y + x % 0.75,
    "floor division": lambda x, y, m: torch.div(x, 0.75, rounding_mode="floor") * y,
    "floor division of a detached": lambda x, y, m: (x.detach() // 0.75) * y,
    "truncated division": lambda x, y, m: torch.div(x, 0.75, rounding_mode="trunc") * y,
    "copysign": lambda x, y, m: torch.copysign(x, y),
    "comparisons": lambda x, y, m: (
        torch.stack([x < y, x <= y, x > y, x >= y, x == y, x != y]).double() * x
    ),
    "logic": lambda x, y, m: torch.where(
        (x > 0) & (y > 0) | ~(x < y) ^ (x == 1.0), x * y, torch.logical_xor(x > 0, y > 0) * y
    ),
    "logical": lambda x, y, m: (
        torch.logical_and(x, y) * x + torch.logical_or(x, y) * y + torch.logical_not(x) * 1.0
    ),
    "any, all": lambda x, y, m: (x > 0).any() * x + (x > 0).all() * y + (m > 0).any(dim=0) * x,
    "sum of truths": lambda x, y, m: (x > 0).sum() * x,
    "truths as numbers": lambda x, y, m: (x > 0) * x + (y > 0).double() * (x != 0).bool(),
    "stack of truths": lambda x, y, m: torch.where(torch.stack([x[0] > 0, y[1] > 0]), x[1:], 0.0),
    "norm, also of zero": lambda x, y, m: y.norm() + torch.linalg.norm(m[0]) * x,
}

# Nothing to differentiate: it writes into what it was given.
WRITES = {
    "an entry": lambda x: (x.__setitem__(0, 7.0), x)[1],
    "a slice": lambda x: (x.__setitem__(slice(1, 3), x[:2].clone()), x)[1],
    "by indices": lambda x: (x.__setitem__([2, 0], x[:2] * 2.0), x)[1],
    "by a mask": lambda x: (x.__setitem__(torch.tensor([True, False, True]), 5.0), x)[1],
    "accumulated": lambda x: x.index_put_((torch.tensor([1, 1]),), x[:2].clone(), accumulate=True),
    "into a view": lambda x: (x.view(3, 1)[1].zero_(), x)[1],
    "into a slice of a slice": lambda x: (x[1:][1:].add_(2.0), x)[1],
    "into an unbound one": lambda x: (x.unbind()[1].mul_(5.0), x)[1],
    "into a split": lambda x: (x.split([1, 2])[1].neg_(), x)[1],
    "into a diagonal": lambda x: (x.expand(3, 3).clone().diagonal().fill_(1.0), x)[1],
    "into a detached": lambda x: (x.detach()[0].fill_(4.0), x)[1],
    "into a copy": lambda x: (x.clone().zero_(), x)[1],
    "into a contiguous copy": lambda x: (x.expand(2, 3).t().contiguous()[0].zero_(), x)[1],
    "arithmetic": lambda x: x.add_(1.0).sub_(x.clone(), alpha=0.5).mul_(x).div_(3.0).pow_(2),
    "others": lambda x: x.neg_().clamp_(min=-1.0).masked_fill_(x > 0.5, 0.25).copy_(x * 2.0),
    "operators": lambda x: augmented(x),
    "functions": lambda x: x.sin_().exp_().sqrt_().floor_(),
    "truths": lambda x: x.gt_(0.0).logical_not_(),
}


def product_of_three(a, b, c):
    return a * b - c


def assembled(result, x, y):
    result[..., 0] = x[..., 1] * y[..., 0]
    result[..., 1:] = x[..., 1:] ** 2
    result[1] += y[2]
    return result


def column_written(result, x, y):
    result[:, 1] = x * y
    result.T[0] = y**2
    result[1:, 1:] *= x[1:, None]
    return result


def row_written(result, x):
    result[1] = x**2
    result[:, 2] += result[:, 0]
    return result


def written(vector, matrix):
    vector[0] = matrix[1, 1]
    vector[1:] *= 2.0
    return vector


def reshaped(row):
    return row.squeeze_(0).unsqueeze_(-1).t_().transpose_(0, 1)


def augmented(x):
    x += 1.0
    x[1:] *= x[:-1].clone()
    x -= 0.5
    x /= 2.0
    x **= 2
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_values_and_derivatives_are_those_of_torch(name):
    assert_as_torch(with_derivatives(SMOOTH[name]), *points(*SHAPES))


@pytest.mark.parametrize("name", KINKED)
def test_at_kinks_jumps_and_ties_torchs_choice_is_taken(name):
    assert_as_torch(with_derivatives(KINKED[name]), *points(*SHAPES))
    random = np.random.default_rng(1)
    ties = [random.integers(-1, 2, (12, *shape)).astype(float) for shape in SHAPES]
    assert_as_torch(with_derivatives(KINKED[name]), *ties)


@pytest.mark.parametrize("name", WRITES)
def test_writes_go_where_torch_writes(name):
    assert_as_torch(lambda x: [WRITES[name](x), x], *points((3,)), exactly=name != "operators")


def test_every_rule_is_tried(monkeypatch):
    """By at least one function above."""
    used = set()

    class Recorded(dict):
        def __getitem__(self, key):
            used.add(key)
            return super().__getitem__(key)

    tables = ("RULES", "SHAPES", "BOOLEAN")
    known = {name for table in tables for name in getattr(trace_module, table)}
    for table in tables:
        monkeypatch.setattr(trace_module, table, Recorded(getattr(trace_module, table)))
    for function in (*SMOOTH.values(), *KINKED.values()):
        traced(with_derivatives(function), *SHAPES)
    for function in WRITES.values():
        traced(lambda x, function=function: [function(x)], (3,))
    assert sorted(known - used - {*UNARY, *BINARY}) == []


# Random compositions


def unary(function):
    return lambda a: lambda *v: function(a(*v))


def binary(function):
    return lambda a, b: lambda *v: function(a(*v), b(*v))


LEAVES = st.one_of(
    st.sampled_from([lambda x, y: x, lambda x, y: y, lambda x, y: y.detach()]),
    st.floats(-2.0, 2.0).map(lambda c: lambda x, y: torch.full_like(x, c)),
    st.integers(-2, 2).map(lambda c: lambda x, y: c * torch.ones_like(y)),
)
STEPS = (
    *(torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.neg, torch.abs, torch.square),
    *(torch.relu, torch.floor, torch.sign, torch.atan, torch.erf, torch.Tensor.clone),
    lambda a: a**3,
    lambda a: (1.0 + a * a).sqrt(),
    lambda a: a.flip(0),
    lambda a: a[[2, 0, 0]],
    lambda a: torch.cat([a[1:], a[:1]]),
    lambda a: torch.stack([a[2], a[1], a[0] * a[1]]),
    lambda a: a.sum() * a,
    lambda a: a - a.mean(),
    lambda a: a.cumsum(0),
    lambda a: a @ MATRIX,
    lambda a: a.amax() + 0.0 * a,
    lambda a: a[:, None].expand(3, 3).sum(0),
    lambda a: a.roll(1) * 1.0,
)
JOINS = (
    *(torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, torch.atan2),
    lambda a, b: a / (1.0 + b * b),
    lambda a, b: torch.where(a > b, a, b * b),
    lambda a, b: torch.outer(a, b) @ a,
    lambda a, b: torch.where((a > 0) & (b > 0), a, torch.zeros_like(b)),
    lambda a, b: torch.cat([a, b])[1::2],
)
compositions = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda step, a: unary(step)(a), st.sampled_from(STEPS), inner),
        st.builds(lambda join, a, b: binary(join)(a, b), st.sampled_from(JOINS), inner, inner),
    ),
    max_leaves=8,
)


@given(compositions, st.integers(0, 99))
@settings(max_examples=150)
def test_compositions_are_those_of_torch(function, seed):
    """Only where torch's own result is finite and no more than moderately large."""
    x, y = points((3,), (3,), seed=seed, low=-1.5, high=1.5)
    derived = with_derivatives(function)
    graph, results = traced(derived, (3,), (3,))
    found = interpreted(graph, results, [x, y])
    for point in range(len(x)):
        wanted = derived(torch.tensor(x[point]), torch.tensor(y[point]))
        for one, other in zip(found, wanted, strict=True):
            expected = other.detach().numpy()
            finite = np.isfinite(expected)
            scale = max(1.0, np.abs(expected[finite]).max(initial=0.0))
            np.testing.assert_allclose(
                one[point][finite], expected[finite], rtol=0, atol=1e-10 * scale
            )


# Random writes into views

VIEWS = (
    lambda a: a[0],
    lambda a: a[..., -1],
    lambda a: a[1:],
    lambda a: a[::2],
    lambda a: a[..., :2],
    lambda a: a.mT,
    lambda a: a.diagonal(),
    lambda a: a.unbind(-1)[1],
    lambda a: a.split(2)[0],
    lambda a: a[None],
    lambda a: a.detach(),
    lambda a: a.clone(),
    lambda a: a.flip(0),
)
CHANGES = (
    lambda a, value: a.fill_(3.0),
    lambda a, value: a.add_(value),
    lambda a, value: a.mul_(value),
    lambda a, value: a.copy_(value),
    lambda a, value: a.sub_(a.clone(), alpha=0.5),
    lambda a, value: a.masked_fill_(a > 0.3, value),
    lambda a, value: a.clamp_(-0.5, 0.5),
    lambda a, value: a.sin_(),
    lambda a, value: a.__setitem__((..., [0]), value),
)


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.sampled_from(VIEWS), max_size=2),
            st.sampled_from(CHANGES),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=150)
def test_writes_into_views_of_views_are_those_of_torch(changes):
    """Where torch itself can carry them out and differentiate them."""

    def changed(x, y, m):
        matrices = [m * 1.0, torch.zeros(3, 3, dtype=torch.float64)]
        for which, views, change, entry in changes:
            part = matrices[which]
            for view in views:
                part = view(part)
            change(part, x[entry] * y[2 - entry])
        return torch.cat(matrices)

    inputs = points(*SHAPES, count=1)
    for function in (lambda *v: [changed(*v)], with_derivatives(changed)):
        try:
            function(*(torch.tensor(a[0]) for a in inputs))
        except (IndexError, RuntimeError):
            continue
        assert_as_torch(function, *inputs)


# What a graph of a function is


def operations(graph, results):
    reachable = graph.reachable([int(n) for result in results for n in result.ravel()])
    return [graph.nodes[number].operation for number in reachable]


def test_what_is_computed_twice_is_one_node():
    graph, results = traced(
        lambda x: [x.sin() + x.sin() * x.cos() + torch.sin(x), x[0] * x[1], x[1] * x[0]], (2,)
    )
    found = operations(graph, results)
    assert found.count("sin") == 2  # of two entries
    assert found.count("cos") == 2
    assert results[1] == results[2]
    graph, (ab, ba) = traced(lambda a, b: [a - b, b - a], (), ())
    assert ab != ba


def test_nodes_follow_their_operands():
    graph, results = traced(with_derivatives(SMOOTH["einsum"]), *SHAPES)
    reachable = graph.reachable([int(n) for result in results for n in result.ravel()])
    assert reachable == sorted(reachable)
    assert len(reachable) < len(graph.nodes)
    for number in reachable:
        node = graph.nodes[number]
        if node.operation not in ("input", "constant"):
            assert all(operand in reachable and operand < number for operand in node.operands)


def test_what_no_result_needs_is_not_reachable():
    graph, results = traced(lambda x, y: [x * 2.0, (x.sin() * y).sum()][:1], (2,), (2,))
    assert set(operations(graph, results)) == {"input", "constant", "mul"}
    positions = {n.operands[0] for n in map(graph.nodes.__getitem__, graph.reachable(results[0]))}
    assert 1 not in positions


def test_derivatives_keep_the_zeros_of_their_structure():
    def jacobian(x):
        x.requires_grad_()
        values = torch.stack([x[0] * x[1], x[2].sin(), 3.0 * x[0] - x[3]])
        return [torch.stack([gradients_of(value, [x])[0] for value in values])]

    graph, (found,) = traced(jacobian, (4,))
    structure = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]], dtype=bool)
    np.testing.assert_array_equal(found != graph.zero, structure)
    assert operations(graph, [found]).count("cos") == 1
    assert {"add", "mul", "sin"}.isdisjoint(operations(graph, [found]))
    assert graph.value(int(found[2, 0])) == 3.0
    assert graph.value(int(found[2, 3])) == -1.0


# What is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name",
    [
        *("add", "mul", "neg", "exp", "sin", "tanh", "sqrt", "log", "square", "pow 1.5", "sum"),
        *("norm", "cumsum", "abs", "sign", "relu", "maximum", "minimum", "clamp", "amax", "where"),
        *("floor", "round", "masked_fill", "comparisons", "logical", "any, all", "stack", "flip"),
        *("finite or not", "max, min", "norms of other orders", "softmax", "remainder"),
    ],
)
def test_values_that_are_not_finite_go_the_same_way_as_in_torch(name, value):
    x, y, m = points(*SHAPES)
    x[0, 0] = y[1, 2] = m[2, 0, 1] = value
    function = {**SMOOTH, **KINKED}[name]
    assert_as_torch(lambda *v: [function(*v).double()], x, y, m)


def test_products_with_zeros_of_the_structure_are_zero_whatever_the_other_factor_is():
    """Where torch says NaN: a derivative by what a function does not depend on."""
    nothing = torch.zeros(2, dtype=torch.float64)
    graph, (product, quotient) = traced(lambda x: [nothing * x, nothing / x], (2,))
    assert (product == graph.zero).all()
    assert (quotient == graph.zero).all()


# What has no scalar form


def branching(x):
    return x if x[0] > 0.0 else -x


def looping(x):
    while x.sum() > 1.0:
        x = 0.5 * x
    return x


OUTSIDE = torch.zeros(3, dtype=torch.float64)


UNSUPPORTED = {
    "a branch": (branching, "_local_scalar_dense"),
    "a loop": (looping, "_local_scalar_dense"),
    "item": (lambda x: x * x[0].item(), "_local_scalar_dense"),
    "float": (lambda x: x * float(x[0]), "_local_scalar_dense"),
    "a mask of the inputs": (lambda x: x[x > 0], "index that depends on the inputs"),
    "an index of the inputs": (lambda x: x[x.long()], "index that depends on the inputs"),
    "nonzero": (lambda x: x[torch.nonzero(x)[:, 0]], "nonzero"),
    "sort": (lambda x: x.sort().values, "sort"),
    "random numbers": (lambda x: x * torch.rand(3, dtype=torch.float64), "rand"),
    "solve": (lambda x: torch.linalg.solve(MATRIX, x), "linalg_solve"),
    "inverse": (lambda x: torch.linalg.inv(x.outer(x)) @ x, "inv"),
    "determinant": (lambda x: torch.linalg.det(x.outer(x)) * x, "det"),
    "lgamma": (lambda x: torch.lgamma(x), "lgamma"),
    "convolution": (lambda x: functional.conv1d(x[None, None], x[None, None, :2]), "convolution"),
    "complex numbers": (lambda x: torch.fft.fft(x).real, "fft|complex"),
    "float32": (lambda x: x.float().double(), "float32"),
    "float16": (lambda x: x.half().double(), "float16"),
    "float32 by default": (lambda x: torch.full((3,), 0.1) * x, "dtype=torch.float64"),
    "float32 of two numbers": (lambda x: torch.where(x > 0.0, 0.1, 0.2) * x, "float32"),
    "a sum of truths": (lambda x: ((x > 0) + (x > -1)) * x, "bool"),
    "no such dimension": (lambda x: x.sum(dim=-2), "range|trace"),
    "no such entry": (lambda x: x[:, 0], "indices|dim"),
    "float32 from outside": (lambda x: x * torch.tensor([0.1, 0.2, 0.3]), "float32"),
    "a write to the outside": (lambda x: OUTSIDE.add_(x), "outside"),
    "a write into a slice of the outside": (lambda x: (OUTSIDE[1:].copy_(x[1:]), x)[1], "outside"),
    "bits of integers": (lambda x: (torch.tensor([6, 5, 3]) & 3) * x, "bitwise|integer|int64"),
    "numpy": (lambda x: torch.as_tensor(x.numpy()) * x, "numpy"),
    "lists": (lambda x: x * x.tolist()[0], "tolist|_local_scalar_dense"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_scalar_form_is_refused_by_name(name):
    function, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedOperation, match=message):
        traced(lambda x: [function(x)], (3,))
    assert torch.ones(2).sum() == 2.0  # torch works on as before


def test_traced_tensors_are_of_no_use_after_their_trace():
    kept = []
    traced(lambda x: [kept.append(x) or x], (2,))
    with pytest.raises(UnsupportedOperation, match="after the end of its trace"):
        kept[0] + 1.0


def test_tensors_from_outside_are_constants_and_stay_as_they_are():
    outside = torch.tensor([2.0, 3.0], dtype=torch.float64)
    graph, (result,) = traced(lambda x: [x * outside + outside], (2,))
    assert outside.tolist() == [2.0, 3.0]
    (values,) = interpreted(graph, [result], [np.array([[10.0, 100.0]])])
    np.testing.assert_array_equal(values, [[22.0, 303.0]])


def test_results_may_be_constants_and_arguments_themselves():
    graph, (constant, argument) = traced(
        lambda x: [torch.tensor([[1.5, 0.0]], dtype=torch.float64), x], (2,)
    )
    assert constant.shape == (1, 2)
    assert graph.value(int(constant[0, 0])) == 1.5
    assert [graph.nodes[n].operands for n in argument] == [(0, 0), (0, 1)]


def test_traces_in_threads_are_those_made_alone():
    functions = [with_derivatives(SMOOTH[name]) for name in ("einsum", "norm", "cross", "lerp")]

    def nodes(function):
        graph, results = traced(function, *SHAPES)
        return graph.nodes, [result.tolist() for result in results]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(nodes, functions * 3))
    assert together == [nodes(function) for function in functions] * 3
