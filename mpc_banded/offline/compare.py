# SPDX-License-Identifier: Apache-2.0
"""Compares the cycles of a replay with those of a stored result, field by field."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from mpc_banded.offline.results import CYCLES, SUMMARY

#: Field, or the part before its first dot -> allowed difference, relative to max(1, reference).
#: Residuals below the solver's tolerances are rounding noise.
TOLERANCES = {
    "cycle": 0.0,
    "time_ns": 0.0,
    "code": 0.0,
    "converged": 0.0,
    "iterations": 0.0,
    "kkt_residual": math.inf,
    "defect_norm": math.inf,
}
DEFAULT_TOLERANCE = 1e-6
#: The same for results from two machines, whose last digits differ: a solve may then take one more
#: iteration, and end at another point within the solver's tolerances.
TOLERANCES_ELSEWHERE = {**TOLERANCES, "iterations": 1.0}
DEFAULT_TOLERANCE_ELSEWHERE = 1e-4


class ComparisonError(Exception):
    """There is nothing to compare with; the message says why."""


@dataclass
class Difference:
    """How far one field is from its reference.

    Attributes:
        field: Column of cycles.csv.
        count: Cycles in which it differs by more than allowed.
        allowed: Difference that is allowed.
        time_ns, cycle, expected, found: Time, number and values of the first of these cycles.
        largest: Largest difference; infinite if one of the values is missing.
    """

    field: str
    count: int
    allowed: float
    time_ns: int
    cycle: int
    expected: str
    found: str
    largest: float


@dataclass(frozen=True)
class Comparison:
    """The differences between two results.

    Attributes:
        differences: Fields that differ, in the order of their first occurrence.
        cycles: Number of cycles compared.
        start_ns: Time of the first cycle.
        elsewhere: Machine of the reference; empty if it is that of the result, or unknown.
    """

    differences: list[Difference]
    cycles: int
    start_ns: int
    elsewhere: str = ""

    @property
    def sentence(self) -> str:
        """Sentence on the first difference and its size, or that there is none."""
        if not self.differences:
            where = f", with a reference of another machine ({self.elsewhere})"
            return f"no difference in {self.cycles} cycles{where if self.elsewhere else ''}"
        first = self.differences[0]
        seconds = 1e-9 * (first.time_ns - self.start_ns)
        size = f" ({first.largest:.3g} at most, " if math.isfinite(first.largest) else " ("
        return (
            f"{first.field} differs first at {seconds:.3f} s, in cycle {first.cycle}: "
            f"{first.found or 'nothing'} instead of {first.expected or 'nothing'}{size}"
            f"in {first.count} of {self.cycles} cycles; allowed is {first.allowed:g})"
        )


def stored_file(reference: Path) -> Path:
    """Return the file of cycles of a stored result, which may be given by its folder."""
    return reference if reference.suffix == ".csv" else reference / CYCLES


def accept(result: Path, reference: Path) -> Path:
    """Store a result as the reference; returns the stored file."""
    target = stored_file(reference)
    target.parent.mkdir(parents=True, exist_ok=True)
    pairs = [(result / CYCLES, target)]
    if target.name == CYCLES:
        pairs.append((result / SUMMARY, target.with_name(SUMMARY)))
    for source, place in pairs:
        scratch = place.with_name(f".{place.name}.part")
        shutil.copyfile(source, scratch)
        scratch.replace(place)
    return target


def compare(
    result: Path, reference: Path, tolerances: Mapping[str, float] | None = None
) -> Comparison:
    """Compare two results, each a folder or its file of cycles.

    Args:
        result: The new result.
        reference: The expected result.
        tolerances: Field, or the part before its first dot -> allowed difference.

    Raises:
        ComparisonError: A file is missing or holds no cycles, or a tolerance names no field.
    """
    found, expected = _rows(stored_file(result)), _rows(stored_file(reference))
    ours, theirs = next(found), next(expected)
    _check_tolerances(tolerances or {})
    fields = list(dict.fromkeys([*theirs, *ours]))
    elsewhere = _machine_of(reference)
    if elsewhere == _machine_of(result):
        elsewhere = ""
    allowed = _allowed(fields, tolerances or {}, bool(elsewhere))
    differences: dict[str, Difference] = {}
    cycles, start_ns = 0, 0
    for left, right in zip_longest(found, expected):
        row, wanted = left or {}, right or {}
        time_ns, number = _place(wanted or row, reference if wanted else result)
        start_ns = time_ns if not cycles else start_ns
        cycles += 1
        for field in fields:
            a, b = row.get(field) or "", wanted.get(field) or ""
            if a == b:
                continue
            gap, scale = _gap(a, b)
            if gap <= allowed[field] * max(1.0, scale):
                continue
            if field not in differences:
                differences[field] = Difference(
                    field, 0, allowed[field], time_ns, number, b, a, 0.0
                )
            differences[field].count += 1
            differences[field].largest = max(differences[field].largest, gap)
    found_first = sorted(differences.values(), key=lambda d: d.time_ns)
    return Comparison(found_first, cycles, start_ns, elsewhere)


def _check_tolerances(given: Mapping[str, float]) -> None:
    for field, value in given.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not value >= 0.0:
            raise ComparisonError(
                f"the tolerance of {field} is {value!r}; allowed are numbers >= 0, and inf"
            )


def _place(row: Mapping[str, str], source: Path) -> tuple[int, int]:
    """Return time and number of a cycle."""
    try:
        return int(row["time_ns"]), int(row["cycle"])
    except (KeyError, TypeError, ValueError) as error:
        raise ComparisonError(
            f"{source} is damaged: a row has time_ns {row.get('time_ns')!r} and cycle "
            f"{row.get('cycle')!r}; create it with --compare and --update"
        ) from error


def _machine_of(result: Path) -> str:
    """Return the processor and C library of a result; empty if unknown."""
    try:
        summary = json.loads((result / SUMMARY).read_text(encoding="utf-8"))
        return str(summary["machine"])
    except (OSError, LookupError, TypeError, ValueError, RecursionError):
        return ""


def _allowed(
    fields: list[str], given: Mapping[str, float], is_elsewhere: bool
) -> dict[str, float]:
    """Return the allowed difference of each field; given ones and whole names come first."""
    groups = {field.split(".")[0] for field in fields}
    unknown = sorted(set(given) - set(fields) - groups)
    if unknown:
        raise ComparisonError(
            f"there is no field {', '.join(unknown)} to tolerate a difference of; name one of "
            f"{', '.join(sorted({*groups, *fields}))}"
        )
    table = TOLERANCES_ELSEWHERE if is_elsewhere else TOLERANCES
    default = DEFAULT_TOLERANCE_ELSEWHERE if is_elsewhere else DEFAULT_TOLERANCE
    allowed = {}
    for field in fields:
        group = field.split(".")[0]
        ours = table.get(group, default)
        allowed[field] = given.get(field, given.get(group, ours))
    return allowed


def _gap(found: str, expected: str) -> tuple[float, float]:
    """Return the size of a difference, and of the expected value."""
    try:
        a, b = float(found), float(expected)
    except ValueError:
        return math.inf, 1.0
    return abs(a - b), abs(b)


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """Yield the header as a row, then each cycle by column."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            table = csv.DictReader(stream)
            fields = table.fieldnames or []
            if not {"cycle", "time_ns"} <= set(fields):
                raise ComparisonError(
                    f"{file} holds no cycles of a replay; name a folder that 'mpc_banded replay' "
                    f"wrote, or its {CYCLES}"
                )
            yield dict.fromkeys(fields, "")
            yield from table
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ComparisonError(
            f"{file} cannot be read: {error}; create it with --compare and --update"
        ) from error
