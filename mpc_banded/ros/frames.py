# SPDX-License-Identifier: Apache-2.0
"""Where one frame lies in another, from tf2_ros where that is installed."""

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


def transform_of(node: Node) -> Transform | None:
    """The newest transforms that a node hears on tf; None where tf2_ros is not installed.

    The function raises LookupError, with the reason, where there is no way between two frames.
    """
    if find_spec("tf2_ros") is None:
        return None
    return _Transforms(node, import_module("tf2_ros"))


class _Transforms:
    """Listens to tf as long as it is held."""

    def __init__(self, node: Node, tf2_ros: Any) -> None:
        self._problem = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def __call__(self, target: str, source: str) -> tuple[float, float, float]:
        try:
            found = self._buffer.lookup_transform(target, source, Time()).transform
        except self._problem as error:
            raise LookupError(f"no transform from {source!r} to {target!r}: {error}") from error
        position = found.translation
        return float(position.x), float(position.y), messages.yaw_of(found.rotation)
