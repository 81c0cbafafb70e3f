# SPDX-License-Identifier: Apache-2.0
"""Writes ROS messages into a rosbag2 folder, as they came or filled anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rosbags.interfaces import Connection, Nodetype
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore


class Recording:
    """A rosbag2 folder (MCAP) that is being written; a context manager.

    Args:
        path: Folder to create; it must not exist.
        types: Stores that know further message types, by the name of one of them.
    """

    def __init__(self, path: Path, types: Mapping[str, Typestore] | None = None) -> None:
        self._writer = Writer(
            path, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP
        )
        self._own = get_typestore(Stores.ROS2_KILTED)
        self._others = types or {}
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> Recording:
        self._writer.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, topic: str, message_type: str, stamp_ns: int, data: bytes) -> None:
        """Append one serialised message.

        Args:
            topic: Absolute name.
            message_type: As ``nav_msgs/msg/Odometry``.
            stamp_ns: Time of receipt in nanoseconds.
            data: CDR, as it came from the middleware.
        """
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, message_type, typestore=self._types(message_type)
            )
        self._writer.write(self._connections[topic], stamp_ns, data)

    def _types(self, kind: str) -> Typestore:
        return self._own if kind in self._own.types else self._others.get(kind, self._own)

    def blank(self, kind: str) -> Any:
        """A message with zeros and empty lists."""
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

        A type that nobody has defined is left out.
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
    """Lists of numbers as the arrays that rosbags writes."""
    for name, value in vars(message).items():
        if isinstance(value, list) and value and isinstance(value[0], (int, float)):
            setattr(message, name, np.array(value, dtype=np.float64))
