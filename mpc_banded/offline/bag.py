# SPDX-License-Identifier: Apache-2.0
"""Reads recorded runs: every kind of rosbag2 that occurs, message by message, in order of time.

Files may be SQLite or MCAP, compressed as a whole, in chunks or message by message, split, cut
off while they were written, or without their metadata.yaml. Nothing is read into memory as a
whole, and topics that nobody asks for are never unpacked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from heapq import merge
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import yaml
from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from mpc_banded.offline import salvage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STORAGES = (".mcap", ".db3")
COMPRESSED = (".zstd", ".zst")
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # no CDR begins so
#: Padding that a middleware may put behind a message, in bytes.
PADDING = 4
IDL_RULE = "=" * 80 + "\n"


class BagError(Exception):
    """A bag cannot be used; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Topic:
    """What a bag has of one topic.

    Attributes:
        type: Of its messages, as ``nav_msgs/msg/Odometry``.
        count: How many there are.
    """

    type: str
    count: int


class Bag:
    """A recording, open for reading; a context manager.

    Args:
        path: Folder of a rosbag2, or one of its files.
        types: Message types for a bag that does not bring their definitions along, by default
            those of ROS 2 Kilted.

    Attributes:
        topics: Name -> what the bag has of it.
        remarks: What was amiss and could be mended, in sentences.

    Raises:
        BagError: It cannot be read.
    """

    def __init__(self, path: Path, types: Typestore | None = None) -> None:
        self.path = Path(path)
        self.topics: dict[str, Topic] = {}
        self.remarks: list[str] = []
        self._types = types or get_typestore(Stores.ROS2_KILTED)
        self._stores: dict[str, Typestore] = {}
        self._readers: list[Reader] = []
        self._stack = ExitStack()

    def __enter__(self) -> Bag:
        try:
            with _told(str(self.path)):
                for file in self._files():
                    self._readers.append(self._opened(file))
                self._survey()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def types(self) -> Mapping[str, Typestore]:
        """Message type -> a store that knows it."""
        return self._stores

    @property
    def start_ns(self) -> int:
        """Time of the first message, of whatever topic; zero in an empty bag."""
        return min((r.start_time for r in self._readers if r.message_count), default=0)

    @property
    def end_ns(self) -> int:
        """Time after the last message; zero in an empty bag."""
        return max((r.end_time for r in self._readers if r.message_count), default=0)

    def find(self, topic: str, kind: str, given: str | None = None) -> str | None:
        """The name in the bag of a topic: as given, at the root, or where only one ends like it.

        Args:
            topic: Relative name, as a node has it.
            kind: Type of its messages; twists will do stamped or not.
            given: What the user calls it.

        Returns:
            None if there is no such topic, or none of that type, or several to choose from.

        Raises:
            BagError: What is given is not there, or of another type.
        """
        if given is not None:
            self._require(given)
            if not _fits(self.topics[given].type, kind):
                raise BagError(
                    f"{given} carries {self.topics[given].type}, and {topic} is {kind}; name "
                    "another topic, or describe a robot that reads this one"
                )
            return given
        inside = [name for name in self.topics if name.endswith(f"/{topic}")]
        fitting = [name for name in inside if _fits(self.topics[name].type, kind)]
        if f"/{topic}" in fitting:
            return f"/{topic}"
        if len(fitting) == 1 and f"/{topic}" not in inside:
            return fitting[0]
        return None

    def need(self, topic: str, kind: str, given: str | None = None) -> str:
        """The same, of a topic without which nothing can be done.

        Raises:
            BagError: There is none of that name and type.
        """
        found = self.find(topic, kind, given)
        if found is not None:
            return found
        alike = [name for name, there in self.topics.items() if _fits(there.type, kind)]
        if alike:
            likely = min(alike, key=lambda name: (not name.endswith(f"/{topic}"), name))
            remedy = f"try --topic {topic}:={likely}"
        else:
            has = ", ".join(f"{n} ({there.type})" for n, there in sorted(self.topics.items()))
            remedy = (
                f"it has {has or 'no topics at all'}; record the topic, or describe a robot that "
                "reads one of these"
            )
        raise BagError(f"{self.path} has no /{topic} of type {kind}; {remedy}")

    def _require(self, topic: str) -> None:
        if topic not in self.topics:
            raise BagError(
                f"{self.path} has no topic {topic}; it has {', '.join(sorted(self.topics))}"
            )

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """(topic, time of recording in ns, message) of some topics, in order of time.

        Raises:
            BagError: A topic is not in the bag, or something cannot be read.
        """
        for topic in topics:
            self._require(topic)
        with _told(str(self.path)):
            streams = [
                reader.messages(wanted)
                for reader in self._readers
                if (wanted := [c for c in reader.connections if c.topic in topics])
            ]
            for connection, time_ns, data in merge(*streams, key=lambda item: item[1]):
                yield connection.topic, time_ns, self._message(connection, data, time_ns)

    def _message(self, connection: Connection, data: bytes, time_ns: int) -> Any:
        kind = connection.msgtype
        if data[:4] == ZSTD_MAGIC:
            data = zstd.decompress(data)
        store = self._stores[kind]
        try:
            return store.deserialize_cdr(data, kind)
        except SerdeError as error:
            try:
                if data[-PADDING:] == bytes(PADDING):
                    return store.deserialize_cdr(data[:-PADDING], kind)
            except SerdeError:
                pass
            raise BagError(
                f"a message of {connection.topic} at {1e-9 * time_ns:.3f} s is not a {kind} "
                f"({error}); record that topic again, or name another with --topic"
            ) from error

    def _survey(self) -> None:
        """What topics there are, and how their messages are read."""
        kinds: dict[str, str] = {}
        counts: dict[str, int] = {}
        for connection in (c for reader in self._readers for c in reader.connections):
            topic, kind = connection.topic, connection.msgtype
            if kinds.setdefault(topic, kind) != kind:
                raise BagError(
                    f"{self.path} has {topic} as {kinds[topic]} and as {kind}; record it with one "
                    "type, or split the bag"
                )
            counts[topic] = counts.get(topic, 0) + connection.msgcount
            if kind not in self._stores:
                self._stores[kind] = self._store(kind, connection.msgdef)
        self.topics = {topic: Topic(kind, counts[topic]) for topic, kind in kinds.items()}

    def _store(self, kind: str, definition: MessageDefinition) -> Typestore:
        """Types with the bag's own definition of one, where it has one that can be read."""
        if definition.format is MessageDefinitionFormat.NONE:
            return self._types
        store = get_typestore(Stores.EMPTY)
        try:
            if definition.format is MessageDefinitionFormat.MSG:
                store.register(get_types_from_msg(definition.data, kind))
            else:
                for part in definition.data.split(IDL_RULE):
                    if part.strip():
                        text = part.split("\n", 1)[1] if part.startswith("IDL: ") else part
                        store.register(get_types_from_idl(text))
            store.get_msgdef(kind)
        except Exception:  # rosbags' parser has many ways to fail; its own types may do
            return self._types
        return store

    def _files(self) -> list[Path]:
        if not self.path.exists():
            raise BagError(f"{self.path} does not exist; name the folder of a rosbag2, or a file")
        if self.path.is_file():
            if not _is_storage(self.path):
                raise BagError(
                    f"{self.path} is no bag; allowed are folders of rosbag2, and files that end "
                    f"with {', '.join(STORAGES)}, or with {' or '.join(COMPRESSED)} behind that"
                )
            return [self.path]
        listed = self._listed(self.path / "metadata.yaml")
        found = sorted((f for f in self.path.iterdir() if _is_storage(f)), key=_in_order)
        files = found if listed is None else listed
        if not files:
            raise BagError(
                f"{self.path} holds no bag: there is no file that ends with "
                f"{' or '.join(STORAGES)} in it; name the folder that has one"
            )
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise BagError(
                f"{self.path} lacks {', '.join(missing)}, which its metadata.yaml names; copy "
                "what is missing, or delete metadata.yaml to read the rest"
            )
        return files

    def _listed(self, metadata: Path) -> list[Path] | None:
        """Files that a metadata.yaml names; None if there is none that can be read."""
        if not metadata.is_file():
            self.remarks.append("metadata.yaml is missing; all files in the folder are read")
            return None
        try:
            content = yaml.safe_load(metadata.read_text(encoding="utf-8"))
            content = content["rosbag2_bagfile_information"]
            names = [PurePath(name).name for name in content["relative_file_paths"]]
            storage = content["storage_identifier"]
            compression = content.get("compression_format") or "zstd"
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            self.remarks.append(
                "metadata.yaml cannot be read and is ignored; all files in the folder are read"
            )
            return None
        if f"{storage}" not in ("mcap", "sqlite3"):
            raise BagError(
                f"{self.path} is stored as {storage!r}; allowed are mcap and sqlite3, so convert "
                "it with 'ros2 bag convert'"
            )
        if (content.get("compression_mode") or "none").lower() != "none" and compression != "zstd":
            raise BagError(
                f"{self.path} is compressed with {compression!r}; allowed is zstd, so convert it "
                "with 'ros2 bag convert'"
            )
        return [metadata.parent / name for name in names]

    def _opened(self, file: Path) -> Reader:
        cut = False
        if file.suffix in COMPRESSED:
            file, cut = salvage.decompressed(file, self._scratch())
        if file.suffix == ".db3" and salvage.unfinished_journals(file):
            self.remarks.append(f"{file.name} was not closed; its journal is worked in")
            file = salvage.settled(file, self._scratch())
        if not file.stat().st_size:
            raise BagError(f"{file} is empty: nothing was recorded; record again")
        if cut or salvage.is_cut(file):
            return self._mended(file, "is cut off")
        reader = Reader(file)
        reader.open()
        # Without chunks nothing says where what is, and rosbags refuses to sort.
        if not getattr(reader.storage, "chunks", True) and reader.message_count:
            reader.close()
            return self._mended(file, None)
        self._stack.callback(reader.close)
        return reader

    def _mended(self, file: Path, remark: str | None) -> Reader:
        copy, count = salvage.rescued(file, self._scratch())
        if not count:
            raise BagError(
                f"{file} {remark or 'has no index'}, and no message in it can be found; copy "
                "it again from where it was recorded, or try 'mcap recover' or 'sqlite3 .recover'"
            )
        if remark:
            self.remarks.append(f"{file.name} {remark}; {count} messages could be read")
        reader = Reader(copy)
        reader.open()
        self._stack.callback(reader.close)
        return reader

    def _scratch(self) -> Path:
        return Path(self._stack.enter_context(TemporaryDirectory(prefix="mpc_banded_")))


def _is_storage(file: Path) -> bool:
    name = Path(file.stem) if file.suffix in COMPRESSED else file
    return file.is_file() and name.suffix in STORAGES


def _in_order(file: Path) -> list[int | str]:
    """Key that puts part 2 before part 10."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", file.name)]


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever a reader stumbles over into one sentence."""
    try:
        yield
    except (BagError, GeneratorExit):
        raise
    except Exception as error:  # files that are wrong raise anything, from KeyError to apsw.Error
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BagError(
            f"{what} cannot be read: {reason}; record it again, or convert it with "
            "'ros2 bag convert'"
        ) from error


def _fits(found: str, wanted: str) -> bool:
    """Whether a message type will do; twists are read stamped or not."""
    twists = {"geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"}
    return found == wanted or {found, wanted} == twists
