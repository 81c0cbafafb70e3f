# SPDX-License-Identifier: Apache-2.0
"""Reads the SQLite files of rosbag2, damaged ones as far as their pages go.

No SQL of a file is ever run: tables are created by the statements here, and while a file is open
SQLite refuses everything but reading tables. Originals are opened read-only and immutable; what
has to be repaired is repaired in a copy.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mpc_banded.offline.storage import SQLITE_MAGIC, BagError, Channel

#: Tables of a repaired copy, and their columns.
TABLES = {
    "topics": ("id", "name", "type", "serialization_format"),
    "message_definitions": ("id", "topic_type", "encoding", "encoded_message_definition"),
    "messages": ("id", "topic_id", "timestamp", "data"),
}
#: Ends a journal that belongs to a transaction over several databases. SQLite would look for
#: those and delete the file that the journal names, so such a name is cut off.
JOURNAL_MAGIC = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}
FUNCTIONS = {"count", "min", "max"}


class SqliteFile:
    """A ``.db3`` file; see Storage.

    Args:
        file: The file.
        scratch: Empty folder for a repaired copy.

    Raises:
        BagError: It holds no recording.
        sqlite3.DatabaseError: It cannot be read.
    """

    def __init__(self, file: Path, scratch: Path) -> None:
        self.remarks: list[str] = []
        self._file, self._scratch = file, scratch
        if unfinished_journals(file):
            self.remarks.append(f"{file.name} was not closed; its journal is worked in")
            self._file = _settled(file, scratch)
        if _is_cut(self._file):
            self._database = self._repaired("is cut off")
        else:
            self._database = _opened(self._file)
            try:
                self._survey()
                return
            except sqlite3.DatabaseError:
                self._database.close()
                self._database = self._repaired("is damaged")
        self._survey()

    @property
    def channels(self) -> list[Channel]:
        """Everything that the file says of its topics."""
        return self._channels

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _survey(self) -> None:
        """Find the topics, the definitions of their types and the span of time."""
        run = self._database.execute
        tables = _tables(self._database)
        if not {"topics", "messages"} <= tables:
            raise BagError(
                f"{self._file} is a database without the tables of rosbag2; name a recording"
            )
        counts = dict(run("SELECT topic_id, count(*) FROM messages GROUP BY topic_id"))
        definitions: dict[str, list[str]] = {}
        if "message_definitions" in tables:
            _, *columns = TABLES["message_definitions"]
            for kind, *rest in run(f"SELECT {', '.join(columns)} FROM message_definitions"):
                definitions.setdefault(str(kind), [str(text) for text in rest])
        self._channels: list[Channel] = []
        for number, topic, kind, encoding in run(
            f"SELECT {', '.join(TABLES['topics'])} FROM topics ORDER BY id"
        ):
            language, text = definitions.get(str(kind), ("", ""))
            self._channels.append(
                Channel(
                    number, str(topic), str(kind), str(encoding), text, language,
                    counts.get(number, 0),
                )
            )  # fmt: skip
        first, last = run("SELECT min(timestamp), max(timestamp) FROM messages").fetchone()
        known = isinstance(first, int) and isinstance(last, int)
        self.start_ns: int = first if known else 0
        self.end_ns: int = last + 1 if known else 0

    def messages(self, channels: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield (channel, time in ns, bytes) of some channels in order of time."""
        after = (-(2**63), -(2**63))  # time and number of the last message
        for attempt in (1, 2):
            try:
                for row in self._rows(channels, after):
                    after = row[:2]
                    yield row[2:]
                return
            except sqlite3.DatabaseError:
                if attempt == 2:
                    raise
                self._database.close()
                self._database = self._repaired("is damaged")

    def _rows(
        self, channels: Collection[int], after: tuple[int, int]
    ) -> Iterator[tuple[int, int, int, int, bytes]]:
        marks = ", ".join("?" * len(channels))
        found = self._database.execute(
            f"SELECT timestamp, id, topic_id, data FROM messages WHERE topic_id IN ({marks})"
            " AND timestamp >= ? ORDER BY timestamp, id",
            [*channels, after[0]],
        )
        for time_ns, number, channel, data in found:
            if isinstance(time_ns, int) and (time_ns, number) > after:
                whole = data if isinstance(data, bytes) else b""
                yield time_ns, number, channel, time_ns, whole

    def _repaired(self, why: str) -> sqlite3.Connection:
        """Copy what can be read of the file, and open the copy."""
        copy = self._scratch / f"repaired_{self._file.name}"
        count = _rescue(self._file, copy)
        if not count:
            raise BagError(
                f"{self._file} {why}, and no message in it can be found; copy it again from where "
                "it was recorded, or try 'sqlite3 .recover'"
            )
        self.remarks.append(f"{self._file.name} {why}; {count} messages could be read")
        return _opened(copy)


def unfinished_journals(file: Path) -> list[Path]:
    """Return what SQLite left beside a database that was not closed."""
    beside = [file.with_name(file.name + suffix) for suffix in ("-wal", "-journal")]
    return [path for path in beside if path.is_file() and path.stat().st_size]


def _opened(file: Path) -> sqlite3.Connection:
    """Open a database that cannot be written to, and in which nothing but tables is read."""
    database = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    database.text_factory = _decoded
    database.execute("PRAGMA trusted_schema=OFF")
    # Else SQLite refuses a whole file for one row of its schema, or for a missing page.
    database.execute("PRAGMA writable_schema=ON")
    database.set_authorizer(_authorize)
    return database


def _decoded(data: bytes) -> str:
    return data.decode(errors="replace")


def _authorize(action: int, *names: str | None) -> int:
    is_function = action == sqlite3.SQLITE_FUNCTION and names[1] in FUNCTIONS
    allowed = action in READING or is_function
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _tables(database: sqlite3.Connection) -> set[str]:
    """Return the names of ordinary tables: no views and no virtual tables, which run code."""
    found = database.execute("SELECT name, type, rootpage FROM sqlite_master")
    return {name for name, kind, page in found if kind == "table" and page}


def _is_cut(file: Path) -> bool:
    """Return whether the file has fewer pages than its header says."""
    with file.open("rb") as stream:
        head = stream.read(100)
    if not head.startswith(SQLITE_MAGIC) or len(head) < 100:
        return True
    (pages,) = struct.unpack(">I", head[28:32])
    return file.stat().st_size < pages * _page_size(head)


def _page_size(head: bytes) -> int:
    """Return the page size that the first bytes of a database name."""
    (page,) = struct.unpack(">H", head[16:18])
    return 65536 if page == 1 else max(page, 512)


def _settled(file: Path, folder: Path) -> Path:
    """Copy a database and let SQLite work its journals into the copy."""
    copy = folder / file.name
    shutil.copyfile(file, copy)
    for path in unfinished_journals(file):
        data = path.read_bytes()
        if data.endswith(JOURNAL_MAGIC):
            data = data[: -len(JOURNAL_MAGIC)]
        (folder / path.name).write_bytes(data)
    database = sqlite3.connect(copy.absolute().as_uri(), uri=True)
    try:
        database.execute("PRAGMA trusted_schema=OFF")
        database.execute("PRAGMA journal_mode=DELETE").fetchall()
    except sqlite3.DatabaseError:
        pass  # the schema is damaged as well; it is repaired in the next step
    finally:
        database.close()
    return copy


def _rescue(source: Path, target: Path) -> int:
    """Copy the rows that can be read into a new database; returns the number of messages."""
    whole = target.with_suffix(".whole")
    shutil.copyfile(source, whole)
    with whole.open("r+b") as stream:  # half a page at the end would be read as data
        page = _page_size(stream.read(100).ljust(100, b"\0"))
        stream.truncate(source.stat().st_size // page * page)
    before, after = _opened(whole), sqlite3.connect(target.absolute().as_uri(), uri=True)
    try:
        there = _tables(before)
        for name, columns in TABLES.items():
            after.execute(f"CREATE TABLE {name}({', '.join(columns)})")
            if name in there:
                marks = ", ".join("?" * len(columns))
                rows = _readable_rows(before, name, columns)
                after.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        after.execute("CREATE INDEX timestamp_idx ON messages (timestamp ASC)")
        after.commit()
        return int(after.execute("SELECT count(*) FROM messages").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0
    finally:
        before.close()
        after.close()
        whole.unlink()


def _readable_rows(
    database: sqlite3.Connection, table: str, columns: tuple[str, ...]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table in the order of the file, past pages that are damaged."""
    last, step = -(2**62), 1
    # An index may be damaged while the table is not.
    query = (
        f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED WHERE rowid > ? "
        "ORDER BY rowid"
    )
    while step < 2**62:
        try:
            for number, *row in database.execute(query, [last]):
                last, step = number, 1
                yield tuple(row)
            return
        except sqlite3.DatabaseError:
            last, step = max(last, 0) + step, 2 * step
