# SPDX-License-Identifier: Apache-2.0
"""Where the arguments and results of the kernels lie in memory, shared by Python and C.

``compiled.py`` cuts the arrays that a kernel has filled into named parts, ``kernels.py`` tells the
generated code where to write, and newton.c sees the same places as macros.
"""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np

from mpc_banded.codegen.build import SIGNATURE
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.newton import MAX_SWEEPS
from mpc_banded.ocp.transcription import Transcription

#: Number of parts of the merit function; see Merit.
MERIT_SIZE = 4


class Field:
    """A part of an output array.

    Args:
        offset: Where the kernel begins to write.
        shape: Shape of the part.
        skipped: Entries that the kernel writes before row 0.

    Attributes:
        begin: Where row 0 starts.
        end: Where the part ends.
    """

    def __init__(self, offset: int, shape: tuple[int, ...], skipped: int = 0) -> None:
        self.offset, self.shape = offset, shape
        self.begin = offset + skipped
        self.end = self.begin + prod(shape)

    def of(self, out: np.ndarray) -> np.ndarray:
        """Return this part of an output array, as a view."""
        return out[self.begin : self.end].reshape(self.shape)


class Layout(dict[str, Field]):
    """Places of named parts in an output array, one after another.

    Attributes:
        size: Number of entries of the array.
    """

    size = 0

    def place(self, name: str, *shape: int, skipped: int = 0) -> None:
        """Append a part."""
        self[name] = Field(self.size, shape, skipped)
        self.size = self[name].end

    def defines(self, prefix: str) -> str:
        """C macros of where row 0 of each part starts."""
        lines = [f"#define {prefix}{name.upper()} {field.begin}\n" for name, field in self.items()]
        return "".join(lines)


class KernelLayout:
    """Sizes and places of all that the kernels of a transcription read and write.

    Args:
        transcription: The transcription that is compiled.
        barrier: The inequalities of its problem.
        half_bandwidth: Half bandwidth of the band storage.

    Attributes:
        width: Entries of ``w_k = (x_k, u_k, x_{k+1})``.
        band: Rows of the band storage.
        parameter_names: Names of the parameters, in the order of the C arguments.
        live: Names of the arrays that come from StageData, in the order of the C arguments.
        scalars: Barrier parameter, shift and accuracy of a step, and the scaling.
        system: Parts of a Newton system.
        cleared: Entries of a system that are set to zero first; scratch memory follows.
        step: Parts of a Newton step.
        states_shape: Shape of a rollout, (N + 1, nx).
    """

    def __init__(
        self, transcription: Transcription, barrier: Barrier, half_bandwidth: int
    ) -> None:
        problem = self._problem = transcription.problem
        self._rows = barrier.rows
        self._n, self._block = transcription.n, transcription.block
        self.width = transcription.block + problem.nx
        self.band = half_bandwidth + 1
        self.parameter_names = tuple(problem.parameters)
        self.live = ("weights", *(f"p{i}" for i in range(len(self.parameter_names))))
        self.scalars = self._scalars()
        self.system = self._system(barrier)
        self.cleared = self.system.size
        self.system.place("scratch", problem.nx + 3, self.width + 3)
        self.step = self._step(barrier)
        self.states_shape = (problem.horizon + 1, problem.nx)

    def _scalars(self) -> Layout:
        layout, nu, nx = Layout(), self._problem.nu, self._problem.nx
        for name in ("mu", "shift", "accuracy", "cost"):
            layout.place(name)
        layout.place("variables", nu + nx)
        layout.place("curvatures", nu)
        layout.place("of_defects", nx)  # the curvatures of states, right behind those of inputs
        layout.place("penalties", nx)
        return layout

    def _system(self, barrier: Barrier) -> Layout:
        N, nx, n = self._problem.horizon, self._problem.nx, self._n
        layout = Layout()
        layout.place("costs", len(self._problem.cost_names))
        layout.place("barrier")
        layout.place("defects", N, nx)
        layout.place("rows", N, barrier.rows)
        layout.place("distances", N, barrier.width)
        layout.place("duals", N, barrier.width)
        layout.place("gradient", n)
        # Stage k adds to (x_k, u_k, x_{k+1}): x_0 comes first and is skipped.
        layout.place("cost_gradient", n, skipped=nx)
        layout.place("barrier_gradient", n)
        layout.place("dynamics_gradient", n, skipped=nx)
        layout.place("bands", n, self.band, skipped=nx * self.band)
        layout.place("defect_jacobian", N, nx, self.width)
        layout.place("row_jacobian", N, barrier.rows, self._block)
        layout.place("summary", 4)
        return layout

    def _step(self, barrier: Barrier) -> Layout:
        N, nx = self._problem.horizon, self._problem.nx
        layout = Layout()
        layout.place("z", self._n)
        layout.place("multipliers", N, nx)
        layout.place("defect_change", N, nx)
        layout.place("summary", 5)
        # One kernel writes both of these, so the duals follow right behind.
        layout.place("longest", N)
        layout.place("duals", N, barrier.width)
        return layout

    @property
    def signature(self) -> str:
        """A digest of all sizes: libraries with the same signature can be called alike."""
        p = self._problem
        shapes = [p.parameters[name] for name in self.parameter_names]
        sizes = (p.horizon, p.nx, p.nu, self._rows, self.band, len(p.cost_names), shapes)
        return hashlib.sha256(repr(sizes).encode()).hexdigest()[: SIGNATURE - 1]

    def defines(self) -> str:
        """C macros of all sizes and places, for newton.c."""
        p = self._problem
        sizes = {
            "N": p.horizon,
            "NX": p.nx,
            "NU": p.nu,
            "BAND": self.band,
            "COSTS": len(p.cost_names),
            "SWEEPS": MAX_SWEEPS,
        }
        lines = "".join(f"#define {name} {size}\n" for name, size in sizes.items())
        layouts = {"C_": self.scalars, "O_": self.system, "S_": self.step}
        return lines + "".join(parts.defines(prefix) for prefix, parts in layouts.items())

    def lower_triangle(self, size: int) -> tuple[int, ...]:
        """Return places of the entries of a block (size, size) in the rows of the band storage.

        Only the lower triangle is kept; other entries have place -1.
        """
        i, j = np.divmod(np.arange(size * size), size)
        kept = (i >= j) & (i - j < self.band)
        return tuple(np.where(kept, j * self.band + i - j, -1).tolist())

    def hessian_products(self, curved: tuple[int, ...], count: int) -> tuple[int, ...]:
        """Return places in the band of products (width, count) of the Hessian with probes.

        The Hessian is symmetric, so the products of one entry are a column of the band.

        Args:
            curved: The entry of ``w_k`` that each probe picks.
            count: Number of probes; those beyond ``curved`` are padding.
        """
        column, probe = np.divmod(np.arange(self.width * count), max(count, 1))
        row = np.array([*curved, *[-1] * (count - len(curved))], dtype=int)[probe]
        kept = (row >= column) & (row - column < self.band) & np.isin(column, curved)
        return tuple(np.where(kept, column * self.band + row - column, -1).tolist())

    def jacobian_columns(self, columns: list[int], count: int) -> tuple[int, ...]:
        """Return places of products (nx, count) that are columns of the defects' Jacobian."""
        nx = self._problem.nx
        places = np.full((nx, count), -1)
        places[:, : len(columns)] = np.arange(nx)[:, None] * self.width + np.array(
            columns, dtype=int
        )
        return tuple(places.ravel().tolist())
