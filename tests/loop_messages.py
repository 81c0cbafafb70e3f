# SPDX-License-Identifier: Apache-2.0
"""Messages for the control loop, as objects with plain fields, and a loop that is quick."""

import shutil
from types import SimpleNamespace

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.robots.messages import fill_odometry, set_yaw


def quick_loop(config: Config) -> ControlLoop:
    """A control loop with machine code, which finds the same commands, if there is a compiler."""
    loop = ControlLoop(config)
    if any(map(shutil.which, ("cc", "gcc", "clang"))):
        loop.controller.compile()
    return loop


def fields(**values):
    return SimpleNamespace(**values)


def ns(seconds):
    return round(1e9 * seconds)


def header(stamp_s=0.0, frame=""):
    seconds, nanoseconds = divmod(ns(stamp_s), 10**9)
    return fields(stamp=fields(sec=seconds, nanosec=nanoseconds), frame_id=frame)


def vector():
    return fields(x=0.0, y=0.0, z=0.0, w=1.0)


def pose(x, y, yaw=0.0, stamp_s=0.0, frame=""):
    """The fields of geometry_msgs/PoseStamped."""
    result = fields(position=fields(x=x, y=y, z=0.0), orientation=vector())
    set_yaw(result.orientation, yaw)
    return fields(header=header(stamp_s, frame), pose=result)


def odometry(stamp_s=0.0, frame="odom", **values):
    """The fields of nav_msgs/Odometry."""
    twist = fields(twist=fields(linear=vector(), angular=vector()))
    message = fields(header=header(stamp_s, frame), pose=pose(0.0, 0.0), twist=twist)
    fill_odometry(message, {"x": 0.0, "y": 0.0, "yaw": 0.0} | values)
    return message


def plan(*points, frame="", **more):
    """The fields of nav_msgs/Path with poses at the points (x, y) or (x, y, yaw)."""
    return fields(header=header(frame=frame), poses=[pose(*point, **more) for point in points])


AHEAD = plan((0.0, 0.0), (5.0, 0.0))


def scan(ranges, angle_min=0.0, step=0.1, low=0.1, high=10.0, stamp_s=0.0, frame=""):
    """The fields of sensor_msgs/LaserScan."""
    return fields(
        header=header(stamp_s, frame),
        ranges=ranges,
        angle_min=angle_min,
        angle_increment=step,
        range_min=low,
        range_max=high,
    )


def grid(cells, resolution=0.5, x=0.0, y=0.0, yaw=0.0, stamp_s=0.0, frame=""):
    """The fields of nav_msgs/OccupancyGrid."""
    cells = np.asarray(cells)
    origin = pose(x, y, yaw).pose
    info = fields(
        width=cells.shape[1], height=cells.shape[0], resolution=resolution, origin=origin
    )
    return fields(header=header(stamp_s, frame), info=info, data=cells.ravel().tolist())


def cloud(circles, stamp_s=0.0, frame="odom"):
    """The fields of sensor_msgs/PointCloud2 with rows x, y, radius, vx, vy, (M, 5)."""
    names = ("x", "y", "radius", "vx", "vy")
    columns = [fields(name=n, offset=8 * i, datatype=8, count=1) for i, n in enumerate(names)]
    rows = np.asarray(circles, dtype="<f8").reshape(-1, 5)
    return fields(
        header=header(stamp_s, frame),
        height=1,
        width=len(rows),
        fields=columns,
        is_bigendian=False,
        point_step=40,
        row_step=40 * len(rows),
        data=rows.tobytes(),
        is_dense=True,
    )


def update(x, y, cells):
    """The fields of map_msgs/OccupancyGridUpdate."""
    cells = np.asarray(cells)
    return fields(
        header=header(), x=x, y=y, width=cells.shape[1], height=cells.shape[0],
        data=cells.ravel().tolist(),
    )  # fmt: skip
