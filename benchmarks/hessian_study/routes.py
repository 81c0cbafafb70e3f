# SPDX-License-Identifier: Apache-2.0
"""Other ways to the same Hessian, and other solvers of the same linear system.

The Hessian is that of the bicycle's augmented Lagrangian with rk4 in the defects, at multipliers
that make every curvature count.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from torch import Tensor

from benchmarks import plots
from benchmarks.hessian_study import problems
from benchmarks.hessian_study.problems import Task, verdict
from benchmarks.pages import number, table
from benchmarks.timing import exponent, interleaved
from mpc_banded.ocp import banded
from mpc_banded.ocp.comb import Comb, hessian_vector_products
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.evaluator import Evaluator
from mpc_banded.ocp.newton import Point, Scaling
from mpc_banded.ocp.transcription import merit

PENALTY = 100.0
#: Barrier parameter that leaves no trace in a Hessian far from the bounds.
THIN = 1e-30
#: rho of the solver's Newton matrix on this robot, in order of magnitude.
SOLVER_PENALTY = 1e7
#: Largest horizon and largest n at which dense matrices are tried.
DENSE_HORIZON, DENSE_N = 100, 3000

SEQUENTIAL = "combs, one backward pass after the other"
FORWARD = "combs, vmap(jvp(grad))"
DENSE = "torch.func.hessian, dense"
BATCHED = "combs, one batched backward pass"
HALF = "the same by substitution"
REPLICAS = "combs, a replica of z for each probe"
STAGEWISE = "stagewise, Jacobians included"
COMPILED = "the same compiled, as this package has it"

BANDED = "banded Cholesky"
SCIPY = "scipy solveh_banded"
BANDED_LU = "scipy solve_banded (LU)"
SPARSE = "scipy sparse LU"
DENSE_CHOLESKY = "dense Cholesky"
DENSE_LU = "dense LU"


class Hessians:
    """All ways to the bands of the Hessian of the bicycle's merit function at one point.

    Args:
        horizon: Number of intervals.
        seed: Seed of point and multipliers.
    """

    def __init__(self, horizon: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.task = task = problems.bicycle(horizon, obstacles=[])
        self.transcription = task.transcription
        problem = self.transcription.problem
        noise = torch.randn(self.transcription.n, generator=generator, dtype=torch.float64)
        self.z = torch.from_numpy(task.coasting) + 0.1 * noise
        self.multipliers = torch.randn(
            problem.horizon, problem.nx, generator=generator, dtype=torch.float64
        )
        self.b = self.transcription.half_bandwidth
        self.direct = Comb(self.transcription.n, self.b)
        self.half = Comb(self.transcription.n, self.b, "substitution")
        with torch.no_grad():
            terms = self.transcription.terms(self.z, task.data)
        self.none = torch.zeros_like(terms.inequalities)
        # A Newton matrix leaves out the curvature of the penalty of a nonzero defect. These
        # multipliers bring it back, so that all ways compute the same matrix.
        self.shifted = (self.multipliers + PENALTY * terms.defects).numpy()

    def value(self, z: Tensor) -> Tensor:
        """The merit function of z (..., n), summed over leading dimensions."""
        terms = self.transcription.terms(z, self.task.data)
        return merit(terms, self.multipliers, torch.tensor(PENALTY).double(), self.none)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Gradient with its graph, and the point that the graph starts from."""
        point = self.z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.value(point), point, create_graph=True)
        return gradient, point

    def sequential(self) -> np.ndarray:
        """Gradient times a probe, and backward again, probe by probe."""
        gradient, point = self.gradient()
        products = [
            torch.autograd.grad(gradient @ probe, point, retain_graph=True)[0]
            for probe in self.direct.probes
        ]
        return self.direct.decompress(torch.stack(products))

    def forward(self) -> np.ndarray:
        """Forward over reverse mode, vectorised over the probes."""
        gradient = torch.func.grad(self.value)
        product = torch.func.vmap(lambda v: torch.func.jvp(gradient, (self.z,), (v,))[1])
        return self.direct.decompress(product(self.direct.probes))

    def batched(self, comb: Comb) -> np.ndarray:
        """Reverse over reverse mode, the second pass vectorised over the probes."""
        gradient, point = self.gradient()
        return comb.decompress(hessian_vector_products(gradient, point, comb.probes))

    def replicas(self) -> np.ndarray:
        """One copy of the whole problem for each probe, and two plain backward passes."""
        probes = self.direct.probes
        copies = self.z.expand(len(probes), -1).clone().requires_grad_()
        (slopes,) = torch.autograd.grad(self.value(copies), copies, create_graph=True)
        (products,) = torch.autograd.grad(slopes, copies, probes)
        return self.direct.decompress(products)

    def dense(self) -> np.ndarray:
        """Every column."""
        return banded.from_dense(torch.func.hessian(self.value)(self.z).numpy(), self.b)

    def evaluated(self, name: str) -> Callable[[], np.ndarray]:
        """Newton system of an evaluator of the package, with barrier, gradients and Jacobians."""
        evaluator = problems.EVALUATORS[name](self.transcription)
        return lambda: bands(evaluator, self.task, self.z.numpy(), self.shifted, PENALTY)

    def ways(self) -> dict[str, Callable[[], np.ndarray]]:
        """All ways that are feasible at this size."""
        ways: dict[str, Callable[[], np.ndarray]] = {
            SEQUENTIAL: self.sequential,
            FORWARD: self.forward,
            BATCHED: lambda: self.batched(self.direct),
            HALF: lambda: self.batched(self.half),
            REPLICAS: self.replicas,
            STAGEWISE: self.evaluated("eager"),
        }
        if "compiled" in problems.available_evaluators():
            ways[COMPILED] = self.evaluated("compiled")
        if self.transcription.problem.horizon <= DENSE_HORIZON:
            ways[DENSE] = self.dense
        return ways


def bands(
    evaluator: Evaluator, task: Task, z: np.ndarray, multipliers: np.ndarray, penalty: float
) -> np.ndarray:
    """Bands of the Newton matrix (b + 1, n) with a barrier so thin that it does not count."""
    problem = task.transcription.problem
    duals = np.zeros((problem.horizon, evaluator.barrier.width))
    units = Scaling(np.ones(problem.nu), np.ones(problem.nx), 1.0, penalty)
    return evaluator.system(Point(z, multipliers, duals, THIN), task.data, units).bands


def solvers(matrix: np.ndarray, rhs: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """All solvers of ``A x = rhs`` that are feasible at this size."""
    b, n = len(matrix) - 1, matrix.shape[1]
    full = np.zeros((2 * b + 1, n))  # LU takes both halves
    for d in range(b + 1):
        full[b + d, : n - d] = full[b - d, d:] = matrix[d, : n - d]
    sparse = scipy.sparse.dia_array((full, np.arange(b, -b - 1, -1)), shape=(n, n)).tocsc()
    ways: dict[str, Callable[[], np.ndarray]] = {
        BANDED: lambda: banded.cholesky(matrix).solve(rhs),
        SCIPY: lambda: scipy.linalg.solveh_banded(matrix, rhs, lower=True),
        BANDED_LU: lambda: scipy.linalg.solve_banded((b, b), full, rhs),
        SPARSE: lambda: scipy.sparse.linalg.splu(sparse).solve(rhs),
    }
    if n <= DENSE_N:
        dense = banded.to_dense(matrix)
        ways[DENSE_CHOLESKY] = lambda: scipy.linalg.cho_solve(scipy.linalg.cho_factor(dense), rhs)
        ways[DENSE_LU] = lambda: np.linalg.solve(dense, rhs)
    return ways


@dataclass(frozen=True)
class Figures:
    """Medians in seconds, and largest deviations from the first candidate, by (way, size)."""

    horizons: tuple[int, ...]
    sizes: tuple[int, ...]
    half_bandwidth: int
    hessian_s: dict[tuple[str, int], float]
    hessian_error: dict[tuple[str, int], float]
    solve_s: dict[tuple[str, int], float]
    solve_residual: dict[tuple[str, int], float]


def measure(quick: bool) -> Figures:
    """Time every way over the horizon, and compare their results."""
    horizons = (5, 10) if quick else (10, 20, 50, 100, 200)
    long = horizons if quick else (10, 50, 200, 500, 10_000)
    residuals: dict[tuple[str, int], float] = {}
    hessians: dict[tuple[str, int], Callable[[], np.ndarray]] = {}
    solve_s: dict[tuple[str, int], float] = {}
    for horizon in horizons:
        ways = Hessians(horizon).ways()
        hessians.update({(name, horizon): way for name, way in ways.items()})
    for horizon in long:
        task = problems.bicycle(horizon)
        nothing = np.zeros((horizon, task.transcription.problem.nx))
        evaluator = EagerEvaluator(task.transcription)
        matrix = bands(evaluator, task, task.coasting, nothing, SOLVER_PENALTY)
        rhs = np.random.default_rng(0).standard_normal(matrix.shape[1])
        solves = {(name, len(rhs)): way for name, way in solvers(matrix, rhs).items()}
        for key, way in solves.items():
            residual = np.abs(banded.matvec(matrix, way()) - rhs).max() / np.abs(rhs).max()
            residuals[key] = float(residual)
        # One size after the other: a large solve would empty the caches for a small one.
        solve_s.update(interleaved(solves, 0.0 if quick else 1.0))
    with warnings.catch_warnings():  # torch's own, on the first use of forward mode
        warnings.simplefilter("ignore", DeprecationWarning)
        found = {key: way() for key, way in hessians.items()}
        hessian_s = interleaved(hessians, 0.0 if quick else 10.0)
    references = {horizon: found[SEQUENTIAL, horizon] for horizon in horizons}
    errors = {
        (name, horizon): float(
            np.abs(result - references[horizon]).max() / np.abs(references[horizon]).max()
        )
        for (name, horizon), result in found.items()
    }
    sizes = tuple(dict.fromkeys(n for _, n in solve_s))
    return Figures(horizons, sizes, len(matrix) - 1, hessian_s, errors, solve_s, residuals)


def values(figures: Figures) -> dict[str, str]:
    """Everything that the page has a place for."""
    horizons, sizes = figures.horizons, figures.sizes
    usual = 50 if 50 in horizons else horizons[-1]
    n = sizes[1] if usual == 50 else sizes[-1]
    hessian = {name: t for (name, h), t in figures.hessian_s.items() if h == usual}
    solve = {name: t for (name, m), t in figures.solve_s.items() if m == n}
    dense_n = max(m for name, m in figures.solve_s if name == DENSE_CHOLESKY)
    dense_horizons = [h for h in horizons if h >= usual and (DENSE, h) in figures.hessian_s]
    growth = exponent(dense_horizons, [figures.hessian_s[DENSE, h] for h in dense_horizons])
    long = sizes[sizes.index(n) :]
    best = min((way for way in hessian if way != COMPILED), key=hessian.__getitem__)
    ratio = figures.solve_s[DENSE_CHOLESKY, dense_n] / figures.solve_s[BANDED, dense_n]
    ways = [
        [
            name,
            *(1e3 * figures.hessian_s.get((name, h), np.nan) for h in horizons),
            time / hessian[SEQUENTIAL],
        ]
        for name, time in hessian.items()
    ]
    solves = [
        [name, *(1e3 * figures.solve_s.get((name, m), np.nan) for m in sizes)] for name in solve
    ]
    return {
        "probes": str(2 * figures.half_bandwidth + 1),
        "half_bandwidth": str(figures.half_bandwidth),
        "horizon": str(usual),
        "n": number(n),
        "disagreement": number(max(figures.hessian_error.values())),
        "ways": table(["way", *(f"N = {h}" for h in horizons), "of the first"], ways),
        "solvers": table(["solver", *(f"n = {number(m)}" for m in sizes)], solves),
        "residual": number(max(figures.solve_residual.values())),
        "growth": number(exponent(long, [figures.solve_s[BANDED, m] for m in long]), 3),
        "sequential.verdict": verdict(hessian[SEQUENTIAL] <= min(hessian.values())),
        "eager_gain": number(hessian[SEQUENTIAL] / hessian[best]),
        "compiled_gain": number(hessian[SEQUENTIAL] / hessian.get(COMPILED, np.nan)),
        "samples.verdict": verdict(hessian[BATCHED] < hessian[DENSE]),
        "of_dense": number(hessian[BATCHED] / hessian[DENSE]),
        "dense_growth": number(growth),
        "solver.verdict": verdict(solve[BANDED] < min(solve[DENSE_CHOLESKY], solve[SPARSE])),
        "cholesky_us": number(1e6 * solve[BANDED]),
        "dense_ratio": number(solve[DENSE_CHOLESKY] / solve[BANDED]),
        "sparse_ratio": number(solve[SPARSE] / solve[BANDED]),
        "dense_n": number(dense_n),
        "dense_n_ratio": number(ratio),
        "solves_of_a_hessian": number(hessian[best] / solve[BANDED]),
    }


def plot(figures: Figures, images: Path) -> None:
    """Time of the Hessian and of the solve against size."""
    with plots.axes(images, "hessian_routes", 2, size=(4.5, 4.5)) as (left, right):
        panels = (
            (left, figures.horizons, figures.hessian_s),
            (right, figures.sizes, figures.solve_s),
        )
        for at, sizes, times in panels:
            for k, name in enumerate(dict.fromkeys(name for name, _ in times)):
                there = [m for m in sizes if (name, m) in times]
                plots.line(at, k, there, [1e3 * times[name, m] for m in there], name)
            at.set(xscale="log", yscale="log", ylabel="ms")
            at.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
        left.set(xlabel="horizon N", title="One Hessian")
        right.set(xlabel="number of variables n", title="One solve")
