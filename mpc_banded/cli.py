# SPDX-License-Identifier: Apache-2.0
"""The command line: ``mpc_banded demo | check | compile | identify``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import numpy as np

from mpc_banded.background import NOT_COMPILED
from mpc_banded.config import Config
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
    identify = commands.add_parser(
        "identify", help="delay, lag and gain from a bag, into a copy of the parameter file"
    )
    identify.add_argument("bag", type=Path, help="folder of a rosbag2, or one of its files")
    identify.add_argument("--params", type=Path, required=True, help="parameter file")
    identify.add_argument("--output", type=Path, help="new parameter file; .json, .png beside it")
    identify.add_argument(
        "--topic", action="append", default=[], metavar="NAME:=TOPIC", help="name in the bag"
    )
    options = parser.parse_args(arguments)
    run = {"demo": _demo, "check": _check, "compile": _compile, "identify": _identify}[
        options.command
    ]
    return run(options)


def _demo(options: argparse.Namespace) -> int:
    # Needs ROS, which checking does not.
    from mpc_banded.demo import run_demo

    return run_demo(options.robot, options.duration, options.output)


def _check(options: argparse.Namespace) -> int:
    from mpc_banded.loop import ControlLoop

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
    from rich.console import Console

    from mpc_banded.offline.bag import BagError
    from mpc_banded.offline.identify import run_identify

    try:
        topics = {}
        for remap in options.topic:
            name, given, topic = remap.partition(":=")
            if not (name and given and topic):
                raise BagError(f"--topic is {remap!r}; allowed is NAME:=TOPIC")
            topics[name] = topic
        return run_identify(options.bag, options.params, options.output, topics, Console())
    except (BagError, ValueError, OSError) as error:
        print(f"{options.bag}: {error}", file=sys.stderr)
        return 2
