# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.launch``: time from launch to first command, and what compiling costs.

The demo is run twice with a cache of its own: empty at first, full the second time. Node and
simulator are processes of their own and talk over DDS, as on a robot.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.harness import BUILD

FOLDER = BUILD / "launch"
RESULTS = FOLDER / "results.json"
#: Long enough for the node to change over to compiled derivatives.
DURATION_S = 10.0


def main() -> None:
    """Run both launches and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch", description=__doc__)
    parser.add_argument("--robot", default="unicycle", help="one of the built-in robots")
    robot = parser.parse_args().robot
    shutil.rmtree(FOLDER, ignore_errors=True)
    results = {cache: _launch(robot, cache) for cache in ("empty", "full")}
    RESULTS.write_text(json.dumps(results, indent=1))
    for cache, summary in results.items():
        print(
            f"{robot}, {cache} cache: first command after {summary['first_command_s']:.1f} s, "
            f"solve {summary['solve_ms_median']:.2f} ms in the median, "
            f"{summary['missed_deadlines']} of {summary['cycles']} cycles late"
        )


def _launch(robot: str, cache: str) -> dict[str, Any]:
    output = FOLDER / cache
    output.mkdir(parents=True)
    command = [sys.executable, "-m", "mpc_banded", "demo", "--robot", robot]
    command += ["--duration", str(DURATION_S), "--output", str(output)]
    environment = {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        **os.environ,
        "MPC_BANDED_CACHE": str(FOLDER / "cache"),
    }
    # Its exit status judges the drive, which ten seconds are too short for.
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


if __name__ == "__main__":
    main()
