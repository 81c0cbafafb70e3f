# SPDX-License-Identifier: Apache-2.0
"""Where the module of a robot is found: on Python's path, or beside its parameter file.

Only a parameter file that the owner of the robot names may bring code along: on the command line,
or to a launch file. Nothing that comes over the network or from a recording gets here.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

#: Folders of the parameter files that this process was given, the newest last.
_folders: list[Path] = []


def look_beside(file: Path) -> None:
    """Let robots be imported from the folder of a parameter file.

    The folder comes last on Python's path, so a file in it never hides a library. Processes that
    are started with this path find the same modules.
    """
    folder = Path(file).absolute().parent
    if folder in _folders:
        _folders.remove(folder)
    _folders.append(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def import_module(name: str) -> ModuleType:
    """Import the module of a robot.

    Raises:
        ImportError: A module of that name from elsewhere hides the one beside the parameter file,
            so another robot might be driven than is meant.
        Exception: Whatever the module raises.
    """
    module = importlib.import_module(name)
    package = name.partition(".")[0]
    for folder in _folders[-1:]:
        beside = [folder / f"{package}.py", folder / package / "__init__.py"]
        found = getattr(sys.modules[package], "__file__", None)
        for file in filter(Path.is_file, beside):
            if found is None or not file.samefile(found):
                raise ImportError(
                    f"{found} hides {file} beside the parameter file; give the file another name"
                )
    return module
