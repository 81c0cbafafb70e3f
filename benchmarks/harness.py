# SPDX-License-Identifier: Apache-2.0
"""Closed loops of all solvers side by side, step by step, each solver in a process of its own.

All processes share one core. In each step every solver gets the measured state of its own
simulated robot and solves while the others wait, so a disturbance of the machine hits all alike.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any

import numpy as np

from benchmarks.pages import ROOT
from benchmarks.peers import Entry
from benchmarks.peers.peer import Answer
from benchmarks.task import NUMPY, Task

BUILD = ROOT / "build" / "bench"
#: Runge-Kutta steps of the simulated robot in one control interval.
PLANT_SUBSTEPS = 10
ANSWER_LIMIT_S = 60.0
SETUP_LIMIT_S = 900.0


class Unavailable(Exception):
    """A peer cannot take part; the message says why."""


def install(requirements: str) -> Path:
    """The folder with a peer's own packages, filled on first use.

    Raises:
        Unavailable: pip failed.
    """
    wanted = _requirements(requirements)
    folder = BUILD / "packages" / requirements
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return folder
    _pip(wanted, folder)
    if requirements == "acados":
        # The wheel of acados brings a casadi for another Python.
        shutil.rmtree(folder / "casadi")
        _pip(_requirements("casadi"), folder)
    stamp.write_text(wanted.read_text())
    return folder


def _requirements(name: str) -> Path:
    return ROOT / "requirements" / f"bench-{name}.txt"


def _pip(requirements: Path, folder: Path) -> None:
    # The file names every package; --no-deps keeps torch and numpy those of this package.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--upgrade", "--target", str(folder), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise Unavailable(f"pip: {lines[-1] if lines else 'failed'}")


@dataclass
class Run:
    """One closed loop of one solver.

    Attributes:
        states: True states of the simulated robot (steps + 1, nx).
        inputs: Commands (steps, nu), inside the bounds.
        answers: Answers of the solver, without plans.
        cost: Closed-loop cost by ``score``.
        violation: Worst violation of the inequality and the state bounds by ``score``.
        defect: Largest defect of a plan that the solver said was converged.
        objectives: Open-loop objective of each plan.
        failures: Steps in which the solver raised, hung or sent numbers that are not finite.
        error: First message of a failure.
    """

    states: list[np.ndarray] = field(default_factory=list)
    inputs: list[np.ndarray] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    cost: float = 0.0
    violation: float = 0.0
    defect: float = 0.0
    objectives: list[float] = field(default_factory=list)
    failures: int = 0
    error: str = ""


class Worker:
    """A solver in a process of its own, as the harness sees it.

    Args:
        entry: Solver and settings.
        task: Task to solve.
        core: Core to run on.
        fresh: Whether to empty the solver's folder first, caches included.

    Raises:
        Unavailable: The solver could not be installed or set up.
    """

    def __init__(self, entry: Entry, task: Task, core: int, fresh: bool = False) -> None:
        self.entry = entry
        self.alive = True
        packages = str(install(entry.requirements)) if entry.requirements else ""
        folder = BUILD / "generated" / task.name / entry.name
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = socketpair()
        self.log = folder / "log.txt"
        arguments = [
            entry.factory,
            json.dumps(dict(entry.settings)),
            task.name,
            str(core),
            str(theirs.fileno()),
            packages,
        ]
        threads = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
        )
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", *arguments, str(folder)],
                cwd=ROOT,
                env={**os.environ, **threads},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self.link = Connection(ours.detach())
        answer = self._receive(SETUP_LIMIT_S)
        if answer.error:
            self.close()
            raise Unavailable(answer.error.strip().splitlines()[-1])
        self.setup_s = answer.wall_s

    def reset(self) -> None:
        """Begin a new run."""
        if self.alive:
            self.link.send(None)

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Answer:
        """Ask for one step; an answer with an error if the process is gone or hangs."""
        if not self.alive:
            return Answer(error="its process has ended")
        try:
            self.link.send((state, parameters))
        except OSError:
            self.alive = False
            return Answer(error=f"its process ended, status {self.process.poll()}")
        return self._receive(ANSWER_LIMIT_S)

    def _receive(self, limit_s: float) -> Answer:
        try:
            if self.link.poll(limit_s):
                return self.link.recv()
            self.process.kill()
            reason = f"no answer in {limit_s:.0f} s"
        except (EOFError, OSError):
            self.process.wait()
            reason = f"its process ended, status {self.process.returncode}"
        self.alive = False
        return Answer(error=reason)

    def close(self) -> None:
        """Hang up and wait for the process to end."""
        self.link.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def disturbances(task: Task, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Initial state (nx,) and measurement noise (steps, nx) of a run, the same for all solvers."""
    random = np.random.default_rng(seed)
    offset = task.spread * random.standard_normal(task.nx) if seed else np.zeros(task.nx)
    return task.initial_state + offset, task.noise * random.standard_normal((task.steps, task.nx))


def simulate(task: Task, state: np.ndarray, command: np.ndarray, step: int) -> np.ndarray:
    """True state (nx,) of the simulated robot one control interval later."""
    now = _first_stage(task.stage_parameters(step, 0))
    return task.advanced(NUMPY, state, task.input_gain * command, now, PLANT_SUBSTEPS)


def score(
    task: Task, states: Sequence[np.ndarray], inputs: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Cost and worst violation of a closed loop: true states (steps + 1, nx), inputs (steps, nu).

    No solver's own figures enter. The cost is that of the stages, with the penalties of the
    states that each command led to.
    """
    cost = violation = 0.0
    for k, (before, command, after) in enumerate(zip(states, inputs, states[1:], strict=False)):
        now = _first_stage(task.stage_parameters(k, 0))
        cost += float(task.stage_cost(NUMPY, before, command, now))
        cost += float(task.penalty_cost(after, now))
        violation = max([violation, *(v.max(initial=0.0) for v in task.violations(after, now))])
    return cost, float(violation)


def closed_loops(
    task: Task,
    workers: Sequence[Worker],
    seed: int,
    steps: int = 0,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, Run]:
    """One run of all solvers side by side: entry's name -> run."""
    begin, noise = disturbances(task, seed)
    runs = {worker.entry.name: Run(states=[begin]) for worker in workers}
    for worker in workers:
        worker.reset()
    for k in range(steps or task.steps):
        parameters = task.stage_parameters(k, task.horizon)
        # Another order in each step, so that no solver always runs into the caches of the same
        # neighbour.
        for i in np.random.default_rng([seed, k]).permutation(len(workers)):
            worker = workers[i]
            if worker.entry.steps and k >= worker.entry.steps:
                continue
            run = runs[worker.entry.name]
            answer = worker.step(run.states[-1] + noise[k], parameters)
            run.inputs.append(_take(task, run, answer, parameters))
            run.states.append(simulate(task, run.states[-1], run.inputs[-1], k))
        progress()
    for run in runs.values():
        run.cost, run.violation = score(task, run.states, run.inputs)
    return runs


def _take(task: Task, run: Run, answer: Answer, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """Note an answer and its plan; returns the command to apply, (nu,)."""
    command = answer.command
    if command is None or not np.isfinite(command).all():
        reason = answer.error or "the command is not finite"
        run.failures += 1
        run.error = run.error or reason
        run.answers.append(Answer(error=reason))
        run.objectives.append(np.nan)
        return run.inputs[-1] if run.inputs else np.zeros(task.nu)
    run.objectives.append(task.objective(answer.states, answer.inputs, parameters))
    if answer.converged:
        defects = task.defects(answer.states, answer.inputs, parameters)
        run.defect = max(run.defect, float(np.abs(defects).max()))
    run.answers.append(replace(answer, states=None, inputs=None))
    return np.clip(command, *task.input_bounds)


def _first_stage(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[0] for name, value in parameters.items()}
