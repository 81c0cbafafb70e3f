# SPDX-License-Identifier: Apache-2.0
"""`mpc_banded new` writes robots that work, completely or not at all, and overwrites nothing."""

import runpy
import sys
from pathlib import Path

import pytest
from rehearsal import rehearse

from mpc_banded import cli, templates
from mpc_banded.control.config import Config
from mpc_banded.robots import modules
from mpc_banded.ros.demo.scenarios import scenario_of

FOLDER = Path(templates.__file__).parent


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(modules, "_folders", [])
    known = set(sys.modules)
    yield
    for name in {name for name in set(sys.modules) - known if name.startswith("my_")}:
        del sys.modules[name]


def test_the_command_line_offers_every_template():
    assert tuple(templates.BASES) == cli.BASES
    files = {f"my_{base}{suffix}" for base in cli.BASES for suffix in (".py", ".yaml")}
    assert files == {path.name for path in FOLDER.iterdir() if path.name.startswith("my_")}


@pytest.mark.parametrize(
    ("base", "reference"),
    [
        ("unicycle", "goal 2.0 1.0 1.57"),
        ("bicycle", "line"),
        ("omni", "goal 2.0 -1.0 0.0"),
        ("joints", ""),
    ],
)
def test_a_template_does_what_its_demo_demands(base, reference):
    config = Config.load(FOLDER / f"my_{base}.yaml")
    _, summary, verdicts = rehearse(config, scenario_of(config, reference.split(), None))
    assert all(verdict is True for verdict in verdicts.values()), verdicts
    assert summary["bound_violations"] == 0


@pytest.mark.parametrize("base", cli.BASES)
def test_a_new_robot_is_named_after_its_folder_everywhere(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/mpc_banded"])
    assert cli.main(["new", str(tmp_path / "shop" / "my_hauler"), "--base", base]) == cli.DONE
    folder = tmp_path / "shop" / "my_hauler"
    assert sorted(path.name for path in folder.iterdir()) == ["my_hauler.py", "my_hauler.yaml"]
    assert Config.load(folder / "my_hauler.yaml").robot.name == "my_hauler"
    for file in folder.iterdir():
        assert f"my_{base}" not in file.read_text("utf-8")
        template = (FOLDER / f"my_{base}{file.suffix}").read_text("utf-8")
        assert len(file.read_text("utf-8").splitlines()) == len(template.splitlines())
    commands = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [words[1] for words in commands] == ["check", "demo"]
    for words in commands:
        assert words[0] == "/opt/bin/mpc_banded"
        cli._parser().parse_args(words[1:])
        assert Path(words[-1]).is_file()


def test_a_new_robot_passes_its_check(tmp_path):
    assert cli.main(["new", str(tmp_path / "my_cart")]) == cli.DONE
    assert cli.main(["check", str(tmp_path / "my_cart" / "my_cart.yaml")]) == cli.DONE


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my-cart", "'my-cart' cannot name a Python module; allowed are letters"),
        ("2wheels", "not beginning with a digit"),
        ("class", "'class' cannot name"),
        ("yaml", "'yaml' is a module already"),
        ("numpy", "take another name"),
    ],
)
def test_a_name_that_cannot_be_imported_is_refused(name, told, tmp_path, capsys):
    assert cli.main(["new", str(tmp_path / name)]) == cli.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("there", ["my_cart.py", "my_cart.yaml"])
def test_nothing_is_overwritten_and_nothing_half_written(there, tmp_path, capsys):
    folder = tmp_path / "my_cart"
    folder.mkdir()
    (folder / there).write_text("precious")
    assert cli.main(["new", str(folder)]) == cli.REFUSED
    assert "exists, and is left as it is" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [there]
    assert (folder / there).read_text() == "precious"


def test_a_signal_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(templates.resources, "files", interrupted)
    assert cli.main(["new", str(tmp_path / "my_cart")]) == cli.INTERRUPTED
    assert list((tmp_path / "my_cart").iterdir()) == []


@pytest.mark.parametrize("base", cli.BASES)
def test_a_template_stands_alone(base):
    names = runpy.run_path(str(FOLDER / f"my_{base}.py"))
    assert names["robot"].name == f"my_{base}"
    assert set(names["robot"].limits) <= set(names["robot"].names)
