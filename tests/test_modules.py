# SPDX-License-Identifier: Apache-2.0
"""The module of a robot is found beside its parameter file, and never mistaken for another one."""

import importlib
import subprocess
import sys

import pytest

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.robots import modules

ROBOT = """
import dataclasses
from mpc_banded.robots.unicycle import unicycle
robot = dataclasses.replace(unicycle, name={name!r})
"""
PARAMETERS = "/**: {{ros__parameters: {{robot: '{module}:robot'}}}}\n"


def write(folder, name, module="my_base"):
    """A robot and its parameter file, which is returned."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(ROBOT.format(name=name), encoding="utf-8")
    file = folder / "params.yaml"
    file.write_text(PARAMETERS.format(module=module), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """Nothing that a test makes importable stays so."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(modules, "_folders", [])
    yield
    for name in ("my_base", "my_base.robots", "colorsys"):
        sys.modules.pop(name, None)


def test_a_robot_is_found_beside_its_file_from_anywhere(tmp_path, monkeypatch):
    file = write(tmp_path / "robot", "mine")
    monkeypatch.chdir(tmp_path)
    assert Config.load(file.relative_to(tmp_path)).robot.name == "mine"


def test_a_process_that_is_started_with_our_path_finds_it_too(tmp_path):
    Config.load(write(tmp_path / "robot", "mine"))
    code = f"import sys; sys.path[:] = {sys.path!r}; import my_base; print(my_base.robot.name)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "mine"


def test_parameters_alone_look_nowhere(tmp_path):
    write(tmp_path / "robot", "mine")
    with pytest.raises(ConfigError, match="No module named 'my_base'; allowed are modules beside"):
        Config({"robot": "my_base:robot"})


def test_a_file_never_hides_a_library(tmp_path):
    sys.modules.pop("colorsys", None)
    with pytest.raises(ConfigError, match=r"colorsys.py hides .*/robot/colorsys.py.*another name"):
        Config.load(write(tmp_path / "robot", "mine", "colorsys"))
    assert hasattr(importlib.import_module("colorsys"), "rgb_to_hsv")


def test_a_module_of_the_same_name_from_another_folder_is_not_driven(tmp_path):
    first, second = write(tmp_path / "one", "one"), write(tmp_path / "two", "two")
    assert Config.load(first).robot.name == "one"
    with pytest.raises(ConfigError, match=r"one/my_base.py hides .*two/my_base.py"):
        Config.load(second)
    assert Config.load(first).robot.name == "one"


def test_a_package_is_found_as_well(tmp_path):
    file = write(tmp_path, "deep", "robots")
    package = tmp_path / "my_base"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "robots.py").rename(package / "robots.py")
    file.write_text(PARAMETERS.format(module="my_base.robots"), encoding="utf-8")
    assert Config.load(file).robot.name == "deep"
