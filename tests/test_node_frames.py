# SPDX-License-Identifier: Apache-2.0
"""References in other frames are transformed into that of the state, by tf2_ros."""

import numpy as np
import pytest
from faults import EASY
from nav_msgs.msg import Path
from ros_harness import Robot, on_path

pytestmark = pytest.mark.ros

#: In place of tf2_ros, which comes with a distribution: map lies 2 m left of odom, turned left.
TF2 = """
import math
from types import SimpleNamespace as Some

class TransformException(Exception):
    pass

class Buffer:
    def __init__(self, node):
        pass

    def lookup_transform(self, target, source, time):
        if (target, source) != ("odom", "map"):
            raise TransformException(f"{source} is not in the tree")
        half = 0.25 * math.pi
        turn = Some(x=0.0, y=0.0, z=math.sin(half), w=math.cos(half))
        return Some(transform=Some(translation=Some(x=0.0, y=2.0, z=0.0), rotation=turn))

class TransformListener:
    def __init__(self, buffer, node):
        pass
"""


@pytest.fixture
def robot(tmp_path):
    (tmp_path / "tf2_ros.py").write_text(TF2)
    robot = Robot("unicycle", tmp_path, "framed", environment=on_path(tmp_path), **EASY)
    yield robot
    robot.close()


def test_path_in_another_frame_is_moved_and_an_unknown_frame_refused(robot):
    references = []
    robot.listen(Path, "mpc_node/reference", references.append)
    robot.until(lambda: robot.states, "a state")
    robot.publish_plan([[0.0, 0.0], [0.0, -50.0]], "mars")
    robot.until(lambda: "no transform from 'mars' to 'odom'" in robot.node.output, "refused")
    robot.until(lambda: robot.is_stopped(1), "stopped")
    # Backwards along y of the map is forward along x of odom, 2 m to the left.
    robot.publish_plan([[0.0, 0.0], [0.0, -50.0]], "map")
    robot.until(lambda: robot.is_driving() and references, "driving")
    poses = references[-1].poses
    assert references[-1].header.frame_id == "odom"
    points = np.array([[p.pose.position.x, p.pose.position.y] for p in poses])
    assert points[:, 1] == pytest.approx(2.0)
    assert (np.diff(points[:, 0]) >= 0.0).all()
    robot.assert_commands_allowed()
