# SPDX-License-Identifier: Apache-2.0
"""The derivatives of a transcription as machine code.

Every term belongs to one stage, so one stage is all that has to be compiled: torch differentiates
it twice inside the trace, a one-hot probe for each row of ``w_k = (x_k, u_k, x_{k+1})``, and what
remains of that after the zeros are gone (expressions.py) is the sparse code of the block's
entries. A loop over the stages adds the blocks into the band where they overlap (native.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod

import numpy as np
import torch
from torch import Tensor

from mpc_banded import native
from mpc_banded.cache import LibraryCache
from mpc_banded.derivatives import Derivatives, Merit, NewtonSystem, Point
from mpc_banded.native import Argument, Result, Section
from mpc_banded.transcription import SCHEMES, StageData, Transcription

#: Parts of the merit function, see Merit.
MERIT_SIZE = 4
#: Largest relative difference between compiled and eager derivatives.
COMPARED = 1e-9


@dataclass(frozen=True)
class _Field:
    """A part of an output array: where it starts, its shape, and the entries before row 0."""

    offset: int
    shape: tuple[int, ...]
    skipped: int = 0

    def of(self, out: np.ndarray) -> np.ndarray:
        begin = self.offset + self.skipped
        return out[begin : begin + prod(self.shape)].reshape(self.shape)


class _Layout:
    """Hands out places in an output array."""

    def __init__(self) -> None:
        self.size = 0

    def place(self, *shape: int, skipped: int = 0) -> _Field:
        field = _Field(self.size, shape, skipped)
        self.size += skipped + prod(shape)
        return field


class StageFunctions:
    """The functions to compile for a transcription, and where their results lie.

    Args:
        derivatives: Eager derivatives of the transcription.
    """

    def __init__(self, derivatives: Derivatives) -> None:
        t = derivatives.transcription
        problem, self._barrier = t.problem, derivatives.barrier
        self._t, self._problem = t, problem
        N, nx, block = problem.horizon, problem.nx, t.block
        width, r, band = block + nx, self._barrier.rows, derivatives.half_bandwidth + 1
        self._width, self._band = width, band
        self.parameter_names = tuple(problem.parameters)
        #: Names of the arrays that come from StageData, in the order of the C arguments.
        self.live = ("weights", *(f"p{i}" for i in range(len(self.parameter_names))))
        layout = _Layout()
        self.costs = layout.place(len(problem.cost_names))
        self.barrier_value = layout.place()
        self.defects = layout.place(N, nx)
        self.rows = layout.place(N, r)
        self.distances = layout.place(N, self._barrier.width)
        self.duals = layout.place(N, self._barrier.width)
        # Stage k adds to (x_k, u_k, x_{k+1}): x_0 comes first and is skipped.
        self.cost_gradient = layout.place(t.n, skipped=nx)
        self.barrier_gradient = layout.place(t.n)
        self.dynamics_gradient = layout.place(t.n, skipped=nx)
        self.bands = layout.place(t.n, band, skipped=nx * band)
        self.defect_jacobian = layout.place(N, nx, width)
        self.row_jacobian = layout.place(N, r, block)
        self.system_size = layout.size
        self.advanced = _Layout()
        self.longest = self.advanced.place(N)
        self.stepped = self.advanced.place(N, self._barrier.width)

    def source(self) -> str:
        """The C source of all kernels."""
        return native.PRELUDE + "\n".join(
            [
                native.c_function(
                    "system",
                    ("w", "multipliers", "duals", "scalars", *self.live),
                    (self._system_section(), self._terminal_section()),
                    self.system_size,
                ),
                native.c_function(
                    "merit",
                    ("w", "multipliers", "scalars", *self.live),
                    (self._merit_section(), self._terminal_merit_section()),
                    MERIT_SIZE,
                ),
                native.c_function(
                    "advance",
                    ("duals", "distances", "row_jacobian", "step", "scalars"),
                    (self._advance_section(),),
                    self.advanced.size,
                ),
                native.c_function(
                    "linearised_defects",
                    ("w", "defect_jacobian"),
                    (self._linearised_defects_section(),),
                    prod(self.defects.shape),
                ),
                native.c_function(
                    "pulled_back",
                    ("multipliers", "defect_jacobian"),
                    (self._pulled_back_section(),),
                    self._problem.nx + self._t.n,
                ),
            ]
        )

    def _parameters(self, first: int) -> tuple[Argument, ...]:
        """The parameters at stage ``first + k``."""
        shapes = [self._problem.parameters[name] for name in self.parameter_names]
        return tuple(
            Argument(f"p{i}", shape, prod(shape), first * prod(shape))
            for i, shape in enumerate(shapes)
        )

    def _named(self, values: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(self.parameter_names, values, strict=True))

    def _terms(
        self, w: Tensor, weights: Tensor, parameters: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Stage costs, defect and inequalities of one interval."""
        p = self._problem
        half = len(self.parameter_names)
        now, after = self._named(parameters[:half]), self._named(parameters[half:])
        x, u, x_next = w.split([p.nx, p.nu, p.nx])
        costs = [cost(x, u, now) for cost in p.stage_costs.values()]
        weighted = torch.stack(costs) * weights[: len(costs)] if costs else weights[:0]
        scheme = SCHEMES[self._t.scheme]
        defect = scheme(p.dynamics, x, u, x_next, now, p.dt, self._t.substeps)
        rows = [h(x_next, u, after) for h in p.inequalities.values()]
        return weighted, defect, torch.cat(rows) if rows else w[:0]

    def _window(self) -> Argument:
        return Argument("w", (self._width,), self._t.block)

    def _system_section(self) -> Section:
        p, t, barrier, width = self._problem, self._t, self._barrier, self._width
        N, nx, nu, r = p.horizon, p.nx, p.nu, barrier.rows

        def system(
            w: Tensor,
            multipliers: Tensor,
            duals: Tensor,
            mu: Tensor,
            penalty: Tensor,
            weights: Tensor,
            *parameters: Tensor,
        ) -> list[Tensor]:
            w.requires_grad_()
            costs, defect, h = self._terms(w, weights, parameters)
            rows = barrier.row_values(w[nx + nu :].detach(), h.detach())
            distances = barrier.distances(w[nx : nx + nu].detach(), rows, mu)
            safe = barrier.safeguarded(duals, distances, mu)
            of_dynamics = (multipliers * defect).sum()
            lagrangian = costs.sum() + of_dynamics - (barrier.of_inequalities(safe) * h).sum()
            of_defect = _jacobian(defect, w)
            row_jacobian = barrier.row_jacobian(_jacobian(h, w)[:, nx:])
            curvature = barrier.curvature(row_jacobian, distances, safe)
            hessian = _jacobian(_gradient(lagrangian, w), w)
            matrix = hessian + penalty * (of_defect.T @ of_defect)
            matrix = matrix + torch.nn.functional.pad(curvature, (nx, 0, nx, 0))
            return [
                costs,
                barrier.value(distances, mu),
                defect,
                rows,
                distances,
                safe,
                _gradient(costs.sum(), w),
                barrier.gradient(row_jacobian, distances, mu),
                _gradient(of_dynamics, w),
                matrix,
                of_defect,
                row_jacobian,
            ]

        return Section(
            system,
            (
                self._window(),
                Argument("multipliers", (nx,), nx),
                Argument("duals", (barrier.width,), barrier.width),
                Argument("scalars", (), 0, 0),
                Argument("scalars", (), 0, 1),
                Argument("weights", (len(p.cost_names),)),
                *self._parameters(0),
                *self._parameters(1),
            ),
            (
                Result(self.costs.offset),
                Result(self.barrier_value.offset),
                Result(self.defects.offset, nx),
                Result(self.rows.offset, r),
                Result(self.distances.offset, barrier.width),
                Result(self.duals.offset, barrier.width),
                Result(self.cost_gradient.offset, t.block),
                Result(self.barrier_gradient.offset, t.block),
                Result(self.dynamics_gradient.offset, t.block),
                Result(self.bands.offset, t.block * self._band, self._lower(width)),
                Result(self.defect_jacobian.offset, nx * width),
                Result(self.row_jacobian.offset, r * t.block),
            ),
            N,
        )

    def _terminal_section(self) -> Section:
        p, t = self._problem, self._t
        last, stage_costs = p.horizon * t.block, len(p.stage_costs)

        def terminal(x: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
            x.requires_grad_()
            costs = self._terminal_costs(x, weights, parameters)
            slope = _gradient(costs.sum(), x)
            return [costs, slope, _jacobian(slope, x)]

        return Section(
            terminal,
            self._terminal_arguments(),
            (
                Result(self.costs.offset + stage_costs),
                Result(self.cost_gradient.offset + last),
                Result(self.bands.offset + last * self._band, 0, self._lower(p.nx)),
            ),
            1,
        )

    def _merit_section(self) -> Section:
        p, barrier = self._problem, self._barrier
        nx, nu = p.nx, p.nu

        def merit(
            w: Tensor, multipliers: Tensor, mu: Tensor, weights: Tensor, *parameters: Tensor
        ) -> list[Tensor]:
            costs, defect, h = self._terms(w, weights, parameters)
            rows = barrier.row_values(w[nx + nu :], h)
            value = barrier.value(barrier.distances(w[nx : nx + nu], rows, mu), mu)
            half = 0.5 * (defect * defect).sum()
            return [costs.sum(), value, (multipliers * defect).sum(), half]

        return Section(
            merit,
            (
                self._window(),
                Argument("multipliers", (nx,), nx),
                Argument("scalars", (), 0, 0),
                Argument("weights", (len(p.cost_names),)),
                *self._parameters(0),
                *self._parameters(1),
            ),
            tuple(Result(i) for i in range(MERIT_SIZE)),
            p.horizon,
        )

    def _terminal_merit_section(self) -> Section:
        def terminal(x: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
            return [self._terminal_costs(x, weights, parameters).sum()]

        return Section(terminal, self._terminal_arguments(), (Result(0),), 1)

    def _terminal_arguments(self) -> tuple[Argument, ...]:
        p = self._problem
        return (
            Argument("w", (p.nx,), 0, p.horizon * self._t.block),
            Argument("weights", (len(p.cost_names),)),
            *self._parameters(p.horizon),
        )

    def _terminal_costs(
        self, x: Tensor, weights: Tensor, parameters: tuple[Tensor, ...]
    ) -> Tensor:
        named = self._named(parameters)
        costs = [cost(x, named) for cost in self._problem.terminal_costs.values()]
        first = len(self._problem.stage_costs)
        return torch.stack(costs) * weights[first:] if costs else weights[:0]

    def _advance_section(self) -> Section:
        barrier, block, r = self._barrier, self._t.block, self._barrier.rows

        def advance(*arguments: Tensor) -> list[Tensor]:
            return list(barrier.advance(*arguments))

        return Section(
            advance,
            (
                Argument("duals", (barrier.width,), barrier.width),
                Argument("distances", (barrier.width,), barrier.width),
                Argument("row_jacobian", (r, block), r * block),
                Argument("step", (block,), block),
                Argument("scalars", ()),
            ),
            (Result(self.longest.offset, 1), Result(self.stepped.offset, barrier.width)),
            self._problem.horizon,
        )

    def _linearised_defects_section(self) -> Section:
        nx, width = self._problem.nx, self._width
        return Section(
            lambda w, jacobian: [jacobian @ w],
            (self._window(), Argument("defect_jacobian", (nx, width), nx * width)),
            (Result(0, nx),),
            self._problem.horizon,
        )

    def _pulled_back_section(self) -> Section:
        nx, width = self._problem.nx, self._width
        return Section(
            lambda multipliers, jacobian: [multipliers @ jacobian],
            (
                Argument("multipliers", (nx,), nx),
                Argument("defect_jacobian", (nx, width), nx * width),
            ),
            (Result(0, self._t.block),),
            self._problem.horizon,
        )

    def _lower(self, size: int) -> tuple[int, ...]:
        """Places in rows of band storage of the lower triangle of a block; -1 for the rest."""
        i, j = np.divmod(np.arange(size * size), size)
        kept = (i >= j) & (i - j < self._band)
        return tuple(np.where(kept, j * self._band + i - j, -1).tolist())


def _gradient(value: Tensor, by: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(by)
    (result,) = torch.autograd.grad(
        value, by, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return result


def _jacobian(values: Tensor, by: Tensor) -> Tensor:
    """Derivative (rows, entries) of a vector, a row at a time."""
    rows = [_gradient(values[i], by) for i in range(len(values))]
    return torch.stack(rows) if rows else by.new_zeros(0, len(by))


class CompiledDerivatives(Derivatives):
    """Derivatives by a compiled library; see StageFunctions.

    Args:
        derivatives: The eager ones; what happens once a solve is left to them.
        library: Built from the source of their StageFunctions.

    Raises:
        ValueError: The library is of another problem.
    """

    def __init__(self, derivatives: Derivatives, library: native.Library) -> None:
        t: Transcription = derivatives.transcription
        super().__init__(t, derivatives.half_bandwidth, derivatives.recovery)
        self._functions = f = StageFunctions(derivatives)
        live = len(f.live)
        self.library = library
        self._system = library.function("system", 5 + live, f.system_size)
        self._merit = library.function("merit", 4 + live, MERIT_SIZE)
        self._advance = library.function("advance", 6, f.advanced.size)
        self._linearised_defects = library.function("linearised_defects", 3, prod(f.defects.shape))
        self._pulled_back = library.function("pulled_back", 3, t.problem.nx + t.n)
        self._data: StageData | None = None
        self._live: list[int] = []
        self._kept: list[Tensor] = []

    def system(self, point: Point, data: StageData, penalty: float) -> NewtonSystem:
        """See Derivatives.system."""
        f = self._functions
        out = np.empty(f.system_size)
        scalars = np.array([point.mu, penalty])
        w = np.concatenate([data.initial_state.numpy(), point.z])
        multipliers, duals = _contiguous(point.multipliers), _contiguous(point.duals)
        self._system(
            _address(w),
            _address(multipliers),
            _address(duals),
            _address(scalars),
            *self._live_addresses(data),
            _address(out),
        )
        jacobian = f.defect_jacobian.of(out)
        jacobian[0, :, : self.transcription.problem.nx] = 0.0  # x_0 is no unknown
        return NewtonSystem(
            f.costs.of(out),
            float(out[f.barrier_value.offset]),
            f.defects.of(out),
            f.rows.of(out),
            f.distances.of(out),
            f.duals.of(out),
            f.cost_gradient.of(out),
            f.barrier_gradient.of(out),
            f.dynamics_gradient.of(out),
            f.bands.of(out).T,
            jacobian,
            f.row_jacobian.of(out),
        )

    def merit(self, z: np.ndarray, multipliers: np.ndarray, mu: float, data: StageData) -> Merit:
        """See Derivatives.merit."""
        out, scalars = np.empty(MERIT_SIZE), np.array([mu])
        w = np.concatenate([data.initial_state.numpy(), z])
        self._merit(
            _address(w),
            _address(_contiguous(multipliers)),
            _address(scalars),
            *self._live_addresses(data),
            _address(out),
        )
        return Merit(*out.tolist())

    def advance(
        self, system: NewtonSystem, step: np.ndarray, mu: float
    ) -> tuple[float, np.ndarray]:
        """See Derivatives.advance."""
        f = self._functions
        out, scalars = np.empty(f.advanced.size), np.array([mu])
        self._advance(
            _address(system.duals),
            _address(system.distances),
            _address(system.row_jacobian),
            _address(step),
            _address(scalars),
            _address(out),
        )
        return float(f.longest.of(out).min()), f.stepped.of(out)

    def linearised_defects(self, system: NewtonSystem, step: np.ndarray) -> np.ndarray:
        """See Derivatives.linearised_defects."""
        nx = self.transcription.problem.nx
        out = np.empty(system.defects.shape)
        w = np.concatenate([np.zeros(nx), step])
        self._linearised_defects(_address(w), _address(system.defect_jacobian), _address(out))
        return out

    def pulled_back(self, system: NewtonSystem, multipliers: np.ndarray) -> np.ndarray:
        """See Derivatives.pulled_back."""
        nx = self.transcription.problem.nx
        out = np.empty(nx + self.transcription.n)
        self._pulled_back(
            _address(_contiguous(multipliers)), _address(system.defect_jacobian), _address(out)
        )
        return out[nx:]

    def _live_addresses(self, data: StageData) -> list[int]:
        """Addresses of weights and parameters, looked up once for each solve."""
        if data is not self._data:
            parameters: Mapping[str, Tensor] = data.parameters
            self._kept = [
                data.weights.contiguous(),
                *(parameters[name].contiguous() for name in self._functions.parameter_names),
            ]
            self._live = [tensor.data_ptr() for tensor in self._kept]
            self._data = data
        return self._live


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float64)


def _address(array: np.ndarray) -> int:
    address: int = array.ctypes.data
    return address


def compiled(derivatives: Derivatives, cache: LibraryCache) -> CompiledDerivatives:
    """Compiled derivatives for eager ones, from the cache or built, and compared with them.

    Raises:
        UnsupportedOperation: A function cannot be compiled.
        NoCompiler: There is no C compiler, and the cache does not have the library.
        ValueError: The recovery is not stagewise, or compiled and eager differ.
    """
    if derivatives.recovery != "stagewise":
        raise ValueError(
            f"recovery {derivatives.recovery!r} sees the costs as a black box; only 'stagewise' "
            "can be compiled"
        )
    result = CompiledDerivatives(derivatives, cache.library(StageFunctions(derivatives).source()))
    _compare(derivatives, result)
    return result


def _compare(eager: Derivatives, machine: CompiledDerivatives) -> None:
    """Raises ValueError if both differ at a random point, wherever the eager one is finite."""
    t, random = eager.transcription, np.random.default_rng(0)
    problem = t.problem
    data = t.stage_data(
        random.standard_normal(problem.nx),
        {
            name: random.uniform(0.5, 1.5, (problem.horizon + 1, *shape))
            for name, shape in problem.parameters.items()
        },
        dict.fromkeys(problem.cost_names, 1.0),
    )
    stages = random.standard_normal((problem.horizon, t.block))
    stages[:, : problem.nu] = eager.barrier.interior(stages[:, : problem.nu])
    point = Point(
        stages.reshape(-1),
        random.standard_normal((problem.horizon, problem.nx)),
        random.uniform(0.5, 1.5, (problem.horizon, eager.barrier.width)),
        0.1,
    )
    wanted, got = eager.system(point, data, 1.0), machine.system(point, data, 1.0)
    for field in fields(NewtonSystem):
        a, b = (np.asarray(getattr(system, field.name)) for system in (wanted, got))
        a, b = a[np.isfinite(a)], b[np.isfinite(a)]
        if a.size and not np.abs(a - b).max() <= COMPARED * np.abs(a).max():
            raise ValueError(
                f"compiled and eager {field.name} differ by {np.abs(a - b).max():.1e}: a cost or "
                "inequality couples stages that it does not belong to, or the compiler is faulty"
            )
