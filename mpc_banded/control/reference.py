# SPDX-License-Identifier: Apache-2.0
"""References along the horizon, from which ``p["reference"]`` is made.

A reference gets the state and the stage times, and returns named columns (N + 1,). Columns that it
does not name are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np


class Reference(Protocol):
    """A reference along the horizon."""

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Return named columns (N + 1,).

        Args:
            state: State at ``now_s`` by name.
            times: Stage times (N + 1,), in s after ``now_s``.
            now_s: Time of the first stage.
        """

    def ended(self, now_s: float) -> bool:
        """Return whether the reference moves no further."""


class MovedReference:
    """A planar reference in another frame, which may drift against the frame of the state.

    Args:
        inner: The reference in its own frame.
        pose: Returns the pose x, y, yaw of that frame in the frame of the state. If it raises
            LookupError later, the last pose counts.

    Raises:
        LookupError: The pose is unknown.
    """

    def __init__(self, inner: Reference, pose: Callable[[], tuple[float, float, float]]) -> None:
        self.inner, self._pose, self._last = inner, pose, pose()

    def columns(
        self, state: Mapping[str, float], times: np.ndarray, now_s: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Return the columns of the inner reference, x, y and yaw in the frame of the state."""
        with suppress(LookupError):
            self._last = self._pose()
        columns = self.inner.columns({**state, **self.there(state)}, times, now_s)
        x, y, yaw = self._here(columns["x"], columns["y"], columns["yaw"])
        return {**columns, "x": x, "y": y, "yaw": yaw}

    def there(self, state: Mapping[str, float]) -> dict[str, float]:
        """Return x, y and yaw of a state in the frame of the inner reference."""
        x0, y0, turn = self._last
        c, s = np.cos(turn), np.sin(turn)
        dx, dy = state["x"] - x0, state["y"] - y0
        yaw = state.get("yaw", 0.0) - turn
        return {"x": float(c * dx + s * dy), "y": float(c * dy - s * dx), "yaw": yaw}

    @property
    def goal(self) -> tuple[float, float, float] | None:
        """Pose at the end in the frame of the state; None if the inner reference has no end."""
        goal = getattr(self.inner, "goal", None)
        return None if goal is None else self._here(*goal)

    def _here(self, x: Any, y: Any, yaw: Any) -> tuple[Any, Any, Any]:
        x0, y0, turn = self._last
        c, s = np.cos(turn), np.sin(turn)
        return x0 + c * x - s * y, y0 + s * x + c * y, yaw + turn

    def ended(self, now_s: float) -> bool:
        """Return whether the inner reference has ended."""
        return self.inner.ended(now_s)


def inner(reference: Reference | None) -> Reference | None:
    """Return a reference in its own frame."""
    return reference.inner if isinstance(reference, MovedReference) else reference


def stacked(
    columns: Mapping[str, np.ndarray], names: Sequence[str], times: np.ndarray
) -> np.ndarray:
    """Return the columns of the given names side by side, (N + 1, names); others are zero."""
    zero = np.zeros(len(times))
    return np.stack([columns.get(name, zero) for name in names], axis=1)
