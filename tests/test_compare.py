# SPDX-License-Identifier: Apache-2.0
"""A result is compared with a stored one: the first difference, its size, and tolerances."""

import csv
import json

import bags
import pytest

from mpc_banded.cli import main
from mpc_banded.offline.compare import ComparisonError, accept, compare

FIELDS = ("cycle", "time_ns", "code", "iterations", "kkt_residual", "command.v", "command.w")


def stored(folder, count=10, **changes):
    """A result with values that are known, but for (field, cycle) -> value."""
    folder.mkdir(parents=True)
    with (folder / "cycles.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, FIELDS)
        table.writeheader()
        for k in range(count):
            row = {"cycle": k, "time_ns": 10**9 + k * 10**8, "code": "DRIVING", "iterations": 2.0}
            row |= {"kkt_residual": 1e-9, "command.v": 0.1 * k, "command.w": ""}
            row |= {f: v for f, by_cycle in changes.items() for c, v in by_cycle.items() if c == k}
            table.writerow(row)
    (folder / "summary.json").write_text("{}", encoding="utf-8")
    return folder


def test_the_same_has_no_difference(tmp_path):
    a, b = stored(tmp_path / "a"), stored(tmp_path / "b")
    assert compare(a, b).differences == []
    assert compare(a / "cycles.csv", b).sentence == "no difference in 10 cycles"


def test_the_first_difference_in_time_is_named_with_its_size(tmp_path):
    expected = stored(tmp_path / "a")
    found = stored(tmp_path / "b", **{"command.v": {4: 0.5, 7: 0.9}, "iterations": {6: 9.0}})
    result = compare(found, expected)
    assert [(d.field, d.cycle, d.count) for d in result.differences] == [
        ("command.v", 4, 2),
        ("iterations", 6, 1),
    ]
    assert result.differences[0].largest == pytest.approx(0.2)
    assert "command.v differs first at 0.400 s, in cycle 4: 0.5 instead of 0.4" in result.sentence


def test_tolerances_are_given_by_field_or_group(tmp_path):
    expected = stored(tmp_path / "a")
    found = stored(tmp_path / "b", **{"command.v": {4: 0.5}, "kkt_residual": {2: 1e-3}})
    assert compare(found, expected, {"command": 0.11}).differences == []
    assert compare(found, expected, {"command.v": 0.11}).differences == []
    assert compare(found, expected, {"command": 0.11, "command.v": 0.01}).differences
    both = compare(found, expected, {"kkt_residual": 1e-6}).differences
    assert [d.field for d in both] == ["kkt_residual", "command.v"]
    with pytest.raises(ComparisonError, match="comand"):
        compare(found, expected, {"comand": 1.0})


def test_tolerance_grows_with_large_values(tmp_path):
    expected = stored(tmp_path / "a", **{"command.v": {3: 4e5}})
    found = stored(tmp_path / "b", **{"command.v": {3: 4e5 + 0.1}})
    assert compare(found, expected).differences == []


@pytest.mark.parametrize(
    ("field", "value"), [("code", "HOLDING"), ("command.w", 0.0), ("command.v", "nan")]
)
def test_words_and_absent_numbers_differ_whatever_the_tolerance(field, value, tmp_path):
    expected, found = stored(tmp_path / "a"), stored(tmp_path / "b", **{field: {5: value}})
    (difference,) = compare(found, expected, {"command": 1e9}).differences
    assert (difference.field, difference.cycle, difference.found) == (field, 5, str(value))


@pytest.mark.parametrize(("machine", "differ"), [("b", False), ("a", True), (None, True)])
def test_a_reference_of_another_machine_has_other_last_digits(machine, differ, tmp_path):
    expected = stored(tmp_path / "a")
    found = stored(tmp_path / "b", **{"command.v": {4: 0.40005}, "iterations": {6: 3.0}})
    for folder, name in ((expected, "a"), (found, machine)):
        text = json.dumps({} if name is None else {"machine": name})
        (folder / "summary.json").write_text(text, encoding="utf-8")
    if machine is None:
        (expected / "summary.json").write_text("[" * 9, encoding="utf-8")
    result = compare(found, expected)
    assert bool(result.differences) == differ
    assert ("another machine (a)" in result.sentence) == (not differ)
    assert compare(found, expected, {"iterations": 0.0}).differences


@pytest.mark.parametrize("value", ["1e-3", True, float("nan"), -1.0, None])
def test_a_tolerance_is_a_number(value, tmp_path):
    with pytest.raises(ComparisonError, match="tolerance of command"):
        compare(stored(tmp_path / "a"), stored(tmp_path / "b"), {"command": value})


@pytest.mark.parametrize(
    "text",
    [
        "cycle,time_ns\n1,x\n",
        "cycle,time_ns,code\n1\n",
        "cycle,time_ns\n\0\n",
        "cycle,time_ns\nx,1,2\n",
    ],
)
def test_a_damaged_reference_is_refused(text, tmp_path):
    found = stored(tmp_path / "b")
    (tmp_path / "other.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ComparisonError, match="--update"):
        compare(found, tmp_path / "other.csv")


@pytest.mark.parametrize("count", [8, 12])
def test_a_result_of_another_length_differs(count, tmp_path):
    result = compare(stored(tmp_path / "b", count), stored(tmp_path / "a", 10))
    assert result.differences
    assert result.differences[0].cycle == min(count, 10)


def test_accepting_makes_them_equal(tmp_path):
    found = stored(tmp_path / "b", **{"command.v": {4: 0.5}})
    for reference in (tmp_path / "new" / "folder", tmp_path / "file.csv", stored(tmp_path / "a")):
        accept(found, reference)
        assert compare(found, reference).differences == []
    assert not list(tmp_path.rglob("*.part"))


def test_what_holds_no_cycles_is_refused(tmp_path):
    found = stored(tmp_path / "b")
    with pytest.raises(ComparisonError, match="--update"):
        compare(found, tmp_path / "nowhere")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ComparisonError, match="holds no cycles"):
        compare(found, tmp_path / "other.csv")


@pytest.mark.slow
def test_from_the_command_line_accept_repeat_and_differ(tmp_path, capsys):
    bag = bags.write(tmp_path / "bag", bags.drive(1.0))
    params = tmp_path / "params.yaml"
    params.write_text("/**: {ros__parameters: {horizon: 6, dt: 0.1}}\n", encoding="utf-8")
    common = ["replay", str(bag), "--params", str(params), "--eager"]
    common += ["--output", str(tmp_path / "out"), "--compare", str(tmp_path / "reference.csv")]
    assert main([*common, "--update"]) == 0
    assert main(common) == 0
    assert "no difference" in capsys.readouterr().err
    assert main([*common, "--set", "weights.position=20"]) == 1
    assert "differs first at" in " ".join(capsys.readouterr().err.split())
    loose = ["--tolerance", "command=10", "--tolerance", "cost=1e3", "--tolerance", "iterations=9"]
    loose += ["--tolerance", "plan_error=1", "--tolerance", "reference=1"]
    assert main([*common, "--set", "weights.position=20", *loose]) == 0
    assert main([*common, "--tolerance", "comand=1"]) == 2
