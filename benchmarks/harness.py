# SPDX-License-Identifier: Apache-2.0
"""Runs closed loops of all solvers side by side, step by step, each in a process of its own.

All processes share one core. In each step every solver gets its own measured state, solves while
the others wait, and its own plant moves on; so whatever disturbs the machine disturbs all alike.
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

from benchmarks.peers import Entry
from benchmarks.peers.peer import Answer
from benchmarks.tasks import NUMPY, Task

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
#: Runge-Kutta steps of the plant in one control interval.
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
    wanted = ROOT / "requirements" / f"bench-{requirements}.txt"
    folder = BUILD / "packages" / requirements
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return folder
    # Every package is named in the file; --no-deps keeps torch and numpy those of this package.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--upgrade", "--target", str(folder), "--requirement", str(wanted)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise Unavailable(f"pip: {lines[-1] if lines else 'failed'}")
    if requirements == "acados":
        _drop_foreign_casadi(folder)
    stamp.write_text(wanted.read_text())
    return folder


def _drop_foreign_casadi(folder: Path) -> None:
    """The wheel of acados carries a casadi for another Python; put the real one back."""
    shutil.rmtree(folder / "casadi")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--upgrade", "--target", str(folder)]
    command += ["--requirement", str(ROOT / "requirements" / "bench-casadi.txt")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Unavailable(f"pip: {result.stderr.strip().splitlines()[-1]}")


@dataclass
class Run:
    """One closed loop of one solver.

    Attributes:
        states: True states of the plant (steps + 1, nx).
        inputs: Commands (steps, nu), inside the bounds.
        answers: What the solver answered; plans left out.
        cost: Closed-loop cost, penalties included.
        violation: Worst violation of the inequality and the state bounds.
        defect: Largest defect of a plan that was said to be converged.
        objectives: Open-loop objective of each plan.
        failures: Steps in which it raised, hung or sent what is not finite.
        error: The first thing it raised.
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
    """The harness' end of a solver's process.

    Args:
        entry: Which solver.
        task: What to solve.
        core: The one to run on.
        fresh: Empty its folder first, caches included.

    Raises:
        Unavailable: It could not be installed or set up.
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
    """Initial state (nx,) and measurement noise (steps, nx) of a run, the same for all."""
    random = np.random.default_rng(seed)
    offset = task.spread * random.standard_normal(task.nx) if seed else np.zeros(task.nx)
    return task.initial_state + offset, task.noise * random.standard_normal((task.steps, task.nx))


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
    lower, upper = task.input_bounds
    for worker in workers:
        worker.reset()
    for k in range(steps or task.steps):
        parameters = task.stage_parameters(k, task.horizon)
        now = {name: value[0] for name, value in parameters.items()}
        # Another order in each step: nobody always runs into the caches of the same neighbour.
        for i in np.random.default_rng([seed, k]).permutation(len(workers)):
            worker = workers[i]
            run = runs[worker.entry.name]
            if worker.entry.steps and k >= worker.entry.steps:
                continue
            answer = worker.step(run.states[-1] + noise[k], parameters)
            command = _judged(task, run, answer, parameters)
            state = run.states[-1]
            run.cost += float(task.stage_cost(NUMPY, state, command, now))
            after = task.advanced(NUMPY, state, task.input_gain * command, now, PLANT_SUBSTEPS)
            of_h, of_bounds = task.violations(after, now)
            run.cost += float(task.penalty_cost(after, now))
            run.violation = max(run.violation, of_h.max(initial=0.0), of_bounds.max(initial=0.0))
            run.inputs.append(np.clip(command, lower, upper))
            run.states.append(after)
        progress()
    return runs


def _judged(task: Task, run: Run, answer: Answer, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """The command to apply; what the plan is worth goes into the run."""
    good = answer.command is not None and np.isfinite(answer.command).all()
    if not good:
        run.failures += 1
        run.error = run.error or answer.error or "the command is not finite"
        run.answers.append(Answer(error=answer.error or "the command is not finite"))
        run.objectives.append(np.nan)
        return run.inputs[-1] if run.inputs else np.zeros(task.nu)
    run.objectives.append(task.objective(answer.states, answer.inputs, parameters))
    if answer.converged:
        defects = task.defects(answer.states, answer.inputs, parameters)
        run.defect = max(run.defect, float(np.abs(defects).max()))
    run.answers.append(replace(answer, states=None, inputs=None))
    return np.clip(answer.command, *task.input_bounds)
