# SPDX-License-Identifier: Apache-2.0
"""What the solver asks of a problem: values and derivatives at a point, and Newton steps.

There are two evaluators: ``eager.py`` calls the torch functions of the problem and lets autograd
differentiate them; ``compiled.py`` calls machine code that was generated from the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mpc_banded.ocp.barrier import Barrier
from mpc_banded.ocp.newton import NewtonStep, NewtonSystem, Point, Scaling
from mpc_banded.ocp.transcription import StageData, Transcription


@dataclass(frozen=True)
class Merit:
    """The parts of the merit function at a trajectory.

    Attributes:
        cost: Sum of the weighted costs.
        barrier: Value of the barrier terms; infinite outside the input bounds.
        dynamics: ``sum_k lambda_k' d_k``.
        defects: ``sum_k |d_k|^2 / 2`` with defects in units of the states, as a cost.
    """

    cost: float
    barrier: float
    dynamics: float
    defects: float

    def value(self, penalty: float) -> float:
        """Return the merit function with a penalty on the defects."""
        return self.cost + self.barrier + self.dynamics + penalty * self.defects


class Evaluator(Protocol):
    """Evaluates a transcription and its derivatives."""

    @property
    def transcription(self) -> Transcription:
        """The transcription that is evaluated."""

    @property
    def barrier(self) -> Barrier:
        """The inequalities of one stage of its problem."""

    @property
    def half_bandwidth(self) -> int:
        """Half bandwidth of the band storage."""

    @property
    def recovery(self) -> str:
        """How the Hessian is found; one of ``eager.RECOVERIES``."""

    def system(self, point: Point, data: StageData, scaling: Scaling) -> NewtonSystem:
        """Return the Newton system at a point; units give norms and the penalty of the matrix."""

    def newton_step(
        self, system: NewtonSystem, scaling: Scaling, shift: float, accuracy: float
    ) -> NewtonStep:
        """Return the Newton step from a system that this evaluator has made.

        Args:
            system: The Newton system.
            scaling: The units that it was made with.
            shift: Added to the diagonal of the matrix, in units of its entries.
            accuracy: Largest linearised defect at which the multiplier sweeps end, in units of
                the states.

        Raises:
            NotPositiveDefinite: The shifted matrix has no Cholesky factor.
        """

    def merit(
        self,
        z: np.ndarray,
        multipliers: np.ndarray,
        mu: float,
        data: StageData,
        scaling: Scaling,
    ) -> Merit:
        """Return the merit function at a trajectory z (n,), with multipliers (N, nx)."""

    def central_duals(self, z: np.ndarray, mu: float, data: StageData) -> np.ndarray:
        """Return the duals ``mu / distance`` of a cold start at z (n,), as ``Point.duals``."""

    def rollout(self, inputs: np.ndarray, data: StageData) -> np.ndarray:
        """Return the states (N + 1, nx) after inputs (N, nu); see Transcription.predicted."""

    def dynamics(
        self, x: np.ndarray, u: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Return the rate (nx,) of a state (nx,) under an input (nu,).

        Args:
            x: State.
            u: Input.
            values: Name of each parameter -> its value at one stage, float64 in C order. They are
                looked up once: pass another mapping for other values.
        """

    def cost_curvature(self, z: np.ndarray, data: StageData) -> np.ndarray:
        """Diagonal (n,) of the Hessian of the costs at z (n,)."""
