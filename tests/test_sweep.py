# SPDX-License-Identifier: Apache-2.0
"""A grid of parameters gives the same results in one process, in several, and on Dask."""

import csv
import sys

import bags
import joblib
import pytest

from mpc_banded.cli import main
from mpc_banded.control.config import ConfigError
from mpc_banded.offline.bag import BagError
from mpc_banded.offline.sweep import Request, grid, sweep

AXES = {"horizon": [5, 10], "weights.effort": [0.02, 2.0]}
#: Columns that do not depend on the machine.
STEADY = (
    "horizon",
    "weights.effort",
    "plan_error.position",
    "effort.linear_acceleration",
    "iterations_mean",
)


@pytest.fixture
def request_(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("/**: {ros__parameters: {dt: 0.1}}\n", encoding="utf-8")
    bag = bags.write(tmp_path / "bag", bags.drive(1.5))
    return Request(bag, params, compiled=False)


def steady(rows):
    return [{key: row[key] for key in STEADY} for row in rows]


def test_a_grid_has_every_combination_once():
    points = grid({"a": [1, 2], "b": ["x", "y", "z"]})
    assert len(points) == 6
    assert points[:2] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}]
    assert grid({}) == [{}]


@pytest.mark.slow
def test_more_weight_on_effort_means_less_of_it(request_):
    rows = sweep(request_, AXES, jobs=1)
    for horizon in AXES["horizon"]:
        group = [row for row in rows if row["horizon"] == horizon]
        cheap, dear = (row["effort.linear_acceleration"] for row in group)
        assert dear < 0.8 * cheap
        lax, strict = (row["plan_error.position"] for row in group)
        assert lax < strict


@pytest.mark.slow
def test_processes_find_the_same(request_):
    assert steady(sweep(request_, AXES, jobs=2)) == steady(sweep(request_, AXES, jobs=1))


@pytest.mark.slow
# Dask's own clean-up, after the cluster has been closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dask_cluster_finds_the_same(request_):
    distributed = pytest.importorskip("dask.distributed", reason="dask is not installed")
    expected = steady(sweep(request_, AXES, jobs=1))
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        found = sweep(request_, AXES, jobs=-1)
    assert steady(found) == expected


def test_a_value_that_is_not_allowed_is_refused_before_anything_runs(request_):
    with pytest.raises(ConfigError, match="horizon"):
        sweep(request_, {"horizon": [5, -1]}, jobs=1)
    with pytest.raises(BagError, match="/none"):
        sweep(Request(request_.bag, request_.parameters, topics={"odom": "/none"}), AXES, jobs=1)


def test_from_the_command_line(request_, tmp_path, capsys):
    output = tmp_path / "swept"
    common = ["replay", str(request_.bag), "--params", str(request_.parameters), "--eager"]
    axes = ["--sweep", "horizon=5,10", "--sweep", "weights.effort=0.02,2e0", "--jobs", "1"]
    assert main([*common, *axes, "--output", str(output)]) == 0
    assert "horizon" in capsys.readouterr().out
    with (output / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["horizon"], r["weights.effort"]) for r in rows] == [
        ("5", "0.02"), ("5", "2.0"), ("10", "0.02"), ("10", "2.0"),
    ]  # fmt: skip
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert main([*common, "--sweep", "horizon=5,x", "--output", str(output)]) == 2
    assert "horizon is 'x'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*common, "--sweep", "horizon"])


def test_a_scheduler_needs_dask(request_, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    common = ["replay", str(request_.bag), "--params", str(request_.parameters)]
    arguments = ["--sweep", "horizon=5", "--scheduler", "tcp://nowhere:1"]
    assert main([*common, *arguments, "--output", str(tmp_path / "swept")]) == 2
    assert "pip install" in capsys.readouterr().err
