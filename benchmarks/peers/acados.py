# SPDX-License-Identifier: Apache-2.0
"""acados: sequential quadratic programming in generated C, through its Python interface."""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path

import casadi as ca
import numpy as np

from benchmarks.peers.casadi_terms import CASADI, stacked, symbols
from benchmarks.peers.peer import FIRST_SOLVES, TOLERANCE, Outcome, ShootingPeer
from benchmarks.task import STATE_BOUND_PENALTY, Task

#: acados has no infinity; its examples take this.
_FAR = 1e9


def _template() -> object:
    """acados_template, told where the wheel has put its libraries and its code generator."""
    import acados

    os.environ["ACADOS_SOURCE_DIR"] = acados.DIR
    os.environ["ACADOS_PYTHON_INTERFACE_PATH"] = acados.TEMPLATE_DIR
    os.environ["TERA_PATH"] = acados.TERA_PATH
    # The wheel's libraries do not say where their neighbours are.
    for name in ("libblasfeo.so", "libhpipm.so", "libqpOASES_e.so.3.1", "libacados.so"):
        ctypes.CDLL(str(Path(acados.LIB_DIR) / name), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("acados.acados_template")


class Acados(ShootingPeer):
    """Multiple shooting, HPIPM for the quadratic programs.

    Args:
        task: What to solve.
        folder: For generated code.
        hessian: EXACT or GAUSS_NEWTON.
        real_time: One iteration a step (SQP_RTI) instead of iterations until convergence.
        regularization: acados' name of what makes exact Hessians positive definite.

    The first step of a run is globalised with acados' merit function, which finds better local
    solutions; later ones take full steps, because its line search stalls near the tolerance.
    """

    def __init__(
        self,
        task: Task,
        folder: Path,
        hessian: str,
        real_time: bool = False,
        regularization: str = "NO_REGULARIZE",
    ) -> None:
        super().__init__(task, folder)
        self.real_time = real_time
        template = _template()
        ocp = template.AcadosOcp()
        self._describe(ocp, template.AcadosModel())
        options = ocp.solver_options
        options.tf = task.horizon * task.dt
        options.integrator_type = "ERK"
        options.sim_method_num_stages = 4
        options.sim_method_num_steps = task.substeps
        options.qp_solver = "PARTIAL_CONDENSING_HPIPM"
        # Both make it about twice as fast here as its defaults do, and converge as well.
        options.qp_solver_cond_N = task.horizon // 5
        options.hpipm_mode = "SPEED"
        options.hessian_approx = hessian
        options.regularize_method = regularization
        options.nlp_solver_type = "SQP_RTI" if real_time else "SQP"
        options.globalization = "FIXED_STEP" if real_time else "MERIT_BACKTRACKING"
        options.nlp_solver_max_iter = 200
        options.tol = TOLERANCE
        options.qp_tol = 0.1 * TOLERANCE
        options.qp_solver_iter_max = 200
        options.ext_fun_compile_flags = "-O3 -march=native"
        ocp.code_export_directory = str(folder / "code")
        os.chdir(folder)
        self.solver = template.AcadosOcpSolver(ocp, json_file=str(folder / "ocp.json"))

    def _describe(self, ocp: object, model: object) -> None:
        task = self.task
        x, u, p, named = symbols(task)
        model.name = task.name
        model.x, model.u, model.p = x, u, p
        model.f_expl_expr = task.dynamics(CASADI, x, u, named)
        model.xdot = ca.SX.sym("xdot", task.nx)
        model.f_impl_expr = model.xdot - model.f_expl_expr
        ocp.model, ocp.dims.N = model, task.horizon
        ocp.parameter_values = np.zeros(p.numel())

        cost, limits = ocp.cost, ocp.constraints
        # acados multiplies everything of stages before the last by their length.
        scale = 1.0 / task.dt
        cost.cost_type = cost.cost_type_e = "NONLINEAR_LS"
        model.cost_y_expr = task.residuals(CASADI, x, u, named)
        model.cost_y_expr_e = task.terminal_residuals(CASADI, x, named)
        cost.W = np.diag(2.0 * scale * task.weights)
        cost.W_e = np.diag(2.0 * task.terminal_weights)
        cost.yref = np.zeros(len(task.weights))
        cost.yref_e = np.zeros(len(task.terminal_weights))

        limits.x0 = task.initial_state
        limits.lbu, limits.ubu = task.input_bounds
        limits.idxbu = np.arange(task.nu)
        penalties = []
        bounded = np.array(task.bounded_states, dtype=int)
        if len(bounded):
            lower = np.maximum(task.state_bounds[0][bounded], -_FAR)
            upper = np.minimum(task.state_bounds[1][bounded], _FAR)
            limits.idxbx = limits.idxbx_e = bounded
            limits.lbx = limits.lbx_e = lower
            limits.ubx = limits.ubx_e = upper
            limits.idxsbx = limits.idxsbx_e = np.arange(len(bounded))
            penalties += [STATE_BOUND_PENALTY] * len(bounded)
        if task.inequality:
            size = task.inequality_size
            model.con_h_expr = model.con_h_expr_e = task.inequality(CASADI, x, named)
            limits.lh = limits.lh_e = np.zeros(size)
            limits.uh = limits.uh_e = np.full(size, _FAR)
            limits.idxsh = limits.idxsh_e = np.arange(size)
            penalties += [task.penalty] * size
        linear, quadratic = np.array(penalties).reshape(-1, 2).T
        cost.zl = cost.zu = scale * linear
        cost.Zl = cost.Zu = scale * quadratic
        cost.zl_e = cost.zu_e = linear
        cost.Zl_e = cost.Zu_e = quadratic

    def reset(self) -> None:
        super().reset()
        self.solver.reset()
        self.first = True

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        solver, task = self.solver, self.task
        if self.first:
            self.start(state, parameters)
            for k in range(task.horizon + 1):
                solver.set(k, "x", self.states[k])
                if k < task.horizon:
                    solver.set(k, "u", self.inputs[k])
        else:
            self._shift()
        if task.parameters:
            values = stacked(task, parameters)
            for k in range(task.horizon + 1):
                solver.set(k, "p", values[k])
        solver.set(0, "lbx", state)
        solver.set(0, "ubx", state)
        if not self.real_time:
            globalization = "merit_backtracking" if self.first else "fixed_step"
            solver.options_set("globalization", globalization)
        own_s, iterations = 0.0, 0
        for _ in range(FIRST_SOLVES if self.first and self.real_time else 1):
            status = solver.solve()
            own_s += float(np.ravel(solver.get_stats("time_tot"))[0])
            iterations += 1 if self.real_time else int(np.ravel(solver.get_stats("sqp_iter"))[0])
        self.first = False
        return Outcome(solver.get(0, "u"), iterations, status == 0 and not self.real_time, own_s)

    def _shift(self) -> None:
        """Everything moves one stage; the last stages stay, multipliers of slacks included."""
        solver, N = self.solver, self.task.horizon
        for k in range(N - 1):
            solver.set(k, "u", solver.get(k + 1, "u"))
            solver.set(k, "pi", solver.get(k + 1, "pi"))
            if k:  # the first stage's rows are the initial state's
                solver.set(k, "lam", solver.get(k + 1, "lam"))
                solver.set(k, "sl", solver.get(k + 1, "sl"))
                solver.set(k, "su", solver.get(k + 1, "su"))
        last = solver.get(N, "x")
        for k in range(N):
            solver.set(k, "x", solver.get(k + 1, "x"))
        solver.set(N, "x", 2.0 * last - solver.get(N - 2, "x"))

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        solver, N = self.solver, self.task.horizon
        states = np.array([solver.get(k, "x") for k in range(N + 1)])
        return states, np.array([solver.get(k, "u") for k in range(N)])
