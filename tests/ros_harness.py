# SPDX-License-Identifier: Apache-2.0
"""Node and simulator as processes of their own, and an observer that watches and prods them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from mpc_banded import messages
from mpc_banded.config import Config
from mpc_banded.ros.interfaces import CommandPort, message_class

REPOSITORY = Path(__file__).resolve().parents[1]
# A process that is killed leaves its part of Fast DDS's shared memory behind, in the way of those
# that come after it. Loopback has no such memory.
os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
#: Nothing below takes a tenth of this on an idle machine.
PATIENCE_S = 60.0
#: A machine that is busy with other things solves slowly; nothing here is about speed.
UNHURRIED = {"controller_frequency": 10.0, "deadline": 1.0}
FIGURES = ("solve_time_ms", "iterations", "converged", "missed_deadline", "state_age_s")


def config_file(robot):
    return REPOSITORY / "config" / f"{robot}.yaml"


def position(odometry):
    return np.array([odometry.pose.pose.position.x, odometry.pose.pose.position.y])


class Process:
    """One of the package's nodes; its output goes to a file."""

    def __init__(self, module, log, *ros_arguments, environment=None):
        self.log = log
        command = [sys.executable, "-m", f"mpc_banded.ros.{module}"]
        if ros_arguments:
            command += ["--ros-args", *map(str, ros_arguments)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=os.environ | (environment or {}),
            )

    @property
    def output(self):
        return self.log.read_text()

    @property
    def pid(self):
        return self._process.pid

    @property
    def alive(self):
        return self._process.poll() is None

    def wait(self):
        """Wait for its end; returns the exit code."""
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def until_it_says(self, text):
        end = time.monotonic() + PATIENCE_S
        while text not in self.output:
            assert self.alive, self.output
            assert time.monotonic() < end, f"never said {text!r}, but:\n{self.output}"
            time.sleep(0.05)

    def stop(self, number=signal.SIGINT):
        """End it as launch or a user would; returns the exit code."""
        self._process.send_signal(number)
        return self.wait()


class Robot:
    """A node with its simulator in one namespace, and what an observer hears of them."""

    def __init__(self, name, folder, namespace="", environment=None, **parameters):
        parameters = UNHURRIED | parameters
        self.config = Config.load(config_file(name), parameters)
        self.namespace = namespace
        arguments = ["--params-file", config_file(name)]
        for key, value in parameters.items():
            arguments += ["-p", f"{key}:={str(value).lower()}"]
        if namespace:
            arguments += ["-r", f"__ns:=/{namespace}"]
        self.simulator, self.node = (
            Process(
                module,
                folder / f"{namespace}_{name}_{module}.log",
                *arguments,
                environment=environment,
            )
            for module in ("simulator", "node")
        )
        self._context = Context()
        rclpy.init(context=self._context)
        self.observer = Node("observer", context=self._context, namespace=namespace)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.observer)
        self.commands, self.states, self.paths, self.statuses = [], [], [], []
        self.figures = {}
        self._port = CommandPort(self.config)
        self._listen(self._port.message_class, self._port.topic, self.commands)
        (state,) = self.config.robot.state_topics
        self._listen(message_class(state.type), state.topic, self.states)
        self._listen(message_class("nav_msgs/msg/Path"), "mpc_node/optimal_path", self.paths)
        for figure in FIGURES:
            topic = f"mpc_node/telemetry/{figure}"
            self._listen(Float64, topic, self.figures.setdefault(figure, []))
        self.observer.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, 10)
        self._publishers = {}

    def _listen(self, kind, topic, heard):
        self.observer.create_subscription(kind, topic, heard.append, qos_profile_sensor_data)

    def _diagnosed(self, message):
        ours = f"{self.namespace}/mpc_node: control loop".lstrip("/")
        self.statuses += [status for status in message.status if status.name == ours]

    def until(self, condition, what):
        """Listen until something holds; fails with the logs if it does not come to that."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            self._executor.spin_once(timeout_sec=0.05)
            running = self.node.alive and self.simulator.alive
            if time.monotonic() > end or not running:
                logs = f"{self.node.output}\n{self.simulator.output}"
                raise AssertionError(f"never {what}; reason {self.reason!r}; logs:\n{logs}")

    def hear_more(self, count=10):
        """Listen to that many further commands."""
        wanted = len(self.commands) + count
        self.until(lambda: len(self.commands) >= wanted, f"{count} further commands")

    def drain(self):
        """Take in what has been sent by now."""
        for _ in range(200):
            self._executor.spin_once(timeout_sec=0.005)

    def publish(self, kind, topic, message):
        if topic not in self._publishers:
            publisher = self.observer.create_publisher(kind, topic, 1)
            self._publishers[topic] = publisher
            self.until(publisher.get_subscription_count, f"a listener on {topic}")
        self._publishers[topic].publish(message)

    def publish_odometry(self, **values):
        message = Odometry()
        message.header.frame_id = "odom"
        messages.fill_odometry(message, {"x": 0.0, "y": 0.0, "yaw": 0.0} | values)
        self.publish(Odometry, "odom", message)

    def publish_plan(self, points):
        kind = message_class("nav_msgs/msg/Path")
        message = kind()
        message.header.frame_id = "odom"
        poses = np.column_stack([points, np.zeros(len(points))])
        messages.fill_path(message, poses, PoseStamped)
        self.publish(kind, "plan", message)

    def request(self, kind, service, request):
        client = self.observer.create_client(kind, service)
        self.until(client.service_is_ready, f"the service {service}")
        future = client.call_async(request)
        self.until(future.done, f"an answer of {service}")
        self.observer.destroy_client(client)
        return future.result()

    def switch(self, service, on):
        assert self.request(SetBool, service, SetBool.Request(data=on)).success

    def trigger(self, service):
        assert self.request(Trigger, service, Trigger.Request()).success

    @property
    def reason(self):
        """The newest sentence of the diagnostics."""
        return self.statuses[-1].message if self.statuses else ""

    @property
    def facts(self):
        """The newest values of the diagnostics by name."""
        return {pair.key: pair.value for s in self.statuses[-1:] for pair in s.values}

    def values(self, commands):
        return [self._port.values(message) for message in commands]

    def is_stopped(self, count=5):
        """Whether the last commands were all zero."""
        newest = self.values(self.commands[-count:])
        return len(newest) == count and not any(any(v.values()) for v in newest)

    def is_driving(self):
        """Whether the last command was not zero."""
        return any(any(v.values()) for v in self.values(self.commands[-1:]))

    def assert_commands_allowed(self):
        """Every command so far is finite and inside the limits."""
        for values in self.values(self.commands):
            assert np.isfinite(list(values.values())).all()
            for name, value in values.items():
                lower, upper = self.config.values.get(f"limits.{name}", (-np.inf, np.inf))
                assert lower <= value <= upper, f"{name} is {value}"

    def close(self):
        for process in (self.node, self.simulator):
            if process.alive:
                process.stop()
        self._executor.shutdown()
        self.observer.destroy_node()
        rclpy.shutdown(context=self._context)
