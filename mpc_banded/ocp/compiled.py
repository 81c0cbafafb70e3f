# SPDX-License-Identifier: Apache-2.0
"""Derivatives by machine code: calls of the kernels, and their comparison with the eager ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from math import prod
from typing import Any

import numpy as np

from mpc_banded.codegen import native
from mpc_banded.codegen.cache import LibraryCache, NotBuilt
from mpc_banded.codegen.graph import LONGEST, TooLong
from mpc_banded.codegen.trace import UnsupportedOperation
from mpc_banded.ocp.banded import NotPositiveDefinite
from mpc_banded.ocp.derivatives import Derivatives, Merit
from mpc_banded.ocp.kernels import MERIT_SIZE, StageFunctions
from mpc_banded.ocp.newton import NewtonStep, NewtonSystem, Point
from mpc_banded.ocp.transcription import StageData, Transcription

_log = logging.getLogger(__name__)

#: Largest relative difference between compiled and eager derivatives, and points tried until the
#: eager ones are finite.
COMPARED = 1e-9
COMPARISONS = 5
#: Nodes up to which a trace is short enough to only look for a library.
LOOKED_UP = 6_000


class _Inputs:
    """What a kernel reads, in one block of memory whose addresses are known.

    Looking up the address of an array takes longer than copying it, where it is as short as here.
    """

    def __init__(self, **sizes: int) -> None:
        self._memory = np.zeros(sum(sizes.values()))
        ends = np.cumsum(list(sizes.values())).tolist()
        parts = np.split(self._memory, ends[:-1])
        self.addresses = [part.ctypes.data for part in parts]
        self.parts = dict(zip(sizes, parts, strict=True))


class CompiledDerivatives(Derivatives):
    """Derivatives by a compiled library; see StageFunctions. For one thread at a time.

    Args:
        derivatives: The eager ones; the check of the bandwidth is left to them.
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
        if library.signature != f.signature:
            raise ValueError(f"{library.path} is of another problem")
        self._system = library.function("system", 5 + live)
        self._newton_step = library.function("newton_step", 5)
        self._merit = library.function("merit", 4 + live)
        self._rollout = library.function("rollout", 2 + live)
        self._cost_curvature = library.function("cost_curvature", 2 + live)
        problem = t.problem
        given = _Inputs(
            state=problem.nx,
            z=t.n,
            multipliers=problem.horizon * problem.nx,
            duals=problem.horizon * self.barrier.width,
            scalars=4,
        )
        self._given, self._addresses = given.parts, given.addresses
        self._workspace = np.zeros(library.integer("workspace_size"))
        self._workspace_address = self._workspace.ctypes.data
        self._live: tuple[StageData | None, list[int]] = (None, [])

    def system(self, point: Point, data: StageData, penalty: float) -> NewtonSystem:
        """See Derivatives.system."""
        given = self._given
        given["state"][:] = data.state
        given["z"][:] = point.z
        given["multipliers"][:] = point.multipliers.ravel()
        given["duals"][:] = point.duals.ravel()
        given["scalars"][:2] = point.mu, penalty
        w, _, multipliers, duals, scalars = self._addresses
        out = np.empty(self._functions.system.size)
        live = self._live_addresses(data)
        address = out.ctypes.data
        self._system(w, multipliers, duals, scalars, *live, address)
        return _System(point, out, address, self._functions)

    def newton_step(
        self, system: NewtonSystem, penalty: float, shift: float, accuracy: float
    ) -> NewtonStep:
        """See Derivatives.newton_step; the system must come from here."""
        assert isinstance(system, _System)
        given, step = self._given, self._functions.step
        given["multipliers"][:] = system.point.multipliers.ravel()
        given["scalars"][:] = system.point.mu, penalty, shift, accuracy
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

    def merit(self, z: np.ndarray, multipliers: np.ndarray, mu: float, data: StageData) -> Merit:
        """See Derivatives.merit."""
        given = self._given
        given["state"][:] = data.state
        given["z"][:] = z
        given["multipliers"][:] = multipliers.ravel()
        given["scalars"][0] = mu
        w, _, of_dynamics, _, scalars = self._addresses
        out = np.empty(MERIT_SIZE)
        self._merit(w, of_dynamics, scalars, *self._live_addresses(data), out.ctypes.data)
        return Merit(*out.tolist())

    def rollout(self, inputs: np.ndarray, data: StageData) -> np.ndarray:
        """See Derivatives.rollout."""
        shape, problem = self._functions.states_shape, self.transcription.problem
        out = np.empty(prod(shape))
        padded = np.hstack([inputs, np.zeros((problem.horizon, problem.nx))])
        w = np.concatenate([data.state, padded.reshape(-1)])
        _call(self._rollout, (w,), self._live_addresses(data), out)
        return out.reshape(shape)

    def mean_curvature(self, z: np.ndarray, data: StageData) -> float:
        """See Derivatives.mean_curvature."""
        nx = self.transcription.problem.nx
        out = np.empty(nx + self.transcription.n)
        w = np.concatenate([data.state, z])
        _call(self._cost_curvature, (w,), self._live_addresses(data), out)
        return float(np.abs(out[nx:]).mean())

    def central_duals(self, z: np.ndarray, mu: float, data: StageData) -> np.ndarray:
        """See Derivatives.central_duals."""
        horizon, nx = self.transcription.problem.horizon, self.transcription.problem.nx
        anywhere = Point(z, np.zeros((horizon, nx)), np.ones((horizon, self.barrier.width)), mu)
        duals: np.ndarray = mu / self.system(anywhere, data, 0.0).distances
        return duals

    def _live_addresses(self, data: StageData) -> list[int]:
        """Addresses of weights and parameters, looked up once for each solve."""
        if data is not self._live[0]:
            names = self._functions.parameter_names
            arrays = (data.factors, *(data.values[name] for name in names))
            # At once, for threads that share this.
            self._live = (data, [array.ctypes.data for array in arrays])
        return self._live[1]


class _System(NewtonSystem):
    """A Newton system as the kernel left it: arrays are cut out when they are asked for."""

    def __init__(
        self, point: Point, out: np.ndarray, address: int, functions: StageFunctions
    ) -> None:
        parts = functions.system
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

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__["_parts"]:
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


def compiled(
    derivatives: Derivatives, cache: LibraryCache, build: bool = True
) -> CompiledDerivatives:
    """Compiled derivatives like the given ones, from the cache or built, compared with eager ones.

    Args:
        derivatives: Which ones.
        cache: Where libraries are kept.
        build: Whether to build what the cache does not have.

    Raises:
        UnsupportedOperation: A function cannot be compiled.
        NotBuilt: The cache does not have the library, and ``build`` is false; how to build it is
            in the error, unless it would take long to find out.
        NoCompiler: There is no C compiler, and the cache does not have the library.
        ValueError: The recovery is not stagewise, or compiled and eager differ.
    """
    if derivatives.recovery != "stagewise":
        raise ValueError(
            f"recovery {derivatives.recovery!r} sees the costs as a black box; only 'stagewise' "
            "can be compiled"
        )
    try:
        source = StageFunctions(derivatives).source(LONGEST if build else LOOKED_UP)
    except TooLong as error:
        if build:
            raise UnsupportedOperation(f"{error}; fewer substeps make less") from error
        raise NotBuilt(f"{error}: too long to look for its library") from error
    eager = _eager(derivatives)

    def built(started: native.Started | None = None) -> CompiledDerivatives:
        result = CompiledDerivatives(eager, cache.library(source, started=started))
        _compare(eager, result)
        return result

    try:
        cache.library(source, build=False)
    except NotBuilt as missing:
        if not build:
            missing.build = lambda started: built(started).library.path
            raise
    return built()


def _eager(derivatives: Derivatives) -> Derivatives:
    t = derivatives.transcription
    return Derivatives(t, derivatives.half_bandwidth, derivatives.recovery)


def loaded(derivatives: Derivatives, library: native.Library) -> CompiledDerivatives:
    """Compiled derivatives like the given ones, by a library that was compared when it was built.

    Whether it is of the same problem is judged by the values of costs, defects and rows at some
    point, which takes a millisecond.

    Raises:
        ValueError: The library is of another problem.
    """
    eager = _eager(derivatives)
    result = CompiledDerivatives(eager, library)
    point, data = _random_point(eager, np.random.default_rng(0))
    arguments = (point.z, point.multipliers, point.mu, data)
    wanted, got = (np.array(astuple(each.merit(*arguments))) for each in (eager, result))
    if not np.allclose(wanted, got, rtol=COMPARED, atol=COMPARED, equal_nan=True):
        raise ValueError(f"{library.path} is of another problem: {got} for {wanted}")
    return result


def _compare(eager: Derivatives, machine: CompiledDerivatives) -> None:
    """Raises ValueError if both differ at a random point where the eager ones are finite."""
    for seed in range(COMPARISONS):
        point, data = _random_point(eager, np.random.default_rng(seed))
        wanted = eager.system(point, data, 1.0)
        if np.isfinite(wanted.bands).all():
            break
    else:
        _log.warning("compiled derivatives could not be compared: no finite ones were found")
    got = machine.system(point, data, 1.0)
    names = [f.name for f in fields(NewtonSystem) if f.name != "point"]
    pairs = {name: (getattr(wanted, name), getattr(got, name)) for name in names}
    pairs["duals"] = (wanted.point.duals, got.point.duals)
    arguments = (point.z, point.multipliers, point.mu, data)
    merits = [np.array(astuple(each.merit(*arguments))) for each in (eager, machine)]
    pairs["merit"] = (merits[0], merits[1])
    for name, (a, b) in pairs.items():
        finite = np.isfinite(a)
        a, b = 1.0 * np.asarray(a)[finite], 1.0 * np.asarray(b)[finite]
        if a.size and not np.abs(a - b).max() <= COMPARED * (1.0 + np.abs(a).max()):
            raise ValueError(
                f"compiled and eager {name} differ by {np.abs(a - b).max():.1e}: look for float32 "
                "inside a function, for one that treats a batch unlike its members, for a cost "
                "that couples stages, and last at the compiler"
            )


def _random_point(eager: Derivatives, generator: np.random.Generator) -> tuple[Point, StageData]:
    """A point inside the input bounds; all numbers are positive, as roots and logarithms want."""
    t = eager.transcription
    problem = t.problem

    def positive(*shape: int) -> np.ndarray:
        return generator.uniform(0.1, 1.5, shape)

    parameters = {
        name: positive(problem.horizon + 1, *shape) for name, shape in problem.parameters.items()
    }
    data = t.stage_data(positive(problem.nx), parameters, dict.fromkeys(problem.cost_names, 1.0))
    stages = positive(problem.horizon, t.block)
    stages[:, : problem.nu] = eager.barrier.interior(stages[:, : problem.nu])
    multipliers = generator.standard_normal((problem.horizon, problem.nx))
    duals = positive(problem.horizon, eager.barrier.width)
    return Point(stages.reshape(-1), multipliers, duals, 0.1), data
