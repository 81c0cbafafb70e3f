# SPDX-License-Identifier: Apache-2.0
"""Tables, bars and plots of docs/benchmarks.md from the recorded runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks import plots
from benchmarks.pages import number, table
from benchmarks.peers import ENTRIES, Entry
from benchmarks.task import Task
from benchmarks.tasks import TASKS

Results = dict[str, Any]
#: Task -> entry's name -> figures.
AllFigures = dict[str, dict[str, "Figures"]]

OURS = "mpc_banded.compiled"
#: Two violations that differ by less than this count as the same, in units of the states.
SAME_VIOLATION = 1e-3
#: An SQP solver counts as a rival only where it converges in all but this share of the steps.
MOSTLY = 0.05
_PEERS = list(dict.fromkeys(entry.peer for entry in ENTRIES))
_LOOPS = ("bicycle50", "cartpole", "chain4")


@dataclass(frozen=True)
class Figures:
    """All runs of one solver at one task; times in ms, without the first step of each run.

    Attributes:
        entry: Which solver.
        wall: Wall time of each step.
        own: The same by the solver's own clock; NaN where it has none.
        iterations: Iterations of each step.
        first: Median wall time of the first steps, which start cold.
        first_iterations: Most iterations of a first step.
        cost: Mean closed-loop cost of the runs.
        violation: Worst violation in any run.
        unconverged: Share of all steps that did not converge.
        failures: Number of steps without a command.
        setups: Set-up times in seconds: with an empty cache, and with a full one if it has one.
        whole: Whether it took part in every step of each run.
    """

    entry: Entry
    wall: np.ndarray
    own: np.ndarray
    iterations: np.ndarray
    first: float
    first_iterations: int
    cost: float
    violation: float
    unconverged: float
    failures: int
    setups: list[float]
    whole: bool

    @classmethod
    def of(cls, entry: Entry, record: Results, steps: int) -> Figures:
        """Figures from the record of an entry."""
        runs = record["runs"]

        def later(key: str) -> np.ndarray:
            return np.concatenate([np.asarray(run[key][1:], dtype=float) for run in runs])

        return cls(
            entry=entry,
            wall=1e3 * later("wall_s"),
            own=1e3 * later("solver_s"),
            iterations=later("iterations"),
            first=1e3 * float(np.nanmedian([run["wall_s"][0] for run in runs])),
            first_iterations=int(max(run["iterations"][0] for run in runs)),
            cost=float(np.mean([run["cost"] for run in runs])),
            violation=max(run["violation"] for run in runs),
            unconverged=1.0 - float(np.mean(np.concatenate([run["converged"] for run in runs]))),
            failures=sum(run["failures"] for run in runs),
            setups=record["setups_s"],
            whole=all(len(run["wall_s"]) == steps for run in runs),
        )

    @property
    def judged(self) -> bool:
        """Whether cost and violation are those of whole runs with a solver that converges."""
        return self.entry.converges and self.whole and not self.failures


def percentile(values: np.ndarray, percent: float) -> float:
    """Percentile of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, percent)) if len(finite) else np.nan


def gather(results: Results) -> AllFigures:
    """Figures of all entries that ran."""
    return {
        task: {
            entry.name: Figures.of(entry, part["entries"][entry.name], part["steps"])
            for entry in ENTRIES
            if part["entries"].get(entry.name, {}).get("runs")
        }
        for task, part in results["tasks"].items()
    }


def values(results: Results) -> dict[str, str]:
    """Everything that the page has a place for, by name."""
    figures = gather(results)
    found = {
        "made": results["made"],
        "bars": table(
            ["task", "bar", "wanted", "reached", "met"],
            [*_bars(figures), *_launch_bars(results.get("launch", {}))],
        ),
    }
    for task, part in results["tasks"].items():
        found[f"{task}.steps"] = _steps_table(figures[task])
        found[f"{task}.runs"] = _runs_table(part, figures[task])
    return found


# Tables


def best_cost(figures: dict[str, Figures], but: str = "") -> float:
    """Lowest closed-loop cost of the solvers that converge, one left out; NaN if none did."""
    costs = [f.cost for f in figures.values() if f.judged and f.entry.name != but]
    return min(costs, default=np.nan)


def _steps_table(figures: dict[str, Figures]) -> str:
    best = best_cost(figures)
    header = ["solver", "median ms", "p99 ms", "own clock median / p99"]
    header += ["iterations mean / max", "cost over best", "worst violation"]
    rows = []
    for f in figures.values():
        own = [percentile(f.own, q) for q in (50, 99)]
        rows.append(
            [
                f.entry.title,
                percentile(f.wall, 50),
                percentile(f.wall, 99),
                " / ".join(map(number, own)) if np.isfinite(own[0]) else "–",
                f"{np.mean(f.iterations):.1f} / {f.iterations.max(initial=0):.0f}",
                f"{100.0 * (f.cost / best - 1.0):+.3f} %" if f.whole else "part of a run",
                number(f.violation, 1),
            ]
        )
    return table(header, rows)


def _runs_table(part: Results, figures: dict[str, Figures]) -> str:
    header = ["solver", "first step ms", "its iterations", "not converged", "failed steps"]
    header += ["set-up s"]
    rows: list[list[object]] = []
    for entry in ENTRIES:
        f, record = figures.get(entry.name), part["entries"].get(entry.name)
        if f is not None:
            unconverged = f"{100.0 * f.unconverged:.1f} %" if entry.converges else "fixed budget"
            setups = " / ".join(map(number, f.setups))
            rows.append(
                [entry.title, f.first, f.first_iterations, unconverged, f.failures, setups]
            )
        elif record is not None:
            reason = record["unavailable"].replace("|", "/")
            rows.append([entry.title, f"did not run: {reason}", *[""] * (len(header) - 2)])
    return table(header, rows)


# Bars

#: Bars of speed: what is compared, entries of which the fastest counts, least ratios of the
#: medians and of the p99s on a small task and on a chain; None where there is no bar.
_SPEED = (
    ("CasADi + IPOPT", ("ipopt.vm", "ipopt.gcc"), (5, 3), (10, 5)),
    ("CasADi + fatrop with gcc", ("fatrop.gcc",), (1, 1), (5, 3)),
    ("mpc.pytorch, 1 iteration", ("mpc_pytorch.one",), (50, None), (None, None)),
)


def _bars(figures: AllFigures) -> Iterator[list[object]]:
    for task, found in figures.items():
        if OURS not in found:
            continue
        if task in _LOOPS:
            yield from _speed_bars(task, found)
            yield from _acados_bars(task, found)
        ours = found[OURS]
        peers = [f for f in found.values() if f.judged and f.entry.peer != ours.entry.peer]
        if not peers:
            continue
        over = 100.0 * (ours.cost / min(f.cost for f in peers) - 1.0)
        what = "closed-loop cost over the best peer"
        yield _bar(task, what, "≤ 0.5 %", f"{over:+.3f} %", over <= 0.5)
        least = min(f.violation for f in peers)
        what, wanted = f"worst violation, best peer {number(least, 1)}", f"≤ +{SAME_VIOLATION}"
        met = ours.violation <= least + SAME_VIOLATION
        yield _bar(task, what, wanted, number(ours.violation, 1), met)


def _speed_bars(task: str, figures: dict[str, Figures]) -> Iterator[list[object]]:
    ours = figures[OURS]
    for title, names, small, large in _SPEED:
        rivals = [figures[name] for name in names if name in figures]
        if not rivals:
            continue
        rival = min(rivals, key=lambda f: percentile(f.wall, 50))
        least = large if task.startswith("chain") else small
        for what, q, bar in zip(("median", "p99"), (50, 99), least, strict=True):
            ratio = percentile(rival.wall, q) / percentile(ours.wall, q)
            if bar is not None:
                text = f"times faster than {title}, {what}"
                yield _bar(task, text, f"≥ {bar}", number(ratio), ratio >= bar)


def _acados_bars(task: str, figures: dict[str, Figures]) -> Iterator[list[object]]:
    """Bars against acados' own clock, which leaves out its Python interface."""
    exact, gauss_newton = figures.get("acados.exact"), figures.get("acados.gn")
    rivals = [
        f
        for f in (exact, gauss_newton)
        if f is not None and f.unconverged < MOSTLY and not f.failures
    ]
    if not rivals:
        return
    rival = min(rivals, key=lambda f: percentile(f.own, 50))
    small = (("median", 50, 1.5), ("p99", 99, 1.0))
    for what, q, most in (("median", 50, 2.0),) if task.startswith("chain") else small:
        ratio = percentile(figures[OURS].wall, q) / percentile(rival.own, q)
        text = f"{what} over that of {rival.entry.title}, its own clock"
        yield _bar(task, text, f"≤ {most}", number(ratio), ratio <= most)


def _launch_bars(launch: Results) -> Iterator[list[object]]:
    for cache, limit in (("full", 5.0), ("empty", 10.0)):
        if cache in launch:
            seconds = launch[cache]["first_command_s"]
            what = f"first command after launch, {cache} cache"
            yield _bar("node", what, f"≤ {limit:.0f} s", f"{number(seconds)} s", seconds <= limit)


def _bar(task: str, what: str, wanted: str, reached: str, met: bool) -> list[object]:
    return [task, what, wanted, reached, "yes" if met else "**no**"]


# Plots


def plot(results: Results, images: Path) -> None:
    """Both plots of the page."""
    figures = {task: found for task, found in gather(results).items() if found}
    if figures:
        _plot_times(figures, images)
    _plot_loops(results, images)


def _color(entry: Entry) -> str:
    return plots.COLORS[_PEERS.index(entry.peer) % len(plots.COLORS)]


def _plot_times(figures: AllFigures, images: Path) -> None:
    """Median and p99 of all solvers, one panel a task."""
    most = max(map(len, figures.values()))
    size, rows = (5.5, 0.9 + 0.24 * most), -(-len(figures) // 2)
    with plots.axes(images, "benchmarks_times", 2, rows, size) as panels:
        for at, (name, found) in zip(panels, figures.items(), strict=False):
            ordered = sorted(found.values(), key=lambda f: -percentile(f.wall, 50))
            for i, f in enumerate(ordered):
                median, color = percentile(f.wall, 50), _color(f.entry)
                at.plot([median, percentile(f.wall, 99)], [i, i], color=color, lw=3, alpha=0.5)
                at.plot(median, i, "o", color=color, ms=6)
                if f.entry.peer == "acados":
                    at.plot(percentile(f.own, 50), i, "x", color=color, ms=6)
            at.set_yticks(range(len(ordered)), [f.entry.title for f in ordered])
            at.set(xscale="log", title=TASKS[name]().title)
            at.set_xlabel("ms a step: ● median, line to p99, × acados' own clock")


def _plot_loops(results: Results, images: Path) -> None:
    """First run of each solver that converges: states on the left, inputs on the right."""
    names = [name for name in _LOOPS if name in results["tasks"]]
    if not names:
        return
    with plots.axes(images, "benchmarks_loops", 2, len(names), (5.5, 2.6)) as panels:
        for row, name in enumerate(names):
            task, entries = TASKS[name](), results["tasks"][name]["entries"]
            left, right = panels[2 * row : 2 * row + 2]
            _draw_surroundings(left, task)
            for entry in ENTRIES:
                runs = entries.get(entry.name, {}).get("runs")
                if runs and entry.converges and not entry.steps:
                    inputs = np.array(runs[0]["inputs"])
                    _draw_states(left, task, np.array(runs[0]["states"]), _color(entry))
                    time, share = task.dt * np.arange(len(inputs)), inputs / task.input_bounds[1]
                    right.step(time, share, color=_color(entry), lw=0.9, where="post")
            right.set(xlabel="s", ylabel="inputs, of their upper bound")


def _draw_surroundings(at: Axes, task: Task) -> None:
    if task.name.startswith("bicycle"):
        seen = task.stage_parameters(task.steps, 0)
        path = task.stage_parameters(0, task.steps)["reference"]
        at.plot(path[:, 0], path[:, 1], "k:", lw=1)
        for name in ("parked", "sudden"):
            x, y, radius = seen[name][0]
            turn = np.linspace(0.0, 2.0 * np.pi, 60)
            at.fill(x + radius * np.cos(turn), y + radius * np.sin(turn), color="0.8")
        at.set(xlabel="x, m", ylabel="y, m", title="bicycle: path past both obstacles")
        at.set_aspect("equal")
    elif task.name == "cartpole":
        for limit in (bound[0] for bound in task.state_bounds):
            at.axhline(limit, color="0.7")
        at.set(xlabel="s", ylabel="m, rad", title="cart-pole: cart, rail, pole from upright")
    else:
        at.axhline(task.state_bounds[0][_masses(task) + 1], color="0.7")
        at.set(xlabel="s", ylabel="m", title="chain: distances to the wall at its side")


def _draw_states(at: Axes, task: Task, states: np.ndarray, color: str) -> None:
    time = task.dt * np.arange(len(states))
    if task.name.startswith("bicycle"):
        at.plot(states[:, 0], states[:, 1], color=color, lw=1)
    elif task.name == "cartpole":
        at.plot(time, states[:, 0], color=color, lw=1)
        at.plot(time, states[:, 1], "--", color=color, lw=1)
    else:
        m = _masses(task)
        at.plot(time, states[:, m + 1 : 2 * m + 2], color=color, lw=0.8)


def _masses(task: Task) -> int:
    return (task.nx - 3) // 6
