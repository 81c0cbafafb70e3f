# SPDX-License-Identifier: Apache-2.0
"""Random cycles of the control loop, offline, under everything that may come in: ``make soak``.

An episode draws a robot, extreme parameters, and then messages, changes and jumps of the clock
from one seed; each command is held against laws that know nothing of the loop's inside. What a
run has done is kept in ``.soak.json``, and the next run goes on from there.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from loop_messages import cloud, fields, header, ns, odometry, plan, pose

from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.record import Journal
from mpc_banded.control.tick import Reason
from mpc_banded.ocp.comb import BandwidthError
from mpc_banded.ocp.differences import WrongDerivative
from mpc_banded.robots.messages import fill_joint_state

ROBOTS = ("unicycle", "bicycle", "cartpole", "joint_space")
EXTREMES = (
    *(math.nan, math.inf, -math.inf, 1e308, -1e308, 1e30, 1e12, -1e7, 1e4, 3.3),
    *(1e-9, 5e-324, 0.0, -0.0, -1.0),
)
WHOLE = (0, 1, -1, 7, 255, 2**31 - 1, 2**32 - 1, -(2**31))
#: Longest horizon: longer ones only take longer.
MOST_STAGES = 15
#: Processor time of one cycle with few eager iterations, on any machine, in s.
LONGEST_TICK_S = 5.0
#: Seconds of simulation in one step, whatever the loop's clock does.
LONGEST_S = 0.2
STATE = Path(".soak.json")


class Breach(AssertionError):
    """A command that breaks a law."""


def leaves(message):
    """Where the values of a message are: (object, key) of each field and item."""
    found = []
    items = vars(message).items() if isinstance(message, SimpleNamespace) else enumerate(message)
    for key, value in items:
        found.append((message, key))
        if isinstance(value, (SimpleNamespace, list)):
            found += leaves(value)
    return found


def spoiled(message, draw):
    """The message with one value of another kind, size or magnitude."""
    message = copy.deepcopy(message)
    places = leaves(message)
    where, key = places[draw.integers(len(places))]
    named = isinstance(where, SimpleNamespace)
    value = getattr(where, key) if named else where[key]
    if isinstance(value, bool) or value is None or isinstance(value, SimpleNamespace):
        return message
    if isinstance(value, float):
        value = EXTREMES[draw.integers(len(EXTREMES))]
    elif isinstance(value, int):
        value = WHOLE[draw.integers(len(WHOLE))]
    elif isinstance(value, str):
        value = ("", "map", "\x1b[31m", "x" * 10_000)[draw.integers(4)]
    else:  # bytes and lists
        value = (value[:0], value[:-1], value + value, value[::-1])[draw.integers(4)]
    if named:
        setattr(where, key, value)
    else:
        where[key] = value
    return message


def value_for(entry, draw):
    """A value for a parameter: at its rim, beyond it, inside, or of another kind."""
    default = entry.default
    if entry.choices:
        return (*entry.choices, "nonsense")[draw.integers(len(entry.choices) + 1)]
    if isinstance(default, bool):
        return bool(draw.integers(2))
    if isinstance(default, str):
        return default
    if isinstance(default, list):
        if entry.of_strings:
            return default
        if entry.length == 2 and draw.random() < 0.7:
            low = -float(10.0 ** draw.uniform(-3, 3))
            return [low, float(10.0 ** draw.uniform(-3, 3))]
        count = draw.integers(8)
        return [float(EXTREMES[draw.integers(len(EXTREMES))]) for _ in range(count)]
    rims = [x for x in (entry.lower, entry.upper) if math.isfinite(x)]
    kind = draw.random()
    if kind < 0.35 and rims:
        value = rims[draw.integers(len(rims))]
    elif kind < 0.5:
        value = EXTREMES[draw.integers(len(EXTREMES))]
    else:
        value = (default or 1.0) * 10.0 ** draw.uniform(-2, 2)
    is_whole = isinstance(default, int) and math.isfinite(value)
    return int(value) if is_whole else float(value)


class Episode:
    """One robot under fire.

    Args:
        seed: Decides everything.
        compiled: Whether compiled derivatives may be used.

    Attributes:
        cycles, driven, refused, rejected: Counts.
    """

    def __init__(self, seed, compiled=True):
        self.draw = np.random.default_rng(seed)
        self.cycles = self.driven = self.refused = self.rejected = 0
        self.slowest_s = 0.0
        self.compiles = compiled and self.draw.random() < 0.97
        self.config, self.loop = self._begun()
        self._compile()
        self.simulation = Simulation(self.config)
        self.journal = Journal()
        self.now_s = float(10.0 ** self.draw.uniform(0, 9))
        self.before, self.before_s, self.limits_before = None, 0.0, {}
        self.measured_s = None
        self.command = self.loop.stop_command()

    def _begun(self):
        """A configuration with a few extreme values, and its loop; refused ones are left out."""
        given = {"robot": ROBOTS[self.draw.integers(len(ROBOTS))], "compile": False}
        given["horizon"] = int(self.draw.integers(2, 12))
        table = Config(given).table
        keys = [key for key in table if key not in given]
        wanted = given
        for _ in range(self.draw.integers(6)):
            key = keys[self.draw.integers(len(keys))]
            with self._refusing():
                wanted = Config({**wanted, key: value_for(table[key], self.draw)}).values
        with self._refusing():
            return Config(wanted), ControlLoop(Config(wanted))
        return Config(given), ControlLoop(Config(given))

    @contextmanager
    def _refusing(self):
        try:
            yield
        except (ConfigError, WrongDerivative, BandwidthError):
            self.refused += 1

    def _compile(self):
        config = self.loop.config
        # Each scheme takes the compiler as long as thousands of cycles: one for each robot.
        usual = config.transcription == config.robot.transcription
        usual = usual and config.parameters.substeps == 1
        if self.compiles and usual and self.loop.controller.library is None:
            self.loop.controller.compile()

    def _chance(self, probability):
        return self.draw.random() < probability

    def run(self, cycles):
        """Run cycles; raises Breach."""
        for _ in range(cycles):
            self._let_time_pass()
            self._send_messages()
            self._interfere()
            self._cycle()
        return self

    def _let_time_pass(self):
        period = self.config.period_s
        step = period * self.draw.uniform(0.8, 1.2)
        if self._chance(0.03):
            step = (0.0, 1e-9, 1e-3, 3.0, 100.0, -1e-3, -0.5, -1e4)[self.draw.integers(8)]
        self.now_s = max(0.0, self.now_s + step)
        lasts = min(abs(step), LONGEST_S)
        slip = 0.0 if self._chance(0.5) else self.draw.uniform(0, 1)
        if self.command and np.isfinite(self.simulation.state).all():
            before = self.simulation.state
            self.simulation.advance(self.command, lasts)
            self.simulation.state = before + (self.simulation.state - before) * (1 - slip)
        if not np.isfinite(self.simulation.state).all() or self._chance(0.005):
            scale = 10.0 ** self.draw.uniform(-2, 5)
            self.simulation.state = scale * self.draw.standard_normal(len(self.simulation.state))

    def _send(self, topic, message):
        if topic not in self.loop.input_topics:
            return False
        if self._chance(0.04):
            message = spoiled(message, self.draw)
        self.journal.received(topic, message, ns(self.now_s))
        why = self.loop.on_message(topic, message, ns(self.now_s))
        self.rejected += why is not None
        return why is None

    def _send_messages(self):
        draw, now = self.draw, self.now_s
        if not self._chance(0.1):
            stamp = now
            if self._chance(0.05):
                stamp = max(0.0, now + (0.06, -0.2, -1.0, 1e3, -1e9)[draw.integers(5)])
            values = self.simulation.values
            if "odom" in self.loop.input_topics:
                message = odometry(stamp, **{"v": 0.0, "w": 0.0} | values)
                topic = "odom"
            else:
                message, topic = fields(header=header(stamp)), "joint_states"
                fill_joint_state(message, values)
            if self._send(topic, message):
                self.measured_s = (stamp, now, getattr(message.header.stamp, "sec", 0))
        lost = self.loop.reference is None and self._chance(0.3)
        if lost or self._chance(0.03):
            self._send("plan", self._path())
        if self._chance(0.02):
            self._send("goal_pose", pose(*self._far(3).tolist(), stamp_s=now, frame="odom"))
        if lost or self._chance(0.03):
            self._send("joint_trajectory", self._joint_trajectory())
        if "obstacles" in self.loop.input_topics and self._chance(0.2):
            count = draw.integers(12)
            circles = draw.standard_normal((count, 5)) * 10.0 ** draw.uniform(-1, 3)
            circles[:, 2] = np.abs(circles[:, 2])
            self._send("obstacles", cloud(circles, now))

    def _far(self, size):
        return self.draw.standard_normal(size) * 10.0 ** self.draw.uniform(-4, 6)

    def _path(self):
        count = self.draw.integers(1, 40)
        points = self._far((count, 3))
        if self._chance(0.7):
            points = np.cumsum(self.draw.standard_normal((count, 3)), axis=0)
            points[:, :2] += self.simulation.state[:2]
        if self._chance(0.2):
            points = np.repeat(points, 3, axis=0)
        return plan(*points.tolist(), frame=("odom", "", "map")[self.draw.integers(3)])

    def _joint_trajectory(self):
        names = [n for n in self.loop.robot.states if not n.endswith("_velocity")]
        count = self.draw.integers(1, 5)
        points = [
            fields(
                positions=self._far(len(names)).tolist(),
                velocities=self._far(len(names)).tolist() if self._chance(0.5) else [],
                time_from_start=fields(sec=int(k), nanosec=0),
            )
            for k in range(count)
        ]
        return fields(header=header(0.0), joint_names=list(names), points=points)

    def _interfere(self):
        if self._chance(0.02):
            self.loop.enabled = not self.loop.enabled
        elif not self.loop.enabled and self._chance(0.3):
            self.loop.enabled = True
        if self._chance(0.01):
            self.loop.reset()
        if self._chance(0.01):
            self.loop.start()
            self.before = None
        if self._chance(0.03):
            key = list(self.config.table)[self.draw.integers(len(self.config.table))]
            with self._refusing():
                config = self.config.changed({key: value_for(self.config.table[key], self.draw)})
                if config.horizon <= MOST_STAGES:
                    self.loop.adopt(config)
                    self._compile()
                    self.config = config

    def _cycle(self):
        began = time.thread_time()
        iterations = int(self.draw.integers(1, 6))
        tick = self.loop.tick(ns(self.now_s), latency_s=0.01, iterations=iterations)
        took_s = time.thread_time() - began
        if took_s > LONGEST_TICK_S:
            raise Breach(f"a cycle took {took_s:.1f} s of processor time: {tick.reason}")
        self.slowest_s = max(self.slowest_s, took_s)
        self.cycles += 1
        self.driven += tick.driving
        check_allowed(tick, self.config)
        self._check_rates(tick)
        self._check_reason(tick)
        record = self.journal.cycle(tick, deadline=False, enabled=self.loop.enabled)
        if type(record).parse(record.values()) != record:
            raise Breach(f"the record is not what it says: {record}")
        self.before, self.before_s = tick.command, self.now_s
        self.limits_before = self.config.parameters.limits
        self.command = tick.command

    def _check_rates(self, tick):
        """No value whose rate is limited changes faster than that."""
        elapsed = self.now_s - self.before_s
        limits = self.config.parameters.limits
        if not self.before or limits is not self.limits_before or elapsed < 0.0:
            return
        for name, rate in self.loop.robot.braking.items():
            if rate in limits and rate in self.loop.robot.inputs and name in tick.command:
                change = tick.command[name] - self.before[name]
                low, high = (elapsed * bound for bound in limits[rate])
                slack = 1e-6 * (1.0 + abs(self.before[name]) + abs(change))
                if not low - slack <= change <= high + slack:
                    raise Breach(
                        f"{name} changed by {change} in {elapsed} s, allowed are {low} to {high}: "
                        f"{self.before} -> {tick.command}; {tick.reason}"
                    )

    def _check_reason(self, tick):
        if "the cycle failed" in tick.reason or len(tick.reason) > 1000:
            raise Breach(f"an error, or a long one: {tick.reason[:1000]}")
        if not tick.reason.isprintable():
            raise Breach(f"the reason is no plain text: {tick.reason!r}")
        if not self.loop.enabled and tick.code is not Reason.DISABLED:
            raise Breach(f"disabled, and yet {tick.code}")
        if tick.code is Reason.HOLDING and self.loop.robot.slow is None:
            stop = self.loop.stop_command()
            if tick.command != stop:
                raise Breach(f"holding is {tick.command}, the stop is {stop}: {tick.reason}")
        if tick.driving:
            longest = self.config.parameters.max_state_age
            stamp, received, seconds = self.measured_s
            counts = self.config.parameters.use_header_stamps and seconds + stamp > 0.0
            if self.now_s - received > longest + 1e-6:
                raise Breach(f"drives on a state of {self.now_s - received} s ago")
            if counts and self.now_s - stamp > longest + 1e-6 and stamp != 0.0:
                raise Breach(f"drives on a state stamped {self.now_s - stamp} s ago")


def check_allowed(tick, config):
    """Raise Breach unless a command is complete, finite and within its limits."""
    command, robot = tick.command, config.robot
    if not command and robot.slow is None:
        raise Breach(f"no command: {tick.reason}")
    for name, value in command.items():
        low, high = config.parameters.limits.get(name.partition("@")[0], (-np.inf, np.inf))
        if not (math.isfinite(value) and low <= value <= high):
            raise Breach(f"{name} is {value}, limits {low} to {high}: {tick.reason}")


def run_episode(job):
    """Run one episode; returns its counts and what it broke, if anything."""
    seed, cycles, compiled = job
    episode, broke = None, ""
    try:
        with np.errstate(all="ignore"):
            episode = Episode(seed, compiled)
            episode.run(cycles)
    except Exception:
        broke = traceback.format_exc()
    counts = ("cycles", "driven", "refused", "rejected", "slowest_s")
    return {"seed": seed, "broke": broke, **{n: getattr(episode, n, 0) for n in counts}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=1_000_000, help="in all, earlier runs too")
    parser.add_argument("--each", type=int, default=200, help="cycles of an episode")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, help="run this episode alone")
    options = parser.parse_args()
    os.nice(19)
    if options.seed is not None:
        print(run_episode((options.seed, options.each, True))["broke"] or "nothing broke")
        return 0
    done = json.loads(STATE.read_text()) if STATE.is_file() else {"next": 0, "broken": []}
    began, last = time.monotonic(), done["next"]
    todo = max(0, options.cycles - done.get("cycles", 0))
    jobs = ((done["next"] + k, options.each, True) for k in range(math.ceil(todo / options.each)))
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for result in pool.imap(run_episode, jobs):
            done["next"] = result["seed"] + 1
            for name in ("cycles", "driven", "refused", "rejected"):
                done[name] = done.get(name, 0) + result[name]
            done["slowest_s"] = max(done.get("slowest_s", 0.0), result["slowest_s"])
            if result["broke"]:
                done["broken"].append(result["seed"])
                print(f"seed {result['seed']}:\n{result['broke']}", flush=True)
            if result["seed"] % 5 == 0:
                STATE.write_text(json.dumps(done))
                print(f"seed {result['seed']}: {done}", flush=True)
    STATE.write_text(json.dumps(done))
    print(f"seeds {last} to {done['next'] - 1} in {time.monotonic() - began:.0f} s: {done}")
    return 1 if done["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
