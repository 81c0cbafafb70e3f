# SPDX-License-Identifier: Apache-2.0
"""A few episodes of the soak: no law is broken, and a broken one is noticed."""

from dataclasses import replace

import pytest
from soak import Breach, Episode, check_allowed, run_episode


@pytest.mark.parametrize("seed", [0, 2, 3, 5])
def test_no_law_is_broken(seed):
    result = run_episode((seed, 40, False))
    assert not result["broke"]
    assert result["cycles"] == 40


def test_broken_laws_are_noticed():
    episode = Episode(0, compiled=False).run(30)
    tick = episode.loop.tick(round(1e9 * episode.now_s))
    name = next(iter(tick.command))
    check_allowed(tick, episode.config)
    for value in (float("nan"), float("inf"), 1e6):
        with pytest.raises(Breach):
            check_allowed(replace(tick, command={**tick.command, name: value}), episode.config)
    for reason in ("stopped: the cycle failed: KeyError()", "\x1b[2J", "x" * 2000):
        with pytest.raises(Breach):
            episode._check_reason(replace(tick, reason=reason))
