# SPDX-License-Identifier: Apache-2.0
"""Reads recordings: every kind of rosbag2, message by message, in order of time.

Files may be SQLite or MCAP, compressed as a whole, in chunks or message by message, split, cut
off, damaged, or without their metadata.yaml. No file is read into memory as a whole, and topics
that are not asked for are never unpacked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import Any

from rosbags.typesys.store import Typestore

from mpc_banded.control.text import printable
from mpc_banded.offline.bag_files import open_file, storage_files
from mpc_banded.offline.message_types import MessageTypes, UnknownTypeError
from mpc_banded.offline.storage import BagError, Channel, DamageError, Storage, unpack

__all__ = ["Bag", "BagError", "Topic"]

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # no CDR begins so
#: Padding that a middleware may put behind a message, in bytes.
PADDING = 4
#: Latest time of recording: seconds of a stamp have 32 bits.
LATEST_NS = (2**31 - 1) * 10**9
#: What rejects a message: (topic, reason).
OnBad = Callable[[str, str], None]


@dataclass(frozen=True)
class Topic:
    """One topic of a recording.

    Attributes:
        type: Type of its messages, as ``nav_msgs/msg/Odometry``. Where there are several, the
            one that most of them have, or that was asked for.
        count: Number of messages of that type.
    """

    type: str
    count: int


class Bag:
    """A recording, open for reading; a context manager.

    Args:
        path: Folder of a rosbag2, or one of its files.
        types: Message types for a recording that brings no definitions, by default those of
            ROS 2 Kilted and those that this package sends.
        folders: Folders with further definitions, as ``package/msg/Name.msg``.

    Attributes:
        topics: Name -> topic, of those whose messages can be read.
        remarks: Sentences on problems that could be mended; grows while messages are read.

    Raises:
        BagError: It cannot be read.
    """

    def __init__(
        self, path: Path, types: Typestore | None = None, folders: Sequence[Path] = ()
    ) -> None:
        self.path = Path(path)
        self.topics: dict[str, Topic] = {}
        self._types = MessageTypes(types, folders)
        self._remarks: list[str] = []
        self._storages: list[Storage] = []
        self._kinds: dict[str, Counter[str]] = {}
        self._foreign: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Bag:
        try:
            with _in_one_sentence(self.path):
                self._open(storage_files(self.path, self._remarks))
                self._survey()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def remarks(self) -> list[str]:
        """Sentences on problems that could be mended."""
        return [*self._remarks, *(r for storage in self._storages for r in storage.remarks)]

    @property
    def types(self) -> Mapping[str, Typestore]:
        """Message type -> a store that knows it, for all types that are known."""
        found = {}
        for channel in self._channels():
            try:
                found[channel.type] = self._store(channel)
            except UnknownTypeError:
                continue
        return found

    @property
    def start_ns(self) -> int:
        """Time of the first message, of whatever topic; zero in an empty recording."""
        return min((s.start_ns for s in self._storages if s.end_ns), default=0)

    @property
    def end_ns(self) -> int:
        """Time after the last message; zero in an empty recording."""
        return max((s.end_ns for s in self._storages), default=0)

    def find(self, topic: str, kind: str, given: str | None = None) -> str | None:
        """Return the name in the recording of a topic: as given, at the root, or the only one.

        Args:
            topic: Relative name, as a node has it.
            kind: Type of its messages; twists will do stamped or not.
            given: Name given by the user.

        Returns:
            None if there is no such topic, or none of that type, or several to choose from.

        Raises:
            BagError: The given topic is not there, or has another type.
        """
        if given is not None:
            self._require(given)
            if not self._choose(given, kind):
                raise BagError(
                    f"{given} carries {self.topics[given].type}, and {topic} is {kind}; name "
                    "another topic, or describe a robot that reads this one"
                )
            return given
        inside = [name for name in self.topics if name.endswith(f"/{topic}")]
        fitting = [name for name in inside if self._fits(name, kind)]
        found = None
        if f"/{topic}" in fitting:
            found = f"/{topic}"
        elif len(fitting) == 1 and f"/{topic}" not in inside:
            found = fitting[0]
        if found is not None:
            self._choose(found, kind)
        return found

    def need(self, topic: str, kind: str, given: str | None = None) -> str:
        """Return the name in the recording of a topic that must be there; see ``find``.

        Raises:
            BagError: There is no topic of that name and type.
        """
        found = self.find(topic, kind, given)
        if found is not None:
            return found
        if likely := self.likely(topic, kind):
            remedy = f"try --topic {topic}:={likely}"
        else:
            has = ", ".join(f"{n} ({there.type})" for n, there in sorted(self.topics.items()))
            remedy = (
                f"it has {has or 'no topics at all'}; record the topic, or describe a robot that "
                "reads one of these"
            )
        raise BagError(f"{self.path} has no /{topic} of type {kind}; {remedy}")

    def likely(self, topic: str, kind: str) -> str | None:
        """Return the topic of a type whose name comes nearest to what a node calls it."""
        alike = [name for name in self.topics if name.startswith("/") and self._fits(name, kind)]
        return min(alike, key=lambda name: (not name.endswith(f"/{topic}"), name), default=None)

    def messages(
        self, topics: Collection[str], on_bad: OnBad | None = None
    ) -> Iterator[tuple[str, int, Any]]:
        """Yield (topic, time of recording in ns, message) of some topics, in order of time.

        Args:
            topics: Names in the recording.
            on_bad: Called with topic and reason for each message that cannot be read; such
                messages are left out in any case.

        Raises:
            BagError: A topic is not in the recording, its type has no definition, or the file
                cannot be read.
        """
        chosen = {topic: self._readable(topic) for topic in topics}
        with _in_one_sentence(self.path):
            streams = [_stream(storage, chosen) for storage in self._storages]
            for channel, time_ns, data in merge(*streams, key=lambda item: item[1]):
                try:
                    if not 0 <= time_ns <= LATEST_NS:
                        raise DamageError("its time of recording is impossible")
                    message = self._message(channel, data)
                except Exception as error:  # generated code fails in many ways on damaged bytes
                    if on_bad is not None:
                        on_bad(channel.topic, _not_a_message(channel.type, error))
                    continue
                yield channel.topic, time_ns, message

    def _message(self, channel: Channel, data: bytes) -> Any:
        if data[:4] == ZSTD_MAGIC:
            data = unpack(data)
        store = self._store(channel)
        try:
            return store.deserialize_cdr(data, channel.type)
        except Exception:
            if data[-PADDING:] != bytes(PADDING):
                raise
            return store.deserialize_cdr(data[:-PADDING], channel.type)

    def _store(self, channel: Channel) -> Typestore:
        return self._types.store(channel.type, channel.definition, channel.language)

    def _open(self, files: list[Path]) -> None:
        """Open all files; a part that cannot be read is left out where there are others."""
        errors = []
        for file in files:
            try:
                with _in_one_sentence(file):
                    self._storages.append(open_file(file, self._stack))
            except BagError as error:
                errors.append(error)
        if not self._storages:
            raise errors[0]
        self._remarks += [f"a part is left out: {error}" for error in errors]

    def _channels(self) -> Iterator[Channel]:
        for storage in self._storages:
            for channel in storage.channels:
                if channel.encoding == "cdr":
                    yield channel

    def _survey(self) -> None:
        """Count the messages of each topic by their type."""
        for channel in self._channels():
            self._kinds.setdefault(channel.topic, Counter())[channel.type] += channel.count
        for topic, kinds in self._kinds.items():
            self.topics[topic] = Topic(*kinds.most_common(1)[0])
        for storage in self._storages:
            for channel in storage.channels:
                if channel.encoding != "cdr":
                    self._foreign.setdefault(channel.topic, channel.encoding)

    def _fits(self, topic: str, kind: str) -> bool:
        return any(_serves(found, kind) for found in self._kinds[topic])

    def _choose(self, topic: str, kind: str) -> bool:
        """Read a topic by one of its types that will do; returns whether there is one."""
        fitting = [(n, found) for found, n in self._kinds[topic].items() if _serves(found, kind)]
        if not fitting:
            return False
        count, found = max(fitting)
        others = sum(self._kinds[topic].values()) - count
        remark = f"{others} messages of {topic} are no {found} and are left out"
        if others and remark not in self._remarks:
            self._remarks.append(remark)
        self.topics[topic] = Topic(found, count)
        return True

    def _require(self, topic: str) -> None:
        if topic in self.topics:
            return
        if topic in self._foreign:
            raise BagError(
                f"{topic} of {self.path} is encoded as {self._foreign[topic]!r}; allowed is cdr, "
                "so record it with ROS 2"
            )
        raise BagError(
            f"{self.path} has no topic {topic}; it has {', '.join(sorted(self.topics)) or 'none'}"
        )

    def _readable(self, topic: str) -> str:
        """Return the type of a topic; raises BagError where its messages cannot be read."""
        self._require(topic)
        kind = self.topics[topic].type
        for channel in self._channels():
            if channel.topic == topic and channel.type == kind:
                try:
                    self._store(channel)
                except UnknownTypeError as error:
                    raise BagError(f"{topic} cannot be read: {error}") from error
        return kind


def _stream(storage: Storage, chosen: Mapping[str, str]) -> Iterator[tuple[Channel, int, bytes]]:
    channels = {
        channel.id: channel
        for channel in storage.channels
        if channel.encoding == "cdr" and chosen.get(channel.topic) == channel.type
    }
    if channels:
        for number, time_ns, data in storage.messages(list(channels)):
            yield channels[number], time_ns, data


def _not_a_message(kind: str, error: Exception) -> str:
    reason = printable(str(error), 100).rstrip(".") or type(error).__name__
    return f"no {kind} ({reason})"


@contextmanager
def _in_one_sentence(what: Path) -> Iterator[None]:
    """Turn any error of a reader into one sentence."""
    try:
        yield
    except (BagError, GeneratorExit):
        raise
    except Exception as error:  # files that are wrong raise anything, from KeyError to OSError
        reason = printable(str(error), 200).rstrip(".") or type(error).__name__
        raise BagError(
            f"{what} cannot be read: {reason}; copy it again from where it was recorded"
        ) from error


def _serves(found: str, wanted: str) -> bool:
    """Return whether a message type will do; twists are read stamped or not."""
    twists = {"geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"}
    return found == wanted or {found, wanted} == twists
