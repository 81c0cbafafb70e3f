# SPDX-License-Identifier: Apache-2.0
"""A node survives exceptions in its callbacks, and changes of parameters cannot delay it."""

import time

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import LivelinessPolicy, QoSProfile
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from mpc_banded.ros import parameters
from mpc_banded.ros.executable import Executor
from mpc_banded.ros.interfaces import CommandPort
from mpc_banded.ros.lifecycle import ManagedNode
from mpc_banded.ros.node import TaskBuilder

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

pytestmark = pytest.mark.ros
PATIENCE_S = 60.0


class Rig:
    """A managed node and a neighbour in one executor, here in this process."""

    def __init__(self, build, **given):
        words = [word for name, x in given.items() for word in ("-p", f"{name}:={x}")]
        rclpy.init(args=["--ros-args", *words])
        self.managed = ManagedNode("survivor", build)
        self.neighbour = Node("neighbour")
        self.executor = Executor()
        for node in (self.managed, self.neighbour):
            self.executor.add_node(node)

    def until(self, condition):
        end = time.monotonic() + PATIENCE_S
        while not condition():
            self.executor.spin_once(timeout_sec=0.05)
            assert time.monotonic() < end

    def ask(self, kind, name, request):
        client = self.neighbour.create_client(kind, name)
        self.until(client.service_is_ready)
        future = client.call_async(request)
        self.until(future.done)
        self.neighbour.destroy_client(client)
        return future.result()

    def close(self):
        self.managed.end()
        self.executor.shutdown()
        for node in (self.managed, self.neighbour):
            node.destroy_node()
        rclpy.shutdown()


class Broken:
    """A task all of whose callbacks raise."""

    def __init__(self, node):
        self.calls = dict.fromkeys(("timer", "subscription", "service"), 0)
        node.create_timer(0.01, self.tick)
        node.create_subscription(Float64, "heard", self.heard, 1)
        node.create_service(Trigger, "asked", self.asked)

    def _raise(self, what):
        self.calls[what] += 1
        raise RuntimeError(what)

    def tick(self):
        self._raise("timer")

    def heard(self, _):
        self._raise("subscription")

    def asked(self, _, response):
        response.message = "so far"
        self._raise("service")

    def activate(self):
        pass

    deactivate = close = activate


def test_node_goes_on_whatever_its_callbacks_raise():
    tasks = []
    rig = Rig(lambda node: tasks.append(Broken(node)) or tasks[-1])
    try:
        assert rig.managed.begin()
        (task,) = tasks
        publisher = rig.neighbour.create_publisher(Float64, "heard", 1)
        rig.until(publisher.get_subscription_count)

        def heard_twice():
            publisher.publish(Float64())
            return task.calls["subscription"] >= 2 and task.calls["timer"] >= 2

        rig.until(heard_twice)
        response = rig.ask(Trigger, "asked", Trigger.Request())
        assert (response.success, response.message) == (False, "so far")
        assert rig.managed.failures == sum(task.calls.values())
    finally:
        rig.close()


def test_subscriber_hears_that_commands_stop_or_that_the_loop_hangs():
    rig = Rig(TaskBuilder(), horizon=4, compile="false", command_deadline=0.5, command_lease=0.5)
    told = {"deadline": 0, "alive": 0, "not alive": 0}

    def changed(event):
        told["alive"], told["not alive"] = event.alive_count, event.not_alive_count

    def missed(event):
        told["deadline"] = event.total_count

    try:
        assert rig.managed.begin()
        context = Context()
        rclpy.init(context=context)
        monitor = Node("monitor", context=context)
        lease = Duration(seconds=0.5)
        asked = QoSProfile(
            depth=1,
            deadline=lease,
            liveliness=LivelinessPolicy.MANUAL_BY_TOPIC,
            liveliness_lease_duration=lease,
        )
        events = SubscriptionEventCallbacks(deadline=missed, liveliness=changed)
        heard = []
        monitor.create_subscription(
            TwistStamped, "cmd_vel", heard.append, asked, event_callbacks=events
        )
        listener = SingleThreadedExecutor(context=context)
        listener.add_node(monitor)

        def both():
            listener.spin_once(timeout_sec=0.0)
            return told["alive"] == 1 and len(heard) > 3

        rig.until(both)
        end = time.monotonic() + PATIENCE_S  # nobody spins the node: its loop hangs
        while not (told["deadline"] and told["not alive"]):
            listener.spin_once(timeout_sec=0.05)
            assert time.monotonic() < end, told
        rig.until(both)
        listener.shutdown()
        monitor.destroy_node()
        rclpy.shutdown(context=context)
    finally:
        rig.close()


@pytest.fixture(scope="module")
def driven():
    """An active mpc_node in this process."""
    rig = Rig(TaskBuilder(), horizon=4, compile="false", controller_frequency=20.0)
    assert rig.managed.begin()
    yield rig
    rig.close()


def test_command_that_cannot_be_written_is_an_error_in_the_diagnostics(driven, monkeypatch):
    diagnostics = driven.managed._task._diagnostics

    def fill(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(CommandPort, "message", fill)
        before = driven.managed.failures
        driven.until(lambda: driven.managed.failures >= before + 3)
        diagnostics.counters.failed_callbacks = driven.managed.failures
        level, sentence = diagnostics._level_and_sentence()
        assert level == DiagnosticStatus.ERROR
        assert "callbacks failed" in sentence
    assert driven.ask(SetBool, "survivor/enable", SetBool.Request(data=True)).success
    counted = diagnostics.counters.cycles
    driven.until(lambda: diagnostics.counters.cycles > counted + 2)


def test_changes_of_parameters_have_a_budget_of_time(driven, monkeypatch):
    monkeypatch.setattr(parameters, "BUDGET_S", 0.0)
    several = [Parameter("weights.speed", value=1.0 + k).to_parameter_msg() for k in range(5000)]
    request = SetParameters.Request(parameters=several)
    results = driven.ask(SetParameters, "survivor/set_parameters", request).results
    taken = [result.successful for result in results]
    assert taken[0]
    assert sum(taken) <= 60  # one in each second
    assert all("one atomic request" in r.reason for r in results if not r.successful)


def test_every_extreme_value_over_the_service_is_taken_or_refused(driven):
    table = driven.managed._task._live.config.table
    failures = driven.managed.failures
    values = (1e308, -1e308, float("inf"), float("nan"), 0, -(2**63), "", [], [float("inf")] * 2)
    for value in values:
        changes = [Parameter(name, value=value) for name in table]
        request = SetParameters.Request(parameters=[p.to_parameter_msg() for p in changes])
        results = driven.ask(SetParameters, "survivor/set_parameters", request).results
        assert len(results) == len(table)
        for result in results:
            assert result.successful or 0 < len(result.reason) < 1000
    counted = driven.managed._task._diagnostics.counters.cycles
    driven.until(lambda: driven.managed._task._diagnostics.counters.cycles > counted + 2)
    assert driven.managed.failures == failures
