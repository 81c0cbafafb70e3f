# SPDX-License-Identifier: Apache-2.0
"""The definite form of the Newton step against the banded KKT system and the penalty alone.

One loop of sequential quadratic programming solves the robots' problems without inequalities. It
takes its step in two ways that differ in linear algebra only: a Cholesky factor of ``H + rho J'J``
with sweeps of the multipliers, as the package does, or LU of the interleaved KKT matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg

from benchmarks import plots
from benchmarks.hessian_study import optimizers, problems
from benchmarks.hessian_study.newton_steps import KktSystem, definite_step
from benchmarks.hessian_study.problems import verdict, without_inequalities
from benchmarks.hessian_study.stagewise import Evaluation, Stagewise
from benchmarks.pages import number, table
from benchmarks.timing import exponent, interleaved
from mpc_banded.ocp import banded

TOLERANCE = 1e-6
#: rho of the definite form, relative to the mean curvature of the costs, as in the package.
PENALTY = 1e7
SWEEPS = (1, 2, 3, 6)
MERIT_PENALTY = 10.0
#: How the loop computes its Newton step.
DEFINITE, KKT, GUARDED = "definite form", "KKT", "KKT, guarded by the definite form"
WAYS = (DEFINITE, GUARDED, KKT)


@dataclass(frozen=True)
class Run:
    """End of a run of sequential quadratic programming."""

    iterations: int
    converged: bool
    cost: float
    z: np.ndarray
    multipliers: np.ndarray


class Subject:
    """A robot's problem without inequalities, with both ways to its Newton step.

    Args:
        robot: Name of the robot.
        horizon: Number of intervals; 0 for that of the file.
    """

    def __init__(self, robot: str, horizon: int = 0) -> None:
        self.task = without_inequalities(problems.task(robot, horizon))
        self.transcription = self.task.transcription
        self.stages = Stagewise(self.task)
        self.evaluate = self.stages.evaluate
        self.kkt = KktSystem(self.transcription, self.transcription.scheme in ("euler", "rk4"))
        self.zero = np.zeros((self.transcription.problem.horizon, self.transcription.problem.nx))
        self.scale = self.stages.mean_curvature(self.task.start)

    def direction(
        self, by: str, z: np.ndarray, e: Evaluation, multipliers: np.ndarray, shift: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Step and multipliers from an evaluation at z.

        LU does not tell the inertia; GUARDED takes it from Cholesky's method on ``H + rho J'J``.
        """
        if by == KKT:
            return self.kkt.solve(e, shift)
        matrix = e.bands.copy(order="K")
        matrix[0] += shift
        if by == GUARDED:
            banded.cholesky(matrix)
            e = self.evaluate(z, multipliers, 0.0)
            return self.kkt.solve(e, shift)
        accuracy = max(0.1 * TOLERANCE, 0.01 * np.abs(e.defects).max())
        return definite_step(matrix, e, multipliers, PENALTY * self.scale, SWEEPS[-1], accuracy)

    def solve(
        self,
        by: str,
        limit: int,
        z: np.ndarray | None = None,
        multipliers: np.ndarray | None = None,
        tolerance: float = TOLERANCE,
    ) -> Run:
        """Sequential quadratic programming, from the cold start unless z (n,) is given."""
        z = self.task.start if z is None else z
        multipliers = self.zero if multipliers is None else multipliers
        rho, shift = 0.0 if by == KKT else PENALTY * self.scale, 0.0
        for k in range(limit + 1):
            e = self.evaluate(z, multipliers, rho)
            of_dynamics = e.defects_transposed(multipliers)
            kkt = np.abs(e.gradient + of_dynamics).max() / (1.0 + np.abs(e.gradient).max())
            converged = bool(max(kkt, np.abs(e.defects).max()) <= tolerance)
            found = None
            while not converged and k < limit and shift <= 1e10 * self.scale:
                found = self._advance(by, z, e, multipliers, shift)
                if found is not None:
                    break
                shift = max(8.0 * shift, 1e-6 * self.scale)
            if found is None:
                break
            z, multipliers = found
            shift = shift / 8.0 if shift > 8e-6 * self.scale else 0.0
        return Run(k, converged, e.cost, z, multipliers)

    def _advance(
        self, by: str, z: np.ndarray, e: Evaluation, multipliers: np.ndarray, shift: float
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Step that decreases the augmented Lagrangian at the new multipliers, if there is one."""
        try:
            step, reached = self.direction(by, z, e, multipliers, shift)
        except (banded.NotPositiveDefinite, np.linalg.LinAlgError):
            return None
        change = e.defects_times(step)
        slope = e.gradient @ step + (reached * change).sum()
        bend, rho = (e.defects * change).sum(), MERIT_PENALTY * self.scale
        noise = 1e-13 * abs(e.cost)
        if slope + 0.5 * rho * bend > noise:
            if not 2.0 * slope < -bend * PENALTY * self.scale:
                return None
            rho = -2.0 * slope / bend
        slope += rho * bend
        if slope > noise:
            return None

        def merit(cost: float, d: np.ndarray) -> float:
            return cost + float((reached * d).sum() + 0.5 * rho * (d * d).sum())

        value = merit(e.cost, e.defects)
        for length in 0.5 ** np.arange(13):
            candidate = z + length * step
            if merit(*self.stages.values(candidate)) <= value + 1e-4 * length * slope + (
                np.inf if -slope <= noise else noise
            ):
                return candidate, multipliers + length * (reached - multipliers)
        return None


@dataclass(frozen=True)
class Linear:
    """One Newton system of one robot.

    Attributes:
        half_bandwidths, sizes: Half bandwidth and size of the definite form and of the KKT matrix.
        definite_s, kkt_s: Median seconds of one step, factor and solves.
        lu_s: Seconds of factor and solve within kkt_s, which also assembles the matrix.
        conditions: Condition number of the definite form by rho; NaN where it is not definite.
        kkt_condition: Condition number of the KKT matrix.
        errors: Largest relative error of the step by (rho, sweeps).
        kkt_error: Largest relative error of the step by LU.
    """

    half_bandwidths: tuple[int, int]
    sizes: tuple[int, int]
    definite_s: float
    kkt_s: float
    lu_s: float
    conditions: dict[float, float]
    kkt_condition: float
    errors: dict[tuple[float, int], float]
    kkt_error: float


@dataclass(frozen=True)
class Penalty:
    """Minimum of costs plus penalty, without multipliers.

    Attributes:
        defect: Largest defect there.
        predicted: Largest multiplier over rho, which it should be.
        input_error: Largest relative error of the first input.
        iterations: Iterations from the cold start; None if the limit came first.
    """

    defect: float
    predicted: float
    input_error: float
    iterations: int | None


@dataclass(frozen=True)
class Figures:
    """Systems by robot, runs by (robot, way), penalties by (robot, rho)."""

    linear: dict[str, Linear]
    runs: dict[tuple[str, str], Run]
    penalties: dict[tuple[str, float], Penalty]
    limit: int


def measure(quick: bool) -> Figures:
    """Both ways and the penalty on every robot."""
    limit = 60 if quick else 300
    rhos = 10.0 ** np.arange(0, 9 if quick else 11, 2 if quick else 1)
    powers = 10.0 ** np.arange(0, 5 if quick else 9, 2)
    linear, runs, penalties = {}, {}, {}
    for robot in problems.ROBOTS:
        subject = Subject(robot, 8 if quick else 0)
        for by in WAYS:
            runs[robot, by] = subject.solve(by, limit)
        linear[robot] = _linear(subject, runs[robot, DEFINITE], rhos, 0.0 if quick else 1.0)
        penalties.update(
            {(robot, rho): p for rho, p in _penalty(subject, powers.tolist(), limit).items()}
        )
    return Figures(linear, runs, penalties, limit)


def _penalty(subject: Subject, powers: list[float], limit: int) -> dict[float, Penalty]:
    """Minimise the penalty function from the cold start, and from the minimum of the last rho."""
    z, minima, iterations = subject.task.start, {}, {}
    for rho in powers:
        f = optimizers.Penalised(subject.task, rho)
        cold = optimizers.newton(f, subject.task.start, limit)
        iterations[rho] = cold.iterations if cold.converged else None
        z = optimizers.newton(f, z, 3 * limit).end
        minima[rho] = z, subject.stages.values(z)[1], f.rho
    # There may be several minima; compare with the one that those of the penalty lead to.
    z, defects, rho = minima[powers[-1]]
    exact = subject.solve(GUARDED, limit, z, rho * defects, 1e-3 * TOLERANCE)
    nu, largest = subject.transcription.problem.nu, np.abs(exact.multipliers).max()
    return {
        power: Penalty(
            float(np.abs(defects).max()),
            float(largest / rho),
            float(np.abs(z[:nu] - exact.z[:nu]).max() / np.abs(exact.z[:nu]).max()),
            iterations[power],
        )
        for power, (z, defects, rho) in minima.items()
    }


def _linear(subject: Subject, solution: Run, rhos: np.ndarray, seconds: float) -> Linear:
    """Newton system at a point near the solution."""
    noise = np.random.default_rng(0).standard_normal(len(solution.z))
    z, multipliers = solution.z + 1e-3 * noise, solution.multipliers
    plain = subject.evaluate(z, multipliers, 0.0)
    w = subject.kkt.half_bandwidth
    matrix = subject.kkt.bands(plain.bands, plain.jacobian, 0.0)
    dense = subject.kkt.dense(matrix)
    rhs = subject.kkt.right_hand_side(plain.gradient, plain.defects)
    exact = _refined(dense, rhs)[subject.kkt.of_z]

    def error(step: np.ndarray) -> float:
        return float(np.abs(step - exact).max() / np.abs(exact).max())

    conditions, errors = {}, {}
    for rho in rhos.tolist():
        e = subject.evaluate(z, multipliers, rho * subject.scale)
        for sweeps in SWEEPS:
            try:
                step, _ = definite_step(e.bands, e, multipliers, rho * subject.scale, sweeps)
                errors[rho, sweeps] = error(step)
                conditions[rho] = float(np.linalg.cond(banded.to_dense(e.bands)))
            except banded.NotPositiveDefinite:
                errors[rho, sweeps] = conditions[rho] = float("nan")
    e = subject.evaluate(z, multipliers, PENALTY * subject.scale)
    times = interleaved(
        {
            "definite": lambda: subject.direction(DEFINITE, z, e, multipliers, 0.0),
            "kkt": lambda: subject.kkt.solve(plain),
            "lu": lambda: scipy.linalg.solve_banded((w, w), matrix, rhs, check_finite=False),
        },
        seconds,
        at_least=20,
    )
    return Linear(
        (subject.transcription.half_bandwidth, subject.kkt.half_bandwidth),
        (subject.transcription.n, subject.kkt.size),
        times["definite"],
        times["kkt"],
        times["lu"],
        conditions,
        float(np.linalg.cond(dense)),
        errors,
        error(subject.kkt.solve(plain)[0]),
    )


def _refined(matrix: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Solution of a linear system, refined with residuals in extended precision."""
    factor = scipy.linalg.lu_factor(matrix)
    wide, solution = matrix.astype(np.longdouble), np.zeros_like(rhs, dtype=np.longdouble)
    for _ in range(5):
        residual = (rhs - wide @ solution).astype(float)
        solution = solution + scipy.linalg.lu_solve(factor, residual)
    return solution.astype(float)


def values(figures: Figures) -> dict[str, str]:
    """Everything that the page has a place for."""
    linear, runs = figures.linear, figures.runs
    robots, powers = list(linear), sorted({rho for _, rho in figures.penalties})
    systems = [
        [
            robot,
            " / ".join(map(str, at.half_bandwidths)),
            " / ".join(map(str, at.sizes)),
            *(1e6 * seconds for seconds in (at.definite_s, at.kkt_s, at.lu_s)),
        ]
        for robot, at in linear.items()
    ]
    accuracy = [
        [
            robot,
            at.conditions.get(PENALTY, np.nan),
            at.kkt_condition,
            at.errors.get((PENALTY, SWEEPS[-1]), np.nan),
            at.kkt_error,
        ]
        for robot, at in linear.items()
    ]
    alone = [
        [
            robot,
            *(_penalty_cell(figures.penalties[robot, rho]) for rho in powers),
            figures.penalties[robot, powers[-2]].input_error,
        ]
        for robot in robots
    ]
    solves = [[robot, *(_run_cell(runs[robot, by]) for by in WAYS)] for robot in robots]
    found = {
        "systems": table(
            ["robot", "half bandwidth", "unknowns", "definite, µs", "KKT, µs", "LU alone, µs"],
            systems,
        ),
        "accuracy": table(
            ["robot", "condition, definite", "KKT", "error of the step, definite", "KKT"],
            accuracy,
        ),
        "solves": table(["robot", *WAYS], solves),
        "penalty": table(["robot", *(f"ρ = {number(rho)}" for rho in powers), "input"], alone),
    }
    return found | _judged(figures, powers)


def _judged(figures: Figures, powers: list[float]) -> dict[str, str]:
    robots, runs = list(figures.linear), figures.runs

    def reached(by: str) -> int:
        """Number of robots on which the loop reaches the cost of the definite form, or less."""
        least = {r: runs[r, DEFINITE].cost * (1.0 + 1e-4) for r in robots}
        return sum(runs[r, by].converged and runs[r, by].cost <= least[r] for r in robots)

    lu = [at.lu_s / at.definite_s for at in figures.linear.values()]
    whole = [at.kkt_s / at.definite_s for at in figures.linear.values()]
    needed = [runs[r, DEFINITE].iterations for r in robots]
    defect = max(figures.penalties[r, powers[-2]].defect for r in robots)
    slopes = [
        exponent(powers[-2:], [figures.penalties[r, p].defect for p in powers[-2:]])
        for r in robots
    ]
    last = [figures.penalties[r, powers[-1]].iterations for r in robots]
    return {
        "robots": str(len(robots)),
        "limit": str(figures.limit),
        "kkt.verdict": verdict(reached(KKT) == len(robots) and max(lu) < 1.0),
        "kkt.reached": str(reached(KKT)),
        "kkt.lu_time": f"{number(min(lu))} to {number(max(lu))}",
        "kkt.time": f"{number(min(whole))} to {number(max(whole))}",
        "definite.verdict": verdict(reached(DEFINITE) == len(robots)),
        "definite.reached": str(reached(DEFINITE)),
        "definite.iterations": f"{min(needed)} to {max(needed)}",
        "penalty.verdict": verdict(defect <= TOLERANCE),
        "penalty.rho": number(powers[-2]),
        "penalty.last_rho": number(powers[-1]),
        "penalty.defect": number(defect),
        "penalty.exponent": number(float(np.mean(slopes)), 3),
        "penalty.converged": str(sum(i is not None for i in last)),
        "penalty.iterations": str(max((i for i in last if i is not None), default=0)),
    }


def _penalty_cell(penalty: Penalty) -> str:
    return (
        f"{number(penalty.defect)} / {'–' if penalty.iterations is None else penalty.iterations}"
    )


def _run_cell(run: Run) -> str:
    return f"{run.iterations if run.converged else '–'}, cost {number(run.cost, 4)}"


def plot(figures: Figures, images: Path) -> None:
    """Condition number, error of the step, and defect of the penalty alone against rho."""
    powers = sorted({rho for _, rho in figures.penalties})
    shown = "bicycle"
    at = figures.linear[shown]
    rhos = sorted(at.conditions)
    with plots.axes(images, "hessian_definite", 3) as (left, middle, right):
        for k, (robot, system) in enumerate(figures.linear.items()):
            plots.line(left, k, rhos, [system.conditions[rho] for rho in rhos], robot)
            left.axhline(system.kkt_condition, color=plots.COLORS[k], lw=1, ls=":")
            defects = [figures.penalties[robot, rho].defect for rho in powers]
            plots.line(right, k, powers, defects, robot)
        left.plot([], [], "k:", lw=1, label="KKT")
        for k, sweeps in enumerate(SWEEPS):
            label = f"{sweeps} sweep{'s' if sweeps > 1 else ''}"
            plots.line(middle, k, rhos, [at.errors[rho, sweeps] for rho in rhos], label)
        middle.axhline(at.kkt_error, color="k", lw=1, ls=":", label="KKT")
        right.axhline(TOLERANCE, color="k", lw=1, ls=":", label="tolerance of the solver")
        left.set_title("Condition number of H + ρJ'J")
        middle.set_title(f"Relative error of the step, {shown}")
        right.set_title("Largest defect, penalty alone")
        for axes in (left, middle, right):
            axes.set(xscale="log", yscale="log", xlabel="ρ")
            axes.legend()
