# SPDX-License-Identifier: Apache-2.0
"""The C source of all kernels of a transcription.

A kernel is a list of sections (codegen): each applies one function of ``stage.py`` to all stages,
or to the last, and adds its results at the places of ``layout.py``, so that the blocks of stages
add up where they overlap in the band. Each entry of a stage's second derivatives has code of its
own; where that would be long, the product with one probe is compiled and evaluated for all probes
in a loop. The Newton step, newton.c, differs between problems only in its sizes.
"""

from __future__ import annotations

import functools
from importlib import resources
from math import prod

from mpc_banded.codegen import emit
from mpc_banded.codegen.emit import Argument, Result, Section
from mpc_banded.codegen.graph import LONGEST, Graph
from mpc_banded.codegen.trace import trace
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.layout import MERIT_SIZE, KernelLayout
from mpc_banded.ocp.stage import Stage
from mpc_banded.ocp.transcription import Transcription

#: Scalar operations of one stage's second derivatives up to which each entry has code of its own;
#: beyond, products with probes keep the code short.
WRITTEN_OUT = 6_000
#: Probes are taken in groups of this size: whole vectors of any machine.
LANES = 8


def kernel_source(
    transcription: Transcription, half_bandwidth: int = 0, limit: int = LONGEST
) -> str:
    """Return the C source of all kernels.

    Args:
        transcription: The transcription to compile.
        half_bandwidth: Half bandwidth of the band storage; 0 takes the derived one.
        limit: Largest number of operations of one section.

    Raises:
        UnsupportedOperation: A function of the problem has no scalar form.
        TooLong: A section has more operations than ``limit``.
    """
    half_bandwidth = half_bandwidth or transcription.half_bandwidth
    return _Kernels(transcription, half_bandwidth, limit).source()


class _Inputs:
    """Finds the arguments of a stage's functions in the arrays that a kernel reads.

    Args:
        transcription: The transcription that is compiled.
        barrier: The inequalities of its problem.
        layout: Sizes of the arrays.
    """

    def __init__(
        self, transcription: Transcription, barrier: Barrier, layout: KernelLayout
    ) -> None:
        self._transcription, self._problem = transcription, transcription.problem
        self._barrier, self._layout = barrier, layout

    def window(self) -> Argument:
        """Return (x_k, u_k, x_{k+1})."""
        return Argument("w", (self._layout.width,), self._transcription.block)

    def duals(self) -> tuple[Argument, Argument]:
        """Return the multipliers of the dynamics, and the duals of the inequalities."""
        nx, width = self._problem.nx, self._barrier.width
        return Argument("multipliers", (nx,), nx), Argument("duals", (width,), width)

    def mu(self) -> Argument:
        """Return the barrier parameter."""
        return Argument("scalars", (), 0, self._layout.scalars["mu"].offset)

    def of_states(self, name: str) -> Argument:
        """Return one of the numbers for each state; see KernelLayout.scalars."""
        return Argument("scalars", (self._problem.nx,), 0, self._layout.scalars[name].begin)

    def weights(self) -> Argument:
        """Return the weights of the named costs."""
        return Argument("weights", (len(self._problem.cost_names),))

    def parameters(self, first: int) -> tuple[Argument, ...]:
        """Return the parameters at stage ``first + k``."""
        shapes = [self._problem.parameters[name] for name in self._layout.parameter_names]
        return tuple(
            Argument(f"p{i}", shape, prod(shape), first * prod(shape))
            for i, shape in enumerate(shapes)
        )

    def of_stage(self) -> tuple[Argument, ...]:
        """Return the weights and the parameters at both ends of the interval."""
        return (self.weights(), *self.parameters(0), *self.parameters(1))

    def of_slope(self) -> tuple[Argument, ...]:
        """Return what the gradient of a stage's Lagrangian depends on."""
        return (self.window(), *self.duals(), self.mu(), *self.of_stage())

    def of_last_stage(self) -> tuple[Argument, ...]:
        """Return what the terminal costs depend on."""
        p = self._problem
        return (
            Argument("w", (p.nx,), 0, p.horizon * self._transcription.block),
            self.weights(),
            *self.parameters(p.horizon),
        )


class _Kernels:
    """The sections of all kernels; see kernel_source."""

    def __init__(self, transcription: Transcription, half_bandwidth: int, limit: int) -> None:
        self._t, self._problem, self._limit = transcription, transcription.problem, limit
        self._barrier = Barrier(self._problem)
        self._stage = Stage(transcription, self._barrier)
        self._layout = KernelLayout(transcription, self._barrier, half_bandwidth)
        self._inputs = _Inputs(transcription, self._barrier, self._layout)

    def source(self) -> str:
        """Return the C source of all kernels."""
        layout, live = self._layout, self._layout.live
        function = functools.partial(emit.c_function, limit=self._limit)
        functions = [
            function(
                "system",
                ("w", "multipliers", "duals", "scalars", *live),
                (*self._system_parts(), self._terminal_system(), "    summarise(out, scalars);"),
                layout.cleared,
            ),
            function(
                "newton_bounds",
                ("system", "scalars", "step"),
                (self._bounds(),),
                layout.step.size - layout.step["longest"].begin,
            ),
            function(
                "merit",
                ("w", "multipliers", "scalars", *live),
                (self._merit(), self._terminal_merit()),
                MERIT_SIZE,
            ),
            function(
                "rollout",
                ("w", *live),
                (self._first_state(), self._predicted()),
                prod(layout.states_shape),
            ),
            function(
                "cost_curvature",
                ("w", *live),
                (self._cost_curvature(), self._terminal_curvature()),
                self._problem.nx + self._t.n,
            ),
            function("dynamics", ("x", "u", *live[1:]), (self._dynamics(),), self._problem.nx),
        ]
        signature = f'const char signature[] = "{layout.signature}";\n'
        newton = resources.files(__package__).joinpath("newton.c").read_text(encoding="utf-8")
        return "\n".join([emit.PRELUDE, signature, layout.defines() + newton, *functions])

    # The Newton system

    def _system_parts(self) -> list[Section | str]:
        """Return sections of the Newton system, with second derivatives written out or probed."""
        graph = Graph(self._limit)
        products = self._hessian_products()
        shapes = [argument.shape for argument in products.arguments]
        of_hessian, _ = trace(products.function, shapes, graph)
        needed = graph.reachable(of_hessian.tolist())
        operations = len(graph.depending(needed, len(shapes) - 1)) * prod(shapes[-1])
        if operations <= WRITTEN_OUT:
            return [self._system(second_order=True)]
        return [
            self._system(second_order=False),
            products,
            *self._constant_jacobian(),
            "    add_squared_jacobian(out, scalars + C_PENALTIES);",
        ]

    def _system(self, second_order: bool) -> Section:
        layout, width, block = self._layout, self._layout.width, self._t.block
        nx, r, of_barrier = self._problem.nx, self._barrier.rows, self._barrier.width
        at = {name: field.offset for name, field in layout.system.items()}
        derived = (Result(at["defect_jacobian"], nx * width),) if second_order else ()
        return Section(
            functools.partial(self._stage.system, second_order=second_order),
            (
                self._inputs.window(),
                *self._inputs.duals(),
                self._inputs.mu(),
                self._inputs.of_states("penalties"),
                *self._inputs.of_stage(),
            ),
            (
                Result(at["costs"]),
                Result(at["barrier"]),
                Result(at["defects"], nx),
                Result(at["rows"], r),
                Result(at["distances"], of_barrier),
                Result(at["duals"], of_barrier),
                Result(at["cost_gradient"], block),
                Result(at["barrier_gradient"], block),
                Result(at["dynamics_gradient"], block),
                Result(at["bands"], block * layout.band, layout.lower_triangle(width)),
                Result(at["row_jacobian"], r * block),
                *derived,
            ),
            self._problem.horizon,
        )

    def _hessian_products(self) -> Section:
        """Second derivatives by one probe at each entry of w that has curvature."""
        layout, curved = self._layout, list(self._curved)
        count = -(-len(curved) // LANES) * LANES
        places = layout.hessian_products(self._curved, count)
        stride = self._t.block * layout.band
        return Section(
            functools.partial(self._stage.hessian_products, curved),
            (*self._inputs.of_slope(), Argument("unit", (count,))),
            (
                Result(layout.system["bands"].offset, stride, places),
                self._jacobian_columns(curved, count),
            ),
            self._problem.horizon,
            probed=True,
        )

    def _constant_jacobian(self) -> list[Section]:
        """Return the other columns of the defects' Jacobian, which do not depend on w."""
        straight = [entry for entry in range(self._layout.width) if entry not in self._curved]
        if not straight:
            return []
        return [
            Section(
                functools.partial(self._stage.jacobian_products, straight),
                (*self._inputs.of_slope(), Argument("unit", (len(straight),))),
                (self._jacobian_columns(straight, len(straight)),),
                self._problem.horizon,
                probed=True,
            )
        ]

    def _jacobian_columns(self, columns: list[int], count: int) -> Result:
        layout = self._layout
        stride = self._problem.nx * layout.width
        places = layout.jacobian_columns(columns, count)
        return Result(layout.system["defect_jacobian"].offset, stride, places)

    @functools.cached_property
    def _curved(self) -> tuple[int, ...]:
        """Entries of w that the Lagrangian's gradient depends on: nonzero Hessian columns."""
        graph = Graph()
        shapes = [argument.shape for argument in self._inputs.of_slope()]
        (slope,) = trace(lambda *arguments: [self._stage.slope(*arguments)[2]], shapes, graph)
        found = (graph.nodes[number] for number in graph.reachable(slope.tolist()))
        return tuple(
            sorted({n.operands[1] for n in found if n.operation == "input" and not n.operands[0]})
        )

    def _terminal_system(self) -> Section:
        p, layout = self._problem, self._layout
        last, at = p.horizon * self._t.block, self._layout.system
        return Section(
            self._stage.terminal_system,
            self._inputs.of_last_stage(),
            (
                Result(at["costs"].offset + len(p.stage_costs)),
                Result(at["cost_gradient"].offset + last),
                Result(at["bands"].offset + last * layout.band, 0, layout.lower_triangle(p.nx)),
            ),
            1,
        )

    # Newton step, merit function, rollout and curvature

    def _bounds(self) -> Section:
        barrier, block, r = self._barrier, self._t.block, self._barrier.rows
        at = self._layout.system
        return Section(
            self._stage.advance,
            (
                Argument("system", (barrier.width,), barrier.width, at["duals"].offset),
                Argument("system", (barrier.width,), barrier.width, at["distances"].offset),
                Argument("system", (r, block), r * block, at["row_jacobian"].offset),
                Argument("step", (block,), block),
                self._inputs.mu(),
            ),
            (Result(0, 1), Result(self._problem.horizon, barrier.width)),
            self._problem.horizon,
        )

    def _merit(self) -> Section:
        nx = self._problem.nx
        return Section(
            self._stage.merit,
            (
                self._inputs.window(),
                Argument("multipliers", (nx,), nx),
                self._inputs.mu(),
                self._inputs.of_states("of_defects"),
                *self._inputs.of_stage(),
            ),
            tuple(Result(i) for i in range(MERIT_SIZE)),
            self._problem.horizon,
        )

    def _terminal_merit(self) -> Section:
        return Section(self._stage.terminal_merit, self._inputs.of_last_stage(), (Result(0),), 1)

    def _first_state(self) -> Section:
        nx = self._problem.nx
        return Section(lambda x: [x], (Argument("w", (nx,)),), (Result(0),), 1)

    def _predicted(self) -> Section:
        p, block = self._problem, self._t.block
        return Section(
            self._stage.predicted,
            (
                Argument("out", (p.nx,), p.nx),
                Argument("w", (p.nu,), block, p.nx),
                *self._inputs.parameters(0),
            ),
            (Result(p.nx, p.nx),),
            p.horizon,
        )

    def _cost_curvature(self) -> Section:
        return Section(
            self._stage.cost_curvature,
            (self._inputs.window(), *self._inputs.of_stage()),
            (Result(0, self._t.block),),
            self._problem.horizon,
        )

    def _terminal_curvature(self) -> Section:
        last = Result(self._problem.horizon * self._t.block)
        return Section(self._stage.terminal_curvature, self._inputs.of_last_stage(), (last,), 1)

    def _dynamics(self) -> Section:
        p = self._problem
        arguments = (Argument("x", (p.nx,)), Argument("u", (p.nu,)), *self._inputs.parameters(0))
        return Section(self._stage.dynamics, arguments, (Result(0),), 1)
