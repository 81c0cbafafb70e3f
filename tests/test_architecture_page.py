# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md and its picture agree with the code."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "mpc_banded"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
#: Steps at most, by the beginning of the walk's title.
WALKS = {"From a state message": 14, "From a torch function": 9}


@pytest.fixture(scope="module")
def drawing():
    return runpy.run_path(str(ROOT / "docs" / "architecture.py"))


def functions(file):
    """Names of the functions and classes of a file, methods with their class."""
    if file.suffix == ".c":
        text = file.read_text(encoding="utf-8")
        return set(re.findall(r"^\w[\w *]*?\b(\w+)\([^;]*$", text, re.MULTILINE))

    def names(body, above):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield above + node.name
                if isinstance(node, ast.ClassDef):
                    yield from names(node.body, f"{above}{node.name}.")

    return set(names(ast.parse(file.read_text(encoding="utf-8")).body, ""))


def test_the_picture_shows_the_packages_and_imports_of_the_code(drawing):
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    shown = set(re.findall(r'data-from="(\w+)" data-to="(\w+)"', picture))
    assert shown == drawing["arrows"](), "run make architecture"
    order = re.findall(r'font-weight="bold" fill="[^"]*">(\w+)<', picture)
    assert order == list(reversed(drawing["floors"]()))


def test_every_package_is_explained_in_the_order_of_the_picture(drawing):
    explained = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert explained == drawing["floors"]()


def test_every_place_that_is_named_exists():
    places = re.findall(r"`([\w/]+\.(?:py|c))(?::([\w.]+))?`", PAGE)
    assert len(places) > 9
    for file, function in places:
        path = ROOT / file if file.startswith(("tests/", "docs/")) else SOURCE / file
        assert path.is_file(), file
        if function:
            assert function in functions(path), f"{file}:{function}"


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_is_short_and_enters_no_room_twice(title):
    (walk,) = re.findall(
        rf"^## {title}[^\n]*\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE
    )
    steps = re.findall(r"^\d+\. `([\w/]+\.(?:py|c)):([\w.]+)`", walk, flags=re.MULTILINE)
    assert 3 < len(steps) <= WALKS[title]
    assert len(set(steps)) == len(steps)
    twice = {file for file, _ in steps if sum(file == other for other, _ in steps) > 1}
    assert twice <= {"control/loop.py", "ros/task.py"}, "the loop's own"
