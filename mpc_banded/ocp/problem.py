# SPDX-License-Identifier: Apache-2.0
"""The optimal control problem, in the notation of the whole package.

::

    N               horizon, the number of control intervals; dt their length in seconds
    x_k             state at stage k = 0 .. N, shape (nx,);     x_0 is measured
    u_k             input held over [k dt, (k+1) dt), k = 0 .. N-1, shape (nu,)
    p_k             live parameters of stage k = 0 .. N, a mapping name -> tensor

    minimise    sum_{k<N} sum_j w_j l_j(x_k, u_k, p_k)  +  sum_j w_j m_j(x_N, p_N)
    subject to  dx/dt = f(x, u, p)                           (made discrete in transcription.py)
                input_lower <= u_k <= input_upper            (strict: no iterate is ever outside)
                state_lower <= x_k <= state_upper            (k >= 1, softened by an exact penalty)
                h_j(x_k, u_{k-1}, p_k) >= -s, s >= 0         (k >= 1, softened by l s + q s^2 / 2)

Every function takes and returns tensors with any leading batch dimensions, so one call evaluates
all stages: write ``x[..., 0]``, never ``x[0]``. An inequality is satisfied when it is ``>= 0``,
multipliers of inequalities are ``>= 0``, and a defect is *next state minus prediction*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Dynamics = Callable[[Tensor, Tensor, Parameters], Tensor]
StageCost = Callable[[Tensor, Tensor, Parameters], Tensor]
TerminalCost = Callable[[Tensor, Parameters], Tensor]
#: (lower, upper), each an array or a scalar; arrays once the problem is built.
Bounds = tuple[Any, Any]
Inequality = Callable[[Tensor, Tensor, Parameters], Tensor]

#: Softening of the state bounds: linear and quadratic weight of their violation.
STATE_BOUND_PENALTY = (1e3, 1e3)


class ComparesArrays:
    """Compares dataclasses that hold arrays by value; NaN equals itself."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return all(_same(one, another) for one, another in pairs)

    def __hash__(self) -> int:
        raise TypeError(f"{type(self).__name__} holds arrays and cannot be hashed")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=True))
    return bool(one == other or (one != one and other != other))


@dataclass(frozen=True, eq=False)
class Trajectory(ComparesArrays):
    """States (N + 1, nx) and inputs (N, nu) on a grid of ``dt`` seconds."""

    states: np.ndarray
    inputs: np.ndarray
    dt: float

    @property
    def horizon(self) -> int:
        """Number of control intervals."""
        return len(self.inputs)

    def state_at(self, time_s: float) -> np.ndarray:
        """State at ``time_s`` seconds after the first one, linear between stages; (nx,)."""
        position = min(max(time_s / self.dt, 0.0), float(self.horizon))
        k = min(int(position), self.horizon - 1)
        fraction = position - k
        return (1.0 - fraction) * self.states[k] + fraction * self.states[k + 1]

    def input_at(self, time_s: float) -> np.ndarray:
        """Input held at ``time_s`` seconds after the first stage; the last one after the end."""
        k = int(time_s / self.dt + 1e-9)  # the start of an interval belongs to it, rounded or not
        return self.inputs[min(max(k, 0), self.horizon - 1)].copy()


@dataclass(frozen=True)
class OptimalControlProblem:
    """An optimal control problem in plain torch functions; its formulas head this module.

    Attributes:
        nx: Number of states.
        nu: Number of inputs.
        horizon: Number of control intervals N.
        dt: Length of one interval in seconds.
        dynamics: ``f(x, u, p) -> dx/dt``; (..., nx), (..., nu) -> (..., nx).
        stage_costs: Named terms ``l(x, u, p) -> (...)``, summed as given over k = 0 .. N-1.
        terminal_costs: Named terms ``l(x, p) -> (...)`` at x_N.
        weights: One factor >= 0 for each named cost; 1.0 for a cost without an entry.
        input_bounds: (lower, upper), each (nu,) or scalar; infinite entries allowed.
        state_bounds: (lower, upper), each (nx,) or scalar; infinite entries allowed.
        inequalities: Named ``h(x, u, p) -> (..., m)``, to be kept >= 0 at x_1 .. x_N, each with
            the input that led there.
        penalties: Name -> (linear, quadratic) softening weights of each inequality.
        parameters: Name -> shape of the live parameter at one stage.
        inequality_widths: Name -> m of each inequality, found by calling it.

    Raises:
        ValueError: An argument is inconsistent; the message names it and what is allowed.
    """

    nx: int
    nu: int
    horizon: int
    dt: float
    dynamics: Dynamics
    stage_costs: Mapping[str, StageCost] = field(default_factory=dict)
    terminal_costs: Mapping[str, TerminalCost] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    input_bounds: Bounds = (-np.inf, np.inf)
    state_bounds: Bounds = (-np.inf, np.inf)
    inequalities: Mapping[str, Inequality] = field(default_factory=dict)
    penalties: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inequality_widths: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("nx", "nu", "horizon"):
            _check_positive_integer(name, getattr(self, name))
        _check_positive("dt", self.dt)
        self._freeze("input_bounds", _bounds("input_bounds", self.input_bounds, self.nu))
        self._freeze("state_bounds", _bounds("state_bounds", self.state_bounds, self.nx))
        shared = set(self.stage_costs) & set(self.terminal_costs)
        if shared:
            raise ValueError(f"cost names must be unique; in both stage and terminal: {shared}")
        if not self.cost_names:
            raise ValueError("stage_costs and terminal_costs are both empty: nothing to minimise")
        self._freeze("weights", self.checked_weights(self.weights))
        _check_names("penalties", self.penalties, self.inequalities)
        for name in self.inequalities:
            if name not in self.penalties:
                raise ValueError(f"penalties has no entry for the inequality {name!r}")
            _check_penalty(name, self.penalties[name])
        shapes = {name: _shape(name, shape) for name, shape in self.parameters.items()}
        self._freeze("parameters", MappingProxyType(shapes))
        self._check_functions()

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Names of all cost terms, stage costs first."""
        return (*self.stage_costs, *self.terminal_costs)

    def checked_weights(self, weights: Mapping[str, float]) -> Mapping[str, float]:
        """Return the given weights, checked, with 1.0 for every cost that is not named.

        Raises:
            ValueError: There is no cost of a name, or a value is negative or not finite.
        """
        _check_names("weights", weights, self.cost_names)
        for name, value in weights.items():
            if not _is_finite(value) or value < 0.0:
                raise ValueError(f"weights[{name!r}] is {value!r}; allowed are finite values >= 0")
        return MappingProxyType({name: float(weights.get(name, 1.0)) for name in self.cost_names})

    def stage_parameters(self, values: Mapping[str, object]) -> dict[str, np.ndarray]:
        """Return the given parameter values, each as an array (horizon + 1, *shape).

        A value that has the shape of one stage holds for all stages.

        Raises:
            ValueError: A parameter is missing, unknown, or of another shape.
        """
        _check_names("parameters", values, self.parameters)
        arrays = {}
        for name, shape in self.parameters.items():
            if name not in values:
                raise ValueError(f"parameters[{name!r}] is missing; its stage shape is {shape}")
            try:
                value = np.asarray(values[name], dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"parameters[{name!r}] is no array of numbers: {error}") from None
            full = (self.horizon + 1, *shape)
            if value.shape not in (full, shape):
                raise ValueError(
                    f"parameters[{name!r}] has shape {value.shape}; allowed are {full} and {shape}"
                )
            arrays[name] = np.broadcast_to(value, full)
        return arrays

    def with_grid(self, horizon: int, dt: float) -> OptimalControlProblem:
        """Return the same problem on another grid."""
        return replace(self, horizon=horizon, dt=dt)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by the arguments, because read-only mappings support neither."""
        values = (getattr(self, f.name) for f in fields(self) if f.init)
        plain = (dict(v) if isinstance(v, MappingProxyType) else v for v in values)
        return type(self), tuple(plain)

    def _freeze(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_functions(self) -> None:
        """Call each function once with a batch of two stages and check the shapes."""
        x = torch.zeros(2, self.nx, dtype=torch.float64)
        u = torch.zeros(2, self.nu, dtype=torch.float64)
        p = {
            name: torch.zeros(2, *shape, dtype=torch.float64)
            for name, shape in self.parameters.items()
        }
        _check_shape("dynamics", self.dynamics, (x, u, p), (2, self.nx))
        for name, cost in self.stage_costs.items():
            _check_shape(f"stage_costs[{name!r}]", cost, (x, u, p), (2,))
        for name, terminal in self.terminal_costs.items():
            _check_shape(f"terminal_costs[{name!r}]", terminal, (x, p), (2,))
        widths = {}
        for name, inequality in self.inequalities.items():
            shape = _check_shape(f"inequalities[{name!r}]", inequality, (x, u, p), (2, None))
            widths[name] = shape[-1]
        self._freeze("inequality_widths", MappingProxyType(widths))


def _check_positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} is {value!r}; allowed are integers >= 1")


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _check_positive(name: str, value: float) -> None:
    if not _is_finite(value) or value <= 0.0:
        raise ValueError(f"{name} is {value!r}; allowed are finite values > 0")


def _check_names(what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise ValueError(f"{what} has unknown names {unknown}; allowed are {sorted(allowed)}")


def _check_penalty(name: str, penalty: tuple[float, float]) -> None:
    values = tuple(penalty) if isinstance(penalty, Iterable) else ()
    numbers = len(values) == 2 and all(_is_finite(value) for value in values)
    if not numbers or min(values) < 0.0 or max(values) == 0.0:
        raise ValueError(
            f"penalties[{name!r}] is {penalty!r}; allowed are finite (linear, quadratic) >= 0, "
            "not both zero"
        )


def _shape(name: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or not all(isinstance(d, int) and d >= 0 for d in shape):
        raise ValueError(
            f"parameters[{name!r}] is {shape!r}; allowed are shapes, tuples of integers >= 0"
        )
    return tuple(shape)


def _check_shape(
    what: str, function: object, arguments: tuple[object, ...], shape: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Return the shape of a function's value; the last size wanted may be None for any."""
    if not callable(function):
        raise TypeError(f"{what} is {function!r}; it must be a function")
    try:
        value = function(*arguments)
    except Exception as error:
        raise ValueError(f"{what} raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} returned {type(value).__name__}; it must return a torch.Tensor")
    if value.dim() != len(shape) or any(
        wanted not in (None, size) for size, wanted in zip(value.shape, shape, strict=True)
    ):
        wanted = str(shape).replace("None", "m")
        raise ValueError(
            f"{what} returned shape {tuple(value.shape)} for a batch of two stages; it must be "
            f"{wanted}. Index with x[..., i], and reduce over dim=-1 only"
        )
    return tuple(value.shape)


def _bounds(name: str, bounds: Bounds, size: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        lower, upper = (
            np.broadcast_to(np.asarray(b, dtype=np.float64), (size,)).copy() for b in bounds
        )
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (lower, upper), each of shape ({size},)") from None
    if np.isnan(lower).any() or np.isnan(upper).any() or not (lower < upper).all():
        raise ValueError(f"{name} must have lower < upper everywhere; got {lower} and {upper}")
    return lower, upper
