# SPDX-License-Identifier: Apache-2.0
"""Every kind of recording is read alike, and what cannot be read is told in one sentence."""

import shutil
import sqlite3

import bags
import pytest
import yaml
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from mpc_banded.offline.bag import Bag, BagError, Topic

FLOAT64 = "std_msgs/msg/Float64"


def numbers(first=0, last=100, topic="/a"):
    return [(topic, 1000 + 10 * k, bags.number(k)) for k in range(first, last)]


def read(path, *topics, types=None):
    with Bag(path, types) as bag:
        return [(t, time, m.data) for t, time, m in bag.messages(topics or ("/a",))]


def told(path, *topics):
    """The one sentence that a bag is refused with."""
    with pytest.raises(BagError) as caught:
        read(path, *topics)
    text = str(caught.value)
    assert "\n" not in text
    assert ";" in text or ":" in text  # what is wrong, and what to do
    return text


EXPECTED = [("/a", time, message.data) for _, time, message in numbers()]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compression", ["none", "file", "message"])
def test_storage_and_compression_make_no_difference(storage, compression, tmp_path):
    path = bags.write(tmp_path / "bag", numbers(), storage, compression)
    assert read(path) == EXPECTED
    with Bag(path) as bag:
        assert bag.topics == {"/a": Topic(FLOAT64, 100)}
        assert (bag.start_ns, bag.end_ns, bag.remarks) == (1000, 1991, [])
    (path / "metadata.yaml").unlink()
    assert read(path) == EXPECTED
    (file,) = path.iterdir()
    assert read(file) == EXPECTED


@pytest.mark.parametrize("compression", list(CompressionType))
@pytest.mark.parametrize("chunks", [True, False])
def test_mcap_of_any_writer_and_out_of_order(compression, chunks, tmp_path):
    file = tmp_path / "one.mcap"
    with file.open("wb") as stream:
        writer = McapWriter(stream, 500, compression, use_chunking=chunks)
        writer.start("ros2")
        schema = writer.register_schema(FLOAT64, "ros2msg", b"float64 data")
        channel = writer.register_channel("/a", "cdr", schema)
        for _, time, message in numbers()[::-1]:
            data = bytes(bags.TYPES.serialize_cdr(message, FLOAT64))
            writer.add_message(channel, time, data, time)
        writer.finish()
    assert read(file) == EXPECTED


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_split_files_are_merged_by_time(storage, named, tmp_path):
    whole = tmp_path / "bag"
    whole.mkdir()
    parts = []
    for part, first in enumerate(range(0, 100, 10)):
        folder = bags.write(tmp_path / f"bag_{part}", numbers(first, first + 10), storage)
        (file,) = (f for f in folder.iterdir() if f.name != "metadata.yaml")
        parts.append(file.name)
        shutil.copy(file, whole / file.name)
    if named:
        description = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))
        description["rosbag2_bagfile_information"]["relative_file_paths"] = parts
        (whole / "metadata.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    assert read(whole) == EXPECTED


def test_topics_come_in_the_order_of_time_and_only_those_asked_for(tmp_path):
    mixed = sorted(numbers() + numbers(topic="/b") + numbers(topic="/c"), key=lambda m: m[1])
    path = bags.write(tmp_path / "bag", mixed)
    assert [(t, time) for t, time, _ in read(path, "/a", "/c")] == [
        (t, time) for t, time, _ in mixed if t != "/b"
    ]


def test_topics_not_asked_for_are_not_unpacked(tmp_path, monkeypatch):
    path = bags.write(tmp_path / "bag", numbers() + numbers(topic="/b"))
    seen = []
    take = Bag._message
    monkeypatch.setattr(Bag, "_message", lambda *a: seen.append(a[1].topic) or take(*a))
    read(path)
    assert set(seen) == {"/a"}


def cut(file, share):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def storage_file(path):
    return next(f for f in path.iterdir() if f.name != "metadata.yaml")


@pytest.mark.parametrize("compression", ["none", "file", "message"])
@pytest.mark.parametrize("share", [0.5, 0.999])
def test_an_mcap_cut_off_is_read_as_far_as_it_goes(compression, share, tmp_path):
    many = [(t, 10 * k, m) for k, (t, _, m) in enumerate(numbers(0, 80_000))]
    path = bags.write(tmp_path / "bag", many, "mcap", compression)
    cut(storage_file(path), share)
    with Bag(path) as bag:
        values = [m.data for _, _, m in bag.messages(["/a"])]
        assert "cut off" in " ".join(bag.remarks)
        assert str(len(values)) in " ".join(bag.remarks)
    assert values == list(range(len(values)))
    assert len(values) > 10_000


def test_a_database_cut_off_is_read_as_far_as_its_tables_go(tmp_path):
    path = bags.write(tmp_path / "bag", numbers(0, 2000), "sqlite3")
    cut(storage_file(path), 0.9)
    with Bag(path) as bag:
        values = [m.data for _, _, m in bag.messages(["/a"])]
    assert values == list(range(len(values)))
    assert len(values) > 500


def test_a_bag_whose_recorder_died_before_its_metadata(tmp_path):
    path = bags.write(tmp_path / "bag", numbers(0, 80_000))
    (path / "metadata.yaml").unlink()
    cut(next(path.iterdir()), 0.9)
    with Bag(path) as bag:
        assert bag.topics["/a"].count > 10_000
        assert len(bag.remarks) == 2


def test_what_sqlite_left_in_its_journal_is_not_lost(tmp_path):
    path = bags.write(tmp_path / "bag", numbers(0, 50), "sqlite3")
    live = sqlite3.connect(path / "bag.db3")
    live.execute("PRAGMA journal_mode=WAL")
    data = bytes(bags.TYPES.serialize_cdr(bags.number(50), FLOAT64))
    live.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (1, 1500, ?)", [data])
    live.commit()
    died = shutil.copytree(path, tmp_path / "died")
    live.close()
    before = {file.name: file.read_bytes() for file in died.iterdir()}
    assert read(died) == EXPECTED[:51]
    assert {file.name: file.read_bytes() for file in died.iterdir()} == before


def test_types_embedded_in_the_bag_and_types_given(tmp_path):
    types = get_typestore(Stores.ROS2_KILTED)
    types.register(get_types_from_msg("float64 data\nstring unit", "own_msgs/msg/Level"))
    level = types.types["own_msgs/msg/Level"]
    messages = [("/level", 10 + k, level(data=float(k), unit="m")) for k in range(3)]
    path = bags.write(tmp_path / "bag", messages, "sqlite3", types=types)
    expected = [("/level", 10 + k, float(k)) for k in range(3)]
    assert read(path, "/level") == expected
    database = sqlite3.connect(path / "bag.db3")
    database.executescript("DELETE FROM message_definitions")
    database.close()
    assert read(path, "/level", types=types) == expected
    assert "own_msgs/msg/Level" in told(path, "/level")


def test_padding_behind_an_empty_array_is_ignored(tmp_path):
    folder = tmp_path / "bag"
    joints = bags.make("sensor_msgs/msg/JointState", name=["a"])
    bags.write(folder, [("/joint_states", 5, joints)], "sqlite3")
    database = sqlite3.connect(folder / "bag.db3")
    database.executescript("UPDATE messages SET data = CAST(data || x'00000000' AS BLOB)")
    database.close()
    with Bag(folder) as bag:
        ((_, _, message),) = bag.messages(["/joint_states"])
    assert message.name == ["a"]


def test_a_bag_that_is_not_there_or_no_bag(tmp_path):
    assert "does not exist" in told(tmp_path / "nowhere")
    assert "holds no bag" in told(tmp_path)
    (tmp_path / "notes.txt").write_text("no bag", encoding="utf-8")
    assert "is no bag" in told(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["x.mcap", "x.db3"])
def test_empty_files_and_noise(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    assert "is empty" in told(tmp_path / name)
    (tmp_path / name).write_bytes(bytes(range(256)) * 40)
    assert "cannot be read" in told(tmp_path / name)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_file_with_nothing_whole_in_it(storage, tmp_path):
    path = bags.write(tmp_path / "bag", numbers(), storage)
    (file,) = (f for f in path.iterdir() if f.name != "metadata.yaml")
    file.write_bytes(file.read_bytes()[:150])
    assert "no message in it" in told(path)


def test_a_missing_topic_is_named_with_those_that_are_there(tmp_path):
    path = bags.write(tmp_path / "bag", numbers())
    assert "/b" in told(path, "/b")
    assert "/a" in told(path, "/b")


def test_a_topic_is_found_as_given_at_the_root_or_where_only_one_ends_like_it(tmp_path):
    number, twist = "std_msgs/msg/Float64", "geometry_msgs/msg/Twist"
    names = ("/level", "/left/level", "/left/cmd_vel", "/left/wheel", "/right/wheel")
    messages = [(name, 1, bags.number(1.0)) for name in names if "cmd" not in name]
    messages.append(("/left/cmd_vel", 2, bags.command(2, 0.1, 0.0)))
    with Bag(bags.write(tmp_path / "bag", messages)) as bag:
        assert bag.find("level", number) == "/level"
        assert bag.find("level", number, "/left/level") == "/left/level"
        assert bag.find("cmd_vel", twist) == "/left/cmd_vel"  # stamped
        assert bag.find("wheel", number) is None
        assert bag.find("level", twist) is None
        with pytest.raises(BagError, match=r"no /wheel of type .*--topic wheel:=/left/wheel"):
            bag.need("wheel", number)
        with pytest.raises(BagError, match=r"/level carries .* and cmd_vel is"):
            bag.need("cmd_vel", twist, "/level")
        with pytest.raises(BagError, match="no topic /none; it has /left"):
            bag.find("level", number, "/none")


def test_a_message_of_another_type_than_it_says(tmp_path):
    path = bags.write(tmp_path / "bag", numbers(), "sqlite3")
    database = sqlite3.connect(path / "bag.db3")
    database.executescript("UPDATE messages SET data = x'00010000aa' WHERE id = 40")
    database.close()
    text = told(path)
    assert FLOAT64 in text
    assert "/a" in text


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [("compression_format", "brotli", "brotli"), ("storage_identifier", "tape", "tape")],
)
def test_unknown_compression_or_storage_is_named(key, value, word, tmp_path):
    path = bags.write(tmp_path / "bag", numbers(), "mcap", "file")
    file = path / "metadata.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["rosbag2_bagfile_information"][key] = value
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert word in told(path)


def test_unknown_compression_of_a_chunk_is_named(tmp_path):
    path = bags.write(tmp_path / "bag", numbers(), "mcap", "storage")
    file = path / "bag.mcap"
    file.write_bytes(file.read_bytes().replace(b"\x04\0\0\0zstd", b"\x04\0\0\0zzzz"))
    assert "zzzz" in told(path)


def test_metadata_that_names_a_missing_file_and_metadata_that_is_damaged(tmp_path):
    path = bags.write(tmp_path / "bag", numbers())
    cut(path / "metadata.yaml", 0.3)
    with Bag(path) as bag:
        assert "metadata.yaml cannot be read" in bag.remarks[0]
    path = bags.write(tmp_path / "other", numbers())
    (path / "other.mcap").rename(path / "renamed.mcap")
    assert "other.mcap" in told(path)


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    read(bags.write(tmp_path / "bag", numbers(), "mcap", "file"))
    assert not list((tmp_path / "tmp").iterdir())


def test_the_reader_of_rosbags_agrees(tmp_path):
    path = bags.write(tmp_path / "bag", numbers())
    with Reader(path) as reader:
        times = [time for _, time, _ in reader.messages()]
    assert [time for _, time, _ in read(path)] == times
