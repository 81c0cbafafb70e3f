# SPDX-License-Identifier: Apache-2.0
"""The common interface of the files of a recording, SQLite or MCAP.

Recordings are untrusted: a reader runs no code from a file, writes only into its scratch folder,
and checks each size against the file before it believes it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mpc_banded.control.text import printable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MCAP_MAGIC, SQLITE_MAGIC = b"\x89MCAP0\r\n", b"SQLite format 3\x00"
ROS1_MAGIC = b"#ROSBAG V"
#: Largest message or chunk, in bytes.
LARGEST = 1 << 30
#: Disk space that unpacking leaves to others, in bytes.
SPARED = 1 << 29


class BagError(Exception):
    """A recording cannot be used; the message is one sentence that ends with the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class DamageError(Exception):
    """A part of a file is not what it should be; the message says which part."""


@dataclass(frozen=True)
class Channel:
    """One topic in one file.

    Attributes:
        id: Number within the file.
        topic: Name of the topic.
        type: Message type, as ``nav_msgs/msg/Odometry``.
        encoding: Encoding of the messages; only ``cdr`` can be read.
        definition: Text that defines the type; empty where the file has none.
        language: Language of the definition, ``ros2msg`` or ``ros2idl``.
        count: Number of messages.
    """

    id: int
    topic: str
    type: str
    encoding: str
    definition: str
    language: str
    count: int


class Storage(Protocol):
    """One file of a recording, open for reading.

    Attributes:
        start_ns, end_ns: Times of the first message and after the last one; zero if empty.
        remarks: Sentences on problems; their number may grow while messages are read.
    """

    start_ns: int
    end_ns: int
    remarks: list[str]

    @property
    def channels(self) -> list[Channel]:
        """Topics of the file, one channel each."""

    def messages(self, channels: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield (channel, time in ns, bytes) of some channels in order of time."""

    def close(self) -> None:
        """Close the file."""


def unpack(data: bytes, size: int = LARGEST) -> bytes:
    """Decompress zstd; raises DamageError where it is damaged or yields more than ``size``."""
    try:
        unpacker = zstd.ZstdDecompressor()
        result = unpacker.decompress(data, max_length=max(1, min(size, LARGEST)))
        more = b"" if unpacker.eof else unpacker.decompress(b"", max_length=1)
    except zstd.ZstdError as error:
        raise DamageError(str(error)) from error
    if more or not unpacker.eof:
        raise DamageError(f"it is cut off, or unpacks to more than {size} bytes")
    return result


def unpack_file(source: Path, folder: Path) -> Path:
    """Decompress ``bag.mcap.zstd`` or the like into a folder, as far as it goes.

    Raises:
        BagError: The disk has no room for it.
        zstd.ZstdError: It is not compressed with zstd.
    """
    target = folder / source.stem
    room = shutil.disk_usage(folder).free - SPARED
    with source.open("rb") as raw, zstd.open(raw, "rb") as unpacked, target.open("wb") as out:
        try:
            while block := unpacked.read(1 << 20):
                room -= len(block)
                if room < 0:
                    raise BagError(
                        f"{source} does not fit into {folder.parent} when it is unpacked; set "
                        "TMPDIR to a folder with more room"
                    )
                out.write(block)
        except EOFError:
            pass  # the rest was never written; the file within looks cut off too
    return target
