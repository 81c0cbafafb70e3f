# SPDX-License-Identifier: Apache-2.0
"""The compiled evaluator, which calls machine code, and the functions that build and load it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mpc_banded.codegen.build import Library, Started
from mpc_banded.codegen.cache import LibraryCache, NotBuilt
from mpc_banded.codegen.graph import LONGEST, TooLong
from mpc_banded.codegen.trace import UnsupportedOperation
from mpc_banded.ocp import checks
from mpc_banded.ocp.banded import NotPositiveDefinite
from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.evaluator import Evaluator, Merit
from mpc_banded.ocp.kernels import kernel_source
from mpc_banded.ocp.layout import MERIT_SIZE, KernelLayout
from mpc_banded.ocp.newton import NewtonStep, NewtonSystem, Point, Scaling
from mpc_banded.ocp.transcription import StageData, Transcription

#: Nodes up to which a trace is short enough to be made only to look for its library.
LOOKED_UP = 6_000


class _Inputs:
    """The arrays that a kernel reads, in one block of memory whose addresses are known.

    Looking up the address of an array takes longer than copying an array as short as these.
    """

    def __init__(self, **sizes: int) -> None:
        self._memory = np.zeros(sum(sizes.values()))
        ends = np.cumsum(list(sizes.values())).tolist()
        parts = np.split(self._memory, ends[:-1])
        self.addresses = [part.ctypes.data for part in parts]
        self.parts = dict(zip(sizes, parts, strict=True))


class CompiledEvaluator:
    """Evaluates a transcription by machine code, for one thread at a time; see Evaluator.

    Args:
        transcription: The transcription that was compiled.
        library: Library built from its ``kernels.kernel_source``.
        half_bandwidth: Half bandwidth of the band storage; 0 takes the derived one.

    Raises:
        ValueError: The library belongs to another problem.
    """

    recovery = "stagewise"

    def __init__(
        self, transcription: Transcription, library: Library, half_bandwidth: int = 0
    ) -> None:
        self.transcription = transcription
        self.half_bandwidth = half_bandwidth or transcription.half_bandwidth
        self.barrier = Barrier(transcription.problem)
        self.library = library
        self._layout = KernelLayout(transcription, self.barrier, self.half_bandwidth)
        if library.signature != self._layout.signature:
            raise ValueError(f"{library.path} belongs to another problem")
        live = len(self._layout.live)
        self._system = library.function("system", 5 + live)
        self._newton_step = library.function("newton_step", 5)
        self._merit = library.function("merit", 4 + live)
        self._rollout = library.function("rollout", 2 + live)
        self._cost_curvature = library.function("cost_curvature", 2 + live)
        problem = transcription.problem
        given = _Inputs(
            state=problem.nx,
            z=transcription.n,
            multipliers=problem.horizon * problem.nx,
            duals=problem.horizon * self.barrier.width,
            scalars=self._layout.scalars.size,
        )
        self._given, self._addresses = given.parts, given.addresses
        self._scaling: Scaling | None = None
        self._workspace = np.zeros(library.integer("workspace_size"))
        self._workspace_address = self._workspace.ctypes.data
        self._dynamics = library.function("dynamics", 2 + live)
        self._instant = _Inputs(x=problem.nx, u=problem.nu, rate=problem.nx)
        self._values: tuple[Mapping[str, np.ndarray] | None, list[int]] = (None, [])
        self._live: tuple[StageData | None, list[int]] = (None, [])

    def system(self, point: Point, data: StageData, scaling: Scaling) -> NewtonSystem:
        """See Evaluator.system."""
        given = self._given
        given["state"][:] = data.state
        given["z"][:] = point.z
        given["multipliers"][:] = point.multipliers.ravel()
        given["duals"][:] = point.duals.ravel()
        self._set(scaling, point.mu)
        w, _, multipliers, duals, scalars = self._addresses
        out = np.empty(self._layout.system.size)
        live = self._live_addresses(data)
        address = out.ctypes.data
        self._system(w, multipliers, duals, scalars, *live, address)
        return _System(point, out, address, self._layout)

    def newton_step(
        self, system: NewtonSystem, scaling: Scaling, shift: float, accuracy: float
    ) -> NewtonStep:
        """See Evaluator.newton_step."""
        assert isinstance(system, _System)
        given, step = self._given, self._layout.step
        given["multipliers"][:] = system.point.multipliers.ravel()
        self._set(scaling, system.point.mu, shift, accuracy)
        _, _, multipliers, _, scalars = self._addresses
        out = np.empty(step.size)
        self._newton_step(
            system.address, multipliers, scalars, self._workspace_address, out.ctypes.data
        )
        slope, bend, dynamics, squared, failed = step["summary"].of(out).tolist()
        if failed >= 0:
            raise NotPositiveDefinite(int(failed))
        return NewtonStep(
            step["z"].of(out),
            step["multipliers"].of(out),
            step["defect_change"].of(out),
            slope,
            bend,
            dynamics,
            squared,
            float(step["longest"].of(out).min()),
            step["duals"].of(out),
        )

    def merit(
        self,
        z: np.ndarray,
        multipliers: np.ndarray,
        mu: float,
        data: StageData,
        scaling: Scaling,
    ) -> Merit:
        """See Evaluator.merit."""
        given = self._given
        given["state"][:] = data.state
        given["z"][:] = z
        given["multipliers"][:] = multipliers.ravel()
        self._set(scaling, mu)
        w, _, of_dynamics, _, scalars = self._addresses
        out = np.empty(MERIT_SIZE)
        self._merit(w, of_dynamics, scalars, *self._live_addresses(data), out.ctypes.data)
        return Merit(*out.tolist())

    def rollout(self, inputs: np.ndarray, data: StageData) -> np.ndarray:
        """See Evaluator.rollout."""
        shape, problem = self._layout.states_shape, self.transcription.problem
        out = np.empty(prod(shape))
        padded = np.hstack([inputs, np.zeros((problem.horizon, problem.nx))])
        w = np.concatenate([data.state, padded.reshape(-1)])
        _call(self._rollout, (w,), self._live_addresses(data), out)
        return out.reshape(shape)

    def dynamics(
        self, x: np.ndarray, u: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """See Evaluator.dynamics."""
        if values is not self._values[0]:
            names = self._layout.parameter_names
            self._values = (values, [values[name].ctypes.data for name in names])
        instant = self._instant.parts
        instant["x"][:], instant["u"][:] = x, u
        of_x, of_u, of_rate = self._instant.addresses
        self._dynamics(of_x, of_u, *self._values[1], of_rate)
        return instant["rate"].copy()

    def cost_curvature(self, z: np.ndarray, data: StageData) -> np.ndarray:
        """See Evaluator.cost_curvature."""
        nx = self.transcription.problem.nx
        out = np.empty(nx + self.transcription.n)
        w = np.concatenate([data.state, z])
        _call(self._cost_curvature, (w,), self._live_addresses(data), out)
        return out[nx:]

    def central_duals(self, z: np.ndarray, mu: float, data: StageData) -> np.ndarray:
        """See Evaluator.central_duals."""
        horizon, nx = self.transcription.problem.horizon, self.transcription.problem.nx
        anywhere = Point(z, np.zeros((horizon, nx)), np.ones((horizon, self.barrier.width)), mu)
        none = Scaling(np.ones(self.transcription.problem.nu), np.ones(nx), 1.0, 0.0)
        duals: np.ndarray = mu / self.system(anywhere, data, none).distances
        return duals

    def _set(self, scaling: Scaling, *first: float) -> None:
        """The scalars of the next call: the first ones, and a scaling where it is another."""
        scalars = self._given["scalars"]
        scalars[: len(first)] = first
        if scaling is not self._scaling:
            places = self._layout.scalars
            for name in ("cost", "variables", "of_defects", "penalties"):
                places[name].of(scalars)[...] = getattr(scaling, name)
            places["curvatures"].of(scalars)[:] = scaling.curvatures[: len(scaling.inputs)]
            self._scaling = scaling

    def _live_addresses(self, data: StageData) -> list[int]:
        """Return addresses of weights and parameters, looked up once a solve."""
        if data is not self._live[0]:
            names = self._layout.parameter_names
            arrays = (data.factors, *(data.values[name] for name in names))
            self._live = (data, [array.ctypes.data for array in arrays])
        return self._live[1]


class _System(NewtonSystem):
    """A Newton system as the kernel left it; arrays are cut out on first access."""

    def __init__(self, point: Point, out: np.ndarray, address: int, layout: KernelLayout) -> None:
        parts = layout.system
        begin = parts["summary"].begin
        cost, kkt_residual, defect_norm, nothing = out[begin : begin + 4].tolist()
        safe = Point(point.z, point.multipliers, parts["duals"].of(out), point.mu)
        self.__dict__.update(
            point=safe,
            cost=cost,
            kkt_residual=kkt_residual,
            defect_norm=defect_norm,
            finite=kkt_residual + defect_norm + nothing < np.inf,
            barrier=out.item(parts["barrier"].begin),
            address=address,
            _out=out,
            _parts=parts,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as a plain system: the address would be that of the original."""
        return NewtonSystem, tuple(getattr(self, f.name) for f in fields(NewtonSystem))

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__.get("_parts", ()):
            raise AttributeError(name)
        value = self._parts[name].of(self._out)
        self.__dict__[name] = value.T if name == "bands" else value
        return self.__dict__[name]


def _call(
    kernel: Callable[..., None],
    arrays: Sequence[np.ndarray],
    live: Sequence[int],
    out: np.ndarray,
) -> None:
    """Call a kernel with the addresses of arrays, which live until it returns."""
    kept = [np.ascontiguousarray(array, dtype=np.float64) for array in arrays]
    kernel(*(array.ctypes.data for array in kept), *live, out.ctypes.data)


def compile_evaluator(
    evaluator: Evaluator, cache: LibraryCache | None = None, build: bool = True
) -> CompiledEvaluator:
    """Compile an evaluator to take the place of another one, and compare it with an eager one.

    Args:
        evaluator: An evaluator of the transcription to compile.
        cache: Keeps the libraries; the user's cache if not given.
        build: Whether to build a library that the cache does not have.

    Raises:
        UnsupportedOperation: A function of the problem cannot be compiled.
        NotBuilt: The cache does not have the library, and ``build`` is false. The error says how
            to build it, unless it would take long to find out.
        NoCompiler: There is no C compiler, and the cache does not have the library.
        UnsafeCache: Others may write to the folder of the cache.
        ValueError: The recovery is not stagewise, or compiled and eager results differ; in the
            latter case the library is removed from the cache.
    """
    if evaluator.recovery != "stagewise":
        raise ValueError(
            f"recovery {evaluator.recovery!r} sees the costs as a black box; only 'stagewise' "
            "can be compiled"
        )
    cache = cache or LibraryCache()
    # One thread may build while another evaluates, so both use evaluators of their own.
    transcription, half_bandwidth = evaluator.transcription, evaluator.half_bandwidth
    eager = EagerEvaluator(transcription, half_bandwidth)
    try:
        source = kernel_source(transcription, half_bandwidth, LONGEST if build else LOOKED_UP)
    except TooLong as error:
        if build:
            raise UnsupportedOperation(f"{error}; fewer substeps make less") from error
        raise NotBuilt(f"{error}: too long to look for its library") from error

    def built(started: Started | None = None) -> CompiledEvaluator:
        library = cache.library(source, started=started)
        result = CompiledEvaluator(transcription, library, half_bandwidth)
        try:
            checks.compare(eager, result)
        except ValueError:
            cache.discard(library)
            raise
        return result

    try:
        cache.library(source, build=False)
    except NotBuilt as missing:
        if not build:
            missing.build = lambda started: built(started).library.path
            raise
    return built()


def load_evaluator(
    evaluator: Evaluator, path: Path, cache: LibraryCache | None = None
) -> CompiledEvaluator:
    """Load a compiled evaluator from a library that was compared when it was built.

    Whether the library belongs to the same problem is judged by the merit function at one point,
    which takes a millisecond.

    Args:
        evaluator: An evaluator of the transcription that was compiled.
        path: Path of the library in the cache.
        cache: As for ``compile_evaluator``.

    Raises:
        UnsafeCache: Others may write to the folder of the cache.
        ValueError: The library is damaged, not in the cache, or belongs to another problem.
    """
    library = (cache or LibraryCache()).stored(path)
    transcription, half_bandwidth = evaluator.transcription, evaluator.half_bandwidth
    result = CompiledEvaluator(transcription, library, half_bandwidth)
    checks.compare_merit(EagerEvaluator(transcription, half_bandwidth), result, str(path))
    return result


def library_path(evaluator: Evaluator) -> Path | None:
    """Return the library that an evaluator calls; None if it calls none."""
    return evaluator.library.path if isinstance(evaluator, CompiledEvaluator) else None
