# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG001, ARG005
"""Small optimal control problems for the tests, with slow, obvious evaluations of them."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import scipy.optimize
import torch

from mpc_banded.codegen.build import Library
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.compiled import CompiledEvaluator
from mpc_banded.ocp.controller import ControlStep, RecedingHorizonController
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.evaluator import Evaluator
from mpc_banded.ocp.kernels import kernel_source
from mpc_banded.ocp.newton import Point, Scaling
from mpc_banded.ocp.problem import STATE_BOUND_PENALTY, OptimalControlProblem
from mpc_banded.ocp.solver import NewtonSolver, Solution, SolverOptions
from mpc_banded.ocp.transcription import SCHEMES, StageData, Transcription

A = torch.tensor([[0.0, 1.0], [0.0, -0.2]], dtype=torch.float64)
B = torch.tensor([[0.0], [1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A problem with a state and parameters to solve it from."""

    problem: OptimalControlProblem
    state: np.ndarray
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)

    def data(self, transcription: Transcription, weights: Mapping[str, float] | None = None):
        weights = self.problem.weights if weights is None else weights
        return transcription.stage_data(self.state, self.parameters, weights)


def squared(vector: torch.Tensor) -> torch.Tensor:
    return (vector * vector).sum(dim=-1)


def double_integrator(horizon: int = 12, dt: float = 0.1, **options) -> Case:
    """A cart with friction on a line, brought to rest at zero: linear and quadratic."""
    problem = OptimalControlProblem(
        nx=2,
        nu=1,
        horizon=horizon,
        dt=dt,
        dynamics=lambda x, u, p: x @ A.T + u @ B.T,
        stage_costs={"state": lambda x, u, p: squared(x), "effort": lambda x, u, p: squared(u)},
        terminal_costs={"rest": lambda x, p: squared(x)},
        weights={"state": 1.0, "effort": 0.1, "rest": 5.0},
        **options,
    )
    return Case(problem, np.array([1.0, 0.5]))


def unicycle(horizon: int = 10, dt: float = 0.2, **options) -> Case:
    """Drives to a goal past a disc that is in the way."""

    def dynamics(x, u, p):
        speed, heading = u[..., 0], x[..., 2]
        return torch.stack([speed * heading.cos(), speed * heading.sin(), u[..., 1]], dim=-1)

    def clearance(x, u, p):
        disc = p["disc"]
        return squared(x[..., :2] - disc[..., :2])[..., None] - disc[..., 2:] ** 2

    problem = OptimalControlProblem(
        nx=3,
        nu=2,
        horizon=horizon,
        dt=dt,
        dynamics=dynamics,
        stage_costs={
            "goal": lambda x, u, p: squared(x[..., :2] - p["goal"]),
            "effort": lambda x, u, p: squared(u),
        },
        terminal_costs={"arrival": lambda x, p: squared(x[..., :2] - p["goal"])},
        weights={"effort": 0.1, "arrival": 4.0},
        **{
            "input_bounds": ([-0.2, -1.5], [1.0, 1.5]),
            "inequalities": {"clearance": clearance},
            "penalties": {"clearance": (50.0, 50.0)},
            "parameters": {"goal": (2,), "disc": (3,)},
            **options,
        },
    )
    parameters = {"goal": np.array([1.8, 0.1]), "disc": np.array([0.8, 0.0, 0.3])}
    return Case(problem, np.array([0.0, 0.05, 0.1]), parameters)


def bicycle(horizon: int = 8, dt: float = 0.1, **options) -> Case:
    """Changes lane: kinematic, rear axle; states are position, heading, speed."""

    def dynamics(x, u, p):
        heading, speed = x[..., 2], x[..., 3]
        turn = speed * u[..., 1].tan() / 2.5
        return torch.stack([speed * heading.cos(), speed * heading.sin(), turn, u[..., 0]], dim=-1)

    problem = OptimalControlProblem(
        nx=4,
        nu=2,
        horizon=horizon,
        dt=dt,
        dynamics=dynamics,
        stage_costs={
            "tracking": lambda x, u, p: squared((x - p["reference"])[..., 1:]),
            "effort": lambda x, u, p: squared(u),
            "comfort": lambda x, u, p: (x[..., 3] ** 2 * u[..., 1].tan()) ** 2,
        },
        terminal_costs={"end": lambda x, p: squared((x - p["reference"])[..., 1:])},
        weights={"effort": 0.2, "comfort": 1e-4, "end": 10.0},
        parameters={"reference": (4,)},
        **{
            "input_bounds": ([-3.0, -0.5], [2.0, 0.5]),
            "state_bounds": ([-np.inf, -np.inf, -0.6, 0.0], [np.inf, np.inf, 0.6, 5.5]),
            **options,
        },
    )
    return Case(
        problem, np.array([0.0, 0.0, 0.05, 5.0]), {"reference": np.array([0.0, 1.0, 0.0, 5.2])}
    )


def cartpole(horizon: int = 10, dt: float = 0.05, **options) -> Case:
    """Keeps a pole up: states are position, angle from upright, and their rates."""

    def dynamics(x, u, p):
        angle, speed, rate, force = x[..., 1], x[..., 2], x[..., 3], u[..., 0]
        sin, cos = angle.sin(), angle.cos()
        mass, length, gravity = 0.1, 0.8, 9.81
        across = (force + mass * sin * (length * rate**2 - gravity * cos)) / (1 + mass * sin**2)
        angular = (gravity * sin - across * cos) / length
        return torch.stack([speed, rate, across, angular], dim=-1)

    problem = OptimalControlProblem(
        nx=4,
        nu=1,
        horizon=horizon,
        dt=dt,
        dynamics=dynamics,
        stage_costs={
            "upright": lambda x, u, p: 2.0 * (1.0 - x[..., 1].cos()) + 0.1 * squared(x),
            "effort": lambda x, u, p: squared(u),
        },
        terminal_costs={"balance": lambda x, p: squared(x)},
        weights={"effort": 1e-3, "balance": 3.0},
        **{"input_bounds": (-15.0, 15.0), **options},
    )
    return Case(problem, np.array([0.1, 0.4, 0.0, 0.2]))


def van_der_pol(horizon: int = 12, dt: float = 0.25, **options) -> Case:
    """An oscillator brought to rest with little effort, one state bounded from below."""

    def dynamics(x, u, p):
        x1, x2 = x[..., 0], x[..., 1]
        return torch.stack([x2, (1.0 - x1**2) * x2 - x1 + u[..., 0]], dim=-1)

    problem = OptimalControlProblem(
        nx=2,
        nu=1,
        horizon=horizon,
        dt=dt,
        dynamics=dynamics,
        stage_costs={"state": lambda x, u, p: squared(x), "effort": lambda x, u, p: squared(u)},
        **{
            "input_bounds": (-1.0, 0.75),
            "state_bounds": ([-np.inf, -0.4], [np.inf, np.inf]),
            **options,
        },
    )
    return Case(problem, np.array([1.0, 0.0]))


def tangled(
    nx: int, nu: int, horizon: int, seed: int = 0, inequalities: int = 2, **options
) -> Case:
    """A random, smooth problem whose functions couple all their arguments."""
    generator = torch.Generator().manual_seed(seed)

    def bowl(rows: int, columns: int) -> Callable:
        matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return lambda v: torch.sin(v @ matrix.T) + 0.1 * (v @ matrix.T) ** 2

    f, stage, end = bowl(nx, nx + nu + 2), bowl(1, nx + nu + 2), bowl(1, nx + 2)
    h = bowl(inequalities, nx + nu + 2)

    def join(*parts):
        return torch.cat(parts, dim=-1)

    problem = OptimalControlProblem(
        nx=nx,
        nu=nu,
        horizon=horizon,
        dt=0.3,
        dynamics=lambda x, u, p: f(join(x, u, p["a"])),
        stage_costs={"stage": lambda x, u, p: stage(join(x, u, p["a"]))[..., 0]},
        terminal_costs={"end": lambda x, p: end(join(x, p["a"]))[..., 0]},
        weights={"stage": 0.7, "end": 1.3},
        inequalities={"h": lambda x, u, p: h(join(x, u, p["a"]))} if inequalities else {},
        penalties={"h": (1.0, 1.0)} if inequalities else {},
        parameters={"a": (2,)},
        **options,
    )
    random = np.random.default_rng(seed)
    return Case(
        problem, random.standard_normal(nx), {"a": random.standard_normal((horizon + 1, 2))}
    )


def scalar(dynamics: Callable, cost: Callable, horizon: int = 4, **options) -> Case:
    """One state, one input, a step of half a second, begun at 1."""
    problem = OptimalControlProblem(
        nx=1, nu=1, horizon=horizon, dt=0.5, dynamics=dynamics, stage_costs={"c": cost}, **options
    )
    return Case(problem, np.array([1.0]))


CASES: dict[str, Callable[..., Case]] = {
    f.__name__: f for f in (double_integrator, unicycle, bicycle, cartpole, van_der_pol)
}


def random_point(transcription: Transcription, case: Case, seed: int = 0) -> np.ndarray:
    """A vector z near the state that satisfies no constraint."""
    random = np.random.default_rng(seed)
    problem = case.problem
    stages = 0.3 * random.standard_normal((problem.horizon, problem.nu + problem.nx))
    stages[:, problem.nu :] += case.state
    return stages.reshape(transcription.n)


def inputs_of(problem: OptimalControlProblem, vector: np.ndarray) -> np.ndarray:
    """The entries of a vector (n,) that belong to inputs, (N, nu); a view."""
    return vector.reshape(problem.horizon, -1)[:, : problem.nu]


def interior(case: Case, z: np.ndarray, share: float = 1e-2) -> np.ndarray:
    """A copy of ``z`` with its inputs that share inside of their bounds."""
    moved = z.copy()
    inputs = inputs_of(case.problem, moved)
    inputs[:] = Barrier(case.problem).interior(inputs, share)
    return moved


def row_values(transcription: Transcription, z: torch.Tensor, data: StageData) -> torch.Tensor:
    """All softened rows (N, r): inequalities, then lower, then upper bounds of the states."""
    problem = transcription.problem
    states = z.reshape(problem.horizon, -1)[:, problem.nu :]
    (at_low, low), (at_high, high) = (
        (np.isfinite(bound), torch.as_tensor(bound[np.isfinite(bound)]))
        for bound in problem.state_bounds
    )
    of_h = transcription.terms(z, data).inequalities
    return torch.cat([of_h, states[:, at_low] - low, high - states[:, at_high]], dim=-1)


def row_penalties(problem: OptimalControlProblem) -> np.ndarray:
    """Linear and quadratic weight (2, r) of each row of one stage."""
    widths = problem.inequality_widths.items()
    weights = [problem.penalties[name] for name, width in widths for _ in range(width)]
    bounds = sum(np.isfinite(bound).sum() for bound in problem.state_bounds)
    return np.array(weights + [STATE_BOUND_PENALTY] * bounds, dtype=float).reshape(-1, 2).T


def random_iterate(evaluator: Evaluator, case: Case, seed: int = 0, mu: float = 0.1) -> Point:
    """Random z inside the input bounds, random multipliers, duals around the central path."""
    transcription, problem = evaluator.transcription, case.problem
    random = np.random.default_rng(seed + 1)
    z = interior(case, random_point(transcription, case, seed), 0.05)
    central = evaluator.central_duals(z, mu, case.data(transcription))
    return Point(
        z,
        random.standard_normal((problem.horizon, problem.nx)),
        central * random.uniform(0.1, 10.0, central.shape),
        mu,
    )


def plain(evaluator: Evaluator, penalty: float = 1.0) -> Scaling:
    """A problem's own units, with rho of the Newton matrix."""
    problem = evaluator.transcription.problem
    return Scaling(np.ones(problem.nu), np.ones(problem.nx), 1.0, penalty)


def mixed(evaluator: Evaluator, penalty: float = 1.0) -> Scaling:
    """Units that are all different."""
    problem = evaluator.transcription.problem
    units = 0.5 + np.arange(problem.nu + problem.nx) / 7.0
    return Scaling(units[: problem.nu], units[problem.nu :], 0.3, penalty)


def dense_hessian(function: Callable, point: torch.Tensor) -> torch.Tensor:
    """All second derivatives (n, n), forward over reverse."""
    with warnings.catch_warnings():  # torch's own use of torch.jit
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.func.hessian(function)(point)


def standing(case: Case) -> np.ndarray:
    """Z of a trajectory that stays where it is."""
    problem = case.problem
    states = np.tile(case.state, (problem.horizon, 1))
    return np.hstack([np.zeros((problem.horizon, problem.nu)), states]).ravel()


def source_of(evaluator: Evaluator) -> str:
    """Return the C source of the kernels of an evaluator's problem."""
    return kernel_source(evaluator.transcription, evaluator.half_bandwidth)


def compiled_evaluator(evaluator: Evaluator, library: Library) -> CompiledEvaluator:
    """Return a compiled evaluator of the same problem."""
    return CompiledEvaluator(evaluator.transcription, library, evaluator.half_bandwidth)


def solver_of(case: Case, scheme: str = "midpoint", **options) -> NewtonSolver:
    options = SolverOptions(**options)
    transcription = Transcription(case.problem, scheme)
    evaluator = EagerEvaluator(transcription, options.half_bandwidth, options.recovery)
    return NewtonSolver(evaluator, options)


def solve(case: Case, scheme: str = "midpoint", start=None, weights=None, **options) -> Solution:
    """Solve with a new solver, by default from standing still."""
    solver = solver_of(case, scheme, **options)
    data = case.data(solver.evaluator.transcription, weights)
    return solver.solve(standing(case) if start is None else start, data)


def controller_of(
    case: Case, scheme: str = "midpoint", fallback: np.ndarray | None = None, **options
) -> RecedingHorizonController:
    return RecedingHorizonController(
        case.problem, scheme, options=SolverOptions(**options), fallback_command=fallback
    )


def assert_same_bits(one: ControlStep, other: ControlStep) -> None:
    for f in fields(ControlStep):
        if f.name not in ("solve_time_s", "plan"):
            np.testing.assert_equal(getattr(one, f.name), getattr(other, f.name))
    np.testing.assert_array_equal(one.plan.states, other.plan.states)
    np.testing.assert_array_equal(one.plan.inputs, other.plan.inputs)


def next_state(problem, scheme, substeps, x, u, p) -> np.ndarray:
    """Return the state (nx,) that the scheme reaches in one interval."""

    def defect(candidate: np.ndarray) -> np.ndarray:
        arguments = (torch.as_tensor(v) for v in (x, u, candidate))
        return SCHEMES[scheme](problem.dynamics, *arguments, p, problem.dt, substeps).numpy()

    root = scipy.optimize.root(defect, x, tol=1e-13)
    assert np.abs(root.fun).max() < 1e-9
    return root.x


def rollout(case: Case, scheme: str, inputs: np.ndarray, substeps: int = 1) -> np.ndarray:
    """States (N + 1, nx) that a scheme generates from the inputs (N, nu), one by one."""
    problem, states = case.problem, [case.state]
    values = problem.stage_parameters(case.parameters)
    for k, u in enumerate(inputs):
        p = {name: torch.as_tensor(value[k].copy()) for name, value in values.items()}
        states.append(next_state(problem, scheme, substeps, states[-1], u, p))
    return np.array(states)
