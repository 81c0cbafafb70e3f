# SPDX-License-Identifier: Apache-2.0
"""Model predictive control with Newton steps on banded Hessians, taken out of torch by combs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpc_banded.ocp.comb import BandwidthError, banded_hessian
    from mpc_banded.ocp.controller import CommandSource, ControlStep, RecedingHorizonController
    from mpc_banded.ocp.problem import OptimalControlProblem, Trajectory
    from mpc_banded.ocp.solver import SolverOptions, Status

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

# The modules with these names bring torch, which takes seconds and 200 MB: whoever imports the
# package only to reach a part of it that needs no torch has neither (PEP 562).
_HOMES = {
    "BandwidthError": "ocp.comb",
    "CommandSource": "ocp.controller",
    "ControlStep": "ocp.controller",
    "OptimalControlProblem": "ocp.problem",
    "RecedingHorizonController": "ocp.controller",
    "SolverOptions": "ocp.solver",
    "Status": "ocp.solver",
    "Trajectory": "ocp.problem",
    "banded_hessian": "ocp.comb",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
