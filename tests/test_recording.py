# SPDX-License-Identifier: Apache-2.0
"""Recordings survive a killed process and a full disk, and every reader can read them."""

import resource
import signal
import subprocess
import sys

import bags
import pytest
import yaml
from mcap.reader import make_reader
from rosbags.rosbag2 import Reader

from mpc_banded.offline.bag import Bag
from mpc_banded.offline.recording import Recording, RecordingError

ODOMETRY = "nav_msgs/msg/Odometry"
PERIOD_NS = 50_000_000


def odometry(k):
    return bytes(bags.TYPES.serialize_cdr(bags.odometry(k * PERIOD_NS, 0.01 * k, 0.0), ODOMETRY))


def record(folder, last, **options):
    with Recording(folder, **options) as recording:
        for k in range(last):
            recording.write("/odom", ODOMETRY, k * PERIOD_NS, odometry(k))
            recording.number("/level", k * PERIOD_NS, float(k))


def read(folder):
    with Bag(folder) as bag:
        found = list(bag.messages(["/odom", "/level"]))
        return [time for topic, time, _ in found if topic == "/odom"], bag.remarks


def killed(folder, last):
    """Record in another process and kill it before it closes anything."""
    code = (
        "import os, signal, sys; from pathlib import Path; import test_recording as t\n"
        "recording = t.Recording(Path(sys.argv[1])); recording.__enter__()\n"
        "for k in range(int(sys.argv[2])):\n"
        "    recording.write('/odom', t.ODOMETRY, k * t.PERIOD_NS, t.odometry(k))\n"
        "    recording.number('/level', k * t.PERIOD_NS, float(k))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = [sys.executable, "-c", code, str(folder), str(last)]
    path = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run(arguments, env=path, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("seconds", [3, 40])
def test_a_process_that_is_killed_loses_two_seconds_at_most(seconds, tmp_path):
    folder = tmp_path / "drive"
    killed(folder, seconds * 20)
    times, remarks = read(folder)
    assert times == [k * PERIOD_NS for k in range(len(times))]
    assert times[-1] >= (seconds - 2) * bags.SECOND
    assert any("cut off" in remark for remark in remarks)


def test_a_flush_writes_what_waits(tmp_path):
    with Recording(tmp_path / "drive") as recording:
        for k in range(3):
            recording.write("/odom", ODOMETRY, k, odometry(k))
        recording.flush()
        with Bag(tmp_path / "drive") as bag:
            assert bag.topics["/odom"].count == 3


@pytest.fixture
def small_disk():
    """No file may grow beyond 300 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_ends_the_recording_in_a_sentence(tmp_path):
    folder = tmp_path / "drive"
    with pytest.raises(RecordingError, match="has ended: File too large; what was written"):
        record(folder, 1000)
    times, _ = read(folder)
    assert times == [k * PERIOD_NS for k in range(len(times))]
    size = (folder / "drive.mcap").stat().st_size
    each = size / len(times)
    assert len(times) > 0.85 * 300_000 / each  # all but the last second


@pytest.mark.parametrize("flush_s", [1.0, float("inf")])
def test_other_readers_agree(flush_s, tmp_path):
    folder = tmp_path / "drive"
    record(folder, 2000, flush_s=flush_s)
    expected = [k * PERIOD_NS for k in range(2000)]
    times, remarks = read(folder)
    assert (times, remarks) == (expected, [])
    with Reader(folder) as reader:
        assert reader.message_count == 4000
        odom = [c for c in reader.connections if c.topic == "/odom"]
        assert [time for _, time, _ in reader.messages(odom)] == expected
    with (folder / "drive.mcap").open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        messages = list(reader.iter_messages(["/odom"]))
        assert [message.log_time for _, _, message in messages] == expected
        assert [message.sequence for _, _, message in messages] == list(range(2000))
        assert reader.get_summary().statistics.message_count == 4000
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))
    information = metadata["rosbag2_bagfile_information"]
    assert information["message_count"] == 4000
    assert information["duration"]["nanoseconds"] == expected[-1]
    assert "&" not in (folder / "metadata.yaml").read_text(encoding="utf-8")


def test_a_type_without_definition_is_recorded_as_it_came(tmp_path):
    with Recording(tmp_path / "drive") as recording:
        recording.write("/own", "own_msgs/msg/Own", 5, b"\0\1\0\0\7")
        recording.number("/level", 6, 1.0)
    with Bag(tmp_path / "drive") as bag:
        assert bag.topics["/own"].count == 1
        assert len(list(bag.messages(["/level"]))) == 1
