# SPDX-License-Identifier: Apache-2.0
"""A parameter file is read as rcl reads it, or refused; rcl itself is the slow twin here."""

import math

import pytest

from mpc_banded.control.parameter_file import ParameterFileError, read, read_sections

HEAD = "/**:\n  ros__parameters:\n"
#: Files that are read, most of which plain YAML 1.1 reads otherwise.
READ = {
    "one key": HEAD + "    a: 1\n",
    "own name": "mpc_node:\n  ros__parameters:\n    a: 1\n",
    "own name with a slash": "/mpc_node:\n  ros__parameters:\n    a: 1\n",
    "any name": "/*:\n  ros__parameters:\n    a: 1\n",
    "any namespace": "/**/mpc_node:\n  ros__parameters:\n    a: 1\n",
    "beside another node": "other:\n  ros__parameters:\n    b: [1, 2]\n" + HEAD + "    a: 1\n",
    "two sections": HEAD + "    a: 1\nmpc_node:\n  ros__parameters:\n    b: 2\n",
    "nested": HEAD + "    l:\n      v: [1.0, 2.0]\n      w: {x: 1}\n    m.n: 3\n",
    "flow": '{"/**": {"ros__parameters": {"a": 1, "b": [true, false], "c": ["x", "1"]}}}',
    "exponents": HEAD + "    a: 1e-6\n    b: 1.e3\n    c: .5\n    d: 1e5\n    e: 1.\n",
    "truth": HEAD + "    a: yes\n    b: on\n    c: True\n    d: y\n    e: n\n    f: off\n",
    "integers": HEAD + "    a: 0x10\n    b: 010\n    c: +5\n    d: -3\n    e: 0\n",
    "no integers": HEAD + "    a: 1_000\n    b: 0b11\n    c: 0o17\n    d: 1:30\n    e: 1_0.5\n",
    "too large": HEAD + "    a: 99999999999999999999\n",
    "infinite": HEAD + "    a: .inf\n    b: -.inf\n    c: inf\n    d: -inf\n    e: infinity\n",
    "strings": HEAD + "    a: '1'\n    b: \"true\"\n    c: 2001-01-01\n    d: ''\n    e: ü x\n",
    "numbers as keys": HEAD + "    1: 1\n",
    "lists": HEAD + "    a: [-1, -2]\n    b: [1.0,\n      2.0]\n    c: [x, 'y']\n    d: []\n",
    "ended": HEAD + "    a: 1\n...\n",
}  # fmt: skip
#: Files that rcl refuses, or has nothing for the node in.
REFUSED = {
    "other name": ("mpc_nod:\n  ros__parameters:\n    a: 1\n", "mpc_nod"),
    "nothing": ("", "top-level key"),
    "a list": ("- a\n", "top-level key"),
    "no YAML": ("{[", "cannot be read"),
    "tabs": ("/**:\n\tros__parameters:\n    a: 1\n", "cannot be read"),
    "no node": ("ros__parameters:\n  a: 1\n", "'ros__parameters' in line 1"),
    "flat": ("a: 1\n", "'a' in line 1"),
    "no ros__parameters": ("/**:\n  a: 1\n", "'a' in line 2"),
    "misspelt": ("/**:\n  parameters:\n    a: 1\n", "'a' in line 3"),
    "beside": ("/**:\n  ros__parameters:\n    a: 1\n  b: 3\n", "'b'"),
    "empty": (HEAD, "no parameters below"),
    "empty node": ("/**:\n", "'/**' in line 1"),
    "no value": (HEAD + "    a:\n", "a has no value in line 3"),
    "integer and number": (HEAD + "    a: [-1, 1.0]\n", "write [-1.0, 1.0]"),
    "number and string": (HEAD + "    a: [1, x]\n", "lists of one type"),
    "truth and number": (HEAD + "    a: [true, 1]\n", "lists of one type"),
    "null in a list": (HEAD + "    a: [1.0, ]\n    b: [null, 1.0]\n", "b has no value in line 4"),
    "lists in a list": (HEAD + "    a: [[1.0], [2.0]]\n", "[1.0]"),
    "alias": (HEAD + "    a: &x 1\n    b: *x\n", "an alias in line 4"),
    "no name": (HEAD + "    '': 1\n", "no name in line 3"),
}
#: Files in which rcl takes one of two values, or something that nobody meant.
AMBIGUOUS = {
    "twice": (HEAD + "    a: 1\n    a: 2\n", "a twice, in line 3 and in line 4"),
    "twice, nested": (HEAD + "    l:\n      v: 1\n    l.v: 2\n", "l.v twice, in line 4"),
    "node twice": (HEAD + "    a: 1\n" + HEAD + "    b: 1\n", "'/**' twice, again in line 4"),
    "in both sections": (HEAD + "    a: 1\nmpc_node:\n  ros__parameters:\n    a: 3\n", "a twice"),
    "null": (HEAD + "    a: null\n", "a has no value"),
    "tilde": (HEAD + "    a: ~\n", "a has no value"),
    "empty mapping": (HEAD + "    a: {}\n", "allowed are true or false, numbers"),
    "mapping in a list": (HEAD + "    a: [{x: 1}]\n", "allowed are true or false, numbers"),
    "two documents": (HEAD + "    a: 1\n---\n" + HEAD + "    b: 1\n", "one document"),
    "tag": (HEAD + "    a: !!float 1\n", "a tag in line 3"),
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / "params.yaml"


def told_by_rcl(file, namespace="/"):
    """What rclpy makes of a file for a node; None if rcl refuses it."""
    rclpy = pytest.importorskip("rclpy")
    from rclpy.context import Context
    from rclpy.node import Node

    context = Context()
    try:
        rclpy.init(context=context, args=["--ros-args", "--params-file", str(file)])
    except RuntimeError:
        return None
    try:
        node = Node("mpc_node", namespace=namespace, context=context)
        parameters = node._parameter_overrides
        node.destroy_node()
        return {
            name: [] if parameter.value is None else parameter.value
            for name, parameter in parameters.items()
        }
    finally:
        rclpy.shutdown(context=context)


def types(values):
    return {name: type(value) for name, value in values.items()}


@pytest.mark.ros
@pytest.mark.parametrize("case", READ)
def test_what_is_read_is_what_the_node_gets(file, case):
    file.write_text(READ[case], encoding="utf-8")
    ours, theirs = read(file, "/mpc_node"), told_by_rcl(file)
    assert ours
    assert ours == theirs
    assert types(ours) == types(theirs)
    assert read(file) == ours


@pytest.mark.ros
@pytest.mark.parametrize("case", REFUSED)
def test_what_the_node_cannot_use_is_refused(file, case):
    text, place = REFUSED[case]
    file.write_text(text, encoding="utf-8")
    assert not told_by_rcl(file)
    with pytest.raises(ParameterFileError, match=r"params\.yaml") as error:
        read(file)
    assert place in str(error.value)


@pytest.mark.parametrize("flag", ["use_sim_time", "autostart"])
@pytest.mark.parametrize("value", ["1", "'true'", "[true]"])
def test_a_switch_of_the_node_takes_true_or_false(file, flag, value):
    file.write_text(f"{HEAD}    horizon: 20\n    {flag}: {value}\n", encoding="utf-8")
    with pytest.raises(ParameterFileError, match=rf"{flag} is .* in line 4; allowed are true"):
        read(file)


def test_a_misspelt_switch_is_a_parameter_of_the_robot_and_not_left_out(file):
    file.write_text(f"{HEAD}    autostarts: false\n", encoding="utf-8")
    assert read(file) == {"autostarts": False}


@pytest.mark.ros
@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_the_node_would_read_otherwise_than_meant_is_refused(file, case):
    text, place = AMBIGUOUS[case]
    file.write_text(text, encoding="utf-8")
    assert told_by_rcl(file)  # it would drive on
    with pytest.raises(ParameterFileError, match=r"params\.yaml") as error:
        read(file)
    assert place in str(error.value)


NAMES = (
    *("/**", "/*", "*", "**", "/*/*", "/**/*", "mpc_node", "/mpc_node", "robot/mpc_node"),
    *(
        "/robot/mpc_node",
        "/*/mpc_node",
        "/**/mpc_node",
        "/robot/*",
        "/robot/**",
        "/other/mpc_node",
    ),
    *("/robot", "/a/robot/mpc_node", "mpc_nod", "/**/robot/**/mpc_node"),
)


@pytest.mark.ros
@pytest.mark.parametrize("namespace", ["/", "/robot"])
def test_sections_match_the_nodes_that_rcl_matches(file, namespace):
    for name in NAMES:
        file.write_text(f"'{name}':\n  ros__parameters:\n    a: 1\n", encoding="utf-8")
        (section,) = read_sections(file)
        heard = bool(told_by_rcl(file, namespace))
        assert section.matches(f"{namespace.rstrip('/')}/mpc_node") is heard, name


def test_a_namespace_may_be_a_level_of_its_own(file):
    file.write_text("robot:\n  mpc_node:\n    ros__parameters:\n      a: 1\n")
    assert read(file) == read(file, "/robot/mpc_node") == {"a": 1}
    with pytest.raises(ParameterFileError, match="its top-level keys are robot/mpc_node"):
        read(file, "/mpc_node")


def test_parameters_of_rclpy_are_not_ours(file):
    file.write_text(HEAD + "    use_sim_time: true\n    autostart: false\n    a: .nan\n")
    (value,) = read(file).values()
    assert math.isnan(value)


def test_a_file_for_two_robots_is_ambiguous(file):
    one = "/{}/mpc_node:\n  ros__parameters:\n    {}: 1\n"
    file.write_text(one.format("left", "a") + one.format("right", "b"))
    with pytest.raises(ParameterFileError, match="for /left/mpc_node and for /right/mpc_node"):
        read(file)
    assert read(file, "/left/mpc_node") == {"a": 1}


@pytest.mark.ros
def test_a_section_may_be_empty_if_it_says_so(file):
    """As those that ros2 launch writes."""
    file.write_text("/**:\n  ros__parameters: {}\n")
    assert read(file) == read(file, "/mpc_node") == told_by_rcl(file) == {}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParameterFileError, match=r"nowhere\.yaml cannot be read"):
        read(tmp_path / "nowhere.yaml")
