# SPDX-License-Identifier: Apache-2.0
"""Makes text from messages, recordings and user errors safe to print."""

from __future__ import annotations

import unicodedata

#: Longest text that is shown, in characters.
LONGEST = 2000
#: Categories of characters that steer a terminal or reorder a line: control, format, surrogate,
#: private, unassigned, and separators of lines and paragraphs.
STEERING = ("C", "Zl", "Zp")


def printable(text: str, longest: int = LONGEST) -> str:
    """Return a text on one line in which characters that steer a terminal are written out.

    Args:
        text: Any text, for example the name of a topic.
        longest: Number of characters beyond which the text is cut.
    """
    words = " ".join(text[: 4 * longest].split())
    shown = "".join(_written_out(c) for c in words)
    return shown if len(shown) <= longest else f"{shown[:longest]} …"


def _written_out(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else f"\\x{ord(character):02x}"
    if unicodedata.category(character).startswith(STEERING):
        return character.encode("unicode_escape").decode()
    return character
