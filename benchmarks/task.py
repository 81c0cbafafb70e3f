# SPDX-License-Identifier: Apache-2.0
"""The control tasks, each described once for all solvers.

Dynamics, costs and constraints are written with a handful of ``Operations``, so that numpy,
torch and CasADi evaluate the very same formulas. Every cost is a weighted sum of squares, which
Gauss-Newton methods need and the others do not mind. Vectors are cut with ``part`` and put
together with ``join`` along their last (or only) axis.

The optimal control problem of every task, with x_{k+1} one classical Runge-Kutta step (or
``substeps`` of them) of the dynamics::

    minimise    sum_{k<N} W r(x_k, u_k, p_k)^2 + W_N r_N(x_N, p_N)^2 + penalties
    subject to  lower <= u_k <= upper
                x_k within its bounds, h(x_k, p_k) >= 0, k = 1 .. N, both softened:
                a violation s costs linear * s + quadratic * s^2 / 2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Parameters = Mapping[str, Any]
#: Of the softened state bounds, as mpc_banded has it.
STATE_BOUND_PENALTY = (1e3, 1e3)


@dataclass(frozen=True)
class Operations:
    """What formulas are made of; ``part`` and ``join`` act on the last axis.

    Attributes:
        part: ``part(x, i, j)`` are the entries i .. j-1 of x.
        join: One vector from a list of vectors.
        total: Sum of the entries of a vector.
        constant: A vector from an array of numbers.
    """

    sin: Callable[[Any], Any]
    cos: Callable[[Any], Any]
    tan: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    part: Callable[[Any, int, int], Any]
    join: Callable[[list[Any]], Any]
    total: Callable[[Any], Any]
    constant: Callable[[np.ndarray], Any]


NUMPY = Operations(
    sin=np.sin,
    cos=np.cos,
    tan=np.tan,
    sqrt=np.sqrt,
    part=lambda x, i, j: x[..., i:j],
    join=lambda parts: np.concatenate(parts, axis=-1),
    total=lambda x: x.sum(axis=-1),
    constant=np.asarray,
)


@dataclass(frozen=True)
class Task:
    """One closed-loop task.

    Attributes:
        name: For the command line.
        title: For people.
        nx: Number of states.
        nu: Number of inputs.
        horizon: Number of control intervals N.
        dt: Length of one in seconds.
        substeps: Runge-Kutta steps per interval in the controllers' model.
        steps: Control steps of one closed-loop run.
        dynamics: ``f(o, x, u, p) -> dx/dt``.
        residuals: ``r(o, x, u, p)`` of the stage cost.
        weights: W, one for each residual.
        terminal_residuals: ``r_N(o, x, p)``.
        terminal_weights: W_N.
        input_bounds: (lower, upper), each (nu,).
        state_bounds: (lower, upper), each (nx,), infinite entries allowed.
        inequality: ``h(o, x, p)``, wanted >= 0; None without.
        inequality_size: Number of its rows.
        penalty: (linear, quadratic) of the inequality.
        parameters: Name -> number of entries at one stage.
        stage_parameters: ``(step, horizon) -> {name: (horizon + 1, entries)}``.
        initial_state: Where the first run begins, (nx,).
        spread: Standard deviation of the other runs' initial states, (nx,).
        noise: Standard deviation of the measurement, (nx,).
        input_gain: What the real actuators make of a command; the controllers believe in 1.
    """

    name: str
    title: str
    nx: int
    nu: int
    horizon: int
    dt: float
    substeps: int
    steps: int
    dynamics: Callable[[Operations, Any, Any, Parameters], Any]
    residuals: Callable[[Operations, Any, Any, Parameters], Any]
    weights: np.ndarray
    terminal_residuals: Callable[[Operations, Any, Parameters], Any]
    terminal_weights: np.ndarray
    input_bounds: tuple[np.ndarray, np.ndarray]
    state_bounds: tuple[np.ndarray, np.ndarray]
    parameters: Mapping[str, int]
    stage_parameters: Callable[[int, int], dict[str, np.ndarray]]
    initial_state: np.ndarray
    spread: np.ndarray
    noise: np.ndarray
    inequality: Callable[[Operations, Any, Parameters], Any] | None = None
    inequality_size: int = 0
    penalty: tuple[float, float] = (0.0, 0.0)
    input_gain: float = 0.95
    bounded_states: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        finite = np.isfinite(self.state_bounds[0]) | np.isfinite(self.state_bounds[1])
        object.__setattr__(self, "bounded_states", tuple(np.flatnonzero(finite).tolist()))

    def advanced(
        self, o: Operations, x: Any, u: Any, p: Parameters, substeps: int | None = None
    ) -> Any:
        """The state one interval later."""
        substeps = substeps or self.substeps
        h = self.dt / substeps
        for _ in range(substeps):
            k1 = self.dynamics(o, x, u, p)
            k2 = self.dynamics(o, x + 0.5 * h * k1, u, p)
            k3 = self.dynamics(o, x + 0.5 * h * k2, u, p)
            k4 = self.dynamics(o, x + h * k3, u, p)
            x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return x

    def stage_cost(self, o: Operations, x: Any, u: Any, p: Parameters) -> Any:
        """Weighted squares of the residuals; without penalties."""
        r = self.residuals(o, x, u, p)
        return o.total(o.constant(self.weights) * r * r)

    def terminal_cost(self, o: Operations, x: Any, p: Parameters) -> Any:
        """The same at the end of the horizon."""
        r = self.terminal_residuals(o, x, p)
        return o.total(o.constant(self.terminal_weights) * r * r)

    def violations(self, x: np.ndarray, p: Parameters) -> tuple[np.ndarray, np.ndarray]:
        """Violations of the inequality's rows (..., m) and of the state bounds (..., nx)."""
        lower, upper = self.state_bounds
        of_bounds = np.maximum(np.maximum(lower - x, x - upper), 0.0)
        if self.inequality is None:
            return np.zeros((*x.shape[:-1], 0)), of_bounds
        return np.maximum(-self.inequality(NUMPY, x, p), 0.0), of_bounds

    def penalty_cost(self, x: np.ndarray, p: Parameters) -> np.ndarray:
        """What the violations cost (...)."""
        of_h, of_bounds = self.violations(x, p)
        result = np.zeros(x.shape[:-1])
        for s, (linear, quadratic) in (
            (of_h, self.penalty),
            (of_bounds, STATE_BOUND_PENALTY),
        ):
            result = result + (linear * s + 0.5 * quadratic * s * s).sum(axis=-1)
        return result

    def objective(self, states: np.ndarray, inputs: np.ndarray, p: Parameters) -> float:
        """Objective of a plan: states (N + 1, nx), inputs (N, nu), p name -> (N + 1, entries)."""
        now = {name: value[:-1] for name, value in p.items()}
        after = {name: value[1:] for name, value in p.items()}
        last = {name: value[-1] for name, value in p.items()}
        return float(
            self.stage_cost(NUMPY, states[:-1], inputs, now).sum()
            + self.terminal_cost(NUMPY, states[-1], last)
            + self.penalty_cost(states[1:], after).sum()
        )

    def defects(self, states: np.ndarray, inputs: np.ndarray, p: Parameters) -> np.ndarray:
        """Defects of a plan, (N, nx)."""
        now = {name: value[:-1] for name, value in p.items()}
        return states[1:] - self.advanced(NUMPY, states[:-1], inputs, now)

    def rollout(self, state: np.ndarray, inputs: np.ndarray, p: Parameters) -> np.ndarray:
        """Predicted states (N + 1, nx)."""
        states = [state]
        for k, u in enumerate(inputs):
            now = {name: value[k] for name, value in p.items()}
            states.append(self.advanced(NUMPY, states[-1], u, now))
        return np.array(states)
