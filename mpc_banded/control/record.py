# SPDX-License-Identifier: Apache-2.0
"""The record of a cycle, with all that a replay needs to repeat it bit for bit.

The node publishes one at each tick, as pairs of strings; a replay reads it back. Which message
came in time for which tick, how long a solve was allowed to take, when a parameter changed: none
of that is in the messages themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mpc_banded.codegen.build import machine
from mpc_banded.control.tick import Tick
from mpc_banded.ocp.solver import Status
from mpc_banded.robots.messages import stamp_ns_of


class Receipt(NamedTuple):
    """A message that was handed to the loop.

    Attributes:
        topic: Its relative name.
        stamp_ns: Its header's stamp, zero where it has none.
        received_ns: When it came.
    """

    topic: str
    stamp_ns: int
    received_ns: int


@dataclass(frozen=True)
class Cycle:
    """The record of one cycle.

    Attributes:
        number: Number of the cycle, from 0.
        now_ns: Time of the tick.
        latency_s: Expected time from the tick until its command is sent.
        iterations: Newton iterations after which the deadline cut the solve off; None if nothing
            was cut off.
        deadline: Whether there was a deadline.
        derivatives: Derivatives in use, ``eager`` or ``compiled``.
        enabled: Whether the loop was enabled.
        starts: How often the loop had started to command.
        resets: How often it had been reset on request.
        received: Messages handed over since the cycle before, in their order.
        changed: Parameters that changed since then, by name.
        command: Name -> value.
        code, reason: See Tick.
        machine: Processor and C library of the node, on which the last bits depend; in the first
            record only, and empty in others.
    """

    number: int
    now_ns: int
    latency_s: float
    iterations: int | None
    deadline: bool
    derivatives: str
    enabled: bool
    starts: int
    resets: int
    received: tuple[Receipt, ...]
    changed: dict[str, Any]
    command: dict[str, float]
    code: str
    reason: str
    machine: str = ""

    def values(self) -> dict[str, str]:
        """Return the record as pairs of strings; ``parse`` returns exactly the same record."""
        receipts = (f"{topic} {stamp} {time}" for topic, stamp, time in self.received)
        return {
            "cycle": str(self.number),
            "now_ns": str(self.now_ns),
            "latency_s": repr(self.latency_s),
            "cut_off_after": "" if self.iterations is None else str(self.iterations),
            "deadline": str(int(self.deadline)),
            "derivatives": self.derivatives,
            "enabled": str(int(self.enabled)),
            "starts": str(self.starts),
            "resets": str(self.resets),
            "received": "; ".join(receipts),
            "changed": json.dumps(self.changed),
            **{f"command.{name}": repr(float(x)) for name, x in self.command.items()},
            "code": self.code,
            "reason": self.reason,
            **({"machine": self.machine} if self.machine else {}),
        }

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> Cycle:
        """Return the record of pairs of strings; raises ValueError that names what is wrong."""
        try:
            return cls(
                number=int(values["cycle"]),
                now_ns=int(values["now_ns"]),
                latency_s=float(values["latency_s"]),
                iterations=int(values["cut_off_after"]) if values["cut_off_after"] else None,
                deadline=bool(int(values["deadline"])),
                derivatives=values["derivatives"],
                enabled=bool(int(values["enabled"])),
                starts=int(values["starts"]),
                resets=int(values["resets"]),
                received=tuple(_receipts(values["received"])),
                changed=json.loads(values["changed"]),
                command=_section(values, "command."),
                code=values["code"],
                reason=values["reason"],
                machine=values.get("machine", ""),
            )
        except KeyError as error:
            raise ValueError(f"the record of a cycle lacks {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"the record of a cycle cannot be read: {error}") from error


class Journal:
    """Collects what reaches a loop, and makes the record of each cycle from it.

    Attributes:
        derivatives: Derivatives in use, ``eager`` or ``compiled``.
    """

    def __init__(self) -> None:
        self.derivatives = "eager"
        self._number = 0
        self._starts = self._resets = 0
        self._received: list[Receipt] = []
        self._changed: dict[str, Any] = {}

    def received(self, topic: str, message: Any, received_ns: int) -> None:
        """Note a message that was handed to the loop."""
        self._received.append(Receipt(topic, stamp_ns_of(message), received_ns))

    def changed(self, values: Mapping[str, Any]) -> None:
        """Note parameters that changed."""
        self._changed.update(values)

    def start(self) -> None:
        """Note that the loop starts to command."""
        self._starts += 1

    def reset(self) -> None:
        """Note that the loop was reset on request."""
        self._resets += 1

    def cycle(self, tick: Tick, *, deadline: bool, enabled: bool) -> Cycle:
        """Return the record of a cycle, with all that was noted since the one before.

        Args:
            tick: What the loop decided.
            deadline: Whether it had a deadline.
            enabled: Whether the loop was enabled.
        """
        number, received, changed = self._number, tuple(self._received), self._changed
        self._number, self._received, self._changed = number + 1, [], {}
        return Cycle(
            number=number,
            now_ns=tick.now_ns,
            latency_s=tick.latency_s,
            iterations=_cut_off_after(tick),
            deadline=deadline,
            derivatives=self.derivatives,
            enabled=enabled,
            starts=self._starts,
            resets=self._resets,
            received=received,
            changed=changed,
            command=dict(tick.command),
            code=tick.code.value,
            reason=tick.reason,
            machine=machine() if number == 0 else "",
        )


def solve_metrics(tick: Tick) -> dict[str, float]:
    """Return metrics of a tick; only a deadline makes them depend on the speed of the machine."""
    metrics = {} if math.isinf(tick.state_age_s) else {"state_age_s": tick.state_age_s}
    step = tick.step
    if step is not None:
        metrics |= {
            "iterations": float(step.iterations),
            "converged": float(step.status is Status.CONVERGED),
            "kkt_residual": step.kkt_residual,
            "defect_norm": step.defect_norm,
        }
        metrics |= {f"cost/{name}": value for name, value in step.cost_terms.items()}
    return metrics


def _cut_off_after(tick: Tick) -> int | None:
    if tick.step is None or tick.step.status is not Status.DEADLINE:
        return None
    return tick.step.iterations


def _receipts(text: str) -> list[Receipt]:
    found = []
    for part in text.split("; ") if text else []:
        topic, stamp, time = part.rsplit(" ", 2)
        found.append(Receipt(topic, int(stamp), int(time)))
    return found


def _section(values: Mapping[str, str], prefix: str) -> dict[str, float]:
    return {k.removeprefix(prefix): float(v) for k, v in values.items() if k.startswith(prefix)}
