# SPDX-License-Identifier: Apache-2.0
"""The README's code runs, and the files, commands, topics and exit codes in it exist."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mpc_banded import cli
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.robots import messages
from mpc_banded.robots.robot import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def table(title):
    """Cells of the table whose first column has this title, without its head."""
    rows = re.search(rf"^\| {title} \|.*\n((?:\|.*\n)+)", README, flags=re.MULTILINE)[1]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()[1:]]


def test_every_block_is_tried_here():
    assert {kind for kind, _ in BLOCKS} == {"python", "yaml", "console"}


def test_the_robot_of_the_readme_is_built_from_its_parameter_file(tmp_path, monkeypatch):
    (robot,) = [text for text in blocks("python") if text.startswith("# my_robots.py")]
    (parameters,) = blocks("yaml")
    (tmp_path / "my_robots.py").write_text(robot, encoding="utf-8")
    (tmp_path / "slider.yaml").write_text(parameters, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path])
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


def test_our_own_commands_are_accepted():
    commands = re.findall(
        r"^mpc_banded (.*?)(?: *#.*)?$", "\n".join(blocks("console")), re.MULTILINE
    )
    assert len(commands) >= 4
    for command in commands:
        cli._parser().parse_args(shlex.split(command))  # exits where it refuses


@pytest.mark.ros
def test_the_path_to_an_own_robot_is_walked_as_written(tmp_path):
    (block,) = [text for text in blocks("console") if "mpc_banded new" in text]
    new, check, demo = (shlex.split(line) for line in block.splitlines())
    for words in (new, check, [*demo, "--duration", "4"]):
        assert words[0] == "mpc_banded"
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "NO" not in done.stdout
    summary = json.loads((tmp_path / "out/demo/summary.json").read_text("utf-8"))
    assert summary["robot"] == "my_robot"
    assert summary["duration_s"] > 3.0
    names = {path.name for path in (tmp_path / "out/demo").iterdir()}
    assert names == {"summary.json", "plot.png", "bag"}


def test_exit_codes_are_those_of_the_command_line():
    codes = {int(code): meaning for code, meaning, _ in table("code")}
    told = {int(code) for code in re.findall(r"^ +(\d+) ", cli.EPILOG, flags=re.MULTILINE)}
    assert set(codes) == told == {cli.DONE, 1, cli.REFUSED, cli.INTERRUPTED, cli.TERMINATED}
    for code, number in ((cli.INTERRUPTED, "Ctrl-C"), (cli.TERMINATED, "SIGTERM")):
        assert number in codes[code]


def test_every_topic_of_a_robot_and_of_the_node_is_listed():
    listed = {
        name: kinds
        for names, kinds, _ in table("topic")
        for name in re.findall(r"`([^`]+)`", names)
    }
    for robot in BUILT_IN:
        loop = ControlLoop(Config({"robot": robot}))
        command = loop.config.command_topic
        for topic, kind in {**loop.input_topics, command.topic: command.type}.items():
            assert kind.replace("/msg", "") in listed[topic]
    for make in messages.COMMANDS.values():
        command = make(("joint",))
        assert command.type.replace("/msg", "") in listed[command.topic]
    sources = (ROOT / "mpc_banded" / "ros").glob("*.py")
    created = re.findall(
        r'create_publisher\(\s*\w+, f?"(~/\w+)', "".join(f.read_text("utf-8") for f in sources)
    )
    assert {name.removesuffix("/*") for name in listed if name.startswith("~")} == set(created)


@pytest.mark.ros
def test_every_metric_that_is_published_is_explained():
    telemetry = pytest.importorskip("mpc_banded.ros.telemetry")
    page = (ROOT / "docs" / "node.md").read_text(encoding="utf-8")
    _, _, rows = page.partition("| topic below `~/telemetry/` |")
    listed = re.findall(r"^\| `([\w/<>]+)` \|", rows, flags=re.MULTILINE)
    assert listed == [*telemetry.CYCLE_METRICS, *telemetry.SOLVE_METRICS, "cost/<name>"]


def test_every_launch_argument_is_listed():
    source = (ROOT / "launch" / "mpc.launch.py").read_text(encoding="utf-8")
    arguments = re.findall(r'^    \("(\w+)", "', source, flags=re.MULTILINE)
    (listed,) = re.findall(r"Launch arguments: (.*?)\. For your own", README, flags=re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == arguments


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
    for target in re.findall(r"`(docs/[\w./]+)`", README):
        assert (ROOT / target).is_file(), target
