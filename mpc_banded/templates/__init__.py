# SPDX-License-Identifier: Apache-2.0
"""Robots to start from: a module and a parameter file each, which ``mpc_banded new`` copies.

They are tested like robots of users. In a copy, the name of the robot replaces ``my_<base>``.
"""

from __future__ import annotations

import importlib.util
import keyword
from importlib import resources
from pathlib import Path

#: Name of a base to start from -> its description.
BASES = {
    "unicycle": "turns on the spot, as with two driven wheels",
    "bicycle": "steers like a car",
    "omni": "moves in any direction",
    "joints": "joints moved by torques",
}


class NewRobotError(ValueError):
    """A robot cannot be written; the message says why and what is allowed."""


def write_robot(folder: Path, base: str) -> tuple[Path, Path]:
    """Write a robot that is named after its folder, completely or not at all.

    Args:
        folder: Folder, created if it does not exist.
        base: A key of ``BASES``.

    Returns:
        The module and the parameter file.

    Raises:
        NewRobotError: The name is not allowed, a file exists, or it cannot be written.
    """
    name = folder.absolute().name
    _check_name(name, folder)
    module, parameters = folder / f"{name}.py", folder / f"{name}.yaml"
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in (module, parameters):
            text = resources.files(__name__).joinpath(f"my_{base}{file.suffix}").read_text("utf-8")
            with file.open("x", encoding="utf-8") as stream:
                written.append(file)
                stream.write(text.replace(f"my_{base}", name))
    except FileExistsError as error:
        _remove(written)
        raise NewRobotError(f"{error.filename} exists, and is left as it is") from error
    except OSError as error:
        _remove(written)
        raise NewRobotError(f"{folder} cannot be written: {error}") from error
    except BaseException:
        _remove(written)
        raise
    return module, parameters


def _check_name(name: str, folder: Path) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise NewRobotError(
            f"{name!r} cannot name a Python module; allowed are letters, digits and _, not "
            "beginning with a digit"
        )
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin and Path(spec.origin).parent != folder.absolute():
        raise NewRobotError(f"{name!r} is a module already, {spec.origin}; take another name")


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
