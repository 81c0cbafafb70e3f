# SPDX-License-Identifier: Apache-2.0
"""Declares the parameters of a node from the table of the configuration, and checks them all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from mpc_banded.control.build import build_transcription
from mpc_banded.control.config import Config, ConfigError
from mpc_banded.control.errors import described
from mpc_banded.control.parameter_file import is_foreign
from mpc_banded.control.parameters import Entry
from mpc_banded.control.text import printable

#: Processor time that changes of parameters may take in each second, in s.
BUDGET_S = 0.25

#: Called after each change with the whole configuration and the new values.
Adopt = Callable[[Config, dict[str, Any]], None]


def given(node: Node) -> dict[str, Any]:
    """Return what command line, launch file and parameter files set, without rclpy's own."""
    # This is the only way to see keys that nobody declared: rclpy's public interface declares
    # what it finds, and fails on an empty list, which arrives without a type.
    overrides = node._parameter_overrides
    return {
        name: [] if parameter.value is None else parameter.value
        for name, parameter in overrides.items()
        if not is_foreign(name)
    }


def declare(node: Node, live: bool) -> Config:
    """Check the given parameters, and declare the whole table with descriptors.

    Args:
        node: The node.
        live: Whether parameters that are not read-only can be changed later.

    Raises:
        ConfigError: A key is unknown or its value not allowed.
    """
    values = given(node)
    config = Config(values)
    if not values:
        node.get_logger().warning(
            f"no parameter was given to {node.get_fully_qualified_name()}, so each has its default"
        )
    for name, entry in config.table.items():
        _declare(node, name, config.values[name], entry, read_only=entry.read_only or not live)
    return config


def _declare(node: Node, name: str, value: Any, entry: Entry, read_only: bool) -> None:
    described = descriptor(entry, read_only)
    if value != []:
        node.declare_parameter(name, value, described, ignore_override=True)
        return
    # rclpy takes an empty list for a list of bytes unless it gets the type.
    empty: Parameter[Any] = Parameter(name, Parameter.Type.DOUBLE_ARRAY, [])
    node.declare_parameter(name, empty.type_, ignore_override=True)
    node.set_parameters([empty])
    described.type = empty.type_.value
    node.set_descriptor(name, described)


def descriptor(entry: Entry, read_only: bool) -> ParameterDescriptor:
    """Describe a parameter for tools: sentence with unit, allowed values, range."""
    unit = f" [{entry.unit}]" if entry.unit else ""
    result = ParameterDescriptor(
        description=entry.description + unit,
        additional_constraints=f"Allowed are {entry.allowed}.",
        read_only=read_only,
        # An integer is accepted for a number: our own callback checks the value.
        dynamic_typing=not read_only,
    )
    if math.isinf(entry.lower) or math.isinf(entry.upper):
        return result
    if isinstance(entry.default, int) and not isinstance(entry.default, bool):
        whole = IntegerRange(from_value=int(entry.lower), to_value=int(entry.upper))
        result.integer_range = [whole]
    elif isinstance(entry.default, float):
        real = FloatingPointRange(from_value=float(entry.lower), to_value=float(entry.upper))
        result.floating_point_range = [real]
    return result


class LiveParameters:
    """The parameters of a node; those that are set together change together, or not at all.

    A wrong value is refused with the reason and changes nothing. The parameters outlive the
    task: a node that is configured again uses their current values.

    Args:
        node: The node.

    Attributes:
        config: The current configuration.
        adopt: Called after each change; None while nobody uses the parameters.

    Raises:
        ConfigError: A key is unknown or its value not allowed.
    """

    def __init__(self, node: Node) -> None:
        # Humble cannot tell a node after a change.
        is_live = hasattr(node, "add_post_set_parameters_callback")
        self._node = node
        self.config = declare(node, is_live)
        self.adopt: Adopt | None = None
        self._checked: tuple[dict[str, Any], Config] | None = None
        self._second, self._spent_s = 0, 0.0
        if is_live:
            node.add_on_set_parameters_callback(self._check)
            node.add_post_set_parameters_callback(self._changed)

    def revert(self, config: Config) -> None:
        """Set the parameters back to a configuration, without calling ``adopt``."""
        adopt, self.adopt = self.adopt, None
        changed = {name: x for name, x in config.values.items() if x != self.config.values[name]}
        self._node.set_parameters([Parameter(name, value=x) for name, x in changed.items()])
        self.adopt = adopt

    def _ours(self, parameters: list[Parameter[Any]]) -> dict[str, Any]:
        """Return name -> value of those that are in the table."""
        return {p.name: p.value for p in parameters if p.name in self.config.table}

    def _check(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        updates = self._ours(parameters)
        if not updates:
            return SetParametersResult(successful=True)
        try:
            with self._accounted():
                self._checked = updates, self._checked_config(parameters, updates)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:  # functions of the robot may raise anything
            return SetParametersResult(successful=False, reason=printable(described(error)))
        return SetParametersResult(successful=True)

    def _checked_config(self, parameters: list[Parameter[Any]], updates: dict[str, Any]) -> Config:
        if self._spent_s > BUDGET_S:
            raise ConfigError(
                f"{next(iter(updates))} is set later: changes have taken {self._spent_s:.2f} s of "
                f"this second, allowed are {BUDGET_S:g} s; set several in one atomic request"
            )
        undeclared = [p.name for p in parameters if p.type_ == Parameter.Type.NOT_SET]
        if undeclared:
            raise ConfigError(f"{undeclared[0]} cannot be undeclared")
        config = self.config.changed(updates)
        _check_bandwidth(self.config, config)
        return config

    @contextmanager
    def _accounted(self) -> Iterator[None]:
        """Count the processor time of a change."""
        began_s, second = time.thread_time(), int(time.monotonic())
        if second != self._second:
            self._second, self._spent_s = second, 0.0
        try:
            yield
        finally:
            self._spent_s += time.thread_time() - began_s

    def _changed(self, parameters: list[Parameter[Any]]) -> None:
        updates = self._ours(parameters)
        if not updates:
            return
        # A configuration that was just checked need not be built again.
        is_checked = self._checked is not None and self._checked[0] == updates
        config = self._checked[1] if is_checked and self._checked else self.config.changed(updates)
        self.config, self._checked = config, None
        if self.adopt is not None:
            with self._accounted():
                self.adopt(config, updates)


def _check_bandwidth(before: Config, after: Config) -> None:
    """Raise ConfigError for a band that only probes could prove wide enough.

    Probes take long, so they run only when the node is configured.
    """
    bandwidth = after.parameters.bandwidth
    if bandwidth and before.rebuilds(after):
        derived = build_transcription(after).half_bandwidth
        if bandwidth < derived:
            raise ConfigError(
                f"bandwidth is {bandwidth}; allowed are, while the node is configured, 0 and "
                f"{derived} (derived) or more"
            )
