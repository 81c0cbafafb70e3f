# SPDX-License-Identifier: Apache-2.0
"""What is compiled of a transcription, and where its results lie.

Every term belongs to one stage, so one stage is all that has to be compiled: torch differentiates
it twice inside the trace, a one-hot probe for each row of ``w_k = (x_k, u_k, x_{k+1})``, and what
remains of that after the zeros are gone (tracing.py) is the sparse code of the block's entries. A
loop over the stages adds the blocks into the band where they overlap (native.py). Where that
would be long, one product with a probe is compiled, and taken for all probes in a loop. The step
from such a system is the same for every problem but for its sizes: newton.c.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpc_banded.codegen import native
from mpc_banded.codegen.graph import LONGEST, Graph, TooLong
from mpc_banded.codegen.native import Argument, Result, Section
from mpc_banded.codegen.trace import UnsupportedOperation, trace
from mpc_banded.ocp.derivatives import Derivatives
from mpc_banded.ocp.newton import MAX_SWEEPS
from mpc_banded.ocp.transcription import SCHEMES

#: mu and rho; a step takes the shift and the accuracy as well.
_SCALARS = (Argument("scalars", (), 0, 0), Argument("scalars", (), 0, 1))
#: Scalar operations of one stage's second derivatives up to which each entry has code of its own;
#: beyond, products with probes keep the code short.
WRITTEN_OUT = 6_000
#: Parts of the merit function, see Merit.
MERIT_SIZE = 4
#: Probes are taken in groups of this size: whole vectors of any machine.
LANES = 8


class _Field:
    """A part of an output array: where it starts, its shape, and the entries before row 0.

    Attributes:
        begin: Where row 0 starts.
    """

    def __init__(self, offset: int, shape: tuple[int, ...], skipped: int = 0) -> None:
        self.offset, self.shape = offset, shape
        self.begin = offset + skipped
        self.end = self.begin + prod(shape)

    def of(self, out: np.ndarray) -> np.ndarray:
        return out[self.begin : self.end].reshape(self.shape)


class _Layout(dict[str, _Field]):
    """Places of named parts in an output array."""

    size = 0

    def place(self, name: str, *shape: int, skipped: int = 0) -> None:
        self[name] = _Field(self.size, shape, skipped)
        self.size = self[name].end

    def defines(self, prefix: str) -> str:
        """C macros of where row 0 of each part starts."""
        lines = [f"#define {prefix}{name.upper()} {field.begin}\n" for name, field in self.items()]
        return "".join(lines)


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
        self.system = layout = _Layout()
        layout.place("costs", len(problem.cost_names))
        layout.place("barrier")
        layout.place("defects", N, nx)
        layout.place("rows", N, r)
        layout.place("distances", N, self._barrier.width)
        layout.place("duals", N, self._barrier.width)
        layout.place("gradient", t.n)
        # Stage k adds to (x_k, u_k, x_{k+1}): x_0 comes first and is skipped.
        layout.place("cost_gradient", t.n, skipped=nx)
        layout.place("barrier_gradient", t.n)
        layout.place("dynamics_gradient", t.n, skipped=nx)
        layout.place("bands", t.n, band, skipped=nx * band)
        layout.place("defect_jacobian", N, nx, width)
        layout.place("row_jacobian", N, r, block)
        layout.place("summary", 4)
        self._cleared = layout.size
        layout.place("scratch", nx + 3, width + 3)
        self.step = layout = _Layout()
        layout.place("z", t.n)
        layout.place("multipliers", N, nx)
        layout.place("defect_change", N, nx)
        layout.place("summary", 5)
        layout.place("longest", N)  # and the duals right behind it: results of one kernel
        layout.place("duals", N, self._barrier.width)
        self.states_shape = (N + 1, nx)

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
        function = functools.partial(native.c_function, limit=limit)
        live = self.live
        functions = [
            function(
                "system",
                ("w", "multipliers", "duals", "scalars", *live),
                (*self._system_parts(limit), self._terminal_section(), "    summarise(out);"),
                self._cleared,
            ),
            function(
                "newton_bounds",
                ("system", "scalars", "step"),
                (self._bounds_section(),),
                self.step.size - self.step["longest"].begin,
            ),
            function(
                "merit",
                ("w", "multipliers", "scalars", *live),
                (self._merit_section(), self._terminal_merit_section()),
                MERIT_SIZE,
            ),
            function(
                "rollout",
                ("w", *live),
                (self._first_state_section(), self._rollout_section()),
                prod(self.states_shape),
            ),
            function(
                "cost_curvature",
                ("w", *live),
                (self._cost_curvature_section(), self._terminal_curvature_section()),
                self._problem.nx + self._t.n,
            ),
        ]
        signature = f'const char signature[] = "{self.signature}";\n'
        return "\n".join([native.PRELUDE, signature, self._newton(), *functions])

    def _newton(self) -> str:
        """The machine code of a Newton step, for the sizes of this problem."""
        p = self._problem
        sizes = {
            "N": p.horizon,
            "NX": p.nx,
            "NU": p.nu,
            "BAND": self._band,
            "COSTS": len(p.cost_names),
            "SWEEPS": MAX_SWEEPS,
        }
        defines = "".join(f"#define {name} {size}\n" for name, size in sizes.items())
        defines += self.system.defines("O_") + self.step.defines("S_")
        text = resources.files(__package__).joinpath("newton.c").read_text(encoding="utf-8")
        return defines + text

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
        products, _ = trace(section.function, shapes, graph)
        needed = graph.reachable(products.tolist())
        operations = len(graph.depending(needed, len(shapes) - 1)) * prod(shapes[-1])
        if operations <= WRITTEN_OUT:
            return [self._system_section(written_out=True)]
        return [
            self._system_section(written_out=False),
            section,
            *self._constant_jacobian_sections(),
            "    add_squared_jacobian(out, scalars[1]);",
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

        o = self.system
        derived = (Result(o["defect_jacobian"].offset, nx * width),) if written_out else ()
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
                Result(o["costs"].offset),
                Result(o["barrier"].offset),
                Result(o["defects"].offset, nx),
                Result(o["rows"].offset, r),
                Result(o["distances"].offset, barrier.width),
                Result(o["duals"].offset, barrier.width),
                Result(o["cost_gradient"].offset, t.block),
                Result(o["barrier_gradient"].offset, t.block),
                Result(o["dynamics_gradient"].offset, t.block),
                Result(o["bands"].offset, t.block * self._band, self._lower(width)),
                Result(o["row_jacobian"].offset, r * t.block),
                *derived,
            ),
            p.horizon,
        )

    def _hessian_section(self) -> Section:
        """Products of the Lagrangian's Hessian, and of the defects' Jacobian, with probes.

        One probe at each entry of w that has curvature. The gradient of the Lagrangian is linear
        in the multipliers, so its slope along a probe, derived by them, is a column of the
        Jacobian.
        """
        curved, width, o = list(self._curved), self._width, self.system

        def products(*arguments: Tensor) -> list[Tensor]:
            w, multipliers, slope = self._slope(*arguments[:-1])
            along = (slope[curved] * arguments[-1][: len(curved)]).sum()
            return [_gradient(along, w), _gradient(along, multipliers)]

        count = -(-len(curved) // LANES) * LANES
        column, probe = np.divmod(np.arange(width * count), max(count, 1))
        # The Hessian is symmetric: the products of one entry are a column of the band.
        row = np.array([*curved, *[-1] * (count - len(curved))], dtype=int)[probe]
        kept = (row >= column) & (row - column < self._band) & np.isin(column, curved)
        band = np.where(kept, column * self._band + row - column, -1)
        return Section(
            products,
            (*self._slope_arguments(), Argument("unit", (count,))),
            (
                Result(o["bands"].offset, self._t.block * self._band, tuple(band.tolist())),
                self._jacobian_result(curved, count),
            ),
            self._problem.horizon,
            probed=True,
        )

    def _constant_jacobian_sections(self) -> list[Section]:
        """The other columns of the defects' Jacobian; they do not depend on w."""
        straight = [entry for entry in range(self._width) if entry not in self._curved]
        if not straight:
            return []

        def products(*arguments: Tensor) -> list[Tensor]:
            _, multipliers, slope = self._slope(*arguments[:-1])
            return [_gradient((slope[straight] * arguments[-1]).sum(), multipliers)]

        return [
            Section(
                products,
                (*self._slope_arguments(), Argument("unit", (len(straight),))),
                (self._jacobian_result(straight, len(straight)),),
                self._problem.horizon,
                probed=True,
            )
        ]

    def _jacobian_result(self, columns: Sequence[int], count: int) -> Result:
        """Place of products (nx, count) that are columns of the defects' Jacobian."""
        nx, width = self._problem.nx, self._width
        places = np.full((nx, count), -1)
        places[:, : len(columns)] = np.arange(nx)[:, None] * width + np.array(columns, dtype=int)
        offset = self.system["defect_jacobian"].offset
        return Result(offset, nx * width, tuple(places.ravel().tolist()))

    def _slope(
        self,
        w: Tensor,
        multipliers: Tensor,
        duals: Tensor,
        mu: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the Lagrangian by w, with what it depends on first."""
        p, barrier = self._problem, self._barrier
        w.requires_grad_()
        multipliers.requires_grad_()
        costs, defect, h = self._terms(w, weights, parameters)
        u, x_next = w[p.nx : p.nx + p.nu].detach(), w[p.nx + p.nu :].detach()
        distances = barrier.distances(u, barrier.row_values(x_next, h.detach()), mu)
        of_h = barrier.of_inequalities(barrier.safeguarded(duals, distances, mu))
        slope = _gradient(costs.sum() + (multipliers * defect).sum() - (of_h * h).sum(), w)
        return w, multipliers, slope

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
        (slope,) = trace(lambda *arguments: [self._slope(*arguments)[2]], shapes, graph)
        found = (graph.nodes[number] for number in graph.reachable(slope.tolist()))
        return tuple(
            sorted({n.operands[1] for n in found if n.operation == "input" and not n.operands[0]})
        )

    def _terminal_section(self) -> Section:
        p, t = self._problem, self._t
        last, stage_costs, o = p.horizon * t.block, len(p.stage_costs), self.system

        def terminal(x: Tensor, weights: Tensor, *parameters: Tensor) -> list[Tensor]:
            x.requires_grad_()
            costs = self._terminal_costs(x, weights, parameters)
            slope = _gradient(costs.sum(), x)
            return [costs, slope, _jacobian(slope, x)]

        return Section(
            terminal,
            self._terminal_arguments(),
            (
                Result(o["costs"].offset + stage_costs),
                Result(o["cost_gradient"].offset + last),
                Result(o["bands"].offset + last * self._band, 0, self._lower(p.nx)),
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

    def _bounds_section(self) -> Section:
        barrier, block, r = self._barrier, self._t.block, self._barrier.rows
        o = self.system

        def advance(*arguments: Tensor) -> list[Tensor]:
            return list(barrier.advance(*arguments))

        return Section(
            advance,
            (
                Argument("system", (barrier.width,), barrier.width, o["duals"].offset),
                Argument("system", (barrier.width,), barrier.width, o["distances"].offset),
                Argument("system", (r, block), r * block, o["row_jacobian"].offset),
                Argument("step", (block,), block),
                Argument("scalars", ()),
            ),
            (Result(0, 1), Result(self._problem.horizon, barrier.width)),
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

    def _lower(self, size: int) -> tuple[int, ...]:
        """Places in rows of band storage of a block (size, size).

        Only its lower triangle is kept; the rest has place -1.
        """
        i, j = np.divmod(np.arange(size * size), size)
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
