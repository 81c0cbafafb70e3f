# SPDX-License-Identifier: Apache-2.0
"""Finds the files that make up a recording, and opens each of them."""

from __future__ import annotations

import re
import shlex
from contextlib import ExitStack
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from mpc_banded.control.text import printable
from mpc_banded.offline.mcap_file import McapFile
from mpc_banded.offline.sqlite_file import SqliteFile
from mpc_banded.offline.storage import (
    MCAP_MAGIC,
    ROS1_MAGIC,
    SQLITE_MAGIC,
    BagError,
    Storage,
    unpack_file,
)

STORAGES = (".mcap", ".db3")
COMPRESSED = (".zstd", ".zst")
#: Largest metadata.yaml that is read, in bytes.
LARGEST_METADATA = 8 << 20


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML without aliases, which a few bytes can unfold into gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def storage_files(path: Path, remarks: list[str]) -> list[Path]:
    """Return the files of a recording in their order.

    Args:
        path: Folder of a rosbag2, or one of its files.
        remarks: Receives a sentence on each problem that could be mended.

    Raises:
        BagError: There is no recording.
    """
    if not path.exists():
        raise BagError(f"{path} does not exist; name the folder of a rosbag2, or a file")
    if path.is_file():
        if not (_is_storage(path) or _has_magic(path)):
            raise BagError(
                f"{path} is no bag; allowed are folders of rosbag2, and files that end "
                f"with {', '.join(STORAGES)}, or with {' or '.join(COMPRESSED)} behind that"
            )
        return [path]
    found = _found(path)
    listed = _listed(path / "metadata.yaml", remarks)
    if listed is not None and (missing := [f.name for f in listed if not f.is_file()]):
        remarks.append(
            f"metadata.yaml names {', '.join(missing)}, which is not there; all files in the "
            "folder are read"
        )
        listed = None
    files = found if listed is None else listed
    if not files:
        raise BagError(
            f"{path} holds no bag: there is no file that ends with {' or '.join(STORAGES)} in it; "
            "name the folder that has one"
        )
    return files


def open_file(file: Path, stack: ExitStack) -> Storage:
    """Open one file, unpacked into a scratch folder where it is compressed.

    Args:
        file: The file.
        stack: Closes the file and removes the scratch folders.

    Raises:
        BagError: It holds no recording, or nothing that can be read.
    """
    if file.suffix.lower() in COMPRESSED:
        file = unpack_file(file, _scratch(stack))
    with file.open("rb") as stream:
        head = stream.read(len(SQLITE_MAGIC))
    if not head:
        raise BagError(f"{file} is empty: nothing was recorded; record again")
    if head.startswith(ROS1_MAGIC):
        source, target = shlex.quote(str(file)), shlex.quote(str(file.with_suffix("")))
        raise BagError(
            f"{file} is a recording of ROS 1; convert it with: "
            f"rosbags-convert --src {source} --dst {target}"
        )
    storage: Storage
    if head.startswith(SQLITE_MAGIC):
        storage = SqliteFile(file, _scratch(stack))
    elif head.startswith(MCAP_MAGIC):
        storage = McapFile(file)
    else:
        raise BagError(
            f"{file} cannot be read: it begins like neither SQLite nor MCAP; copy it again from "
            "where it was recorded"
        )
    stack.callback(storage.close)
    return storage


def _found(folder: Path) -> list[Path]:
    """Return all files of a folder that look like a recording, each unpacked or packed once."""
    files = [file for file in folder.iterdir() if _is_storage(file)]
    if not files:
        files = [file for file in folder.iterdir() if file.is_file() and _has_magic(file)]
    names = {file.name for file in files}
    twice = {f for f in files if f.suffix.lower() in COMPRESSED and f.stem in names}
    return sorted(set(files) - twice, key=_in_order)


def _listed(metadata: Path, remarks: list[str]) -> list[Path] | None:
    """Return the files that a metadata.yaml names; None if there is none that can be read."""
    if not metadata.is_file():
        remarks.append("metadata.yaml is missing; all files in the folder are read")
        return None
    try:
        if metadata.stat().st_size > LARGEST_METADATA:
            raise ValueError(f"it has {metadata.stat().st_size} bytes")
        text = metadata.read_text(encoding="utf-8")
        content = yaml.load(text, _PlainLoader)["rosbag2_bagfile_information"]  # a SafeLoader
        names = [PurePath(str(name)).name for name in content["relative_file_paths"]]
        storage = str(content["storage_identifier"])
        mode = str(content.get("compression_mode") or "none").lower()
        compression = str(content.get("compression_format") or "zstd")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
            yaml.YAMLError) as error:  # fmt: skip
        remarks.append(
            f"metadata.yaml cannot be read and is ignored ({printable(str(error), 100)}); all "
            "files in the folder are read"
        )
        return None
    if storage not in ("mcap", "sqlite3"):
        raise BagError(
            f"{metadata.parent} is stored as {storage!r}; allowed are mcap and sqlite3, so "
            "convert it with 'ros2 bag convert'"
        )
    if mode != "none" and compression != "zstd":
        raise BagError(
            f"{metadata.parent} is compressed with {compression!r}; allowed is zstd, so convert "
            "it with 'ros2 bag convert'"
        )
    return [metadata.parent / name for name in names]


def _is_storage(file: Path) -> bool:
    name = Path(file.stem) if file.suffix.lower() in COMPRESSED else file
    return file.is_file() and name.suffix.lower() in STORAGES


def _has_magic(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(16).startswith((MCAP_MAGIC, SQLITE_MAGIC, ROS1_MAGIC))


def _in_order(file: Path) -> list[int | str]:
    """Return a key that puts part 2 before part 10."""
    return [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", file.name)]


def _scratch(stack: ExitStack) -> Path:
    return Path(stack.enter_context(TemporaryDirectory(prefix="mpc_banded_")))
