# SPDX-License-Identifier: Apache-2.0
"""Drives a demo without processes: with the same references, plant and demands."""

from contextlib import suppress

from builtin_interfaces.msg import Time

from mpc_banded.codegen.build import NoCompiler
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.motion import Simulation
from mpc_banded.offline.drive import Run, summarise
from mpc_banded.ros.demo.references import Reference
from mpc_banded.ros.interfaces import message_class

#: Longest step of the plant in s: short beside the lags of our robots.
SUBSTEP_S = 0.025


def rehearse(config, scenario, compiled=True):
    """Run, summary, and demand -> verdict of one drive; the node's exit codes are left out."""
    made = scenario.reference(config)
    sent = made if isinstance(made, Reference) else None
    loop, simulation, robot = ControlLoop(config), Simulation(config, SUBSTEP_S), config.robot
    if compiled:
        with suppress(NoCompiler):
            loop.controller.compile()
    run = Run()
    figures = {"solve_time_ms": [], "iterations": [], "missed_deadline": [], "converged": []}
    for k in range(round(scenario.duration_s / config.period_s)):
        now_s = k * config.period_s
        now_ns = round(1e9 * now_s) + 10**9
        stamp = Time(sec=now_ns // 10**9, nanosec=now_ns % 10**9)
        run.states.append((now_s, simulation.values))
        for topic in robot.state_topics:
            message = message_class(topic.type)()
            message.header.stamp, message.header.frame_id = stamp, "odom"
            topic.fill(message, simulation.values)
            assert loop.on_message(topic.topic, message, now_ns) is None
        if sent is not None and k == 0:
            assert loop.on_message(sent.topic, sent.message(stamp), now_ns) is None
        tick = loop.tick(now_ns)
        run.commands.append((now_s, dict(tick.command)))
        if tick.step is not None:
            for name, value in (("iterations", tick.step.iterations), ("converged", 1.0)):
                figures[name].append((now_s, float(value)))
            figures["solve_time_ms"].append((now_s, 1.0))
            figures["missed_deadline"].append((now_s, 0.0))
        simulation.advance(tick.command, config.period_s)
    run.telemetry = figures
    summary = summarise(run, config, made.target if sent else made)
    return run, summary, {text: ask(summary, run) for text, ask in scenario.demands.items()}
