# SPDX-License-Identifier: Apache-2.0
"""Model predictive control with Newton steps on banded Hessians, taken out of torch by combs."""

from mpc_banded.comb import BandwidthError, banded_hessian
from mpc_banded.controller import CommandSource, ControlStep, RecedingHorizonController
from mpc_banded.problem import OptimalControlProblem, Trajectory
from mpc_banded.solver import SolverOptions, Status

__version__ = "0.1.0"

__all__ = [
    "BandwidthError",
    "CommandSource",
    "ControlStep",
    "OptimalControlProblem",
    "RecedingHorizonController",
    "SolverOptions",
    "Status",
    "Trajectory",
    "banded_hessian",
]
