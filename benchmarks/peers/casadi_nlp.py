# SPDX-License-Identifier: Apache-2.0
"""CasADi with IPOPT or fatrop: multiple shooting, slacks for what is softened."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import casadi as ca
import numpy as np

from benchmarks.peers.casadi_terms import CASADI, soft_rows, stacked, symbols
from benchmarks.peers.peer import TOLERANCE, Outcome, ShootingPeer
from benchmarks.task import Task

#: Warm starts as IPOPT's documentation has them: all pushes small, the barrier begun low.
_IPOPT_WARM = {
    "warm_start_init_point": "yes",
    "warm_start_bound_push": 1e-8,
    "warm_start_bound_frac": 1e-8,
    "warm_start_slack_bound_push": 1e-8,
    "warm_start_slack_bound_frac": 1e-8,
    "warm_start_mult_bound_push": 1e-8,
    "mu_init": 1e-4,
}
#: Length of generated code that gcc takes too long for with -O3, in bytes.
_LONG = 4_000_000


class CasadiNlp(ShootingPeer):
    """One nonlinear program over (x_0, u_0, s_0, x_1, ..), solved again and again.

    The slacks s_k >= 0 of stage k belong to its inputs, which is where fatrop looks for them.

    Args:
        task: What to solve.
        folder: For generated code.
        solver: ipopt or fatrop.
        gcc: Generate C code of the program's functions and compile it; CasADi's virtual
            machine otherwise.
    """

    def __init__(self, task: Task, folder: Path, solver: str, gcc: bool = False) -> None:
        super().__init__(task, folder)
        self.solver = solver
        program, self.lower_g, self.upper_g, structure = self._program()
        common = {"print_time": False, "error_on_fail": False, "record_time": True}
        if solver == "ipopt":
            own = {"tol": TOLERANCE, "print_level": 0, "sb": "yes", "max_iter": 200}
            cold = {**common, "ipopt": own}
            warm = {**common, "ipopt": {**own, **_IPOPT_WARM}}
        else:
            own = {"tol": TOLERANCE, "print_level": 0, "max_iter": 200}
            cold = {**common, **structure, "fatrop": {**own, "mu_init": 1e-1}}
            warm = {
                **common,
                **structure,
                "fatrop": {**own, "mu_init": 1e-4},
            }
        source: object = program
        if gcc:
            source = self._compiled(ca.nlpsol("solver", solver, program, cold))
        else:
            cold["expand"] = warm["expand"] = True
        self.cold = ca.nlpsol("cold", solver, source, cold)
        self.warm = ca.nlpsol("warm", solver, source, warm)

    def _program(self) -> tuple[dict, np.ndarray, np.ndarray, dict]:
        task, N = self.task, self.task.horizon
        x, u, p, named = symbols(task)
        rows, weights = soft_rows(task, x, named)
        self.slacks = ns = len(weights)
        s = ca.SX.sym("s", ns)
        softened = ca.dot(ca.DM(weights[:, 0]), s) + 0.5 * ca.dot(ca.DM(weights[:, 1]), s * s)
        step = self._step(x, u, p, named)
        cost = ca.Function("cost", [x, u, p], [task.stage_cost(CASADI, x, u, named)])
        last = ca.Function("last", [x, p], [task.terminal_cost(CASADI, x, named)])
        soft = ca.Function("soft", [x, s, p], [rows + s])
        price = ca.Function("price", [s], [softened])

        # Unknowns and rows stage by stage, so that fatrop finds the stages; functions mapped over
        # all stages, so that their code is compiled once.
        nx, nu = task.nx, task.nu
        first, block = nx + nu, nx + nu + ns
        stages = first + block * np.arange(N - 1)[:, None]
        end = first + block * (N - 1)
        of_x = np.vstack([np.arange(nx), stages + np.arange(nx), end + np.arange(nx)])
        of_u = np.vstack([nx + np.arange(nu), stages + nx + np.arange(nu)])
        of_s = np.vstack([stages + nx + nu + np.arange(ns), end + nx + np.arange(ns)])
        size = end + nx + ns
        z, x0 = ca.MX.sym("z", size), ca.MX.sym("x0", nx)
        P = ca.MX.sym("p", p.numel(), N + 1)
        X, U, S = (
            ca.reshape(z[index.ravel().tolist()], index.shape[1], index.shape[0])
            for index in (of_x, of_u, of_s)
        )
        defects = X[:, 1:] - step.map(N)(X[:, :-1], U, P[:, :-1])
        f = ca.sum2(cost.map(N)(X[:, :-1], U, P[:, :-1])) + last(X[:, -1], P[:, -1])
        softened_rows = ca.MX(0, N)
        if ns:
            f += ca.sum2(price.map(N)(S))
            softened_rows = soft.map(N)(X[:, 1:], S, P[:, 1:])
        # Rows of stage 0: its defect and the initial state; then (defect, soft rows) of each.
        middle = ca.vertcat(defects[:, 1:], softened_rows[:, :-1])
        g = ca.vertcat(defects[:, 0], X[:, 0] - x0, ca.vec(middle), softened_rows[:, -1])
        self.lower, self.upper = np.full(size, -np.inf), np.full(size, np.inf)
        self.lower[of_u], self.upper[of_u] = task.input_bounds
        self.lower[of_s] = 0.0
        lower_g = np.zeros(g.numel())
        soft_g = np.concatenate(
            [np.zeros(2 * nx), np.tile(np.repeat([0.0, 1.0], [nx, ns]), N - 1)]
        )
        upper_g = np.where(np.concatenate([soft_g, np.ones(ns)]) > 0.0, np.inf, 0.0)
        program = {"x": z, "f": f, "g": g, "p": ca.vertcat(x0, ca.vec(P))}
        structure = {
            "structure_detection": "manual",
            "N": N,
            "nx": [task.nx] * (N + 1),
            "nu": [task.nu] + [task.nu + ns] * (N - 1) + [ns],
            "ng": [task.nx] + [ns] * N,
            "equality": (lower_g == upper_g).tolist(),
        }
        return program, lower_g, upper_g, structure

    def _step(self, x: ca.SX, u: ca.SX, p: ca.SX, named: dict[str, ca.SX]) -> ca.Function:
        """One interval; the dynamics stay a function of their own, or the code gets too long."""
        f = ca.Function("f", [x, u, p], [self.task.dynamics(CASADI, x, u, named)])
        X, U, P = (ca.MX.sym(name, v.numel()) for name, v in (("x", x), ("u", u), ("p", p)))
        slopes = replace(self.task, dynamics=lambda _, x, u, p: f(x, u, p["all"]))
        return ca.Function("step", [X, U, P], [slopes.advanced(CASADI, X, U, {"all": P})])

    def _compiled(self, solver: ca.Function) -> str:
        source, library = self.folder / "program.c", self.folder / "program.so"
        previous = Path.cwd()
        os.chdir(self.folder)  # generate_dependencies takes a name, not a path
        try:
            solver.generate_dependencies(source.name)
        finally:
            os.chdir(previous)
        # The code of a chain takes minutes with -O3.
        level = "-O3" if source.stat().st_size < _LONG else "-O2"
        command = ["gcc", level, "-march=native", "-shared", "-fPIC", str(source)]
        subprocess.run([*command, "-o", str(library)], check=True)
        return str(library)

    def reset(self) -> None:
        super().reset()
        self.duals: tuple[np.ndarray, np.ndarray] | None = None
        self.excess = np.zeros((self.task.horizon, self.slacks))

    def step(self, state: np.ndarray, parameters: dict[str, np.ndarray]) -> Outcome:
        task = self.task
        self.start(state, parameters)
        values = np.concatenate([state, stacked(task, parameters).ravel()])
        bounds = {
            "lbx": self.lower,
            "ubx": self.upper,
            "lbg": self.lower_g,
            "ubg": self.upper_g,
            "p": values,
            "x0": self._packed(),
        }
        if self.duals is None:
            solver = self.cold
        else:
            solver = self.warm
            bounds["lam_x0"], bounds["lam_g0"] = self.duals
        found = solver(**bounds)
        stats = solver.stats()
        self._unpack(np.array(found["x"]).ravel())
        self.duals = self._shifted(
            np.array(found["lam_x"]).ravel(), np.array(found["lam_g"]).ravel()
        )
        return Outcome(
            self.inputs[0],
            stats["iter_count"],
            bool(stats["success"]),
            stats.get("t_wall_total", np.nan),
        )

    def _packed(self) -> np.ndarray:
        """The unknowns of the states, inputs and slacks to start from."""
        assert self.states is not None
        stages = np.hstack([self.states[1:-1], self.inputs[1:], self.excess[:-1]])
        first = [self.states[0], self.inputs[0]]
        return np.concatenate([*first, stages.ravel(), self.states[-1], self.excess[-1]])

    def _unpack(self, z: np.ndarray) -> None:
        nx, nu, ns = self.task.nx, self.task.nu, self.slacks
        middle = z[nx + nu : len(z) - nx - ns].reshape(-1, nx + nu + ns)
        end = z[len(z) - nx - ns :]
        self.states = np.vstack([z[:nx], middle[:, :nx], end[:nx]])
        self.inputs = np.vstack([z[nx : nx + nu], middle[:, nx : nx + nu]])
        self.excess = np.vstack([middle[:, nx + nu :], end[nx:]])

    def _shifted(self, of_x: np.ndarray, of_g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Multipliers of bounds and constraints, one stage on; the last stages are held."""
        task, ns = self.task, self.slacks
        nx, nu = task.nx, task.nu
        block, rows = nx + nu + ns, nx + ns
        middle = of_x[nx + nu : len(of_x) - nx - ns].reshape(-1, block)
        moved = np.vstack([middle[1:], middle[-1:]])
        end = of_x[len(of_x) - nx - ns :]
        bounds = np.concatenate([middle[0, : nx + nu], moved.ravel(), end])
        return bounds, self._shifted_g(of_g, rows)

    def _shifted_g(self, of_g: np.ndarray, rows: int) -> np.ndarray:
        # The defect of interval 0, the initial state, then (defect, rows) of each stage.
        nx, N = self.task.nx, self.task.horizon
        head = of_g[: 2 * nx]
        middle = of_g[2 * nx : 2 * nx + (N - 1) * rows].reshape(N - 1, rows)
        end = of_g[2 * nx + (N - 1) * rows :]
        defects = np.vstack([middle[:, :nx], middle[-1:, :nx]])
        soft = np.vstack([middle[1:, nx:], end[None]])
        first = np.concatenate([defects[0], head[nx:]])
        return np.concatenate([first, np.hstack([defects[1:], soft]).ravel(), end])
