# SPDX-License-Identifier: Apache-2.0
"""Time from launch to the first command, with an empty cache of libraries and with a full one.

Node and simulator are processes of their own and talk over DDS, as on a robot.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.harness import BUILD

_FOLDER = BUILD / "launch"
#: Long enough for the node to change over to compiled derivatives.
_DURATION_S = 10.0


def measure(robot: str = "unicycle") -> dict[str, Any]:
    """Summaries of two demos: cache (empty, full) -> summary."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    return {cache: _launch(robot, cache) for cache in ("empty", "full")}


def _launch(robot: str, cache: str) -> dict[str, Any]:
    output = _FOLDER / cache
    output.mkdir(parents=True)
    command = [sys.executable, "-m", "mpc_banded", "demo", "--robot", robot]
    command += ["--duration", str(_DURATION_S), "--output", str(output)]
    environment = {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        **os.environ,
        "MPC_BANDED_CACHE": str(_FOLDER / "cache"),
    }
    # The exit status judges the drive, for which ten seconds are too short.
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary
