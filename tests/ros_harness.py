# SPDX-License-Identifier: Apache-2.0
"""Runs node and simulator as processes, with an observer that watches them and sends messages."""

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
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from mpc_banded.control.config import Config
from mpc_banded.control.record import Cycle
from mpc_banded.robots import messages
from mpc_banded.ros.interfaces import CommandPort, message_class

REPOSITORY = Path(__file__).resolve().parents[1]
# A process that is killed leaves its part of Fast DDS's shared memory behind, in the way of those
# that come after it. Loopback has no such memory.
os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
#: Nothing below takes a tenth of this on an idle machine.
PATIENCE_S = 60.0
#: A machine that is busy with other things solves slowly; nothing here is about speed.
UNHURRIED = {"controller_frequency": 10.0, "deadline": 1.0}
METRICS = (
    *("solve_time_ms", "iterations", "converged", "missed_deadline", "state_age_s"),
    *("late_cycles", "skipped_cycles"),
)


def config_file(robot):
    return REPOSITORY / "config" / f"{robot}.yaml"


def on_path(folder):
    """The environment of a process that finds the modules of a folder before all others."""
    paths = filter(None, [str(folder), os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join(paths)}


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

    def kill(self):
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def stop(self, number=signal.SIGINT):
        """End it as launch or a user would; returns the exit code."""
        self._process.send_signal(number)
        return self.wait()


class Watcher:
    """Subscribes and calls services in a namespace, in a context of its own.

    Args:
        namespace: Where it lives.
        processes: End a wait when they end.
    """

    def __init__(self, namespace, *processes):
        self.namespace = namespace
        self.processes = processes
        self._context = Context()
        rclpy.init(context=self._context)
        self.observer = Node("observer", context=self._context, namespace=namespace)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.observer)
        self._publishers = {}
        self._clients = {}

    def listen(self, kind, topic, heard, quality=qos_profile_sensor_data):
        """Call with each message of a topic; the topic must not be a robot's only ear."""
        self.observer.create_subscription(kind, topic, heard, quality)

    def until(self, condition, what):
        """Listen until something holds; fails with the logs if it does not come to that."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            self._executor.spin_once(timeout_sec=0.05)
            if time.monotonic() > end or not all(p.alive for p in self.processes):
                logs = "\n".join(process.output for process in self.processes)
                raise AssertionError(f"never {what}; {self.described()}; logs:\n{logs}")

    def described(self):
        return ""

    def drain(self):
        """Receive the messages sent so far."""
        for _ in range(200):
            self._executor.spin_once(timeout_sec=0.005)

    def publish(self, kind, topic, message):
        if topic not in self._publishers:
            publisher = self.observer.create_publisher(kind, topic, 1)
            self._publishers[topic] = publisher
            self.until(publisher.get_subscription_count, f"a listener on {topic}")
        self._publishers[topic].publish(message)

    def request(self, kind, service, request):
        if service not in self._clients:
            self._clients[service] = self.observer.create_client(kind, service)
        client = self._clients[service]
        self.until(client.service_is_ready, f"the service {service}")
        future = client.call_async(request)
        self.until(future.done, f"an answer of {service}")
        return future.result()

    def switch(self, service, on):
        assert self.request(SetBool, service, SetBool.Request(data=on)).success

    def trigger(self, service):
        assert self.request(Trigger, service, Trigger.Request()).success

    def close(self):
        for process in self.processes:
            if process.alive:
                process.stop()
        self._executor.shutdown()
        self.observer.destroy_node()
        rclpy.shutdown(context=self._context)


class Robot(Watcher):
    """A node with its simulator in one namespace, and their messages as an observer receives them.

    Args:
        name: Of the robot, whose parameter file is used.
        folder: For the logs.
        namespace: Of both, and of the observer.
        environment: Of both, beside that of the tests.
        file: Parameter file, where the robot is none of the package.
        node_parameters: For the node alone, and no part of the table.
        node_arguments, both_arguments: ROS arguments for the node alone, and for both.
        parameters: Of both.
    """

    def __init__(
        self,
        name,
        folder,
        namespace="",
        environment=None,
        file=None,
        node_parameters=None,
        node_arguments=(),
        both_arguments=(),
        **parameters,
    ):
        parameters = UNHURRIED | parameters
        file = file or config_file(name)
        self.config = Config.load(file, parameters)
        self._arguments = ["--params-file", file, *both_arguments]
        for key, value in parameters.items():
            self._arguments += ["-p", f"{key}:={str(value).lower()}"]
        if namespace:
            self._arguments += ["-r", f"__ns:=/{namespace}"]
        own = [f"{key}:={str(x).lower()}" for key, x in (node_parameters or {}).items()]
        own = [part for pair in own for part in ("-p", pair)]
        self._name, self._folder, self._environment = f"{namespace}_{name}", folder, environment
        self.simulator = self._started("simulator")
        self.node = self._started("node", *own, *node_arguments)
        super().__init__(namespace, self.node, self.simulator)
        self.commands, self.states, self.paths = [], [], []
        self.statuses, self.cycles = [], []
        self.metrics = {}
        self._port = CommandPort(self.config)
        self.listen(self._port.message_class, self._port.topic, self.commands.append)
        (state,) = self.config.robot.state_topics
        self.listen(message_class(state.type), state.topic, self.states.append)
        self.listen(message_class("nav_msgs/msg/Path"), "mpc_node/optimal_path", self.paths.append)
        for name in METRICS:
            heard = self.metrics.setdefault(name, [])
            self.listen(Float64, f"mpc_node/telemetry/{name}", heard.append)
        self.listen(DiagnosticArray, "/diagnostics", self._diagnosed, 10)
        self.listen(DiagnosticArray, "mpc_node/cycle", self._recorded, 100)

    def _started(self, module, *arguments):
        log = self._folder / f"{self._name}_{module}.log"
        return Process(module, log, *self._arguments, *arguments, environment=self._environment)

    def restart_simulator(self):
        """Start the simulator again, after it was killed."""
        self.simulator = self._started("simulator")
        self.processes = (self.node, self.simulator)

    def _diagnosed(self, message):
        ours = f"{self.namespace}/mpc_node: control loop".lstrip("/")
        self.statuses += [status for status in message.status if status.name == ours]

    def _recorded(self, message):
        (status,) = message.status
        self.cycles.append(Cycle.parse({pair.key: pair.value for pair in status.values}))

    def described(self):
        return f"reason {self.reason!r}"

    def hear_more(self, count=10):
        """Wait for that many further commands."""
        wanted = len(self.commands) + count
        self.until(lambda: len(self.commands) >= wanted, f"{count} further commands")

    def publish_odometry(self, **values):
        message = Odometry()
        message.header.frame_id = "odom"
        messages.fill_odometry(message, {"x": 0.0, "y": 0.0, "yaw": 0.0} | values)
        self.publish(Odometry, "odom", message)

    def publish_plan(self, points, frame="odom"):
        kind = message_class("nav_msgs/msg/Path")
        message = kind()
        message.header.frame_id = frame
        points = np.reshape(points, (-1, 2))
        poses = np.column_stack([points, np.zeros(len(points))])
        messages.fill_path(message, poses, PoseStamped)
        self.publish(kind, "plan", message)

    def set_at_once(self, **values):
        """Set parameters, all or none; returns the reason of a refusal, empty if there is none.

        A name has two underscores for each dot.
        """
        given = {name.replace("__", "."): x for name, x in values.items()}
        parameters = [Parameter(name, value=x).to_parameter_msg() for name, x in given.items()]
        service = "mpc_node/set_parameters_atomically"
        request = SetParametersAtomically.Request(parameters=parameters)
        result = self.request(SetParametersAtomically, service, request).result
        assert result.successful == (not result.reason)
        return result.reason

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

    def metric(self, name):
        """The newest value of a metric, None before the first."""
        return self.metrics[name][-1].data if self.metrics[name] else None

    @property
    def code(self):
        """The reason code of the newest cycle."""
        return self.cycles[-1].code if self.cycles else ""

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
                lower, upper = self.config.values.get(
                    f"limits.{name.partition('@')[0]}", (-np.inf, np.inf)
                )
                assert lower <= value <= upper, f"{name} is {value}"
