# SPDX-License-Identifier: Apache-2.0
"""How fast an iteration is, why, and what stands in the way: writes docs/performance.md.

``python -m benchmarks.performance`` takes two minutes, ``--quick`` some seconds for a few steps of
the small tasks. Compiles into a cache of its own, so that compiling is measured, too.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
import torch

from benchmarks import limit, road, shares, study
from benchmarks.hessian import processor, wrapped
from benchmarks.machine_code import Core, build
from benchmarks.study import Chapter, number
from benchmarks.tasks import TASKS
from mpc_banded.codegen.cache import LibraryCache

PAGE = study.ROOT / "docs" / "performance.md"
#: Tasks of the closed loops.
LOOPS, QUICK_LOOPS = ("bicycle50", "cartpole", "chain4"), ("bicycle20", "cartpole")
#: Those of them on the road; the first one is small.
ROAD, QUICK_ROAD = ("bicycle50", "chain4"), ("bicycle20",)

INTRODUCTION = """
A Newton iteration of this package evaluates the derivatives of the problem (*evaluate*), factors
a banded matrix (*factor*), solves with it until the linearised dynamics hold (*step*) and looks
for a step length (*line search*). This page says how the derivatives became fast, where the time
of an iteration goes now, how far that is from what the core could do, and how many iterations a
control step takes. Comparisons with other solvers are in [benchmarks.md](benchmarks.md), with
other ways to the Hessian in [banded_hessian.md](banded_hessian.md).
"""


@dataclass(frozen=True)
class Figures:
    """All that the page shows."""

    road: road.Figures
    loops: tuple[shares.Loop, ...]
    limit: limit.Figures


def measure(quick: bool) -> Figures:
    """Compile, then time the road, the loops and the core."""
    names = QUICK_LOOPS if quick else LOOPS
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch), LibraryCache(Path(scratch, "cache"))
        print("the road ...", flush=True)
        on_road = [TASKS[name]() for name in (QUICK_ROAD if quick else ROAD)]
        the_road = road.measure(on_road, cache, quick)
        builds = [the_road.builds.get(name) or build(TASKS[name](), cache) for name in names]
        core = Core(folder)
        print("closed loops ...", flush=True)
        loops = shares.measure(builds, cache, core, quick)
        print("the limit ...", flush=True)
        return Figures(the_road, loops, limit.measure(builds, loops, core, folder, quick))


def write(figures: Figures, images: Path) -> list[Chapter]:
    """The chapters of the page, and its plots."""
    return [
        road.write(figures.road, images),
        shares.write(figures.loops, images),
        limit.write(figures.limit, images),
        shares.write_iterations(figures.loops, images),
    ]


def summary(figures: Figures) -> str:
    """The page in a few lines."""
    first, loop = figures.road.tasks[0], figures.loops[0]
    ways = (road.SEQUENTIAL, figures.road.chosen[first.name])
    seed, compiled = (figures.road.seconds[way, first.name] for way in ways)
    share = {name: 100.0 * loop.part(name) / loop.per_iteration for name in shares.PARTS}
    code = 100.0 * sum(map(loop.machine_code, shares.PARTS)) / loop.per_iteration
    shown = ", ".join(f"{name} {number(percent)} %" for name, percent in share.items())
    return f"""\
- One Newton matrix of the {first.title}: {number(1e3 * seed)} ms by one backward pass per probe,
{number(1e6 * compiled)} µs compiled, {number(seed / compiled)} times less.
- One iteration in closed loop takes {number(1e6 * loop.per_iteration)} µs there: {shown}.
- Machine code is {number(code)} % of that; the rest is Python and NumPy around it."""


def page(figures: Figures, chapters: Sequence[Chapter], quick: bool) -> str:
    """The whole page in Markdown."""
    sizes = "a few steps (`--quick`)" if quick else "in full"
    made = f"""
Made by `python -m benchmarks.performance`, {sizes}, with Python {platform.python_version()}, torch
{torch.__version__}, NumPy {np.__version__} and SciPy {scipy.__version__} on one core of
{processor()}. Times are processor times of the least disturbed of several interleaved rounds; read
the ratios, not the microseconds.
"""
    parts = ["# Performance: the way, the shares, the limit", INTRODUCTION, summary(figures), made]
    for chapter in chapters:
        parts += [f"## {chapter.title}", chapter.text]
    return "\n\n".join(wrapped(part.strip()) for part in parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to try it out")
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write, plots beside it")
    options = parser.parse_args(arguments)
    study.settle()
    figures = measure(options.quick)
    chapters = write(figures, options.page.parent / "images")
    options.page.write_text(page(figures, chapters, options.quick), encoding="utf-8")
    print(f"wrote {options.page}")


if __name__ == "__main__":
    main()
