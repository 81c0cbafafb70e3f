# SPDX-License-Identifier: Apache-2.0
"""The performance page runs, and what it claims holds. Nothing here depends on the clock."""

import re
import shutil

import numpy as np
import pytest

from benchmarks import limit, machine_code, performance, road, shares, study
from benchmarks.machine_code import ADDITIONS, DIVISIONS, OTHERS, PRODUCTS, ROOTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("c++"), reason="operations are counted by a C++ compiler"),
]


@pytest.fixture(scope="module")
def figures():
    return performance.measure(quick=True)


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    return machine_code.Core(tmp_path_factory.mktemp("core"))


# The page


def test_the_page_shows_every_step_and_every_plot(figures, tmp_path):
    chapters = performance.write(figures, tmp_path / "images")
    page = performance.page(figures, chapters, quick=True)
    for chapter in chapters:
        assert f"## {chapter.title}\n" in page
    for name in (*shares.PARTS, *machine_code.KERNELS, road.SEQUENTIAL, road.STAGEWISE):
        assert f"| {name} |" in page or f": {name} |" in page
    pictures = re.findall(r"\]\((images/\w+\.png)\)", page)
    assert len(pictures) == len(list((tmp_path / "images").iterdir())) == 4
    assert all((tmp_path / picture).is_file() for picture in pictures)
    assert not {"nan", "inf"} & set(re.findall(r"\w+", page))


# The road


def test_every_way_leads_to_the_same_matrix(figures):
    ways = {way for way, _ in figures.road.errors}
    assert ways >= {*road.ALONE, road.COMBS, road.STAGEWISE, road.OUT, road.LOOPED}
    assert max(figures.road.errors.values()) < 1e-12


def test_a_matrix_without_the_barrier_is_another(figures):
    of = next(iter(figures.road.builds.values()))
    ways = road.Ways(of)
    alone, whole = ways.batched(ways.direct), ways.system(of.eager)
    assert np.abs(alone - whole).max() > 1e-6 * np.abs(whole).max()


def test_loops_run_on_what_the_package_would_compile(figures):
    for name, of in figures.road.builds.items():
        assert of.source == machine_code.kernel_source(of.eager.transcription)
        probed = "unit[" in of.source.partition("void merit(")[0]
        assert figures.road.chosen[name] == (road.LOOPED if probed else road.OUT)
        for way in (road.OUT, road.LOOPED):
            assert min(figures.road.compiling[way, name]) > 0.0


# Shares


def test_shares_add_up_to_the_whole(figures):
    for loop in figures.loops:
        assert set(loop.parts_s) == set(shares.PARTS)
        np.testing.assert_allclose(sum(loop.parts_s.values()), loop.total_s, rtol=1e-9)
        assert all((seconds >= 0.0).all() for seconds in loop.parts_s.values())
        assert sum(map(loop.part, shares.PARTS)) == pytest.approx(loop.per_iteration)


def test_everything_is_called_as_often_as_an_iteration_needs_it(figures):
    for loop in figures.loops:
        iterations = loop.iterations.sum()
        # Each solve evaluates once more than it steps, and a cold start for its duals.
        assert loop.called["system"] >= iterations + len(loop.iterations)
        assert min(loop.called.values()) >= iterations > 0
        listed = [name for names in shares.CALLED.values() for name in names]
        assert sorted(listed) == sorted(loop.called) == sorted(loop.from_c_s)


def test_watching_a_loop_leaves_its_solver_as_it_was():
    class Solver:
        def step(self):
            return "stepped"

    solver = Solver()
    with shares.replaced(solver, ["step"], lambda name, method: lambda: name + method()):
        assert solver.step() == "stepstepped"
    assert solver.step() == "stepped"
    assert not vars(solver)


# The limit

SOURCE = """
#include <math.h>
void system(const double *restrict a, double *restrict out)
{
    for (int k = 0; k < 10; ++k) {
        const double t = a[k] * (2.0);
        const double s = -t > (0.0) ? (1.0) : sqrt(t) / sin(a[k]);
        out[0] += s - t;
    }
}
"""


def test_operations_are_counted_as_they_are_done(tmp_path):
    arrays = (np.linspace(1.0, 2.0, 10), np.zeros(1))
    found = machine_code.operations(SOURCE, {"system": arrays}, tmp_path)
    counts = {PRODUCTS: 10, OTHERS: 20, ROOTS: 10, DIVISIONS: 10, "sin": 10, ADDITIONS: 20}
    assert found == {"system": counts}
    arrays[0][:5] *= -1.0  # the other branch
    arrays[1][:] = 0.0
    found = machine_code.operations(SOURCE, {"system": arrays}, tmp_path)
    assert found["system"] == counts | {ROOTS: 5, DIVISIONS: 5, "sin": 5}
    a = arrays[0]
    expected = np.where(a < 0.0, 1.0, np.sqrt(np.abs(2.0 * a)) / np.sin(a)) - 2.0 * a
    assert arrays[1][0] == pytest.approx(expected.sum(), rel=1e-14)


def test_counting_computes_what_the_kernels_compute(figures, core, tmp_path):
    of, loop = next(iter(figures.road.builds.values())), figures.loops[0]
    calls = machine_code.calls(of, loop.moment)
    given = {name: call.arrays for name, call in calls.items()}
    machine_code.operations(of.source, given, tmp_path)
    counted = {name: call.arrays[-1].copy() for name, call in calls.items()}
    for name, call in calls.items():
        call.arrays[-1][:] = 0.0
        core.from_c(call)(1)
        np.testing.assert_allclose(counted[name], call.arrays[-1], rtol=1e-9, atol=1e-9)


def test_every_routine_works_and_has_a_limit(figures):
    peaks = figures.limit.peaks
    assert set(peaks.cost_s) >= {DIVISIONS, ROOTS, "sin", "cos", "tan", "log"}
    for each in figures.limit.work:
        for work in each:
            assert min(work.counts.values()) > 0
            assert work.bytes > 0
            assert work.called > 0
            own = {ADDITIONS, PRODUCTS, DIVISIONS, ROOTS, OTHERS}
            assert set(work.functions()) == set(work.counts) - own
            for wide in (False, True):
                assert work.limit_s(peaks, wide) >= work.moved_s(peaks) > 0.0


def test_a_factorisation_by_stages_is_counted_as_a_dense_one_of_windows_works(figures):
    """Eliminating (x_k, u_k) from its window with x_{k+1}; lower triangles only."""
    for loop, each in zip(figures.loops, figures.limit.work, strict=True):
        problem = loop.task
        window = 2 * problem.nx + problem.nu
        counts = dict.fromkeys((PRODUCTS, DIVISIONS, ROOTS), 0)
        for k in range(problem.horizon + 1):
            last = k == problem.horizon
            columns, rows = (problem.nx, problem.nx) if last else (window - problem.nx, window)
            for j in range(problem.nx if k == 0 else 0, columns):
                below = rows - j - 1
                counts[ROOTS] += 1
                counts[DIVISIONS] += 1
                counts[PRODUCTS] += below + below * (below + 1) // 2
        found = next(w.counts for w in each if w.name == "newton_factor")
        # The columns of x_0 are eliminated as well, from an identity.
        assert found[ROOTS] - counts[ROOTS] == found[DIVISIONS] - counts[DIVISIONS] == problem.nx
        assert counts[PRODUCTS] <= found[PRODUCTS]
        beside = problem.nx * window * (window + 1)
        assert found[PRODUCTS] <= counts[PRODUCTS] + beside


def test_numbers_of_the_summary_come_from_the_figures(figures):
    loop = figures.loops[0]
    text = performance.summary(figures)
    assert f"{study.number(1e6 * loop.per_iteration)} µs" in text
    assert all(name in text for name in shares.PARTS)
    assert isinstance(figures.limit, limit.Figures)
