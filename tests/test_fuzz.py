# SPDX-License-Identifier: Apache-2.0
"""Structured nonsense for everything that reads: it is taken or refused, in one short line.

Here a few examples of each; ``make fuzz`` tries thousands, others each time.
"""

import contextlib
import io
import tempfile
from dataclasses import is_dataclass
from pathlib import Path

import bags
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_messages import fields, ns, odometry, plan, pose
from soak import cloud, spoiled

from mpc_banded import cli
from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.parameter_file import ParameterFileError, read
from mpc_banded.offline.bag import Bag
from mpc_banded.offline.storage import BagError
from mpc_banded.robots.robot import BUILT_IN

FEW = settings(max_examples=settings().max_examples if settings().max_examples > 100 else 25)
CONFIG = Path(__file__).resolve().parents[1] / "config" / "unicycle.yaml"


class Drawn:
    """What `spoiled` draws its numbers from."""

    def __init__(self, data):
        self.data = data

    def integers(self, count):
        return self.data.draw(st.integers(0, count - 1))


def as_fields(value):
    """A message of rosbags as plain fields."""
    if is_dataclass(value):
        return fields(**{n: as_fields(x) for n, x in vars(value).items() if n != "__msgtype__"})
    if isinstance(value, np.ndarray):
        return bytes(value) if value.dtype == np.uint8 else value.tolist()
    return [as_fields(x) for x in value] if isinstance(value, list) else value


def whole(topic, kind):
    """A valid message for a topic."""
    point = fields(positions=[0.1], velocities=[], time_from_start=fields(sec=1, nanosec=0))
    known = {
        "odom": odometry(1.0),
        "plan": plan((0.0, 0.0), (1.0, 0.5), (2.0, 0.0), frame="odom"),
        "goal_pose": pose(1.0, 1.0, frame="odom"),
        "obstacles": cloud([[5.0, 0.0, 0.3, 0.1, 0.0], [9.0, 1.0, 0.1, 0.0, 0.0]], 1.0),
    }
    if topic in known:
        return known[topic]
    try:
        message = as_fields(bags.make(kind))
    except KeyError:  # a type of Nav2
        return None
    names = ["pole", "joint1"]
    for name, value in {"name": names, "joint_names": names, "points": [point]}.items():
        if hasattr(message, name):
            setattr(message, name, value)
    for name, value in {"ranges": [1.0, 2.0], "position": [0.0, 0.0], "data": [0, 100]}.items():
        if isinstance(getattr(message, name, None), list):
            setattr(message, name, value)
    return message


LOOPS = {name: ControlLoop(Config({"robot": name, "horizon": 3})) for name in BUILT_IN}
WHOLE = [
    (name, topic, message)
    for name, loop in LOOPS.items()
    for topic, kind in loop.input_topics.items()
    if (message := whole(topic, kind)) is not None
]


@FEW
@given(st.data())
def test_any_message_is_taken_or_rejected_in_one_short_line(data):
    name, topic, message = data.draw(st.sampled_from(WHOLE))
    for _ in range(data.draw(st.integers(1, 4))):
        message = spoiled(message, Drawn(data))
    loop = LOOPS[name]
    why = loop.on_message(topic, message, ns(1.0))
    assert why is None or (0 < len(why) < 1000 and why.isprintable())
    tick = loop.tick(ns(1.0), iterations=1)
    assert "the cycle failed" not in tick.reason
    assert np.isfinite(list(tick.command.values())).all()


@FEW
@given(st.data())
def test_any_parameter_file_is_read_or_refused(data):
    lines = CONFIG.read_text(encoding="utf-8").splitlines()
    odd = st.sampled_from(
        ["", "- x", "&a *a", "!!python/object:os.system {}", "x: [1, 2", "a: {b: c}", "\t", "? x"]
    )
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(lines) - 1))
        key = lines[at].partition(":")[0]
        change = data.draw(st.integers(0, 3))
        lines[at] = [
            data.draw(odd),
            lines[at] + data.draw(st.text(max_size=5)),
            f"{key}: {data.draw(st.one_of(st.floats(), st.integers(), st.text(max_size=9)))}",
            lines[data.draw(st.integers(0, len(lines) - 1))],
        ][change]
    check_file("\n".join(lines).encode("utf-8", "surrogatepass"))


@FEW
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_parameters(content):
    check_file(content)


def check_file(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.yaml"
        path.write_bytes(content)
        with contextlib.suppress(ParameterFileError):
            read(path)
        with contextlib.suppress(ConfigError):
            Config.load(path)


@pytest.fixture(scope="module", params=["mcap", "sqlite3"])
def bag(request, tmp_path_factory):
    """The bytes of a small bag, and how its file is named."""
    folder = tmp_path_factory.mktemp("bag") / "whole"
    messages = [("/odom", k, bags.odometry(k, 0.1 * k, 0.0)) for k in range(20)]
    (file,) = [
        f for f in bags.write(folder, messages, request.param).iterdir() if f.stem != "metadata"
    ]
    return file.name, file.read_bytes()


@FEW
@given(data=st.data())
def test_any_bag_is_read_or_refused_in_one_line(bag, data):
    name, content = bag
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            content[at : at + data.draw(st.integers(0, 400))] = data.draw(st.binary(max_size=20))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        said = ""
        try:
            with Bag(path) as opened:
                for _ in opened.messages(tuple(opened.topics)):
                    pass
        except BagError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 5000
        assert [p.name for p in Path(folder).iterdir()] == [name]


WORDS = st.one_of(
    st.sampled_from(
        [
            *("check", "compile", "demo", "replay", "identify", "--params", "--robot", "--set"),
            *("--sweep", "--tolerance", "--transform", "--remap", "--window", "--jobs", "-h"),
            *("nothing.yaml", "x:=1", "v=nan", "a=", "=b", "1e400", "-1", "--", "--version"),
        ]
    ),
    st.text(max_size=6),
)


@FEW
@given(st.lists(WORDS, max_size=6))
def test_any_command_line_is_understood_or_refused_with_status_2(words):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            cli._parser().parse_args(words)
            code = 0
        except SystemExit as end:
            code = end.code
    assert code in (0, cli.REFUSED)
