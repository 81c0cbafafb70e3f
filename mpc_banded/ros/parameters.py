# SPDX-License-Identifier: Apache-2.0
"""Parameters of a node: declared from the table in config.py, checked as a whole."""

from __future__ import annotations

import math
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from mpc_banded.config import Config, ConfigError, Entry
from mpc_banded.controller import RecedingHorizonController

#: Parameters that rclpy declares by itself on every node.
OF_RCLPY = ("use_sim_time", "start_type_description_service", "qos_overrides.")
LIVE = "weights."


def given(node: Node) -> dict[str, Any]:
    """What command line, launch file and parameter files gave the node, rclpy's own left out."""
    # The only way to see keys that nobody declared. rclpy's public way declares what it finds,
    # and fails on an empty list, which arrives without a type.
    overrides = node._parameter_overrides
    return {
        name: [] if parameter.value is None else parameter.value
        for name, parameter in overrides.items()
        if not name.startswith(OF_RCLPY)
    }


def declare(node: Node) -> Config:
    """Check what the node was given, and declare the whole table with descriptors.

    Raises:
        ConfigError: A key is unknown or its value not allowed.
    """
    values = given(node)
    config = Config(values)
    if not values:
        node.get_logger().warning(
            f"no parameter was given to {node.get_fully_qualified_name()}, so each has its "
            "default; if you passed a file, its top-level key must be '/**' or that name"
        )
    for name, entry in config.table.items():
        _declare(node, name, config[name], entry)
    return config


def _declare(node: Node, name: str, value: Any, entry: Entry) -> None:
    described = descriptor(entry, read_only=not _is_live(node, name))
    if value != []:
        node.declare_parameter(name, value, described, ignore_override=True)
        return
    # rclpy takes an empty list for one of bytes unless it is told.
    empty: Parameter[Any] = Parameter(name, Parameter.Type.DOUBLE_ARRAY, [])
    node.declare_parameter(name, empty.type_, ignore_override=True)
    node.set_parameters([empty])
    described.type = empty.type_.value
    node.set_descriptor(name, described)


def _is_live(node: Node, name: str) -> bool:
    # Humble cannot tell a node after a change.
    return name.startswith(LIVE) and hasattr(node, "add_post_set_parameters_callback")


def descriptor(entry: Entry, read_only: bool) -> ParameterDescriptor:
    """How tools show a parameter: description with unit, what is allowed, range."""
    unit = f" [{entry.unit}]" if entry.unit else ""
    described = ParameterDescriptor(
        description=entry.description + unit,
        additional_constraints=f"Allowed are {entry.allowed}.",
        read_only=read_only,
        # An integer will do for a number; what fits is checked in our own callback.
        dynamic_typing=not read_only,
    )
    if math.isinf(entry.lower) or math.isinf(entry.upper):
        return described
    if isinstance(entry.default, int) and not isinstance(entry.default, bool):
        whole = IntegerRange(from_value=int(entry.lower), to_value=int(entry.upper))
        described.integer_range = [whole]
    elif isinstance(entry.default, float):
        real = FloatingPointRange(from_value=float(entry.lower), to_value=float(entry.upper))
        described.floating_point_range = [real]
    return described


def keep_weights_live(node: Node, config: Config, controller: RecedingHorizonController) -> None:
    """Let ``weights.*`` be set while the robot drives; they hold from the next solve on."""

    def weights(parameters: list[Parameter[Any]]) -> dict[str, Any]:
        return {p.name: p.value for p in parameters if p.name.startswith(LIVE)}

    def check(parameters: list[Parameter[Any]]) -> SetParametersResult:
        try:
            for name, value in weights(parameters).items():
                if config.table[name].checked(name, value) == math.inf:
                    raise ConfigError(f"{name} is {value!r}; allowed are finite numbers >= 0")
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def apply(parameters: list[Parameter[Any]]) -> None:
        changed = {name.removeprefix(LIVE): float(x) for name, x in weights(parameters).items()}
        controller.set_weights(changed)

    if hasattr(node, "add_post_set_parameters_callback"):
        node.add_on_set_parameters_callback(check)
        node.add_post_set_parameters_callback(apply)
