# SPDX-License-Identifier: Apache-2.0
"""The comparison judges fairly: one problem for all, one function for costs, honest clocks."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import harness, pages, report, worker
from benchmarks.__main__ import measure
from benchmarks.harness import PLANT_SUBSTEPS, Unavailable, Worker, closed_loops, disturbances
from benchmarks.peers import ENTRIES, Entry
from benchmarks.peers.mpc_banded import problem
from benchmarks.peers.peer import Answer, Outcome
from benchmarks.peers.torch_terms import TorchTask, at, tensors
from benchmarks.task import NUMPY, Task
from benchmarks.tasks import TASKS

EAGER = next(entry for entry in ENTRIES if entry.name == "mpc_banded.eager")


def core() -> int:
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def point(task: Task, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """States (N + 1, nx) about the initial one, inputs (N, nu) inside the bounds, parameters."""
    random = np.random.default_rng(seed)
    states = task.initial_state + 0.05 * random.standard_normal((task.horizon + 1, task.nx))
    inputs = random.uniform(*task.input_bounds, (task.horizon, task.nu))
    return states, inputs, task.stage_parameters(70, task.horizon)


# One problem for all


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
    for size in ("nx", "nu", "horizon", "dt"):
        assert getattr(given, size) == getattr(task, size)
    np.testing.assert_array_equal(given.state_bounds, task.state_bounds)
    np.testing.assert_array_equal(given.input_bounds, task.input_bounds)


@pytest.mark.parametrize("name", TASKS)
def test_casadi_evaluates_the_same_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(harness.BUILD / "packages" / "casadi")
    ca = pytest.importorskip("casadi", reason="make bench installs CasADi on its first use")
    from benchmarks.peers.casadi_terms import CASADI, soft_rows, stacked, symbols

    task = TASKS[name]()
    x, u, p, named = symbols(task)
    rows, weights = soft_rows(task, x, named)
    violations = ca.fmax(-rows, 0.0)
    penalty = ca.dot(weights[:, 0], violations) + 0.5 * ca.dot(weights[:, 1], violations**2)
    f = ca.Function(
        "f", [x, u, p], [task.stage_cost(CASADI, x, u, named), task.advanced(CASADI, x, u, named)]
    )
    last = ca.Function("last", [x, p], [task.terminal_cost(CASADI, x, named)])
    price = ca.Function("price", [x, p], [penalty])
    states, inputs, values = point(task)
    q = stacked(task, values)
    total, defects = float(last(states[-1], q[-1])), []
    for k in range(task.horizon):
        cost, reached = f(states[k], inputs[k], q[k])
        total += float(cost) + float(price(states[k + 1], q[k + 1]))
        defects.append(states[k + 1] - np.array(reached).ravel())
    assert total == pytest.approx(task.objective(states, inputs, values), rel=1e-12)
    np.testing.assert_allclose(defects, task.defects(states, inputs, values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["chain4", "chain6"])
def test_the_chain_starts_in_motion_and_clear_of_the_wall(name: str) -> None:
    task = TASKS[name]()
    m = (task.nx - 3) // 6
    assert np.abs(task.initial_state[3 * (m + 1) :]).max() > 0.1
    assert np.isfinite(task.dynamics(NUMPY, task.initial_state, np.zeros(3), {})).all()
    assert task.state_bounds[0][m + 1] < task.initial_state[m + 1 : 2 * m + 2].min()


def test_the_simulated_robot_converges_with_its_substeps() -> None:
    for name in TASKS:
        task = TASKS[name]()
        states, inputs, p = point(task)
        now = {key: value[0] for key, value in p.items()}
        fine, finer = (
            task.advanced(NUMPY, states[0], inputs[0], now, n) for n in (PLANT_SUBSTEPS, 40)
        )
        np.testing.assert_allclose(fine, finer, rtol=0, atol=1e-4)


# The closed loop


def test_disturbances_depend_on_the_run_alone() -> None:
    task = TASKS["cartpole"]()
    for first, second in zip(disturbances(task, 1), disturbances(task, 1), strict=True):
        np.testing.assert_array_equal(first, second)
    assert np.abs(disturbances(task, 1)[1] - disturbances(task, 2)[1]).max() > 0.0
    np.testing.assert_array_equal(disturbances(task, 0)[0], task.initial_state)


class Scripted:
    """Stands in for a worker: answers from a list, the last one again and again."""

    def __init__(self, answers: list[Answer], name: str = "scripted", steps: int = 0) -> None:
        self.entry = replace(EAGER, name=name, steps=steps)
        self.answers = answers
        self.seen: list[np.ndarray] = []

    def reset(self) -> None:
        self.seen = []

    def step(self, state: np.ndarray, _: dict[str, np.ndarray]) -> Answer:
        self.seen.append(state)
        return self.answers[min(len(self.seen), len(self.answers)) - 1]


def answer(task: Task, command: list[float], **figures: object) -> Answer:
    plan = {
        "states": np.zeros((task.horizon + 1, task.nx)),
        "inputs": np.zeros((task.horizon, task.nu)),
    }
    return Answer(command=np.array(command), **plan, **figures)


def test_a_failed_step_keeps_the_last_command_and_is_counted() -> None:
    task = TASKS["bicycle20"]()
    answers = [answer(task, [9.0, 0.1]), Answer(error="it broke"), answer(task, [np.nan, 0.0])]
    run = closed_loops(task, [Scripted(answers)], seed=0, steps=3)["scripted"]
    assert run.failures == 2
    assert run.error == "it broke"
    np.testing.assert_array_equal(run.inputs, [[3.0, 0.1]] * 3)  # 3.0: its bound
    assert len(run.states) == 4


def test_the_harness_checks_the_defects_of_plans_that_are_said_to_be_converged() -> None:
    task = TASKS["cartpole"]()
    for converged in (True, False):
        worker = Scripted([answer(task, [0.0], converged=converged)])
        run = closed_loops(task, [worker], seed=0, steps=1)["scripted"]
        # All states of the scripted plan are zero, where the pole stands: no defect.
        assert run.defect == 0.0
        worker.answers[0].states[3] = 1.0
        run = closed_loops(task, [worker], seed=0, steps=1)["scripted"]
        assert (run.defect >= 1.0) == converged


def test_measured_states_are_noisy_and_the_score_is_that_of_the_true_ones() -> None:
    task = replace(TASKS["cartpole"](), noise=np.full(4, 0.1))
    worker = Scripted([answer(task, [0.0])])
    run = closed_loops(task, [worker], seed=0, steps=2)["scripted"]
    assert np.abs(worker.seen[0] - run.states[0]).max() > 0.01
    expected = sum(float(task.stage_cost(NUMPY, x, np.zeros(1), {})) for x in run.states[:2])
    expected += sum(float(task.penalty_cost(x, {})) for x in run.states[1:])
    assert run.cost == pytest.approx(expected)


def test_nothing_that_a_solver_says_of_itself_enters_its_score() -> None:
    task = TASKS["bicycle20"]()
    modest = answer(task, [1.0, 0.0], solver_s=1.0, iterations=9)
    boasting = replace(modest, states=modest.states + 5.0, solver_s=0.0, iterations=0)
    workers = [Scripted([modest], "modest"), Scripted([boasting], "boasting")]
    runs = closed_loops(task, workers, seed=1, steps=80)
    for figure in ("cost", "violation"):
        assert getattr(runs["modest"], figure) == getattr(runs["boasting"], figure)
    assert runs["modest"].violation > 0.0  # straight past the parked car, too near


def test_solvers_that_take_part_in_some_steps_are_asked_no_more_often() -> None:
    task = TASKS["cartpole"]()
    workers = [Scripted([answer(task, [1.0])], "some", steps=2), Scripted([answer(task, [1.0])])]
    runs = closed_loops(task, workers, seed=0, steps=5)
    assert [len(run.inputs) for run in runs.values()] == [2, 5]
    assert [len(each.seen) for each in workers] == [2, 5]


# The clock


class Link:
    """Stands in for the connection between harness and worker."""

    def __init__(self, messages: list[object]) -> None:
        self.messages = messages
        self.sent: list[Answer] = []

    def recv(self) -> object:
        if not self.messages:
            raise EOFError
        return self.messages.pop(0)

    def send(self, message: Answer) -> None:
        self.sent.append(message)


def test_the_clock_covers_the_step_and_neither_set_up_nor_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Peer:
        def __init__(self, *_: object) -> None:
            spend(100.0)

        def reset(self) -> None:
            spend(10.0)

        def step(self, *_: object) -> Outcome:
            spend(1.0)
            return Outcome(np.zeros(1), 3, True, 0.5)

        def plan(self) -> tuple[np.ndarray, np.ndarray]:
            spend(1000.0)
            return np.zeros((51, 4)), np.zeros((50, 1))

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "process_time", lambda: 2.0 * now)
    module = type(sys)("benchmarks.peers.scripted")
    module.Peer = Peer
    monkeypatch.setitem(sys.modules, "benchmarks.peers.scripted", module)
    link = Link([(np.zeros(4), {})] * 2)
    worker.serve("scripted:Peer", {}, TASKS["cartpole"](), link, tmp_path)
    set_up, *steps = link.sent
    assert set_up.wall_s == 110.0
    assert [(a.wall_s, a.cpu_s, a.solver_s, a.iterations) for a in steps] == [
        (1.0, 2.0, 0.5, 3)
    ] * 2


@pytest.mark.slow
def test_a_solver_that_cannot_be_set_up_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(harness, "BUILD", tmp_path)
    entry = replace(EAGER, settings={"iterations": -1})
    with pytest.raises(Unavailable, match="max_iterations"):
        Worker(entry, TASKS["bicycle20"](), core())


# The report


@pytest.mark.slow
def test_a_measured_part_has_every_figure_of_the_report(
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
    results = json.loads(json.dumps({"made": "today", "tasks": {"bicycle20": part}}))
    values = report.values(results)
    assert "did not run: ModuleNotFoundError" in values["bicycle20.runs"]
    assert values["bicycle20.steps"].count("\n") == 2
    report.plot(results, tmp_path)
    assert (tmp_path / "benchmarks_times.png").exists()


def record(wall_ms: list[float], cost: float) -> dict:
    seconds = (1e-3 * np.array(wall_ms)).tolist()
    run = {"cost": cost, "violation": 0.0, "failures": 0, "wall_s": seconds, "solver_s": seconds}
    run |= {"iterations": [3] * len(seconds), "converged": [True] * len(seconds)}
    return {"runs": [run], "setups_s": [1.0], "unavailable": None}


def test_medians_and_p99_leave_out_the_first_step() -> None:
    entry = replace(EAGER, steps=0)
    figures = report.Figures.of(entry, record([500.0, *range(1, 101)], 1.0), 101)
    assert figures.first == pytest.approx(500.0)
    assert report.percentile(figures.wall, 50) == pytest.approx(50.5)
    assert report.percentile(figures.wall, 99) == pytest.approx(99.01)
    assert figures.whole
    assert not report.Figures.of(entry, record([1.0] * 5, 1.0), 101).whole


def test_bars_are_computed_from_the_figures() -> None:
    entries = {
        "mpc_banded.compiled": record([1.0] * 5, 1.006),
        "ipopt.vm": record([4.0] * 5, 1.0),
        "ipopt.gcc": record([5.0] * 5, 1.0),
        "acados.exact": record([0.8] * 5, 1.0),
    }
    results = {"made": "", "tasks": {"bicycle50": {"steps": 5, "entries": entries}}}
    rows = report.values(results)["bars"].splitlines()

    def row(text: str) -> str:
        (found,) = [row for row in rows if text in row]
        return found

    assert "| 4.0 | **no** |" in row("IPOPT, median")
    assert "| 4.0 | yes |" in row("IPOPT, p99")
    assert "| 1.2 | yes |" in row("median over that of acados")
    assert "+0.600 % | **no** |" in row("closed-loop cost")


def test_names_that_are_none_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "--task", "tricycle"]
    result = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "bicycle50" in result.stderr


# Pages

PAGES = ("benchmarks", "banded_hessian", "performance", "node", "drill")


def test_filling_a_page_changes_its_figures_alone() -> None:
    text = "It takes <!--a.b-->19<!--/--> probes.\n\n<!--t-->\n\n| x |\n\n<!--/-->\n\nThe end."
    filled = pages.fill(text, {"a.b": "7", "t": "| x |\n| y |", "other": "-"})
    assert filled == text.replace("19", "7").replace("| x |", "| x |\n| y |")
    assert pages.places(filled) == {"a.b": "7", "t": "| x |\n| y |"}
    assert pages.fill(filled, pages.places(filled)) == filled
    with pytest.raises(KeyError, match=r"a\.b"):
        pages.fill(text, {"t": "| x |"})


def test_the_page_of_the_comparison_has_a_place_for_every_task() -> None:
    found = pages.places((pages.DOCS / "benchmarks.md").read_text())
    tables = {f"{task}.{part}" for task in TASKS for part in ("steps", "runs")}
    assert set(found) == {"made", "bars"} | tables


def test_the_page_of_the_node_has_a_place_for_every_figure() -> None:
    pytest.importorskip("rclpy")
    from benchmarks import node

    parts = dict.fromkeys(node.PARTS, 2.0)
    rounds = {kind: [parts, {**parts, "executor": 4.0}] for kind in node.KINDS}
    rounds["bare"] = [{**parts, "executor": 6.0}]
    values = node.values(rounds, node.Soak(seconds=10.0, memory_mb=[1.0, 3.0]), 20.0)
    assert set(values) == set(pages.places((pages.DOCS / "node.md").read_text()))
    assert values["over_bare"] == "0.50"  # medians 3 and 6
    assert values["over_events"] == "1.00"


def test_memory_grows_by_the_slope_after_the_beginning() -> None:
    pytest.importorskip("rclpy")
    from benchmarks import node

    settled = [500.0 + 0.5 * i for i in range(20)]  # one sample in 5 s
    grown = node.Soak(memory_mb=[9.0 * i for i in range(4)] + settled)
    assert grown.growth_mb_per_hour == pytest.approx(360.0)


@pytest.mark.parametrize("name", PAGES)
def test_pages_render(name: str) -> None:
    """No comment begins a line of a paragraph, which would end it; tables have seven columns."""
    text = (pages.DOCS / f"{name}.md").read_text()
    assert text.count("<!--") == 2 * text.count("<!--/-->")
    assert not re.findall(r"^<!--(?![\w.+/-]+-->$).*", text, re.MULTILINE)
    assert not {"nan", "inf"} & set(re.findall(r"\w+", text))
    for picture in re.findall(r"\]\((images/\w+\.png)\)", text):
        assert (pages.DOCS / picture).is_file()
    for row in re.findall(r"^\| .*$", text, re.MULTILINE):
        assert row.count("|") <= 8, row


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12, "12"),
        (-2.5, "-2.5"),
        (0.01234, "0.012"),
        (12345.6, "12 346"),
        (100_000, "100 000"),
        (1e6, "1e6"),
        (1.55e-9, "1.6e-9"),
        (float("nan"), "–"),
    ],
)
def test_numbers_are_written_as_one_reads_them(value: float, text: str) -> None:
    assert pages.number(value).replace("\N{NO-BREAK SPACE}", " ") == text
