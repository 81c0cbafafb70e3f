# SPDX-License-Identifier: Apache-2.0
"""The definite form of the Newton step against the banded KKT system and the penalty alone.

One loop of sequential quadratic programming solves the robots' problems, without inequalities,
in two ways that differ in linear algebra only: a Cholesky factor of ``H + rho J'J`` and sweeps of
the multipliers, as the package does, or LU of the interleaved KKT matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg

from benchmarks import optimizers, study
from benchmarks.stagewise import Evaluation, Stagewise, without_inequalities
from benchmarks.study import Chapter, Verdict, number
from mpc_banded.ocp import banded
from mpc_banded.ocp.transcription import Transcription

TOLERANCE = 1e-6
#: rho of the definite form, relative to the mean curvature of the costs: the package's.
PENALTY = 1e7
SWEEPS = (1, 2, 3, 6)
MERIT_PENALTY = 10.0
#: Ways of the loop to its Newton step.
DEFINITE, KKT, GUARDED = "definite form", "KKT", "KKT, guarded by the definite form"


class KktSystem:
    """Rows and columns interleaved as (u_k, lambda_k, x_{k+1}), so that the matrix is banded.

    With an explicit scheme its half bandwidth is that of the definite form, ``nu + 2 nx - 1``;
    with an implicit one x_k meets x_{k+1} across lambda_k, ``nu + 3 nx - 1``.

    Args:
        transcription: Of the problem, without inequalities.
        explicit: Whether x_{k+1} enters each defect linearly.
    """

    def __init__(self, transcription: Transcription, explicit: bool) -> None:
        problem, block = transcription.problem, transcription.block
        nx, nu, n = problem.nx, problem.nu, transcription.n
        self.half_bandwidth = nu + (2 if explicit else 3) * nx - 1
        self.size = n + problem.horizon * nx
        stage, entry = np.divmod(np.arange(n), block)
        self.of_z = stage * (block + nx) + entry + nx * (entry >= nu)
        stages = np.arange(problem.horizon)[:, None]
        self.of_multipliers = stages * (block + nx) + nu + np.arange(nx)

        row = np.arange(n)[:, None] + np.arange(transcription.half_bandwidth + 1)  # (n, b + 1)
        row, column = self.of_z[np.minimum(row, n - 1)], self.of_z[:, None]
        self._known = (np.arange(n)[:, None] + np.arange(row.shape[1]) < n) & (
            row - column <= self.half_bandwidth
        )
        row, column = np.broadcast_arrays(row, column)
        self._hessian = self._both(row[self._known], column[self._known])
        window = np.arange(-nx, block) + block * stages  # (N, 2 nx + nu)
        self._real = np.broadcast_to(
            (window >= 0)[:, None], (*stages.shape[:1], nx, window.shape[1])
        )
        column = self.of_z[np.maximum(window, 0)][:, None]
        row, column = np.broadcast_arrays(self.of_multipliers[:, :, None], column)
        self._jacobian = self._both(row[self._real], column[self._real])
        self._diagonal = self.half_bandwidth, self.of_z

    def _both(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat places in band storage of entries (row, column), and of (column, row)."""
        middle = self.half_bandwidth
        lower = (middle + row - column) * self.size + column
        return lower, (middle + column - row) * self.size + row

    def bands(self, hessian: np.ndarray, jacobian: np.ndarray, shift: float) -> np.ndarray:
        """Band storage (2 w + 1, n + N nx) of ``[[H + shift I, J'], [J, 0]]``."""
        matrix = np.zeros((2 * self.half_bandwidth + 1, self.size))
        for places, values in (
            (self._hessian, hessian.T[self._known]),
            (self._jacobian, jacobian[self._real]),
        ):
            for place in places:
                matrix.ravel()[place] = values
        matrix[self._diagonal] += shift
        return matrix

    def dense(self, bands: np.ndarray) -> np.ndarray:
        """The whole matrix, to look at."""
        w = self.half_bandwidth
        matrix = np.zeros((self.size, self.size))
        for d in range(-w, w + 1):
            there = bands[w + d, max(0, -d) : self.size - max(0, d)]
            column = np.arange(max(0, -d), self.size - max(0, d))
            matrix[column + d, column] = there
        return matrix

    def right_hand_side(self, gradient: np.ndarray, defects: np.ndarray) -> np.ndarray:
        """Minus the gradient of the costs and the defects, interleaved."""
        rhs = np.empty(self.size)
        rhs[self.of_z], rhs[self.of_multipliers] = -gradient, -defects
        return rhs

    def solve(self, e: Evaluation, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Step (n,) and new multipliers (N, nx), by banded LU, from an evaluation at rho = 0."""
        w = self.half_bandwidth
        matrix = self.bands(e.bands, e.jacobian, shift)
        rhs = self.right_hand_side(e.gradient, e.defects)
        solution = scipy.linalg.solve_banded((w, w), matrix, rhs, check_finite=False)
        return solution[self.of_z], solution[self.of_multipliers]


def definite_step(
    bands: np.ndarray,
    e: Evaluation,
    multipliers: np.ndarray,
    rho: float,
    sweeps: int,
    accuracy: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The same from ``bands`` of ``H + rho J'J``, sweeping until the defects' change is right.

    Raises:
        NotPositiveDefinite: There is no factor.
    """
    factor = banded.cholesky(bands)
    for _ in range(sweeps):
        target = multipliers + rho * e.defects
        step = factor.solve(-e.gradient - e.defects_transposed(target))
        change = e.defects + e.defects_times(step)
        multipliers = multipliers + rho * change
        if np.abs(change).max() <= accuracy:
            break
    return step, multipliers


@dataclass(frozen=True)
class Run:
    """How sequential quadratic programming went."""

    iterations: int
    converged: bool
    cost: float
    z: np.ndarray
    multipliers: np.ndarray


class Subject:
    """A robot's problem without inequalities, and both ways to its Newton step.

    Args:
        robot: One of study.ROBOTS.
        horizon: Number of intervals; 0 takes the file's.
    """

    def __init__(self, robot: str, horizon: int = 0) -> None:
        self.task = without_inequalities(study.task(robot, horizon))
        self.transcription = self.task.transcription
        self.stages = Stagewise(self.task)
        self.evaluate = self.stages.evaluate
        self.kkt = KktSystem(self.transcription, self.transcription.scheme in ("euler", "rk4"))
        self.zero = np.zeros((self.transcription.problem.horizon, self.transcription.problem.nx))
        self.scale = self.stages.mean_curvature(self.task.start)

    def direction(
        self, by: str, z: np.ndarray, e: Evaluation, multipliers: np.ndarray, shift: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Step and multipliers from an evaluation at z, of ``H + rho J'J`` if not by KKT alone.

        LU tells nothing of the inertia; by GUARDED, Cholesky's method does.
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
        """Sequential quadratic programming, from the cold start if not from elsewhere."""
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
        """A step that decreases the augmented Lagrangian at the new multipliers, if there is."""
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
        half_bandwidths, sizes: Of the definite form and of the KKT matrix.
        definite_s, kkt_s: Medians of one step, factor and solves, in seconds.
        lu_s: Of factor and solve in kkt_s, which assembles the matrix as well.
        conditions: Condition number of the definite form by rho; NaN where it is not definite.
        kkt_condition: Of the KKT matrix.
        errors: Largest relative error of the step by (rho, sweeps).
        kkt_error: The same of LU.
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
    """The minimum of costs plus penalty alone.

    Attributes:
        defect: Largest defect there.
        predicted: What multipliers/rho say of it.
        input_error: Largest error of the first input, relative.
        iterations: From the cold start; None if the limit came first.
    """

    defect: float
    predicted: float
    input_error: float
    iterations: int | None


@dataclass(frozen=True)
class Figures:
    """By robot, and by (robot, rho) for the penalty."""

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
    for robot in study.ROBOTS:
        subject = Subject(robot, 8 if quick else 0)
        for by in (DEFINITE, GUARDED, KKT):
            runs[robot, by] = subject.solve(by, limit)
        linear[robot] = _linear(subject, runs[robot, DEFINITE], rhos, 0.0 if quick else 1.0)
        penalties.update(
            {(robot, rho): p for rho, p in _penalty(subject, powers.tolist(), limit).items()}
        )
    return Figures(linear, runs, penalties, limit)


def _penalty(subject: Subject, powers: list[float], limit: int) -> dict[float, Penalty]:
    """Minimises the penalty function cold, and from the minimum at the last, lesser, rho."""
    z, minima, iterations = subject.task.start, {}, {}
    for rho in powers:
        f = optimizers.Penalised(subject.task, rho)
        cold = optimizers.newton(f, subject.task.start, limit)
        iterations[rho] = cold.iterations if cold.converged else None
        z = optimizers.newton(f, z, 3 * limit).end
        minima[rho] = z, subject.stages.values(z)[1], f.rho
    # There may be several minima: the exact one is that which the penalty's lead to.
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
    """Looks at the Newton system a little off the solution."""
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
    times = study.interleaved(
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


def write(figures: Figures, images: Path) -> Chapter:
    """Tables and plots of what ``measure`` found."""
    _plot(figures, images)
    linear, runs = figures.linear, figures.runs
    powers = sorted({rho for _, rho in figures.penalties})
    systems = [
        [
            robot,
            f"{at.half_bandwidths[0]} / {at.half_bandwidths[1]}",
            f"{at.sizes[0]} / {at.sizes[1]}",
            1e6 * at.definite_s,
            1e6 * at.kkt_s,
            1e6 * at.lu_s,
            at.conditions.get(PENALTY, float("nan")),
            at.kkt_condition,
            at.errors.get((PENALTY, SWEEPS[-1]), float("nan")),
            at.kkt_error,
        ]
        for robot, at in linear.items()
    ]
    solves = [
        [robot, *(_cell(runs[robot, by]) for by in (DEFINITE, GUARDED, KKT))] for robot in linear
    ]
    alone = [
        [
            robot,
            *(
                f"{number(p.defect)} / {'–' if p.iterations is None else p.iterations}"
                for p in (figures.penalties[robot, rho] for rho in powers)
            ),
            figures.penalties[robot, powers[-2]].input_error,
        ]
        for robot in linear
    ]
    text = f"""
The robots' problems from the cold start, with their dynamics to obey and nothing else. The
definite form factors `H + ρJ'J` by Cholesky's method and sweeps the multipliers,
`λ ← λ + ρ(d + Js)`, until the linearised defects vanish. The KKT form solves
`[[H, J'], [J, 0]]` with unknowns interleaved as `(u_k, λ_k, x_{{k+1}})` by banded LU. Both find
the same step `s`. Half bandwidth, number of unknowns, time of a step in µs, condition number and
error of the step, definite form with ρ = {number(PENALTY)} and at most {SWEEPS[-1]} sweeps against
KKT:

{
        study.table(
            [
                "robot",
                "half bandwidth",
                "unknowns",
                "definite",
                "KKT",
                "its LU alone",
                "condition, definite",
                "KKT",
                "error, definite",
                "KKT",
            ],
            systems,
        )
    }

With an explicit scheme (bicycle, rk4) both have the same half bandwidth; an implicit one widens
the KKT matrix. LU is the more exact; what Cholesky loses is the condition number that ρ brings,
what sweeps lose with a small ρ is their pace:

{study.figure("hessian_definite", "Condition number, error of the step, and defect against rho")}

The same loop with either, same line search, iterations and cost reached (a dash: not converged in
{figures.limit} iterations). "Guarded" takes the KKT step only where the definite form at the same
shift has a Cholesky factor:

{study.table(["robot", DEFINITE, GUARDED, KKT], solves)}

LU does not tell a minimum from a saddle. Cholesky's method does, and with its answer the KKT form
takes the same steps as the definite one. (A symmetric indefinite factorisation would tell as well,
but LAPACK has none for band storage.)

The penalty alone, `ρ/2` times the squares of the defects without multipliers, as in the seed:
largest defect at the minimum / iterations from the cold start, and the relative error of the first
input at ρ = {number(powers[-2])}:

{study.table(["robot", *(f"ρ = {number(rho)}" for rho in powers), "input"], alone)}

The defects are `-λ/ρ`: from ρ = {number(powers[-2])} to {number(powers[-1])} they fall with
exponent {number(_exponent(figures, powers), 3)}, while the iterations grow.
"""
    return Chapter(
        "Definite form, KKT, penalty alone", text.strip(), tuple(_verdicts(figures, powers))
    )


def _exponent(figures: Figures, powers: list[float]) -> float:
    return float(
        np.mean(
            [
                study.exponent(powers[-2:], [figures.penalties[r, p].defect for p in powers[-2:]])
                for r in figures.linear
            ]
        )
    )


def _cell(run: Run) -> str:
    return f"{run.iterations if run.converged else '–'}, cost {number(run.cost, 4)}"


def _verdicts(figures: Figures, powers: list[float]) -> list[Verdict]:
    robots, runs = list(figures.linear), figures.runs
    reached = {
        by: sum(
            runs[r, by].converged and runs[r, by].cost <= runs[r, DEFINITE].cost * (1.0 + 1e-4)
            for r in robots
        )
        for by in (DEFINITE, GUARDED, KKT)
    }
    ratios = [at.lu_s / at.definite_s for at in figures.linear.values()]
    whole = [at.kkt_s / at.definite_s for at in figures.linear.values()]
    defect = max(figures.penalties[r, powers[-2]].defect for r in robots)
    iterations = [figures.penalties[r, powers[-1]].iterations for r in robots]
    known = [i for i in iterations if i is not None]
    needed = [runs[r, DEFINITE].iterations for r in robots]
    return [
        Verdict(
            "SQP by LU of the banded KKT matrix",
            reached[KKT] == len(robots) and max(ratios) < 1.0,
            f"It reaches the definite form's minimum, or a lower one, on {reached[KKT]} of "
            f"{len(robots)} robots; LU alone takes {number(min(ratios))} to "
            f"{number(max(ratios))} times the time of the definite step with all its sweeps, "
            f"{number(min(whole))} to {number(max(whole))} with the assembly.",
        ),
        Verdict(
            "A definite form of the same step, for solveh_banded",
            reached[DEFINITE] == len(robots),
            f"`H + ρJ'J` with multiplier sweeps converges on {reached[DEFINITE]} of "
            f"{len(robots)} robots, in {min(needed)} to {max(needed)} iterations, as many as KKT "
            f"needs where the definite form guards it "
            f"({', '.join(str(runs[r, GUARDED].iterations) for r in robots)} against "
            f"{', '.join(map(str, needed))}).",
        ),
        Verdict(
            "The finite difference scheme as a penalty in the cost",
            defect <= TOLERANCE,
            f"At ρ = {number(powers[-2])} times the costs' curvature a defect of "
            f"{number(defect)} remains, and it falls with exponent "
            f"{number(_exponent(figures, powers), 3)} in ρ; at {number(powers[-1])} a cold start "
            f"converges within {figures.limit} iterations on {len(known)} of {len(robots)} robots"
            f"{f', in up to {max(known)} iterations' if known else ''}; with multipliers defects "
            f"below {number(TOLERANCE)} take at most {max(needed)}.",
        ),
    ]


def _plot(figures: Figures, images: Path) -> None:
    powers = sorted({rho for _, rho in figures.penalties})
    shown = "bicycle"
    at = figures.linear[shown]
    rhos = sorted(at.conditions)
    with study.axes(images, "hessian_definite", 3) as (left, middle, right):
        for k, (robot, system) in enumerate(figures.linear.items()):
            study.line(left, k, rhos, [system.conditions[rho] for rho in rhos], robot)
            left.axhline(system.kkt_condition, color=study.COLORS[k], lw=1, ls=":")
            defects = [figures.penalties[robot, rho].defect for rho in powers]
            study.line(right, k, powers, defects, robot)
        left.plot([], [], "k:", lw=1, label="KKT")
        for k, sweeps in enumerate(SWEEPS):
            label = f"{sweeps} sweep{'s' if sweeps > 1 else ''}"
            study.line(middle, k, rhos, [at.errors[rho, sweeps] for rho in rhos], label)
        middle.axhline(at.kkt_error, color="k", lw=1, ls=":", label="KKT")
        right.axhline(TOLERANCE, color="k", lw=1, ls=":", label="tolerance of the solver")
        left.set_title("Condition number of H + ρJ'J")
        middle.set_title(f"Relative error of the step, {shown}")
        right.set_title("Largest defect, penalty alone")
        for axes in (left, middle, right):
            axes.set(xscale="log", yscale="log", xlabel="ρ")
            axes.legend()


if __name__ == "__main__":
    study.run_alone(measure, write)
