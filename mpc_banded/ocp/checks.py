# SPDX-License-Identifier: Apache-2.0
"""Checks of the promises that fast evaluation relies on, made once, when a problem is set up.

- First and second derivatives are those of their function, compared with differences.
- The Hessian fits the band, compared along a random probe.
- Machine code agrees with the torch functions that it was generated from.
"""

from __future__ import annotations

import logging
from dataclasses import astuple, fields

import numpy as np
import torch
from torch import Tensor

from mpc_banded.ocp import comb
from mpc_banded.ocp.differences import check_derivatives
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.evaluator import Evaluator
from mpc_banded.ocp.newton import NewtonSystem, Point, Scaling
from mpc_banded.ocp.transcription import StageData, Transcription, merit

_log = logging.getLogger(__name__)

#: Largest relative difference between compiled and eager results, and the number of points tried
#: until the eager ones are finite.
COMPARED = 1e-9
COMPARISONS = 5


def check_problem(evaluator: Evaluator, z: np.ndarray, data: StageData, seed: int = 0) -> None:
    """Compare derivatives and bands with the functions of a problem along random directions.

    Args:
        evaluator: Has the transcription, half bandwidth and recovery to check.
        z: Trajectory at which to check, (n,).
        data: Initial state, parameters and weights.
        seed: Seed of the random directions and multipliers.

    Raises:
        BandwidthError: The Hessian does not fit the half bandwidth.
        WrongDerivative: A derivative is not that of its function.
        ValueError: A term couples stages that it does not belong to, which the stagewise recovery
            cannot see.
    """
    generator = torch.Generator().manual_seed(seed)
    _check_slopes(evaluator.transcription, torch.tensor(z, dtype=torch.float64), data, generator)
    _check_band(evaluator, z, data, generator)


def _check_band(
    evaluator: Evaluator, z: np.ndarray, data: StageData, generator: torch.Generator
) -> None:
    """Compare the bands along a probe, with random multipliers so that every curvature counts."""
    transcription, recovery = evaluator.transcription, evaluator.recovery
    eager = EagerEvaluator(transcription, evaluator.half_bandwidth, recovery)
    point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    terms = transcription.terms(point, data)
    lam = torch.randn(terms.defects.shape, dtype=torch.float64, generator=generator)
    nu = torch.rand(terms.inequalities.shape, dtype=torch.float64, generator=generator)
    scalar = merit(terms, lam - terms.defects.detach(), torch.ones_like(lam[0, 0]), nu)
    (slope,) = torch.autograd.grad(scalar, point, create_graph=True)
    bands = eager.lagrangian_hessian(z, data, lam.numpy(), 1.0, nu)
    try:
        comb.check_band(bands, slope, point, generator=generator)
    except FloatingPointError:
        if recovery != "stagewise" or not np.isfinite(bands).all():
            raise
        raise ValueError(
            "a cost or inequality couples stages that it does not belong to: recovery "
            "'stagewise' cannot see that, 'direct' can"
        ) from None


def _check_slopes(
    transcription: Transcription, z: Tensor, data: StageData, generator: torch.Generator
) -> None:
    """Compare the derivatives of each cost, state's dynamics and inequality with differences."""
    problem = transcription.problem
    direction, mixed = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in (z.shape, (problem.horizon, 1))
    )

    def values(step: Tensor) -> Tensor:
        terms = transcription.terms(z + step * direction, data)
        rows = [(mixed * each).sum(dim=0) for each in (terms.defects, terms.inequalities)]
        return torch.cat([terms.costs, *rows])

    names = [f"cost {name!r}" for name in problem.cost_names]
    names += [f"the dynamics of state {i}" for i in range(problem.nx)]
    names += [f"inequality {i}" for i in range(sum(problem.inequality_widths.values()))]
    check_derivatives(names, values)


def compare(eager: EagerEvaluator, machine: Evaluator) -> None:
    """Compare all results of two evaluators at a random point where the eager ones are finite.

    Raises:
        ValueError: They differ.
    """
    for seed in range(COMPARISONS):
        point, data = _random_point(eager, np.random.default_rng(seed))
        wanted = eager.system(point, data, _scaling(eager))
        if np.isfinite(wanted.bands).all():
            break
    else:
        _log.warning(
            "compiled derivatives could not be compared: eager ones were finite at no point tried"
        )
    got = machine.system(point, data, _scaling(eager))
    names = [f.name for f in fields(NewtonSystem) if f.name != "point"]
    pairs = {name: (getattr(wanted, name), getattr(got, name)) for name in names}
    pairs["duals"] = (wanted.point.duals, got.point.duals)
    pairs["merit"] = _merits(eager, machine, point, data)
    for name, (a, b) in pairs.items():
        finite = np.isfinite(a)
        a, b = 1.0 * np.asarray(a)[finite], 1.0 * np.asarray(b)[finite]
        if a.size and not np.abs(a - b).max() <= COMPARED * (1.0 + np.abs(a).max()):
            raise ValueError(
                f"compiled and eager {name} differ by {np.abs(a - b).max():.1e}: look for float32 "
                "inside a function, for one that treats a batch unlike its members, for a cost "
                "that couples stages, and last at the compiler"
            )


def compare_merit(eager: EagerEvaluator, machine: Evaluator, name: str) -> None:
    """Compare the merit functions of two evaluators at a random point.

    Args:
        eager: An evaluator to trust.
        machine: The evaluator to check.
        name: Name of the latter in the message.

    Raises:
        ValueError: They differ.
    """
    point, data = _random_point(eager, np.random.default_rng(0))
    wanted, got = _merits(eager, machine, point, data)
    if not np.allclose(wanted, got, rtol=COMPARED, atol=COMPARED, equal_nan=True):
        raise ValueError(f"{name} belongs to another problem: {got} for {wanted}")


def _merits(
    eager: EagerEvaluator, machine: Evaluator, point: Point, data: StageData
) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of the merit function of both, (4,) each."""
    arguments = (point.z, point.multipliers, point.mu, data, _scaling(eager))
    one, other = (np.array(astuple(each.merit(*arguments))) for each in (eager, machine))
    return one, other


def _scaling(evaluator: Evaluator) -> Scaling:
    """Some units, all different."""
    problem = evaluator.transcription.problem
    units = 1.0 + np.arange(problem.nu + problem.nx) / 8.0
    return Scaling(units[: problem.nu], units[problem.nu :], 0.5, 1.0)


def _random_point(
    eager: EagerEvaluator, generator: np.random.Generator
) -> tuple[Point, StageData]:
    """Return a point inside the input bounds, of positive numbers as roots and logarithms want."""
    t = eager.transcription
    problem = t.problem

    def positive(*shape: int) -> np.ndarray:
        return generator.uniform(0.1, 1.5, shape)

    parameters = {
        name: positive(problem.horizon + 1, *shape) for name, shape in problem.parameters.items()
    }
    data = t.stage_data(positive(problem.nx), parameters, dict.fromkeys(problem.cost_names, 1.0))
    stages = positive(problem.horizon, t.block)
    stages[:, : problem.nu] = eager.barrier.interior(stages[:, : problem.nu])
    multipliers = generator.standard_normal((problem.horizon, problem.nx))
    duals = positive(problem.horizon, eager.barrier.width)
    return Point(stages.reshape(-1), multipliers, duals, 0.1), data
