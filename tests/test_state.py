# SPDX-License-Identifier: Apache-2.0
"""States that are old, repeated, impossible or from another source are rejected."""

import math

import pytest
from loop_messages import AHEAD, ns, odometry, pose

from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.state import StateEstimate
from mpc_banded.control.tick import Reason
from mpc_banded.robots import load_robot

(ODOM,) = load_robot("unicycle").state_topics
NOW = 1000.0


def watch(**parameters):
    return StateEstimate(Config(parameters))


def take(watch, now, **values):
    """Hand over an odometry that comes and is stamped ``now``, unless said otherwise."""
    return watch.take(ODOM, odometry(**({"stamp_s": now} | values)), ns(now))


@pytest.mark.parametrize(
    ("stamp", "age", "remark"),
    [
        (NOW - 0.1, 0.1, ""),
        (NOW - 5.0, 5.0, ""),
        (NOW + 0.01, 0.0, ""),
        (NOW - 61.0, 61.0, ""),
        (0.0, 0.0, "has no stamp"),
    ],
)
def test_age_counts_from_the_stamp_and_from_receipt_where_there_is_none(stamp, age, remark):
    judge = watch()
    assert take(judge, NOW, stamp_s=stamp) is None
    assert judge.age_s(ns(NOW)) == pytest.approx(age, abs=1e-6)
    assert remark in judge.remark
    assert bool(judge.remark) == bool(remark)
    from_receipt = watch(use_header_stamps=False)
    assert take(from_receipt, NOW, stamp_s=stamp) is None
    assert (from_receipt.age_s(ns(NOW)), from_receipt.remark) == (0.0, "")


def test_state_from_the_future_is_refused_unless_stamps_are_not_looked_at():
    judge = watch()
    refused = take(judge, NOW, stamp_s=NOW + 3.0)
    assert refused.startswith("odom is stamped 3.00 s ahead of the clock; if the clocks differ")
    assert judge.state is None
    assert take(watch(use_header_stamps=False), NOW, stamp_s=NOW + 3.0) is None


@pytest.mark.parametrize("stamp", [NOW, NOW - 100.0])
def test_same_stamp_again_makes_nothing_younger(stamp):
    judge = watch()
    assert take(judge, NOW, stamp_s=stamp) is None
    for k in range(1, 5):
        assert "repeats the stamp" in take(judge, NOW + 0.1 * k, stamp_s=stamp)
    assert judge.age_s(ns(NOW + 0.4)) == pytest.approx(NOW + 0.4 - stamp)
    assert take(judge, NOW + 0.5, stamp_s=stamp + 0.5) is None
    careless = watch(use_header_stamps=False)
    assert not any(take(careless, NOW + 0.1 * k, stamp_s=stamp) for k in range(5))


def test_state_of_before_the_last_one_is_refused_until_nothing_else_comes():
    judge = watch()
    take(judge, NOW)
    assert "goes back in time by 0.050 s" in take(judge, NOW + 0.1, stamp_s=NOW - 0.05)
    assert take(judge, NOW + 1.0, stamp_s=NOW - 0.05) is None


def test_frozen_state_is_distinguished_from_a_robot_that_stands():
    moving, standing = watch(), watch()
    told = [take(moving, NOW + 0.05 * k, v=0.5) for k in range(10)]
    assert told[0] is None
    assert "frozen: v is 0.5" in told[-1]
    assert not any(take(standing, NOW + 0.05 * k) for k in range(100))


@pytest.mark.parametrize("name", ["x", "y", "yaw"])
def test_jump_is_refused_until_enough_states_agree_on_it(name):
    judge = watch(jump_samples=4)
    take(judge, NOW)
    far = {name: 10.0 if name != "yaw" else 2.0}
    told = [take(judge, NOW + 0.05 * (k + 1), **far) for k in range(4)]
    assert all(f"{name} jumped by" in text for text in told[:3])
    assert told[3] is None
    assert judge.relocations == 1
    assert take(judge, NOW + 0.3, **far) is None


def test_single_wild_states_are_never_taken():
    judge = watch(jump_samples=3)
    for k in range(40):
        x = 10.0 * k if k % 2 else 0.0
        assert bool(take(judge, NOW + 0.05 * k, x=x)) == bool(x)
    assert judge.relocations == 0


def test_robot_may_move_at_full_speed_through_any_pause_of_the_states():
    judge = watch(**{"limits.v": [-0.3, 2.0], "jump_margin": 0.1})
    take(judge, NOW)
    assert take(judge, NOW + 0.1, x=0.29) is None
    assert take(judge, NOW + 0.2, x=0.29 + 0.31) is not None
    assert take(judge, NOW + 10.2, x=20.0) is None


def test_without_limits_nothing_is_a_jump():
    judge = watch(**{"limits.v": [-math.inf, math.inf]})
    take(judge, NOW)
    assert take(judge, NOW + 0.1, x=1e6) is None


def test_frame_is_that_of_the_parameter_or_of_the_first_state():
    judge, named = watch(), watch(state_frame="map")
    assert take(judge, NOW, frame="odom") is None
    assert take(judge, NOW + 0.1, frame="map") == "odom is in frame 'map'; the state is in 'odom'"
    assert "the state is in 'map'" in take(named, NOW, frame="odom")
    assert take(named, NOW, frame="") is None
    assert named.frame == "map"


def test_clock_that_goes_back_resets_the_estimate():
    judge = watch()
    take(judge, NOW, x=3.0)
    assert judge.age_s(ns(NOW - 5.0)) == -5.0
    assert take(judge, NOW - 5.0, x=-3.0) is None
    assert judge.age_s(ns(NOW - 5.0)) == 0.0


def test_message_of_another_shape_is_refused():
    assert "odom cannot be read" in watch().take(ODOM, object(), 0)


def drive(loop, now, **values):
    message = odometry(**({"stamp_s": now} | values))
    return loop.on_message("odom", message, ns(now)), loop.tick(ns(now))


@pytest.mark.slow
def test_robot_drives_on_after_each_fault():
    given = {"horizon": 8, "dt": 0.1, "jump_samples": 3, "max_frozen_time": 0.0}
    loop = ControlLoop(Config(given))
    loop.on_message("plan", AHEAD, ns(NOW))
    now = NOW
    faults = (
        {"x": math.nan},
        {"x": 10.0},
        {"frame": "elsewhere"},
        {"stamp_s": 0.0},
        {"stamp_s": NOW - 100.0},
        {"stamp_s": NOW + 100.0},
    )
    for fault in faults:
        codes = [
            drive(loop, now + 0.05 * k, **({"y": 1e-4 * k} | fault))[1].code for k in range(6)
        ]
        assert set(codes) <= {Reason.DRIVING, Reason.FOLLOWING, Reason.HOLDING, Reason.NO_STATE}
        now += 5.0
        for k in range(5):
            refused, tick = drive(loop, now + 0.05 * k)
        assert refused is None
        assert tick.driving
        now += 0.5


def test_a_state_that_is_too_old_is_never_solved_from(monkeypatch):
    loop = ControlLoop(Config({"horizon": 8, "dt": 0.1, "max_state_age": 0.2}))
    loop.on_message("plan", AHEAD, ns(NOW))
    drive(loop, NOW)
    monkeypatch.setattr(loop.controller, "step", lambda *_, **__: pytest.fail("asked"))
    for k in range(100):
        tick = loop.tick(ns(NOW + 0.21 + 0.05 * k))
        assert tick.step is None
        assert "max_state_age is 0.2 s" in tick.reason


def test_robot_that_does_not_follow_commands_is_held_and_tried_again():
    """A source that froze while the robot stood, or a robot that is blocked."""
    loop = ControlLoop(Config({"horizon": 8, "dt": 0.1, "max_frozen_time": 1.0}))
    loop.on_message("plan", AHEAD, ns(NOW))
    ticks = [drive(loop, NOW + 0.05 * k)[1] for k in range(300)]
    codes = [tick.code for tick in ticks]
    first = codes.index(Reason.FOLLOWING)
    assert codes[:first] == [Reason.DRIVING] * first
    assert 1.0 < 0.05 * first < 3.0
    assert "hardly changed for" in ticks[first].reason
    assert Reason.HOLDING in codes[first:]
    held = codes.index(Reason.HOLDING)
    assert not any(ticks[held].command.values())
    again = codes.index(Reason.DRIVING, held)
    assert 0.05 * (again - held) > 1.0  # not at once
    moving = [drive(loop, NOW + 15.0 + 0.05 * k, x=0.01 * k)[1].code for k in range(40)]
    assert moving[7:] == [Reason.DRIVING] * 33  # further than noise explains


def test_robot_that_stands_where_it_should_is_no_frozen_one():
    loop = ControlLoop(Config({"horizon": 8, "dt": 0.1, "max_frozen_time": 1.0}))
    loop.on_message("goal_pose", pose(0.0, 0.0, frame="odom"), ns(NOW))
    assert {drive(loop, NOW + 0.05 * k)[1].code for k in range(100)} <= {
        Reason.DRIVING,
        Reason.ARRIVED,
    }


@pytest.mark.parametrize("name", ["v", "w"])
def test_velocity_far_beyond_its_limits_is_refused_however_often_it_comes(name):
    watched = watch()
    low, high = watched.config.parameters.limits[name]
    assert take(watched, NOW, **{name: 1.5 * high}) is None  # pushed, or noise
    for k in range(1, 20):
        value = (3.0 * high + 1.0) * (-1) ** k
        why = take(watched, NOW + 0.05 * k, **{name: value})
        assert f"far beyond limits.{name}" in why
    assert take(watched, NOW + 1.0, **{name: low}) is None
