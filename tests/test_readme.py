# SPDX-License-Identifier: Apache-2.0
"""The README's code runs, and the files and commands that it names exist."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def test_every_block_is_tried_here():
    assert {kind for kind, _ in BLOCKS} == {"python", "yaml", "console"}


def test_the_robot_of_the_readme_is_built_from_its_parameter_file(tmp_path, monkeypatch):
    (robot,) = [text for text in blocks("python") if text.startswith("# my_robots.py")]
    (parameters,) = blocks("yaml")
    (tmp_path / "my_robots.py").write_text(robot, encoding="utf-8")
    (tmp_path / "slider.yaml").write_text(parameters, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = Config.load(tmp_path / "slider.yaml")
    loop = ControlLoop(config)
    assert config.parameters.limits["force"] == (-3.0, 3.0)
    assert dict(loop.controller.weights) == {"position": 20.0, "effort": 0.1}
    body = [
        line
        for line in robot.splitlines()
        if line and not line.startswith(("#", "import", "from"))
    ]
    assert len(body) <= 11  # ten lines, and a bracket


@pytest.mark.parametrize(
    "text", [text for text in blocks("python") if not text.startswith("# my_robots.py")]
)
def test_python_blocks_run(text, tmp_path):
    script = tmp_path / "block.py"
    script.write_text(text, encoding="utf-8")
    runpy.run_path(str(script))


def test_commands_name_what_there_is():
    text = "\n".join(blocks("console"))
    for target in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        run = [shutil.which("make"), "-n", target, "-C", str(ROOT)]
        assert subprocess.run(run, capture_output=True, check=False).returncode == 0
    (package, launch_file, arguments) = re.findall(r"ros2 launch (\w+) (\S+)(.*)", text)[0]
    assert package == "mpc_banded"
    source = (ROOT / "launch" / launch_file).read_text(encoding="utf-8")
    names = re.findall(r"(\w+):=", arguments)
    assert names
    assert all(f'"{name}"' in source for name in names)


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
    for target in re.findall(r"`(docs/[\w./]+)`", README):
        assert (ROOT / target).is_file(), target
