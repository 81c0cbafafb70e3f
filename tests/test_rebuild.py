# SPDX-License-Identifier: Apache-2.0
"""A controller for changed parameters is built beside the loop, and stays compiled."""

import logging
import time

import pytest
from loop_messages import AHEAD, ns, odometry

from mpc_banded.control import background
from mpc_banded.control.background import CompilationFailed
from mpc_banded.control.build import build_controller
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.rebuild import Rebuild
from mpc_banded.ocp.controller import RecedingHorizonController

PATIENCE_S = 120.0
SHORT = {"robot": "unicycle", "horizon": 6, "dt": 0.1}


class Compilation:
    """A compilation whose outcome the test decides."""

    def __init__(self):
        self.remarks, self.elapsed_s, self.outcome, self.is_cancelled = [], 0.0, None, False

    def poll(self):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self):
        self.is_cancelled = True
        return True

    def close(self):
        pass


@pytest.fixture
def compilations(monkeypatch):
    """All compilations that are begun, newest last."""
    begun = []

    def begin(*_):
        begun.append(Compilation())
        return begun[-1]

    monkeypatch.setattr(background, "begin", begin)
    return begun


@pytest.fixture
def compiled():
    """A loop with compiled derivatives, and its rebuild."""
    # The robot of these tests stands, whatever it is told.
    loop = ControlLoop(Config({**SHORT, "movement_time_allowance": 3600.0}))
    loop.controller.compile()
    return loop, Rebuild(loop, logging.getLogger("test"))


def want(loop, rebuild, **updates):
    updates = {key.replace("__", "."): value for key, value in updates.items()}
    rebuild.want(loop.config.changed(updates), updates)


@pytest.mark.slow
def test_waiting_for_the_compiler_builds_one_controller(compiled, compilations, monkeypatch):
    loop, rebuild = compiled
    built, init = [], RecedingHorizonController.__init__
    want(loop, rebuild, dt=0.07)
    monkeypatch.setattr(
        RecedingHorizonController,
        "__init__",
        lambda *given, **more: built.append(1) or init(*given, **more),
    )
    for _ in range(30):
        rebuild.poll()
    assert (len(built), len(compilations)) == (1, 1)
    assert rebuild.under_way
    assert loop.config.values["dt"] == 0.1


@pytest.mark.slow
def test_change_that_the_library_covers_needs_no_compiler(compiled, compilations):
    loop, rebuild = compiled
    want(loop, rebuild, solver__max_iterations=7)
    rebuild.poll()
    assert loop.config.values["solver.max_iterations"] == 7
    assert (compilations, rebuild.derivatives, rebuild.under_way) == ([], "compiled", "")


def test_change_that_cannot_be_compiled_is_refused_and_the_robot_drives_on(compiled, compilations):
    loop, rebuild = compiled
    controller, reverted = loop.controller, []
    rebuild.revert = reverted.append
    want(loop, rebuild, dt=0.07)
    rebuild.poll()
    compilations[-1].outcome = CompilationFailed("no C compiler")
    rebuild.poll()
    assert (loop.controller, rebuild.derivatives, loop.config.values["dt"]) == (
        controller,
        "compiled",
        0.1,
    )
    assert "no C compiler" in rebuild.refused
    assert reverted == [loop.config]
    assert not rebuild.under_way
    want(loop, rebuild, dt=0.1)  # set back
    rebuild.poll()
    assert (loop.controller, rebuild.refused, len(compilations)) == (controller, "", 1)
    want(loop, rebuild, dt=0.07)  # and once more: the compiler may be there now
    rebuild.poll()
    assert len(compilations) == 2


@pytest.mark.slow
def test_change_that_needs_no_rebuild_waits_for_none(compiled, compilations):
    loop, rebuild = compiled
    want(loop, rebuild, dt=0.07)
    rebuild.poll()
    both = {"dt": 0.07, "weights.effort": 0.5}
    rebuild.want(loop.config.changed(both), {"weights.effort": 0.5})
    assert (loop.config.values["weights.effort"], loop.config.values["dt"]) == (0.5, 0.1)
    twin = build_controller(Config(SHORT | {"dt": 0.07}))
    twin.compile()
    compilations[-1].outcome = twin.library
    rebuild.poll()
    assert (loop.config.values["dt"], loop.controller.library) == (0.07, twin.library)
    assert loop.controller.weights["effort"] == 0.5
    assert len(compilations) == 1


@pytest.mark.slow
def test_newest_change_replaces_the_one_that_is_being_compiled(compiled, compilations):
    loop, rebuild = compiled
    for dt in (0.07, 0.08):
        want(loop, rebuild, dt=dt)
        rebuild.poll()
    assert [each.is_cancelled for each in compilations] == [True, False]
    twin = build_controller(Config(SHORT | {"dt": 0.08}))
    twin.compile()
    compilations[-1].outcome = twin.library
    rebuild.poll()
    assert loop.config.values["dt"] == 0.08


def test_loop_without_a_library_takes_a_change_at_once(compilations):
    loop = ControlLoop(Config(SHORT | {"compile": False}))
    rebuild = Rebuild(loop, logging.getLogger("test"))
    want(loop, rebuild, dt=0.07)
    rebuild.poll()
    assert (loop.config.values["dt"], rebuild.derivatives, compilations) == (0.07, "eager", [])


@pytest.mark.slow
def test_missing_compiler_is_no_reason_to_leave_compiled_derivatives(compiled, monkeypatch):
    """With the real compiler process, while the robot drives."""
    loop, rebuild = compiled
    loop.on_message("plan", AHEAD, 0)
    monkeypatch.setenv("CC", "/no/compiler/here")
    want(loop, rebuild, dt=0.09)
    simulation = Simulation(loop.config)
    end, cycle = time.monotonic() + PATIENCE_S, 0
    while rebuild.under_way or not cycle:
        rebuild.poll()
        loop.on_message("odom", odometry(**simulation.values), ns(0.05 * cycle))
        tick = loop.tick(ns(0.05 * cycle))
        assert tick.driving
        simulation.advance(tick.command, 0.05)
        cycle += 1
        assert time.monotonic() < end
        time.sleep(0.02)
    rebuild.close()
    assert (rebuild.derivatives, loop.config.values["dt"]) == ("compiled", 0.1)
    assert "not in PATH" in rebuild.refused
