# SPDX-License-Identifier: Apache-2.0
"""Robots: one file each, what they have in common in robot.py, their messages in messages.py."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpc_banded.robots.robot import Axis, Robot, distance, load_robot

__all__ = ["Axis", "Robot", "distance", "load_robot"]


def __getattr__(name: str) -> Any:
    # robot.py brings torch, which the readers of messages beside it do without (PEP 562).
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.robot"), name)
    return value
