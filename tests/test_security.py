# SPDX-License-Identifier: Apache-2.0
"""The SROS2 policy allows each node what it really uses, and hardly anything else."""

from fnmatch import fnmatch
from functools import partial
from xml.etree import ElementTree

import pytest
import rclpy

from mpc_banded.robots.messages import COMMANDS
from mpc_banded.ros import executable
from mpc_banded.ros.lifecycle import ManagedNode
from mpc_banded.ros.node import TaskBuilder
from mpc_banded.ros.recorder import RecorderTask
from mpc_banded.ros.simulator import SimulatorTask

pytestmark = pytest.mark.ros

MAKE = {
    "mpc_node": lambda: ManagedNode("mpc_node", TaskBuilder()),
    "simulator_node": partial(executable.PlainNode, "simulator_node", SimulatorTask),
    "recorder_node": partial(executable.PlainNode, "recorder_node", RecorderTask),
}
#: Allowed for what these tests do not start: simulated time, tf, Nav2, costmaps, Humble.
ELSEWHERE = {
    *("/clock", "/tf", "/tf_static", "/bond", "/received_global_plan", "/speed_limit"),
    *("/follow_path", "/costmap_updates", "/costmap_raw", "/costmap_raw_updates"),
    *("/costmap", "/scan", "/ackermann_cmd"),
}


def allowed(repository, node):
    """(kind, right) -> names with wildcards, absolute, that the policy allows a node."""
    policy = ElementTree.parse(repository / "config" / "sros2_policy.xml").getroot()
    assert (policy.tag, policy.get("version")) == ("policy", "0.2.0")
    (profile,) = policy.findall(f"enclaves/enclave[@path='/mpc_banded/{node}']/profiles/profile")
    assert (profile.get("ns"), profile.get("node")) == ("/", node)
    rights = {}
    for rule in profile:
        ((right, qualifier),) = rule.attrib.items()
        assert qualifier == "ALLOW"
        names = [f"/{each.text}".replace("/~", f"/{node}") for each in rule]
        assert len(set(names)) == len(names)
        rights[rule.tag, right] = names
    return rights


def used(node):
    """The same of a node that runs."""
    asked = {
        ("topics", "publish"): node.get_publisher_names_and_types_by_node,
        ("topics", "subscribe"): node.get_subscriber_names_and_types_by_node,
        ("services", "reply"): node.get_service_names_and_types_by_node,
        ("services", "request"): node.get_client_names_and_types_by_node,
    }
    return {
        key: {name for name, _ in ask(node.get_name(), node.get_namespace())}
        for key, ask in asked.items()
    }


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Node -> (kind, right) -> names used by it, over robots of all kinds of messages."""
    found = {name: {} for name in MAKE}
    folder = tmp_path_factory.mktemp("bags")
    for robot in ("unicycle", "cartpole", "joint_space", "joint_space_velocity"):
        given = {"robot": robot.removesuffix("_velocity"), "horizon": 3, "compile": "false"}
        if robot.endswith("velocity"):
            given["command"] = "velocity"
        for name, make in MAKE.items():
            own = given | ({"bag": folder / robot} if name == "recorder_node" else {})
            words = [word for key, x in own.items() for word in ("-p", f"{key}:={x}")]
            rclpy.init(args=["--ros-args", *words])
            task_node = make()
            assert task_node.begin()
            for key, names in used(task_node.node).items():
                found[name].setdefault(key, set()).update(names)
            task_node.end()
            task_node.node.destroy_node()
            rclpy.shutdown()
    return found


@pytest.mark.parametrize("node", MAKE)
def test_node_may_do_what_it_does(graph, repository, node):
    rights = allowed(repository, node)
    for key, names in graph[node].items():
        patterns = rights.get(key, [])
        assert not [n for n in names if not any(fnmatch(n, p) for p in patterns)], key


@pytest.mark.parametrize("node", MAKE)
def test_nothing_is_allowed_that_no_node_does(graph, repository, node):
    for (kind, right), patterns in allowed(repository, node).items():
        names = ELSEWHERE | graph[node].get((kind, right), set())
        if node == "recorder_node":  # hears what is offered once it is
            names |= graph["mpc_node"]["topics", "publish"]
        assert not [p for p in patterns if not any(fnmatch(n, p) for n in names)], (kind, right)


def test_commands_come_from_the_node_alone(repository):
    commands = {f"/{make(('a',)).topic}" for make in COMMANDS.values()}
    assert commands <= set(allowed(repository, "mpc_node")["topics", "publish"])
    for other in ("simulator_node", "recorder_node"):
        assert not commands & set(allowed(repository, other)["topics", "publish"])
        assert ("services", "request") not in allowed(repository, other)
