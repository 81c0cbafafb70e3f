# SPDX-License-Identifier: Apache-2.0
"""Writes bags for tests: typed messages, one after the other."""

import math

import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_KILTED)
SECOND = 1_000_000_000


def make(kind, **fields):
    """A message of the fields given, everything else zero or empty."""
    values = {}
    for name, (node, detail) in TYPES.get_msgdef(kind).fields:
        if name in fields:
            values[name] = fields[name]
        elif node.name == "NAME":
            values[name] = make(detail)
        elif node.name == "BASE":
            values[name] = "" if detail[0] == "string" else 0
        elif node.name == "ARRAY":
            values[name] = np.zeros(detail[1])
        else:
            base = detail[0][1][0] if detail[0][0].name == "BASE" else None
            values[name] = np.zeros(0) if base not in (None, "string") else []
    return TYPES.types[kind](**values)


def header(time_ns, frame="odom"):
    stamp = make("builtin_interfaces/msg/Time", sec=time_ns // SECOND, nanosec=time_ns % SECOND)
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame)


def pose(x, y, yaw=0.0):
    turn = make("geometry_msgs/msg/Quaternion", z=math.sin(0.5 * yaw), w=math.cos(0.5 * yaw))
    point = make("geometry_msgs/msg/Point", x=x, y=y)
    return make("geometry_msgs/msg/Pose", position=point, orientation=turn)


def twist(v, w):
    linear, angular = (
        make("geometry_msgs/msg/Vector3", x=v),
        make("geometry_msgs/msg/Vector3", z=w),
    )
    return make("geometry_msgs/msg/Twist", linear=linear, angular=angular)


def odometry(time_ns, x, y, yaw=0.0, v=0.0, w=0.0):
    return make(
        "nav_msgs/msg/Odometry",
        header=header(time_ns),
        child_frame_id="base_link",
        pose=make("geometry_msgs/msg/PoseWithCovariance", pose=pose(x, y, yaw)),
        twist=make("geometry_msgs/msg/TwistWithCovariance", twist=twist(v, w)),
    )


def path(time_ns, points):
    poses = [
        make("geometry_msgs/msg/PoseStamped", header=header(time_ns), pose=pose(x, y))
        for x, y in points
    ]
    return make("nav_msgs/msg/Path", header=header(time_ns), poses=poses)


def command(time_ns, v, w):
    stamped = header(time_ns, "base_link")
    return make("geometry_msgs/msg/TwistStamped", header=stamped, twist=twist(v, w))


def number(x):
    return make("std_msgs/msg/Float64", data=float(x))


def write(folder, messages, storage="mcap", compression="none", types=TYPES):
    """Write (topic, time in ns, message) into a rosbag2 folder; returns the folder."""
    writer = Writer(
        folder, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin[storage.upper()]
    )
    if compression != "none":
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    connections, last, data = {}, None, b""
    with writer:
        for topic, time_ns, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=types)
            if message is not last:
                last, data = message, types.serialize_cdr(message, kind)
            writer.write(connections[topic], time_ns, data)
    return folder


def drive(seconds=6.0, start_ns=1_700_000_000 * SECOND, speed=0.5, rate=50):
    """A base that drives along x at a steady speed, beside a path 0.1 m to its left."""
    yield "/plan", start_ns, path(start_ns, [(0.1 * k, 0.1) for k in range(100)])
    for k in range(round(seconds * rate)):
        time_ns = start_ns + SECOND // 100 + k * SECOND // rate
        yield "/odom", time_ns, odometry(time_ns, speed * k / rate, 0.0, v=speed)
        if k % 5 == 0:
            yield "/cmd_vel", time_ns + 1, command(time_ns, speed, 0.0)
