# SPDX-License-Identifier: Apache-2.0
"""Graphs hold each node once, and fold constants."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interpreter import ON_ARRAYS, interpreted

from mpc_banded.codegen.graph import BINARY, UNARY, Graph, TooLong

SPECIAL = (0.0, -0.0, 1.0, -1.0, -2.5, math.inf, -math.inf, math.nan)


def two_inputs():
    graph = Graph()
    return graph, graph.input(0, 0), graph.input(1, 3)


@pytest.mark.parametrize("operation", UNARY)
def test_equal_operations_are_one_node(operation):
    graph, x, y = two_inputs()
    number = graph.apply(operation, x)
    assert graph.apply(operation, x) == number
    assert graph.apply(operation, y) != number
    assert (graph.nodes[number].operation, graph.nodes[number].operands) == (operation, (x,))


@pytest.mark.parametrize("operation", BINARY)
def test_operands_change_places_only_where_that_changes_nothing(operation):
    graph, x, y = two_inputs()
    one, other = graph.apply(operation, x, y), graph.apply(operation, y, x)
    a, b = np.array([[1.5], [2.0], [1.0]]), np.array([[0.5], [-2.0], [1.0]])
    inputs = [a, np.repeat(b, 4, axis=1)]
    xy, yx = interpreted(graph, [np.array([one]), np.array([other])], inputs)
    if one == other:
        np.testing.assert_array_equal(ON_ARRAYS[operation](a, b), ON_ARRAYS[operation](b, a))
    else:
        np.testing.assert_array_equal(xy, ON_ARRAYS[operation](a, b).astype(float))
        np.testing.assert_array_equal(yx, ON_ARRAYS[operation](b, a).astype(float))
    symmetric = ("add", "mul", "maximum", "minimum", "hypot", "eq", "ne", "and", "or", "xor")
    assert (one == other) == (operation in symmetric)


def test_inputs_are_one_node_for_each_entry():
    graph = Graph()
    numbers = [graph.input(position, entry) for position in range(2) for entry in range(3)]
    assert len(set(numbers)) == 6
    assert [graph.input(position, entry) for position in range(2) for entry in range(3)] == numbers


def test_equal_constants_are_one_and_zeros_keep_their_sign():
    graph = Graph()
    for value in (0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, 0.1):
        assert graph.constant(value) == graph.constant(value)
    assert graph.constant(0.0) == graph.zero
    assert graph.constant(-0.0) != graph.zero
    assert math.copysign(1.0, graph.value(graph.constant(-0.0))) == -1.0
    assert graph.value(graph.input(0, 0)) is None


def folded(operation, *operands):
    """What an operation on an input x and numbers becomes."""
    graph = Graph()
    x = graph.input(0, 0)
    numbers = [x if operand == "x" else graph.constant(operand) for operand in operands]
    number = graph.apply(operation, *numbers)
    if number == x:
        return "x"
    value, node = graph.value(number), graph.nodes[number]
    return node.operation if value is None else value


@pytest.mark.parametrize(
    ("operation", "operands", "result"),
    [
        ("add", ("x", 0.0), "x"),
        ("add", (0.0, "x"), "x"),
        ("add", ("x", 1.0), "add"),
        ("sub", ("x", 0.0), "x"),
        ("sub", (0.0, "x"), "neg"),
        ("mul", ("x", 0.0), 0.0),
        ("mul", (0.0, "x"), 0.0),
        ("mul", ("x", 1.0), "x"),
        ("mul", (1.0, "x"), "x"),
        ("mul", ("x", -1.0), "neg"),
        ("mul", (-1.0, "x"), "neg"),
        ("mul", ("x", 2.0), "mul"),
        ("div", ("x", 1.0), "x"),
        ("div", (0.0, "x"), 0.0),
        ("div", ("x", 2.0), "div"),
        ("div", (1.0, "x"), "div"),
        ("pow", ("x", 0.0), 1.0),
        ("pow", ("x", 1.0), "x"),
        ("pow", ("x", 2.0), "mul"),
        ("pow", ("x", 0.5), "sqrt"),
        ("pow", ("x", -1.0), "div"),
        ("pow", ("x", 1.7), "pow"),
        ("pow", (2.0, "x"), "pow"),
        ("where", ("x", 3.0, 3.0), 3.0),
        ("where", (1.0, "x", 2.0), "x"),
        ("where", (0.0, 2.0, "x"), "x"),
        ("where", ("x", 1.0, 2.0), "where"),
        ("add", (2.0, 3.0), 5.0),
        ("sqrt", (4.0,), 2.0),
        ("not", (0.0,), 1.0),
        ("atan2", (0.0, -1.0), math.pi),
    ],
)
def test_zeros_ones_and_constants_are_folded(operation, operands, result):
    assert folded(operation, *operands) == result


@given(st.sampled_from(UNARY), st.floats(-1e3, 1e3) | st.sampled_from([math.inf, math.nan]))
def test_constants_are_folded_by_the_rules_of_floating_point(operation, value):
    """With what they become in the interpreter: no exceptions, no warnings."""
    graph = Graph()
    number = graph.apply(operation, graph.constant(value))
    with np.errstate(all="ignore"):
        expected = float(ON_ARRAYS[operation](np.float64(value)))
    np.testing.assert_equal(graph.value(number), expected)


@pytest.mark.parametrize("operation", BINARY)
def test_pairs_of_constants_are_folded_by_the_rules_of_floating_point(operation):
    for a in SPECIAL:
        for b in SPECIAL:
            graph = Graph()
            number = graph.apply(operation, graph.constant(a), graph.constant(b))
            with np.errstate(all="ignore"):
                expected = float(ON_ARRAYS[operation](np.float64(a), np.float64(b)))
            np.testing.assert_equal(graph.value(number), expected)


def test_a_sign_changed_twice_is_the_sign():
    graph, x, _ = two_inputs()
    assert graph.apply("neg", graph.apply("neg", x)) == x


@given(
    st.lists(st.tuples(st.sampled_from(BINARY), st.integers(0, 99), st.integers(0, 99))),
    st.integers(0, 99),
)
def test_reachable_nodes_are_those_that_a_result_needs_in_order(steps, result):
    graph, x, y = two_inputs()
    made = [x, y, graph.zero, graph.one]
    for operation, a, b in steps:
        made.append(graph.apply(operation, made[a % len(made)], made[b % len(made)]))
    wanted = made[result % len(made)]
    reachable = graph.reachable([wanted])
    assert reachable == sorted(set(reachable))
    assert reachable[-1] == wanted
    for number in reachable:
        node = graph.nodes[number]
        if node.operation not in ("input", "constant"):
            assert all(operand in reachable and operand < number for operand in node.operands)
    used = {wanted} | {
        operand
        for number in reachable
        if graph.nodes[number].operation not in ("input", "constant")
        for operand in graph.nodes[number].operands
    }
    assert used == set(reachable)


def test_nodes_that_depend_on_an_input():
    graph, x, y = two_inputs()
    of_x = graph.apply("sin", x)
    of_y = graph.apply("cos", y)
    of_both = graph.apply("mul", of_x, of_y)
    of_none = graph.constant(3.0)
    numbers = graph.reachable([of_both, of_none, graph.apply("add", of_y, of_none)])
    assert graph.depending(numbers, 0) == {x, of_x, of_both}
    assert of_x not in graph.depending(numbers, 1)
    assert graph.depending(numbers, 1) >= {y, of_y, of_both}
    assert graph.depending(numbers, 2) == set()


def test_a_graph_has_no_more_nodes_than_it_may():
    graph = Graph(limit=4)
    a, b = graph.input(0, 0), graph.input(0, 1)
    assert len(graph.nodes) == 4  # zero and one are always there
    assert graph.apply("add", a, graph.zero) == a
    with pytest.raises(TooLong, match="more than 4 operations"):
        graph.apply("add", a, b)
