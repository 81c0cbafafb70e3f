# SPDX-License-Identifier: Apache-2.0
"""Frames of a bag form a tree of planar poses, which a replay uses as the node uses tf."""

import math

import bags
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpc_banded.control.config import Config
from mpc_banded.offline.bag import Bag
from mpc_banded.offline.replay import Replay
from mpc_banded.offline.transforms import TransformTree

numbers = st.floats(-100.0, 100.0)
poses = st.tuples(numbers, numbers, st.floats(-3.0, 3.0))


def matrix(pose):
    x, y, yaw = pose
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, -s, x], [s, c, y], [0.0, 0.0, 1.0]])


@given(poses, poses, poses)
def test_poses_along_the_tree_are_products_of_matrices(a, b, c):
    frames = TransformTree()
    frames.place("map", "odom", a)
    frames.place("odom", "base", b)
    frames.place("/map", "/goal", c)
    assert np.allclose(matrix(frames("map", "base")), matrix(a) @ matrix(b))
    expected = np.linalg.inv(matrix(a) @ matrix(b)) @ matrix(c)
    assert np.allclose(matrix(frames("base", "goal")), expected)
    there_and_back = matrix(frames("goal", "base")) @ matrix(frames("base", "goal"))
    assert np.allclose(there_and_back, np.eye(3))


def test_frames_that_nothing_connects():
    frames = TransformTree()
    frames.place("map", "odom", (0.0, 0.0, 0.0))
    with pytest.raises(LookupError, match="--transform odom:earth"):
        frames("odom", "earth")
    frames.place("odom", "map", (0.0, 0.0, 0.0))
    with pytest.raises(LookupError):
        frames("odom", "earth")


def tf(time_ns):
    moved = bags.make(
        "geometry_msgs/msg/Transform",
        translation=bags.make("geometry_msgs/msg/Vector3", x=-2.0),
        rotation=bags.make("geometry_msgs/msg/Quaternion", w=1.0),
    )
    stamped = bags.make(
        "geometry_msgs/msg/TransformStamped",
        header=bags.header(time_ns, "odom"),
        child_frame_id="map",
        transform=moved,
    )
    return bags.make("tf2_msgs/msg/TFMessage", transforms=[stamped])


@pytest.mark.parametrize("source", ["nowhere", "the bag", "the user"])
def test_a_path_in_another_frame_is_moved_or_refused(source, tmp_path):
    messages = list(bags.drive(2.0))
    plan = messages[0][2]
    plan.header.frame_id = "map"
    for pose in plan.poses:
        pose.header.frame_id = "map"
        pose.pose.position.x += 2.0
    late = [(t, n + (bags.SECOND // 2 if t == "/plan" else 0), m) for t, n, m in messages]
    late += [("/tf", messages[0][1], tf(messages[0][1]))] if source == "the bag" else []
    path = bags.write(tmp_path / "bag", sorted(late, key=lambda m: m[1]))
    given_ = {("odom", "map"): (-2.0, 0.0, 0.0)} if source == "the user" else {}
    with Bag(path) as bag:
        replay = Replay(bag, Config({"horizon": 5}), compiled=False, transforms=given_)
        last = list(replay.cycles())[-1]
    if source == "nowhere":
        assert last.tick.code.name == "NO_REFERENCE"
        assert "--transform odom:map" in next(iter(replay.remarks.rejected))
    else:
        assert last.tick.driving
        assert last.reference["x"] == pytest.approx(last.state["x"], abs=0.05)
