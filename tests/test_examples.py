# SPDX-License-Identifier: Apache-2.0
"""The examples are robots as users write them: they load, pass their checks and read messages."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.offline.identify import axes_of

pytestmark = pytest.mark.usefixtures("examples")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PARAMS = sorted(path.name for path in EXAMPLES.glob("*.yaml"))


def test_every_robot_has_a_parameter_file_and_is_in_the_list():
    listed = (EXAMPLES / "README.md").read_text()
    assert all(name in listed for name in PARAMS)
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= {Path(name).stem for name in PARAMS}


@pytest.mark.parametrize("name", PARAMS)
def test_every_example_passes_its_own_check(name):
    loop = ControlLoop(Config.load(EXAMPLES / name))  # probes the bandwidth
    # What is commanded by forces follows no command in position or speed.
    assert axes_of(loop.robot) or loop.robot.command_message == "effort"


@pytest.mark.parametrize(
    "name", ["ackermann_car.yaml", "underwater_vehicle.yaml", "servo_arm.yaml"]
)
def test_what_a_command_carries_is_read_back(name):
    config = Config.load(EXAMPLES / name)
    topic = config.robot.command_topic
    values = dict.fromkeys(config.robot.command_names, 0.1)
    filled = SimpleNamespace(drive=SimpleNamespace())
    topic.fill(filled, values)
    read = topic.read(filled)
    assert set(read) == set(values)
    for key, value in values.items():
        # The vehicle's fins and thruster take whole degrees and per cent.
        assert read[key] == pytest.approx(value, abs=0.51 if key == "thrust" else 0.009)


def test_the_origin_of_the_car_keeps_what_is_near_and_moves_with_another_place():
    Config.load(EXAMPLES / "ackermann_car.yaml")
    origin = sys.modules["ackermann_car"].Origin()
    first = origin.local(369_641.94, 3_280_415.38)
    assert np.abs(first).max() <= 500.0
    second = origin.local(369_641.94 + 700.0, 3_280_415.38)
    np.testing.assert_allclose(np.subtract(second, first), [700.0, 0.0], atol=1e-9)
    assert np.abs(origin.local(691_234.0, 5_334_567.0)).max() <= 500.0
