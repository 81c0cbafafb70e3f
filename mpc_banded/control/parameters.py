# SPDX-License-Identifier: Apache-2.0
"""The table of parameters: name, type, default, unit, range and description, each stated once.

The ROS descriptors, the checks of a parameter file and the typed access in the code all come from
the fields below. Parameters named after the costs, states and constants of a robot are added to
them by ``entries_of``.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpc_banded.ocp.solver import SolverOptions
from mpc_banded.ocp.transcription import SCHEMES
from mpc_banded.robots import Robot
from mpc_banded.robots.obstacle_messages import SOURCES

Value = bool | int | float | str | list[float] | list[str]

#: Range of weights and of the solver's options: beyond it, squares overflow or vanish.
SMALLEST, LARGEST = 1e-30, 1e30
#: Largest count of the solver.
MOST_ITERATIONS = 1_000_000
#: Most items of a list, and most characters of a string.
MOST_ITEMS, LONGEST_STRING = 3000, 500
#: Shows values in messages, long ones cut.
_SHOWN = reprlib.Repr()
_SHOWN.maxlist, _SHOWN.maxstring, _SHOWN.maxother = 12, 80, 80
#: Beginnings of the keys whose values are built into a controller.
REBUILDING = (
    "horizon", "dt", "transcription", "substeps", "bandwidth", "limits.", "solver.",
    "obstacle_slots", "footprint",
)  # fmt: skip
#: Options of the solver that are set by other keys, or not by parameters.
_OTHER_OPTIONS = ("half_bandwidth", "recovery")


class ConfigError(ValueError):
    """A parameter is unknown or has a value that is not allowed."""


def shown(value: Any) -> str:
    """Return a value as messages show it: as Python writes it, cut if it is long."""
    return _SHOWN.repr(value)


@dataclass(frozen=True)
class Entry:
    """One parameter.

    Attributes:
        default: Default value; its type is that of the parameter.
        description: One sentence.
        unit: SI unit, or empty.
        lower, upper: Range of numbers, and of each item of a list.
        choices: Allowed strings; empty allows any.
        length: Number of items of a list; 0 allows up to MOST_ITEMS.
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
        kind = {
            bool: "true or false",
            int: "integers",
            float: "numbers",
            str: f"strings of up to {LONGEST_STRING} characters",
        }.get(type(self.default), f"lists of {self.length or f'up to {MOST_ITEMS}'} numbers")
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if math.isinf(self.lower) and math.isinf(self.upper):
            return kind
        if math.isinf(self.upper):
            return f"{kind} >= {self.lower:g}"
        return f"{kind} from {self.lower:g} to {self.upper:g}"

    def checked(self, key: str, value: Any) -> Value:
        """Return the value in the parameter's type; raises ConfigError if it is not allowed."""
        result = self._converted(value) if self._has_fitting_length(value) else None
        numbers = result if isinstance(result, list) else [result]
        fits = all(
            isinstance(x, (bool, str)) or (x is not None and self.lower <= x <= self.upper)
            for x in numbers
        )
        if self.of_strings and isinstance(result, list):
            fits = bool(result) and "" not in result and len(set(result)) == len(result)
        if self.choices and result not in self.choices:
            fits = False
        if not fits or result is None:
            raise ConfigError(f"{key} is {shown(value)}; allowed are {self.allowed}")
        return result

    def _has_fitting_length(self, value: Any) -> bool:
        """Return whether a value is short enough to be looked at, if it has a length."""
        if not hasattr(value, "__len__"):
            return True
        if self.length and not isinstance(value, str):
            return len(value) == self.length
        return len(value) <= (LONGEST_STRING if isinstance(value, str) else MOST_ITEMS)

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
        try:
            return None if math.isnan(value) else float(value)
        except OverflowError:  # an integer beyond all floats
            return None


def parameter(default: Any, *details: Any, **more: Any) -> Any:
    """Return the field of a parameter; the arguments are those of Entry."""
    entry = Entry(default, *details, **more)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"entry": entry})
    return field(default=default, metadata={"entry": entry})


@dataclass(frozen=True)
class FallbackParameters:
    """Times of the fallback, for cycles without a usable solve."""

    follow_time: float = parameter(
        0.3, "How long the last plan is followed without a new one.", "s", 0.0, 10.0
    )
    slow_time: float = parameter(
        3.0,
        "How long slowing down may take after that, for robots commanded by positions.",
        "s",
        0.0,
        60.0,
    )


@dataclass(frozen=True)
class SimulatorParameters:
    """The simulated robot."""

    frequency: float = parameter(
        100.0, "Rate of the simulated state.", "Hz", 1.0, 1000.0, read_only=True
    )
    initial_state: list[float] = parameter([], "First state; empty is zero.", read_only=True)
    actuation_delay: float = parameter(
        0.0, "Time from a command to its effect.", "s", 0.0, 10.0, read_only=True
    )
    command_timeout: float = parameter(
        0.5, "Age of a command that is still obeyed.", "s", 0.0, 60.0, read_only=True
    )


@dataclass(frozen=True)
class Parameters:
    """All parameters of one robot, checked and typed.

    Attributes:
        fallback, simulator: Groups of parameters.
        solver: Options of the solver, with the half bandwidth.
        weights: Name of a cost -> weight.
        limits: Name of a state or input -> lower and upper limit.
        model: Name of a physical constant -> value.
    """

    robot: str = parameter(
        "unicycle", "Built-in robot, or package.module:attribute of another.", read_only=True
    )
    horizon: int = parameter(0, "Control intervals; 0 takes the robot's.", lower=0, upper=10_000)
    dt: float = parameter(0.0, "Length of an interval; 0 takes the robot's.", "s", 0.0, 10.0)
    transcription: str = parameter(
        "", "Finite-difference scheme; empty takes the robot's.", choices=("", *sorted(SCHEMES))
    )
    substeps: int = parameter(
        1, "Integration steps in an interval, for euler and rk4.", "", 1, 100
    )
    bandwidth: int = parameter(0, "Half bandwidth of the Hessian; 0 derives it.", "", 0, 1000)
    compile: bool = parameter(
        True, "Compile the derivatives beside the control loop.", read_only=True
    )
    controller_frequency: float = parameter(20.0, "Rate of the control loop.", "Hz", 0.1, 1000.0)
    deadline: float = parameter(0.8, "Share of the period that a solve may take.", "", 0.01, 1.0)
    max_state_age: float = parameter(
        0.3, "Age beyond which no command is made from a state.", "s", 0.01, 60.0
    )
    use_header_stamps: bool = parameter(
        True, "Count the age of states and obstacles from their header stamps."
    )
    max_frozen_time: float = parameter(
        1.0, "Time a state may stay the same when the robot should move; 0: any.", "s", 0.0, 60.0
    )
    state_frame: str = parameter(
        "", "Frame of the state; empty takes the one that its messages name.", read_only=True
    )
    jump_margin: float = parameter(
        0.5,
        "How much further than its limits allow a position may move at once.",
        "m or rad",
        0.0,
        1000.0,
    )
    jump_samples: int = parameter(
        5, "States that must agree until a jump counts as a real relocation.", "", 1, 10_000
    )
    actuation_delay: float = parameter(0.0, "Time from a command to its effect.", "s", 0.0, 1.0)
    command_lead: float = parameter(0.1, "Lag of the velocity controllers below.", "s", 0.0, 10.0)
    enable_stamped_cmd_vel: bool = parameter(
        True, "Publish TwistStamped; Twist if false.", read_only=True
    )
    command_deadline: float = parameter(
        0.0,
        "Longest time between two commands that is offered to subscribers; 0 offers none.",
        "s",
        0.0,
        60.0,
        read_only=True,
    )
    command_lease: float = parameter(
        0.0,
        "Time without a cycle after which subscribers are told that commands are dead; 0: never.",
        "s",
        0.0,
        60.0,
        read_only=True,
    )
    reference_speed: float = parameter(0.5, "Speed along a path.", "m/s", 0.0, 100.0)
    path_orientation: str = parameter(
        "auto",
        "Orientations of a path that count; auto: none where all are identity and it bends.",
        choices=("auto", "always", "never"),
    )
    minimum_rotation_angle: float = parameter(
        0.785, "Turn on the spot at which a path is cut.", "rad", 0.05, 3.14
    )
    inversion_xy_tolerance: float = parameter(
        0.2, "Distance from a cusp at which the next leg may begin.", "m", 0.02, 10.0
    )
    inversion_yaw_tolerance: float = parameter(
        0.4, "Heading error at which the next leg may begin.", "rad", 0.02, 3.14
    )
    xy_goal_tolerance: float = parameter(
        0.25, "Distance from the goal at which the robot has arrived.", "m", 0.001, 100.0
    )
    yaw_goal_tolerance: float = parameter(
        0.25, "Heading error at which the robot has arrived.", "rad", 0.001, 3.2
    )
    trans_stopped_velocity: float = parameter(
        0.25,
        "Speed below which a robot at the end of its reference has arrived.",
        "m/s",
        0.001,
        100.0,
    )
    rot_stopped_velocity: float = parameter(
        0.25, "Turn rate below which it has.", "rad/s", 0.001, 100.0
    )
    required_movement_radius: float = parameter(
        0.5, "Move that counts as progress.", "m", 0.001, 100.0
    )
    required_movement_angle: float = parameter(
        0.5, "Turn that counts as progress.", "rad", 0.001, 3.2
    )
    movement_time_allowance: float = parameter(
        10.0, "Time without progress after which the robot is blocked.", "s", 0.1, 3600.0
    )
    failure_tolerance: float = parameter(
        5.0,
        "Time that a goal of follow_path may be held up until it is aborted; 0: none, -1: any.",
        "s",
        -1.0,
        3600.0,
    )
    controller_plugins: list[str] = parameter(
        ["FollowPath"],
        "Values of controller_id that goals of follow_path may have.",
        read_only=True,
    )
    bond_heartbeat_period: float = parameter(
        0.1,
        "Period of the heartbeat for Nav2's lifecycle manager; 0: none.",
        "s",
        0.0,
        4.0,
        read_only=True,
    )
    timed_paths: bool = parameter(
        False, "Follow stamped paths by time even where their stamps lie in the past."
    )
    obstacles: list[float] = parameter(
        [], "Circles as x, y, radius one after the other.", "m", -1e7, 1e7
    )
    obstacle_sources: list[str] = parameter(
        [*SOURCES], "Topics from which obstacles are taken.", read_only=True
    )
    obstacle_timeout: float = parameter(
        0.5,
        "Age of obstacles or of a scan at which the robot stops; 0: they are forgotten then.",
        "s",
        0.0,
        60.0,
    )
    costmap_timeout: float = parameter(
        1.5, "Age of a map at which the robot stops; 0: it is forgotten then.", "s", 0.0, 60.0
    )
    costmap_threshold: int = parameter(
        100, "Least value of a cell of a map that is an obstacle, 0 to 100.", "", 1, 100
    )
    allow_unknown: bool = parameter(True, "Whether unknown cells of a map may be driven through.")
    obstacle_slots: int = parameter(
        0,
        "Circles that the problem holds at each stage, those that come nearest; 0: the robot's.",
        lower=0,
        upper=100,
    )
    footprint: list[float] = parameter(
        [],
        "Radius; or circles as place along the heading, radius; empty takes the robot's radius.",
        "m",
        -1e3,
        1e3,
    )
    fallback: FallbackParameters = field(default_factory=FallbackParameters)
    simulator: SimulatorParameters = field(default_factory=SimulatorParameters)
    solver: SolverOptions = field(default_factory=SolverOptions)
    weights: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    model: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Parameters:
        """Build them from checked values by their full names."""
        return cls(
            **_own(cls, values),
            fallback=FallbackParameters(**_own(FallbackParameters, section(values, "fallback"))),
            simulator=SimulatorParameters(
                **_own(SimulatorParameters, section(values, "simulator"))
            ),
            solver=SolverOptions(half_bandwidth=values["bandwidth"], **section(values, "solver")),
            weights=section(values, "weights"),
            limits={k: (low, high) for k, (low, high) in section(values, "limits").items()},
            model=section(values, "model"),
        )


def section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the values of the parameters ``name.*`` by the rest of their names."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _entries(cls: Any, prefix: str = "") -> dict[str, Entry]:
    fields = dataclasses.fields(cls)
    return {f"{prefix}{f.name}": f.metadata["entry"] for f in fields if "entry" in f.metadata}


def _own(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in _entries(cls)}


def _solver_entries() -> dict[str, Entry]:
    defaults = SolverOptions()
    entries = {}
    for option in dataclasses.fields(defaults):
        if option.name not in _OTHER_OPTIONS:
            default = getattr(defaults, option.name)
            is_count = isinstance(default, int)
            entries[f"solver.{option.name}"] = Entry(
                default,
                option.metadata["description"],
                "",
                1 if is_count else SMALLEST,
                MOST_ITERATIONS if is_count else LARGEST,
            )
    return entries


#: Parameters that every robot has.
GENERAL: dict[str, Entry] = {
    **_entries(Parameters),
    **_entries(FallbackParameters, "fallback."),
    **_entries(SimulatorParameters, "simulator."),
    **_solver_entries(),
}


def entries_of(robot: Robot) -> dict[str, Entry]:
    """Return all parameters of a robot: general ones, and those named after costs and states."""
    table = dict(GENERAL)
    for name, option in robot.options.items():
        default = option.default if isinstance(option.default, str) else list(option.default)
        table[name] = Entry(
            default, option.description, "", choices=option.choices, read_only=True
        )
    for name in (*robot.stage_costs, *robot.terminal_costs):
        weight = float(robot.weights.get(name, 1.0))
        table[f"weights.{name}"] = Entry(weight, f"Weight of the cost {name!r}.", "", 0.0, LARGEST)
    for name in (*robot.states, *robot.inputs):
        limits = [float(bound) for bound in robot.limits.get(name, (-math.inf, math.inf))]
        text = f"Lower and upper limit of {name!r}."
        table[f"limits.{name}"] = Entry(limits, text, length=2)
    for name, value in robot.model.items():
        table[f"model.{name}"] = Entry(
            float(value), f"Physical constant {name!r} of the model.", "", -LARGEST, LARGEST
        )
    return table
