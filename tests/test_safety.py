# SPDX-License-Identifier: Apache-2.0
"""Each promise of docs/safety.md has a test, and its settings are those of the package."""

import re
from pathlib import Path

import pytest
import yaml

from mpc_banded.control.parameters import GENERAL

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| (.*?) \| `(test_\w+\.py)::(test_\w+)` \|$", PAGE, re.MULTILINE)


def test_every_line_of_the_table_is_a_promise_with_a_test():
    (table,) = re.findall(r"\| promise \| test \|\n\| --- \| --- \|\n((?:\|.*\n)+)", PAGE)
    assert len(PROMISES) == len(table.splitlines()) > 20


@pytest.mark.parametrize(("promise", "file", "test"), PROMISES)
def test_named_test_exists(promise, file, test):
    del promise
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {test}\(", source, re.MULTILINE)


def test_parameters_and_settings_are_those_there_are():
    for name in re.findall(r"`(command_\w+|max_state_age|controller_frequency)`", PAGE):
        assert name in GENERAL
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        (parameters,) = [node["ros__parameters"] for node in yaml.safe_load(block).values()]
        assert parameters
