# SPDX-License-Identifier: Apache-2.0
"""Brings the files of a bag into a form that rosbags reads: decompressed, whole, indexed.

What a recorder had not finished is copied up to the point where it ends; originals are never
written to.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
import sys
from pathlib import Path

from mcap.exceptions import McapError
from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MCAP_MAGIC, SQLITE_MAGIC = b"\x89MCAP0\r\n", b"SQLite format 3\x00"
#: Tables of rosbag2, in the order in which they are copied.
TABLES = ("schema", "metadata", "topics", "message_definitions", "messages")


def decompressed(source: Path, folder: Path) -> tuple[Path, bool]:
    """Unpack ``bag.mcap.zst`` or the like into a folder; returns the file and whether it is cut.

    Raises:
        zstd.ZstdError: It is not compressed with zstd.
    """
    target = folder / source.stem
    with source.open("rb") as raw, zstd.open(raw, "rb") as unpacked, target.open("wb") as out:
        try:
            shutil.copyfileobj(unpacked, out)
        except EOFError:
            return target, True
    return target, False


def is_cut(file: Path) -> bool:
    """Whether a recorder or a copy ended before the file did."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(100)
        if head.startswith(MCAP_MAGIC):
            stream.seek(max(0, size - len(MCAP_MAGIC)))
            return size < 2 * len(MCAP_MAGIC) or stream.read() != MCAP_MAGIC
    if not head.startswith(SQLITE_MAGIC) or len(head) < 100:
        return False
    (pages,) = struct.unpack(">I", head[28:32])
    return size < pages * _page_size(head)


def _page_size(head: bytes) -> int:
    """Of a SQLite database, from its first bytes."""
    (page,) = struct.unpack(">H", head[16:18])
    return 65536 if page == 1 else max(page, 512)


def unfinished_journals(file: Path) -> list[Path]:
    """What SQLite left beside a database that was not closed."""
    beside = [file.with_name(file.name + suffix) for suffix in ("-wal", "-journal")]
    return [path for path in beside if path.is_file() and path.stat().st_size]


def settled(file: Path, folder: Path) -> Path:
    """A copy of a database in which its journals have been worked in."""
    copy = folder / file.name
    for path in (file, *unfinished_journals(file)):
        shutil.copyfile(path, folder / path.name)
    database = sqlite3.connect(copy)
    try:
        database.execute("PRAGMA journal_mode=DELETE").fetchall()
    finally:
        database.close()
    return copy


def rescued(file: Path, folder: Path) -> tuple[Path, int]:
    """Copy what can be read of a file; returns the copy and the number of its messages."""
    copy = folder / f"rescued_{file.name}"
    if file.suffix == ".mcap":
        return copy, _copy_mcap(file, copy)
    return copy, _copy_sqlite(file, copy)


def _copy_mcap(source: Path, target: Path) -> int:
    count, size = 0, source.stat().st_size
    schemas: dict[int, int] = {0: 0}
    channels: dict[int, int] = {}
    with source.open("rb") as raw, target.open("wb") as out:
        writer = McapWriter(out, compression=CompressionType.NONE)
        writer.start("ros2")
        reader = StreamReader(raw, emit_chunks=True, record_size_limit=size)
        try:
            for outer in reader.records:
                for record in breakup_chunk(outer) if isinstance(outer, Chunk) else [outer]:
                    if isinstance(record, Schema) and record.id not in schemas:
                        schemas[record.id] = writer.register_schema(
                            record.name, record.encoding, record.data
                        )
                    elif isinstance(record, Channel) and record.id not in channels:
                        channels[record.id] = writer.register_channel(
                            record.topic,
                            record.message_encoding,
                            schemas[record.schema_id],
                            record.metadata,
                        )
                    elif isinstance(record, Message):
                        writer.add_message(
                            channels[record.channel_id],
                            record.log_time,
                            record.data,
                            record.publish_time,
                            record.sequence,
                        )
                        count += 1
        except (McapError, ValueError, KeyError, RuntimeError, EOFError, struct.error):
            pass  # here it ends
        writer.finish()
    return count


def _copy_sqlite(source: Path, target: Path) -> int:
    whole = target.with_suffix(".whole")
    shutil.copyfile(source, whole)
    with whole.open("r+b") as stream:  # half a page at the end would be read as data
        page = _page_size(stream.read(100))
        stream.truncate(source.stat().st_size // page * page)
    before = sqlite3.connect(f"file:{whole}?immutable=1", uri=True)
    after = sqlite3.connect(target)
    try:
        before.execute("PRAGMA writable_schema=ON")  # else SQLite refuses a file that is too short
        made = dict(before.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        for name in TABLES:
            if name not in made:
                continue
            after.execute(made[name])
            try:
                # In the order of the table, which is that of the file; an index may be lost.
                for row in before.execute(f"SELECT * FROM {name} NOT INDEXED ORDER BY rowid"):
                    marks = ", ".join("?" * len(row))
                    after.execute(f"INSERT OR IGNORE INTO {name} VALUES ({marks})", row)
            except sqlite3.DatabaseError:
                pass  # here it ends
        if "messages" not in made:
            return 0
        after.execute("CREATE INDEX timestamp_idx ON messages (timestamp ASC)")
        after.commit()
        return int(after.execute("SELECT count(*) FROM messages").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0
    finally:
        before.close()
        after.close()
