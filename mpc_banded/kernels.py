# SPDX-License-Identifier: Apache-2.0
"""What is compiled of a transcription, and where its results lie.

Every term belongs to one stage, so one stage is all that has to be compiled: torch differentiates
it twice inside the trace, a one-hot probe for each row of ``w_k = (x_k, u_k, x_{k+1})``, and what
remains of that after the zeros are gone (tracing.py) is the sparse code of the block's entries. A
loop over the stages adds the blocks into the band where they overlap (native.py). Where that
would be long, one product with a probe is compiled, and taken for all probes in a loop.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpc_banded import native
from mpc_banded.derivatives import Derivatives
from mpc_banded.expressions import LONGEST, Graph, TooLong
from mpc_banded.native import Argument, Result, Section
from mpc_banded.tracing import UnsupportedOperation, trace
from mpc_banded.transcription import SCHEMES

#: mu and rho.
_SCALARS = (Argument("scalars", (), 0, 0), Argument("scalars", (), 0, 1))
#: Scalar operations of one stage's second derivatives up to which each entry has code of its own;
#: beyond, products with probes keep the code short.
WRITTEN_OUT = 6_000
#: Parts of the merit function, see Merit.
MERIT_SIZE = 4


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
        self.states = _Field(0, (N + 1, nx))
        self.longest = self.advanced.place(N)
        self.stepped = self.advanced.place(N, self._barrier.width)

    @property
    def signature(self) -> str:
        """A digest of all sizes: libraries with the same one can be called alike."""
        p = self._problem
        shapes = [p.parameters[name] for name in self.parameter_names]
        sizes = (p.horizon, p.nx, p.nu, self._barrier.rows, self._band, len(p.cost_names), shapes)
        return hashlib.sha256(repr(sizes).encode()).hexdigest()[: native.SIGNATURE - 1]

    def source(self, limit: int = LONGEST) -> str:
        """The C source of all kernels.

        Raises:
            UnsupportedOperation: A function of the problem has no scalar form.
            TooLong: It has more than ``limit`` operations.
        """
        t = self._t
        c_function = functools.partial(native.c_function, limit=limit)
        signature = f'const char signature[] = "{self.signature}";\n'
        return (
            native.PRELUDE
            + signature
            + "\n".join(
                [
                    c_function(
                        "system",
                        ("w", "multipliers", "duals", "scalars", *self.live),
                        (*self._system_parts(limit), self._terminal_section()),
                        self.system_size,
                    ),
                    c_function(
                        "merit",
                        ("w", "multipliers", "scalars", *self.live),
                        (self._merit_section(), self._terminal_merit_section()),
                        MERIT_SIZE,
                    ),
                    c_function(
                        "advance",
                        ("duals", "distances", "row_jacobian", "step", "scalars"),
                        (self._advance_section(),),
                        self.advanced.size,
                    ),
                    c_function(
                        "rollout",
                        ("w", *self.live),
                        (self._first_state_section(), self._rollout_section()),
                        prod(self.states.shape),
                    ),
                    c_function(
                        "cost_curvature",
                        ("w", *self.live),
                        (self._cost_curvature_section(), self._terminal_curvature_section()),
                        self._problem.nx + t.n,
                    ),
                    c_function(
                        "linearised_defects",
                        ("w", "defect_jacobian"),
                        (self._linearised_defects_section(),),
                        prod(self.defects.shape),
                    ),
                    c_function(
                        "pulled_back",
                        ("multipliers", "defect_jacobian"),
                        (self._pulled_back_section(),),
                        self._problem.nx + self._t.n,
                    ),
                ]
            )
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
        costs = [
            _traced(f"stage_costs[{name!r}]", cost, x, u, now)
            for name, cost in p.stage_costs.items()
        ]
        weighted = torch.stack(costs) * weights[: len(costs)] if costs else weights[:0]
        scheme = SCHEMES[self._t.scheme]
        dynamics = functools.partial(_traced, "dynamics", p.dynamics)
        defect = scheme(dynamics, x, u, x_next, now, p.dt, self._t.substeps)
        rows = [
            _traced(f"inequalities[{name!r}]", h, x_next, u, after)
            for name, h in p.inequalities.items()
        ]
        return weighted, defect, torch.cat(rows) if rows else w[:0]

    def _window(self) -> Argument:
        return Argument("w", (self._width,), self._t.block)

    def _system_parts(self, limit: int) -> list[Section | str]:
        """Sections of the Newton system, with second derivatives written out or probed."""
        graph = Graph(limit)
        section = self._hessian_section()
        shapes = [argument.shape for argument in section.arguments]
        (products,) = trace(section.function, shapes, graph)
        needed = graph.reachable(products.tolist())
        operations = len(graph.depending(needed, len(shapes) - 1)) * len(section.probes)
        if operations <= WRITTEN_OUT:
            return [self._system_section(written_out=True)]
        return [
            self._system_section(written_out=False),
            section,
            self._jacobian_section(),
            self._squared_jacobian(),
        ]

    def _system_section(self, written_out: bool) -> Section:
        p, t, barrier, width = self._problem, self._t, self._barrier, self._width
        nx, nu, r = p.nx, p.nu, barrier.rows

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
            row_jacobian = barrier.row_jacobian(_jacobian(h, w)[:, nx:])
            curvature = barrier.curvature(row_jacobian, distances, safe)
            matrix = torch.nn.functional.pad(curvature, (nx, 0, nx, 0))
            derived = []
            if written_out:
                lagrangian = costs.sum() + of_dynamics
                lagrangian = lagrangian - (barrier.of_inequalities(safe) * h).sum()
                of_defect = _jacobian(defect, w)
                hessian = _jacobian(_gradient(lagrangian, w), w)
                matrix = hessian + penalty * (of_defect.T @ of_defect) + matrix
                derived = [of_defect]
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
                row_jacobian,
                *derived,
            ]

        derived = (Result(self.defect_jacobian.offset, nx * width),) if written_out else ()
        return Section(
            system,
            (
                self._window(),
                Argument("multipliers", (nx,), nx),
                Argument("duals", (barrier.width,), barrier.width),
                *_SCALARS,
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
                Result(self.bands.offset, t.block * self._band, self._lower(range(width))),
                Result(self.row_jacobian.offset, r * t.block),
                *derived,
            ),
            p.horizon,
        )

    def _hessian_section(self) -> Section:
        """Products of the Lagrangian's Hessian with probes; one at each entry of w."""

        def products(*arguments: Tensor) -> list[Tensor]:
            probe = arguments[-1]
            w, slope = self._slope(*arguments[:-1])
            return [_gradient((slope * probe).sum(), w)]

        return Section(
            products,
            (*self._slope_arguments(), Argument("unit", (self._width,))),
            (Result(self.bands.offset, self._t.block * self._band, self._lower(self._curved)),),
            self._problem.horizon,
            self._curved,
        )

    def _slope(
        self,
        w: Tensor,
        multipliers: Tensor,
        duals: Tensor,
        mu: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gradient of the Lagrangian by w."""
        p, barrier = self._problem, self._barrier
        w.requires_grad_()
        costs, defect, h = self._terms(w, weights, parameters)
        u, x_next = w[p.nx : p.nx + p.nu].detach(), w[p.nx + p.nu :].detach()
        distances = barrier.distances(u, barrier.row_values(x_next, h.detach()), mu)
        of_h = barrier.of_inequalities(barrier.safeguarded(duals, distances, mu))
        return w, _gradient(costs.sum() + (multipliers * defect).sum() - (of_h * h).sum(), w)

    def _slope_arguments(self) -> tuple[Argument, ...]:
        nx, width = self._problem.nx, self._barrier.width
        return (
            self._window(),
            Argument("multipliers", (nx,), nx),
            Argument("duals", (width,), width),
            _SCALARS[0],
            Argument("weights", (len(self._problem.cost_names),)),
            *self._parameters(0),
            *self._parameters(1),
        )

    @functools.cached_property
    def _curved(self) -> tuple[int, ...]:
        """Entries of w by which the slope changes: columns of its Hessian that are not zero."""
        graph = Graph()
        shapes = [argument.shape for argument in self._slope_arguments()]
        (slope,) = trace(lambda *arguments: [self._slope(*arguments)[1]], shapes, graph)
        found = (graph.nodes[number] for number in graph.reachable(slope.tolist()))
        return tuple(
            sorted({n.operands[1] for n in found if n.operation == "input" and not n.operands[0]})
        )

    def _jacobian_section(self) -> Section:
        """The rows of the defects' Jacobian: products of its transpose with unit vectors."""
        p, width = self._problem, self._width

        def products(*arguments: Tensor) -> list[Tensor]:
            w, probe = arguments[0].requires_grad_(), arguments[-1]
            _, defect, _ = self._terms(w, arguments[1], arguments[2:-1])
            return [_gradient((defect * probe).sum(), w)]

        entry, row = np.divmod(np.arange(width * p.nx), p.nx)
        return Section(
            products,
            (
                self._window(),
                Argument("weights", (len(p.cost_names),)),
                *self._parameters(0),
                *self._parameters(1),
                Argument("unit", (p.nx,)),
            ),
            (
                Result(
                    self.defect_jacobian.offset,
                    p.nx * width,
                    tuple((row * width + entry).tolist()),
                ),
            ),
            p.horizon,
            tuple(range(p.nx)),
        )

    def _squared_jacobian(self) -> str:
        """C statements that add ``rho J'J`` to the band, from the Jacobian in the output."""
        p, width, band = self._problem, self._width, self._band
        return f"""\
    for (int k = 0; k < {p.horizon}; ++k) {{
        const double *jacobian = out + {self.defect_jacobian.offset} + k * {p.nx * width};
        double *bands = out + {self.bands.offset} + k * {self._t.block * band};
        for (int j = 0; j < {width}; ++j) {{
            const int last = j + {band} < {width} ? j + {band} : {width};
            for (int row = 0; row < {p.nx}; ++row) {{
                const double *of_row = jacobian + row * {width};
                const double factor = scalars[1] * of_row[j];
                if (factor != 0)
                    for (int i = j; i < last; ++i)
                        bands[j * {band} + i - j] += factor * of_row[i];
            }}
        }}
    }}"""

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
                Result(self.bands.offset + last * self._band, 0, self._lower(range(p.nx), p.nx)),
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
        costs = [
            _traced(f"terminal_costs[{name!r}]", cost, x, named)
            for name, cost in self._problem.terminal_costs.items()
        ]
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

    def _first_state_section(self) -> Section:
        nx = self._problem.nx
        return Section(lambda x: [x], (Argument("w", (nx,)),), (Result(0),), 1)

    def _rollout_section(self) -> Section:
        p, block = self._problem, self._t.block

        def predicted(x: Tensor, u: Tensor, *parameters: Tensor) -> list[Tensor]:
            return [self._t.predicted(x, u, self._named(parameters))]

        return Section(
            predicted,
            (
                Argument("out", (p.nx,), p.nx),
                Argument("w", (p.nu,), block, p.nx),
                *self._parameters(0),
            ),
            (Result(p.nx, p.nx),),
            p.horizon,
        )

    def _cost_curvature_section(self) -> Section:
        p = self._problem

        def curvature(w: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
            w.requires_grad_()
            costs, _, _ = self._terms(w, weights, parameters)
            return [_jacobian(_gradient(costs.sum(), w), w).diagonal()]

        return Section(
            curvature,
            (
                self._window(),
                Argument("weights", (len(p.cost_names),)),
                *self._parameters(0),
                *self._parameters(1),
            ),
            (Result(0, self._t.block),),
            p.horizon,
        )

    def _terminal_curvature_section(self) -> Section:
        def curvature(x: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
            x.requires_grad_()
            cost = self._terminal_costs(x, weights, parameters).sum()
            return [_jacobian(_gradient(cost, x), x).diagonal()]

        at_end = Result(self._problem.horizon * self._t.block)
        return Section(curvature, self._terminal_arguments(), (at_end,), 1)

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

    def _lower(self, columns: Sequence[int], rows: int = 0) -> tuple[int, ...]:
        """Places in rows of band storage of some columns of a block, (rows, columns).

        Only its lower triangle is kept; the rest has place -1.
        """
        i, j = np.divmod(np.arange((rows or self._width) * len(columns)), max(len(columns), 1))
        j = np.asarray(columns, dtype=int)[j]
        kept = (i >= j) & (i - j < self._band)
        return tuple(np.where(kept, j * self._band + i - j, -1).tolist())


def _traced(name: str, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """What a function of the problem returns; its name is in the error if it cannot be traced."""
    try:
        return function(*arguments)
    except TooLong:
        raise
    except UnsupportedOperation as error:
        raise UnsupportedOperation(f"{name}: {error}") from error
    except Exception as error:
        raise UnsupportedOperation(
            f"{name} fails on one stage without batch dimensions (write x[..., i]): {error}"
        ) from error


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
