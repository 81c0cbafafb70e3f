# SPDX-License-Identifier: Apache-2.0
"""Robots: one file each, and what they have in common in robot.py."""

from mpc_banded.robots.robot import Axis, Robot, distance, load_robot

__all__ = ["Axis", "Robot", "distance", "load_robot"]
