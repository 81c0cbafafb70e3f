# SPDX-License-Identifier: Apache-2.0
"""Draw the packages of mpc_banded and their imports, as they are in the code.

python docs/architecture.py      # or make architecture; writes docs/images/architecture.svg
"""

from __future__ import annotations

import ast
import textwrap
from graphlib import TopologicalSorter
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "mpc_banded"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
LEFT, WIDTH, GAP, LINE = 24, 560, 34, 17
BLUE, GREY, INK = "#1f5fa8", "#9aa5b1", "#1d2733"


def part(module: str) -> str:
    """The package or top-level module that a dotted name below mpc_banded belongs to."""
    return [*module.split("."), "mpc_banded"][1]


def imported(file: Path) -> set[str]:
    """Dotted names of this package that a file imports, for types alone left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("mpc_banded.")}


def packages() -> dict[str, list[str]]:
    """Package or top-level module -> its modules, folders within named with a slash."""
    found: dict[str, list[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).with_suffix("").as_posix()
        top, _, rest = name.partition("/")
        if top.startswith("__"):
            continue
        found.setdefault(top, []).extend([rest] if rest and "__init__" not in rest else [])
    return found


def arrows() -> set[tuple[str, str]]:
    """Pairs of a package and another one that it imports."""
    found = set()
    for file in SOURCE.rglob("*.py"):
        here = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if not here.startswith("__"):
            found |= {(here, part(name)) for name in imported(file)}
    known = packages()
    return {(a, b) for a, b in found if a != b and b in known}


def floors() -> list[str]:
    """Packages from the bottom to the top: each one imports only those before it."""
    graph: dict[str, set[str]] = {name: set() for name in packages()}
    for above, below in arrows():
        graph[above].add(below)
    return list(TopologicalSorter(graph).static_order())


def purpose(package: str) -> str:
    """First sentence of the docstring of a package or module."""
    file = SOURCE / package / "__init__.py"
    source = (file if file.is_file() else SOURCE / f"{package}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def draw() -> str:
    """The picture as SVG: boxes from top to bottom, arrows to what a package imports."""
    modules, boxes, places, top = packages(), [], {}, 20
    for name in reversed(floors()):
        lines = textwrap.wrap(purpose(name), 84)
        lines += textwrap.wrap(" · ".join(modules[name]), 92)
        height = 34 + LINE * len(lines)
        boxes.append(_box(name, lines, len(textwrap.wrap(purpose(name), 84)), top, height))
        places[name] = (top, height)
        top += height + GAP
    order = list(places)
    lines = []
    for above, below in sorted(arrows(), key=lambda a: order.index(a[1]) - order.index(a[0])):
        lines.append(_arrow(above, below, order, places))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{top}" '
            f'viewBox="0 0 760 {top}" font-family="DejaVu Sans, Helvetica, sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
            *boxes,
            *lines,
            "</svg>\n",
        ]
    )


def _box(name: str, lines: list[str], sentences: int, top: int, height: int) -> str:
    texts = [
        f'<text x="{LEFT + 14}" y="{top + 24}" font-size="15" font-weight="bold" '
        f'fill="{INK}">{name}</text>'
    ]
    for i, line in enumerate(lines):
        colour, size = (INK, 12) if i < sentences else ("#5b6875", 11)
        y = top + 24 + LINE * (i + 1)
        texts.append(
            f'<text x="{LEFT + 14}" y="{y}" font-size="{size}" fill="{colour}">'
            f"{escape(line)}</text>"
        )
    return (
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{height}" rx="7" fill="#f3f6fa" '
        f'stroke="{GREY}"/>' + "".join(texts)
    )


def _arrow(above: str, below: str, order: list[str], places: dict[str, tuple[int, int]]) -> str:
    """Straight down to the next box, in an arc on the right to one further down."""
    distance = order.index(below) - order.index(above)
    start, end = places[above], places[below]
    if distance == 1:
        x, y, z = LEFT + WIDTH / 2, start[0] + start[1], end[0]
        way, head = f"M{x} {y} V{z - 6}", f"M{x} {z} l-4 -8 h8 z"
    else:
        x, bow = LEFT + WIDTH, 26 * distance
        y, z = start[0] + start[1] - 9 * distance, end[0] + 9 * (distance - 1)
        way = f"M{x} {y} C{x + bow} {y} {x + bow} {z} {x + 6} {z}"
        head = f"M{x} {z} l8 -4 v8 z"
    return (
        f'<g data-from="{above}" data-to="{below}" opacity="0.8">'
        f'<path stroke="{BLUE}" stroke-width="1.4" fill="none" d="{way}"/>'
        f'<path fill="{BLUE}" d="{head}"/></g>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
