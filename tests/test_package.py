# SPDX-License-Identifier: Apache-2.0
"""The repository is a ROS 2 package: one version, and colcon installs all that ROS looks for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from catkin_pkg.changelog import get_changelog_from_path
from catkin_pkg.package import Package, parse_package

from mpc_banded.robots.robot import BUILT_IN

NAME = "mpc_banded"
EXECUTABLES = {"mpc_banded", "mpc_node", "recorder_node", "simulator_node"}
LAUNCH_FILES = {"mpc.launch.py"}
CONFIG_FILES = {f"{robot}.yaml" for robot in BUILT_IN}


@pytest.fixture(scope="module")
def package(repository: Path) -> Package:
    warnings: list[str] = []
    package = parse_package(repository / "package.xml", warnings=warnings)
    assert not warnings
    return package


def setup_py(repository: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "setup.py", "--quiet", *arguments]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    return run.stdout.strip()


# catkin_pkg still walks the document the old way.
@pytest.mark.filterwarnings("ignore:.*traverse:DeprecationWarning")
def test_version_is_the_same_everywhere(repository, package):
    changelog = get_changelog_from_path(repository / "CHANGELOG.rst", NAME)
    newest, _, _ = next(changelog.foreach_version())
    assert package.version == setup_py(repository, "--version") == newest


def test_package_xml_and_setup_py_describe_one_package(repository, package):
    assert (package.package_format, package.get_build_type()) == (3, "ament_python")
    assert package.name == setup_py(repository, "--name") == NAME
    assert list(package.licenses) == [setup_py(repository, "--license")] == ["Apache-2.0"]
    assert (repository / package.licenses[0].file).is_file()


@pytest.fixture(scope="module")
def workspace(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a copy of what git tracks, as a clone would have it."""
    if not (repository / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    workspace = tmp_path_factory.mktemp("workspace")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        target = workspace / "src" / NAME / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository / name, target)
    return workspace


def colcon(workspace: Path, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "colcon", "--log-base", "log", *arguments],
        cwd=workspace,
        env=os.environ | {"COLCON_HOME": str(workspace / "colcon")},  # not the user's defaults
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # colcon still adds a forgotten package.xml or index entry by itself, but says so
    assert "doesn't explicitly install" not in run.stderr
    return run.stdout


@pytest.fixture(scope="module", params=["", "--symlink-install"])
def installed(request: pytest.FixtureRequest, workspace: Path) -> Path:
    """The install space of a workspace with this package."""
    base = workspace / f"built{request.param}"
    spaces = ["--build-base", str(base / "build"), "--install-base", str(base / "install")]
    flags = ["--event-handlers", "desktop_notification-", *request.param.split()]
    colcon(workspace, "build", *spaces, *flags)
    return base / "install"


def test_colcon_sees_one_ament_python_package(workspace):
    listed = colcon(workspace, "list").splitlines()
    assert [line.split("\t") for line in listed] == [[NAME, f"src/{NAME}", "(ros.ament_python)"]]


@pytest.mark.slow
def test_install_space_has_what_ros_looks_for(installed):
    prefix = installed / NAME
    assert (prefix / "share/ament_index/resource_index/packages" / NAME).is_file()
    assert parse_package(prefix / "share" / NAME / "package.xml").name == NAME
    executables = {path.name for path in (prefix / "lib" / NAME).iterdir()}
    assert executables == EXECUTABLES
    assert all(os.access(prefix / "lib" / NAME / name, os.X_OK) for name in executables)


@pytest.mark.parametrize(
    ("folder", "expected"), [("launch", LAUNCH_FILES), ("config", CONFIG_FILES)]
)
def test_every_launch_and_config_file_is_installed(workspace, installed, folder, expected):
    source = {path.name for path in (workspace / "src" / NAME / folder).iterdir()}
    share = {path.name for path in (installed / NAME / "share" / NAME / folder).iterdir()}
    assert expected <= source == share


IN_A_SOURCED_SHELL = f"""
import json
from importlib.metadata import distribution
from ament_index_python.packages import get_package_share_directory
import {NAME}

share = get_package_share_directory("{NAME}")
mains = {{script.name: script.load() for script in distribution("{NAME}").entry_points}}
files = {{name: main.__code__.co_filename for name, main in mains.items()}}
print(json.dumps([share, {NAME}.__path__[0], files]))
"""


def test_sourced_workspace_finds_share_modules_and_functions(workspace, installed):
    command = ['. "$0/local_setup.bash" && exec "$1" -c "$2"', str(installed), sys.executable]
    run = subprocess.run(
        ["bash", "-c", *command, IN_A_SOURCED_SHELL],
        cwd=workspace,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    share, package, files = json.loads(run.stdout.splitlines()[-1])
    assert share == str(installed / NAME / "share" / NAME)
    assert modules(Path(package)) == modules(workspace / "src" / NAME / NAME)
    assert set(files) == EXECUTABLES
    assert all(Path(file).is_relative_to(workspace) for file in [package, *files.values()])


def modules(package: Path) -> set[Path]:
    return {path.relative_to(package) for path in package.rglob("*.py")}
