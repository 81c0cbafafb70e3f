# SPDX-License-Identifier: Apache-2.0
"""The way from one backward pass per probe to machine code, each stage timed beside the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import study
from benchmarks.machine_code import (
    PROBED,
    WRITTEN_OUT,
    Build,
    Moment,
    build,
    fastest,
    repeated,
)
from benchmarks.study import Chapter, number
from benchmarks.tasks import Task
from mpc_banded.codegen.build import FLAGS
from mpc_banded.codegen.cache import LibraryCache
from mpc_banded.ocp import banded
from mpc_banded.ocp.comb import Comb, hessian_vector_products
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.newton import Point
from mpc_banded.ocp.transcription import merit

PENALTY = 100.0
#: States up to which second derivatives can be written out; with more, compilers take minutes.
SMALL_NX = 6

SEQUENTIAL = "direct comb, one backward pass per probe (the seed's way)"
BATCHED = "direct comb, one batched backward pass"
HALF = "comb by substitution, one batched backward pass"
COMBS = "direct comb and row combs, batched: all of the system"
STAGEWISE = "stage by stage, a replica for each probe, eager: all"
OUT = "compiled, second derivatives written out: all"
LOOPED = "compiled, probes in a loop: all"
OUT_O3 = "compiled, written out, with -O3: all"
OUT_FAST = "compiled, written out, with -O3 and inexact arithmetic: all"
#: Those that bring the matrix alone, without Jacobians, barrier and gradients apart.
ALONE = (SEQUENTIAL, BATCHED, HALF)
#: What -ffast-math stands for. By its own name it would link code that has the whole process
#: take subnormal numbers for zero.
_FAST = (
    *("-ffinite-math-only", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
    *("-fno-trapping-math", "-fno-math-errno"),
)

_O3 = ("-O3", *FLAGS[2:])


@dataclass(frozen=True)
class Figures:
    """Of the road, by (way, name of the task).

    Attributes:
        tasks: In the order of the table.
        builds: Name of a task -> its kernels as the package compiles them.
        chosen: Name of a task -> the way that these are.
        sizes: Name of a task -> (n, half bandwidth).
        seconds: Least processor time of one evaluation.
        errors: Largest difference from the first way, relative to the largest entry.
        compiling: (tracing, compiler) in seconds.
    """

    tasks: tuple[Task, ...]
    builds: dict[str, Build]
    chosen: dict[str, str]
    sizes: dict[str, tuple[int, int]]
    seconds: dict[tuple[str, str], float]
    errors: dict[tuple[str, str], float]
    compiling: dict[tuple[str, str], tuple[float, float]]


def moment(derivatives: EagerEvaluator, task: Task) -> Moment:
    """A trajectory inside its bounds, with multipliers that let every curvature show."""
    t, random = derivatives.transcription, np.random.default_rng(0)
    parameters = task.stage_parameters(0, task.horizon)
    data = t.stage_data(task.initial_state, parameters, t.problem.weights)
    inputs = 0.1 * random.uniform(*task.input_bounds, (task.horizon, task.nu))
    z = t.pack(t.rollout(inputs, data))
    duals = derivatives.central_duals(z, 0.1, data)
    multipliers = random.standard_normal((task.horizon, task.nx))
    return Moment(Point(z, multipliers, duals, 0.1), data, PENALTY)


class Ways:
    """Every way to the Newton matrix of a task, at one moment.

    Args:
        of: Its compiled derivatives as the package has them.
    """

    def __init__(self, of: Build) -> None:
        self.transcription = of.eager.transcription
        self.stagewise = of.eager
        self.combs = EagerEvaluator(self.transcription, recovery="direct")
        self.moment = at = moment(of.eager, of.task)
        system = of.eager.system(at.point, at.data, PENALTY)
        barrier = of.eager.barrier
        duals, distances, rows = map(
            torch.from_numpy, (system.point.duals, system.distances, system.row_jacobian)
        )
        self.of_inequalities = barrier.of_inequalities(duals)
        self.curvature = barrier.curvature(rows, distances, duals).numpy()
        # Shifting the multipliers takes out the curvature that the penalty of a nonzero defect
        # adds: all ways have the same aim.
        self.multipliers = torch.from_numpy(at.point.multipliers - PENALTY * system.defects)
        n, b = self.transcription.n, self.transcription.half_bandwidth
        self.direct, self.half = Comb(n, b), Comb(n, b, "substitution")

    def _gradient(self) -> tuple[Tensor, Tensor]:
        point = torch.tensor(self.moment.point.z, requires_grad=True)
        terms = self.transcription.terms(point, self.moment.data)
        penalty = torch.tensor(PENALTY, dtype=torch.float64)
        value = merit(terms, self.multipliers, penalty, self.of_inequalities)
        (gradient,) = torch.autograd.grad(value, point, create_graph=True)
        return gradient, point

    def sequential(self) -> np.ndarray:
        """As the seed had it: the gradient times a probe, and backward, probe by probe."""
        gradient, point = self._gradient()
        products = [
            torch.autograd.grad(gradient @ probe, point, retain_graph=True)[0]
            for probe in self.direct.probes
        ]
        return self.direct.decompress(torch.stack(products))

    def batched(self, comb: Comb) -> np.ndarray:
        gradient, point = self._gradient()
        return comb.decompress(hessian_vector_products(gradient, point, comb.probes))

    def system(self, derivatives: EagerEvaluator) -> np.ndarray:
        at = self.moment
        return derivatives.system(at.point, at.data, PENALTY).bands

    def with_barrier(self, bands: np.ndarray) -> np.ndarray:
        """The bands of the package's system from those of the merit function alone."""
        result = bands.copy(order="K")
        banded.add_blocks(result, self.curvature)
        return result

    def all(self, compiled: Mapping[str, Build]) -> dict[str, Callable[[], np.ndarray]]:
        ways: dict[str, Callable[[], np.ndarray]] = {
            SEQUENTIAL: self.sequential,
            BATCHED: lambda: self.batched(self.direct),
            HALF: lambda: self.batched(self.half),
            COMBS: lambda: self.system(self.combs),
            STAGEWISE: lambda: self.system(self.stagewise),
        }
        for name, of in compiled.items():
            ways[name] = lambda derivatives=of.derivatives: self.system(derivatives)
        return ways


def _builds(task: Task, cache: LibraryCache) -> dict[str, Build]:
    """A small problem both ways and with other flags, a large one only with probes."""
    if task.nx > SMALL_NX:
        return {LOOPED: build(task, cache, PROBED)}
    return {
        OUT: build(task, cache, WRITTEN_OUT),
        LOOPED: build(task, cache, PROBED),
        OUT_O3: build(task, cache, WRITTEN_OUT, _O3),
        OUT_FAST: build(task, cache, WRITTEN_OUT, (*_O3, *_FAST)),
    }


def measure(tasks: Sequence[Task], cache: LibraryCache, quick: bool, rounds: int = 15) -> Figures:
    """Time every way at every task.

    Args:
        tasks: In the order of the table; the first one is small.
        cache: An empty one.
        quick: Few rounds.
        rounds: Of the small tasks; a large one gets two.
    """
    found = Figures(tuple(tasks), {}, {}, {}, {}, {}, {})
    for task in tasks:
        builds = _builds(task, cache)
        found.builds[task.name] = of = build(task, cache)
        same = (name for name, made in builds.items() if made.source == of.source)
        found.chosen[task.name] = next(same)
        for name, made in builds.items():
            found.compiling[name, task.name] = made.trace_s, made.compile_s
        t = of.eager.transcription
        found.sizes[task.name] = t.n, t.half_bandwidth
        ways = Ways(of)
        every = ways.all(builds)
        bands = {name: way() for name, way in every.items()}
        bands |= {name: ways.with_barrier(bands[name]) for name in ALONE}
        size = np.abs(bands[SEQUENTIAL]).max()
        for name, matrix in bands.items():
            error = np.abs(matrix - bands[SEQUENTIAL]).max() / size
            found.errors[name, task.name] = float(error)
        enough = 2 if quick or task.nx > SMALL_NX else rounds
        times = fastest({name: repeated(way) for name, way in every.items()}, enough)
        found.seconds.update({(name, task.name): seconds for name, seconds in times.items()})
    return found


def write(figures: Figures, images: Path) -> Chapter:
    """The table of the road."""
    _plot(figures, images)
    ways = list(dict.fromkeys(name for name, _ in figures.seconds))
    header = ["way"]
    for task in figures.tasks:
        header += [f"{task.title}: ms", "times faster", "trace + compile, s"]
    rows = []
    for way in ways:
        row: list[object] = [way]
        for task in figures.tasks:
            seconds = figures.seconds.get((way, task.name), np.nan)
            compiling = figures.compiling.get((way, task.name))
            row += [1e3 * seconds, figures.seconds[SEQUENTIAL, task.name] / seconds]
            row.append("–" if compiling is None else " + ".join(map(number, compiling)))
        rows.append(row)
    first = figures.tasks[0]
    s = {way: figures.seconds[way, first.name] for way in ways}

    def gain(before: str, after: str) -> str:
        """How many times faster, on each task."""
        return "; ".join(
            f"{number(figures.seconds[before, task.name] / figures.seconds[after, task.name])} "
            f"({task.title})"
            for task in figures.tasks
            if (after, task.name) in figures.seconds
        )

    sizes = "; ".join(
        f"{task.title}: n = {number(n)}, half bandwidth {b}, {2 * b + 1} direct probes"
        for task in figures.tasks
        for n, b in [figures.sizes[task.name]]
    )
    former = "former" if figures.chosen[first.name] == OUT else "latter"
    compiler = {way: figures.compiling[way, first.name][1] for way in (OUT, OUT_O3)}
    text = f"""
One evaluation of the Newton matrix, at one point for all. Ways with "all" bring the whole Newton
system along: values, defects, three gradients, both Jacobians, multipliers made safe and the
barrier's curvature; the others bring the matrix alone. {sizes}. Whatever the way, the matrix is
the same to {number(max(figures.errors.values()))} of its largest entry.

{study.table(header, rows)}

{study.figure("performance_road", "Time of one Newton matrix by each way")}

What each stage gave, in times faster:

- **Batching the probes**, one backward pass for all instead of one for each:
{gain(SEQUENTIAL, BATCHED)}. What an eager operation costs is its dispatch, not its size.
- **Half the probes, by substitution**: {gain(BATCHED, HALF)}, over the direct comb in the same
pass, and paid with the rounding errors of the substitution.
- **Stage by stage**: {gain(COMBS, STAGEWISE)}, over batched combs that bring the same system. Each
interval has copies of its own of the variables, so blocks do not overlap and a probe for each
variable, defect and inequality of one interval is enough.
- **Machine code for one stage in a loop over stages**: {gain(STAGEWISE, LOOPED)}, over eager.
Nothing is dispatched, and zeros of the structure cost nothing.
- **Second derivatives written out or in a loop**, on the {first.title}: entry by entry they take
{number(1e6 * s[OUT])} µs a call, as products with probes in a vectorised loop
{number(1e6 * s[LOOPED])} µs. Written-out code grows with the square of the number of states, so
large problems are probed; here the package takes the {former}.
- **Flags**, on the {first.title}: -O3 takes {number(s[OUT_O3] / s[OUT])} of the time of "-O1
-ftree-vectorize" and {number(compiler[OUT_O3] / compiler[OUT])} times its compilation. With
the parts of -ffast-math on top it is {number(s[OUT_FAST] / s[OUT])} of the time; dropped in any
case, because NaN and infinity must reach the checks of the solver.

Tried during development and dropped. These figures were measured once, then, and not by this
command:

- **AOTInductor over a trace by make_fx** of the batched double backward: 0.52 ms a call after
47 s of compilation, on a bicycle for which scalar code takes 0.03 ms after 1 s. It compiles loops
over tensors of a few entries, and keeps their zeros.
- **make_fx itself**: 4.3 s for a trace that takes 0.3 s on node numbers.
- **Second derivatives of the chain with 4 masses, rk4, written out entry by entry**: 5 minutes of
compilation, and 2.5 times slower than probes in a loop.
- **Barrier terms in numpy, outside of the kernel**: some 220 numpy calls and about 0.25 ms an
iteration; in the kernel they are a part of the system's microseconds.
- **LAPACK on the band, and a call for each product and barrier term**: an iteration of the bicycle
took 228 µs, of the chain with 4 masses 1 976 µs. Factorisation by stages, sweeps, slopes and duals
in one call: 125 µs and 1 060 µs. On the bicycle it is mostly Python that is no longer run, on the
chain vectors in place of scalars.
- **A pass of its own for the defects' Jacobian, where derivatives are probed**: 163 µs of the
chain's 787 µs a system; as derivatives of the Hessian's products by the multipliers its columns
cost next to nothing.
- **rho J'J one row at a time**: 240 µs of the same; four rows at a time, 90 µs.
"""
    return Chapter("The road to a Newton matrix", text.strip(), ())


def _plot(figures: Figures, images: Path) -> None:
    with study.axes(images, "performance_road", 1) as (at,):
        at.figure.set_size_inches(8.0, 3.4)
        ways = list(dict.fromkeys(name for name, _ in figures.seconds))[::-1]
        for k, task in enumerate(figures.tasks):
            there = [i for i, way in enumerate(ways) if (way, task.name) in figures.seconds]
            times = [1e3 * figures.seconds[ways[i], task.name] for i in there]
            at.plot(times, there, study.MARKERS[k], color=study.COLORS[k], ms=7, label=task.title)
        at.set(xscale="log", xlabel="ms for one Newton matrix")
        at.set_yticks(range(len(ways)), ways, fontsize=8)
        at.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
