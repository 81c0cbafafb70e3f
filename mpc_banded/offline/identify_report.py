# SPDX-License-Identifier: Apache-2.0
"""Shows the results of an identification as a table, as JSON and as a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from mpc_banded.control.config import Config
from mpc_banded.control.text import printable
from mpc_banded.offline.identify import Found, combined, drive_and_motion
from mpc_banded.offline.lag import Drive, Motion, Response
from mpc_banded.offline.recorded_motion import Recorded

from matplotlib import pyplot as plt  # isort: skip  (style.py chooses the backend)

#: Length of the stretch of the recording that a plot shows, in s.
SHOWN_S = 20.0


def report(found: list[Found], recorded: Recorded) -> dict[str, Any]:
    """Return all figures, for JSON."""
    return {
        "remarks": recorded.remarks,
        "axes": {
            one.name: {
                "verdict": one.verdict,
                "significant": one.significant,
                "fit": asdict(one.fit) if one.fit else None,
                "prediction_error": [asdict(p) for p in one.predictions],
            }
            for one in found
        },
        "parameters": {key: asdict(e) for key, e in combined(found).items()},
        "rejected": dict(recorded.rejected),
    }


def table(found: list[Found]) -> Table:
    """Return the figures as a table for people."""
    grid = Table(title="From command to motion, with 95 % intervals", title_justify="left")
    for head in ("axis", "delay [s]", "lag [s]", "sum [s]", "gain", "R", "error after/before"):
        grid.add_column(head)
    for one in found:
        if one.fit is None:
            continue
        ratios = [f"{p.horizon_s:g} s: {p.ratio.value:.2f}" for p in one.predictions]
        grid.add_row(
            Text(printable(one.name)),
            *(
                f"{e.value:.3f}\n{e.lower:.3f} to {e.upper:.3f}"
                for e in (one.fit.delay, one.fit.lag, one.fit.total)
            ),
            f"{one.fit.gain.value:.3g}\n{one.fit.gain.lower:.3g} to {one.fit.gain.upper:.3g}",
            f"{one.fit.correlation:.2f}",
            "\n".join(ratios),
        )
    return grid


def plot(found: list[Found], config: Config, recorded: Recorded, file: Path) -> None:
    """Draw measured and modelled motion where it moves most, and the prediction errors."""
    shown = [(one, one.after) for one in found if one.after is not None]
    if not shown:
        return
    figure, grid = plt.subplots(
        len(shown),
        2,
        figsize=(12, 3.2 * len(shown)),
        squeeze=False,
        layout="constrained",
        width_ratios=[2.2, 1],
    )
    for (left, right), (one, after) in zip(grid, shown, strict=True):
        drive, motion = drive_and_motion(config, recorded, one.name, one.axis)
        response = Response(drive, float(motion.times[-1]))
        model = after.gain * response.at(motion, after.delay, after.lag)
        begin = _liveliest(drive, motion)
        left.plot(motion.times, motion.values, ".", ms=5, color="#374151", label="measured")
        left.plot(motion.times, model + after.bias, color="#1f5fa8", label="model")
        left.step(
            drive.times,
            after.gain * drive.values + after.bias,
            where="post",
            color="#d97706",
            lw=1,
            label="command x gain",
        )
        left.set_xlim(begin, begin + SHOWN_S)
        seen = (motion.times >= begin) & (motion.times <= begin + SHOWN_S)
        low, high = np.percentile(np.append(motion.values[seen], model[seen]), [0.5, 99.5])
        left.set_ylim(low - 0.3 * (high - low) - 1e-9, high + 0.3 * (high - low) + 1e-9)
        left.set_title(printable(f"{one.name}: {one.verdict}"), loc="left", fontsize=10)
        left.set_xlabel("time [s]")
        left.legend(loc="upper right", ncols=3, frameon=False, fontsize=8)
        horizons = [p.horizon_s for p in one.predictions]
        for label, colour in (("before", "#9aa3ad"), ("after", "#1f5fa8")):
            errors = [getattr(p, label) for p in one.predictions]
            right.plot(horizons, [e.value for e in errors], "o-", color=colour, label=label)
            bounds = [e.lower for e in errors], [e.upper for e in errors]
            right.fill_between(horizons, *bounds, color=colour, alpha=0.25, lw=0)
        right.set_title("RMS prediction error over the horizon", loc="left", fontsize=10)
        right.set_xlabel("horizon [s]")
        right.set_ylim(0.0, None)
        right.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _liveliest(drive: Drive, motion: Motion) -> float:
    """Return the beginning of the stretch in which the command changes most."""
    begins = np.arange(motion.times[0], max(motion.times[-1] - SHOWN_S, motion.times[0] + 1), 1.0)
    change = np.abs(np.diff(drive.values, prepend=drive.values[0]))
    total = np.concatenate([[0.0], np.cumsum(change)])
    ends = np.searchsorted(drive.times, [begins, begins + SHOWN_S])
    return float(begins[np.argmax(total[ends[1]] - total[ends[0]])])
