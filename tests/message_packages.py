# SPDX-License-Identifier: Apache-2.0
"""Builds packages of messages that no wheel provides.

``python message_packages.py DIR NAME ...`` builds some of them, as colcon does: Python classes and
type support for DDS. The generators of ROS 2 come with the wheels of rclpy. The definitions are
those of Jazzy and Kilted.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

#: Package -> file -> fields.
PACKAGES = {
    "ackermann_msgs": {
        "msg/AckermannDrive.msg": (
            "float32 steering_angle\nfloat32 steering_angle_velocity\n"
            "float32 speed\nfloat32 acceleration\nfloat32 jerk\n"
        ),
        "msg/AckermannDriveStamped.msg": "std_msgs/Header header\nAckermannDrive drive\n",
    },
    "bond": {
        "msg/Status.msg": (
            "std_msgs/Header header\nstring id\nstring instance_id\nbool active\n"
            "float32 heartbeat_timeout\nfloat32 heartbeat_period\n"
        ),
    },
    "nav2_msgs": {
        "msg/SpeedLimit.msg": ("std_msgs/Header header\nbool percentage\nfloat64 speed_limit\n"),
        "action/FollowPath.action": (
            "nav_msgs/Path path\nstring controller_id\nstring goal_checker_id\n"
            "string progress_checker_id\n---\n"
            "uint16 NONE=0\nuint16 UNKNOWN=100\nuint16 INVALID_CONTROLLER=101\n"
            "uint16 TF_ERROR=102\nuint16 INVALID_PATH=103\nuint16 PATIENCE_EXCEEDED=104\n"
            "uint16 FAILED_TO_MAKE_PROGRESS=105\nuint16 NO_VALID_CONTROL=106\n"
            "uint16 CONTROLLER_TIMED_OUT=107\n"
            "std_msgs/Empty result\nuint16 error_code\nstring error_msg\n---\n"
            "float32 distance_to_goal\nfloat32 speed\n"
        ),
    },
}
NEEDED = (
    *("std_msgs", "builtin_interfaces", "geometry_msgs", "nav_msgs"),
    *("action_msgs", "service_msgs", "unique_identifier_msgs"),
)
SUPPORTS = ("introspection_c", "fastrtps_c")


def built(folder, *names):
    """The folder that has the packages, for the path of Python, after they were built there."""
    log = subprocess.run(
        [sys.executable, __file__, folder, *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert not log.returncode, log.stdout.decode()
    return folder / "site"


def generate(name, folder):
    """Write the sources of a package below a folder."""
    from ament_index_python import get_package_share_directory as share
    from rosidl_cli.command.generate import api

    for file, text in PACKAGES[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    os.chdir(folder)
    api.generate(
        package_name=name,
        interface_files=list(PACKAGES[name]),
        include_paths=[share(package) for package in NEEDED],
        output_path=folder / "generated",
        types=["c", "py"],
        typesupports=["c", *SUPPORTS],
    )


def compile_and_link(name, folder, site):
    """Make the Python package out of the sources."""
    sources, package = folder / "generated", site / name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    kinds = sorted({file.partition("/")[0] for file in PACKAGES[name]})
    for kind in kinds:
        shutil.copytree(sources / "py" / kind, package / kind)
    prefixes = [Path(prefix) for prefix in os.environ["AMENT_PREFIX_PATH"].split(os.pathsep)]
    headers = [prefix / "include" for prefix in prefixes]
    included = [path for folder_ in headers for path in (folder_, *folder_.iterdir())]
    included += [sysconfig.get_paths()["include"], np.get_include()]
    for kind in ("c", *SUPPORTS):  # each believes that it lies in a folder named as the package
        (folder / "include" / kind).mkdir(parents=True)
        (folder / "include" / kind / name).symlink_to(sources / kind)
        included.append(folder / "include" / kind)
    parts = ("generator_c", "typesupport_c", *(f"typesupport_{kind}" for kind in SUPPORTS))
    libraries = ["rosidl_runtime_c", "fastcdr", "rcutils", "rmw"]
    libraries += [f"rosidl_{part}" for part in parts[1:]] + ["rosidl_typesupport_fastrtps_cpp"]
    libraries += [f"{other}__rosidl_{part}" for other in NEEDED for part in parts]
    libraries += [f"{other}__rosidl_generator_py" for other in NEEDED]
    options = [f"-I{path}" for path in included] + ["-O1", "-fPIC", "-shared", f"-L{package}"]
    # The dispatch asks for its libraries by name, and finds what is loaded already.
    options += ["-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
    of_others = [f"-L{prefix / 'lib'}" for prefix in prefixes] + [f"-l{x}" for x in libraries]

    def link(output, files, *ours):
        needed = [f"-l{name}__rosidl_{part}" for part in ours]
        command = ["g++" if files[0].suffix == ".cpp" else "gcc", *options, *files, *needed]
        subprocess.run([*command, *of_others, "-o", package / output], check=True)

    def library(part, folder_, suffix, *ours):
        files = sorted((sources / folder_).rglob(f"*{suffix}"))
        link(f"lib{name}__rosidl_{part}.so", files, *ours)

    generator, dispatch, *supports = parts
    library(generator, "c", ".c")
    for part, kind, suffix in zip(supports, SUPPORTS, (".c", ".cpp"), strict=True):
        library(part, kind, suffix, generator)
    library(dispatch, "c", ".cpp", generator, *supports)
    extension = sysconfig.get_config_var("EXT_SUFFIX")
    files = [file for kind in kinds for file in (sources / "py" / kind).glob("*.c")]
    files += sources.glob("py/*.rosidl_typesupport_c.c")
    link(f"{name}_s__rosidl_typesupport_c{extension}", files, *parts)


def main():
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    # Wheels have each entry point twice, as metadata of pip and of setuptools.
    found = [e for each in importlib.metadata.distributions() for e in each.entry_points]
    once = importlib.metadata.EntryPoints({(e.group, e.name): e for e in found}.values())
    importlib.metadata.entry_points = lambda: once
    folder = Path(sys.argv[1]).resolve()
    for name in sys.argv[2:]:
        generate(name, folder / name)
        compile_and_link(name, folder / name, folder / "site")


if __name__ == "__main__":
    main()
