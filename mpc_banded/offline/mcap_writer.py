# SPDX-License-Identifier: Apache-2.0
"""Writes MCAP files with bounded loss: what a flush has written survives any failure after it.

A chunk goes to the file as one piece. If the piece does not fit on the disk, the file is cut back
to the end of the piece before it, so that every byte in it can be read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from pathlib import Path

from mcap import records
from mcap.data_stream import RecordBuilder

from mpc_banded import __version__
from mpc_banded.offline.storage import MCAP_MAGIC

#: Size of the chunks, in bytes.
CHUNK = 768 << 10
FRAME, MESSAGE = struct.Struct("<BQ"), struct.Struct("<HIQQ")


class McapWriter:
    """A ``.mcap`` file that is being written.

    Args:
        file: The file; it must not exist.
        sync: Whether a flush waits until the disk has the data, which a power failure takes.

    Attributes:
        count: Number of messages.
        start_ns, end_ns: Times of the first and of the last message.
        counts: Channel -> number of its messages.
    """

    def __init__(self, file: Path, sync: bool = True) -> None:
        self._file = file.open("xb", buffering=0)
        self._sync = sync
        self._end = 0  # of what is whole
        self._schemas: list[records.Schema] = []
        self._channels: list[records.Channel] = []
        self._chunks: list[records.ChunkIndex] = []
        self._begin_chunk()
        self.counts: Counter[int] = Counter()
        self.start_ns, self.end_ns = 2**64 - 1, 0
        self._put(MCAP_MAGIC + _encoded(records.Header("ros2", f"mpc_banded {__version__}")))

    @property
    def count(self) -> int:
        """Number of messages."""
        return self.counts.total()

    def add_channel(self, topic: str, kind: str, definition: str) -> int:
        """Add a topic; returns the number of its channel.

        Args:
            topic: Absolute name.
            kind: Message type, as ``nav_msgs/msg/Odometry``.
            definition: Text that defines the type; empty if there is none.

        Raises:
            OSError: The disk does not take it.
        """
        known = {schema.name: schema.id for schema in self._schemas}
        text = b""
        if kind not in known:
            encoding = "ros2msg" if definition else ""
            schema = records.Schema(
                data=definition.encode(), encoding=encoding, id=len(known) + 1, name=kind
            )
            text = _encoded(schema)
        number = known.get(kind, len(known) + 1)
        channel = records.Channel(
            id=len(self._channels) + 1,
            topic=topic,
            message_encoding="cdr",
            metadata={"offered_qos_profiles": ""},
            schema_id=number,
        )
        self._put(text + _encoded(channel))
        if text:
            self._schemas.append(schema)
        self._channels.append(channel)
        return channel.id

    def add_message(self, channel: int, time_ns: int, data: bytes) -> None:
        """Append a message; it is in the file after the next flush, or once a chunk is full.

        Raises:
            OSError: The disk does not take it.
        """
        self._index.setdefault(channel, []).append((time_ns, self._chunk_size))
        record = FRAME.pack(0x05, MESSAGE.size + len(data))
        record += MESSAGE.pack(channel, self.counts[channel] & 0xFFFFFFFF, time_ns, time_ns)
        self._chunk += [record, data]
        self._chunk_size += len(record) + len(data)
        self.counts[channel] += 1
        self.start_ns, self.end_ns = min(self.start_ns, time_ns), max(self.end_ns, time_ns)
        if self._chunk_size >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write all messages so far.

        Raises:
            OSError: The disk does not take them; they are lost, those before them are not.
        """
        if not self._chunk:
            return
        data, index = b"".join(self._chunk), self._index
        self._begin_chunk()
        times = [time_ns for entries in index.values() for time_ns, _ in entries]
        chunk = _encoded(
            records.Chunk(
                compression="",
                data=data,
                message_start_time=min(times),
                message_end_time=max(times),
                uncompressed_crc=zlib.crc32(data),
                uncompressed_size=len(data),
            )
        )
        start, offsets, indexes = self._end, {}, b""
        for channel, entries in index.items():
            offsets[channel] = start + len(chunk) + len(indexes)
            indexes += _encoded(records.MessageIndex(channel, entries))
        try:
            self._put(chunk + indexes)
        except OSError:
            for channel, entries in index.items():
                self.counts[channel] -= len(entries)
            raise
        self._chunks.append(
            records.ChunkIndex(
                chunk_length=len(chunk),
                chunk_start_offset=start,
                compression="",
                compressed_size=len(data),
                message_end_time=max(times),
                message_index_length=len(indexes),
                message_index_offsets=offsets,
                message_start_time=min(times),
                uncompressed_size=len(data),
            )
        )

    def close(self) -> None:
        """Write what is left and the index, and close the file.

        Raises:
            OSError: The disk does not take it; the file is closed, and readable without index.
        """
        try:
            self.flush()
            self._finish()
        finally:
            self._file.close()

    def _finish(self) -> None:
        end = _encoded(records.DataEnd(0))
        start = self._end + len(end)
        statistics = records.Statistics(
            attachment_count=0,
            channel_count=len(self._channels),
            channel_message_counts=dict(self.counts),
            chunk_count=len(self._chunks),
            message_count=self.count,
            message_end_time=self.end_ns,
            message_start_time=self.start_ns if self.count else 0,
            metadata_count=0,
            schema_count=len(self._schemas),
        )
        summary = _encoded(*self._schemas, *self._channels, statistics, *self._chunks)
        footer = _encoded(
            records.Footer(summary_start=start, summary_offset_start=0, summary_crc=0)
        )
        self._put(end + summary + footer + MCAP_MAGIC)

    def _begin_chunk(self) -> None:
        self._chunk: list[bytes] = []
        self._chunk_size = 0
        self._index: dict[int, list[tuple[int, int]]] = {}

    def _put(self, data: bytes) -> None:
        """Write a piece as a whole, or nothing of it."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            if self._sync:
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise
        self._end += len(data)


def _encoded(*parts: records.McapRecord) -> bytes:
    builder = RecordBuilder()
    for part in parts:
        part.write(builder)
    return bytes(builder.end())
