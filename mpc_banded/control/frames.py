# SPDX-License-Identifier: Apache-2.0
"""Finds the poses of other frames in the frame of the state."""

from __future__ import annotations

from collections.abc import Callable

from mpc_banded.control.state import StateEstimate

#: x and y in m, yaw in rad.
Pose = tuple[float, float, float]


class Frames:
    """Looks up frames in the frame of the state.

    Args:
        estimate: The state estimate; its messages name its frame.

    Attributes:
        transform: (target frame, source frame) -> pose of the source in the target; raises
            LookupError with the reason if it is unknown. None if no transforms are available. One
            that remembers poses has a method ``at(target, source, stamp_ns)`` as well.
    """

    def __init__(self, estimate: StateEstimate) -> None:
        self._estimate = estimate
        self.transform: Callable[[str, str], Pose] | None = None

    def pose(self, topic: str, frame: str, stamp_ns: int = 0) -> Pose:
        """Return the pose of a frame in the frame of the state.

        Args:
            topic: Topic of the message that is in the frame, for errors.
            frame: Name of the frame; an empty one is the frame of the state.
            stamp_ns: Time for which the message is valid; 0 asks for the newest pose.

        Raises:
            LookupError: The pose is unknown.
        """
        target = self._estimate.frame
        if frame in ("", target):
            return 0.0, 0.0, 0.0
        if not target:
            raise LookupError(
                f"{topic} is in frame {frame!r}; the state names none, set state_frame"
            )
        if self.transform is None:
            raise LookupError(
                f"{topic} is in frame {frame!r} and the state in {target!r}; nothing transforms "
                "them"
            )
        if stamp_ns and hasattr(self.transform, "at"):
            return self.transform.at(target, frame, stamp_ns)
        return self.transform(target, frame)
