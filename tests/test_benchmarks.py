# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import harness, page
from benchmarks.__main__ import measure
from benchmarks.harness import PLANT_SUBSTEPS, Unavailable, Worker, closed_loops, disturbances
from benchmarks.peers import ENTRIES, Entry
from benchmarks.peers.mpc_banded import problem
from benchmarks.peers.peer import Answer
from benchmarks.peers.torch_terms import TorchTask, at, tensors
from benchmarks.tasks import NUMPY, TASKS, Task

ROOT = Path(__file__).parents[1]
EAGER = next(entry for entry in ENTRIES if entry.name == "mpc_banded.eager")


def core() -> int:
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def point(task: Task, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """States (N + 1, nx) about the initial one, inputs (N, nu) inside the bounds, parameters."""
    random = np.random.default_rng(seed)
    states = task.initial_state + 0.05 * random.standard_normal((task.horizon + 1, task.nx))
    inputs = random.uniform(*task.input_bounds, (task.horizon, task.nu))
    return states, inputs, task.stage_parameters(70, task.horizon)


@pytest.mark.parametrize("name", TASKS)
def test_torch_and_numpy_evaluate_the_same_task(name: str) -> None:
    task = TASKS[name]()
    terms = TorchTask(task)
    states, inputs, p = point(task)
    x, u, q = torch.as_tensor(states), torch.as_tensor(inputs), tensors(p)
    now, after = at(q, slice(0, -1)), at(q, slice(1, None))
    total = terms.stage_cost(x[:-1], u, now).sum() + terms.terminal_cost(x[-1], at(q, -1))
    total = total + terms.penalty_cost(x[1:], after).sum()
    assert float(total) == pytest.approx(task.objective(states, inputs, p), rel=1e-12)
    defects = (x[1:] - terms.advanced(x[:-1], u, now)).numpy()
    np.testing.assert_allclose(defects, task.defects(states, inputs, p), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_the_package_is_given_the_task_as_it_is(name: str) -> None:
    task = TASKS[name]()
    states, inputs, p = point(task)
    given = problem(task)
    q = tensors(p)
    x, u = torch.as_tensor(states), torch.as_tensor(inputs)
    costs = given.stage_costs["stage"](x[:-1], u, at(q, slice(0, -1))).sum()
    costs = costs + given.terminal_costs["terminal"](x[-1], at(q, -1))
    penalties = task.penalty_cost(states[1:], {k: v[1:] for k, v in p.items()}).sum()
    assert float(costs) == pytest.approx(task.objective(states, inputs, p) - penalties, rel=1e-12)
    assert (given.nx, given.nu, given.horizon, given.dt) == (
        task.nx,
        task.nu,
        task.horizon,
        task.dt,
    )
    np.testing.assert_array_equal(given.state_bounds, task.state_bounds)
    np.testing.assert_array_equal(given.input_bounds, task.input_bounds)


@pytest.mark.parametrize("name", ["chain4", "chain6"])
def test_the_chain_begins_away_from_a_rest_it_can_return_to(name: str) -> None:
    task = TASKS[name]()
    m = (task.nx - 3) // 6
    assert np.abs(task.initial_state[3 * (m + 1) :]).max() > 0.1
    # What the controller is to reach: forces vanish where the cost does.
    slopes = task.dynamics(NUMPY, task.initial_state, np.zeros(3), {})
    assert np.isfinite(slopes).all()
    assert task.state_bounds[0][m + 1] < task.initial_state[m + 1 : 2 * m + 2].min()


def test_the_plant_converges_with_its_substeps() -> None:
    for name in TASKS:
        task = TASKS[name]()
        states, inputs, p = point(task)
        now = {key: value[0] for key, value in p.items()}
        fine, finer = (
            task.advanced(NUMPY, states[0], inputs[0], now, n) for n in (PLANT_SUBSTEPS, 40)
        )
        np.testing.assert_allclose(fine, finer, rtol=0, atol=1e-4)


def test_disturbances_depend_on_the_run_alone() -> None:
    task = TASKS["cartpole"]()
    for first, second in zip(disturbances(task, 1), disturbances(task, 1), strict=True):
        np.testing.assert_array_equal(first, second)
    assert np.abs(disturbances(task, 1)[1] - disturbances(task, 2)[1]).max() > 0.0
    np.testing.assert_array_equal(disturbances(task, 0)[0], task.initial_state)


class Scripted:
    """In place of a worker: answers from a list, the last one again and again."""

    def __init__(self, answers: list[Answer]) -> None:
        self.entry = replace(EAGER, name="scripted")
        self.answers = answers
        self.seen: list[np.ndarray] = []

    def reset(self) -> None:
        self.seen = []

    def step(self, state: np.ndarray, _: dict[str, np.ndarray]) -> Answer:
        self.seen.append(state)
        return self.answers[min(len(self.seen), len(self.answers)) - 1]


def test_a_failed_step_keeps_the_last_command_and_is_counted() -> None:
    task = TASKS["bicycle20"]()
    plan = {"states": np.zeros((21, 4)), "inputs": np.zeros((20, 2))}
    answers = [Answer(command=np.array([9.0, 0.1]), **plan), Answer(error="it broke")]
    answers.append(Answer(command=np.array([np.nan, 0.0]), **plan))
    run = closed_loops(task, [Scripted(answers)], seed=0, steps=3)["scripted"]
    assert run.failures == 2
    assert run.error == "it broke"
    np.testing.assert_array_equal(run.inputs, [[3.0, 0.1]] * 3)  # 3.0: its bound
    assert len(run.states) == 4


def test_measured_states_are_noisy_and_the_run_is_judged_by_the_true_ones() -> None:
    task = replace(TASKS["cartpole"](), noise=np.full(4, 0.1))
    plan = {"states": np.zeros((51, 4)), "inputs": np.zeros((50, 1))}
    worker = Scripted([Answer(command=np.zeros(1), **plan)])
    run = closed_loops(task, [worker], seed=0, steps=2)["scripted"]
    assert np.abs(worker.seen[0] - run.states[0]).max() > 0.01
    expected = sum(float(task.stage_cost(NUMPY, x, np.zeros(1), {})) for x in run.states[:2])
    expected += sum(float(task.penalty_cost(x, {})) for x in run.states[1:])
    assert run.cost == pytest.approx(expected)


def test_what_cannot_be_set_up_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "BUILD", tmp_path)
    entry = replace(EAGER, settings={"iterations": -1})
    with pytest.raises(Unavailable, match="max_iterations"):
        Worker(entry, TASKS["bicycle20"](), core())


def test_the_command_measures_this_package_and_writes_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(harness, "BUILD", tmp_path)
    task = TASKS["bicycle20"]()
    missing = Entry("ipopt.vm", "CasADi + IPOPT", "nowhere:Nothing")
    part = measure(task, [EAGER, missing], 1, core(), 4, Console(quiet=True))
    record = part["entries"]["mpc_banded.eager"]["runs"][0]
    assert record["converged"] == [True] * 4
    assert record["defect"] < 1e-6
    assert "nowhere" in part["entries"]["ipopt.vm"]["unavailable"]
    results = {
        "machine": {"cpu": "-", "cores": 1, "system": "-", "load": 0.0, "versions": []},
        "core": 0,
        "rounds": 1,
        "tasks": {"bicycle20": part},
    }
    results = json.loads(json.dumps(results))
    page.write(results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "did not run: ModuleNotFoundError" in text
    assert (tmp_path / "images" / "benchmarks_times.png").exists()


def test_bars_are_computed_from_the_figures() -> None:
    def record(wall_s: float, cost: float) -> dict:
        run = {"cost": cost, "violation": 0.0, "failures": 0}
        run |= {key: [wall_s] * 5 for key in ("wall_s", "cpu_s", "solver_s")}
        run |= {"iterations": [3] * 5, "converged": [True] * 5}
        return {"runs": [run], "setups_s": [1.0], "unavailable": None}

    entries = {"mpc_banded.compiled": record(1e-3, 1.006), "ipopt.vm": record(4e-3, 1.0)}
    results = {"tasks": {"bicycle50": {"title": "", "steps": 5, "entries": entries}}}
    rows = page.bars(page.gathered(results)).splitlines()
    (median,) = [row for row in rows if "IPOPT, median" in row]
    (p99,) = [row for row in rows if "IPOPT, p99" in row]
    (cost,) = [row for row in rows if "closed-loop cost" in row]
    assert "| 4.0 | **no** |" in median
    assert "| 4.0 | yes |" in p99
    assert "+0.600 % | **no** |" in cost


def test_names_that_are_none_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "--task", "tricycle"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "bicycle50" in result.stderr
