# SPDX-License-Identifier: Apache-2.0
"""A TurtleBot3 whose pose and twist come on two topics, and whose commands were not recorded.

``burger`` is the built-in unicycle with other topics. ``planned`` takes for its command what the
local planner of Nav2 (DWB) asks for: the length and the turn of the trajectory that it has chosen,
over the time for which it simulates one.
"""

import math
from dataclasses import replace

import numpy as np

from mpc_banded.robots.messages import CommandTopic, StateTopic, fill_twist, goal_of, path_of
from mpc_banded.robots.unicycle import unicycle

#: Parameter sim_time of DWB, its default, in s.
SIMULATED_S = 1.7


def pose(message):
    """x, y, yaw in the odometry frame."""
    goal = goal_of(message)
    return {"x": goal.x, "y": goal.y, "yaw": goal.yaw}


def twist(message):
    """Forward speed and yaw rate."""
    return {"v": float(message.twist.linear.x), "w": float(message.twist.angular.z)}


def planned_twist(message):
    """Speeds that cover a trajectory in the time it was simulated for."""
    path = path_of(message)
    if len(path.points) < 2 or path.yaws is None:
        raise ValueError("the local plan has no trajectory")
    length = np.linalg.norm(np.diff(path.points, axis=0), axis=1).sum()
    turn = math.remainder(float(np.unwrap(path.yaws)[-1] - path.yaws[0]), 2.0 * math.pi)
    return {"v": float(length) / SIMULATED_S, "w": turn / SIMULATED_S}


burger = replace(
    unicycle,
    name="burger",
    state_message=(
        StateTopic("location", "geometry_msgs/msg/PoseStamped", pose),
        StateTopic("velocity", "geometry_msgs/msg/TwistStamped", twist),
    ),
)
planned = replace(
    burger,
    command_message=CommandTopic("local_plan", "nav_msgs/msg/Path", fill_twist, planned_twist),
)
