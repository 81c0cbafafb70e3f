# SPDX-License-Identifier: Apache-2.0
"""Configuration: the one table of parameters, and the way from YAML to a controller.

The node, the simulator and the offline tools read the same files (``/**: ros__parameters:``) and
the same table; descriptors and documentation are made from it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpc_banded.control import parameter_file
from mpc_banded.control.parameter_file import ParameterFileError
from mpc_banded.ocp.controller import RecedingHorizonController
from mpc_banded.ocp.eager import RECOVERIES
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.ocp.solver import SolverOptions
from mpc_banded.ocp.transcription import SCHEMES
from mpc_banded.robots import Robot, load_robot
from mpc_banded.robots.messages import CommandTopic

Value = bool | int | float | str | list[float] | list[str]


#: How keys begin whose values are built into a controller.
REBUILDING = (
    "horizon", "dt", "transcription", "substeps", "bandwidth", "recovery", "limits.", "solver."
)  # fmt: skip


class ConfigError(ValueError):
    """A parameter is unknown or has a value that is not allowed."""


@dataclass(frozen=True)
class Entry:
    """One parameter.

    Attributes:
        default: Its value where nothing is given; the type is that of the parameter.
        description: One sentence.
        unit: SI unit, or empty.
        lower, upper: Range of numbers, and of each item of a list.
        choices: Allowed strings; empty allows any.
        length: Items of a list; 0 allows any number.
        read_only: Whether it holds from the start on, and can't be changed while the robot drives.
    """

    default: Value
    description: str
    unit: str = ""
    lower: float = -math.inf
    upper: float = math.inf
    choices: tuple[str, ...] = ()
    length: int = 0
    read_only: bool = False

    @property
    def of_strings(self) -> bool:
        """Whether it is a list of strings."""
        default = self.default
        return isinstance(default, list) and bool(default) and isinstance(default[0], str)

    @property
    def allowed(self) -> str:
        """What values are allowed, in words."""
        if self.of_strings:
            return "lists of one or more different names"
        kind = {bool: "true or false", int: "integers", float: "numbers", str: "strings"}.get(
            type(self.default), f"lists of {self.length or 'any number of'} numbers"
        )
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if math.isinf(self.lower) and math.isinf(self.upper):
            return kind
        if math.isinf(self.upper):
            return f"{kind} >= {self.lower:g}"
        return f"{kind} from {self.lower:g} to {self.upper:g}"

    def checked(self, key: str, value: Any) -> Value:
        """The value in the parameter's type; raises ConfigError naming key, value and allowed."""
        result = self._converted(value)
        numbers = result if isinstance(result, list) else [result]
        fits = all(
            isinstance(x, (bool, str)) or (x is not None and self.lower <= x <= self.upper)
            for x in numbers
        )
        if isinstance(result, list) and self.length and len(result) != self.length:
            fits = False
        if self.of_strings and isinstance(result, list):
            fits = bool(result) and "" not in result and len(set(result)) == len(result)
        if self.choices and result not in self.choices:
            fits = False
        if not fits or result is None:
            raise ConfigError(f"{key} is {value!r}; allowed are {self.allowed}")
        return result

    def _converted(self, value: Any) -> Value | None:
        if isinstance(self.default, (bool, str)):
            return value if isinstance(value, type(self.default)) else None
        if isinstance(self.default, list):
            if isinstance(value, (str, bool)) or not hasattr(value, "__len__"):
                return None
            if self.of_strings:
                names = [item for item in value if isinstance(item, str)]
                return names if len(names) == len(value) else None
            items = [Entry(0.0, "")._converted(item) for item in value]
            return None if None in items else items  # type: ignore[return-value]
        if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
            return None
        if isinstance(self.default, int):
            return int(value) if isinstance(value, (int, np.integer)) else None
        return None if math.isnan(value) else float(value)


def _solver_entries() -> dict[str, Entry]:
    """Options of the solver, but for those that have a key of their own."""
    defaults = SolverOptions()
    entries = {}
    for option in fields(defaults):
        if option.name not in ("half_bandwidth", "recovery"):
            default = getattr(defaults, option.name)
            lower = 1 if isinstance(default, int) else 0.0
            entries[f"solver.{option.name}"] = Entry(
                default, option.metadata["description"], lower=lower
            )
    return entries


#: Parameters that every robot has.
GENERAL: dict[str, Entry] = {
    "robot": Entry(
        "unicycle", "Built-in robot, or package.module:attribute of another.", read_only=True
    ),
    "horizon": Entry(0, "Control intervals; 0 takes the robot's.", lower=0, upper=10_000),
    "dt": Entry(0.0, "Length of an interval; 0 takes the robot's.", "s", 0.0, 10.0),
    "transcription": Entry(
        "", "Finite-difference scheme; empty takes the robot's.", choices=("", *sorted(SCHEMES))
    ),
    "substeps": Entry(1, "Integration steps in an interval, for euler and rk4.", "", 1, 100),
    "bandwidth": Entry(0, "Half bandwidth of the Hessian; 0 derives it.", "", 0, 1000),
    "recovery": Entry("stagewise", "Way to the Hessian.", choices=RECOVERIES),
    "compile": Entry(True, "Compile the derivatives beside the control loop.", read_only=True),
    "controller_frequency": Entry(20.0, "Rate of the control loop.", "Hz", 0.1, 1000.0),
    "deadline": Entry(0.8, "Share of the period that a solve may take.", "", 0.01, 1.0),
    "max_state_age": Entry(0.3, "Age beyond which no command is made from a state.", "s", 0.01),
    "use_header_stamps": Entry(
        True, "Count the age of states and obstacles from their header stamps."
    ),
    "max_frozen_time": Entry(
        1.0, "Time a state may stay the same when the robot should move; 0: any.", "s", 0.0, 60.0
    ),
    "state_frame": Entry("", "Frame of the state; empty takes the one that its messages name."),
    "jump_margin": Entry(
        0.5, "How much further than its limits allow a position may move at once.", "m or rad", 0.0
    ),
    "jump_samples": Entry(
        5, "States that must agree until a jump counts as a real relocation.", "", 1, 10_000
    ),
    "fallback.follow_time": Entry(
        0.3, "How long the last plan is followed without a new one.", "s", 0.0, 10.0
    ),
    "fallback.slow_time": Entry(
        3.0, "How long slowing down to a stop may take after that.", "s", 0.0, 60.0
    ),
    "actuation_delay": Entry(0.0, "Time from a command to its effect.", "s", 0.0, 1.0),
    "command_lead": Entry(0.1, "Lag of the velocity controllers below.", "s", 0.0, 10.0),
    "enable_stamped_cmd_vel": Entry(True, "Publish TwistStamped; Twist if false.", read_only=True),
    "reference_speed": Entry(0.5, "Speed along a path.", "m/s", 0.0, 100.0),
    "timed_paths": Entry(
        True, "Follow a path whose poses carry increasing stamps by time, not by reference_speed."
    ),
    "obstacles": Entry([], "Circles as x, y, radius one after the other.", "m"),
    "max_obstacle_age": Entry(
        0.5, "Age beyond which obstacles from the topic are forgotten.", "s", 0.01, 60.0
    ),
    "simulator.frequency": Entry(
        100.0, "Rate of the simulated state.", "Hz", 1.0, 1000.0, read_only=True
    ),
    "simulator.initial_state": Entry([], "First state; empty is zero.", read_only=True),
    "simulator.actuation_delay": Entry(
        0.0, "Time from a command to its effect.", "s", 0.0, 10.0, read_only=True
    ),
    "simulator.command_timeout": Entry(
        0.5, "Age of a command that is still obeyed.", "s", 0.0, read_only=True
    ),
} | _solver_entries()


def entries_of(robot: Robot) -> dict[str, Entry]:
    """All parameters of a robot: the general ones and those named after its costs and states."""
    table = dict(GENERAL)
    for name, option in robot.options.items():
        default = option.default if isinstance(option.default, str) else list(option.default)
        table[name] = Entry(
            default, option.description, "", choices=option.choices, read_only=True
        )
    for name in (*robot.stage_costs, *robot.terminal_costs):
        weight = float(robot.weights.get(name, 1.0))
        table[f"weights.{name}"] = Entry(weight, f"Weight of the cost {name!r}.", "", 0.0)
    for name in (*robot.states, *robot.inputs):
        limits = [float(bound) for bound in robot.limits.get(name, (-math.inf, math.inf))]
        text = f"Lower and upper limit of {name!r}."
        table[f"limits.{name}"] = Entry(limits, text, length=2)
    for name, value in robot.model.items():
        table[f"model.{name}"] = Entry(float(value), f"Physical constant {name!r} of the model.")
    return table


class Config:
    """Checked parameters of one robot, and what is built from them.

    Args:
        given: Parameter -> value, keys joined by dots; everything else takes its default.

    Attributes:
        robot: The robot.
        table: Parameter -> entry.
        values: Parameter -> value, complete.

    Raises:
        ConfigError: A key is unknown or a value not allowed; the message names the key, the
            value and what is allowed.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        name = GENERAL["robot"].checked("robot", given.get("robot", GENERAL["robot"].default))
        try:
            robot = load_robot(str(name))
            if robot.variant is not None:
                table = entries_of(robot)
                chosen = {
                    key: table[key].checked(key, given.get(key, table[key].default))
                    for key in robot.options
                }
                robot = robot.variant(**chosen)
            self.robot = robot
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.table = entries_of(self.robot)
        for key in given:
            if key not in self.table:
                near = difflib.get_close_matches(key, self.table, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {sorted(self.table)}"
                raise ConfigError(
                    f"{key} is {given[key]!r}, but robot {self.robot.name!r} has no such "
                    f"parameter; {hint}"
                )
        self.values: dict[str, Any] = {
            key: entry.checked(key, given.get(key, entry.default))
            for key, entry in self.table.items()
        }
        self._check_together()
        try:
            self.controller()
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error

    def _check_together(self) -> None:
        """What one entry cannot know of its value."""
        circles, state = self["obstacles"], self["simulator.initial_state"]
        if len(circles) % 3 or len(circles) > 3 * self.robot.obstacles:
            raise ConfigError(
                f"obstacles is {circles}; allowed are x, y, radius of up to "
                f"{self.robot.obstacles} circles"
            )
        if len(state) not in (0, len(self.robot.states)):
            raise ConfigError(
                f"simulator.initial_state is {state}; allowed are an empty list and one number "
                f"for each of {', '.join(self.robot.states)}"
            )
        for name, (lower, upper) in self.section("limits").items():
            if not lower < upper:
                raise ConfigError(
                    f"limits.{name} is {[lower, upper]}; allowed are a lower and a greater upper "
                    f"limit"
                )

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
        """Read a parameter file; the file's keys and the overrides are checked alike."""
        return cls({**read_parameter_file(path), **(overrides or {})})

    def __getitem__(self, key: str) -> Any:
        """Value of a parameter."""
        return self.values[key]

    def section(self, name: str) -> dict[str, Any]:
        """Values of the parameters ``name.*`` by the rest of their names."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.values.items() if k.startswith(prefix)}

    def changed(self, updates: Mapping[str, Any]) -> Config:
        """A configuration with some values replaced: all of them, or none.

        Raises:
            ConfigError: A key is unknown or read-only, or a value is not allowed.
        """
        for key, value in updates.items():
            entry = self.table.get(key)
            if entry and entry.read_only and entry.checked(key, value) != self[key]:
                raise ConfigError(
                    f"{key} is {value!r}; it holds from the start on, so allowed is {self[key]!r}"
                )
        return Config({**self.values, **updates})

    def rebuilds(self, other: Config) -> bool:
        """Whether the step from here to ``other`` needs a new controller."""
        return self.robot is not other.robot or any(
            key.startswith(REBUILDING) and value != self.values.get(key)
            for key, value in other.values.items()
        )

    @property
    def command_topic(self) -> CommandTopic:
        """The topic that carries the command; a twist is stamped or not."""
        topic = self.robot.command_topic
        if self.robot.command_message == "twist" and not self["enable_stamped_cmd_vel"]:
            return replace(topic, type="geometry_msgs/msg/Twist")
        return topic

    @property
    def period_s(self) -> float:
        """Period of the control loop in seconds."""
        return 1.0 / self["controller_frequency"]

    def problem(self) -> OptimalControlProblem:
        """The optimal control problem."""
        return self.robot.problem(
            self["horizon"] or self.robot.horizon,
            self["dt"] or self.robot.dt,
            self.section("weights"),
            {name: tuple(pair) for name, pair in self.section("limits").items()},
        )

    def controller(self) -> RecedingHorizonController:
        """The controller, not yet checked."""
        options = SolverOptions(
            half_bandwidth=self["bandwidth"], recovery=self["recovery"], **self.section("solver")
        )
        scheme = self["transcription"] or self.robot.transcription
        return RecedingHorizonController(self.problem(), scheme, self["substeps"], options)

    def initial_state(self) -> np.ndarray:
        """First state of the simulated robot, (nx,)."""
        given = self["simulator.initial_state"]
        return np.array(given or np.zeros(len(self.robot.states)), dtype=np.float64)

    def obstacles(self) -> np.ndarray:
        """Circles (slots, 3); unused slots hold one so far away that it matters to nobody."""
        circles = np.array(self["obstacles"], dtype=np.float64).reshape(-1, 3)
        unused = np.tile([1e4, 1e4, 0.0], (self.robot.obstacles - len(circles), 1))
        return np.vstack([circles, unused])


def read_parameter_file(path: Path) -> dict[str, Any]:
    """Parameters of a ROS 2 parameter file, keys joined by dots.

    Raises:
        ConfigError: The node would refuse the file, ignore it, or take one of two values.
    """
    try:
        return dict(parameter_file.read(path))
    except ParameterFileError as error:
        raise ConfigError(str(error)) from error
