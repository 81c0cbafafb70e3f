# SPDX-License-Identifier: Apache-2.0
"""The description of a robot for the node, the simulator and the replay: functions and names.

Names connect the torch functions to messages: a state called ``yaw`` takes its value from the yaw
in the state message (messages.py), a reference column ``v`` takes the speed of the path, and a
limit ``v`` bounds the state or input of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mpc_banded.ocp.problem import (
    Dynamics,
    Inequality,
    OptimalControlProblem,
    StageCost,
    TerminalCost,
    Trajectory,
)
from mpc_banded.robots import messages, modules
from mpc_banded.robots.messages import CommandTopic, ReferenceTopic, StateTopic, Values
from mpc_banded.robots.planar import Limits, Planar

BUILT_IN = ("unicycle", "omni", "bicycle", "cartpole", "joint_space")


#: Units of the names that ROS gives a meaning to (REP 103).
UNITS = {"x": "m", "y": "m", "yaw": "rad", "v": "m/s", "vy": "m/s", "w": "rad/s"}


@dataclass(frozen=True)
class Option:
    """A parameter that chooses among the variants of a robot; it is fixed at start-up.

    Attributes:
        default: A string, or a tuple of different strings.
        description: One sentence.
        choices: Allowed strings; empty allows any.
    """

    default: str | tuple[str, ...]
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """A motion that follows the command with a delay and a first-order lag.

    Attributes:
        drive: ``(command, model) -> value`` at which the motion settles.
        moves: State that moves; empty for the state that the axis is named after.
        is_rate: Whether the rate of that state settles there, rather than the state itself.
        gain: Model constant that scales the drive, by any power; empty if there is none.
        lag: Model constant that holds the lag in s; empty for ``command_lead``.
    """

    drive: Callable[[Values, Values], float]
    moves: str = ""
    is_rate: bool = False
    gain: str = ""
    lag: str = ""


@dataclass(frozen=True, kw_only=True)
class Model:
    """How a robot moves: its states, inputs, dynamics and limits.

    Attributes:
        states: Name of each state, in the order of ``x``.
        inputs: Name of each input, in the order of ``u``.
        dynamics: As in OptimalControlProblem, where ``p`` holds each value of ``model`` by name.
        model: Physical constants by name, which are live parameters of the dynamics.
        limits: Name of a state or input -> (lower, upper); others are unbounded.
        cyclic: States that are angles, equal modulo a full turn.
        velocities: State that is a position -> names whose limits bound its rate, to tell jumps
            from motion. By default ``v`` and ``vy`` for x and y, ``w`` for yaw, and
            ``<name>_velocity`` for any other, where they exist.
        units: Name of a state, input or value of a command -> its unit, for plots. Those of x, y,
            yaw, v, vy, w are known, and ``<name>_velocity`` has that of ``<name>`` per second.
    """

    states: tuple[str, ...]
    inputs: tuple[str, ...]
    dynamics: Dynamics
    model: Values = field(default_factory=dict)
    limits: Limits = field(default_factory=dict)
    cyclic: tuple[str, ...] = ()
    velocities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = self.names
        if len(set(named)) < len(named):
            raise ValueError(f"names of states and inputs must differ; got {named}")
        if not self.velocities:
            object.__setattr__(self, "velocities", self._usual_velocities())
        for what, names in (
            ("limits", self.limits),
            ("cyclic", self.cyclic),
            ("velocities", [*self.velocities, *sum(self.velocities.values(), ())]),
        ):
            unknown = sorted(set(names) - set(named))
            if unknown:
                raise ValueError(f"{what} has unknown names {unknown}; allowed are {named}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the states and the inputs."""
        return (*self.states, *self.inputs)

    def unit(self, name: str) -> str:
        """Unit of a state, input or value of a command; empty if it is unknown."""
        for suffix, per in (("_velocity", "/s"), ("_acceleration", "/s²")):
            stem = name.removesuffix(suffix)
            if name not in self.units and stem != name and self.unit(stem):
                return self.unit(stem) + per
        usual = "rad" if name in self.cyclic else UNITS.get(name, "")
        return self.units.get(name, usual)

    def _usual_velocities(self) -> dict[str, tuple[str, ...]]:
        speeds = tuple(name for name in ("v", "vy") if name in self.names)
        usual = {"x": speeds, "y": speeds, "yaw": ("w",) if "w" in self.names else ()}
        for name in self.states:
            rate = f"{name}_velocity"
            usual.setdefault(name, (rate,) if rate in self.names else ())
        return {name: rates for name, rates in usual.items() if rates and name in self.states}


@dataclass(frozen=True, kw_only=True)
class Task(Model):
    """What a robot is to do: its costs, constraints and horizon.

    Attributes:
        reference: Names of the columns of ``p["reference"]``.
        stage_costs, terminal_costs, inequalities, penalties, weights: As in
            OptimalControlProblem, with ``p`` as for the dynamics.
        obstacles: Number of obstacle slots, unless a parameter sets another. If it is positive,
            ``p["obstacles"]`` (count, 3) holds x, y, radius of each, and ``p["footprint"]``
            (F, 2) the circles of the footprint: place along the heading, and radius.
        transcription: Finite-difference scheme that suits the robot.
        horizon, dt: Number and duration in s of the intervals that suit the robot.
    """

    reference: tuple[str, ...]
    stage_costs: Mapping[str, StageCost]
    terminal_costs: Mapping[str, TerminalCost] = field(default_factory=dict)
    inequalities: Mapping[str, Inequality] = field(default_factory=dict)
    penalties: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weights: Values = field(default_factory=dict)
    obstacles: int = 0
    transcription: str = "midpoint"
    horizon: int = 40
    dt: float = 0.05

    def problem(
        self,
        horizon: int,
        dt: float,
        weights: Values | None = None,
        limits: Limits | None = None,
        slots: int = 0,
        outline: int = 1,
    ) -> OptimalControlProblem:
        """Return the optimal control problem on a grid.

        Args:
            horizon: Number of intervals.
            dt: Their duration in s.
            weights: Replace those of the robot by name.
            limits: Replace those of the robot by name.
            slots: Number of obstacle slots; 0 takes the robot's.
            outline: Number of circles of the footprint.
        """
        limits = {**self.limits, **(limits or {})}

        def bounds(names: tuple[str, ...]) -> tuple[list[float], list[float]]:
            pairs = [limits.get(name, (-np.inf, np.inf)) for name in names]
            return [float(low) for low, _ in pairs], [float(high) for _, high in pairs]

        parameters: dict[str, tuple[int, ...]] = {"reference": (len(self.reference),)}
        if self.obstacles:
            parameters |= {"obstacles": (slots or self.obstacles, 3), "footprint": (outline, 2)}
        return OptimalControlProblem(
            nx=len(self.states),
            nu=len(self.inputs),
            horizon=horizon,
            dt=dt,
            dynamics=self.dynamics,
            stage_costs=self.stage_costs,
            terminal_costs=self.terminal_costs,
            weights={**self.weights, **(weights or {})},
            input_bounds=bounds(self.inputs),
            state_bounds=bounds(self.states),
            inequalities=self.inequalities,
            penalties=self.penalties,
            parameters=parameters | dict.fromkeys(self.model, ()),
        )


@dataclass(frozen=True, kw_only=True)
class Geometry(Model):
    """The geometry of a base in the plane, from which ``planar`` follows with the names.

    Attributes:
        radius: Footprint radius around the position in m.
        turning: ``(limits, model) -> smallest turning radius`` in m of a base that does not turn
            on the spot.
    """

    radius: float = 0.0
    turning: Callable[[Limits, Values], float] | None = None

    @cached_property
    def planar(self) -> Planar | None:
        """The planar geometry; None for a robot that does not name its position x and y."""
        if not messages.has_position(self.states):
            return None
        return Planar(
            position=(self.states.index("x"), self.states.index("y")),
            yaw=self.states.index("yaw") if "yaw" in self.states else None,
            strafes="vy" in self.names,
            pivots="w" in self.names,
            turning=self.turning,
        )


@dataclass(frozen=True, kw_only=True)
class Actuation(Model):
    """What a command holds, how the machine follows it, and how it slows down without a plan.

    Attributes:
        command: ``(x, u, model) -> name -> value`` of what the command message carries, from
            the state one ``command_lead`` ahead and the current input. By default each input.
        actuate: ``(x, command, model) -> u``: the input that the machine makes of a command, for
            the simulator and the delay compensation. By default the command is the input;
            required together with ``command``.
        points: Number of points of the plan in a command, one interval apart and without the
            lead, each with the input that leads there; their values are named ``name@seconds``.
            0 for commands that hold one time only.
        braking: Value of a command -> the input whose limits bound its rate while the robot slows
            down without a plan, or another value to which it stays in proportion. Other values
            jump to their stop.
        slow: ``(last command, elapsed s, limits) -> command``, in place of ``braking`` for
            commands that are not rates; after infinite time the robot stands still.
        axes: Name -> how a motion follows the command, for identification from recordings. By
            default those of commands that are named like a state, or like the rate of one.
    """

    command: Callable[[np.ndarray, np.ndarray, Values], dict[str, float]] | None = None
    actuate: Callable[[np.ndarray, Values, Values], np.ndarray] | None = None
    points: int = 0
    braking: Mapping[str, str] = field(default_factory=dict)
    slow: Callable[[Values, float, Limits], dict[str, float]] | None = None
    axes: Mapping[str, Axis] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.command is None) != (self.actuate is None):
            raise ValueError("command and actuate belong together; give both or neither")

    @property
    def command_names(self) -> tuple[str, ...]:
        """Names of the values in a command."""
        return tuple(self.stop_values(self.model))

    def command_values(
        self, plan: Trajectory, lead_s: float, model: Values, into_s: float = 0.0
    ) -> dict[str, float]:
        """Return what the command message carries ``into_s`` seconds into the plan.

        Args:
            plan: States and inputs.
            lead_s: Time after which the machine reaches a commanded value.
            model: Physical constants.
            into_s: Time since the beginning of the plan.
        """
        if self.points and self.command is not None:
            ahead = [(k + 1) * plan.dt for k in range(self.points)]
            return {
                f"{name}@{t:.9g}": value
                for t in ahead
                for name, value in self.command(
                    plan.state_at(into_s + t), plan.input_at(into_s + t - 0.5 * plan.dt), model
                ).items()
            }
        u = plan.input_at(into_s)
        if self.command is None:
            return dict(zip(self.inputs, u.tolist(), strict=True))
        return self.command(plan.state_at(into_s + lead_s), u, model)

    def stop_values(self, model: Values) -> dict[str, float]:
        """Return the command that stops the robot: the one for standing at the origin."""
        standing = Trajectory(
            np.zeros((2, len(self.states))), np.zeros((1, len(self.inputs))), 1.0
        )
        values = self.command_values(standing, 0.0, model)
        return {name: value if np.isfinite(value) else 0.0 for name, value in values.items()}

    def input_of(self, state: np.ndarray, command: Values, model: Values) -> np.ndarray:
        """Return the input (nu,) that the machine makes of a command."""
        if self.actuate is None:
            return np.array([command[name] for name in self.inputs], dtype=np.float64)
        return self.actuate(state, command, model)


@dataclass(frozen=True, kw_only=True)
class Messages(Actuation):
    """The messages that carry state, reference and command.

    Attributes:
        state_message: Kind of message that carries the state: a key of messages.STATES, or topics
            of any other type. With several topics, the state is known once each has a message.
        command_message: Kind of message that carries the command: a key of messages.COMMANDS, or
            a topic of any other type.
        reference_message: Kind of message that carries the reference: a key of
            messages.REFERENCES, or topics of any other type.
        rests: Whether a robot that follows joint trajectories drives to zero until one arrives.
    """

    state_message: str | tuple[StateTopic, ...]
    command_message: str | CommandTopic
    reference_message: str | tuple[ReferenceTopic, ...]
    rests: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, kind, table in (
            ("state_message", self.state_message, messages.STATES),
            ("command_message", self.command_message, messages.COMMANDS),
            ("reference_message", self.reference_message, messages.REFERENCES),
        ):
            if isinstance(kind, str) and kind not in table:
                raise ValueError(f"{what} is {kind!r}; allowed are {sorted(table)} and topics")
        topics = [topic.topic for topic in self.state_topics]
        topics += [topic.topic for topic in self.reference_topics]
        if not self.state_topics or len(set(topics)) < len(topics):
            raise ValueError(
                f"state and reference come on {topics}; allowed are at least one topic of the "
                "state, and different names"
            )
        if self.command_message == "twist" and self.command is None:
            unknown = sorted(set(self.inputs) - {"v", "vy", "w"})
            if unknown:
                raise ValueError(f"a twist carries v, vy and w; {unknown} need a command function")
        if self.reference_message == "path" and not messages.has_position(self.states):
            raise ValueError(f"a path needs the states x and y; the states are {self.states}")

    @property
    def state_topics(self) -> tuple[StateTopic, ...]:
        """Topics that carry the state."""
        kind = self.state_message
        return (messages.STATES[kind],) if isinstance(kind, str) else kind

    @property
    def command_topic(self) -> CommandTopic:
        """Topic that carries the command."""
        kind = self.command_message
        return messages.COMMANDS[kind](self.command_names) if isinstance(kind, str) else kind

    @property
    def reference_topics(self) -> tuple[ReferenceTopic, ...]:
        """Topics that carry the reference."""
        kind = self.reference_message
        return messages.REFERENCES[kind] if isinstance(kind, str) else kind

    def state(self, values: Values) -> np.ndarray:
        """Return the state (nx,) from the values of its messages.

        Raises:
            KeyError: A value is missing; the message names it.
        """
        missing = [name for name in self.states if name not in values]
        if missing:
            topics = " and ".join(topic.topic for topic in self.state_topics)
            raise KeyError(f"{topics} has no {missing}; it has {sorted(values)}")
        return np.array([values[name] for name in self.states], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Robot(Messages, Geometry, Task):
    """Robot configuration: a flat list of the fields of its groups, given by name.

    Model says how the robot moves, Task what it is to do, Actuation how it is commanded, Messages
    on which topics, and Geometry its size and turning radius.

    Attributes:
        name: Name in messages and diagnostics.
        options: Parameters by name that choose a variant of the robot.
        variant: Function that returns the variant, called with the values of ``options`` by name.
    """

    name: str
    options: Mapping[str, Option] = field(default_factory=dict)
    variant: Callable[..., Robot] | None = None


def load_robot(name: str) -> Robot:
    """Return a built-in robot by name, or any other as ``package.module:attribute``.

    Its module is found beside the parameter file, or on Python's path.

    Raises:
        ValueError: Nothing of that name can be imported, or it is no Robot.
    """
    if ":" not in name:
        if name not in BUILT_IN:
            raise ValueError(
                f"robot is {name!r}; allowed are {list(BUILT_IN)} and 'package.module:attribute'"
            )
        name = f"mpc_banded.robots.{name}:{name}"
    module, _, attribute = name.partition(":")
    try:
        robot = getattr(modules.import_module(module), attribute)
    except Exception as error:  # the module is the user's, so it may fail in any way
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and module.startswith(error.name or ":"):
            reason += "; allowed are modules beside the parameter file or on PYTHONPATH"
        raise ValueError(f"robot is {name!r}, which cannot be imported: {reason}") from error
    if not isinstance(robot, Robot):
        raise ValueError(f"robot is {name!r}, a {type(robot).__name__}; it must be a Robot")
    return robot
