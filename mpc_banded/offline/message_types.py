# SPDX-License-Identifier: Apache-2.0
"""Finds the message types of a recording: in its own definitions, in known ones, or in a folder.

rosbags turns definitions into Python code, so only plain names and numbers are passed to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from mpc_banded.control.text import printable

IDL_RULE = "=" * 80 + "\n"
#: Longest definition that is parsed, in characters, and deepest nesting in an IDL.
LONGEST, DEEPEST = 1 << 20, "(" * 8
#: Longest array of fixed length that is no array of numbers: code grows with it.
MOST_ITEMS = 1000
TYPE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)+")
FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
#: Stands in for the fields of a type without any.
NO_FIELD = "structure_needs_at_least_one_member"
#: Types that the package sends or reads and rosbags does not know.
OWN = {
    "ackermann_msgs/msg/AckermannDrive": (
        "float32 steering_angle\nfloat32 steering_angle_velocity\nfloat32 speed\n"
        "float32 acceleration\nfloat32 jerk"
    ),
    "ackermann_msgs/msg/AckermannDriveStamped": (
        "std_msgs/Header header\nackermann_msgs/AckermannDrive drive"
    ),
}


class UnknownTypeError(Exception):
    """There is no definition of a message type; the message says what helps."""


def known_types() -> Typestore:
    """Return the types of ROS 2 Kilted, and those that this package adds."""
    store = get_typestore(Stores.ROS2_KILTED)
    for kind, text in OWN.items():
        store.register(get_types_from_msg(text, kind))
    return store


class MessageTypes:
    """Finds the definition of each message type.

    Args:
        known: Types for recordings that bring no definitions, by default ``known_types()``.
        folders: Folders with ``package/msg/Name.msg``, looked through after those; the
            installed packages of a sourced ROS are looked through last.
    """

    def __init__(self, known: Typestore | None = None, folders: Sequence[Path] = ()) -> None:
        self._known = known or known_types()
        self._folders = [*folders, *_sourced()]
        self._stores: dict[tuple[str, str], Typestore] = {}

    def store(self, kind: str, definition: str = "", language: str = "") -> Typestore:
        """Return a store that knows a type.

        Args:
            kind: Message type, as ``nav_msgs/msg/Odometry``.
            definition: Text that the recording has for it; where that cannot be read, what is
                known here counts.
            language: Language of the text, ``ros2msg`` or ``ros2idl``.

        Raises:
            UnknownTypeError: Nobody defines the type.
        """
        key = (kind, definition)
        if key not in self._stores:
            self._stores[key] = self._defined(kind, definition, language)
        return self._stores[key]

    def _defined(self, kind: str, definition: str, language: str) -> Typestore:
        why = "the recording has none"
        if definition.strip():
            try:
                store = _store_of(kind, definition, language)
                fields = [name for name, _ in store.fielddefs[kind][1]]
                if fields not in ([], [NO_FIELD]) or kind not in self._known.types:
                    return store
            except Exception as error:  # rosbags' parser has many ways to fail
                why = f"that of the recording cannot be read: {printable(str(error), 200)}"
        if kind in self._known.types:
            return self._known
        for folder in self._folders:
            try:
                return _store_from(folder, kind, self._known)
            except FileNotFoundError:
                continue
            except Exception as error:  # the parser again
                why = f"that in {folder} cannot be read: {printable(str(error), 200)}"
        raise UnknownTypeError(
            f"there is no definition of {kind} ({why}); source a workspace that has it, or give "
            "--types a folder that holds package/msg/Name.msg"
        )


def _store_of(kind: str, definition: str, language: str) -> Typestore:
    """Return a store with the types of one definition."""
    if len(definition) > LONGEST:
        raise ValueError(f"the definition has {len(definition)} characters")
    if language in ("ros2idl", "omgidl"):
        types: dict[str, Any] = {}
        for part in definition.split(IDL_RULE):
            if text := _idl(part):
                types.update(get_types_from_idl(text))
    else:
        types = dict(get_types_from_msg(definition, kind))
    return _registered(kind, types)


def _idl(part: str) -> str:
    """Return one file of an IDL without its title and without lines of the preprocessor."""
    if DEEPEST in part.replace(" ", ""):
        raise ValueError("the definition is nested too deeply")
    lines = part.splitlines()
    if lines and lines[0].startswith("IDL: "):
        lines = lines[1:]
    return "\n".join(line for line in lines if not line.lstrip().startswith("#")).strip()


def _registered(kind: str, types: dict[str, Any]) -> Typestore:
    for name, (constants, fields) in types.items():
        _check_names(TYPE_NAME, [name])
        _check_names(FIELD_NAME, [field[0] for field in (*constants, *fields)])
        for _, description in fields:
            _check_description(description)
    store = get_typestore(Stores.EMPTY)
    store.register(types)
    store.get_msgdef(kind)
    return store


def _check_names(pattern: re.Pattern[str], names: Iterable[str]) -> None:
    for name in names:
        if not pattern.fullmatch(name):
            raise ValueError(f"{name!r} is no name")


def _check_description(description: Any) -> None:
    node, detail = description
    if node == Nodetype.NAME:
        _check_names(TYPE_NAME, [detail])
    elif node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
        (inner, inner_detail), length = detail
        numbers = inner == Nodetype.BASE and inner_detail[0] != "string"
        if not isinstance(length, int) or not 0 <= length <= (LONGEST if numbers else MOST_ITEMS):
            raise ValueError(f"{length!r} is no length of an array")
        _check_description((inner, inner_detail))
    elif not FIELD_NAME.fullmatch(str(detail[0])) or not isinstance(detail[1], int):
        raise ValueError(f"{detail!r} is no type")


def _store_from(folder: Path, kind: str, known: Typestore) -> Typestore:
    """Return a store with a type and all that it consists of, from ``.msg`` files."""
    types: dict[str, Any] = {}
    waiting = [kind]
    while waiting:
        name = waiting.pop()
        if name in types or not TYPE_NAME.fullmatch(name):
            continue
        if name in known.fielddefs and name != kind:
            types[name] = known.fielddefs[name]
        else:
            text = _definition_file(folder, name).read_text(encoding="utf-8")
            types.update(get_types_from_msg(text, name))
        for _, (node, detail) in types[name][1]:
            inner = detail[0] if node in (Nodetype.ARRAY, Nodetype.SEQUENCE) else (node, detail)
            if inner[0] == Nodetype.NAME:
                waiting.append(inner[1])
    return _registered(kind, types)


def _definition_file(folder: Path, kind: str) -> Path:
    package, *_, name = kind.split("/")
    places = (folder / package, folder / "share" / package, folder.parent / package)
    files = (place / "msg" / f"{name}.msg" for place in places)
    return next((file for file in files if file.is_file()), folder / package / f"{name}.msg")


def _sourced() -> list[Path]:
    """Return the installed packages of the ROS that is sourced."""
    return [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
