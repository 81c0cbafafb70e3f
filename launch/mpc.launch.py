# SPDX-License-Identifier: Apache-2.0
"""Starts mpc_node, and on request a simulated robot, a recorder and RViz, in one namespace."""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, TimerAction
from launch.conditions import IfCondition
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "mpc_banded"
#: Exit codes of a node that did not die: stopped by a signal, and refused its configuration.
ENDED = (0, 2)
#: Pause before one that died is started again, in s.
RESPAWN_DELAY_S = 1.0

ARGUMENTS = (
    ("robot", "", "built-in robot or package.module:attribute; empty: what params_file says"),
    ("params_file", "", "parameter file of all nodes; empty: config/<robot>.yaml of this package"),
    ("namespace", "", "namespace of the nodes and of all their topics"),
    ("use_sim_time", "false", "take the time from /clock"),
    ("autostart", "true", "configure and activate mpc_node; false: a lifecycle manager does that"),
    ("respawn", "true", "start mpc_node again if it has died"),
    ("sim", "false", "also start the simulated robot"),
    ("record", "false", "also record all that a replay needs"),
    ("rviz", "false", "also start RViz"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
)


def nodes(context: LaunchContext) -> list[Node]:
    """The nodes, once the arguments are known."""
    share = Path(FindPackageShare(PACKAGE).perform(context))
    robot = LaunchConfiguration("robot").perform(context)
    file = LaunchConfiguration("params_file").perform(context)
    if not file and ":" not in robot:  # we have no file for a robot of another package
        file = str(share / "config" / f"{robot or 'unicycle'}.yaml")
    if file and not Path(file).is_file():  # launch_ros would warn and go on without it
        raise FileNotFoundError(f"there is no parameter file {file}")
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    parameters = [file] if file else []
    parameters.append({"use_sim_time": sim_time} | ({"robot": robot} if robot else {}))
    autostart = ParameterValue(LaunchConfiguration("autostart"), value_type=bool)
    common = {
        "namespace": LaunchConfiguration("namespace"),
        "output": "screen",
        "ros_arguments": ["--log-level", LaunchConfiguration("log_level")],
    }
    ours = {"package": PACKAGE, **common}
    respawn = LaunchConfiguration("respawn").perform(context).lower() == "true"

    def mpc_node() -> Node:
        return Node(
            executable="mpc_node",
            name="mpc_node",
            parameters=[*parameters, {"autostart": autostart}],
            on_exit=restarted,
            **ours,
        )

    def restarted(event: ProcessExited, context: LaunchContext) -> list[TimerAction]:
        """What comes after the node; `respawn` of launch would repeat a refusal for ever."""
        if not respawn or context.is_shutdown or event.returncode in ENDED:
            return []
        return [TimerAction(period=RESPAWN_DELAY_S, actions=[mpc_node()])]

    return [
        mpc_node(),
        *(
            Node(
                executable=name,
                name=name,
                parameters=parameters,
                condition=IfCondition(LaunchConfiguration(wanted)),
                **ours,
            )
            for name, wanted in (("simulator_node", "sim"), ("recorder_node", "record"))
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            arguments=["-d", str(share / "config" / "mpc.rviz")],
            parameters=[{"use_sim_time": sim_time}],
            condition=IfCondition(LaunchConfiguration("rviz")),
            **common,
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """Entry point of ``ros2 launch``."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=nodes)])
