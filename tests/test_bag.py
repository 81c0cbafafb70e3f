# SPDX-License-Identifier: Apache-2.0
"""Every kind of recording is read alike; one that cannot be read is refused in one sentence."""

import contextlib
import shlex
import shutil
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import bags
import pytest
import yaml
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

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


@pytest.mark.slow
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


#: One message among good ones: what stands in its place, or a part of it and what replaces that.
SPOILED = {
    "cut short": b"\0\1\0\0" + bytes(90),
    "nothing": b"",
    "another type": b"\0\1\0\0\xff\xff\xff\x7f",
    "a zstd bomb": zstd.compress(bytes(1 << 22)),
    "not UTF-8": (b"odom", b"od\xe9m"),
    "a length beyond its end": (b"\x05\0\0\0odom", b"\xff\xff\xff\x7fodom"),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_one_bad_message_is_counted_and_the_others_are_read(storage, how, tmp_path):
    messages = [m for m in bags.drive(1.0) if m[0] == "/odom"]
    file = tmp_path / "one.mcap"
    rows = [(bytes(bags.TYPES.serialize_cdr(m, m.__msgtype__)), time) for _, time, m in messages]
    spoiled = SPOILED[how]
    rows[21] = (
        spoiled if isinstance(spoiled, bytes) else rows[21][0].replace(*spoiled),
        rows[21][1],
    )
    if storage == "mcap":
        write_mcap(file, [("/odom", "nav_msgs/msg/Odometry", time, data) for data, time in rows])
    else:
        folder = bags.write(tmp_path / "bag", messages, "sqlite3")
        file = folder / "bag.db3"
        with sqlite3.connect(file) as database:
            database.execute("UPDATE messages SET data = ? WHERE id = 22", [rows[21][0]])
        database.close()
    bad = []
    with Bag(file) as bag:
        found = [time for _, time, _ in bag.messages(["/odom"], lambda *what: bad.append(what))]
    assert found == [time for k, (_, time) in enumerate(rows) if k != 21]
    ((topic, reason),) = bad
    assert topic == "/odom"
    assert "no nav_msgs/msg/Odometry" in reason


def write_mcap(file, rows, schemas=None, finish=True, **options):
    """Write (topic, type, time, data) with given (encoding, text) of types, else the real ones."""
    channels = {}
    with file.open("wb") as stream:
        writer = McapWriter(stream, **options)
        writer.start("ros2")
        for topic, kind, time, data in rows:
            if (topic, kind) not in channels:
                encoding, text = (schemas or {}).get(kind) or (
                    "ros2msg",
                    bags.TYPES.generate_msgdef(kind)[0],
                )
                number = writer.register_schema(kind, encoding, text.encode())
                form = "json" if encoding == "jsonschema" else "cdr"
                channels[topic, kind] = writer.register_channel(topic, form, number)
            writer.add_message(channels[topic, kind], time, data, time)
        if finish:
            writer.finish()
    return file


def raw(k):
    return bytes(bags.TYPES.serialize_cdr(bags.number(k), FLOAT64))


A = [("/a", FLOAT64, 1000 + 10 * k, raw(k)) for k in range(100)]


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("foo_msgs/msg/Bar", ("unknown", "")),
        ("foxglove.Log", ("jsonschema", "{}")),
        ("foo_msgs/msg/Bar", ("ros2msg", "this is = no definition")),
        (
            "evil_msgs/msg/X",
            ("ros2msg", "Y[1000000000] y\n" + "=" * 80 + "\nMSG: evil_msgs/Y\nint8 a"),
        ),
        ("loop_msgs/msg/L", ("ros2msg", "loop_msgs/L again")),
    ],
)
def test_a_topic_that_is_not_needed_stops_nothing(kind, schema, tmp_path):
    rows = [*A, ("/other", kind, 1005, b"\0\1\0\0")]
    file = write_mcap(tmp_path / "one.mcap", rows, {kind: schema})
    assert read(file) == EXPECTED
    text = told(file, "/other")
    assert "/other" in text


def test_two_types_on_one_topic(tmp_path):
    other = "std_msgs/msg/Int32"
    rows = [*A, ("/a", other, 5000, b"\0\1\0\0\7\0\0\0")]
    file = write_mcap(tmp_path / "one.mcap", rows)
    assert read(file) == EXPECTED
    with Bag(file) as bag:
        assert bag.find("a", other) == "/a"
        assert [m.data for _, _, m in bag.messages(["/a"])] == [7]
        assert "100 messages of /a are no std_msgs/msg/Int32" in bag.remarks[0]


@pytest.mark.parametrize("schema", [("ros2msg", ""), ("unknown", ""), ("ros2msg", "#")])
def test_a_type_that_is_known_needs_no_definition(schema, tmp_path):
    assert read(write_mcap(tmp_path / "one.mcap", A, {FLOAT64: schema})) == EXPECTED


def test_types_that_the_package_sends_are_known(tmp_path):
    kind = "ackermann_msgs/msg/AckermannDriveStamped"
    data = b"\0\1\0\0" + struct.pack("<iIII5f", 0, 0, 1, 0, 0.1, 0, 0.4, 0, 0)
    file = write_mcap(tmp_path / "one.mcap", [("/c", kind, 1, data)], {kind: ("unknown", "")})
    with Bag(file) as bag:
        ((_, _, message),) = bag.messages(["/c"])
        assert kind in bag.types[kind].types
    assert message.drive.speed == pytest.approx(0.4)


def test_definitions_come_from_a_folder_or_a_workspace(tmp_path, monkeypatch):
    kind = "own_msgs/msg/Pair"
    data = b"\0\1\0\0" + struct.pack("<iId", 1, 2, 0.5)
    file = write_mcap(tmp_path / "one.mcap", [("/p", kind, 1, data)], {kind: ("unknown", "")})
    assert "--types" in told(file, "/p")
    package = tmp_path / "share" / "own_msgs" / "msg"
    package.mkdir(parents=True)
    (package / "Pair.msg").write_text("builtin_interfaces/Time at\nHalf half\n")
    (package / "Half.msg").write_text("float64 value\n")
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    with Bag(file, folders=[tmp_path / "share"]) as bag:
        ((_, _, message),) = bag.messages(["/p"])
    assert (message.at.nanosec, message.half.value) == (2, 0.5)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    with Bag(file) as bag:
        assert len(list(bag.messages(["/p"]))) == 1


def test_idl_with_includes(tmp_path):
    rule = "=" * 80
    idl = f"""{rule}
IDL: car_msgs/msg/Lateral
// generated
#include "builtin_interfaces/msg/Time.idl"
module car_msgs {{ module msg {{
  struct Lateral {{ builtin_interfaces::msg::Time stamp; float angle; }};
}}; }};
{rule}
IDL: builtin_interfaces/msg/Time
#ifndef TIME
module builtin_interfaces {{ module msg {{ struct Time {{ int32 sec; uint32 nanosec; }}; }}; }};
"""
    kind = "car_msgs/msg/Lateral"
    data = b"\0\1\0\0" + struct.pack("<iIf", 1, 2, 0.5)
    file = write_mcap(tmp_path / "one.mcap", [("/l", kind, 1, data)], {kind: ("ros2idl", idl)})
    with Bag(file) as bag:
        ((_, _, message),) = bag.messages(["/l"])
    assert (message.stamp.sec, message.angle) == (1, 0.5)


@pytest.mark.parametrize("rest", [b"", b"\x89MCAP0\r\n", b"noise"])
def test_the_last_split_may_be_empty(rest, tmp_path):
    folder = tmp_path / "bag"
    folder.mkdir()
    write_mcap(folder / "r_0.mcap", A[:50])
    write_mcap(folder / "r_1.mcap", A[50:])
    (folder / "r_2.mcap").write_bytes(rest)
    assert read(folder) == EXPECTED
    with Bag(folder) as bag:
        assert "r_2.mcap" in " ".join(bag.remarks)


@pytest.mark.parametrize("compression", ["none", "storage"])
@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_damage_in_the_middle_of_an_mcap_costs_what_is_there(at, compression, tmp_path):
    many = [("/a", FLOAT64, 10 * k, raw(k)) for k in range(20_000)]
    kind = CompressionType.ZSTD if compression == "storage" else CompressionType.NONE
    file = write_mcap(tmp_path / "one.mcap", many, chunk_size=20_000, compression=kind)
    data = bytearray(file.read_bytes())
    begin = int(at * len(data))
    if compression == "storage":
        begin = data.index(b"zstd", begin) + 20
    data[begin : begin + 100] = b"\xee" * 100
    file.write_bytes(data)
    with Bag(file) as bag:
        values = [m.data for _, _, m in bag.messages(["/a"])]
        assert "damaged" in " ".join(bag.remarks)
    assert len(values) > 17_000
    assert values[0] == 0.0
    assert values[-1] == 19_999.0


@pytest.mark.parametrize("at", [0.3, 0.6])
def test_damage_in_the_middle_of_a_database_costs_what_is_there(at, tmp_path):
    path = bags.write(tmp_path / "bag", numbers(0, 5000), "sqlite3")
    file = storage_file(path)
    data = bytearray(file.read_bytes())
    begin = int(at * len(data)) // 4096 * 4096
    data[begin : begin + 8192] = b"\xee" * 8192
    file.write_bytes(data)
    with Bag(path) as bag:
        values = [m.data for _, _, m in bag.messages(["/a"])]
    assert len(values) > 3500
    assert values == sorted(values)
    assert values[-1] == 4999.0


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("name", ["run #1", "50%25 & ?mode=rw", "été", "-v", "a'b", "²"])
def test_odd_names(name, storage, tmp_path):
    path = bags.write(tmp_path / "bag", numbers(), storage).rename(tmp_path / name)
    assert read(path) == EXPECTED
    file = storage_file(path)
    assert read(file.rename(path / f"{name}{file.suffix.upper()}")) == EXPECTED
    assert read(path) == EXPECTED
    other = storage_file(path).rename(path / "NO_ENDING")
    assert read(other) == EXPECTED
    assert read(path) == EXPECTED


def test_a_folder_whose_files_were_renamed_or_unpacked(tmp_path):
    path = bags.write(tmp_path / "before", numbers(), "mcap", "file")
    packed = storage_file(path)
    unpacked = path / packed.stem
    unpacked.write_bytes(zstd.decompress(packed.read_bytes()))
    assert read(path) == EXPECTED
    (path / "metadata.yaml").unlink()
    assert read(path) == EXPECTED  # once, though it is there twice
    packed.unlink()
    assert read(path) == EXPECTED


def test_a_recording_of_ros_1_is_read_after_the_command_that_is_named(tmp_path):
    types = get_typestore(Stores.ROS1_NOETIC)
    old = tmp_path / "an old one.bag"
    with Ros1Writer(old) as writer:
        connection = writer.add_connection("/a", FLOAT64, typestore=types)
        for _, time, message in numbers():
            writer.write(connection, time, types.serialize_ros1(message, FLOAT64))
    command = shlex.split(told(old).split("convert it with: ")[1])
    scripts = Path(sys.executable).parent
    subprocess.run([scripts / command[0], *command[1:]], check=True)
    assert read(Path(command[-1])) == EXPECTED


def test_all_that_a_database_can_do_is_be_read(tmp_path):
    """Neither its SQL, nor views, nor a journal that names another file, does anything."""
    precious = tmp_path / "precious.db"
    precious.write_bytes(b"years of work\0")
    made = tmp_path / "made.db"
    path = bags.write(tmp_path / "bag", numbers(), "sqlite3")
    file = path / "bag.db3"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA writable_schema=ON")
        put = "INSERT INTO sqlite_master(type,name,tbl_name,rootpage,sql) VALUES(?,?,?,?,?)"
        attack = f"ATTACH DATABASE '{made}' AS e"
        for kind, name in (("table", "schema2"), ("trigger", "t"), ("view", "v")):
            database.execute(put, (kind, name, name, 2, attack))
    database.close()
    data = file.read_bytes()
    for share in (1.0, 0.9):
        file.write_bytes(data[: int(share * len(data))])
        if share == 1.0:
            assert read(path) == EXPECTED
        else:
            with contextlib.suppress(BagError):
                read(path)
        assert not made.exists()
    file.write_bytes(data)
    name = str(precious).encode()
    journal = bytes(512) + struct.pack(">I", 0x40000000 // 4096 + 1) + name
    journal += struct.pack(">II", len(name), sum(name)) + b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
    (path / "bag.db3-journal").write_bytes(journal)
    assert read(path) == EXPECTED
    assert precious.read_bytes() == b"years of work\0"
    with sqlite3.connect(tmp_path / "view.db3") as database:
        database.execute("CREATE TABLE topics(id, name, type, serialization_format)")
        database.execute(
            "CREATE VIEW messages AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n FROM r)"
            " SELECT n AS id, n AS topic_id, n AS timestamp, n AS data FROM r"
        )
    database.close()
    assert "without the tables" in told(tmp_path / "view.db3")


def test_names_in_definitions_are_names(tmp_path):
    proof = tmp_path / "proof"
    run = f"__import__('pathlib').Path({str(proof)!r}).touch()"
    kinds = [f"x_msgs/msg/X'+{run}+'", f'x_msgs/msg/X"""\n{run}\n"""', "x_msgs/msg/__class__"]
    texts = ["int8 a", f"int8 a\n{run}", f"int8 A={run}", f"int8[{run}] a", "int8 __init__"]
    for kind in kinds:
        for text in texts:
            file = write_mcap(
                tmp_path / "x.mcap", [("/x", kind, 1, b"\0\1\0\0\1")], {kind: ("ros2msg", text)}
            )
            told(file, "/x")
            assert not proof.exists()


def test_metadata_cannot_unfold_or_name_files_elsewhere(tmp_path):
    path = bags.write(tmp_path / "bag", numbers())
    bags.write(tmp_path / "secret", numbers(topic="/secret"))
    file = path / "metadata.yaml"
    lines = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 40))]
    for text in (
        "\n".join([*lines, "rosbag2_bagfile_information: {storage_identifier: *a39}"]),
        "rosbag2_bagfile_information: !!python/object/apply:os.system ['false']",
        "rosbag2_bagfile_information: {storage_identifier: mcap, relative_file_paths:"
        " [../secret/secret.mcap]}",
        "[" * 5000,
        "rosbag2_bagfile_information: 5",
    ):
        file.write_text(text)
        assert read(path) == EXPECTED
        with Bag(path) as bag:
            assert set(bag.topics) == {"/a"}
            assert len(" ".join(bag.remarks)) < 500


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
    assert read(path) == EXPECTED
    with Bag(path) as bag:
        assert "names other.mcap, which is not there" in bag.remarks[0]


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
