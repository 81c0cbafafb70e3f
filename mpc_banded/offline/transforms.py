# SPDX-License-Identifier: Apache-2.0
"""Planar transforms between frames: those of a bag's ``/tf``, and those that a user gives."""

from __future__ import annotations

import math
from typing import Any

from mpc_banded.robots.messages import yaw_of

#: x, y in m and yaw in rad of one frame in another.
Pose = tuple[float, float, float]


class TransformTree:
    """A tree of frames, each with the newest pose in its parent."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, Pose]] = {}

    def place(self, parent: str, child: str, pose: Pose) -> None:
        """Say where ``child`` is in ``parent``."""
        self._parents[child.lstrip("/")] = (parent.lstrip("/"), pose)

    def take(self, message: Any) -> None:
        """Take in a tf2_msgs/TFMessage."""
        for stamped in message.transforms:
            move = stamped.transform
            pose = (
                float(move.translation.x),
                float(move.translation.y),
                yaw_of(move.rotation),
            )
            if all(math.isfinite(value) for value in pose):
                self.place(stamped.header.frame_id, stamped.child_frame_id, pose)

    def __call__(self, target: str, source: str) -> Pose:
        """Pose of the frame ``source`` in ``target``; LookupError where they are not connected."""
        ours, theirs = self._chain(target.lstrip("/")), self._chain(source.lstrip("/"))
        common = next((frame for frame in theirs if frame in ours), None)
        if common is None:
            raise LookupError(
                f"nothing in the bag connects {source!r} with {target!r}; give "
                f"--transform {target}:{source}=x,y,yaw"
            )
        return _joined(_inverse(ours[common]), theirs[common])

    def _chain(self, frame: str) -> dict[str, Pose]:
        """Return the frame and those above it, each with its pose in that frame."""
        chain = {frame: (0.0, 0.0, 0.0)}
        above = frame
        while above in self._parents:
            parent, pose = self._parents[above]
            if parent in chain:  # a loop is no tree
                break
            chain[parent] = _joined(pose, chain[above])
            above = parent
        return chain


def _joined(outer: Pose, inner: Pose) -> Pose:
    """Pose in the frame that ``outer`` is given in, of what ``inner`` is relative to it."""
    x, y, yaw = outer
    c, s = math.cos(yaw), math.sin(yaw)
    return x + c * inner[0] - s * inner[1], y + s * inner[0] + c * inner[1], yaw + inner[2]


def _inverse(pose: Pose) -> Pose:
    x, y, yaw = pose
    c, s = math.cos(yaw), math.sin(yaw)
    return -c * x - s * y, s * x - c * y, -yaw
