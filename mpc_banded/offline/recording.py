# SPDX-License-Identifier: Apache-2.0
"""Writes serialised ROS messages into a rosbag2 folder."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore


class Recording:
    """A rosbag2 folder (MCAP) that is being written; a context manager.

    Args:
        path: Folder to create; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self._writer = Writer(
            path, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP
        )
        self._types = get_typestore(Stores.ROS2_KILTED)
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
                topic, message_type, typestore=self._types
            )
        self._writer.write(self._connections[topic], stamp_ns, data)
