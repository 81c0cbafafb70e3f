# SPDX-License-Identifier: Apache-2.0
"""Obstacles from a topic are read from any layout, moved along the horizon, and forgotten."""

import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_messages import AHEAD, header, ns, odometry, quick_loop
from rclpy.serialization import serialize_message
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from mpc_banded.control.config import Config
from mpc_banded.control.frames import Frames
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.obstacles import Obstacles
from mpc_banded.control.state import StateEstimate
from mpc_banded.robots.obstacle_messages import read_circles

NAMES = ("x", "y", "radius", "vx", "vy")
NOW = 100.0
PERIOD = 0.05


def cloud(rows, names=NAMES, kind="<f8", padding=0, stamp_s=NOW, frame="odom"):
    """A PointCloud2 with columns of the given names, each padded in front."""
    rows = np.asarray(rows, dtype=float).reshape(-1, len(names))
    width = np.dtype(kind).itemsize + padding
    fields = [(n, kind) for n in names]
    layout = np.dtype(
        {
            "names": list(names),
            "formats": [f for _, f in fields],
            "offsets": [padding + width * i for i in range(len(names))],
            "itemsize": width * len(names) + padding,
        }
    )
    data = np.zeros(len(rows), layout)
    for i, name in enumerate(names):
        data[name] = rows[:, i]
    datatype = {"f4": PointField.FLOAT32, "f8": PointField.FLOAT64}[kind[1:]]
    stamp = header(stamp_s).stamp
    message = PointCloud2(header=Header(frame_id=frame))
    message.header.stamp.sec, message.header.stamp.nanosec = stamp.sec, stamp.nanosec
    message.fields = [
        PointField(name=n, offset=layout.fields[n][1], datatype=datatype, count=1) for n in names
    ]
    message.is_bigendian = kind[0] == ">"
    message.height, message.width, message.point_step = 1, len(rows), layout.itemsize
    message.row_step, message.data = len(rows) * layout.itemsize, data.tobytes()
    return message


def obstacles(**parameters):
    """No obstacles yet, for a state whose frame is odom."""
    config = Config({"state_frame": "odom"} | parameters)
    return Obstacles(config, Frames(StateEstimate(config)))


VALUES = st.floats(-100.0, 100.0, width=32)
ROWS = st.lists(st.tuples(VALUES, VALUES, st.floats(0.0, 5.0, width=32), VALUES, VALUES))


@given(
    rows=ROWS,
    kind=st.sampled_from(["<f4", "<f8", ">f4", ">f8"]),
    padding=st.integers(0, 5),
    order=st.permutations(NAMES),
)
def test_circles_are_read_from_any_layout(rows, kind, padding, order):
    columns = np.array(rows).reshape(-1, 5)[:, [NAMES.index(name) for name in order]]
    message = cloud(columns, order, kind, padding)
    assert np.array_equal(read_circles(message), np.array(rows).reshape(-1, 5))


def test_circles_are_read_from_a_recording_too():
    message = cloud([[1.0, 2.0, 0.5, 0.1, 0.2]])
    types = get_typestore(Stores.ROS2_KILTED)
    kind = "sensor_msgs/msg/PointCloud2"
    again = types.deserialize_cdr(bytes(serialize_message(message)), kind)
    assert read_circles(again).tolist() == [[1.0, 2.0, 0.5, 0.1, 0.2]]


def test_without_velocities_obstacles_stand():
    rows = read_circles(cloud([[1.0, 2.0, 0.5]], NAMES[:3]))
    assert rows.tolist() == [[1.0, 2.0, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (cloud([[1.0, 2.0]], NAMES[:2]), r"no fields \['radius'\]"),
        (cloud([[math.nan, 0.0, 0.5, 0.0, 0.0]]), "make no sense"),
        (cloud([[0.0, 0.0, -0.5, 0.0, 0.0]]), "make no sense"),
        (cloud([[0.0, 0.0, 0.5, 0.0, math.inf]]), "make no sense"),
    ],
)
def test_what_is_no_obstacle_is_refused_and_the_last_ones_stay(message, why):
    loop = ControlLoop(Config({"horizon": 8}))
    loop.on_message("odom", odometry(NOW), ns(NOW))
    assert loop.on_message("obstacles", cloud([[1.0, 2.0, 0.5, 0.0, 0.0]]), ns(NOW)) is None
    with pytest.raises(ValueError, match=why):
        read_circles(message)
    assert loop.on_message("obstacles", message, ns(NOW))
    assert loop.obstacles.circles(ns(NOW)).tolist() == [[1.0, 2.0, 0.5]]


def sized(**sizes):
    """An otherwise valid message with other sizes."""
    message = cloud([[1.0, 2.0, 0.5, 0.0, 0.0]])
    for name, size in sizes.items():
        setattr(message, name, size)
    return message


def with_field(**values):
    message = cloud([[1.0, 2.0, 0.5, 0.0, 0.0]])
    for name, value in values.items():
        setattr(message.fields[2], name, value)
    return message


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (sized(width=2**32 - 1, point_step=0, data=b""), "4294967295 points; allowed are up to"),
        (sized(width=2**32 - 1), "points; allowed are up to"),
        (sized(width=2), "has 40 bytes; 2 points need 80"),
        (sized(height=2**31), "allowed is one row of points"),
        (sized(point_step=0), "a point has 0 bytes and the field needs 8"),
        (sized(point_step=2**31), "1 points need 2147483648"),
        (with_field(offset=2**32 - 8), "'radius' at byte 4294967288"),
        (with_field(offset=33), "'radius' at byte 33; a point has 40 bytes"),
        (with_field(datatype=0), "datatype 0; allowed are 1 to 8"),
        (with_field(datatype=9), "datatype 9; allowed are 1 to 8"),
    ],
)
def test_sizes_that_contradict_the_data_are_refused_before_anything_is_allocated(message, why):
    tracemalloc.start()
    with pytest.raises(ValueError, match=re.escape(why)):
        read_circles(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    loop = ControlLoop(Config({"horizon": 8}))
    loop.on_message("odom", odometry(NOW), ns(NOW))
    assert why in loop.on_message("obstacles", message, ns(NOW))


HERE = np.zeros((2, 3))


def test_obstacles_move_on_along_the_horizon_from_the_time_of_their_stamp():
    known = obstacles()
    known.take("obstacles", cloud([[1.0, 2.0, 0.5, 0.4, -0.2]]), ns(NOW + 0.1))
    circles = known.ahead(ns(NOW + 0.2), np.array([0.0, 1.0]), [HERE], 0.0).circles
    assert circles[:, 0] == pytest.approx(np.array([[1.08, 1.96, 0.5], [1.48, 1.76, 0.5]]))


def test_what_moves_counts_where_it_is_too_until_the_robot_could_have_stopped():
    known, times = obstacles(), np.array([0.0, 0.5, 1.0])
    walker, post = [1.0, 2.0, 0.5, 0.4, -0.2], [3.0, 0.0, 0.1, 0.0, 0.0]
    known.take("obstacles", cloud([walker, post]), ns(NOW))
    ahead = known.ahead(ns(NOW), times, [np.zeros((3, 3))], 0.7)
    before, here = np.array([-0.1, 2.0, 0.0]), np.array([1.0, 2.0, 0.0])
    gaps = ahead.gaps(np.tile(here, (3, 1)))
    assert gaps[0] == gaps[1] < gaps[2]  # what stops dead is where it was
    assert ahead.worst(np.stack([before, here]))[1] == (1.0, 2.0, 0.5)
    assert ahead.worst(np.stack([before, before, here]))[0] > gaps[0]


def test_obstacles_of_another_frame_are_turned_with_their_velocities_or_refused():
    loop = ControlLoop(Config({"horizon": 8}))
    loop.on_message("odom", odometry(NOW), ns(NOW))
    message = cloud([[1.0, 0.0, 0.5, 1.0, 0.0]], frame="camera")
    assert "nothing transforms them" in loop.on_message("obstacles", message, ns(NOW))
    loop.transform = lambda *_: (3.0, 0.0, math.pi / 2)
    assert loop.on_message("obstacles", message, ns(NOW)) is None
    assert loop.obstacles.circles(ns(NOW)) == pytest.approx(np.array([[3.0, 1.0, 0.5]]))
    assert loop.obstacles.circles(ns(NOW + 0.5)) == pytest.approx(np.array([[3.0, 1.5, 0.5]]))


def test_old_obstacles_are_forgotten_and_an_empty_message_forgets_at_once():
    loop = ControlLoop(Config({"horizon": 8, "obstacle_timeout": 0.5, "obstacles": [9, 9, 1]}))
    loop.on_message("odom", odometry(NOW), ns(NOW))
    loop.on_message("obstacles", cloud([[1.0, 0.0, 0.5, 0.0, 0.0]]), ns(NOW))
    assert len(loop.obstacles.circles(ns(NOW + 0.49))) == 2
    assert loop.obstacles.circles(ns(NOW + 0.51)).tolist() == [[9.0, 9.0, 1.0]]
    loop.on_message("obstacles", cloud([]), ns(NOW))
    assert loop.obstacles.circles(ns(NOW)).tolist() == [[9.0, 9.0, 1.0]]


def drive(obstacle, seconds=5.0, known=True, until=math.inf):
    """Drive ahead while a circle moves until a time; the smallest gap to it, and all ticks."""
    config = Config({"horizon": 30, "reference_speed": 0.6})
    loop, robot = quick_loop(config), Simulation(config)
    loop.on_message("plan", AHEAD, ns(NOW))
    gaps, ticks = [], []
    for k in range(round(seconds / PERIOD)):
        now = NOW + PERIOD * k
        loop.on_message("odom", odometry(now, **robot.values), ns(now))
        row = np.array(obstacle, dtype=float)
        row[:2] += min(PERIOD * k, until) * row[3:]
        if PERIOD * k >= until:
            row[3:] = 0.0
        if known:
            assert loop.on_message("obstacles", cloud([row], stamp_s=now), ns(now)) is None
        ticks.append(loop.tick(ns(now)))
        gaps.append(np.linalg.norm(robot.state[:2] - row[:2]) - row[2] - config.robot.radius)
        robot.advance(ticks[-1].command, PERIOD)
        for name, value in ticks[-1].command.items():
            lower, upper = config.parameters.limits[name]
            assert lower <= value <= upper
    return min(gaps), ticks


def test_robot_gives_way_to_what_crosses_its_path():
    crossing = [1.5, 1.2, 0.3, 0.0, -0.5]
    assert drive(crossing, known=False)[0] < 0.0
    gap, ticks = drive(crossing)
    assert gap > 0.0
    assert all(tick.driving for tick in ticks)


@pytest.mark.parametrize("until", [1.5, 2.5])
def test_robot_behind_somebody_who_stops_dead_does_not_touch_him(until):
    ahead = [0.7, 0.0, 0.25, 0.5, 0.0]
    gap, ticks = drive(ahead, until=until)
    assert gap > 0.0
    assert all(tick.driving for tick in ticks[: round(until / PERIOD)])  # nothing to stop for
    assert max(tick.command["v"] for tick in ticks) > 0.4


def test_obstacle_on_the_robot_is_named_and_left():
    _, ticks = drive([0.1, 0.0, 0.5, 0.0, 0.0])
    assert "the plan violates clearance by" in ticks[0].reason
    assert "violates" not in ticks[-1].reason
