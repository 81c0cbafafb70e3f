# SPDX-License-Identifier: Apache-2.0
"""Turns errors of the user's functions into reasons, so that they stop no control loop.

Users write readers of messages, ``actuate``, dynamics, costs and transforms, which may raise
anything. The loop wraps each call; the error becomes a sentence that names the function: why a
message was rejected, or why the robot falls back.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from mpc_banded.control.text import printable

#: Longest reason, in characters: messages name what they have, and may have a lot.
LONGEST = 500
#: Folders whose code is not the user's.
_LIBRARIES = (
    str(Path(__file__).parents[1]),
    *(str(Path(str(module.__file__)).parent) for module in (torch, np)),
)


class UserCodeError(RuntimeError):
    """A function of the user raised; the message names the function and the error."""


class user_code:
    """Context in which any exception becomes a UserCodeError.

    Args:
        what: Beginning of the message: what failed.

    Raises:
        UserCodeError: The body raised an exception.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Begin the context."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wrap an exception; SystemExit and KeyboardInterrupt pass."""
        if isinstance(error, Exception) and not isinstance(error, UserCodeError):
            what = printable(f"{self._what}: {described(error)}", LONGEST)
            raise UserCodeError(f"{what}{_place(trace)}") from error


def reason_for_rejection(take: Callable[..., None], *arguments: Any) -> str | None:
    """Call ``take`` with a message; returns why it raised, or None if it accepted the message."""
    try:
        take(*arguments)
    except (LookupError, UserCodeError, ValueError) as error:
        return printable(str(error.args[0]) if error.args else repr(error), LONGEST)
    except Exception as error:
        return printable(described(error), LONGEST)
    return None


def described(error: BaseException) -> str:
    """Return the representation of an error, which the user may have written, too."""
    try:
        return repr(error)
    except Exception:
        return type(error).__name__


def _place(trace: TracebackType | None) -> str:
    """Return the innermost function of the user, or else of all, as ``(in name, file:line)``."""
    frames = list(traceback.extract_tb(trace))
    if not frames:
        return ""
    theirs = [f for f in frames if not f.filename.startswith((*_LIBRARIES, "<"))]
    innermost = (theirs or frames)[-1]
    name, file, line = innermost.name, Path(innermost.filename).name, innermost.lineno
    return f" (in {name}, {file}:{line})"
