# SPDX-License-Identifier: Apache-2.0
"""The configuration of one robot: reads parameters from YAML or a mapping, and checks them.

The node, the simulator and the offline tools read the same files (``/**: ros__parameters:``).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpc_banded.control import parameter_file
from mpc_banded.control.errors import UserCodeError, user_code
from mpc_banded.control.parameter_file import ParameterFileError
from mpc_banded.control.parameters import (
    GENERAL,
    LARGEST,
    REBUILDING,
    ConfigError,
    Parameters,
    entries_of,
    shown,
)
from mpc_banded.control.text import printable
from mpc_banded.ocp.transcription import check_scheme
from mpc_banded.robots import Robot, load_robot
from mpc_banded.robots.messages import CommandTopic
from mpc_banded.robots.modules import look_beside
from mpc_banded.robots.obstacle_messages import SOURCES
from mpc_banded.robots.planar import Footprint

__all__ = ["Config", "ConfigError"]

#: Most characters of an unknown name that are shown.
LONGEST_NAME = 80


class Config:
    """Checked parameters of one robot.

    Args:
        given: Parameter -> value, keys joined by dots; everything else takes its default.

    Attributes:
        robot: Robot that the parameters describe.
        table: Parameter -> entry.
        values: Parameter -> value, complete, by full names.
        parameters: The same values, typed.

    Raises:
        ConfigError: A key is unknown or a value not allowed; the message names the key, the
            value and what is allowed.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.robot = _robot(given)
        self.table = entries_of(self.robot)
        for key in given:
            if key not in self.table:
                name = printable(str(key), LONGEST_NAME)
                near = difflib.get_close_matches(name, self.table, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {sorted(self.table)}"
                raise ConfigError(
                    f"{name} is {shown(given[key])}, but robot {self.robot.name!r} has no such "
                    f"parameter; {hint}"
                )
        self.values: dict[str, Any] = {
            key: entry.checked(key, given.get(key, entry.default))
            for key, entry in self.table.items()
        }
        self.parameters = Parameters.of(self.values)
        self._check_together()

    def _check_together(self) -> None:
        """Check values that depend on others."""
        circles, state = self.parameters.obstacles, self.parameters.simulator.initial_state
        if len(circles) % 3 or (circles and not self.robot.obstacles):
            allowed = "x, y, radius of any number of circles" if self.robot.obstacles else "none"
            raise ConfigError(f"obstacles is {shown(circles)}; allowed are {allowed}")
        if len(state) not in (0, len(self.robot.states)):
            raise ConfigError(
                f"simulator.initial_state is {shown(state)}; allowed are an empty list "
                f"and one number for each of {', '.join(self.robot.states)}"
            )
        for name, (lower, upper) in self.parameters.limits.items():
            if not lower < upper or any(LARGEST < abs(x) < math.inf for x in (lower, upper)):
                raise ConfigError(
                    f"limits.{name} is {[lower, upper]}; allowed are a lower and a greater upper "
                    f"limit, each infinite or up to {LARGEST:g}"
                )
        self._check_surroundings()
        for name in ("command_deadline", "command_lease"):
            if 0.0 < (time_s := getattr(self.parameters, name)) < self.period_s:
                raise ConfigError(
                    f"{name} is {time_s:g}; allowed are 0 and the {self.period_s:g} s of a cycle "
                    "or more"
                )
        self._check_functions()
        try:
            check_scheme(self.transcription, self.parameters.substeps)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_surroundings(self) -> None:
        """Refuse unknown sources of obstacles, and outlines that are none."""
        sources = self.parameters.obstacle_sources
        if not set(sources) <= set(SOURCES):
            raise ConfigError(
                f"obstacle_sources is {shown(sources)}; allowed are some of {', '.join(SOURCES)}"
            )
        outline = self.parameters.footprint
        if (len(outline) > 1 and len(outline) % 2) or min(outline[1::2] or outline, default=0) < 0:
            raise ConfigError(
                f"footprint is {shown(outline)}; allowed are an empty list, one radius >= 0, "
                "and place along the heading and radius >= 0 of each of several circles"
            )

    def _check_functions(self) -> None:
        """Refuse values with which the robot could not stand, or its functions fail."""
        robot, limits, model = self.robot, self.parameters.limits, self.parameters.model
        try:
            with user_code("the parameters do not suit the robot"):
                stops = {} if robot.slow is not None else robot.stop_values(model)
                radius = (
                    0.0 if robot.planar is None else robot.planar.turning_radius(limits, model)
                )
        except UserCodeError as error:
            raise ConfigError(str(error)) from error
        if not radius >= 0.0:
            raise ConfigError(
                f"limits and model give a turning radius of {radius:g} m; allowed are those that "
                "give none below 0"
            )
        for name, stop in stops.items():  # a robot with ``slow`` stands wherever it is
            lower, upper = limits.get(name, (-math.inf, math.inf))
            if not lower <= stop <= upper:
                raise ConfigError(
                    f"limits.{name} is {[lower, upper]}; allowed are limits that include "
                    f"{stop:g}, at which the robot stands"
                )

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
        """Read a parameter file; the keys of the file and of the overrides are checked alike.

        The module of its robot is found beside the file, or on Python's path.
        """
        look_beside(path)
        return cls({**read_parameter_file(path), **(overrides or {})})

    def changed(self, updates: Mapping[str, Any]) -> Config:
        """Return a configuration with all the given values replaced, or none.

        Raises:
            ConfigError: A key is unknown or read-only, or a value is not allowed.
        """
        for key, value in updates.items():
            entry = self.table.get(key)
            if entry and entry.read_only and entry.checked(key, value) != self.values[key]:
                raise ConfigError(
                    f"{key} is {shown(value)}; it holds from the start on, so allowed is "
                    f"{self.values[key]!r}"
                )
        return Config({**self.values, **updates})

    def rebuilds(self, other: Config) -> bool:
        """Return whether a change to ``other`` needs a new controller."""
        return self.robot is not other.robot or any(
            key.startswith(REBUILDING) and value != self.values.get(key)
            for key, value in other.values.items()
        )

    @property
    def command_topic(self) -> CommandTopic:
        """Topic that carries the command; a twist is stamped or not."""
        topic = self.robot.command_topic
        if self.robot.command_message == "twist" and not self.parameters.enable_stamped_cmd_vel:
            return replace(topic, type="geometry_msgs/msg/Twist")
        return topic

    @property
    def period_s(self) -> float:
        """Period of the control loop in seconds."""
        return 1.0 / self.parameters.controller_frequency

    @property
    def lead_s(self) -> float:
        """Time into the plan whose velocities a command asks for, in seconds.

        A velocity controller with the lag ``command_lead`` approaches a command that is held for
        one period exponentially; asked for these, it reaches the planned change of a period at the
        period's end.
        """
        period, lag = self.period_s, self.parameters.command_lead
        return period if lag < 1e-3 * period else -period / math.expm1(-period / lag)

    @property
    def horizon(self) -> int:
        """Number of control intervals."""
        return self.parameters.horizon or self.robot.horizon

    @property
    def dt(self) -> float:
        """Length of a control interval in seconds."""
        return self.parameters.dt or self.robot.dt

    @property
    def transcription(self) -> str:
        """Finite-difference scheme."""
        return self.parameters.transcription or self.robot.transcription

    def initial_state(self) -> np.ndarray:
        """Return the first state of the simulated robot, (nx,)."""
        given = self.parameters.simulator.initial_state
        return np.array(given or np.zeros(len(self.robot.states)), dtype=np.float64)

    @property
    def obstacle_slots(self) -> int:
        """Number of circles that the problem holds at each stage."""
        return (self.parameters.obstacle_slots or self.robot.obstacles) * bool(
            self.robot.obstacles
        )

    @property
    def footprint(self) -> Footprint:
        """The outline of the robot."""
        given = self.parameters.footprint or [self.robot.radius]
        if len(given) == 1:
            given = [0.0, *given]
        along, radii = np.array(given, dtype=np.float64).reshape(-1, 2).T
        return Footprint(along, radii)

    def obstacles(self) -> np.ndarray:
        """Return the static circles x, y, radius in m, (M, 3)."""
        return np.array(self.parameters.obstacles, dtype=np.float64).reshape(-1, 3)


#: Variants made so far, each with its original robot, which is compared by identity.
_VARIANTS: dict[tuple[int, str], tuple[Robot, Robot]] = {}


def _variant(robot: Robot, chosen: Mapping[str, Any]) -> Robot:
    """Return the variant for some options, the same object for the same robot and values."""
    assert robot.variant is not None
    key = (id(robot), repr(sorted(chosen.items())))
    if key not in _VARIANTS:
        _VARIANTS[key] = robot, robot.variant(**chosen)
    return _VARIANTS[key][1]


def _robot(given: Mapping[str, Any]) -> Robot:
    """Return the robot that the parameters name, in the variant that its options choose."""
    name = GENERAL["robot"].checked("robot", given.get("robot", GENERAL["robot"].default))
    try:
        robot = load_robot(str(name))
        if robot.variant is None:
            return robot
        table = entries_of(robot)
        chosen = {
            key: table[key].checked(key, given.get(key, table[key].default))
            for key in robot.options
        }
        return _variant(robot, chosen)
    except ConfigError:
        raise
    except Exception as error:  # ``variant`` is the user's, so it may fail in any way
        raise ConfigError(str(error) or repr(error)) from error


def read_parameter_file(path: Path) -> dict[str, Any]:
    """Return the parameters of a ROS 2 parameter file, keys joined by dots.

    Raises:
        ConfigError: The node would refuse the file, ignore it, or take one of two values.
    """
    try:
        return dict(parameter_file.read(path))
    except ParameterFileError as error:
        raise ConfigError(str(error)) from error
