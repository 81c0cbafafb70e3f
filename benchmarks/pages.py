# SPDX-License-Identifier: Apache-2.0
"""Pages that people write, with figures that programs put in by name.

A marked place looks like ``<!--name-->19<!--/-->``, which Markdown renders as 19. A table stands
between the same marks on lines of their own.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_PLACE = re.compile(r"<!--([\w.+-]+)-->(.*?)<!--/-->", re.DOTALL)
_THIN = "\N{NO-BREAK SPACE}"


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with a value in every marked place.

    Raises:
        KeyError: A marked place has no value.
    """

    def filled(place: re.Match[str]) -> str:
        name = place[1]
        value = f"\n\n{values[name]}\n\n" if "\n" in values[name] else values[name]
        return f"<!--{name}-->{value}<!--/-->"

    return _PLACE.sub(filled, text)


def places(text: str) -> dict[str, str]:
    """What stands in each marked place now."""
    return {name: value.strip() for name, value in _PLACE.findall(text)}


def update(page: Path, values: Mapping[str, str]) -> None:
    """Fill a page where it lies."""
    page.write_text(fill(page.read_text(encoding="utf-8"), values), encoding="utf-8")


def number(value: float | int, digits: int = 2) -> str:
    """A figure as one reads it: few digits, no needless exponent."""
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", _THIN)
    if not np.isfinite(value):
        return "–"
    if value == 0.0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
        return f"{value:,.{decimals}f}".replace(",", _THIN)
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is left-aligned, numbers are formatted."""

    def cell(value: object) -> str:
        return number(value) if isinstance(value, int | float | np.number) else str(value)

    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def provenance(*packages: str) -> str:
    """Date, commit, processor and versions that the figures of a run belong to."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = described.stdout.strip() or "unknown"
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in packages]
    today = datetime.now(timezone.utc).date().isoformat()
    return (
        f"{today}, commit {commit}, {processor()}, {os.cpu_count()} cores, {', '.join(versions)}"
    )


def processor() -> str:
    """Model of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
