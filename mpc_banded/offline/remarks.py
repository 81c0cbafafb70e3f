# SPDX-License-Identifier: Apache-2.0
"""Remarks for the user on a replay, beside its results."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from dataclasses import dataclass, field

from mpc_banded.control.record import Cycle
from mpc_banded.control.text import printable

#: Numbers in the reason of a rejection; they are removed to count reasons of one kind.
NUMBER = re.compile(r"(?<![\w.])-?\d+(\.\d+)?(e[-+]?\d+)?")
#: Most sentences, and most kinds of rejection, that a replay keeps.
MOST = 50
#: Difference of commands, relative beyond 1, up to which another machine repeats a recording.
ELSEWHERE = 1e-6
#: Number of stamps from which the offset of a clock is taken, and how far they may be ahead.
SAMPLES, AHEAD_S = 1000, 0.05


@dataclass
class Remarks:
    """Remarks on one replay.

    Attributes:
        notes: Sentences for the user.
        rejected: Reason, with … for its numbers -> number of messages rejected for it.
        missing: Number of messages that the node had and the recording lacks.
        missing_until: Cycle before which the last of them came; -1 if there is none.
    """

    notes: list[str] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    missing_until: int = -1

    def note(self, sentence: str) -> None:
        """Keep a sentence, once, up to a largest number of sentences."""
        if sentence not in self.notes and len(self.notes) < MOST:
            self.notes.append(sentence)

    def reject(self, reason: str) -> None:
        """Count a rejected message."""
        kind = NUMBER.sub("…", printable(reason, 300))
        self.rejected[kind if kind in self.rejected or len(self.rejected) < MOST else "…"] += 1

    def skip(self, begin_ns: int, end_ns: int) -> None:
        """Note a silence in which the robot is not stepped."""
        self.note(
            f"nothing was recorded for {_duration(1e-9 * (end_ns - begin_ns))} after "
            f"{1e-9 * begin_ns:.3f} s; the cycles in that time are left out"
        )

    def lack(self, topic: str, stamp_ns: int, cycle: int) -> None:
        """Note a message that the node had before a cycle and the recording lacks."""
        self.missing += 1
        self.missing_until = cycle
        if self.missing == 1:
            self.note(
                f"the bag lacks a message of {topic}, stamped {1e-9 * stamp_ns:.3f} s, that the "
                f"node had before cycle {cycle}: commands after it may differ; record on the "
                "machine of the node, with enough disk"
            )

    def compare_machines(self, recorded: str, here: str) -> None:
        """Note that the recording comes from a machine whose last digits differ."""
        if recorded and recorded != here:
            self.note(
                f"recorded on another machine ({recorded}; this one is {here}): the last digits "
                f"of sine, cosine and others may differ, and commands by about {ELSEWHERE:g}"
            )

    def compare_sequence(self, cycle: Cycle, last: Cycle | None) -> None:
        """Note cycles that were not recorded."""
        before = -1 if last is None else last.number
        if cycle.number == before + 1:
            return
        if last is None:
            self.note(
                f"the record begins with cycle {cycle.number}: what the loop had learnt before is "
                "not known, so the first commands may differ; start the recorder before the node"
            )
        else:
            self.note(
                f"cycles {before + 1} to {cycle.number - 1} are not on record: commands after "
                "them may differ"
            )


class Clocks:
    """Compares the stamps of states with the times at which they were recorded.

    Args:
        max_age_s: Age beyond which a state is too old to drive on.
    """

    def __init__(self, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self._offsets: dict[str, list[float]] = {}

    def take(self, topic: str, stamp_ns: int, recorded_ns: int) -> None:
        """Compare the stamp of one message; zero counts as none."""
        offsets = self._offsets.setdefault(topic, [])
        if stamp_ns and len(offsets) < SAMPLES:
            offsets.append(1e-9 * (stamp_ns - recorded_ns))

    @property
    def sentences(self) -> list[str]:
        """Return one sentence for each topic whose clock makes its states useless."""
        found = []
        for topic, offsets in self._offsets.items():
            offset_s = statistics.median(offsets) if offsets else 0.0
            if -self._max_age_s <= offset_s <= AHEAD_S:
                continue
            side = "ahead of" if offset_s > 0.0 else "behind"
            found.append(
                f"stamps of {topic} are {_duration(abs(offset_s))} {side} the times of recording, "
                "so its states do not count; if the clocks differ, add --set "
                "use_header_stamps=false"
            )
        return found


def _duration(seconds: float) -> str:
    """Return a duration in a unit that suits its size."""
    for unit, length in (("years", 31_557_600.0), ("days", 86_400.0), ("hours", 3600.0)):
        if seconds >= 2.0 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s"
