# SPDX-License-Identifier: Apache-2.0
"""Where the time of a closed loop goes: the named steps of each iteration, and what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

import mpc_banded as mb
from benchmarks import study
from benchmarks.harness import PLANT_SUBSTEPS, disturbances
from benchmarks.machine_code import (
    Build,
    Call,
    Core,
    Moment,
    calls,
    fastest,
    lapack,
    repeated,
)
from benchmarks.peers.mpc_banded import problem
from benchmarks.peers.peer import TOLERANCE
from benchmarks.study import Chapter, number
from benchmarks.tasks import NUMPY, Task
from mpc_banded.codegen.cache import LibraryCache

#: The solver's steps: method -> name on the page. The step begins with a factorisation, in one
#: call: its share is that of its machine code.
STEPS = {"_evaluate": "evaluate", "_step": "step", "_line_search": "line search"}
FACTOR, SOLVER, CONTROLLER = "factor", "rest of the solver", "rest of the controller"
PARTS = ("evaluate", FACTOR, "step", "line search", SOLVER, CONTROLLER)
#: In which part the loop calls what.
CALLED = {
    "evaluate": ("system",),
    FACTOR: ("newton_factor",),
    "step": ("newton_sweep", "newton_bounds"),
    "line search": ("merit",),
}


@dataclass(frozen=True)
class Loop:
    """One closed loop, each step as the least disturbed round had it.

    Attributes:
        task: What was controlled.
        half_bandwidth: Of its Newton matrix.
        iterations: Of each control step, (steps,).
        total_s: Processor time of each control step, (steps,).
        parts_s: The same by PARTS, (steps,) each; they add up to the total.
        called: Kernel -> number of calls in the whole run.
        moment: The last point at which derivatives were taken.
        kernels: The kernels with the arguments that they have there.
        from_c_s: Kernel -> seconds of one call from C.
        lapack_s: LAPACK's routine, on the same band -> seconds of one call of its bare wrapper.
        empty_s: Seconds of a call by ctypes, addresses at hand, of a kernel that does nothing.
        system_s: Seconds of Evaluator.system, which calls the kernel and cuts up its output.
    """

    task: Task
    half_bandwidth: int
    iterations: np.ndarray
    total_s: np.ndarray
    parts_s: dict[str, np.ndarray]
    called: dict[str, int]
    moment: Moment
    kernels: dict[str, Call]
    from_c_s: dict[str, float]
    lapack_s: dict[str, float]
    empty_s: float
    system_s: float

    @property
    def per_iteration(self) -> float:
        """Seconds of a control step, for each of its Newton iterations."""
        return float(self.total_s.sum() / self.iterations.sum())

    def part(self, name: str) -> float:
        """Seconds of a part for each iteration."""
        return float(self.parts_s[name].sum() / self.iterations.sum())

    def machine_code(self, part: str) -> float:
        """Seconds of a part, for each iteration, that are spent in compiled code."""
        seconds = sum(self.called[name] * self.from_c_s[name] for name in CALLED.get(part, ()))
        return float(seconds / self.iterations.sum())


def controller(of: Build, cache: LibraryCache) -> mb.RecedingHorizonController:
    """The task's controller with its compiled derivatives, tolerances as in all comparisons."""
    options = mb.SolverOptions(kkt_tolerance=TOLERANCE, defect_tolerance=TOLERANCE)
    made = mb.RecedingHorizonController(problem(of.task), "rk4", of.task.substeps, options)
    made.load(of.library.path, cache)
    return made


def run(task: Task, step: Callable[..., mb.ControlStep], steps: int) -> Iterator[mb.ControlStep]:
    """A closed loop with the simulated robot and the noise of the comparisons' first run."""
    state, noise = disturbances(task, 0)
    for k in range(steps):
        parameters = task.stage_parameters(k, task.horizon)
        result = step(state + noise[k], parameters)
        yield result
        now = {name: value[0] for name, value in parameters.items()}
        command = task.input_gain * result.command
        state = task.advanced(NUMPY, state, command, now, PLANT_SUBSTEPS)


@contextmanager
def replaced(
    instance: object, names: Sequence[str], by: Callable[[str, Callable[..., Any]], Any]
) -> Iterator[None]:
    """Methods of one instance in wrappers ``by(name, method)``."""
    for name in names:
        setattr(instance, name, by(name, getattr(instance, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(instance, name)


def _timed_run(
    task: Task, made: mb.RecedingHorizonController, steps: int
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Iterations (steps,), total (steps,) and parts (steps, len(PARTS)) in seconds."""
    clock = time.process_time
    spent = dict.fromkeys((*STEPS, "solve"), 0.0)

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = clock()
            try:
                return method(*arguments)
            finally:
                spent[name] += clock() - began

        return call

    iterations, totals, parts = [], [], []

    def step(state: np.ndarray, parameters: Mapping[str, np.ndarray]) -> mb.ControlStep:
        spent.update(dict.fromkeys(spent, 0.0))
        began = clock()
        result = made.step(state, parameters)
        total = clock() - began
        evaluate, step, search = (spent[name] for name in STEPS)
        rest = spent["solve"] - evaluate - step - search
        totals.append(total)
        parts.append([evaluate, 0.0, step, search, rest, total - spent["solve"]])
        return result

    made.reset()
    with replaced(made._solver, tuple(spent), timed):
        for result in run(task, step, steps):
            iterations.append(result.iterations)
    return iterations, np.array(totals), np.array(parts)


def _counted_run(
    task: Task, made: mb.RecedingHorizonController, steps: int
) -> tuple[dict[str, int], Moment]:
    """How often the loop calls each kernel, and where it ended."""
    methods = ("system", "newton_step", "merit")
    counts = dict.fromkeys(methods, 0)
    ended: list[Moment] = []

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            counts[name] += 1
            if name == "system":
                ended[:] = [Moment(*arguments)]
            return method(*arguments)

        return call

    made.reset()
    with replaced(made.evaluator, methods, counted):
        for _ in run(task, made.step, steps):
            pass
    steps_taken = counts.pop("newton_step")
    of_step = ("newton_factor", "newton_sweep", "newton_bounds")
    return counts | dict.fromkeys(of_step, steps_taken), ended[0]


def measure(
    builds: Sequence[Build], cache: LibraryCache, core: Core, quick: bool, rounds: int = 20
) -> tuple[Loop, ...]:
    """Closed loops of all tasks in turns.

    Args:
        builds: One for each task.
        cache: That has their libraries.
        core: To call kernels from C.
        quick: A few steps only.
        rounds: Runs of each loop.
    """
    rounds = 2 if quick else rounds
    steps = {of.task.name: 6 if quick else of.task.steps for of in builds}
    made = {of.task.name: controller(of, cache) for of in builds}
    runs: dict[str, list[Any]] = {of.task.name: [] for of in builds}
    for _ in range(rounds):
        for of in builds:
            name = of.task.name
            runs[name].append(_timed_run(of.task, made[name], steps[name]))
    loops = []
    for of in builds:
        name = of.task.name
        iterations, totals, parts = zip(*runs[name], strict=True)
        if any(other != iterations[0] for other in iterations):
            raise RuntimeError(f"{name}: two runs of the same loop differ in their iterations")
        best, each = np.argmin(totals, axis=0), np.arange(steps[name])
        chosen = np.array(parts)[best, each]
        called, moment = _counted_run(of.task, made[name], steps[name])
        kernels, routines = calls(of, moment), lapack(of, moment)
        arguments = (moment.point, moment.data, moment.penalty)
        factors = called["newton_factor"]
        times = fastest(
            {
                **{key: core.from_c(call) for key, call in kernels.items()},
                **{key: repeated(call) for key, call in routines.items()},
                "empty": repeated(core.empty(kernels["system"])),
                "all": repeated(lambda of=of, a=arguments: of.derivatives.system(*a)),
            },
            rounds,
        )
        # The factorisation, the same in each iteration, is taken out of the steps.
        factor_s = times["newton_factor"] * np.array(iterations[0]) * factors / sum(iterations[0])
        chosen[:, PARTS.index(FACTOR)] = factor_s
        chosen[:, PARTS.index("step")] -= factor_s
        loops.append(
            Loop(
                of.task,
                of.eager.half_bandwidth,
                np.array(iterations[0]),
                np.array(totals)[best, each],
                dict(zip(PARTS, chosen.T, strict=True)),
                called,
                moment,
                kernels,
                {key: times[key] for key in kernels},
                {key: times[key] for key in routines},
                times["empty"],
                times["all"],
            )
        )
    return tuple(loops)


def write(loops: Sequence[Loop], images: Path) -> Chapter:
    """Tables and a plot of the shares."""
    _plot(loops, images)
    header = ["part"]
    for loop in loops:
        header += [f"{loop.task.title}: µs", "%", "in machine code, µs"]
    rows = [[name, *(cell for loop in loops for cell in _cells(loop, (name,)))] for name in PARTS]
    rows.append(["**all**", *(cell for loop in loops for cell in _cells(loop, PARTS))])
    inside = []
    for loop in loops:
        evaluations = loop.called["system"] / loop.iterations.sum()
        evaluate, kernel = loop.part("evaluate") / evaluations, loop.from_c_s["system"]
        arrays = loop.system_s - kernel - loop.empty_s
        parts = (kernel, loop.empty_s, arrays, evaluate - loop.system_s, evaluate)
        inside.append([loop.task.title, evaluations, *(1e6 * seconds for seconds in parts)])
    often = [
        [name, *(loop.called[name] / loop.iterations.sum() for loop in loops)]
        for name in loops[0].called
    ]
    text = f"""
Closed loops as in the benchmarks, compiled derivatives, cache warm; processor time of
controller.step by its named steps. Microseconds for each Newton iteration: all of a run over
all iterations of it, so what happens once a control step is spread over its iterations. *In
machine code* is what the kernels take of it, called from C as often as the loop calls them; the
rest is Python and NumPy. The factorisation begins the call that makes a step, so all of it is
machine code. Reading the clock is part of the time, at
{number(1e6 * _clock_s())} µs a reading and two readings for each call of a named step.

{study.table(header, rows)}

{study.figure("performance_shares", "Shares of the named steps in the time of an iteration")}

Inside one evaluation, in µs: the C kernel itself, a call by ctypes with all addresses at hand, the
arrays that Evaluator.system makes and cuts up around the call, and the rest: norms, and caches
that the loop has filled with other things, where the parts before were measured in a row.

{
        study.table(
            ["task", "evaluations an iteration", "kernel", "call", "arrays", "the rest", "in all"],
            inside,
        )
    }

Calls for each iteration:

{study.table(["routine", *(loop.task.title for loop in loops)], often)}

An evaluation more than one an iteration is the one at which a control step finds that it has
converged. The line search asks for one candidate at a time, since it nearly always takes the
first: several in one call paid where a call was an eager one of torch, which costs the same for
four.
"""
    return Chapter("Shares of an iteration", text.strip(), ())


def _clock_s() -> float:
    return fastest({"clock": repeated(time.process_time)}, 3)["clock"]


def _cells(loop: Loop, names: Sequence[str]) -> list[object]:
    """Microseconds, percent and microseconds in machine code of some parts together."""
    seconds = sum(loop.part(name) for name in names)
    code = sum(loop.machine_code(name) for name in names)
    return [number(1e6 * seconds, 3), 100.0 * seconds / loop.per_iteration, 1e6 * code]


def write_iterations(loops: Sequence[Loop], images: Path) -> Chapter:
    """How many iterations the control steps take."""
    most = 20
    with study.axes(images, "performance_iterations", len(loops)) as panels:
        for at, loop in zip(panels, loops, strict=True):
            counts = np.bincount(np.minimum(loop.iterations, most + 1), minlength=most + 2)
            at.bar(range(most + 2), counts, color=study.COLORS[0])
            at.set_xticks([0, 5, 10, 15, most + 1], ["0", "5", "10", "15", f"> {most}"])
            at.set(xlabel="iterations of a control step", ylabel="control steps")
            at.set_title(loop.task.title)
            at.yaxis.set_major_locator(MaxNLocator(integer=True))
    rows = []
    for loop in loops:
        warm = loop.iterations[1:]
        rows.append(
            [
                loop.task.title,
                len(loop.iterations),
                int(loop.iterations[0]),
                float(warm.mean()),
                *(int(np.percentile(warm, q, method="higher")) for q in (50, 90, 99)),
                int(warm.max()),
            ]
        )
    header = ["task", "steps", "first step, cold", "then: mean", "median", "90 %", "99 %", "most"]
    text = f"""
Newton iterations until the tolerance of {number(TOLERANCE)}, which do not depend on the machine.
The first step of a run starts cold; the others start from the plan before, shifted.

{study.table(header, rows)}

{study.figure("performance_iterations", "Histogram of the iterations of a control step")}
"""
    return Chapter("Iterations of a control step", text.strip(), ())


def _plot(loops: Sequence[Loop], images: Path) -> None:
    with study.axes(images, "performance_shares", 1) as (at,):
        at.figure.set_size_inches(8.0, 1.4 + 0.8 * len(loops))
        for row, loop in enumerate(loops[::-1]):
            left = 0.0
            for color, name in zip(study.COLORS, PARTS, strict=False):
                code = loop.machine_code(name)
                for seconds, alpha in ((code, 1.0), (loop.part(name) - code, 0.35)):
                    share = 100.0 * max(seconds, 0.0) / loop.per_iteration
                    at.barh(row, share, left=left, color=color, alpha=alpha, height=0.6)
                    left += share
        names = [f"{x.task.title}\n{number(1e6 * x.per_iteration)} µs" for x in loops[::-1]]
        at.set_yticks(range(len(loops)), names)
        at.set(xlabel="% of an iteration; strong: machine code, pale: Python and NumPy")
        handles = [at.barh(0, 0, color=color) for color in study.COLORS[: len(PARTS)]]
        at.legend(
            handles, PARTS, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6, fontsize=8
        )
        at.set_xlim(0.0, 100.0)
        at.grid(False, axis="y")
