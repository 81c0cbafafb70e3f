# SPDX-License-Identifier: Apache-2.0
"""The solvers to compare: one file each, and the list of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One line of the tables: a solver with its settings.

    Attributes:
        name: For the command line and the results, ``peer.variant``.
        title: For people.
        factory: ``module:class`` in this package.
        settings: Keyword arguments of the class.
        requirements: requirements/bench-<requirements>.txt is installed into its folder.
        tasks: Beginnings of the names of the tasks it takes part in.
        converges: Whether it iterates to the tolerance; False for fixed budgets.
        steps: Steps of a run it takes part in; 0 for all.
        note: Settings and where they come from, for the page.
    """

    name: str
    title: str
    factory: str
    settings: Mapping[str, object] = field(default_factory=dict)
    requirements: str = ""
    tasks: tuple[str, ...] = ("",)
    converges: bool = True
    steps: int = 0
    note: str = ""

    @property
    def peer(self) -> str:
        """The part of the name before the dot."""
        return self.name.split(".")[0]

    def takes(self, task: str) -> bool:
        """Whether it takes part in this task."""
        return task.startswith(self.tasks)


ENTRIES = (
    Entry(
        "mpc_banded.cold",
        "mpc_banded, compiled now",
        "mpc_banded:MpcBanded",
        {"cache": "cold"},
    ),
    Entry(
        "mpc_banded.warm",
        "mpc_banded, from the cache",
        "mpc_banded:MpcBanded",
        {"cache": "warm"},
    ),
    Entry(
        "mpc_banded.two",
        "mpc_banded, 2 iterations",
        "mpc_banded:MpcBanded",
        {"iterations": 2, "cache": "warm"},
        converges=False,
    ),
    Entry(
        "mpc_banded.one",
        "mpc_banded, 1 iteration",
        "mpc_banded:MpcBanded",
        {"iterations": 1, "cache": "warm"},
        converges=False,
    ),
    Entry(
        "mpc_banded.eager",
        "mpc_banded, eager",
        "mpc_banded:MpcBanded",
    ),
    Entry(
        "ipopt.vm",
        "CasADi + IPOPT",
        "casadi_nlp:CasadiNlp",
        {"solver": "ipopt"},
        requirements="casadi",
    ),
    Entry(
        "ipopt.gcc",
        "CasADi + IPOPT, gcc",
        "casadi_nlp:CasadiNlp",
        {"solver": "ipopt", "gcc": True},
        requirements="casadi",
    ),
    Entry(
        "fatrop.vm",
        "CasADi + fatrop",
        "casadi_nlp:CasadiNlp",
        {"solver": "fatrop"},
        requirements="casadi",
    ),
    Entry(
        "fatrop.gcc",
        "CasADi + fatrop, gcc",
        "casadi_nlp:CasadiNlp",
        {"solver": "fatrop", "gcc": True},
        requirements="casadi",
    ),
    Entry(
        "acados.exact",
        "acados SQP, exact Hessian",
        "acados:Acados",
        {"hessian": "EXACT", "regularization": "MIRROR"},
        requirements="acados",
    ),
    Entry(
        "acados.exactmerit",
        "acados SQP, exact Hessian",
        "acados:Acados",
        {"hessian": "EXACT", "regularization": "PROJECT", "globalization": "MERIT_BACKTRACKING"},
        requirements="acados",
    ),
    Entry(
        "acados.gn",
        "acados SQP, Gauss-Newton",
        "acados:Acados",
        {"hessian": "GAUSS_NEWTON"},
        requirements="acados",
    ),
    Entry(
        "acados.gnmerit",
        "acados SQP, Gauss-Newton",
        "acados:Acados",
        {"hessian": "GAUSS_NEWTON", "globalization": "MERIT_BACKTRACKING"},
        requirements="acados",
    ),
    Entry(
        "acados.rti",
        "acados real-time iteration",
        "acados:Acados",
        {"hessian": "GAUSS_NEWTON", "real_time": True},
        requirements="acados",
        converges=False,
    ),
)
