# SPDX-License-Identifier: Apache-2.0
"""Looks up transforms between frames with tf2_ros, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rclpy.node import Node
from rclpy.time import Time

from mpc_banded.robots import messages

#: (target frame, source frame) -> x, y in m and yaw in rad of the source in the target.
Transform = Callable[[str, str], tuple[float, float, float]]


def transform_lookup(node: Node) -> Transform | None:
    """Return a lookup of the newest transforms; None if tf2_ros is not installed.

    The lookup raises LookupError with the reason if two frames are not connected.
    """
    if find_spec("tf2_ros") is None:
        return None
    return _TransformBuffer(node, import_module("tf2_ros"))


class _TransformBuffer:
    """Listens to tf as long as it is referenced."""

    def __init__(self, node: Node, tf2_ros: Any) -> None:
        self._transform_error = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def at(self, target: str, source: str, stamp_ns: int) -> tuple[float, float, float]:
        """Return the pose at a time, or the newest one if tf does not reach that far."""
        try:
            return self._look_up(target, source, Time(nanoseconds=stamp_ns))
        except self._transform_error:
            return self(target, source)

    def __call__(self, target: str, source: str) -> tuple[float, float, float]:
        """Return the newest pose."""
        try:
            return self._look_up(target, source, Time())
        except self._transform_error as error:
            raise LookupError(f"no transform from {source!r} to {target!r}: {error}") from error

    def _look_up(self, target: str, source: str, time: Time) -> tuple[float, float, float]:
        found = self._buffer.lookup_transform(target, source, time).transform
        position = found.translation
        return float(position.x), float(position.y), messages.yaw_of(found.rotation)
