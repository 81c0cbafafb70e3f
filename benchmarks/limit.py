# SPDX-License-Identifier: Apache-2.0
"""How far the kernels and the whole loop are from what the core can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import study
from benchmarks.machine_code import (
    ADDITIONS,
    DIVISIONS,
    FACTOR,
    OTHERS,
    PRODUCTS,
    ROOTS,
    SOLVE,
    WIDE_DIVISION,
    WIDE_ROOT,
    Build,
    Core,
    operations,
)
from benchmarks.shares import Loop
from benchmarks.study import Chapter, number

#: Bytes that no cache holds.
_MEMORY = 1 << 27


@dataclass(frozen=True)
class Peaks:
    """What the core does at best.

    Attributes:
        scalar, vector: Floating-point operations per second, in multiply-adds.
        doubles: Doubles of one vector.
        cost_s: Seconds of one division, square root or function of the C library among
            independent ones, and of the first two in vectors.
        memory: Bytes per second copied in memory, read and written.
        cached: The same in blocks as large as a kernel's data: size -> bytes per second.
    """

    scalar: float
    vector: float
    doubles: int
    cost_s: dict[str, float]
    memory: float
    cached: dict[int, float]


@dataclass(frozen=True)
class Work:
    """What one routine does in one call.

    Attributes:
        name: Of the kernel.
        counts: Operations by kind.
        bytes: Of its arrays, each once.
        seconds: Measured, of one call.
        called: Calls for each iteration.
    """

    name: str
    counts: dict[str, int]
    bytes: int
    seconds: float
    called: float

    @property
    def flops(self) -> int:
        """Additions, products, divisions and roots; functions of the C library are apart."""
        return sum(self.counts.get(kind, 0) for kind in (ADDITIONS, PRODUCTS, DIVISIONS, ROOTS))

    def arithmetic_s(self, peak: float) -> float:
        """Additions and products at a number of operations per second."""
        return (self.counts.get(ADDITIONS, 0) + self.counts.get(PRODUCTS, 0)) / peak

    def divisions_s(self, peaks: Peaks, wide: bool) -> float:
        """Divisions and roots, one by one or in vectors."""
        kinds = (WIDE_DIVISION, WIDE_ROOT) if wide else (DIVISIONS, ROOTS)
        counts = (self.counts.get(kind, 0) for kind in (DIVISIONS, ROOTS))
        return sum(peaks.cost_s[kind] * n for kind, n in zip(kinds, counts, strict=True))

    def functions(self) -> dict[str, int]:
        """Calls of the C library."""
        own = (ADDITIONS, PRODUCTS, DIVISIONS, ROOTS, OTHERS)
        return {kind: n for kind, n in self.counts.items() if kind not in own}

    def functions_s(self, peaks: Peaks) -> float:
        """Calls of the C library, one by one."""
        return sum(peaks.cost_s[kind] * n for kind, n in self.functions().items())

    def moved_s(self, peaks: Peaks) -> float:
        """Its arrays through the cache once."""
        return self.bytes / peaks.cached[self.bytes]

    def limit_s(self, peaks: Peaks, wide: bool) -> float:
        """No call takes less: the busiest of the units that can work at the same time.

        The divider works beside the units that multiply and add, which functions of the C library
        need, too.
        """
        peak = peaks.vector if wide else peaks.scalar
        busy = self.arithmetic_s(peak) + self.functions_s(peaks)
        return max(busy, self.divisions_s(peaks, wide), self.moved_s(peaks))


@dataclass(frozen=True)
class Figures:
    """Of the core and of each loop's routines."""

    peaks: Peaks
    loops: tuple[Loop, ...]
    work: tuple[tuple[Work, ...], ...]


def measure(
    builds: Sequence[Build], loops: Sequence[Loop], core: Core, folder: Path, quick: bool
) -> Figures:
    """Count the operations of every routine, and time the core.

    Args:
        builds: Of the loops' tasks, in their order.
        loops: Measured already.
        core: That they ran on.
        folder: For libraries.
        quick: Few rounds.
    """
    rounds = 3 if quick else 20
    work = []
    for of, loop in zip(builds, loops, strict=True):
        given = {name: call.arrays for name, call in loop.kernels.items()}
        counts = operations(of.source, given, folder)
        sizes = {name: call.bytes for name, call in loop.kernels.items()}
        work.append(
            tuple(
                Work(
                    name,
                    counts[name],
                    sizes[name],
                    loop.from_c_s[name],
                    loop.called[name] / float(loop.iterations.sum()),
                )
                for name in loop.from_c_s
            )
        )
    every = [w for each in work for w in each]
    functions = dict.fromkeys(kind for w in every for kind in w.functions())
    kinds = (DIVISIONS, ROOTS, WIDE_DIVISION, WIDE_ROOT, *functions)
    scalar, vector = core.peaks(rounds)
    peaks = Peaks(
        scalar,
        vector,
        core.doubles,
        core.costs(kinds, folder, rounds),
        core.copied(_MEMORY, 3),
        {size: core.copied(size, rounds) for size in {w.bytes for w in every}},
    )
    return Figures(peaks, tuple(loops), tuple(work))


def _row(loop: Loop, w: Work, peaks: Peaks) -> list[object]:
    return [
        f"{loop.task.title}: {w.name}",
        w.flops,
        w.counts.get(DIVISIONS, 0) + w.counts.get(ROOTS, 0),
        sum(w.functions().values()),
        w.bytes / 1024,
        1e6 * w.arithmetic_s(peaks.scalar),
        1e6 * w.divisions_s(peaks, wide=False),
        1e6 * w.functions_s(peaks),
        1e6 * w.moved_s(peaks),
        1e6 * w.seconds,
        100.0 * w.flops / w.seconds / peaks.vector,
    ]


@dataclass(frozen=True)
class _Sum:
    """Of all that an iteration calls, in seconds."""

    code: float
    scalar: float
    vector: float
    flops: float
    total: float


def _sum(figures: Figures, k: int) -> _Sum:
    peaks, work = figures.peaks, figures.work[k]
    return _Sum(
        sum(w.called * w.seconds for w in work),
        sum(w.called * w.limit_s(peaks, wide=False) for w in work),
        sum(w.called * w.limit_s(peaks, wide=True) for w in work),
        sum(w.called * w.flops for w in work),
        figures.loops[k].per_iteration,
    )


def write(figures: Figures, images: Path) -> Chapter:
    """Tables, a plot and what follows from them."""
    peaks, loops = figures.peaks, figures.loops
    _plot(figures, images)
    costs = [[kind, 1e9 * seconds] for kind, seconds in peaks.cost_s.items()]
    sums = [_sum(figures, k) for k in range(len(loops))]
    whole = [
        [
            loop.task.title,
            number(1e6 * s.total, 3),
            1e6 * s.code,
            1e6 * s.scalar,
            1e6 * s.vector,
            1e6 * s.flops / peaks.vector,
            100.0 * s.code / s.total,
            100.0 * s.vector / s.total,
            100.0 * s.flops / s.total / peaks.vector,
        ]
        for loop, s in zip(loops, sums, strict=True)
    ]
    text = f"""
The core at its best, measured beside the loops: {number(peaks.scalar / 1e9, 3)} GFLOP/s in
scalar multiply-adds, {number(peaks.vector / 1e9, 3)} GFLOP/s in vectors of {peaks.doubles}
doubles; {number(peaks.memory / 1e9)} GB/s copied in memory, {
        number(min(peaks.cached.values()) / 1e9)
    }
to {number(max(peaks.cached.values()) / 1e9)} GB/s where blocks are as large as the arrays of the
kernels (read and written). One operation among independent ones, in ns:

{study.table(["operation", "ns"], costs)}

What each routine does in one call. Operations are counted by running its source with numbers
that count; *bytes* are its arrays, each once. The columns *alone* say how
long additions and products would take at the scalar peak, divisions and roots one by one,
functions of the C library one by one, and the arrays through the cache. They overlap in time,
and compilers join what they see twice, so a call can take less than their sum.

{
        study.table(
            [
                *("routine", "operations", "divisions, roots", "functions", "KiB"),
                *("arithmetic alone, µs", "divisions alone, µs", "functions alone, µs"),
                *("bytes alone, µs", "measured, µs", "% of the vector peak"),
            ],
            [_row(x, w, peaks) for x, each in zip(loops, figures.work, strict=True) for w in each],
        )
    }

{study.figure("performance_limit", "Measured time of the routines against their limits")}

A whole iteration, in µs. The *scalar limit* takes for each routine the busiest of what works at
the same time: arithmetic and functions, or divisions, or bytes. The *vector limit* is the same
where arithmetic and divisions fill the vectors, which for the kernels means several stages at a
time; functions stay scalar. The factorisation, the sweeps and probes in a loop fill vectors within
one stage already, and can pass the scalar limit. *Arithmetic at peak* takes every operation at
the vector peak and leaves functions out.

{
        study.table(
            [
                *("task", "measured", "machine code", "scalar limit", "vector limit"),
                *("arithmetic at peak", "machine code, %", "vector limit, %", "of peak, %"),
            ],
            whole,
        )
    }

{_conclusions(figures, sums)}

{_beside_lapack(loops)}
"""
    return Chapter("The limit", text.strip(), ())


def _conclusions(figures: Figures, sums: Sequence[_Sum]) -> str:
    peaks, lines = figures.peaks, []
    for loop, s, work in zip(figures.loops, sums, figures.work, strict=True):
        system = next(w for w in work if w.name == "system")
        alone = {
            "additions and products": system.arithmetic_s(peaks.scalar),
            "divisions and roots": system.divisions_s(peaks, wide=False),
            "functions of the C library": system.functions_s(peaks),
            "moving bytes": system.moved_s(peaks),
        }
        first, second = sorted(alone, key=alone.__getitem__, reverse=True)[:2]
        python = s.total - s.code
        lines.append(
            f"- **{loop.task.title}**: most of an iteration is "
            f"{'Python and NumPy' if python > s.code else 'machine code'}. Machine code takes "
            f"{number(1e6 * s.code)} µs, what is around it {number(1e6 * python)} µs "
            f"({number(100.0 * python / s.total)} %). The system kernel takes "
            f"{number(1e6 * system.seconds)} µs a call, "
            f"{number(system.seconds / system.limit_s(peaks, wide=False))} times its scalar limit "
            f"and {number(system.seconds / system.limit_s(peaks, wide=True))} times its vector "
            f"limit; alone, {first} would take {number(1e6 * alone[first])} µs of it, {second} "
            f"{number(1e6 * alone[second])} µs."
        )
    gains = "\n".join(
        f"- **{loop.task.title}**: {number(s.total / (s.total - s.code + s.vector))} times with "
        f"all machine code at its vector limit, {number(s.total / s.code)} times with nothing "
        f"around it."
        for loop, s in zip(figures.loops, sums, strict=True)
    )
    every = [w for work in figures.work for w in work]
    moved = max(every, key=lambda w: w.moved_s(peaks) / w.seconds)
    moving = 100.0 * moved.moved_s(peaks) / moved.seconds
    of_system = max(100.0 * w.moved_s(peaks) / w.seconds for w in every if w.name == "system")
    largest = max(every, key=lambda w: w.bytes)
    return f"""\
How far the loop stands from the limit, and why:

{chr(10).join(lines)}

Bytes: the largest arrays of one call are {number(largest.bytes / 1024)} KiB ({largest.name}).
They count most for {moved.name}, where moving its arrays alone would take {number(moving)} % of
the time; for the system kernels that is at most {number(of_system)} %.

How much faster an iteration could become says what would be next:

{gains}

Where there is more to gain around the machine code, what is left is one call for a whole solve,
which would need the loop a second time in C; as it is, the loop is written once, and drives eager
derivatives and compiled ones alike. Where there is more to gain in it, the kernels have to work on
several stages at a time, with stages along the vectors, one division for each divisor, and a
vectorised library for sines and logarithms."""


def _beside_lapack(loops: Sequence[Loop]) -> str:
    lines = []
    for loop in loops:
        ours = [loop.from_c_s[name] for name in ("newton_factor", "newton_sweep")]
        theirs = [loop.lapack_s[name] for name in (FACTOR, SOLVE)]
        lines.append(
            f"- **{loop.task.title}**: factor {number(1e6 * ours[0])} µs, dpbtrf "
            f"{number(1e6 * theirs[0])} µs; sweep {number(1e6 * ours[1])} µs with products and "
            f"slopes, dpbtrs {number(1e6 * theirs[1])} µs."
        )
    return "\n".join(
        [
            "LAPACK sees a band where the factorisation sees stages, whose columns end where the",
            "next stage does, and have their size at compile time:",
            "",
            *lines,
        ]
    )


def _plot(figures: Figures, images: Path) -> None:
    peaks = figures.peaks
    with study.axes(images, "performance_limit", len(figures.loops)) as panels:
        for at, loop, work in zip(panels, figures.loops, figures.work, strict=True):
            rows = range(len(work))[::-1]
            times = [1e6 * w.seconds for w in work]
            at.barh(rows, times, color=study.COLORS[5], height=0.6, label="measured")
            limits = ((False, "scalar limit", 1), (True, "vector limit", 3))
            for wide, label, color in limits:
                there = [1e6 * w.limit_s(peaks, wide) for w in work]
                at.plot(there, rows, study.MARKERS[color], color=study.COLORS[color], label=label)
            at.set_yticks(rows, [w.name for w in work])
            at.set(xscale="log", xlabel="µs for one call")
            at.set_title(loop.task.title)
        panels[0].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
