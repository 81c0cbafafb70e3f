# SPDX-License-Identifier: Apache-2.0
"""Replays of flawed and of hostile recordings: their results and their messages."""

import itertools
import json
import math
import sys

import bags
import numpy as np
import pytest

from mpc_banded.cli import main
from mpc_banded.codegen.build import machine
from mpc_banded.control.config import Config
from mpc_banded.control.text import printable
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.replay import Replay
from mpc_banded.offline.sweep import Request, best_first, heading, sweep
from mpc_banded.offline.tracking import differences, plan_errors, tracking_errors

SMALL = {"robot": "unicycle", "horizon": 5, "dt": 0.1, "controller_frequency": 10.0}
SECOND = bags.SECOND


@pytest.fixture
def params(tmp_path):
    file = tmp_path / "params.yaml"
    lines = "".join(f"    {key}: {value}\n" for key, value in SMALL.items())
    file.write_text(f"/**:\n  ros__parameters:\n{lines}", encoding="utf-8")
    return file


def replay(path, changes=None, **options):
    with Bag(path) as bag:
        made = Replay(bag, Config({**SMALL, **(changes or {})}), compiled=False, **options)
        return list(made.cycles()), made


def command(*arguments):
    try:
        return main(["replay", *map(str, arguments)])
    except SystemExit as error:
        return error.code


def drive(**options):
    return list(bags.drive(1.0, rate=20, **options))


def test_goals_of_nav2_are_a_reference_until_they_end(tmp_path):
    goal = "/received_global_plan"
    messages = [(goal if topic == "/plan" else topic, t, m) for topic, t, m in drive()]
    now = messages[-1][1]
    ended = (goal, now - SECOND // 3, bags.path(0, np.empty((0, 2))))
    messages = sorted([*messages, ended], key=lambda m: m[1])
    found, made = replay(bags.write(tmp_path / "bag", messages))
    assert "no reference" not in " ".join(made.remarks.notes)
    codes = [r.tick.code.name for r in found]
    assert "DRIVING" in codes
    assert codes[-1] == "NO_REFERENCE"
    assert found[-1].tick.reason.endswith("waiting for a goal of follow_path")


@pytest.mark.parametrize("stray_s", [0, 1_699_000_000, 2_000_000_000])
def test_a_time_gone_astray_costs_a_few_cycles_and_a_remark(stray_s, tmp_path):
    stray = ("/odom", stray_s * SECOND, bags.odometry(stray_s * SECOND, 0.0, 0.0))
    messages = sorted([*drive(), stray], key=lambda m: m[1])
    found, made = replay(bags.write(tmp_path / "bag", messages))
    assert len(found) < 150
    assert "nothing was recorded for" in " ".join(made.remarks.notes)
    times = [r.tick.now_ns for r in found]
    assert times == sorted(times)
    assert sum(r.tick.driving for r in found) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("shift_s", [-1_699_999_990.0, 2.0])
def test_clocks_that_differ_are_named_and_the_option_helps(shift_s, params, tmp_path, capsys):
    messages = []
    for topic, time_ns, message in drive():
        if topic == "/odom":
            message.header = bags.header(time_ns + int(shift_s * SECOND))
        messages.append((topic, time_ns, message))
    path = bags.write(tmp_path / "bag", messages)
    common = [path, "--params", params, "--eager", "--output", tmp_path / "out"]
    assert command(*common) == 2
    said = capsys.readouterr().err
    assert "drives in none of the" in said
    assert ("ahead of" if shift_s > 0.0 else "behind") in said
    option = said.split("add ")[1].split(";")[0].split()[:2]
    assert command(*common, *option) == 0


def test_a_command_that_is_missing_is_named_with_the_topic_that_carries_it(tmp_path):
    messages = [("/base/out" if t == "/cmd_vel" else t, n, m) for t, n, m in drive()]
    path = bags.write(tmp_path / "bag", messages)
    _, made = replay(path)
    (note,) = (note for note in made.remarks.notes if "--topic" in note)
    topic, _, name = note.split("--topic ")[1].split()[0].partition(":=")
    found, made = replay(path, topics={topic: name})
    assert not made.remarks.notes
    assert found[-1].recorded


def test_a_state_of_which_nothing_can_be_read_is_an_error(tmp_path):
    message = bags.odometry(1, 0.0, 0.0)
    message.header.frame_id = "x" * 40
    path = bags.write(tmp_path / "bag", [("/odom", k, message) for k in range(3)])
    file = path / "bag.mcap"
    file.write_bytes(file.read_bytes().replace(b"x" * 40, b"\xff" * 40))
    with pytest.raises(BagError, match=r"/odom that can be read; /odom is no nav_msgs"):
        replay(path)


#: A robot of a user that counts how often its state is read, and one without any reference.
ROBOTS = """
from dataclasses import replace
from mpc_banded.robots.messages import STATES
from mpc_banded.robots.unicycle import unicycle
calls = []
def read(message):
    calls.append(message)
    return STATES["odometry"].read(message)
robot = replace(unicycle, name="counting", state_message=(replace(STATES["odometry"], read=read),))
def broken(x, u, p):
    return {}[0]
"""


@pytest.fixture
def robots(tmp_path, monkeypatch):
    name = f"robots_of_a_user_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(ROBOTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_each_state_is_read_once(robots, tmp_path):
    path = bags.write(tmp_path / "bag", drive())
    found, _ = replay(path, {"robot": f"{robots}:robot"})
    assert len(sys.modules[robots].calls) == 20
    assert found[-1].state["v"] == 0.5


def record(changed):
    keys = "latency_s cut_off_after starts resets received reason"
    values = dict.fromkeys(keys.split(), "")
    values |= {"cycle": "0", "now_ns": str(SECOND), "latency_s": "0.0", "deadline": "1"}
    values |= {"derivatives": "eager", "enabled": "1", "starts": "1", "resets": "0"}
    values |= {"changed": json.dumps(changed), "code": "driving"}
    pairs = [bags.make("diagnostic_msgs/msg/KeyValue", key=k, value=v) for k, v in values.items()]
    status = bags.make("diagnostic_msgs/msg/DiagnosticStatus", values=pairs)
    return bags.make("diagnostic_msgs/msg/DiagnosticArray", status=[status])


def test_a_recording_names_no_code_unless_the_user_does(robots, tmp_path):
    name = f"{robots}:robot"
    messages = [
        ("/odom", SECOND, bags.odometry(SECOND, 0.0, 0.0)),
        ("/mpc_node/cycle", SECOND, record({**SMALL, "robot": name})),
    ]
    path = bags.write(tmp_path / "bag", messages)
    with Bag(path) as bag:
        with pytest.raises(BagError, match=f"--set robot={name}"):
            Replay(bag)
        with pytest.raises(BagError, match="which is code"):
            Replay(bag, overrides={"robot": "unicycle"})
        assert robots not in sys.modules
        assert Replay(bag, overrides={"robot": name}, compiled=False).loop.robot.name == "counting"


def test_a_record_of_another_version_is_left_aside(tmp_path):
    strange = record({})
    strange.status[0].values.pop()
    path = bags.write(tmp_path / "bag", [*drive(), ("/a/cycle", 2 * 10**18, strange)])
    _, made = replay(path)
    assert not made.exact
    assert "/a/cycle is not followed" in made.remarks.notes[0]
    with Bag(path) as bag, pytest.raises(BagError, match="no record of a cycle"):
        Replay(bag)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_record_of_another_machine_is_named(elsewhere, tmp_path):
    strange = record(SMALL)
    name = "x86_64, another processor" if elsewhere else machine()
    pair = bags.make("diagnostic_msgs/msg/KeyValue", key="machine", value=name)
    strange.status[0].values.append(pair)
    messages = [("/odom", SECOND, bags.odometry(SECOND, 0.0, 0.0)), ("/a/cycle", SECOND, strange)]
    with Bag(bags.write(tmp_path / "bag", messages)) as bag:
        made = Replay(bag, compiled=False)
    assert made.recorded_on == name
    assert any("another machine" in note for note in made.remarks.notes) == elsewhere


ESCAPE = "\x1b]0;TITLE\x07\x1b[31m"


@pytest.mark.slow
def test_what_a_recording_says_is_shown_as_text(params, tmp_path, capsys):
    script = "<script>alert(1)</script>"
    messages = []
    for k, (topic, time_ns, message) in enumerate(drive()):
        if topic == "/odom" and k % 2 == 0:
            message.header.frame_id = f"[/b]{ESCAPE}{script}"
        messages.append(
            (f"/{ESCAPE}{script}{topic}" if topic == "/plan" else topic, time_ns, message)
        )
    path = bags.write(tmp_path / f"bag{script.replace('/', '')}[b]", messages)
    output = tmp_path / "out"
    assert command(path, "--params", params, "--eager", "--output", output) == 0
    said = capsys.readouterr()
    assert "\x1b]" not in said.err + said.out
    assert "[/b]" in said.err
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script" in page
    assert command(path, "--params", params, "--topic", "odom:=/x") == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "a\u202eb", "\x00", "\u2028", "\ud800"])
def test_nothing_steers_a_terminal(text):
    assert all(c.isprintable() for c in printable(f"before {text} after"))


def test_text_is_kept_and_cut():
    assert printable("/odom is 3 × ü\n 語") == "/odom is 3 × ü 語"
    assert len(printable("x" * 10**6)) < 2100


#: Arguments that are refused with status 2, and words of the sentence.
NONSENSE = [
    (["--tolerance", "command=abc", "--compare", "x"], "command=abc"),
    (["--tolerance", "command=-1", "--compare", "x"], "command=-1"),
    (["--tolerance", "command=nan", "--compare", "x"], "command=nan"),
    (["--tolerance", "command=1"], "--compare"),
    (["--update"], "--compare"),
    (["--topic", "odom=/a"], "odom=/a"),
    (["--topic", "odom:=/a", "--topic", "odom:=/b"], "twice"),
    (["--sweep", "horizon=5", "--sweep", "horizon=6"], "twice"),
    (["--sweep", "horizon=5", "--set", "horizon=6"], "set and swept"),
    (["--sweep", "horizon=5", "--compare", "x"], "--sweep"),
    (["--sweep", "horizon="], "horizon="),
    (["--sweep", "horizon={a: 1}"], "horizon"),
    (["--sweep", "horizont=5"], "horizon"),
    (["--jobs", "0", "--sweep", "horizon=5"], "0"),
    (["--scheduler", "tcp://x:1"], "--sweep"),
    (["--plan", "PLAN:x,y\n1,2\n"], "two or more"),
    (["--plan", "PLAN:x,y\n1,2\n1,2\n"], "two or more"),
    (["--plan", "PLAN:x,y\n1,2\nnan,3\n"], "point 2"),
    (["--plan", "PLAN:x,y\n1,2\n1e300,3\n"], "point 2"),
    (["--plan", "PLAN:a,b\n1,2\n"], "columns x and y"),
    (["--plan", "PLAN:"], "columns x"),
    (["--plan", "PLAN:x,y\n1\n"], "columns x and y"),
    (["--plan", "/"], "columns x and y"),
]


@pytest.mark.parametrize(("arguments", "words"), NONSENSE)
def test_nonsense_is_refused_with_status_2(arguments, words, params, tmp_path, capsys):
    path = bags.write(tmp_path / "bag", drive()[:8])
    plan = tmp_path / "plan.csv"
    if arguments[-1].startswith("PLAN:"):
        plan.write_text(arguments[-1].removeprefix("PLAN:"), encoding="utf-8")
        arguments = ["--plan", plan]
        words = words if words != "columns x" else "plan.csv"
    output = tmp_path / "out"
    assert command(path, "--params", params, "--eager", "--output", output, *arguments) == 2
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_whatever_a_robot_raises_is_no_difference(params, tmp_path, capsys, monkeypatch):
    path = bags.write(tmp_path / "bag", drive()[:8])

    def broken(*_, **__):
        raise ZeroDivisionError("of a robot")

    monkeypatch.setattr("mpc_banded.control.loop.ControlLoop.on_message", broken)
    assert command(path, "--params", params, "--eager", "--output", tmp_path / "out") == 2
    assert "ZeroDivisionError: of a robot" in capsys.readouterr().err


def test_errors_stand_by_name_and_angles_modulo_a_turn():
    state = {"x": 3.0, "y": 4.0, "yaw": 3.1, "v": 1.0}
    reference = {"x": 0.0, "y": 0.0, "yaw": -3.1, "v": 0.5}
    errors = tracking_errors(state, reference, ("yaw",))
    assert errors == pytest.approx({"position": 5.0, "yaw": 2.0 * math.pi - 6.2, "v": 0.5})
    assert tracking_errors({"q": 1.0}, {"q": 1.5}, ()) == {"q": 0.5}
    turned = differences({"q@0.1": 6.3, "r": 6.3}, {"q@0.1": 0.0, "r": 0.0}, ("q",))
    assert turned == pytest.approx({"q@0.1": 6.3 - 2.0 * math.pi, "r": 6.3})


@pytest.mark.parametrize("window_s", [0.5, 1.0])
def test_errors_over_a_window_do_not_depend_on_horizon_or_grid(window_s):
    found = []
    for count, dt in itertools.product((20, 40), (0.05, 0.1)):
        times = dt * np.arange(count + 1)
        plan, reference = {"yaw": 0.3 * times + 2.0 * math.pi}, {"yaw": np.zeros(count + 1)}
        found.append(plan_errors(plan, reference, ("yaw",), dt, window_s)["yaw"])
    assert found == pytest.approx([found[0]] * 4)
    assert found[0] == pytest.approx(0.3 * window_s / math.sqrt(3.0), rel=0.02)


def test_a_sweep_ranks_horizons_by_one_measure(params, tmp_path):
    path = bags.write(tmp_path / "bag", drive())
    rows = sweep(Request(path, params, compiled=False), {"horizon": [4, 20]}, jobs=1)
    assert rows[1]["plan_error.position"] <= 1.05 * rows[0]["plan_error.position"]
    scores = [row["score"] for row in best_first(rows)]
    assert scores == sorted(scores)
    assert max(scores) <= 1.0 + 1e-12
    assert "[ms]" in heading("solve_ms_mean").plain
    assert heading("plan_error.yaw").plain == "error of the plan: yaw"
