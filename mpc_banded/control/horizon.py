# SPDX-License-Identifier: Apache-2.0
"""Parameters of the problem along the horizon: the reference, the obstacles and the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.detour import Detour
from mpc_banded.control.errors import user_code
from mpc_banded.control.joints import JointReference
from mpc_banded.control.obstacles import Obstacles
from mpc_banded.control.reference import Reference, stacked
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.robots import Planar
from mpc_banded.robots.messages import POSE, has_position

#: Distance from the rim of the robot to obstacles that its reference keeps, in m.
KEPT = 0.12


class Horizon:
    """Evaluates the parameters of the problem at each stage.

    Args:
        config: Configuration of the robot and its model.
        obstacles: Known obstacles.

    Attributes:
        columns: Columns (N + 1,) of the reference that was evaluated last, by name.
        planar: Planar geometry for which obstacles are avoided.
        circles: All obstacles x, y, radius along the same horizon, (N + 1, M, 3).
    """

    def __init__(self, config: Config, obstacles: Obstacles) -> None:
        self._robot, self._obstacles = config.robot, obstacles
        # Without the names x and y, `distance` measures from the first two states.
        self.planar = config.robot.planar or Planar((0, 1), radius=config.robot.radius)
        self.columns: dict[str, np.ndarray] = {}
        self.circles = np.empty((0, 0, 3))
        self._detour = Detour()
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration of the same robot."""
        self._model = config.parameters.model

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
            problem: Names the grid.

        Raises:
            UserCodeError: The reference raises.
        """
        values = dict(zip(self._robot.states, state, strict=True))
        times = np.arange(problem.horizon + 1) * problem.dt
        parameters: dict[str, Any] = dict(self._model)
        with user_code("the reference failed"):
            columns = reference.columns(values, times, 1e-9 * effect_ns)
        if self._robot.obstacles:
            self.circles = self._obstacles.ahead(effect_ns, times)
            if set(POSE) <= set(columns):
                clearance = self.planar.radius + KEPT
                columns = self._detour.lead(columns, self.circles, clearance)
            points = np.tile(self.planar.positions(state), (len(times), 1))
            if has_position(columns):
                points = np.stack([columns["x"], columns["y"]], axis=1)
            parameters["obstacles"] = self._obstacles.chosen(self.circles, points)
        self.columns = columns
        with user_code("the reference failed"):
            parameters["reference"] = stacked(columns, self._robot.reference, times)
        return parameters

    def origin(self, problem: OptimalControlProblem) -> tuple[np.ndarray, dict[str, Any]]:
        """Return a state and parameters that suit any robot: the origin, a reference of zeros."""
        state = np.zeros(len(self._robot.states))
        return state, self.parameters(JointReference({}), state, 0, problem)
