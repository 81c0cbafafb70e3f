# SPDX-License-Identifier: Apache-2.0
"""Closed loops without ROS: the control loop against a simulated base with lag and delay."""

from contextlib import suppress
from pathlib import Path

import numpy as np
from loop_messages import fields, header, ns, odometry, pose

from mpc_banded.codegen.build import NoCompiler
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.control.tick import Reason

CONFIG = Path(__file__).resolve().parents[1] / "config"


class Trip:
    """A base of a parameter file in closed loop with a simulation.

    Args:
        name: Of the parameter file.
        start: First state.
        delay_s: Of the commands; the loop knows it.
        compiled: Whether to compile the derivatives, where there is a compiler.
        changes: Parameters; two underscores are a dot. No obstacles unless given.

    Attributes:
        states: (K, nx) before each cycle.
        ticks: Of each cycle.
    """

    def __init__(self, name, start, delay_s=0.0, compiled=True, **changes):
        changes = {"obstacles": [], "actuation_delay": delay_s} | changes
        values = {key.replace("__", "."): value for key, value in changes.items()}
        self.config = Config.load(CONFIG / f"{name}.yaml", values)
        self.loop = ControlLoop(self.config)
        if compiled:
            with suppress(NoCompiler):
                self.loop.controller.compile()
        self.base = Simulation(self.config, substep_s=0.025, delay_s=delay_s)
        self.base.state = np.array(start, dtype=float)
        self._states, self.ticks = [], []
        self.measure()

    @property
    def now_s(self):
        return 1.0 + len(self.ticks) * self.config.period_s

    @property
    def states(self):
        return np.array(self._states)

    def commands(self, name):
        return np.array([tick.command[name] for tick in self.ticks])

    def send(self, topic, message):
        return self.loop.on_message(topic, message, ns(self.now_s))

    def measure(self, noise=None):
        """Send the state; ``noise`` changes its values by name."""
        values = self.base.values if noise is None else noise(self.base.values)
        return self.send("odom", odometry(self.now_s, **values))

    def plan(self, points, yaws=None, frame="odom"):
        """Send a path; without yaws its poses have the identity."""
        yaws = np.zeros(len(points)) if yaws is None else yaws
        poses = [pose(x, y, yaw, frame=frame) for (x, y), yaw in zip(points, yaws, strict=True)]
        return self.send("plan", fields(header=header(frame=frame), poses=poses))

    def goal(self, x, y, yaw):
        return self.send("goal_pose", pose(x, y, yaw, frame="odom"))

    def cycle(self, noise=None):
        self.measure(noise)
        tick = self.loop.tick(ns(self.now_s))
        self._states.append(self.base.state.copy())
        self.base.advance(tick.command, self.config.period_s)
        self.ticks.append(tick)
        return tick

    def run(self, seconds, each=None, noise=None):
        """Drive until it has arrived and stands, or the time is over; ``each`` is called first."""
        for _ in range(round(seconds / self.config.period_s)):
            if each is not None:
                each(self)
            tick = self.cycle(noise)
            standing = not any(tick.command.values()) and abs(self.base.values["v"]) < 1e-3
            if tick.code is Reason.ARRIVED and standing:
                break
        return self
