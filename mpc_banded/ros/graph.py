# SPDX-License-Identifier: Apache-2.0
"""Finds why messages on the topics of a node are lost: no subscriber, other types, other QoS."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSCompatibility, qos_check_compatible


def complaints(node: Node, commands: Publisher[Any], shared: bool = False) -> list[str]:
    """Return one sentence for each reason why messages are not received.

    Args:
        node: The node whose topics are checked.
        commands: Its publisher of commands: somebody must subscribe.
        shared: Whether others may publish commands as well.
    """
    # Telemetry is left out: it has many topics, with the QoS that all tools ask for.
    ends: list[Any] = [*node.publishers, *node.subscriptions]
    topics = dict.fromkeys(e.topic_name for e in ends if "/telemetry/" not in e.topic_name)
    found = _about_commands(node, commands.topic_name, shared)
    found += [sentence for topic in topics for sentence in _qos_mismatches(node, topic)]
    return list(dict.fromkeys(found))


def _about_commands(node: Node, topic: str, shared: bool) -> list[str]:
    subscriptions = node.get_subscriptions_info_by_topic(topic)
    publishers = node.get_publishers_info_by_topic(topic)
    own = {publisher.topic_type for publisher in publishers if _belongs_to(node, publisher)}
    foreign = {end.topic_type for end in (*subscriptions, *publishers)} - own
    found = []
    if not any(subscription.topic_type in own for subscription in subscriptions):
        found.append(f"{topic} has no subscriber")
    if len(publishers) > 1 and not shared:
        others = sorted({p.node_name for p in publishers if not _belongs_to(node, p)})
        found.append(f"{topic} is published by others as well: {', '.join(others)}")
    if foreign and own:
        found.append(
            f"{topic} is {', '.join(sorted(own))} here and {', '.join(sorted(foreign))} "
            "elsewhere, which cannot exchange messages"
        )
    return found


def _qos_mismatches(node: Node, topic: str) -> list[str]:
    """Name the pairs of a publisher and a subscription, one of them ours, that do not match."""
    return [
        f"{subscription.node_name} does not receive {topic} from {publisher.node_name}: "
        + why.replace("ERROR: ", "").strip("; ").replace(";", ", ").lower()
        for subscription in node.get_subscriptions_info_by_topic(topic)
        for publisher in node.get_publishers_info_by_topic(topic)
        if _belongs_to(node, subscription) or _belongs_to(node, publisher)
        for verdict, why in [qos_check_compatible(publisher.qos_profile, subscription.qos_profile)]
        if verdict == QoSCompatibility.ERROR
    ]


def _belongs_to(node: Node, end: Any) -> bool:
    names = (end.node_namespace, end.node_name)
    return names == (node.get_namespace(), node.get_name())
