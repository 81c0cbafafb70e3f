# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: one thread, seeds, a private ROS domain, compiled libraries, bags."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Read when the libraries load, so set before any test imports them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from mpc_banded.codegen.cache import LibraryCache

REPOSITORY = Path(__file__).resolve().parents[1]
DOMAINS = 101

# Every run tries the same examples, and a slow machine fails none of them.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
# `make fuzz` tries other examples each time, many of them, and keeps those that failed.
settings.register_profile(
    "fuzz", max_examples=5000, deadline=None, suppress_health_check=HealthCheck
)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # A domain of its own, so that neither a robot nor another test run hears the tests. The upper
    # end keeps DDS ports below those that Linux hands out to other programs.
    worker = getattr(config, "workerinput", None)
    if worker is None:
        os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % DOMAINS)
        # One cache of compiled libraries for all workers and the nodes they start, not the user's.
        folder = tempfile.mkdtemp(prefix="mpc_banded_tests_")
        os.environ["MPC_BANDED_CACHE"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    else:  # a worker of pytest-xdist, which inherits the environment
        number = int(worker["workerid"].removeprefix("gw"))
        os.environ["ROS_DOMAIN_ID"] = str(
            1 + (int(os.environ["ROS_DOMAIN_ID"]) + number) % DOMAINS
        )
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if os.environ.get("ROS_DISTRO") == "humble":  # which knows only the older name
        os.environ["ROS_LOCALHOST_ONLY"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that wait for other processes, which would leave cores idle at last."""
    waiting = {item.path for item in items if item.get_closest_marker("ros")}
    items.sort(key=lambda item: item.path not in waiting)


@pytest.fixture(scope="session", autouse=True)
def _ros_logs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the log files of nodes out of the home directory."""
    os.environ["ROS_LOG_DIR"] = str(tmp_path_factory.mktemp("ros_logs"))


@pytest.fixture(scope="session")
def libraries() -> LibraryCache:
    """The cache of compiled libraries that all tests of a run share."""
    return LibraryCache()


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers that are the same in every run."""
    return torch.Generator().manual_seed(20260829)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture
def examples(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the examples, whose robots can be imported meanwhile."""
    folder = repository / "examples"
    monkeypatch.syspath_prepend(folder)
    yield folder
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="session")
def shared_bags() -> Path:
    """The recorded runs: a folder of rosbag2 bags that is not part of the repository."""
    default = REPOSITORY.parent / "shared" / "bags"
    folder = Path(os.environ.get("MPC_BANDED_BAGS", default))
    if not folder.is_dir():
        pytest.skip(f"no recorded bags at {folder}; name their folder in MPC_BANDED_BAGS")
    return folder
