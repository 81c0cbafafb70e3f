# SPDX-License-Identifier: Apache-2.0
"""The stopwatch and the profile of a control step account for all of the time, once."""

import shutil

import numpy as np
import pytest

from benchmarks import pages, performance, timing
from benchmarks.task import Task
from benchmarks.tasks import TASKS


class Clock:
    """A clock that stands still unless somebody spends time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class Solver:
    """Calls with known prices, one of which calls another."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def system(self) -> str:
        self.clock.spend(3.0)
        return "system"

    def duals(self) -> str:
        self.clock.spend(1.0)
        return self.system() + " in duals"

    def fail(self) -> None:
        self.clock.spend(5.0)
        raise ValueError("it failed")


METHODS = {"system": "evaluate", "duals": "cold start", "fail": "search"}


def test_nested_calls_are_counted_once_and_failed_ones_too() -> None:
    clock = Clock()
    solver = Solver(clock)
    with timing.stopwatch(solver, METHODS, clock) as seconds:
        assert solver.system() == "system"
        assert solver.duals() == "system in duals"
        with pytest.raises(ValueError, match="it failed"):
            solver.fail()
        solver.system()
    assert seconds == {"evaluate": [3.0, 3.0], "cold start": [4.0], "search": [5.0]}
    assert sum(map(sum, seconds.values())) == clock.now
    solver.system()
    assert seconds["evaluate"] == [3.0, 3.0]
    assert set(vars(solver)) == {"clock"}


def test_every_candidate_has_its_turn_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = Clock(), []
    monkeypatch.setattr(timing.time, "process_time", clock)

    def candidate(name: str, prices: list[float]) -> None:
        order.append(name)
        clock.spend(prices.pop(0) if len(prices) > 1 else prices[0])

    slow, fast = [9.0, 2.0, 7.0, 4.0], [100.0, 1.0]
    candidates = {"slow": lambda: candidate("slow", slow), "fast": lambda: candidate("fast", fast)}
    found = timing.interleaved(candidates, 0.0, at_least=3)
    assert order == ["slow", "fast"] * 4
    assert found == {"slow": 4.0, "fast": 1.0}  # the first round does not count


def test_the_exponent_is_that_of_a_power() -> None:
    x = np.array([1.0, 10.0, 50.0])
    assert timing.exponent(x, 3.0 * x**1.5) == pytest.approx(1.5)
    assert np.isnan(timing.exponent(x, [1.0, 0.0, 1.0]))


@pytest.fixture(scope="module")
def task() -> Task:
    return TASKS["bicycle20"]()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="the profile is that of compiled derivatives")
def test_a_profile_has_all_of_the_time(task: Task, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(performance, "BUILD", tmp_path)
    found = performance.profile(task, steps=6, rounds=2)
    assert found.run.parts_s.shape == (6, len(performance.PARTS))
    assert (found.run.parts_s >= 0.0).all()
    total = sum(map(found.part_s, performance.PARTS))
    assert total == pytest.approx(found.iteration_s)
    assert 0.0 < found.machine_code_s
    steady = found.run.parts_s[1:, performance.PARTS.index("cold start")]
    assert found.run.parts_s[0, performance.PARTS.index("cold start")] > steady.max()
    values = performance.values([found])
    places = pages.places((pages.DOCS / "performance.md").read_text())
    assert set(values) == set(places)
    assert all(f"| {part} |" in places["shares"] for part in ("evaluate", "all"))
    performance.plot([found], tmp_path)
    assert (tmp_path / "performance_shares.png").exists()
