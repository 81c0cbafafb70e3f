# SPDX-License-Identifier: Apache-2.0
"""Checks a parameter file as the node reads it, and describes its problem."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop

#: Exit codes.
DONE, REFUSED = 0, 2
#: Remark if the types of messages cannot be checked.
NO_ROS = "  ROS is not installed here, so whether the types of its messages are was not checked"


def run_check(file: Path, as_json: bool) -> int:
    """Print what a parameter file describes, or why the node would refuse it.

    Returns:
        The exit code.
    """
    try:
        config = Config.load(file)
        loop = ControlLoop(config)
        has_ros = _find_messages(loop)
    except (ValueError, ArithmeticError) as error:
        text = str(error)
    except Exception as error:  # from the functions of a robot, which may raise anything
        text = f"building the robot's problem failed: {' '.join(repr(error).split())}"
    else:
        report = _report(file, config, loop) | {"messages_checked": has_ros}
        print(json.dumps(report, indent=2) if as_json else _in_words(report))
        return DONE
    if as_json:
        print(json.dumps({"file": str(file), "ok": False, "error": text}, indent=2))
    else:
        print(f"{file}: {text}", file=sys.stderr)
    return REFUSED


def _find_messages(loop: ControlLoop) -> bool:
    """Check the types of all topics if ROS is installed; returns whether it is.

    Raises:
        ValueError: The package of a type is not installed, so the node would refuse to start.
    """
    try:
        from mpc_banded.ros.interfaces import installed_types, message_class
    except ModuleNotFoundError:
        return False
    installed_types(loop.input_topics)
    message_class(loop.config.command_topic.type)
    return True


def _report(file: Path, config: Config, loop: ControlLoop) -> dict[str, Any]:
    """Return what a parameter file describes, as lines."""
    problem, transcription = loop.controller.problem, loop.controller.transcription
    lower, upper = (
        [bound if math.isfinite(bound) else None for bound in bounds.tolist()]  # JSON has no inf
        for bounds in problem.input_bounds
    )
    return {
        "file": str(file),
        "ok": True,
        "robot": config.robot.name,
        "transcription": str(transcription.scheme),
        "horizon": problem.horizon,
        "dt": problem.dt,
        "unknowns": transcription.n,
        "half_bandwidth": transcription.half_bandwidth,
        "weights": dict(problem.weights),
        "input_bounds": {name: [lower[i], upper[i]] for i, name in enumerate(config.robot.inputs)},
    }


def _in_words(report: dict[str, Any]) -> str:
    horizon, dt = report["horizon"], report["dt"]
    return "\n".join(
        [
            f"{report['file']}: robot {report['robot']}, {report['transcription']}",
            f"  horizon {horizon} x {dt:g} s = {horizon * dt:g} s",
            f"  {report['unknowns']} unknowns, half bandwidth {report['half_bandwidth']} derived",
            f"  weights {report['weights']}",
            f"  input bounds {report['input_bounds']}",
            *([] if report["messages_checked"] else [NO_ROS]),
        ]
    )
