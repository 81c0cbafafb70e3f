# SPDX-License-Identifier: Apache-2.0
"""The solvers to compare, one file each, and the table of their entries.

docs/benchmarks.md lists the settings of each entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """A solver with its settings: one line of the tables.

    Attributes:
        name: ``peer.variant``, for the command line and the results.
        title: Name in tables and plots.
        factory: ``module:class`` in this package.
        settings: Keyword arguments of the class.
        requirements: requirements/bench-<requirements>.txt is installed into a folder of its own.
        tasks: Beginnings of the names of the tasks that it takes part in.
        converges: Whether it iterates to the tolerance; False for fixed budgets.
        cached: Whether it keeps a cache, so that set-up is timed without and with it.
        steps: Number of steps of a run that it takes part in; 0 for all.
    """

    name: str
    title: str
    factory: str
    settings: Mapping[str, object] = field(default_factory=dict)
    requirements: str = ""
    tasks: tuple[str, ...] = ("",)
    converges: bool = True
    cached: bool = False
    steps: int = 0

    @property
    def peer(self) -> str:
        """The part of the name before the dot."""
        return self.name.split(".")[0]

    def takes(self, task: str) -> bool:
        """Whether it takes part in this task."""
        return task.startswith(self.tasks)


def _ours(variant: str, title: str, *, converges: bool = True, **settings: object) -> Entry:
    name, factory = f"mpc_banded.{variant}", "mpc_banded:MpcBanded"
    cached = variant == "compiled"
    return Entry(name, title, factory, settings, converges=converges, cached=cached)


def _acados(variant: str, title: str, *, converges: bool = True, **settings: object) -> Entry:
    name, factory = f"acados.{variant}", "acados:Acados"
    return Entry(name, title, factory, settings, requirements="acados", converges=converges)


def _casadi(solver: str, title: str, gcc: bool) -> Entry:
    name, factory = f"{solver}.{'gcc' if gcc else 'vm'}", "casadi_nlp:CasadiNlp"
    return Entry(name, title, factory, {"solver": solver, "gcc": gcc}, requirements="casadi")


def _scipy(variant: str, title: str, method: str, tasks: tuple[str, ...], steps: int) -> Entry:
    settings, factory = {"method": method}, "scipy_general:ScipyGeneral"
    return Entry(f"scipy.{variant}", title, factory, settings, tasks=tasks, steps=steps)


_SMALL = ("bicycle", "cartpole")
ENTRIES = (
    _ours("compiled", "mpc_banded, compiled", compiled=True),
    _ours("eager", "mpc_banded, eager"),
    _ours("two", "mpc_banded, 2 iterations", converges=False, compiled=True, iterations=2),
    _ours("one", "mpc_banded, 1 iteration", converges=False, compiled=True, iterations=1),
    _acados("exact", "acados SQP, exact Hessian", hessian="EXACT", regularization="PROJECT"),
    _acados("gn", "acados SQP, Gauss-Newton", hessian="GAUSS_NEWTON"),
    _acados(
        "rti",
        "acados real-time iteration",
        converges=False,
        hessian="GAUSS_NEWTON",
        real_time=True,
    ),
    _casadi("fatrop", "CasADi + fatrop, gcc", gcc=True),
    _casadi("fatrop", "CasADi + fatrop", gcc=False),
    _casadi("ipopt", "CasADi + IPOPT, gcc", gcc=True),
    _casadi("ipopt", "CasADi + IPOPT", gcc=False),
    Entry(
        "mpc_pytorch.one",
        "mpc.pytorch, 1 iteration",
        "mpc_pytorch:MpcPytorch",
        requirements="mpc-pytorch",
        tasks=_SMALL,
        converges=False,
    ),
    Entry(
        "mppi.samples",
        "pytorch-mppi, 500 samples",
        "mppi:Mppi",
        requirements="mppi",
        tasks=_SMALL,
        converges=False,
    ),
    _scipy("slsqp", "scipy SLSQP", "SLSQP", ("bicycle20", "cartpole"), steps=5),
    _scipy("trust", "scipy trust-constr", "trust-constr", ("bicycle20",), steps=3),
)
