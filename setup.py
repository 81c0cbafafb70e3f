# SPDX-License-Identifier: Apache-2.0
"""Installs the package, with colcon into a ROS 2 workspace or with pip."""

from glob import glob

from setuptools import find_packages, setup

NAME = "mpc_banded"

setup(
    name=NAME,
    version="0.1.0",
    description="Nonlinear model predictive control of robots described in plain PyTorch",
    license="Apache-2.0",
    maintainer="mpc_banded maintainers",
    maintainer_email="maintainers@mpc-banded.example",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed", "ocp/*.c", "templates/*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", glob("config/*.*")),
    ],
    install_requires=["numpy", "scipy", "PyYAML", "torch>=2"],
    extras_require={
        "offline": ["joblib", "matplotlib", "mcap", "rich", "rosbags", "ruamel.yaml"],
        "test": ["hypothesis", "pytest"],
    },
    zip_safe=True,
    entry_points={
        "console_scripts": [
            "mpc_banded = mpc_banded.cli:main",
            "mpc_node = mpc_banded.ros.node:main",
            "recorder_node = mpc_banded.ros.recorder:main",
            "simulator_node = mpc_banded.ros.simulator:main",
        ],
    },
)
