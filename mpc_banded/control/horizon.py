# SPDX-License-Identifier: Apache-2.0
"""Evaluates reference, obstacles and model along the horizon: the parameters of the problem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.detour import Detour
from mpc_banded.control.errors import user_code
from mpc_banded.control.joints import JointReference
from mpc_banded.control.legs import base_of
from mpc_banded.control.obstacles import Obstacles
from mpc_banded.control.obstacles_ahead import Ahead
from mpc_banded.control.reference import Reference, stacked
from mpc_banded.ocp.problem import OptimalControlProblem, Trajectory
from mpc_banded.robots import Planar
from mpc_banded.robots.messages import POSE, has_position

#: Distance in m that the reference keeps between the robot's rim and obstacles.
KEPT = 0.12
#: Time in s until a robot that should brake does: one cycle, the delay, and the lag.
REACTION_S = 0.5


class Horizon:
    """Evaluates the parameters of the problem at each stage.

    Args:
        config: Configuration of the robot and its model.
        obstacles: Known obstacles.

    Attributes:
        columns: Columns (N + 1,) of the reference that was evaluated last, by name.
        planar: Planar geometry for which obstacles are avoided.
        ahead: All obstacles along the same horizon; None for a robot that avoids none.
        wanted: Poses x, y, yaw (N + 1, 3) of the reference as it came, before it was led around
            obstacles; None where there are none.
    """

    def __init__(self, config: Config, obstacles: Obstacles) -> None:
        self._robot, self._obstacles = config.robot, obstacles
        # Without the names x and y, `distance` measures from the first two states.
        self.planar = config.robot.planar or Planar((0, 1))
        self.columns: dict[str, np.ndarray] = {}
        self.ahead: Ahead | None = None
        self.wanted: np.ndarray | None = None
        self._plan: tuple[Trajectory, int] | None = None
        self._detour = Detour(self.planar.strafes)
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._model, self._footprint = config.parameters.model, config.footprint
        self._deceleration = max(
            base_of(config.robot, config.parameters).limits.acceleration, 1e-3
        )

    def planned(self, plan: Trajectory, effect_ns: int) -> None:
        """Keep a plan that begins at ``effect_ns``: what comes near it counts."""
        self._plan = plan, effect_ns

    def reset(self) -> None:
        """Forget the plan."""
        self._plan = None

    def parameters(
        self,
        reference: Reference,
        state: np.ndarray,
        effect_ns: int,
        problem: OptimalControlProblem,
    ) -> dict[str, Any]:
        """Return the parameters of a problem.

        Args:
            reference: The reference that the robot follows.
            state: State (nx,) of the first stage.
            effect_ns: Time of the first stage.
            problem: Has the grid.

        Raises:
            UserCodeError: The reference raises.
        """
        values = dict(zip(self._robot.states, state, strict=True))
        times = np.arange(problem.horizon + 1) * problem.dt
        parameters: dict[str, Any] = dict(self._model)
        with user_code("the reference failed"):
            columns = reference.columns(values, times, 1e-9 * effect_ns)
        if self._robot.obstacles:
            columns = self._around(columns, state, effect_ns, times, problem, parameters)
        self.columns = columns
        with user_code("the reference failed"):
            parameters["reference"] = stacked(columns, self._robot.reference, times)
        return parameters

    def _around(
        self,
        columns: dict[str, np.ndarray],
        state: np.ndarray,
        effect_ns: int,
        times: np.ndarray,
        problem: OptimalControlProblem,
        parameters: dict[str, Any],
    ) -> dict[str, np.ndarray]:
        """Add the obstacles to the parameters; returns the reference that leads around them."""
        ways = [self._planned_way(state, effect_ns, times)]
        leads = set(POSE) <= set(columns)
        if has_position(columns):
            yaw = columns.get("yaw", np.zeros(len(times)))
            ways.append(np.stack([columns["x"], columns["y"], yaw], axis=1))
        self.wanted = ways[-1] if leads else None
        stopping_s = self._stopping_s(ways[0], state, problem.dt)
        self.ahead = self._obstacles.ahead(effect_ns, times, ways, stopping_s)
        if leads:
            columns = self._detour.lead(columns, self.ahead, KEPT, ways[0][0, :2])
            ways[1] = np.stack([columns[name] for name in POSE], axis=1)
        slots, _ = problem.parameters["obstacles"]
        parameters["obstacles"] = self.ahead.chosen(ways, slots)
        parameters["footprint"] = self._footprint.table
        return columns

    def _planned_way(self, state: np.ndarray, effect_ns: int, times: np.ndarray) -> np.ndarray:
        """Return the poses x, y, yaw (N + 1, 3) of the last plan; without one the robot stands."""
        here = self.planar.poses(state)
        if self._plan is None:
            return np.tile(here, (len(times), 1))
        plan, begin_ns = self._plan
        poses, grid = self.planar.poses(plan.states), plan.dt * np.arange(plan.horizon + 1)
        since = times + max(0.0, 1e-9 * (effect_ns - begin_ns))
        way = np.stack([np.interp(since, grid, poses[:, i]) for i in range(3)], axis=1)
        way[0] = here
        return way

    def _stopping_s(self, way: np.ndarray, state: np.ndarray, dt: float) -> float:
        """Return the time in s in which the robot drives as far as it needs to stop."""
        values = dict(zip(self._robot.states, state, strict=True))
        measured = math.hypot(values.get("v", 0.0), values.get("vy", 0.0))
        speed = max(measured, math.dist(way[0, :2], way[1, :2]) / dt)
        return REACTION_S + 0.5 * speed / self._deceleration

    def origin(self, problem: OptimalControlProblem) -> tuple[np.ndarray, dict[str, Any]]:
        """Return a state and parameters that suit any robot: the origin, a reference of zeros."""
        state = np.zeros(len(self._robot.states))
        return state, self.parameters(JointReference({}), state, 0, problem)
