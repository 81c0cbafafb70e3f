# SPDX-License-Identifier: Apache-2.0
"""Direct transcription: turns the continuous problem into functions of one flat vector.

The unknowns are ordered stage by stage, ``z = (u_0, x_1, u_1, x_2, .., u_{N-1}, x_N)``, so that
every term of the cost couples only neighbours and all second derivatives lie in a band. The
dynamics become *defects*, one per interval, which vanish when the trajectory obeys the scheme
(Betts, Practical Methods for Optimal Control, 3rd ed., section 4.5).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpc_banded.ocp.problem import Dynamics, OptimalControlProblem, Parameters, Trajectory

Scheme = Callable[[Dynamics, Tensor, Tensor, Tensor, Parameters, float, int], Tensor]


def euler(
    f: Dynamics, x: Tensor, u: Tensor, x_next: Tensor, p: Parameters, dt: float, substeps: int
) -> Tensor:
    """Explicit Euler: the derivative at the start of each substep. Order 1."""
    state, h = x, dt / substeps
    for _ in range(substeps):
        state = state + h * f(state, u, p)
    return x_next - state


def midpoint(
    f: Dynamics, x: Tensor, u: Tensor, x_next: Tensor, p: Parameters, dt: float, substeps: int
) -> Tensor:
    """Implicit midpoint: the derivative half way between both ends. Order 2, symplectic."""
    return x_next - x - dt * f(0.5 * (x + x_next), u, p)


def trapezoid(
    f: Dynamics, x: Tensor, u: Tensor, x_next: Tensor, p: Parameters, dt: float, substeps: int
) -> Tensor:
    """Implicit trapezoid: the mean of the derivatives at both ends. Order 2."""
    return x_next - x - 0.5 * dt * (f(x, u, p) + f(x_next, u, p))


def rk4(
    f: Dynamics, x: Tensor, u: Tensor, x_next: Tensor, p: Parameters, dt: float, substeps: int
) -> Tensor:
    """Classical Runge-Kutta from the start of the interval (multiple shooting). Order 4."""
    state, h = x, dt / substeps
    for _ in range(substeps):
        k1 = f(state, u, p)
        k2 = f(state + 0.5 * h * k1, u, p)
        k3 = f(state + 0.5 * h * k2, u, p)
        k4 = f(state + h * k3, u, p)
        state = state + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return x_next - state


SCHEMES: dict[str, Scheme] = {f.__name__: f for f in (euler, midpoint, trapezoid, rk4)}
_EXPLICIT = ("euler", "rk4")

#: Which variables each kind of term touches, as (variable, stage relative to k). The half
#: bandwidth follows from this table alone.
COUPLINGS = {
    "stage cost": (("x", 0), ("u", 0)),
    "terminal cost": (("x", 1),),
    "defect": (("x", 0), ("u", 0), ("x", 1)),
    "inequality": (("u", 0), ("x", 1)),
}


@dataclass(frozen=True)
class StageData:
    """The live inputs of one solve; no derivative depends on their values at compile time.

    Compiled derivatives read the arrays. Eager ones read tensors that share their memory and are
    made on first access, because making them in torch takes longer than some solves.

    Attributes:
        state: Measured state x_0, (nx,).
        values: Name of a parameter -> (N + 1, *shape), in C order.
        factors: Weight of each named cost, (number of costs,).
    """

    state: np.ndarray
    values: Mapping[str, np.ndarray]
    factors: np.ndarray

    @functools.cached_property
    def initial_state(self) -> Tensor:
        """The state as a tensor."""
        return torch.from_numpy(self.state)

    @functools.cached_property
    def parameters(self) -> Parameters:
        """The parameters as tensors."""
        return {name: torch.from_numpy(value) for name, value in self.values.items()}

    @functools.cached_property
    def weights(self) -> Tensor:
        """The weights as a tensor."""
        return torch.from_numpy(self.factors)


@dataclass(frozen=True)
class Terms:
    """Costs and constraints of a trajectory, with the leading batch dimensions of ``z``.

    Attributes:
        costs: Weighted named costs, (..., number of costs).
        defects: Defects of the dynamics, (..., N, nx).
        inequalities: Inequalities (..., N, m), to be kept >= 0.
    """

    costs: Tensor
    defects: Tensor
    inequalities: Tensor


def check_scheme(scheme: str, substeps: int) -> None:
    """Raise ValueError if a scheme does not exist, or does not allow that many substeps."""
    if scheme not in SCHEMES:
        raise ValueError(f"transcription is {scheme!r}; allowed are {sorted(SCHEMES)}")
    if isinstance(substeps, bool) or not isinstance(substeps, int) or substeps < 1:
        raise ValueError(f"substeps is {substeps!r}; allowed are integers >= 1")
    if substeps > 1 and scheme not in _EXPLICIT:
        raise ValueError(
            f"substeps is {substeps}; {scheme!r} allows 1 only, {_EXPLICIT} allow more"
        )


class Transcription:
    """Maps trajectories to vectors ``z`` (n,), and ``z`` to the terms of the problem.

    Args:
        problem: What to solve.
        scheme: One of ``SCHEMES``.
        substeps: Integration steps per interval, for the explicit schemes.

    Raises:
        ValueError: Unknown scheme, or substeps that the scheme does not have.
    """

    def __init__(self, problem: OptimalControlProblem, scheme: str, substeps: int = 1) -> None:
        check_scheme(scheme, substeps)
        self.problem = problem
        self.scheme = scheme
        self.substeps = substeps
        self.block = problem.nu + problem.nx
        self.n = problem.horizon * self.block
        self.half_bandwidth = max(self._span(variables) - 1 for variables in COUPLINGS.values())

    def _span(self, variables: tuple[tuple[str, int], ...]) -> int:
        """Return how many consecutive entries of z the variables of one term cover."""
        nx, nu = self.problem.nx, self.problem.nu
        first = {"u": 0, "x": nu - self.block}
        size = {"u": nu, "x": nx}
        starts = [stage * self.block + first[name] for name, stage in variables]
        ends = [start + size[name] for start, (name, _) in zip(starts, variables, strict=True)]
        return max(ends) - min(starts)

    def pack(self, trajectory: Trajectory) -> np.ndarray:
        """Return the vector z (n,) of a trajectory; its first state is not part of it."""
        return np.hstack([trajectory.inputs, trajectory.states[1:]]).reshape(-1)

    def unpack(self, z: np.ndarray, initial_state: np.ndarray) -> Trajectory:
        """Return the trajectory of a vector z (n,) that starts at ``initial_state`` (nx,)."""
        stages = z.reshape(self.problem.horizon, self.block)
        states = np.vstack([initial_state, stages[:, self.problem.nu :]])
        return Trajectory(states, stages[:, : self.problem.nu].copy(), self.problem.dt)

    def stage_data(
        self,
        initial_state: np.ndarray,
        parameters: Mapping[str, Any],
        weights: Mapping[str, float],
    ) -> StageData:
        """Check the live inputs and return them; raises ValueError as the problem's checks do."""
        problem = self.problem
        arrays = problem.stage_parameters(parameters)
        factors = problem.checked_weights(weights)
        return StageData(
            np.array(initial_state, dtype=np.float64),
            {name: np.array(value, order="C") for name, value in arrays.items()},
            np.array([factors[name] for name in problem.cost_names]),
        )

    def predicted(self, x: Tensor, u: Tensor, p: Parameters) -> Tensor:
        """Return where an input leads from a state within one interval, by the Runge-Kutta scheme.

        The state is held where one step and two of half its length lead to different states:
        dynamics that are too fast for the grid would diverge, though an implicit scheme can solve
        them.
        """
        problem = self.problem
        coarse, fine = (
            -rk4(problem.dynamics, x, u, torch.zeros_like(x), p, problem.dt, substeps)
            for substeps in (self.substeps, 2 * self.substeps)
        )
        apart, moved = (fine - coarse).abs().amax(dim=-1), (fine - x).abs().amax(dim=-1)
        return torch.where((apart < 0.5 * moved)[..., None], coarse, x)

    def rollout(self, inputs: np.ndarray, data: StageData) -> Trajectory:
        """Return where the inputs (N, nu) lead."""
        states = [data.initial_state]
        with torch.no_grad():
            for k, u in enumerate(torch.from_numpy(inputs)):
                p = {name: value[k] for name, value in data.parameters.items()}
                states.append(self.predicted(states[-1], u, p))
        return Trajectory(torch.stack(states).numpy(), inputs, self.problem.dt)

    def terms(self, z: Tensor, data: StageData) -> Terms:
        """Return costs, defects and inequalities of ``z`` (..., n)."""
        batch = z.shape[:-1]
        stages = z.reshape(*batch, self.problem.horizon, self.block)
        u, x_next = stages[..., : self.problem.nu], stages[..., self.problem.nu :]
        initial = data.initial_state.expand(*batch, 1, self.problem.nx)
        x = torch.cat([initial, x_next[..., :-1, :]], dim=-2)
        return self.stage_terms(x, u, x_next, data)

    def stage_terms(self, x: Tensor, u: Tensor, x_next: Tensor, data: StageData) -> Terms:
        """Return them for each interval's own x_k (..., N, nx), u_k (..., N, nu), x_{k+1}."""
        problem = self.problem
        batch = x.shape[:-2]
        p = {name: value.expand(*batch, *value.shape) for name, value in data.parameters.items()}
        at = len(batch)
        now = {name: value.narrow(at, 0, problem.horizon) for name, value in p.items()}
        after = {name: value.narrow(at, 1, problem.horizon) for name, value in p.items()}
        last = {name: value.select(at, problem.horizon) for name, value in p.items()}

        costs = [cost(x, u, now).sum(dim=-1) for cost in problem.stage_costs.values()]
        costs += [cost(x_next[..., -1, :], last) for cost in problem.terminal_costs.values()]
        defects = SCHEMES[self.scheme](
            problem.dynamics, x, u, x_next, now, problem.dt, self.substeps
        )
        rows = [h(x_next, u, after) for h in problem.inequalities.values()]
        inequalities = torch.cat(rows, dim=-1) if rows else x.new_zeros(*batch, problem.horizon, 0)
        return Terms(torch.stack(costs, dim=-1) * data.weights, defects, inequalities)


def merit(
    terms: Terms, multipliers: Tensor, penalty: Tensor, inequality_multipliers: Tensor
) -> Tensor:
    """Return the scalar whose Hessian is the Newton matrix: the augmented Lagrangian.

    ``sum(costs) + sum_k (lambda_k' d_k + d_k' rho d_k / 2) - sum_k nu_k' h_k`` (Nocedal, Wright,
    Numerical Optimization, 2nd ed., eq. 17.36). Inequalities enter by multipliers; barrier.py
    adds the curvature of their barrier.

    Args:
        terms: Terms of one trajectory, unbatched.
        multipliers: lambda, (N, nx).
        penalty: rho, () or one for each state (nx,).
        inequality_multipliers: nu >= 0, (N, m).
    """
    return terms.costs.sum() + constraints(terms, multipliers, penalty, inequality_multipliers)


def constraints(
    terms: Terms, multipliers: Tensor, penalty: Tensor, inequality_multipliers: Tensor
) -> Tensor:
    """Return the share of ``merit`` that the constraints have."""
    d = terms.defects
    return (
        (multipliers * d).sum()
        + 0.5 * (penalty * d * d).sum()
        - (inequality_multipliers * terms.inequalities).sum()
    )
