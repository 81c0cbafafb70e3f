# SPDX-License-Identifier: Apache-2.0
"""Reads MCAP files by any writer: with or without chunks and index, cut off, damaged.

A file is a sequence of spans, each with the times of its messages: chunks, or runs of messages
outside of chunks. They come from the index at the end of the file, or from a scan if the index is
missing or wrong. Spans are read when their time comes, so memory stays bounded.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from io import BytesIO
from pathlib import Path

from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]
from mcap import records
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode

from mpc_banded.offline.storage import LARGEST, MCAP_MAGIC, BagError, Channel, DamageError, unpack

#: Opcode and length in front of a record; channel, sequence and two times in front of a message.
FRAME, MESSAGE = struct.Struct("<BQ"), struct.Struct("<HIQQ")
FOOTER_SIZE = FRAME.size + 20 + len(MCAP_MAGIC)
#: Size of the runs in which messages outside of chunks are read, in bytes.
RUN = 1 << 20
#: Errors of damaged records.
DAMAGE = (DamageError, McapError, struct.error, ValueError, EOFError, RuntimeError)


@dataclass
class Span:
    """A stretch of the file and the times of its messages.

    Attributes:
        offset, size: Place and size in bytes of the record of a chunk, or of a run of messages.
        is_chunk: Whether it is a chunk.
        start_ns: Time of its first message.
        channels: Its channels; None if unknown.
    """

    offset: int
    size: int
    is_chunk: bool
    start_ns: int
    channels: set[int] | None


class McapFile:
    """A ``.mcap`` file; see Storage.

    Args:
        file: The file.

    Raises:
        BagError: Nothing in it can be read.
    """

    def __init__(self, file: Path) -> None:
        self.remarks: list[str] = []
        self._file = file
        self._size = file.stat().st_size
        self._stream = file.open("rb")
        try:
            if not self._read_index():
                self._scan()
        except BaseException:
            self._stream.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _begin(self) -> None:
        self._spans: list[Span] = []
        self._schemas: dict[int, records.Schema] = {}
        self._channels: dict[int, records.Channel] = {}
        self._counts: Counter[int] = Counter()
        self.start_ns, self.end_ns = 0, 0

    def _read_index(self) -> bool:
        """Read the index at the end of the file; returns whether there is a valid one."""
        self._begin()
        try:
            footer = self._at(self._size - FOOTER_SIZE, FOOTER_SIZE)
            opcode, _ = FRAME.unpack_from(footer)
            (start,) = struct.unpack_from("<Q", footer, FRAME.size)
            if opcode != Opcode.FOOTER or not start or not footer.endswith(MCAP_MAGIC):
                return False
            summary = self._at(start, self._size - FOOTER_SIZE - start)
            statistics = None
            for opcode, content in _records(summary):
                self._take(opcode, content)
                stream = ReadDataStream(BytesIO(content))
                if opcode == Opcode.STATISTICS:
                    statistics = records.Statistics.read(stream)
                elif opcode == Opcode.CHUNK_INDEX:
                    index = records.ChunkIndex.read(stream)
                    channels = set(index.message_index_offsets) or None
                    self._spans.append(
                        Span(
                            index.chunk_start_offset, index.chunk_length, True,
                            index.message_start_time, channels,
                        )
                    )  # fmt: skip
        except DAMAGE:
            return False
        if statistics is None or (statistics.message_count and not self._spans):
            return False
        self._counts.update(statistics.channel_message_counts)
        if set(self._counts) - set(self._channels):
            return False  # an index that does not repeat the channels
        if statistics.message_count:
            self.start_ns = statistics.message_start_time
            self.end_ns = statistics.message_end_time + 1
        return True

    def _scan(self) -> None:
        """Go through the whole file once, and find its spans."""
        self._begin()
        if self._at(0, len(MCAP_MAGIC)) != MCAP_MAGIC:
            raise BagError(f"{self._file} is no MCAP file; name a recording")
        at, whole, lost = len(MCAP_MAGIC), False, 0
        while at + FRAME.size <= self._size:
            opcode, length = FRAME.unpack(self._at(at, FRAME.size))
            size = FRAME.size + length
            if opcode == Opcode.FOOTER:
                whole = True
                break
            if opcode == 0 or at + size > self._size:
                break
            if opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE, Opcode.CHUNK):
                try:
                    content = self._at(at + FRAME.size, length)
                    if opcode == Opcode.MESSAGE:
                        self._note_message(at, size, content)
                    elif opcode == Opcode.CHUNK:
                        self._note_chunk(at, size, content)
                    else:
                        self._take(opcode, content)
                except DAMAGE:
                    lost += 1
            at += size
        count = sum(self._counts.values())
        if not whole and not count:
            raise BagError(
                f"{self._file} is cut off, and no message in it can be found; copy it again from "
                "where it was recorded, or try 'mcap recover'"
            )
        if not whole:
            self.remarks.append(f"{self._file.name} is cut off; {count} messages could be read")
        if lost:
            self.remarks.append(f"{self._file.name} has {lost} damaged parts, which are left out")

    def _note_message(self, offset: int, size: int, content: bytes) -> None:
        channel, _, time_ns, _ = MESSAGE.unpack_from(content)
        run = self._spans[-1] if self._spans else None
        if run is None or run.is_chunk or run.offset + run.size != offset or run.size > RUN:
            run = Span(offset, 0, False, time_ns, set())
            self._spans.append(run)
        assert run.channels is not None
        run.size += size
        run.start_ns = min(run.start_ns, time_ns)
        run.channels.add(channel)
        self._note_time(channel, time_ns)

    def _note_chunk(self, offset: int, size: int, content: bytes) -> None:
        span = Span(offset, size, True, 2**64, set())
        for opcode, record in _records(self._chunk(content)):
            if opcode == Opcode.MESSAGE:
                channel, _, time_ns, _ = MESSAGE.unpack_from(record)
                span.start_ns = min(span.start_ns, time_ns)
                assert span.channels is not None
                span.channels.add(channel)
                self._note_time(channel, time_ns)
            else:
                self._take(opcode, record)
        if span.channels:
            self._spans.append(span)

    def _note_time(self, channel: int, time_ns: int) -> None:
        first = not self._counts
        self._counts[channel] += 1
        self.start_ns = time_ns if first else min(self.start_ns, time_ns)
        self.end_ns = max(self.end_ns, time_ns + 1)

    def _take(self, opcode: int, content: bytes) -> None:
        stream = ReadDataStream(BytesIO(content))
        if opcode == Opcode.SCHEMA:
            schema = records.Schema.read(stream)
            self._schemas.setdefault(schema.id, schema)
        elif opcode == Opcode.CHANNEL:
            channel = records.Channel.read(stream)
            self._channels.setdefault(channel.id, channel)

    @property
    def channels(self) -> list[Channel]:
        """Everything that the file says of its topics."""
        found = []
        for number, channel in self._channels.items():
            schema = self._schemas.get(channel.schema_id)
            found.append(
                Channel(
                    number,
                    channel.topic,
                    schema.name if schema else "",
                    channel.message_encoding,
                    schema.data.decode(errors="replace") if schema else "",
                    schema.encoding if schema else "",
                    self._counts.get(number, 0),
                )
            )
        return found

    def messages(self, channels: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield (channel, time in ns, bytes) of some channels in order of time."""
        wanted = set(channels)
        spans = [s for s in self._spans if s.channels is None or s.channels & wanted]
        heap: list[tuple[int, int, int, bytes]] = []
        order = 0
        for span in sorted(spans, key=lambda span: span.start_ns):
            while heap and heap[0][0] < span.start_ns:
                time_ns, _, channel, data = heappop(heap)
                yield channel, time_ns, data
            for channel, time_ns, data in self._messages_of(span):
                if channel in wanted:
                    order += 1
                    heappush(heap, (time_ns, order, channel, data))
        while heap:
            time_ns, _, channel, data = heappop(heap)
            yield channel, time_ns, data

    def _messages_of(self, span: Span) -> Iterator[tuple[int, int, bytes]]:
        try:
            data = self._at(span.offset, span.size)
            if span.is_chunk:
                opcode, _ = FRAME.unpack_from(data)
                if opcode != Opcode.CHUNK:
                    raise DamageError("there is no chunk")
                data = self._chunk(data[FRAME.size :])
            for opcode, content in _records(data):
                if opcode == Opcode.MESSAGE:
                    channel, _, time_ns, _ = MESSAGE.unpack_from(content)
                    yield channel, time_ns, content[MESSAGE.size :]
        except DAMAGE as error:
            self._say(
                f"{self._file.name} is damaged after {1e-9 * span.start_ns:.3f} s, and the "
                f"messages there are left out: {error}"
            )

    def _chunk(self, content: bytes) -> bytes:
        """Return the records of a chunk, unpacked."""
        chunk = records.Chunk.read(ReadDataStream(BytesIO(content)))
        size = chunk.uncompressed_size
        if size > LARGEST:
            raise DamageError(f"a chunk of {size} bytes")
        if chunk.compression == "zstd":
            data = unpack(chunk.data, size)
        elif chunk.compression == "lz4":
            data = LZ4FrameDecompressor().decompress(chunk.data, size)
        elif chunk.compression == "":
            data = chunk.data
        else:
            raise BagError(
                f"{self._file} is compressed with {chunk.compression!r}; allowed are zstd and "
                "lz4, so convert it with 'mcap compress'"
            )
        if len(data) != size:
            raise DamageError(f"a chunk has {len(data)} bytes instead of {size}")
        if chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
            self._say(f"{self._file.name} has a wrong checksum: some messages may be damaged")
        return data

    def _say(self, remark: str) -> None:
        if remark not in self.remarks:
            self.remarks.append(remark)

    def _at(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self._size:
            raise DamageError("the file is shorter than it says")
        self._stream.seek(offset)
        return self._stream.read(size)


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (opcode, content) of records that stand one after the other."""
    at = 0
    while at < len(data):
        opcode, length = FRAME.unpack_from(data, at)
        end = at + FRAME.size + length
        if end > len(data):
            raise DamageError("a record is longer than what is left")
        yield opcode, data[at + FRAME.size : end]
        at = end
