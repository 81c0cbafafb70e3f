# SPDX-License-Identifier: Apache-2.0
"""Writes ROS messages into a rosbag2 folder, as bytes or as values that are filled in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from mpc_banded.offline.mcap_writer import McapWriter
from mpc_banded.offline.message_types import MessageTypes, UnknownTypeError, known_types

#: Longest time for which messages wait to be written, on their own clock and on the machine's.
FLUSH_S = 1.0


class RecordingError(OSError):
    """The disk takes no more; the message says what has become of the recording."""


class Recording:
    """A rosbag2 folder (MCAP) that is being written; a context manager.

    If the process is killed or the power fails, what was written ``flush_s`` before can be read;
    so can everything until then where the disk is full.

    Args:
        path: Folder to create; it must not exist.
        types: Stores that know further message types, by the name of one of them.
        flush_s: Longest time for which messages wait to be written; infinite for a result that
            can be made again.
    """

    def __init__(
        self, path: Path, types: Mapping[str, Typestore] | None = None, flush_s: float = FLUSH_S
    ) -> None:
        self._path = Path(path)
        self._own = known_types()
        self._others = types or {}
        self._found = MessageTypes(self._own)
        self._flush_s = flush_s
        self._writer: McapWriter | None = None
        self._topics: dict[str, tuple[int, str, str]] = {}  # channel, type, hash of the type
        self._flushed = (0, 0.0)  # time of the message, time of the machine

    def __enter__(self) -> Recording:
        self._path.mkdir(parents=True)
        file = self._path / f"{self._path.name}.mcap"
        self._writer = McapWriter(file, sync=math.isfinite(self._flush_s))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
            self._write_metadata(writer)
        except OSError as failure:
            if error is None:
                raise self._ended(failure) from failure

    def write(self, topic: str, message_type: str, stamp_ns: int, data: bytes) -> None:
        """Append one serialised message.

        Args:
            topic: Absolute name.
            message_type: As ``nav_msgs/msg/Odometry``.
            stamp_ns: Time of receipt in nanoseconds.
            data: CDR, as it came from the middleware.

        Raises:
            RecordingError: The disk takes no more.
        """
        if self._writer is None:
            raise RecordingError(f"the recording {self._path} is closed")
        try:
            if topic not in self._topics:
                self._add_topic(self._writer, topic, message_type)
            self._writer.add_message(self._topics[topic][0], stamp_ns, data)
            stamp_s, machine_s = self._flushed
            waited_s = max(abs(1e-9 * (stamp_ns - stamp_s)), time.monotonic() - machine_s)
            if waited_s >= self._flush_s:
                self._flushed = (stamp_ns, time.monotonic())
                self._writer.flush()
        except OSError as error:
            raise self._ended(error) from error

    def flush(self) -> None:
        """Write all messages so far.

        Raises:
            RecordingError: The disk takes no more.
        """
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            raise self._ended(error) from error

    def _add_topic(self, writer: McapWriter, topic: str, kind: str) -> None:
        try:
            store = self._types(kind)
            if kind not in store.types:
                store = self._found.store(kind)
            text, _ = store.generate_msgdef(kind, ros_version=2)
            digest = store.hash_rihs01(kind)
        except UnknownTypeError:
            text = digest = ""  # whoever reads the recording may know the type
        self._topics[topic] = (writer.add_channel(topic, kind, text), kind, digest)

    def _ended(self, error: OSError) -> RecordingError:
        return RecordingError(
            f"the recording {self._path} has ended: {error.strerror or error}; what was written "
            "before can be replayed"
        )

    def _write_metadata(self, writer: McapWriter) -> None:
        """Write the metadata.yaml that ROS 2 asks for."""
        start_ns = min(writer.start_ns, writer.end_ns)

        def span() -> dict[str, Any]:  # not all readers know the aliases of a value used twice
            return {
                "starting_time": {"nanoseconds_since_epoch": start_ns},
                "duration": {"nanoseconds": writer.end_ns - start_ns},
                "message_count": writer.count,
            }

        file = f"{self._path.name}.mcap"
        topics = [
            {
                "topic_metadata": {
                    "name": topic,
                    "type": kind,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": [],
                    "type_description_hash": digest,
                },
                "message_count": writer.counts[channel],
            }
            for topic, (channel, kind, digest) in self._topics.items()
        ]
        information = {
            "version": 9,
            "storage_identifier": "mcap",
            "relative_file_paths": [file],
            **span(),
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "files": [{"path": file, **span()}],
            "custom_data": None,
            "ros_distro": "rosbags",
        }
        text = yaml.safe_dump({"rosbag2_bagfile_information": information})
        draft = self._path / "metadata.yaml.part"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self._path / "metadata.yaml")

    def _types(self, kind: str) -> Typestore:
        return self._own if kind in self._own.types else self._others.get(kind, self._own)

    def blank(self, kind: str) -> Any:
        """Return a message with zeros and empty lists."""
        return _blank(self._types(kind), kind)

    def publish(
        self,
        topic: str,
        kind: str,
        stamp_ns: int,
        fill: Callable[[Any], None],
        frame: str = "base_link",
    ) -> None:
        """Append a message that ``fill`` writes into; a header gets stamp and frame.

        A message whose type has no definition is left out.
        """
        if kind not in self._types(kind).types:
            return
        message = self.blank(kind)
        if hasattr(message, "header"):
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
            message.header.frame_id = frame
        fill(message)
        _arrays(message)
        data = self._types(kind).serialize_cdr(message, kind)
        self.write(topic, kind, stamp_ns, bytes(data))

    def number(self, topic: str, stamp_ns: int, value: float) -> None:
        """Append one std_msgs/Float64."""
        kind = "std_msgs/msg/Float64"
        data = self._own.serialize_cdr(self._own.types[kind](data=float(value)), kind)
        self.write(topic, kind, stamp_ns, bytes(data))

    def cycle(self, topic: str, stamp_ns: int, values: Mapping[str, str], reason: str) -> None:
        """Append the record of a cycle, as the node publishes it."""

        def fill(message: Any) -> None:
            status = self.blank("diagnostic_msgs/msg/DiagnosticStatus")
            status.name, status.message = "mpc_node: cycle", reason
            pair = self._own.types["diagnostic_msgs/msg/KeyValue"]
            status.values = [pair(key=key, value=text) for key, text in values.items()]
            message.status = [status]

        self.publish(topic, "diagnostic_msgs/msg/DiagnosticArray", stamp_ns, fill, frame="")


def _blank(types: Typestore, kind: str) -> Any:
    fields = types.get_msgdef(kind).fields
    return types.types[kind](*(_empty(types, *node) for _, node in fields))


def _empty(types: Typestore, node: Nodetype, detail: Any) -> Any:
    if node is Nodetype.NAME:
        return _blank(types, detail)
    if node is Nodetype.BASE:
        return {"string": "", "bool": False}.get(detail[0], 0)
    (inner, kind), length = detail
    if inner is Nodetype.BASE and kind[0] != "string":
        return np.zeros(length, dtype=kind[0])
    return [_empty(types, inner, kind) for _ in range(length)]


def _arrays(message: Any) -> None:
    """Turn lists of numbers into the arrays that rosbags writes."""
    for name, value in vars(message).items():
        if isinstance(value, list) and value and isinstance(value[0], (int, float)):
            setattr(message, name, np.array(value, dtype=np.float64))
