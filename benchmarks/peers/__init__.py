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
        cached: Whether set-up keeps a cache: it is then timed without and with.
        steps: Steps of a run it takes part in; 0 for all.
        note: Its settings, for the page.
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
    note: str = ""

    @property
    def peer(self) -> str:
        """The part of the name before the dot."""
        return self.name.split(".")[0]

    def takes(self, task: str) -> bool:
        """Whether it takes part in this task."""
        return task.startswith(self.tasks)


_SQP = (
    "Multiple shooting, explicit Runge-Kutta (4 stages), nonlinear least-squares costs, slacks on "
    "the soft rows, partial condensing with HPIPM (`qp_solver_cond_N` = N / 5, `hpipm_mode` "
    "`SPEED`: twice as fast as the defaults here), tol 1e-6, `qp_tol` 1e-7, at most 200 "
    "iterations; C code compiled with `-O3 -march=native`. Warm start: states, inputs, "
    "multipliers and slacks shifted by one stage through the Python interface; that shift is in "
    "its wall time, not in its own clock. "
)

ENTRIES = (
    Entry(
        "mpc_banded.compiled",
        "mpc_banded, compiled",
        "mpc_banded:MpcBanded",
        {"compiled": True},
        cached=True,
        note="This package with its defaults (rk4, tolerances 1e-6); derivatives compiled.",
    ),
    Entry(
        "mpc_banded.eager",
        "mpc_banded, eager",
        "mpc_banded:MpcBanded",
        note="The same in plain torch: what runs until compiling is done, or without a compiler.",
    ),
    Entry(
        "mpc_banded.two",
        "mpc_banded, 2 iterations",
        "mpc_banded:MpcBanded",
        {"compiled": True, "iterations": 2},
        converges=False,
        note="Compiled, at most two Newton iterations a step.",
    ),
    Entry(
        "mpc_banded.one",
        "mpc_banded, 1 iteration",
        "mpc_banded:MpcBanded",
        {"compiled": True, "iterations": 1},
        converges=False,
        note="Compiled, one Newton iteration a step.",
    ),
    Entry(
        "acados.exact",
        "acados SQP, exact Hessian",
        "acados:Acados",
        {"hessian": "EXACT", "regularization": "PROJECT"},
        requirements="acados",
        note=_SQP + "`MERIT_BACKTRACKING` in the first step of a run, full steps later (its line "
        "search stalls near the tolerance). `EXACT` Hessians, `PROJECT` regularisation.",
    ),
    Entry(
        "acados.gn",
        "acados SQP, Gauss-Newton",
        "acados:Acados",
        {"hessian": "GAUSS_NEWTON"},
        requirements="acados",
        note="The same with `GAUSS_NEWTON`, no regularisation.",
    ),
    Entry(
        "acados.rti",
        "acados real-time iteration",
        "acados:Acados",
        {"hessian": "GAUSS_NEWTON", "real_time": True},
        requirements="acados",
        converges=False,
        note="`SQP_RTI` with `GAUSS_NEWTON`, both phases in one call: one iteration a step.",
    ),
    Entry(
        "fatrop.gcc",
        "CasADi + fatrop, gcc",
        "casadi_nlp:CasadiNlp",
        {"solver": "fatrop", "gcc": True},
        requirements="casadi",
        note="Stages given by hand (`structure_detection` manual), the slacks among the inputs; "
        "tol 1e-6, `mu_init` 1e-4 after the first step (CasADi hands fatrop no multipliers). "
        "Functions mapped over the stages, C code compiled with `gcc -O3 -march=native` (of the "
        "chains with `-O2`: their code is long).",
    ),
    Entry(
        "fatrop.vm",
        "CasADi + fatrop",
        "casadi_nlp:CasadiNlp",
        {"solver": "fatrop"},
        requirements="casadi",
        note="The same in CasADi's virtual machine, with `expand`.",
    ),
    Entry(
        "ipopt.gcc",
        "CasADi + IPOPT, gcc",
        "casadi_nlp:CasadiNlp",
        {"solver": "ipopt", "gcc": True},
        requirements="casadi",
        note="Exact Hessian, MUMPS (in CasADi's wheel), tol 1e-6; after the first step "
        "`warm_start_init_point`, all `warm_start_*_push` and `_frac` 1e-8, `mu_init` 1e-4, "
        "primal and dual variables shifted by one stage. C code as for fatrop.",
    ),
    Entry(
        "ipopt.vm",
        "CasADi + IPOPT",
        "casadi_nlp:CasadiNlp",
        {"solver": "ipopt"},
        requirements="casadi",
        note="The same in CasADi's virtual machine, with `expand`.",
    ),
    Entry(
        "mpc_pytorch.one",
        "mpc.pytorch, 1 iteration",
        "mpc_pytorch:MpcPytorch",
        requirements="mpc-pytorch",
        tasks=("bicycle", "cartpole"),
        converges=False,
        note="Quadratic cost from the Gauss-Newton model along the shifted plan (cost "
        "functions of its own kind do not know their stage), active penalties included; Jacobians "
        "of the dynamics for all stages at once (`ANALYTIC`), `lqr_iter` 1, 30 iterations in the "
        "first step of a run.",
    ),
    Entry(
        "mppi.samples",
        "pytorch-mppi, 500 samples",
        "mppi:Mppi",
        requirements="mppi",
        tasks=("bicycle", "cartpole"),
        converges=False,
        note="500 samples, noise a fifth of the input range, `lambda_` 1, seeded; penalties as "
        "costs; 20 refinements in the first step of a run.",
    ),
    Entry(
        "scipy.slsqp",
        "scipy SLSQP",
        "scipy_general:ScipyGeneral",
        {"method": "SLSQP"},
        tasks=("bicycle20", "cartpole"),
        steps=5,
        note="Multiple shooting with slacks, dense Jacobians from torch, `ftol` 1e-6; the first "
        "five steps of a run only.",
    ),
    Entry(
        "scipy.trust",
        "scipy trust-constr",
        "scipy_general:ScipyGeneral",
        {"method": "trust-constr"},
        tasks=("bicycle20",),
        steps=3,
        note="The same with `gtol` and `xtol` 1e-6 and its quasi-Newton Hessian; the first three "
        "steps of a run only.",
    ),
)
