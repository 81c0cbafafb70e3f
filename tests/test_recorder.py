# SPDX-License-Identifier: Apache-2.0
"""A recorded drive over DDS gives the same commands offline."""

import json
import signal

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from ros_harness import Process, Robot, config_file

from mpc_banded.cli import main
from mpc_banded.control.record import Cycle
from mpc_banded.offline.bag import Bag

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def set_weight(robot, name, value):
    number = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
    request = SetParameters.Request(parameters=[Parameter(name=name, value=number)])
    assert robot.request(SetParameters, "mpc_node/set_parameters", request).results[0].successful


def records(folder):
    with Bag(folder) as bag:
        for _, _, message in bag.messages(["/mpc_node/cycle"]):
            yield Cycle.parse({pair.key: pair.value for pair in message.status[0].values})


def test_a_recorded_drive_is_repeated_to_the_last_digit(tmp_path):
    folder = tmp_path / "drive"
    recorder = Process(
        "recorder",
        tmp_path / "recorder.log",
        "--params-file", config_file("unicycle"), "-p", f"bag:={folder}",
    )  # fmt: skip
    recorder.until_it_says("recording")
    robot = Robot("unicycle", tmp_path)
    way = np.column_stack([np.linspace(0.0, 6.0, 60), np.zeros(60)])
    try:
        robot.until(lambda: robot.states, "a state")
        robot.until(lambda: robot.commands, "a command")
        robot.until(
            lambda: robot.observer.count_subscribers("plan") >= 2, "node and recorder on the plan"
        )
        robot.publish_plan(way)
        robot.hear_more(3)
        robot.publish_plan(way)  # again, should one of the two not have been matched yet
        robot.until(robot.is_driving, "drove")
        robot.hear_more(20)
        set_weight(robot, "weights.effort", 0.5)
        robot.hear_more(10)
        robot.trigger("mpc_node/reset")
        robot.switch("mpc_node/enable", False)
        robot.hear_more(5)
        robot.switch("mpc_node/enable", True)
        robot.until(robot.is_driving, "driving again")
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request(transition=Transition(id=transition))
            assert robot.request(ChangeState, "mpc_node/change_state", request).success
        robot.hear_more(20)
        robot.drain()
    finally:
        robot.close()
        code = recorder.stop(signal.SIGTERM)
    assert code == 0, recorder.output
    with Bag(folder) as bag:
        assert bag.remarks == []
        for name in ("/odom", "/plan", "/cmd_vel", "/mpc_node/cycle", "/parameter_events"):
            assert bag.topics[name].count > 0, name
        assert any(name.startswith("/mpc_node/telemetry/") for name in bag.topics)
    output = tmp_path / "result"
    assert main(["replay", str(folder), "--output", str(output)]) == 0
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert summary["follows_the_record"]
    # On a busy machine one listener may find the simulator later than another, while all stand.
    begun = next(r for r in records(folder) if r.code == "driving").number
    assert summary["messages_missing_until_cycle"] < begun
    assert len(summary["remarks"]) <= 1
    assert summary["cycles"] > 55
    assert [r.starts for r in records(folder)][-1] == 2
    assert summary["codes"]["driving"] > 40
    assert summary["parameters"]["weights.effort"] == 0.5
    assert summary["largest_difference_from_the_record"] <= 1e-9


def test_the_recorder_refuses_to_write_over_a_bag(tmp_path):
    (tmp_path / "bag").mkdir()
    recorder = Process("recorder", tmp_path / "log", "-p", f"bag:={tmp_path / 'bag'}")
    assert recorder.wait() == 2
    assert "does not exist yet" in recorder.output
