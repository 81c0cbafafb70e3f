# SPDX-License-Identifier: Apache-2.0
"""Delay, lag and gain are found as often as the intervals promise, and no relation is made up."""

import functools
import json
from pathlib import Path

import bags
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_banded.cli import main
from mpc_banded.control.config import Config
from mpc_banded.offline.identify import combined, identify, write_parameters
from mpc_banded.offline.lag import (
    Drive,
    Estimate,
    Model,
    Motion,
    NothingToFind,
    fit,
)
from mpc_banded.offline.prediction import prediction_errors
from mpc_banded.offline.recorded_motion import Recorded, read
from mpc_banded.robots import Axis, Robot

CONFIG = Path(__file__).resolve().parents[1] / "config"
DELAY, LAG, GAIN, BIAS = 0.18, 0.25, 0.8, 0.1
STEP = 0.001


@functools.cache
def simulated(seed, delay=DELAY, lag=LAG, gain=GAIN, seconds=60.0, noise=0.05):
    """Commands, and the motion that they cause, by Euler's method in steps of a millisecond.

    Commands come unevenly and hold, measurements come unevenly with noise that is correlated over
    half a second. Returns the drive, the times, the rates and the positions.
    """
    rng = np.random.default_rng(seed)
    commanded = np.cumsum(rng.uniform(0.05, 0.15, int(10 * seconds)))
    levels = np.repeat(rng.uniform(-1.0, 1.0, len(commanded) // 8 + 1), 8)[: len(commanded)]
    measured = commanded[0] + np.cumsum(rng.uniform(0.028, 0.052, int(25 * seconds)))
    measured = measured[measured < commanded[-1]]
    fine = np.arange(commanded[0], commanded[-1] + STEP, STEP)
    asked = levels[np.maximum(np.searchsorted(commanded, fine - delay, "right") - 1, 0)]
    m = np.empty(len(fine))
    m[0] = asked[0]
    for k in range(1, len(fine)):
        m[k] = m[k - 1] + STEP / lag * (asked[k - 1] - m[k - 1])
    rates = np.interp(measured, fine, gain * m + BIAS)
    error = np.zeros(len(measured))
    for k, shock in enumerate(rng.normal(size=len(measured))):
        error[k] = 0.92 * error[k - 1] + 0.39 * shock
    positions = np.interp(measured, fine, np.cumsum(gain * m + BIAS) * STEP)
    positions += 0.2 * noise * rng.normal(size=len(measured))
    return Drive(commanded, levels), measured, rates + noise * error, positions


def motion_of(kind, times, rates, positions):
    return Motion(times, rates) if kind == "rate" else Motion.of_position(times, positions, 0.2)


@pytest.mark.parametrize("kind", ["rate", "position"])
def test_the_truth_is_found_to_a_few_per_cent(kind):
    drive, *measured = simulated(1)
    found = fit(drive, motion_of(kind, *measured))
    assert found.delay.value == pytest.approx(DELAY, abs=0.02)
    assert found.lag.value == pytest.approx(LAG, abs=0.04)
    assert found.gain.value == pytest.approx(GAIN, rel=0.05)
    assert found.bias == pytest.approx(BIAS, abs=0.02)
    assert found.significant


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rate", "position"])
def test_intervals_hold_the_truth_as_often_as_they_say(kind):
    runs, hits = 40, np.zeros(4)
    for seed in range(100, 100 + runs):
        drive, *measured = simulated(seed)
        found = fit(drive, motion_of(kind, *measured))
        hits += [
            DELAY in found.delay,
            LAG in found.lag,
            GAIN in found.gain,
            DELAY + LAG in found.total,
        ]
    # Of 40 intervals of 95 %, 34 or more hold the truth with a probability of 99.7 %.
    assert (hits >= 34).all(), hits


def test_intervals_are_no_wider_than_the_noise_asks_for():
    widths = []
    for noise in (0.02, 0.2):
        drive, times, rates, _ = simulated(2, noise=noise)
        lag = fit(drive, Motion(times, rates)).lag
        widths.append(lag.upper - lag.lower)
    assert widths[0] < 0.03
    assert 3.0 < widths[1] / widths[0] < 30.0


def test_intervals_shrink_with_the_length_of_the_recording():
    widths = []
    for seconds in (40.0, 360.0):
        drive, times, rates, _ = simulated(3, seconds=seconds)
        gain = fit(drive, Motion(times, rates)).gain
        widths.append(gain.upper - gain.lower)
    assert 1.5 < widths[0] / widths[1] < 10.0  # three by the square root, and more blocks


def test_stuck_readings_and_spikes_hardly_matter():
    drive, times, rates, _ = simulated(4)
    clean = fit(drive, Motion(times, rates))
    rates = rates.copy()
    rates[300:312] = 1.9
    rates[np.random.default_rng(5).random(len(rates)) < 0.02] = -4.0
    dirty = fit(drive, Motion(times, rates))
    assert dirty.delay.value in clean.delay
    assert dirty.lag.value in clean.lag
    assert dirty.gain.value in clean.gain


def test_quantised_measurements_are_taken_for_what_they_are():
    drive, times, rates, _ = simulated(6, noise=0.01)
    found = fit(drive, Motion(times, 0.1 * np.round(rates / 0.1)))
    assert (DELAY in found.delay, LAG in found.lag, GAIN in found.gain) == (True, True, True)


def test_messages_that_come_twice_change_nothing():
    drive, times, rates, _ = simulated(7)
    twice = Drive(np.repeat(drive.times, 2), np.repeat(drive.values, 2))
    found = fit(twice, Motion(np.repeat(times, 2), np.repeat(rates, 2)))
    assert found == fit(drive, Motion(times, rates))


def test_bursts_of_commands_hold_over_short_gaps():
    drive, times, rates, _ = simulated(8)
    keep = np.append(True, np.diff(drive.values) != 0.0)  # nothing is sent while nothing changes
    bursts = Drive(
        np.append(drive.times[keep], drive.times[-1]),
        np.append(drive.values[keep], drive.values[-1]),
    )
    found, whole = fit(bursts, Motion(times, rates)), fit(drive, Motion(times, rates))
    assert found.delay.value == pytest.approx(whole.delay.value, abs=1e-3)
    assert found.gain.value == pytest.approx(whole.gain.value, rel=1e-2)


def test_motion_in_a_long_silence_does_not_count():
    drive, times, rates, _ = simulated(9)
    silent = (drive.times > 20.0) & (drive.times < 35.0)
    quiet = Drive(drive.times[~silent], drive.values[~silent])
    moved = np.where((times > 20.2) & (times < 34.8), 3.0, rates)  # somebody carries the robot
    found = fit(quiet, Motion(times, moved))
    assert (DELAY in found.delay, LAG in found.lag, GAIN in found.gain) == (True, True, True)


@pytest.mark.slow
@settings(max_examples=15)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(-1e5, 1e5))
def test_units_and_clocks_do_not_matter(of_drive, of_motion, later):
    drive, times, rates, _ = simulated(10, seconds=20.0)
    found = fit(drive, Motion(times, rates))
    scaled = fit(
        Drive(drive.times + later, of_drive * drive.values),
        Motion(times + later, of_motion * rates),
    )
    assert scaled.delay.value == pytest.approx(found.delay.value, abs=2e-3)
    assert scaled.total.value == pytest.approx(found.total.value, abs=2e-3)
    assert scaled.gain.value == pytest.approx(found.gain.value * of_motion / of_drive, rel=2e-2)


def test_a_command_that_never_changes_tells_nothing():
    drive, times, rates, _ = simulated(11)
    with pytest.raises(NothingToFind, match="command never changes"):
        fit(Drive(drive.times, np.full(len(drive.times), 0.3)), Motion(times, rates))
    with pytest.raises(NothingToFind, match="motion never changes"):
        fit(drive, Motion(times, np.zeros(len(times))))
    with pytest.raises(NothingToFind, match="needed are"):
        fit(drive, Motion(times[:30], rates[:30]))


def test_one_small_step_gives_a_wide_interval_or_none():
    drive, times, *_ = simulated(12, noise=0.0)
    step = Drive(drive.times, np.where(drive.times < 30.0, 0.0, 0.01))
    noise = np.random.default_rng(13).normal(size=len(times))
    found = fit(step, Motion(times, np.where(times < 30.4, 0.0, 0.008) + 0.05 * noise))
    assert not found.significant or found.total.upper - found.total.lower > 0.5


@pytest.mark.slow
def test_motion_that_was_shuffled_follows_nothing():
    significant = 0
    for seed in range(20):
        drive, times, rates, _ = simulated(200 + seed, seconds=40.0)
        other = simulated(400 + seed, seconds=40.0)[2]
        count = min(len(rates), len(other))
        significant += fit(drive, Motion(times[:count], other[:count])).significant
    assert significant <= 4  # one is to be expected; five or more come once in four hundred times


@pytest.mark.parametrize("is_position", [False, True])
def test_the_true_model_predicts_better_than_one_without_delay(is_position):
    drive, times, rates, positions = simulated(14)
    values = positions if is_position else rates
    without, true = Model(0.0, 0.05, 1.0), Model(DELAY, LAG, GAIN, BIAS)
    errors = prediction_errors(drive, times, values, is_position, without, true)
    assert [e.horizon_s for e in errors] == [0.1, 0.2, 0.5, 1.0, 2.0]
    assert all(e.ratio.upper < 1.0 for e in errors[2:])
    same = prediction_errors(drive, times, values, is_position, true, true)
    assert all(e.ratio == Estimate(1.0, 1.0, 1.0) for e in same)


def recorded_car(wheelbase, turn):
    drive, times, _, positions = simulated(15)
    recorded = Recorded()
    ones = np.ones(len(drive.times))
    recorded.commands = {"v": (drive.times, ones), "steering": (drive.times, drive.values)}
    recorded.states = {"yaw": (times, (positions - BIAS * times) * turn / wheelbase)}
    return recorded


def test_the_wheelbase_is_found_from_the_yaw_gain():
    """The drive is a power of the constant, here minus one; nobody has to say which."""
    robot = Robot(
        name="car",
        states=("yaw",),
        inputs=("v", "steering"),
        state_message="odometry",
        command_message="ackermann",
        reference_message="joint_trajectory",
        reference=("yaw",),
        dynamics=lambda x, u, p: 0.0 * x + u[..., :1] * u[..., 1:] / p["wheelbase"],
        stage_costs={
            "yaw": lambda x, u, p: (x[..., 0] - p["reference"][..., 0]) ** 2 + (u * u).sum(-1)
        },
        model={"wheelbase": 0.5},
        axes={
            "yaw": Axis(
                lambda c, m: c["v"] * c["steering"] / m["wheelbase"],
                is_rate=True,
                gain="wheelbase",
            )
        },
    )
    config = Config.load(CONFIG / "unicycle.yaml")
    object.__setattr__(config, "robot", robot)
    config.parameters.model["wheelbase"] = 0.5
    updates = combined(identify(config, recorded_car(2.0, 1.0)))
    assert 2.0 / GAIN in updates["model.wheelbase"]
    assert updates["model.wheelbase"].value == pytest.approx(2.0 / GAIN, rel=0.05)
    assert DELAY in updates["actuation_delay"]
    assert LAG in updates["command_lead"]


def bag_of(tmp_path, seed=16):
    drive, times, rates, _ = simulated(seed)
    _, _, turning, _ = simulated(seed)
    begin = 1_700_000_000 * bags.SECOND
    messages = []
    for t, value in zip(drive.times, drive.values, strict=True):
        at = begin + round(1e9 * t)
        messages.append(("/cmd_vel", at, bags.command(at, value, value)))
    x = 0.0
    for t, v, w in zip(times, rates, turning, strict=True):
        at = begin + round(1e9 * t)
        x += 0.04 * v
        messages.append(("/odom", at, bags.odometry(at, x, 0.0, v=v, w=w)))
    return bags.write(tmp_path / "bag", sorted(messages, key=lambda item: item[1]))


def test_a_bag_becomes_a_parameter_file_with_its_comments(tmp_path, capsys):
    out = tmp_path / "new" / "params.yaml"
    source = CONFIG / "unicycle.yaml"
    assert (
        main(["identify", str(bag_of(tmp_path)), "--params", str(source), "--output", str(out)])
        == 0
    ), capsys.readouterr()
    new = Config.load(out)
    assert new.parameters.actuation_delay == pytest.approx(DELAY, abs=0.02)
    assert new.parameters.command_lead == pytest.approx(LAG, abs=0.04)
    old = Config.load(source).values
    assert {k for k in old if old[k] != new.values[k]} == {"actuation_delay", "command_lead"}
    comments = [line.split("#")[1] for line in source.read_text().splitlines() if "#" in line]
    assert all(comment in out.read_text() for comment in comments)
    figures = json.loads(out.with_suffix(".json").read_text())
    assert figures["axes"]["v"]["significant"]
    assert len(figures["axes"]["v"]["prediction_error"]) == 5
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "follows the command" in said or "0.1" in said


@pytest.mark.slow
def test_what_is_written_twice_is_the_same(tmp_path):
    path = bag_of(tmp_path)
    texts = []
    for name in ("a.yaml", "b.yaml"):
        out = tmp_path / name
        main(
            [
                "identify",
                str(path),
                "--params",
                str(CONFIG / "unicycle.yaml"),
                "--output",
                str(out),
            ]
        )
        texts.append((out.read_text(), out.with_suffix(".json").read_text()))
    assert texts[0] == texts[1]


def test_a_nested_key_a_dotted_key_and_a_new_section(tmp_path):
    source = tmp_path / "in.yaml"
    source.write_text(
        "/**:\n  ros__parameters:\n    robot: bicycle\n    command_lead: 0.2  # kept\n"
        "    model.wheelbase: 2.5\n"
    )
    estimate = Estimate(1.25, 1.0, 1.5)
    updates = dict.fromkeys(["model.wheelbase", "command_lead", "solver.barrier"], estimate)
    write_parameters(source, tmp_path / "out.yaml", {k: updates[k] for k in list(updates)[:2]})
    text = (tmp_path / "out.yaml").read_text()
    content = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert content == {"robot": "bicycle", "command_lead": 1.25, "model.wheelbase": 1.25}
    assert "# kept" in text


@pytest.mark.parametrize(
    ("topic", "said"),
    [("odom:=/nowhere", "/nowhere"), ("odom:=/cmd_vel", "TwistStamped")],
)
def test_a_bag_that_does_not_fit_is_told_in_a_sentence(topic, said, tmp_path, capsys):
    arguments = ["identify", str(bag_of(tmp_path)), "--params", str(CONFIG / "unicycle.yaml")]
    out = tmp_path / "out.yaml"
    assert main([*arguments, "--output", str(out), "--topic", topic]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert not out.exists()


def test_the_parameter_file_itself_is_not_overwritten(tmp_path, capsys):
    params = tmp_path / "p.yaml"
    params.write_text((CONFIG / "unicycle.yaml").read_text())
    assert (
        main(["identify", str(bag_of(tmp_path)), "--params", str(params), "--output", str(params)])
        == 2
    )
    assert "the parameter file itself" in capsys.readouterr().err


def test_nothing_is_written_where_nothing_moves(tmp_path, capsys):
    messages = list(bags.drive(seconds=20.0))
    path = bags.write(tmp_path / "bag", sorted(messages, key=lambda item: item[1]))
    out = tmp_path / "out.yaml"
    arguments = ["identify", str(path), "--params", str(CONFIG / "unicycle.yaml")]
    assert main([*arguments, "--output", str(out)]) == 1
    assert "never changes" in " ".join(capsys.readouterr().out.split())
    assert not out.exists()


def test_states_that_cannot_be_are_counted_and_left_out(tmp_path):
    at = 1_700_000_000 * bags.SECOND
    messages = [
        ("/odom", at + k * bags.SECOND // 10, bags.odometry(at + k * bags.SECOND // 10, x, 0.0))
        for k, x in enumerate([0.0, 0.0, 90.0, 0.0, float("nan"), 0.0])
    ]
    messages.append(("/cmd_vel", at + bags.SECOND, bags.command(at, 0.1, 0.0)))
    path = bags.write(tmp_path / "bag", messages)
    recorded = read(path, Config.load(CONFIG / "unicycle.yaml"), {})
    assert len(recorded.states["v"][0]) == 4
    assert sum(recorded.rejected.values()) == 2
    assert any("jumped" in why for why in recorded.rejected)
