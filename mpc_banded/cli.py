# SPDX-License-Identifier: Apache-2.0
"""The command line: ``mpc_banded demo | check | compile | replay | identify``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mpc_banded.control.background import NOT_COMPILED
from mpc_banded.control.config import Config
from mpc_banded.robots.robot import BUILT_IN


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="mpc_banded", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="drive a simulated robot over DDS")
    demo.add_argument("--robot", choices=BUILT_IN, default="unicycle")
    demo.add_argument("--duration", type=float, metavar="S", help="seconds of driving")
    demo.add_argument(
        "--output", type=Path, default=Path("out/demo"), help="folder of the results"
    )
    check = commands.add_parser("check", help="check a parameter file, its robot and bandwidth")
    check.add_argument("params", type=Path, help="parameter file")
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
    options = parser.parse_args(arguments)
    run = {
        "demo": _demo,
        "check": _check,
        "compile": _compile,
        "replay": _replay,
        "identify": _identify,
    }[options.command]
    return run(options)


def _demo(options: argparse.Namespace) -> int:
    # Needs ROS, which checking does not.
    from mpc_banded.ros.demo import run_demo

    return run_demo(options.robot, options.duration, options.output)


def _check(options: argparse.Namespace) -> int:
    from mpc_banded.control.loop import ControlLoop

    try:
        config = Config.load(options.params)
        loop = ControlLoop(config)
    except (ValueError, ArithmeticError) as error:
        print(f"{options.params}: {error}", file=sys.stderr)
        return 2
    problem, transcription = loop.controller.problem, loop.controller.transcription
    print(f"{options.params}: robot {config.robot.name}, {transcription.scheme}")
    print(f"  horizon {problem.horizon} x {problem.dt:g} s = {problem.horizon * problem.dt:g} s")
    print(f"  {transcription.n} unknowns, half bandwidth {transcription.half_bandwidth} derived")
    print(f"  weights {dict(problem.weights)}")
    bounds = np.column_stack(problem.input_bounds).tolist()
    print(f"  input bounds {dict(zip(config.robot.inputs, bounds, strict=True))}")
    return 0


def _compile(options: argparse.Namespace) -> int:
    # Unless it unwinds, a build that is stopped leaves its scratch folder in the cache.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        controller = Config.load(options.params).controller()
        controller.compile()
    except (ValueError, ArithmeticError, RuntimeError, OSError) as error:
        print(f"{NOT_COMPILED}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(controller.library)
    return 0


def _identify(options: argparse.Namespace) -> int:
    from mpc_banded.offline.identify import run_identify

    return run_identify(options.bag, options.params, options.output, dict(options.topic))


def _add_replay(replay: argparse.ArgumentParser) -> None:
    add = replay.add_argument
    add("bag", type=Path, help="folder of a rosbag2, or one of its files")
    add("--params", type=Path, help="parameter file; default: what the bag has on record")
    add("--set", type=_setting, action="append", default=[], metavar="KEY=VALUE",
        help="replace a parameter")  # fmt: skip
    add("--topic", type=_remap, action="append", default=[], metavar="NAME:=/IN_THE_BAG",
        help="where the bag has an input, the command, or the record of the cycles")  # fmt: skip
    add("--plan", metavar="CSV|driven",
        help="a path for a bag without: columns x and y, or where the robot went")  # fmt: skip
    add("--transform", type=_transform, action="append", default=[],
        metavar="FRAME:OTHER=X,Y,YAW",
        help="where OTHER is in FRAME, in m and rad, if the bag has no tf")  # fmt: skip
    add("--eager", action="store_true", help="do not compile the derivatives")
    add("--output", type=Path, help="folder of the results; default: out/replay/<bag>")
    add("--compare", type=Path, metavar="REFERENCE",
        help="a stored result, or its cycles.csv; exit status 1 if this one differs")  # fmt: skip
    add("--tolerance", type=_setting, action="append", default=[], metavar="FIELD=VALUE",
        help="difference allowed to --compare, as command=1e-3")  # fmt: skip
    add("--update", action="store_true", help="make this result the reference of --compare")
    add("--sweep", type=_axis, action="append", default=[], metavar="KEY=A,B,C",
        help="replay each combination of values, and compare their figures")  # fmt: skip
    add("--jobs", type=int, default=-1, help="replays of a sweep at a time; -1: one a core")
    add("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers do the sweep")


def _replay(options: argparse.Namespace) -> int:
    # Plots and bags take a while to import, and the other commands need neither.
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
    )
    output = options.output or Path("out/replay") / (options.bag.stem or "bag")
    if options.sweep:
        return run_sweep(request, dict(options.sweep), output, options.jobs, options.scheduler)
    return run_replay(
        request,
        output,
        reference=options.compare,
        tolerances=dict(options.tolerance),
        update=options.update,
    )


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
    """YAML takes 1e-6 for a string; ROS does not."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
