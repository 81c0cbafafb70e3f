# SPDX-License-Identifier: Apache-2.0
"""Robots of the gallery do in closed loop what their demo demands, and what each is there for."""

import sys
from pathlib import Path

import numpy as np
import pytest
from rehearsal import rehearse

from mpc_banded.control.config import Config
from mpc_banded.robots import modules
from mpc_banded.ros.demo.scenarios import scenario_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(modules, "_folders", [])


def driven(name, *words, duration_s=None, **changes):
    """The run of an example that meets all demands of its demo."""
    config = Config.load(EXAMPLES / f"{name}.yaml", changes)
    run, summary, verdicts = rehearse(config, scenario_of(config, words, duration_s))
    assert all(verdict is True for verdict in verdicts.values()), verdicts
    assert summary["bound_violations"] == 0
    return run


def test_the_quadrotor_tilts_to_move_and_ends_level():
    run = driven("planar_quadrotor")
    assert 0.02 < np.abs(run.state("pitch")).max() < 0.8
    assert abs(run.state("pitch")[-1]) < 0.02


def test_two_poles_are_swung_up_and_stay_upright():
    run = driven("double_cartpole", duration_s=10.0)
    late = run.state_times > 7.0
    for name in ("lower", "upper"):
        angle = np.abs(np.angle(np.exp(1j * run.state(name))))
        assert angle[0] > 3.0
        assert angle[late].max() < 0.1


def test_the_race_car_slides_through_its_curves():
    run = driven("race_car", "figure8", duration_s=8.0)
    assert run.state("v")[run.state_times > 3.0].mean() > 2.0
    assert np.abs(run.state("slide")).max() > 0.05


def test_the_trailer_is_pushed_backwards_and_never_folds():
    run = driven("trailer", str(EXAMPLES / "trailer.csv"))
    assert run.state("v").max() < 0.3
    assert np.abs(run.state("hitch")).max() < 0.9
