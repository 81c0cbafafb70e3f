# SPDX-License-Identifier: Apache-2.0
"""One look for all plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from mpc_banded.offline.style import STYLE

# Colours of Okabe and Ito, which people with colour vision deficiencies can tell apart.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#666666", "#000000")
MARKERS = "osD^vPX*"
_STYLE = STYLE | {"axes.grid": True, "grid.alpha": 0.3, "lines.markersize": 4}


@contextmanager
def axes(
    images: Path, name: str, columns: int, rows: int = 1, size: tuple[float, float] = (4.5, 3.5)
) -> Iterator[list[Axes]]:
    """Axes row by row, each of a size in inches, saved as ``name``.png in the end."""
    with matplotlib.rc_context(_STYLE):
        whole = (size[0] * columns, size[1] * rows)
        picture, grid = plt.subplots(
            rows, columns, figsize=whole, layout="constrained", squeeze=False
        )
        yield list(grid.flat)
        for unused in (at for at in grid.flat if not at.has_data()):
            unused.set_axis_off()
        images.mkdir(parents=True, exist_ok=True)
        picture.savefig(images / f"{name}.png", dpi=120)
        plt.close(picture)


def line(at: Axes, index: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
    """One curve with markers."""
    at.plot(x, y, MARKERS[index] + "-", color=COLORS[index], label=label, lw=1.5)
