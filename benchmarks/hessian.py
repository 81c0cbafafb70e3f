# SPDX-License-Identifier: Apache-2.0
"""The study of banded Hessians: runs every part and writes docs/banded_hessian.md with its plots.

``python -m benchmarks.hessian`` takes some minutes, with ``--quick`` some seconds for small sizes.
Each part also runs by itself, as ``python -m benchmarks.recoveries`` for one.
"""

from __future__ import annotations

import argparse
import platform
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy
import torch

from benchmarks import definite, growth, optimizers, recoveries, routes, study
from benchmarks.study import Chapter

PARTS = (recoveries, routes, optimizers, definite, growth)
PAGE = study.ROOT / "docs" / "banded_hessian.md"

INTRODUCTION = """
The text that this package grew from asked how to take a banded Hessian out of PyTorch: probe it
with combs, decompress the products, and solve with a banded solver. It named alternatives it had
not tried. This page tries them all and says what came of each.
"""


def study_all(quick: bool, images: Path) -> list[Chapter]:
    """Measure and write every part."""
    chapters = []
    for part in PARTS:
        print(f"{part.__name__} ...", flush=True)
        chapters.append(part.write(part.measure(quick), images))
    return chapters


def page(chapters: Sequence[Chapter], quick: bool) -> str:
    """The whole page in Markdown."""
    verdicts = "\n".join(str(verdict) for chapter in chapters for verdict in chapter.verdicts)
    sizes = "small sizes (`--quick`)" if quick else "full sizes"
    made = f"""
Made by `python -m benchmarks.hessian`, {sizes}, with Python {platform.python_version()}, torch
{torch.__version__}, NumPy {np.__version__} and SciPy {scipy.__version__} on one core of
{processor()}. Times are processor times, medians of interleaved rounds; read the ratios, not the
milliseconds. Unless said, arithmetic is float64 and torch is eager (not compiled).
"""
    parts = ["# Banded Hessians: the ideas and the figures", INTRODUCTION, "## Verdicts", verdicts]
    parts += [made]
    for chapter in chapters:
        parts += [f"## {chapter.title}", chapter.text]
    return "\n\n".join(wrapped(part.strip()) for part in parts) + "\n"


def wrapped(text: str) -> str:
    """Paragraphs filled to a line length; lists item by item, tables and plots as they are."""
    blocks = []
    for block in text.split("\n\n"):
        if block.startswith("- "):
            items = block.split("\n- ")
            block = "\n".join(
                textwrap.fill(
                    item.removeprefix("- "),
                    99,
                    initial_indent="- ",
                    subsequent_indent="  ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                for item in items
            )
        elif not block.startswith(("|", "#", "!")):
            block = textwrap.fill(block, 99, break_long_words=False, break_on_hyphens=False)
        blocks.append(block)
    return "\n\n".join(blocks)


def processor() -> str:
    """Model of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it out")
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write, plots beside it")
    options = parser.parse_args(arguments)
    study.settle()
    chapters = study_all(options.quick, options.page.parent / "images")
    options.page.write_text(page(chapters, options.quick), encoding="utf-8")
    print(f"wrote {options.page}")


if __name__ == "__main__":
    main()
