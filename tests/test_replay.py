# SPDX-License-Identifier: Apache-2.0
"""A replay steps the loop as the node would have, bit for bit, or is refused in a sentence."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import bags
import numpy as np
import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from mpc_banded.cli import main
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.record import Cycle, Journal
from mpc_banded.offline.bag import Bag, BagError
from mpc_banded.offline.replay import Replay
from mpc_banded.offline.results import ResultError, Results, whole_folder
from mpc_banded.offline.timeline import Timeline

SHORT = {"robot": "unicycle", "horizon": 10, "dt": 0.1}
#: What a result has of a bag and parameters alone.
REPEATABLE = ("bag/bag.mcap", "bag/metadata.yaml", "cycles.csv", "summary.json")


@pytest.fixture
def drive(tmp_path):
    return bags.write(tmp_path / "drive", bags.drive(3.0))


@pytest.fixture
def params(tmp_path):
    file = tmp_path / "params.yaml"
    text = "\n".join(f"    {key}: {value}" for key, value in SHORT.items())
    file.write_text(f"/**:\n  ros__parameters:\n{text}\n", encoding="utf-8")
    return file


def cycles(path, config=None, **options):
    with Bag(path) as bag:
        replay = Replay(bag, config or Config(SHORT), compiled=False, **options)
        return list(replay.cycles()), replay


def command(*arguments):
    return main(["replay", *map(str, arguments)])


@pytest.mark.slow
def test_ticks_come_at_the_rate_and_know_what_was_recorded_before_them(drive):
    found, _ = cycles(drive)
    times = [r.tick.now_ns for r in found]
    assert set(np.diff(times)) == {50_000_000}
    with Bag(drive) as bag:
        events = [(t, time, m) for t, time, m in bag.messages(["/odom", "/plan"])]
    assert times[0] == events[0][1]
    # The twin: hand over and tick by hand.
    loop = ControlLoop(Config(SHORT))
    for r in found:
        while events and events[0][1] <= r.tick.now_ns:
            topic, time_ns, message = events.pop(0)
            assert loop.on_message(topic[1:], message, time_ns) is None
        twin = loop.tick(r.tick.now_ns, deadline_s=math.inf)
        assert (twin.command, twin.reason) == (r.tick.command, r.tick.reason)
    assert not events


def test_a_rate_that_is_no_whole_number_of_nanoseconds_does_not_drift(tmp_path):
    path = bags.write(tmp_path / "bag", bags.drive(3.0))
    found, _ = cycles(path, Config({**SHORT, "controller_frequency": 30.0}))
    first = found[0].tick.now_ns
    assert [r.tick.now_ns - first for r in found] == [
        round(k * 1e9 / 30.0) for k in range(len(found))
    ]


def test_a_state_that_stops_is_answered_as_the_node_does(tmp_path):
    messages = [m for m in bags.drive(4.0) if m[0] != "/odom" or not 1e9 < m[1] % 10**11 < 3e9]
    found, _ = cycles(bags.write(tmp_path / "bag", messages))
    codes = [r.tick.code.name for r in found]
    for name in ("DRIVING", "FOLLOWING", "SLOWING"):
        assert name in codes
    assert codes[-1] == "DRIVING"
    assert all(math.isfinite(x) for r in found for x in r.tick.command.values())


def test_the_recorded_command_and_the_reference_stand_beside(drive):
    found, _ = cycles(drive)
    assert found[-1].recorded["v"] == 0.5
    assert found[-1].reference["y"] == pytest.approx(0.1)
    assert found[-1].plan_errors["position"] < 0.2


@pytest.mark.slow
def test_same_bits_twice_and_in_another_process(drive, params, tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    assert command(drive, "--params", params, "--output", first) == 0
    assert command(drive, "--params", params, "--output", again) == 0
    arguments = ["replay", str(drive), "--params", str(params), "--output", str(other)]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-m", "mpc_banded", *arguments], check=True, env=environment)
    for name in REPEATABLE:
        expected = (first / name).read_bytes()
        assert (again / name).read_bytes() == expected, name
        assert (other / name).read_bytes() == expected, name


def live(config, disturb=True, seconds=4.0):
    """What a node on a busy machine would record: late, lossy, interrupted, reconfigured."""
    random = np.random.default_rng(4)
    loop, journal = ControlLoop(config), Journal()
    journal.changed(config.values)
    messages, commands = [], []
    events = [m for m in bags.drive(seconds, rate=100) if m[0] != "/cmd_vel"]
    next_ns = events[0][1]
    for number, (topic, time_ns, message) in enumerate(events):
        while next_ns < time_ns:
            latency_s = float(random.uniform(0.0, 0.02))
            if disturb and len(commands) == 20:
                changed = {"weights.effort": 1.0, "horizon": 14}
                loop.adopt(loop.config.changed(changed))
                journal.changed(changed)
            if disturb and len(commands) == 40:
                loop.reset()
                journal.reset()
            loop.enabled = not disturb or not 50 < len(commands) < 55
            limit = int(random.integers(1, 3)) if disturb and len(commands) > 10 else None
            deadline_s = math.inf if limit is None else 0.0
            tick = loop.tick(next_ns, deadline_s=deadline_s, latency_s=latency_s)
            record = journal.cycle(tick, deadline=True, enabled=loop.enabled)
            messages.append(("/mpc_node/cycle", next_ns + 1_000_000, record_message(record)))
            commands.append(tick.command)
            next_ns += 50_000_000 + int(random.integers(0, 9_000_000))
        recorded_ns = time_ns + int(random.integers(0, 4_000_000))
        messages.append((topic, recorded_ns, message))
        if topic == "/plan" or not disturb or number % 7:  # some never reach the node
            received_ns = time_ns + int(random.integers(0, 400_000))
            loop.on_message(topic[1:], message, received_ns)
            journal.received(topic[1:], message, received_ns)
    return sorted(messages, key=lambda m: m[1]), commands


def record_message(record):
    pairs = [
        bags.make("diagnostic_msgs/msg/KeyValue", key=key, value=text)
        for key, text in record.values().items()
    ]
    status = bags.make("diagnostic_msgs/msg/DiagnosticStatus", values=pairs)
    return bags.make(
        "diagnostic_msgs/msg/DiagnosticArray", header=bags.header(record.now_ns), status=[status]
    )


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [False, True])
def test_what_a_node_recorded_is_repeated_bit_for_bit(disturb, tmp_path):
    messages, commands = live(Config(SHORT), disturb)
    path = bags.write(tmp_path / "bag", messages)
    with Bag(path) as bag:
        replay = Replay(bag)  # the parameters are on record
        found = list(replay.cycles())
    assert replay.exact
    assert replay.remarks.notes == []
    assert replay.remarks.missing == 0
    assert [r.tick.command for r in found] == commands
    if disturb:
        assert replay.loop.config.parameters.horizon == 14
        assert "DISABLED" in {r.tick.code.name for r in found}
        assert any(r.original.iterations is not None for r in found)


@pytest.mark.slow
def test_what_the_bag_lacks_of_the_record_is_named(tmp_path):
    messages, _ = live(Config(SHORT), disturb=False)
    odometry = [k for k, m in enumerate(messages) if m[0] == "/odom"]
    records = [k for k, m in enumerate(messages) if m[0] == "/mpc_node/cycle"]
    gone = {odometry[100], odometry[101], records[30]}
    path = bags.write(tmp_path / "bag", [m for k, m in enumerate(messages) if k not in gone])
    with Bag(path) as bag:
        replay = Replay(bag)
        list(replay.cycles())
    assert replay.remarks.missing == 2
    text = " ".join(replay.remarks.notes)
    assert "lacks a message of odom" in text
    assert "cycles 30 to 30 are not on record" in text


def test_a_record_that_begins_late_is_reported_and_needs_parameters(tmp_path, params):
    messages, _ = live(Config(SHORT), disturb=False)
    begin = [k for k, m in enumerate(messages) if m[0] == "/mpc_node/cycle"][5]
    path = bags.write(tmp_path / "bag", messages[begin:])
    with Bag(path) as bag, pytest.raises(BagError, match="--params"):
        Replay(bag)
    found, replay = cycles(path, Config.load(params))
    assert "begins with cycle 5" in " ".join(replay.remarks.notes)
    assert len(found) > 40


@pytest.mark.slow
def test_a_what_if_on_a_record_keeps_its_ticks(tmp_path):
    messages, commands = live(Config(SHORT), disturb=False)
    path = bags.write(tmp_path / "bag", messages)
    with Bag(path) as bag:
        replay = Replay(bag, overrides={"weights.effort": 3.0})
        found = list(replay.cycles())
    assert [r.tick.now_ns for r in found] == [r.original.now_ns for r in found]
    assert [r.tick.command for r in found] != commands
    assert "differ from those on record" in replay.remarks.notes[0]


@pytest.mark.slow
def test_the_result_opens_beside_the_original(drive, params, tmp_path):
    output = tmp_path / "result"
    assert command(drive, "--params", params, "--output", output, "--eager") == 0
    with Bag(output / "bag") as bag:
        kinds = {name: topic.type for name, topic in bag.topics.items()}
        assert kinds["/replay/cmd_vel"] == "geometry_msgs/msg/TwistStamped"
        assert kinds["/replay/mpc_node/optimal_path"] == "nav_msgs/msg/Path"
        assert kinds["/replay/mpc_node/telemetry/iterations"] == "std_msgs/msg/Float64"
        messages = list(bag.messages(["/replay/cmd_vel", "/replay/mpc_node/cycle"]))
        paths = [m for _, _, m in bag.messages(["/replay/mpc_node/optimal_path"])]
    with (output / "cycles.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    sent = [(t, m.twist.linear.x) for name, t, m in messages if name == "/replay/cmd_vel"]
    assert sent == [(int(row["time_ns"]), float(row["command.v"])) for row in rows]
    records = [m.status[0].values for name, _, m in messages if name.endswith("cycle")]
    records = [Cycle.parse({pair.key: pair.value for pair in pairs}) for pairs in records]
    assert [record.number for record in records] == list(range(len(rows)))
    assert paths[0].header.frame_id == "odom"
    assert len(paths[0].poses) == SHORT["horizon"] + 1
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert summary["cycles"] == len(rows) == sum(summary["codes"].values())
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page  # nothing is loaded from elsewhere


@pytest.mark.slow
def test_a_result_is_a_recording_that_repeats_itself(drive, params, tmp_path):
    """The record that a replay writes has all that the node's own has."""
    output = tmp_path / "result"
    command(drive, "--params", params, "--output", output, "--eager")
    with Bag(drive) as bag:
        messages = list(bag.messages(["/odom", "/plan"]))
    with Bag(output / "bag") as bag:
        messages += list(bag.messages(["/replay/mpc_node/cycle"]))
    both = bags.write(tmp_path / "both", sorted(messages, key=lambda m: m[1]))
    with Bag(both) as bag:
        replay = Replay(bag, topics={"cycle": "/replay/mpc_node/cycle"}, compiled=False)
        results = Results(replay, None)
        for replayed in replay.cycles():
            results.add(replayed)
    assert results.exact_difference == 0.0
    assert replay.remarks.notes == []


@pytest.mark.slow
def test_a_path_can_be_given(tmp_path):
    messages = [m for m in bags.drive() if m[0] == "/odom"]
    path = bags.write(tmp_path / "bag", messages)
    found, replay = cycles(path)
    assert {r.tick.code.name for r in found} == {"NO_REFERENCE"}
    assert "--plan" in replay.remarks.notes[0]
    found, _ = cycles(path, plan="driven")
    assert found[-1].tick.driving
    assert abs(found[-1].reference["y"]) < 1e-9
    (tmp_path / "way.csv").write_text("x,y\n0,0.3\n9,0.3\n", encoding="utf-8")
    found, _ = cycles(path, plan=str(tmp_path / "way.csv"))
    assert found[-1].reference["y"] == pytest.approx(0.3)


@pytest.mark.slow
def test_topics_are_remapped_and_found_in_namespaces(tmp_path):
    renamed = [("/robot" + t if t != "/odom" else "/pose", n, m) for t, n, m in bags.drive()]
    path = bags.write(tmp_path / "bag", renamed)
    found, replay = cycles(path, topics={"odom": "/pose"})
    assert replay.names == {"odom": "/pose", "plan": "/robot/plan", "cmd_vel": "/robot/cmd_vel"}
    assert found[-1].tick.driving


#: Name of a case -> what the bag holds, further arguments, and words of the sentence.
BAD = {
    "nothing at all": ([], [], ["no topics"]),
    "no state": ([m for m in bags.drive(1.0) if m[0] != "/odom"], [], ["/odom", "record"]),
    "another name": (
        [("/pose" if m[0] == "/odom" else m[0], *m[1:]) for m in bags.drive(1.0)],
        [],
        ["--topic odom:=/pose"],
    ),
    "another type": (
        [("/odom", 1, bags.number(1.0))],
        [],
        ["/odom (std_msgs/msg/Float64)", "nav_msgs/msg/Odometry", "record the topic"],
    ),
    "remapped to nowhere": (list(bags.drive(1.0)), ["--topic", "odom:=/x"], ["/x", "/odom"]),
    "remapped to another type": (
        list(bags.drive(1.0)),
        ["--topic", "odom:=/plan"],
        ["nav_msgs/msg/Path"],
    ),
    "unknown topic": (list(bags.drive(1.0)), ["--topic", "wheel:=/odom"], ["wheel", "odom"]),
    "unknown parameter": (list(bags.drive(1.0)), ["--set", "horizn=4"], ["horizn", "horizon"]),
    "value not allowed": (list(bags.drive(1.0)), ["--set", "horizon=-4"], ["horizon", "-4"]),
    "no path in the file": (list(bags.drive(1.0)), ["--plan", "none.csv"], ["none.csv", "CSV"]),
    "no reference to compare": (
        list(bags.drive(1.0)),
        ["--compare", "nowhere"],
        ["nowhere", "--update"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_replay_that_is_impossible_is_refused_in_one_sentence(case, params, tmp_path, capsys):
    messages, arguments, words = BAD[case]
    path = bags.write(tmp_path / "bag", messages)
    output = tmp_path / "out" / "result"
    assert command(path, "--params", params, "--output", output, *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    for word in words:
        assert word in said
    left = list(output.parent.iterdir()) if output.parent.exists() else []
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_damaged_message_in_the_middle_is_counted(storage, params, tmp_path, capsys):
    messages = list(bags.drive(2.0))
    path = bags.write(tmp_path / "bag", messages, storage)
    file = next(f for f in path.iterdir() if f.name != "metadata.yaml")
    data = file.read_bytes()
    whole = bytes(bags.TYPES.serialize_cdr(messages[40][2], messages[40][2].__msgtype__))
    assert data.count(whole) == 1
    file.write_bytes(data.replace(whole, b"\xff" * len(whole)))
    output = tmp_path / "out" / "result"
    assert command(path, "--params", params, "--output", output, "--eager") == 0
    assert "rejected 1" in capsys.readouterr().err
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    ((reason, count),) = summary["rejected"].items()
    assert (messages[40][0] in reason, count) == (True, 1)


@pytest.mark.slow
def test_a_bag_cut_off_is_replayed_as_far_as_it_goes(params, tmp_path):
    path = bags.write(tmp_path / "bag", bags.drive(60.0))
    file = path / "bag.mcap"
    file.write_bytes(file.read_bytes()[: int(0.9 * file.stat().st_size)])
    output = tmp_path / "result"
    assert command(path, "--params", params, "--output", output) == 0
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert "cut off" in summary["remarks"][0]
    assert summary["cycles"] > 100


def test_a_folder_with_something_else_in_it_is_left_alone(drive, params, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years", encoding="utf-8")
    assert command(drive, "--params", params, "--output", precious) == 2
    assert "--output" in capsys.readouterr().err
    assert [f.name for f in precious.iterdir()] == ["thesis.tex"]


def test_an_earlier_result_stays_until_the_next_one_is_whole(tmp_path):
    target = tmp_path / "result"
    with whole_folder(target) as folder:
        (folder / "summary.json").write_text("first", encoding="utf-8")

    def interrupted():
        with whole_folder(target) as folder:
            (folder / "summary.json").write_text("second", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (target / "summary.json").read_text(encoding="utf-8") == "first"
    with whole_folder(target) as folder:
        (folder / "summary.json").write_text("third", encoding="utf-8")
    assert (target / "summary.json").read_text(encoding="utf-8") == "third"
    assert [f.name for f in tmp_path.iterdir()] == ["result"]
    with pytest.raises(ResultError), whole_folder(tmp_path):
        pass


@pytest.mark.slow
def test_messages_that_are_not_needed_cost_no_memory(params, tmp_path):
    """Peak memory of a replay does not grow with the length of the bag."""

    def messages(seconds, others):
        chatter = bags.number(1.0)
        for k, (topic, time_ns, message) in enumerate(bags.drive(seconds, rate=20)):
            yield topic, time_ns, message
            for j in range(others):
                yield "/chatter", time_ns + 10 + j + k % 2, chatter

    code = (
        "import resource, sys\nfrom mpc_banded.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for name, seconds, others in (("short", 10.0, 1), ("long", 80.0, 100)):
        path = bags.write(tmp_path / name, messages(seconds, others))
        with Bag(path) as bag:
            assert bag.topics["/chatter"].count > (150_000 if name == "long" else 0)
        arguments = ["replay", str(path), "--params", str(params)]
        arguments += ["--set", "horizon=5", "--output", str(tmp_path / f"{name}_result")]
        run = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        status, peak = run.stdout.split()[-2:]
        assert status == "0"
        peaks.append(int(peak) / 1024)
    assert peaks[1] - peaks[0] < 20.0  # MiB


def test_a_timeline_keeps_peaks_and_sums_in_bounded_memory():
    random = np.random.default_rng(1)
    values = random.standard_normal(10_000)
    values[1234] = 50.0
    timeline = Timeline(100)
    for k, value in enumerate(values):
        timeline.add(0.1 * k, float(value))
    rows = timeline.rows
    assert len(rows) <= 100
    assert rows[:, 2].max() == 50.0
    assert rows[:, 1].min() == values.min()
    assert rows[-1, 3] == values[-1]
    assert (np.diff(rows[:, 0]) > 0).all()
    assert timeline.rms == pytest.approx(np.sqrt((values**2).mean()))
    assert timeline.mean == pytest.approx(values.mean())


def test_types_of_the_bag_are_known_to_the_result(tmp_path):
    types = get_typestore(Stores.ROS2_KILTED)
    types.register(get_types_from_msg("float64 angle", "own_msgs/msg/Steer"))
    with Bag(
        bags.write(
            tmp_path / "bag",
            [("/steer", 1, types.types["own_msgs/msg/Steer"](angle=1.0))],
            types=types,
        )
    ) as bag:
        assert "own_msgs/msg/Steer" in bag.types["own_msgs/msg/Steer"].types


def test_help_names_every_option():
    run = subprocess.run(
        [sys.executable, "-m", "mpc_banded", "replay", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    for option in ("--params", "--set", "--topic", "--compare", "--update", "--sweep"):
        assert option in run.stdout
