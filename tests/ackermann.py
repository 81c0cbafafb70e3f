# SPDX-License-Identifier: Apache-2.0
"""The package ackermann_msgs, built where no distribution brings it: ``python ackermann.py DIR``.

No wheel of it exists. The generators of ROS 2 come with those of rclpy, so that its two messages
can be made as colcon makes them: Python classes, and type support that DDS takes.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

NAME = "ackermann_msgs"
MESSAGES = {
    "AckermannDrive": (
        "float32 steering_angle\nfloat32 steering_angle_velocity\n"
        "float32 speed\nfloat32 acceleration\nfloat32 jerk\n"
    ),
    "AckermannDriveStamped": "std_msgs/Header header\nAckermannDrive drive\n",
}
NEEDED = ("std_msgs", "builtin_interfaces")
SUPPORTS = ("introspection_c", "fastrtps_c")


def built(folder):
    """The folder that has the package, for the path of Python, after it was built there."""
    log = subprocess.run(
        [sys.executable, __file__, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert not log.returncode, log.stdout.decode()
    return folder / "site"


def generate(folder):
    """Write the sources of the package below a folder."""
    # Wheels have each entry point twice, as metadata of pip and of setuptools.
    found = [e for each in importlib.metadata.distributions() for e in each.entry_points]
    once = importlib.metadata.EntryPoints({(e.group, e.name): e for e in found}.values())
    importlib.metadata.entry_points = lambda: once
    from ament_index_python import get_package_share_directory as share
    from rosidl_cli.command.generate import api

    definitions = folder / "msg"
    definitions.mkdir(parents=True)
    for name, text in MESSAGES.items():
        (definitions / f"{name}.msg").write_text(text)
    os.chdir(folder)
    api.generate(
        package_name=NAME,
        interface_files=[f"msg/{name}.msg" for name in MESSAGES],
        include_paths=[share(package) for package in NEEDED],
        output_path=folder / "generated",
        types=["c", "py"],
        typesupports=["c", *SUPPORTS],
    )


def compile_and_link(folder):
    """Make the Python package out of the sources."""
    sources, package = folder / "generated", folder / "site" / NAME
    shutil.copytree(sources / "py" / "msg", package / "msg")
    (package / "__init__.py").touch()
    prefixes = [Path(prefix) for prefix in os.environ["AMENT_PREFIX_PATH"].split(os.pathsep)]
    headers = [prefix / "include" for prefix in prefixes]
    included = [path for folder_ in headers for path in (folder_, *folder_.iterdir())]
    included += [sysconfig.get_paths()["include"], np.get_include()]
    for kind in ("c", *SUPPORTS):  # each believes that it lies in a folder named as the package
        (folder / "include" / kind).mkdir(parents=True)
        (folder / "include" / kind / NAME).symlink_to(sources / kind)
        included.append(folder / "include" / kind)
    parts = ("generator_c", "typesupport_c", *(f"typesupport_{kind}" for kind in SUPPORTS))
    libraries = ["rosidl_runtime_c", "fastcdr", "rcutils", "rmw"]
    libraries += [f"rosidl_{part}" for part in parts[1:]] + ["rosidl_typesupport_fastrtps_cpp"]
    libraries += [f"{other}__rosidl_{part}" for other in NEEDED for part in parts]
    libraries += ["std_msgs__rosidl_generator_py"]
    options = [f"-I{path}" for path in included] + ["-O1", "-fPIC", "-shared", f"-L{package}"]
    # The dispatch asks for its libraries by name, and finds what is loaded already.
    options += ["-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
    of_others = [f"-L{prefix / 'lib'}" for prefix in prefixes] + [f"-l{x}" for x in libraries]

    def link(output, files, *ours):
        needed = [f"-l{NAME}__rosidl_{part}" for part in ours]
        command = ["g++" if files[0].suffix == ".cpp" else "gcc", *options, *files, *needed]
        subprocess.run([*command, *of_others, "-o", package / output], check=True)

    def library(part, folder_, suffix, *ours):
        files = sorted((sources / folder_).rglob(f"*{suffix}"))
        link(f"lib{NAME}__rosidl_{part}.so", files, *ours)

    generator, dispatch, *supports = parts
    library(generator, "c", ".c")
    for part, kind, suffix in zip(supports, SUPPORTS, (".c", ".cpp"), strict=True):
        library(part, kind, suffix, generator)
    library(dispatch, "c", ".cpp", generator, *supports)
    extension = sysconfig.get_config_var("EXT_SUFFIX")
    files = [*(sources / "py" / "msg").glob("*.c"), *sources.glob("py/*.rosidl_typesupport_c.c")]
    link(f"{NAME}_s__rosidl_typesupport_c{extension}", files, *parts)


def main():
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    folder = Path(sys.argv[1]).resolve()
    generate(folder)
    compile_and_link(folder)


if __name__ == "__main__":
    main()
