# SPDX-License-Identifier: Apache-2.0
"""A kernel does for all stages what its function does for one."""

import math

import numpy as np
import pytest
import torch

from mpc_banded.codegen.build import Library, compile_library
from mpc_banded.codegen.emit import PRELUDE, Argument, Result, Section, c_function


@pytest.fixture
def kernel(tmp_path):
    """Builds a function of arrays from the parts of a kernel."""

    def made(names, parts, size):
        path = tmp_path / "kernel.so"
        compile_library(PRELUDE + c_function("kernel", names, parts, size), path)
        function = Library(path).function("kernel", len(names) + 1)

        def call(*arrays):
            out = np.full(size, np.nan)  # what lay there before does not matter
            function(*(array.ctypes.data for array in arrays), out.ctypes.data)
            return out

        return call

    return made


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def test_stages_read_and_write_where_they_are_told_and_overlaps_add_up(kernel):
    def function(window, matrix, scale):
        return [scale * window, torch.sin(matrix) @ window[:2], (window**2).sum()]

    section = Section(
        function,
        (
            Argument("z", (3,), stride=2, offset=1),
            Argument("m", (2, 2), stride=4),
            Argument("s", ()),
        ),
        (
            Result(0, stride=2),
            Result(12, stride=3, entries=(2, -1)),  # the second entry is not kept
            Result(24),
        ),
        stages=4,
    )
    z, m, s = random(10), random(4, 2, 2), random(1)
    wanted = np.zeros(25)
    for k in range(4):
        window = z[1 + 2 * k :][:3]
        wanted[2 * k : 2 * k + 3] += s * window
        wanted[12 + 3 * k + 2] += (np.sin(m[k]) @ window[:2])[0]
        wanted[24] += (window**2).sum()
    np.testing.assert_allclose(kernel(("z", "m", "s"), [section], 25)(z, m, s), wanted, 1e-14)


def test_parts_follow_one_another(kernel):
    double = Section(lambda w: [2.0 * w], (Argument("w", (1,), 1),), (Result(0, 1),), 3)
    parts = [double, "    out[1] = 7.0;", double]
    assert kernel(("w",), parts, 3)(np.array([1.0, 2.0, 3.0])).tolist() == [4.0, 11.0, 12.0]


def test_probes_take_columns_out_of_a_linear_function(kernel):
    def function(x, direction):
        jacobian = torch.stack([torch.cos(x), x * x[0], torch.ones_like(x)])
        return [jacobian @ direction]

    arguments = (Argument("x", (4,), 4), Argument("", (4,)))
    # Rows of the Jacobian lie 5 apart; one entry of them is not kept, the last row goes elsewhere.
    places = (0, 1, 2, 3, 5, -1, 7, 8, 13, 12, 11, 10)
    section = Section(function, arguments, (Result(0, 15, places),), 2, probed=True)
    x = random(2, 4)
    found = kernel(("x",), [section], 30)(x).reshape(2, 3, 5)
    for row, jacobian in zip(x, found, strict=True):
        np.testing.assert_allclose(jacobian[0], [*np.cos(row), 0.0], rtol=1e-14)
        np.testing.assert_allclose(
            jacobian[1], [row[0] * row[0], 0.0, row[2] * row[0], row[3] * row[0], 0.0], rtol=1e-14
        )
        assert jacobian[2].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_values_that_are_not_finite_go_in_and_out(kernel):
    def function(w):
        return [torch.stack([w[0] - math.inf, w[1] * math.nan, torch.maximum(w[2], w[3])])]

    section = Section(function, (Argument("w", (4,)),), (Result(0),), 1)
    found = kernel(("w",), [section], 3)(np.array([1.0, 1.0, math.nan, 0.0]))
    assert found[0] == -math.inf
    assert np.isnan(found[1:]).all()
