# SPDX-License-Identifier: Apache-2.0
"""Imports go one way only, ROS stays at the edge, and nothing grows too long to read."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package

PACKAGE = "mpc_banded"
SOURCE = Path(__file__).resolve().parents[1] / PACKAGE

# A part (a package, or a module beside them) imports only parts above it. The package itself,
# which re-exports the solver, stands where the solver ends.
ORDER = (
    "codegen",
    "ocp",
    "__init__",
    "robots",
    "control",
    "templates",
    "offline",
    "ros",
    "check",
    "cli",
    "__main__",
)
#: Modules that stand beside the packages, at most.
FLAT = 6
#: Lines at most. What grows beyond holds two ideas; each gets a place of its own.
LONGEST_MODULE = 450
LONGEST = {ast.ClassDef: 250, ast.FunctionDef: 60}

ROS = re.compile(r"rclpy|rcl_\w+|rosidl\w*|ament_\w+|launch\w*|tf2\w*|\w+_(msgs|srvs|interfaces)")
OPTIONAL = {"ackermann_msgs"}  # used where installed, as package.xml says
HOMES = (  # outside packages, and the only parts that may import them
    (ROS, {"ros"}),
    (re.compile(r"rosbags|mcap"), {"offline"}),
    (re.compile(r"matplotlib|rich"), {"offline", "ros", "cli"}),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def part(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    return [*module.split("."), "__init__"][1]


def imported_names(module: str, source: str) -> Iterator[str]:
    """Dotted names that any import statement asks for, those inside functions included."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    return set(imported_names(module, MODULES[module].read_text(encoding="utf-8")))


def imports_inside(module: str) -> set[str]:
    """Modules of this package that a module imports."""
    inside = {name for name in imports(module) if name.split(".")[0] == PACKAGE}
    return {name if name in MODULES else name.rpartition(".")[0] for name in inside} - {module}


def test_resolves_every_form_of_import():
    source = (
        "import a.b as c, d\nfrom e import f\nfrom . import g\nfrom .h import i\n"
        "def function():\n    from j.k import l\n"
    )
    names = set(imported_names(f"{PACKAGE}.cli", source))
    inside = {f"{PACKAGE}.g", f"{PACKAGE}.h.i"}
    assert names == {"a.b", "d", "e.f", "j.k.l"} | inside
    assert set(imported_names(PACKAGE, source)) == names


def test_few_modules_stand_beside_the_packages():
    assert len([path for path in SOURCE.glob("*.py") if path.stem != "__init__"]) <= FLAT


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_place_in_the_order(module):
    assert part(module) in ORDER, f"give {module} its place in ORDER"
    assert MODULES[module].stem != "utils", "name a module by its idea"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_too_long_to_read(module):
    source = MODULES[module].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LONGEST_MODULE
    too_long = {
        node.name: length
        for node in ast.walk(ast.parse(source))
        for kind, longest in LONGEST.items()
        if isinstance(node, kind) and (length := node.end_lineno - node.lineno + 1) > longest
    }
    assert not too_long


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_parts_above_it(module):
    here = ORDER.index(part(module))
    below = {name for name in imports_inside(module) if ORDER.index(part(name)) > here}
    assert not below


def test_no_import_goes_in_a_circle():
    TopologicalSorter({module: imports_inside(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_outside_packages_stay_at_home(module):
    strays = {
        name
        for name in imports(module)
        for package, homes in HOMES
        if package.fullmatch(name.split(".")[0]) and part(module) not in homes
    }
    assert not strays


@pytest.mark.slow
def test_packages_are_usable_without_those_below_them():
    unknown = {
        "codegen": r"mpc_banded\.(?!codegen).*|yaml",
        "ocp": r"mpc_banded\.(?!codegen|ocp).*|yaml",
        "robots": r"mpc_banded\.(?!codegen|ocp|robots).*|yaml",
        "control": r"mpc_banded\.(offline|ros|cli).*",
    }
    code = "import sys\n"  # one process, as each package may know those above it
    for package in unknown:
        names = [name for name in MODULES if name.startswith(f"{PACKAGE}.{package}")]
        code += f"import {', '.join(names)}; print(*sys.modules)\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for (package, pattern), line in zip(unknown.items(), run.stdout.splitlines(), strict=True):
        loaded = line.split()
        assert {name for name in MODULES if name.startswith(f"{PACKAGE}.{package}")} <= {*loaded}
        assert not [name for name in loaded if re.fullmatch(pattern, name)]
        roots = {name.split(".")[0] for name in loaded}
        assert not [name for name in roots for outside, _ in HOMES if outside.fullmatch(name)]


@pytest.mark.slow
def test_torch_comes_with_the_public_names_and_not_before():
    code = f"""
import sys, {PACKAGE} as package
import {PACKAGE}.ros.node, {PACKAGE}.ros.simulator, {PACKAGE}.ros.recorder
assert "torch" not in sys.modules
homes = dict.fromkeys(package.__all__)
for name in homes:
    homes[name] = getattr(package, name).__module__.removeprefix("{PACKAGE}.")
assert "torch" in sys.modules
assert homes == package._HOMES
assert set(homes) < set(dir(package))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr
    with pytest.raises(ImportError, match="nonsense"):
        from mpc_banded import nonsense  # noqa: F401


def test_every_ros_package_that_is_imported_is_declared():
    declared = {dependency.name for dependency in parse_package(SOURCE.parent).exec_depends}
    used = {name.split(".")[0] for module in MODULES for name in imports(module)}
    assert {name for name in used if ROS.fullmatch(name)} - OPTIONAL <= declared
