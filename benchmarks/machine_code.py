# SPDX-License-Identifier: Apache-2.0
"""What the compiled kernels of a task do and cost, and what the core could do at best.

Operations are counted by running the very source of the kernels with numbers that count; times
are those of calls from C, so that no Python is in them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.linalg import get_lapack_funcs

from benchmarks.peers.mpc_banded import problem
from benchmarks.tasks import Task
from mpc_banded.codegen import build as codegen_build
from mpc_banded.codegen import graph as expressions
from mpc_banded.codegen.cache import LibraryCache
from mpc_banded.ocp import banded, kernels
from mpc_banded.ocp.compiled import CompiledEvaluator
from mpc_banded.ocp.eager import EagerEvaluator
from mpc_banded.ocp.kernels import kernel_source
from mpc_banded.ocp.layout import MERIT_SIZE, KernelLayout
from mpc_banded.ocp.newton import Point
from mpc_banded.ocp.transcription import StageData, Transcription

#: Kernels of a Newton iteration; a step is the three whose names begin with it.
KERNELS = ("system", "newton_factor", "newton_sweep", "newton_bounds", "merit")
#: LAPACK's routines, that see a band and no stages.
FACTOR, SOLVE = "dpbtrf", "dpbtrs"
#: Limits for kernels.WRITTEN_OUT: below all problems, above all.
PROBED, WRITTEN_OUT = 0, 10**9


@dataclass(frozen=True)
class Build:
    """The compiled derivatives of a task, fresh from the compiler.

    Attributes:
        source: C source of all kernels.
        library: Loaded.
        trace_s: Processor time from torch functions to C, in seconds.
        compile_s: Processor time of the compiler.
    """

    task: Task
    eager: EagerEvaluator
    source: str
    library: codegen_build.Library
    trace_s: float
    compile_s: float

    @cached_property
    def derivatives(self) -> CompiledEvaluator:
        """By this library."""
        return CompiledEvaluator(self.eager.transcription, self.library)


def build(
    task: Task,
    cache: LibraryCache,
    written_out: int = kernels.WRITTEN_OUT,
    flags: tuple[str, ...] = codegen_build.FLAGS,
) -> Build:
    """Trace and compile a task's derivatives.

    Args:
        task: Its transcription is rk4, as in all comparisons.
        cache: Where the library goes; must not have it yet, or the compiler's time is zero.
        written_out: See kernels.WRITTEN_OUT.
        flags: Of the compiler.
    """
    eager = EagerEvaluator(Transcription(problem(task), "rk4", task.substeps))
    with (
        mock.patch.object(kernels, "WRITTEN_OUT", written_out),
        mock.patch.object(codegen_build, "FLAGS", flags),
    ):
        began = time.process_time()
        source = kernel_source(eager.transcription)
        trace_s = time.process_time() - began
        began = _children_s()
        library = cache.library(source)
        return Build(task, eager, source, library, trace_s, _children_s() - began)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Moment:
    """Where the derivatives of a task are taken: the arguments of Evaluator.system."""

    point: Point
    data: StageData
    penalty: float


@dataclass(frozen=True)
class Call:
    """A kernel and the arrays that it is called with, the output last."""

    kernel: Callable[..., None]
    arrays: tuple[np.ndarray, ...]

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        return tuple(array.ctypes.data for array in self.arrays)

    @property
    def bytes(self) -> int:
        """Size of what is read and written, each once."""
        return sum(array.nbytes for array in self.arrays)

    def __call__(self) -> None:
        self.kernel(*self.addresses)


def calls(of: Build, moment: Moment) -> dict[str, Call]:
    """Every kernel of an iteration with arguments as the loop has them at a moment."""
    transcription = of.eager.transcription
    horizon = transcription.problem.horizon
    f = KernelLayout(transcription, of.eager.barrier, transcription.half_bandwidth)
    point, data = moment.point, moment.data
    w = np.concatenate([data.state, point.z])
    live = [data.factors, *(data.values[name] for name in f.parameter_names)]
    scalars = np.array([point.mu, moment.penalty, 0.0, np.inf])
    system, step = np.zeros(f.system.size), np.zeros(f.step.size)
    workspace = np.zeros(of.library.integer("workspace_size"))
    # Copies: kernels read rows that lie one after another.
    multipliers, duals = (np.array(a, order="C") for a in (point.multipliers, point.duals))
    # Of each routine those before it have made what it reads.
    bounds = np.zeros(horizon * (1 + duals.shape[1]))
    arrays: dict[str, tuple[np.ndarray, ...]] = {
        "system": (w, multipliers, duals, scalars, *live, system),
        "newton_factor": (system, scalars, workspace, np.zeros(1)),
        "newton_sweep": (system, multipliers, scalars, workspace, step),
        "newton_bounds": (system, scalars, f.step["z"].of(step), bounds),
        "merit": (w, multipliers, scalars, *live, np.zeros(MERIT_SIZE)),
    }
    found = {
        name: Call(of.library.function(name, len(given)), given) for name, given in arrays.items()
    }
    for call in found.values():
        call()
    return found


def lapack(of: Build, moment: Moment) -> dict[str, Callable[[], object]]:
    """Factorisation (a copy included) and solve at a moment, by the bare wrappers."""
    bands = of.derivatives.system(moment.point, moment.data, moment.penalty).bands
    pbtrf, pbtrs = get_lapack_funcs(("pbtrf", "pbtrs"), (bands,))
    factor, right = banded.cholesky(bands).factor, np.ones(bands.shape[1])
    return {
        FACTOR: lambda: pbtrf(bands, lower=1),
        SOLVE: lambda: pbtrs(factor, right, lower=1),
    }


# Operations

#: Functions of C's mathematics library that count by name.
_UNARY = tuple(
    f for f in expressions.UNARY if f not in ("neg", "fabs", "sign", "not", "sqrt", "floor")
)
_BINARY = ("pow", "atan2", "hypot", "fmod")
ADDITIONS, PRODUCTS, DIVISIONS, ROOTS, OTHERS = "+ -", "*", "/", "sqrt", "others"
_KINDS = (ADDITIONS, PRODUCTS, DIVISIONS, ROOTS, OTHERS, *_UNARY, *_BINARY)


def _counting() -> str:
    """C++ to come before C source: a number that counts what is done with it."""

    def function(name: str, kind: str, arity: int) -> str:
        names = "ab"[:arity]
        parameters = ", ".join(f"Number {a}" for a in names)
        values = ", ".join(f"{a}.value" for a in names)
        count = f"++counts[{_KINDS.index(kind)}];"
        return f"static Number {name}({parameters}) {{ {count} return ::{name}({values}); }}"

    def infix(symbol: str, kind: str) -> str:
        count = f"++counts[{_KINDS.index(kind)}];"
        body = f"{{ {count} return a.value {symbol} b.value; }}"
        return f"static Number operator{symbol}(Number a, Number b) {body}"

    kinds = {"+": ADDITIONS, "-": ADDITIONS, "*": PRODUCTS, "/": DIVISIONS}
    kinds |= dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), OTHERS)
    added, product, other = map(_KINDS.index, (ADDITIONS, PRODUCTS, OTHERS))
    return "\n".join(
        [
            "#include <math.h>",
            "#include <string.h>",
            f'extern "C" {{ long counts[{len(_KINDS)}]; }}',
            "struct Number {",
            "    double value;",
            "    Number() = default;",
            "    constexpr Number(double v) : value(v) {}",
            "    explicit operator bool() const { return value != 0; }",
            "    Number &operator+=(Number b)",
            f"        {{ ++counts[{added}]; value += b.value; return *this; }}",
            "    Number &operator-=(Number b)",
            f"        {{ ++counts[{added}]; value -= b.value; return *this; }}",
            "    Number &operator*=(Number b)",
            f"        {{ ++counts[{product}]; value *= b.value; return *this; }}",
            "};",
            *(infix(symbol, kind) for symbol, kind in kinds.items()),
            f"static Number operator-(Number a) {{ ++counts[{other}]; return -a.value; }}",
            function("sqrt", ROOTS, 1),
            *(function(name, OTHERS, 1) for name in ("fabs", "floor")),
            function("copysign", OTHERS, 2),
            *(function(name, name, 1) for name in _UNARY),
            *(function(name, name, 2) for name in _BINARY),
            "#define LANES 1",  # nothing that only fills a vector counts
            "#define double Number",
            "#define restrict __restrict__",
            *(f"#define {name} counted_{name}" for name in KERNELS),  # system() is C's already
            'extern "C" {',
            "",
        ]
    )


def operations(
    source: str, given: Mapping[str, Sequence[np.ndarray]], folder: Path
) -> dict[str, dict[str, int]]:
    """How often each kind of operation is done by each kernel with the given arrays.

    Args:
        source: C source of kernels, among them those of KERNELS that are asked for.
        given: Kernel -> its arrays, the output last.
        folder: For the library that counts.

    Raises:
        RuntimeError: There is no C++ compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        raise RuntimeError(f"no C++ compiler {compiler[0]!r}, which counting takes: set CXX")
    path = _fresh(folder)
    command = [*compiler, "-O0", "-w", "-fPIC", "-shared", "-x", "c++", "-", "-o", str(path)]
    text = _counting() + source + "}\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[:500]}")
    library = ctypes.CDLL(str(path))
    counts = (ctypes.c_long * len(_KINDS)).in_dll(library, "counts")
    found = {}
    for name, arrays in given.items():
        ctypes.memset(counts, 0, ctypes.sizeof(counts))
        library[f"counted_{name}"](*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
        found[name] = {kind: n for kind, n in zip(_KINDS, counts, strict=True) if n}
    return found


def _fresh(folder: Path) -> Path:
    """A path for a library that no other one had: loaded ones are known by their paths."""
    return Path(tempfile.mkdtemp(dir=folder)) / "library.so"


# Time


def fastest(candidates: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Least processor time of one repetition of each candidate, in seconds.

    A candidate takes the number of repetitions, two milliseconds of them in a row or one: so each
    finds the caches as it left them. Rounds are interleaved; the least disturbed one counts.
    """
    repetitions = {}
    for name, candidate in candidates.items():
        count, took = 1, _took(candidate, 1)
        while took < 2e-3:
            count *= 4
            took = _took(candidate, count)
        repetitions[name] = count
    best = dict.fromkeys(candidates, np.inf)
    for _ in range(rounds):
        for name, candidate in candidates.items():
            took = _took(candidate, repetitions[name])
            best[name] = min(best[name], took / repetitions[name])
    return best


def _took(candidate: Callable[[int], object], count: int) -> float:
    began = time.process_time()
    candidate(count)
    return time.process_time() - began


def repeated(call: Callable[[], object]) -> Callable[[int], None]:
    """A candidate for ``fastest`` that repeats a call in Python."""

    def repeat(count: int) -> None:
        for _ in range(count):
            call()

    return repeat


class Core:
    """The core and its C library, and what they do at best.

    Args:
        folder: For a library of measuring loops.
    """

    def __init__(self, folder: Path) -> None:
        path = _fresh(folder)
        codegen_build.compile_library(_CORE + "\n".join(map(_repeating, range(1, 20))), path)
        self._library = ctypes.CDLL(str(path))
        self.doubles = ctypes.c_long.in_dll(self._library, "wide_doubles").value

    def from_c(self, call: Call) -> Callable[[int], None]:
        """A candidate for ``fastest`` that repeats a kernel's call in C."""
        repeat = self._library[f"repeat{len(call.addresses)}"]
        kernel = ctypes.cast(call.kernel, ctypes.c_void_p)
        addresses = [ctypes.c_void_p(address) for address in call.addresses]
        return lambda count: repeat(ctypes.c_long(count), kernel, *addresses)

    def empty(self, call: Call) -> Call:
        """A call like another one that does nothing."""
        kernel = self._library[f"empty{len(call.addresses)}"]
        kernel.restype, kernel.argtypes = None, [ctypes.c_void_p] * len(call.addresses)
        return Call(kernel, call.arrays)

    def peaks(self, rounds: int) -> tuple[float, float]:
        """Floating-point operations per second in scalar and in vector multiply-adds."""

        def chain(name: str) -> Callable[[int], object]:
            function = self._library[name]
            function.restype = ctypes.c_double
            x, y = ctypes.c_double(0.999), ctypes.c_double(1e-3)
            return lambda count: function(ctypes.c_long(count), x, y)

        times = fastest({name: chain(name) for name in ("scalar", "vector")}, rounds)
        flops = 2.0 * _CHAINS
        return flops / times["scalar"], flops * self.doubles / times["vector"]

    def costs(self, kinds: Sequence[str], folder: Path, rounds: int) -> dict[str, float]:
        """Seconds of one operation among independent ones; "wide /" and "wide sqrt" in vectors."""
        path = _fresh(folder)
        codegen_build.compile_library(_CORE + "\n".join(map(_mapping, kinds)), path)
        library = ctypes.CDLL(str(path))
        values = np.linspace(0.5, 1.5, _VALUES)
        results = np.empty_like(values)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (values, results)]

        def candidate(kind: str) -> Callable[[int], object]:
            function = library[_name(kind)]
            return lambda count: function(ctypes.c_long(count), *pointers)

        times = fastest({kind: candidate(kind) for kind in kinds}, rounds)
        return {kind: seconds / _VALUES for kind, seconds in times.items()}

    def copied(self, size: int, rounds: int) -> float:
        """Bytes per second that pass when blocks of this size are copied, read and written."""
        source, target = np.ones(size // 8), np.ones(size // 8)
        arguments = [ctypes.c_void_p(array.ctypes.data) for array in (target, source)]
        function = self._library["copy"]

        def repeat(count: int) -> None:
            function(ctypes.c_long(count), *arguments, ctypes.c_long(source.nbytes))

        return 2.0 * source.nbytes / fastest({"copy": repeat}, rounds)["copy"]


#: Independent chains of multiply-adds: enough to hide their latency.
_CHAINS = 12
_VALUES = 1024
WIDE_DIVISION, WIDE_ROOT = "wide /", "wide sqrt"


def _chain(name: str, kind: str) -> str:
    """C function of independent chains of multiply-adds."""
    each = range(_CHAINS)
    return "\n".join(
        [
            f"SCALAR double {name}(long count, double x_, double y_) {{",
            f"    {kind} x = x_ - ({kind}){{0}}, y = y_ - ({kind}){{0}};",
            *(f"    {kind} a{i} = x * {i}.0;" for i in each),
            "    for (long k = 0; k < count; ++k) {",
            *(f"        a{i} = a{i} * x + y;" for i in each),
            "    }",
            f"    {kind} total = {' + '.join(f'a{i}' for i in each)};",
            "    return *(double *)&total;",
            "}",
            "",
        ]
    )


#: Loops that are not to be vectorised say SCALAR.
_CORE = f"""\
#include <math.h>
#include <string.h>
#ifdef __clang__
#define SCALAR
#else
#define SCALAR __attribute__((optimize("no-tree-vectorize", "no-tree-slp-vectorize")))
#endif
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef double wide __attribute__((vector_size(BYTES)));
const long wide_doubles = BYTES / sizeof(double);
{_chain("scalar", "double")}
{_chain("vector", "wide")}
void copy(long count, void *to, const void *from, long size) {{
    for (long k = 0; k < count; ++k) {{
        memcpy(to, from, size);
        __asm__ volatile("" ::: "memory");
    }}
}}
"""


def _repeating(pointers: int) -> str:
    """C functions with that many pointers: calling a kernel again and again, doing nothing."""
    types = ", ".join(["void *"] * pointers)
    parameters = ", ".join(f"void *a{i}" for i in range(pointers))
    values = ", ".join(f"a{i}" for i in range(pointers))
    return (
        f"void repeat{pointers}(long count, void (*kernel)({types}), {parameters}) "
        f"{{ for (long k = 0; k < count; ++k) kernel({values}); }}\n"
        f"void empty{pointers}({parameters}) {{}}"
    )


def _name(kind: str) -> str:
    return "each_" + kind.replace("/", "division").replace(" ", "_")


def _mapping(kind: str) -> str:
    """C function that does one operation on each of an array's entries."""
    operation = kind.removeprefix("wide ")
    if operation == DIVISIONS:
        value = "1.0 / from[i]"
    else:
        value = f"{operation}({', '.join(['from[i]'] * (2 if operation in _BINARY else 1))})"
    return f"""\
{"" if kind.startswith("wide ") else "SCALAR"} void {_name(kind)}(
    long count, const double *restrict from, double *restrict to) {{
    for (long k = 0; k < count; ++k) {{
        for (int i = 0; i < {_VALUES}; ++i) to[i] = {value};
        __asm__ volatile("" ::: "memory");
    }}
}}
"""
