# SPDX-License-Identifier: Apache-2.0
"""Processor time of candidates in turns, and of the parts of a Newton iteration.

Everything runs in one thread on one core, where processor time is the wall time of a machine that
does nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch

Name = TypeVar("Name")
#: A turn of a candidate lasts at least this long.
_TURN_S = 1e-3
_MOST_ROUNDS = 400
#: Method of an evaluator -> part of a solve that it does.
SOLVE_PARTS = {
    "system": "evaluate",
    "newton_step": "step",
    "merit": "line search",
    "cost_curvature": "cold start",
    "central_duals": "cold start",
}


def settle() -> None:
    """Stay on one core with one thread, so that the figures do not depend on the scheduler."""
    if not {os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")} <= {"1"}:
        raise SystemExit("set OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1, as make does")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def interleaved(
    candidates: Mapping[Name, Callable[[], object]], seconds: float, at_least: int = 3
) -> dict[Name, float]:
    """Median processor time of each candidate in seconds.

    Every candidate has its turn in each round, so that a disturbance hits all alike; a short one
    is called several times in its turn. Rounds go on for ``seconds``. The first round warms up
    and does not count.
    """
    samples: dict[Name, list[float]] = {name: [] for name in candidates}
    calls = dict.fromkeys(candidates, 1)
    began = time.process_time()
    rounds = 0
    while rounds <= at_least or time.process_time() - began < seconds:
        for name, candidate in candidates.items():
            if calls[name] > 1:
                candidate()  # the candidate before has emptied the caches
            start = time.process_time()
            for _ in range(calls[name]):
                candidate()
            samples[name].append((time.process_time() - start) / calls[name])
        if not rounds:
            calls = {name: int(np.clip(_TURN_S / t[0], 1, 50)) for name, t in samples.items()}
        rounds += 1
        if rounds > _MOST_ROUNDS:
            break
    return {name: float(np.median(times[1:])) for name, times in samples.items()}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x by least squares; NaN for a single point, or with zeros."""
    if len(x) < 2 or min(y) <= 0.0:
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@contextmanager
def stopwatch(
    owner: object, methods: Mapping[str, str], clock: Callable[[], float] = time.process_time
) -> Iterator[dict[str, list[float]]]:
    """Part -> seconds of each call, for the methods of ``owner``: method -> part.

    Where one timed method calls another, the time belongs to the outer one alone, so the parts
    never add up to more than the whole.
    """
    seconds: dict[str, list[float]] = {part: [] for part in methods.values()}
    running = False

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal running
            if running:
                return method(*arguments, **options)
            running, began = True, clock()
            try:
                return method(*arguments, **options)
            finally:
                seconds[part].append(clock() - began)
                running = False

        return call

    with ExitStack() as patches:
        for name, part in methods.items():
            call = timed(part, getattr(owner, name))
            patches.enter_context(mock.patch.object(owner, name, call))
        yield seconds
