# SPDX-License-Identifier: Apache-2.0
"""Robots, one file each.

robot.py defines the description of a robot, planar.py what mobile bases share, and messages.py how
messages are read and written.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpc_banded.robots.planar import Planar, clearance, distance
    from mpc_banded.robots.robot import Axis, Robot, load_robot

__all__ = ["Axis", "Planar", "Robot", "clearance", "distance", "load_robot"]


def __getattr__(name: str) -> Any:
    # These modules import torch, which the readers of messages beside them do without (PEP 562).
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "planar" if name in ("Planar", "clearance", "distance") else "robot"
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value
