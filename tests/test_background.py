# SPDX-License-Identifier: Apache-2.0
"""Compiling beside the control loop, in a thread or another process, and the switch after it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mpc_banded.cli import main
from mpc_banded.codegen import build
from mpc_banded.codegen.cache import LibraryCache, NotBuilt
from mpc_banded.control import background
from mpc_banded.control.background import NICENESS, CompilationFailed, Compiler, OtherProcess
from mpc_banded.control.build import build_controller
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.path import PathReference
from mpc_banded.ocp import compiled
from mpc_banded.ocp.compiled import compile_evaluator, load_evaluator
from mpc_banded.robots.robot import BUILT_IN
from mpc_banded.ros.demo.scenarios import figure_of_eight

PATIENCE_S = 60.0
SHORT = {"robot": "cartpole", "horizon": 4}
#: A robot whose cost sorts, which the eager derivatives can do and the compiler cannot.
SORTS = """
import torch
from mpc_banded.robots import Robot

robot = Robot(
    name="sorts", states=("rail", "rail_velocity"), inputs=("force",),
    state_message="joint_states", command_message="effort",
    reference_message="joint_trajectory", reference=("rail",),
    dynamics=lambda x, u, p: torch.stack([x[..., 1], u[..., 0]], dim=-1),
    stage_costs={"least": lambda x, u, p: (torch.sort(x).values[..., 0] - 1.0) ** 2,
                 "effort": lambda x, u, p: u[..., 0] ** 2},
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache with nothing in it, for this process and those that it starts."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MPC_BANDED_CACHE", str(folder))
    return folder


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Puts a shell script in place of the compiler."""
    real = build.c_compiler()[0]

    def replaced(lines):
        script = tmp_path / "cc"
        script.write_text("#!/bin/sh\n" + lines.format(real=real, folder=tmp_path) + "\n")
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))

    return replaced


@pytest.fixture
def parameters(tmp_path):
    """Writes a parameter file; returns its path."""

    def written(**values):
        file = tmp_path / "parameters.yaml"
        # JSON is YAML.
        file.write_text(json.dumps({"/**": {"ros__parameters": SHORT | values}}))
        return file

    return written


@pytest.fixture
def begin():
    """Starts compilations of one kind, and ends them with the test."""
    begun = []

    def started(kind, config):
        begun.append(kind(config) if kind is OtherProcess else kind(missing(config)))
        return begun[-1]

    yield started
    for compilation in begun:
        compilation.close()


def missing(config):
    """How to build what the cache does not have."""
    with pytest.raises(NotBuilt) as error:
        compile_evaluator(build_controller(config).evaluator, build=False)
    return error.value


@pytest.fixture(autouse=True)
def _signals():
    """The command handles SIGTERM; the tests call it in their own process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


def group(number):
    """Processes of a process group that are not about to be buried."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(of_group) == number and state != "Z":
            found.append(int(folder.name))
    return found


# --- the command ----------------------------------------------------------------------------


@pytest.mark.slow
def test_command_prints_the_path_of_what_it_built_and_then_needs_no_compiler(
    folder, parameters, capsys, monkeypatch
):
    arguments = ["compile", "--params", str(parameters())]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert first.err == ""
    path = Path(first.out.removesuffix("\n"))
    assert sorted(folder.iterdir()) == [path.with_suffix(".json"), path]
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert main(arguments) == 0
    assert capsys.readouterr() == first
    assert main(["compile", "--params", str(parameters(horizon=5))]) == 2
    assert "no C compiler" in capsys.readouterr().err


def refused(capsys, file):
    """What the command says when it fails."""
    assert main(["compile", "--params", str(file)]) == 2
    output, sentence = capsys.readouterr()
    assert output == ""
    assert sentence.startswith("not compiled: ")
    assert sentence.count("\n") == 1
    return sentence


def test_command_says_in_a_sentence_why_it_cannot(
    folder, parameters, compiler, capsys, tmp_path, monkeypatch
):
    assert "horizn is 3" in refused(capsys, parameters(horizn=3))
    assert "nowhere.yaml cannot be read" in refused(capsys, tmp_path / "nowhere.yaml")
    (tmp_path / "sorting_robots.py").write_text(SORTS)
    monkeypatch.syspath_prepend(tmp_path)
    assert "aten.sort" in refused(capsys, parameters(robot="sorting_robots:robot"))
    (tmp_path / "odd_robots.py").write_text(
        SORTS.replace("torch.sort(x).values[..., 0]", "x[:, 0]")
    )
    assert "couples stages" in refused(capsys, parameters(robot="odd_robots:robot"))
    compiler("echo one >&2; echo two >&2; exit 1")
    assert "failed: one two\n" in refused(capsys, parameters())
    assert list(folder.iterdir()) == []
    folder.chmod(0o770)
    assert "chmod 700" in refused(capsys, parameters())


@pytest.mark.slow
def test_commands_at_once_build_once_and_name_one_library(folder, parameters, compiler):
    compiler('echo built >> {folder}/log; exec {real} "$@"')
    command = [sys.executable, "-m", "mpc_banded", "compile", "--params", str(parameters())]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (first, _), (second, _) = (process.communicate(timeout=PATIENCE_S) for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first == second
    assert (folder.parent / "log").read_text() == "built\n"
    LibraryCache().stored(Path(first.strip()))


# --- another process ------------------------------------------------------------------------


def test_configuration_survives_the_way_to_another_process(tmp_path):
    for robot in BUILT_IN:
        values = Config({"robot": robot, "dt": 1 / 30, "solver.kkt_tolerance": 1e-7}).values
        file = tmp_path / f"{robot}.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
        assert Config.load(file).values == values


@pytest.mark.slow
def test_other_process_is_nice_and_fills_the_cache(folder, begin, compiler, monkeypatch, tmp_path):
    """With a robot that only this process knows where to find, and that prints."""
    (tmp_path / "chatty_robots.py").write_text(
        "from mpc_banded.robots.cartpole import cartpole as robot\nprint('hello')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(SHORT | {"robot": "chatty_robots:robot"})
    compiler('nice > {folder}/niceness; exec {real} "$@"')
    controller = build_controller(config)
    controller.compile()
    damaged = controller.library
    damaged.unlink()  # in place it would be damaged in this process, too
    damaged.write_bytes(b"damaged")
    compilation = begin(OtherProcess, config)
    assert compilation.poll() is None
    library = until(compilation.poll)
    assert library == damaged
    assert compilation.poll() == library
    assert compilation.remarks == [f"{library} is damaged: it is rebuilt"]
    assert compilation.elapsed_s > 0.0
    assert (tmp_path / "niceness").read_text().strip() == str(os.nice(0) + NICENESS)
    assert sorted(folder.iterdir()) == [library.with_suffix(".json"), library]
    LibraryCache().stored(library)


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("echo noise >&2; echo 'not compiled: the reason' >&2; exit 2", "the reason"),
        ("echo Traceback >&2; echo 'NameError: x' >&2; exit 1", "NameError: x"),
        ("echo noise >&2; kill -KILL $$", "the process that compiles was killed by signal 9"),
        ("exit 0", "the process ended with exit status 0"),
    ],
)
def test_failure_comes_back_in_the_words_of_the_other_process(
    begin, monkeypatch, tmp_path, does, told
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    compilation = begin(OtherProcess, Config(SHORT))
    with pytest.raises(CompilationFailed) as failure:
        until(compilation.poll)
    assert str(failure.value) == told


def test_no_process_at_all_is_an_error_of_the_system(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError):
        OtherProcess(Config(SHORT))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OtherProcess, Compiler])
def test_end_while_the_compiler_runs_leaves_no_process_and_no_file(
    folder, begin, compiler, tmp_path, kind
):
    """Not even one that the compiler has started, as gcc does, and that is in no hurry."""
    compiler("(trap '' TERM; while :; do sleep 0.1; done) & echo $! > {folder}/number; wait")
    compilation = begin(kind, Config(SHORT))
    file = tmp_path / "number"
    number = int(until(lambda: file.is_file() and file.read_text()))
    leader = os.getpgid(number)
    assert leader != os.getpgid(0)
    assert number in group(leader)
    assert any(folder.iterdir())
    compilation.close()
    assert until(lambda: not group(leader))
    assert list(folder.iterdir()) == []
    compilation.close()  # once more does no harm


# --- the compiler alone ---------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_short_functions_need_no_other_process(monkeypatch):
    config = Config(SHORT)
    for length, kind in ((compiled.LOOKED_UP, Compiler), (10, OtherProcess)):
        monkeypatch.setattr(compiled, "LOOKED_UP", length)
        compilation = background.begin(config, missing(config))
        assert isinstance(compilation, kind)
        compilation.close()


def test_compiler_is_nice_and_fills_the_cache(folder, begin, compiler, tmp_path):
    compiler('sleep 0.5; nice > {folder}/niceness; exec {real} "$@"')
    compilation = begin(Compiler, Config(SHORT))
    library = until(compilation.poll)
    assert compilation.poll() == library
    assert compilation.elapsed_s > 0.0
    assert (tmp_path / "niceness").read_text().strip() == str(os.nice(0) + NICENESS)
    assert sorted(folder.iterdir()) == [library.with_suffix(".json"), library]
    controller = build_controller(Config(SHORT))
    controller.evaluator = load_evaluator(controller.evaluator, library)
    assert controller.library == library


def test_failure_of_the_compiler_comes_back_in_one_line(folder, begin, compiler):
    compiler("echo one >&2; echo two >&2; exit 1")
    compilation = begin(Compiler, Config(SHORT))
    with pytest.raises(CompilationFailed, match=r"failed: one two$"):
        until(compilation.poll)
    assert list(folder.iterdir()) == []


# --- the switch -----------------------------------------------------------------------------

DRIVING = {
    "unicycle": {"horizon": 10, "dt": 0.1, "obstacles": [1.2, 0.1, 0.2]},
    "bicycle": {"horizon": 10, "dt": 0.1},
    "cartpole": {"horizon": 10, "simulator.initial_state": [0.5, 0.2, 0.0, 0.0]},
}


def state_message(robot, values):
    """What the robot's state message would be, without ROS."""

    def vector():
        return SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)

    pose = SimpleNamespace(position=vector(), orientation=vector())
    twist = SimpleNamespace(linear=vector(), angular=vector())
    message = SimpleNamespace(pose=SimpleNamespace(pose=pose), twist=SimpleNamespace(twist=twist))
    robot.state_topics[0].fill(message, values)
    return message


@pytest.mark.slow
@pytest.mark.parametrize("robot", DRIVING)
def test_switch_between_two_cycles_is_invisible_in_the_commands(robot):
    """The same states, through a loop that goes over to compiled derivatives and one that not."""
    config = Config({"robot": robot} | DRIVING[robot])
    compiled = build_controller(config)
    compiled.compile()
    loops = [ControlLoop(config) for _ in range(2)]
    for loop in loops:
        loop.reference = loop.reference or PathReference(figure_of_eight(), 0.8)
    simulation = Simulation(config)
    for cycle in range(40):
        now_ns = round(1e9 * cycle * config.period_s)
        if cycle == 15:
            loops[1].controller.evaluator = load_evaluator(
                loops[1].controller.evaluator, compiled.library
            )
        ticks = []
        for loop in loops:
            topic = config.robot.state_topics[0].topic
            loop.on_message(topic, state_message(config.robot, simulation.values), now_ns)
            ticks.append(loop.tick(now_ns))
        assert [tick.driving for tick in ticks] == [True, True]
        eager, other = (list(tick.command.values()) for tick in ticks)
        assert other == pytest.approx(eager, rel=1e-9, abs=1e-9)
        simulation.advance(ticks[0].command, config.period_s)
    assert [loop.controller.library for loop in loops] == [None, compiled.library]
