# SPDX-License-Identifier: Apache-2.0
"""Results of the side-by-side runs as a page: tables, bars, plots. No figure is typed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.peers import ENTRIES, Entry
from benchmarks.study import COLORS, STYLE, number, table
from benchmarks.tasks import TASKS, Task

Results = dict[str, Any]

#: One colour for each peer.
_PEERS = list(dict.fromkeys(entry.peer for entry in ENTRIES))
_TITLES = {entry.name: entry.title for entry in ENTRIES}
#: Worse by less than this counts as no worse, in the units of the states.
_SAME_VIOLATION = 1e-3


class Figures:
    """What all runs of one solver at one task come to.

    Attributes:
        wall: Wall times of all steps but each run's first, in ms.
        cpu: Processor time of the same steps, in ms.
        own: The same by the solver's own clock.
        iterations: Of the same steps.
        first: Median wall time of the first steps, in ms.
        cost: Mean closed-loop cost over the runs.
        violation: Worst of all runs.
        unconverged: Share of the steps that did not converge, first steps included.
        failures: Steps without a command.
        setups: Set-up times in seconds; without and with a cache where it keeps one.
        whole: Whether it ran all steps of each run.
    """

    def __init__(self, entry: Entry, record: Results, steps: int) -> None:
        runs = record["runs"]
        self.entry = entry
        later = [slice(1, None)] * len(runs)
        self.wall = 1e3 * _joined(runs, "wall_s", later)
        self.cpu = 1e3 * _joined(runs, "cpu_s", later)
        self.own = 1e3 * _joined(runs, "solver_s", later)
        self.iterations = _joined(runs, "iterations", later)
        self.first = 1e3 * float(np.nanmedian([run["wall_s"][0] for run in runs]))
        self.first_iterations = int(max(run["iterations"][0] for run in runs))
        self.cost = float(np.mean([run["cost"] for run in runs]))
        self.violation = max(run["violation"] for run in runs)
        converged = np.concatenate([run["converged"] for run in runs])
        self.unconverged = 1.0 - float(np.mean(converged))
        self.failures = sum(run["failures"] for run in runs)
        self.setups = record["setups_s"]
        self.whole = all(len(run["wall_s"]) == steps for run in runs)

    @property
    def median(self) -> float:
        return _quantile(self.wall, 50)

    @property
    def p99(self) -> float:
        return _quantile(self.wall, 99)


def _joined(runs: list[Results], key: str, parts: list[slice]) -> np.ndarray:
    values = [
        np.asarray(run[key], dtype=float)[part] for run, part in zip(runs, parts, strict=True)
    ]
    return np.concatenate(values)


def _quantile(values: np.ndarray, percent: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, percent)) if len(finite) else np.nan


def gathered(results: Results) -> dict[str, dict[str, Figures]]:
    """Task -> entry's name -> figures, of those that ran."""
    found: dict[str, dict[str, Figures]] = {}
    for task, part in results["tasks"].items():
        found[task] = {
            entry.name: Figures(entry, part["entries"][entry.name], part["steps"])
            for entry in ENTRIES
            if part["entries"].get(entry.name, {}).get("runs")
        }
    return found


def reference_cost(figures: dict[str, Figures]) -> float:
    """Lowest closed-loop cost of those that converge and ran the whole way; NaN if none did."""
    costs = [f.cost for f in figures.values() if f.entry.converges and f.whole and not f.failures]
    return min(costs, default=np.nan)


# Tables


def task_table(part: Results, figures: dict[str, Figures]) -> str:
    """All solvers at one task."""
    best = reference_cost(figures)
    header = [
        "solver",
        "median ms",
        "p99 ms",
        "processor median",
        "own clock median",
        "own p99",
        "iterations mean",
        "max",
        "first step ms",
        "its iterations",
        "cost over best",
        "worst violation",
        "not converged",
        "failed steps",
        "set-up s",
    ]
    rows: list[list[object]] = []
    for entry in ENTRIES:
        record = part["entries"].get(entry.name)
        if record is None:
            continue
        f = figures.get(entry.name)
        if f is None:
            reason = record["unavailable"].replace("|", "/")
            rows.append([entry.title, f"did not run: {reason}", *[""] * (len(header) - 2)])
            continue
        cost = f"{100.0 * (f.cost / best - 1.0):+.3f} %" if f.whole else "part of a run"
        rows.append(
            [
                entry.title,
                f.median,
                f.p99,
                _quantile(f.cpu, 50),
                _quantile(f.own, 50),
                _quantile(f.own, 99),
                round(float(np.mean(f.iterations)), 1),
                int(f.iterations.max(initial=0)),
                f.first,
                f.first_iterations,
                cost,
                number(f.violation, 1),
                f"{100.0 * f.unconverged:.1f} %" if entry.converges else "budget",
                f.failures,
                " / ".join(number(s) for s in f.setups),
            ]
        )
    return table(header, rows)


# Bars


def _ours(figures: dict[str, Figures]) -> Figures | None:
    return figures.get("mpc_banded.compiled")


def _fastest(figures: dict[str, Figures], names: Iterable[str]) -> Figures | None:
    found = [figures[name] for name in names if name in figures]
    return min(found, key=lambda f: f.median, default=None)


#: What stands behind the bars of speed.
_LIMIT = (
    "What limits this package on the small tasks is Python: machine code is less than half of an "
    "iteration there, and with a dozen processes taking turns on one core the interpreter "
    "finds its caches cold in every step, which costs it more than solvers that are compiled as a "
    "whole. On the chains it is the arithmetic of the derivatives. "
    "[performance.md](performance.md) has the profile, and how far each part is from what the "
    "core can do."
)


def bars(all_figures: dict[str, dict[str, Figures]], launch: Results | None = None) -> str:
    """The bars that the package set itself, each with what was reached.

    Args:
        all_figures: Of all tasks.
        launch: Results of ``benchmarks.launch``: the node's first command with an empty and a
            full cache; None if it did not run.
    """
    rows: list[list[object]] = []
    for name, figures in all_figures.items():
        ours = _ours(figures)
        if ours is None:
            continue
        chain = name.startswith("chain")
        if name in ("bicycle50", "cartpole", "chain4"):
            rows += _speed_bars(name, ours, figures, chain)
        best = reference_cost(figures)
        peers = [
            f
            for f in figures.values()
            if f.entry.converges and f.whole and not f.failures and f.entry.peer != "mpc_banded"
        ]
        if not peers:
            continue
        best = min(f.cost for f in peers)
        over = ours.cost / best - 1.0
        rows.append(
            _bar(
                name,
                "closed-loop cost, over the best peer",
                "≤ 0.5 %",
                f"{100 * over:+.3f} %",
                over <= 0.005,
            )
        )
        least = min(f.violation for f in peers)
        rows.append(
            _bar(
                name,
                f"worst violation, best peer {number(least, 1)}",
                f"≤ that + {_SAME_VIOLATION}",
                number(ours.violation, 1),
                ours.violation <= least + _SAME_VIOLATION,
            )
        )
    for cache, limit in (("full", 5.0), ("empty", 10.0)) if launch else ():
        seconds = launch[cache]["first_command_s"]
        what = f"first command after launch, {cache} cache"
        rows.append(
            _bar("node", what, f"≤ {limit:.0f} s", f"{number(seconds)} s", seconds <= limit)
        )
    return table(["task", "bar", "wanted", "reached", "met"], rows)


def _bar(task: str, what: str, wanted: str, reached: str, met: bool) -> list[object]:
    return [task, what, wanted, reached, "yes" if met else "**no**"]


def _speed_bars(
    name: str, ours: Figures, figures: dict[str, Figures], chain: bool
) -> list[list[object]]:
    rows = []
    for title, names, median, p99 in (
        ("CasADi + IPOPT", ("ipopt.vm", "ipopt.gcc"), *((10, 5) if chain else (5, 3))),
        ("CasADi + fatrop with gcc", ("fatrop.gcc",), *((5, 3) if chain else (1, 1))),
    ):
        peer = _fastest(figures, names)
        if peer is None:
            continue
        for what, wanted, ratio in (
            ("median", median, peer.median / ours.median),
            ("p99", p99, peer.p99 / ours.p99),
        ):
            rows.append(
                _bar(
                    name,
                    f"times faster than {title}, {what}",
                    f"≥ {wanted}",
                    number(ratio),
                    ratio >= wanted,
                )
            )
    sqp = [
        figures[n]
        for n in ("acados.exact", "acados.gn")
        if n in figures and figures[n].unconverged < 0.05 and not figures[n].failures
    ]
    if sqp:
        peer = min(sqp, key=lambda f: _quantile(f.own, 50))
        ratio, limit = ours.median / _quantile(peer.own, 50), 2.0 if chain else 1.5
        what = f"median in medians of {peer.entry.title}, its own clock"
        rows.append(_bar(name, what, f"≤ {limit}", number(ratio), ratio <= limit))
        if not chain:
            ratio = ours.p99 / _quantile(peer.own, 99)
            what = f"p99 in p99s of {peer.entry.title}, its own clock"
            rows.append(_bar(name, what, "< 1", number(ratio), ratio < 1.0))
    if not chain and "mpc_pytorch.one" in figures:
        ratio = figures["mpc_pytorch.one"].median / ours.median
        rows.append(
            _bar(
                name,
                "times faster than mpc.pytorch, 1 iteration",
                "≥ 50",
                number(ratio),
                ratio >= 50,
            )
        )
    return rows


# Plots


def plot_times(all_figures: dict[str, dict[str, Figures]], file: Path) -> None:
    """Median and p99 of all solvers, one panel a task, on one logarithmic scale."""
    with matplotlib.rc_context(STYLE):
        columns = 2
        count = -(-len(all_figures) // columns)
        most = max(len(f) for f in all_figures.values())
        size = (11.0, count * (0.9 + 0.24 * most))
        picture, grid = plt.subplots(
            count, columns, figsize=size, layout="constrained", squeeze=False
        )
        for at, (name, figures) in zip(grid.flat, all_figures.items(), strict=False):
            ordered = sorted(figures.values(), key=lambda f: -f.median)
            for i, f in enumerate(ordered):
                color = COLORS[_PEERS.index(f.entry.peer) % len(COLORS)]
                at.plot([f.median, f.p99], [i, i], color=color, lw=3, alpha=0.5)
                at.plot(f.median, i, "o", color=color, ms=6)
                own = _quantile(f.own, 50)
                if f.entry.peer == "acados":
                    at.plot(own, i, "x", color=color, ms=6)
            at.set_yticks(range(len(ordered)), [f.entry.title for f in ordered])
            for label, f in zip(at.get_yticklabels(), ordered, strict=True):
                label.set_fontweight("bold" if f.entry.peer == "mpc_banded" else "normal")
            at.set_xscale("log")
            at.set_title(TASKS[name]().title)
            at.set_xlabel("ms a step: ● median, line to p99, × acados' own clock")
        for at in grid.flat[len(all_figures) :]:
            at.set_axis_off()
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(file, dpi=110)
        plt.close(picture)


def plot_iterations(results: Results, file: Path) -> None:
    """Iterations along the first run, of those that converge."""
    with matplotlib.rc_context(STYLE):
        names = list(results["tasks"])
        columns = 2
        count = -(-len(names) // columns)
        picture, grid = plt.subplots(
            count, columns, figsize=(11.0, 2.7 * count), layout="constrained", squeeze=False
        )
        shown = ("mpc_banded.compiled", "acados.exact", "acados.gn", "ipopt.vm", "fatrop.vm")
        for at, name in zip(grid.flat, names, strict=False):
            part = results["tasks"][name]
            for entry in ENTRIES:
                record = part["entries"].get(entry.name)
                if entry.name not in shown or not record or not record.get("runs"):
                    continue
                color = COLORS[shown.index(entry.name)]
                values = record["runs"][0]["iterations"][1:]
                at.plot(
                    np.arange(1, len(values) + 1), values, color=color, lw=1.2, label=entry.title
                )
            at.set_yscale("log")
            at.set_title(TASKS[name]().title)
            at.set_xlabel("step")
            at.set_ylabel("iterations")
        if grid.flat[0].lines:
            grid.flat[0].legend(fontsize=7)
        for at in grid.flat[len(names) :]:
            at.set_axis_off()
        picture.savefig(file, dpi=110)
        plt.close(picture)


def plot_loops(results: Results, file: Path) -> None:
    """What the robots do: the first run of all that converge, and their commands."""
    names = [n for n in ("bicycle50", "cartpole", "chain4") if n in results["tasks"]]
    if not names:
        return
    with matplotlib.rc_context(STYLE):
        picture, grid = plt.subplots(
            len(names), 2, figsize=(11.0, 2.6 * len(names)), layout="constrained", squeeze=False
        )
        shown: dict[str, str] = {}
        for (left, right), name in zip(grid, names, strict=True):
            task, part = TASKS[name](), results["tasks"][name]
            for entry in ENTRIES:
                record = part["entries"].get(entry.name)
                if not entry.converges or entry.steps or not record or not record.get("runs"):
                    continue
                run = record["runs"][0]
                color = COLORS[_PEERS.index(entry.peer) % len(COLORS)]
                shown[entry.peer] = color
                states, inputs = np.array(run["states"]), np.array(run["inputs"])
                _draw_states(left, task, states, color)
                time = task.dt * np.arange(len(inputs))
                right.step(time, inputs / task.input_bounds[1], color=color, lw=0.9, where="post")
            right.set_ylabel("inputs, of their upper bound")
            right.set_xlabel("s")
        lines = [plt.Line2D([], [], color=color) for color in shown.values()]
        picture.legend(lines, list(shown), ncols=len(shown), loc="outside upper center")
        picture.savefig(file, dpi=110)
        plt.close(picture)


def _draw_states(at: Any, task: Task, states: np.ndarray, color: str) -> None:
    time = task.dt * np.arange(len(states))
    if task.name.startswith("bicycle"):
        if not at.lines:
            p = task.stage_parameters(task.steps, 0)
            path = task.stage_parameters(0, task.steps)["reference"]
            at.plot(path[:, 0], path[:, 1], "k:", lw=1)
            for x, y, radius in (p["parked"][0], p["sudden"][0]):
                at.add_patch(plt.Circle((x, y), radius, color="0.8"))
            at.set_aspect("equal")
            at.set(xlabel="x, m", ylabel="y, m", title="bicycle: path past both obstacles")
        at.plot(states[:, 0], states[:, 1], color=color, lw=1)
    elif task.name == "cartpole":
        if not at.lines:
            at.axhline(0.8, color="0.7")
            at.axhline(-0.8, color="0.7")
            at.set(xlabel="s", ylabel="m, rad", title="cart-pole: cart, rail, pole from upright")
        at.plot(time, states[:, 0], color=color, lw=1)
        at.plot(time, states[:, 1], "--", color=color, lw=1)
    else:
        m = (task.nx - 3) // 6
        if not at.lines:
            at.axhline(task.state_bounds[0][m + 1], color="0.7")
            at.set(xlabel="s", ylabel="m", title="chain: distances to the wall at its side")
        at.plot(time, states[:, m + 1 : 2 * m + 2], color=color, lw=0.8)


# The page


def write(results: Results, page: Path) -> None:
    """docs/benchmarks.md and its plots."""
    figures = gathered(results)
    images = page.parent / "images"
    plot_times({name: f for name, f in figures.items() if f}, images / "benchmarks_times.png")
    plot_iterations(results, images / "benchmarks_iterations.png")
    plot_loops(results, images / "benchmarks_loops.png")
    machine = results["machine"]
    lines = [
        "# Side by side with other solvers",
        "",
        "Written by `make bench` from `build/bench/results.json`; do not edit. Each solver drives "
        "the same simulated robots in closed loop. All run on one core, in processes of their "
        "own, and take turns step by step in an order that changes, so what disturbs the machine "
        f"disturbs all. Runs of each task: {results['rounds']}; they differ in initial state and "
        "measurement noise, which are the same for all solvers.",
        "",
        f"Machine: {machine['cpu']}, core {results['core']} of {machine['cores']}, "
        f"{machine['system']}; load average at the start {machine['load']:.1f}. "
        f"Versions: {', '.join(machine['versions'])}.",
        "",
        *(_warning(machine)),
        "## Bars",
        "",
        "Ratios of wall time of a step, *mpc_banded, compiled* with a warm cache against the peer "
        "in the same run. Of IPOPT the faster of the two ways counts, of acados' SQP the faster "
        "Hessian that converged in at least 95 % of the steps. Costs and violations are compared "
        "with the best peer that converges. The bars on one Hessian and on growth with the "
        "horizon are judged in [banded_hessian.md](banded_hessian.md).",
        "",
        bars(figures, results.get("launch")),
        "",
        _LIMIT,
        "",
        "## Time of a step",
        "",
        "![Median and p99 of the time of a step](images/benchmarks_times.png)",
        "",
        "Wall time as the caller sees it, from the state going in to the command coming out: "
        "shifting the warm start and Python are part of it. *Processor* is the time that the core "
        "really gave to it, which a busy machine does not change much; *own clock* is what the "
        "solver says of itself. The first step of a run starts cold and stands in columns of its "
        "own; set-up is everything before it, code generation and compiling included (mpc_banded, "
        "compiled: with an empty cache / with a full one). *Cost over best* is the closed-loop "
        "cost over that of the best solver that converges; fixed budgets can come out below, "
        "because the simulated robot differs from the model. *Violation* is the worst one of the "
        "softened constraints, in their units, by the simulated robot.",
        "",
    ]
    for name, part in results["tasks"].items():
        if part["entries"]:
            lines += [f"### {part['title']}", "", task_table(part, figures[name]), ""]
    lines += [
        "## Iterations",
        "",
        "![Iterations along one run](images/benchmarks_iterations.png)",
        "",
        "## What the robots do",
        "",
        "![Paths and inputs of all solvers that converge](images/benchmarks_loops.png)",
        "",
        _TASKS_TEXT,
        "",
        "## Settings",
        "",
        table(
            ["solver", "settings"],
            [[entry.title, entry.note] for entry in ENTRIES],
        ).replace("---:", "---"),
        "",
        _GENERAL_TEXT,
        "",
    ]
    page.write_text("\n".join(lines))


def _warning(machine: Results) -> list[str]:
    """The page says itself when it was made on a busy machine."""
    if machine["load"] < 1.2:
        return []
    return [
        "**Other programs ran on this machine meanwhile: compare within a table, and do not take "
        "the milliseconds at face value.**",
        "",
    ]


_TASKS_TEXT = """\
## Tasks

All are written once, in `benchmarks/tasks.py`, and evaluated by torch, CasADi and numpy alike: \
no solver has a problem of its own. Discrete dynamics are classical Runge-Kutta steps; limits \
on states are softened by a linear and a quadratic penalty (mpc.pytorch: see its \
settings). The simulated robots integrate ten times finer, their actuators deliver 95 % of \
the command, and the measured states are noisy, so that no warm start is trivially right. The \
closed-loop cost is the stage cost of the true states and of the commands, penalties included.

- **Bicycle**: kinematic bicycle at 7 m/s, lane change of 3.5 m past a parked car and a second \
obstacle that is seen only after 3.2 s. It starts too slow (acceleration saturates) and steers \
hard past the second one (steering saturates). nx 4, nu 2, 50 ms, 150 steps.
- **Cart-pole**: swing-up from hanging; force of 12 N at most and a rail of ±0.8 m, both reached. \
nx 4, nu 1, 50 ms, 100 steps.
- **Chain**: M masses on springs between a wall and a driven end, in space (Wirsching, Bock and \
Diehl 2006, with the wall at the side of later papers): bring it to rest after the end was \
dragged away for a second. nx 6M + 3, nu 3, 0.2 s, 2 Runge-Kutta steps an interval, 40 steps."""

_GENERAL_TEXT = """\
All tolerances are 1e-6, all warm starts are shifted by one stage, each solver has one thread. \
What the tables call iterations are the solver's own: Newton, interior point or quadratic \
programs; they do not cost the same. Solvers with a fixed budget begin each run with up to 100 \
solves of the first step.

Not compared: crocoddyl. Action models in Python would mostly measure their Python, and models in \
C++ would have to be written against its headers for each task."""
