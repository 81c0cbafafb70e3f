# SPDX-License-Identifier: Apache-2.0
"""Reads a ROS 2 parameter file as rcl does, and refuses what rcl refuses or ignores.

rcl has its own dialect of YAML: lists have one type, there are no aliases and no nulls, ``y`` is
true and ``1_000`` a string. Of keys that occur twice it silently takes the last one, and sections
whose name does not match the node it silently leaves out. Here both are errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]

NODE = "mpc_node"
#: Parameters that rclpy and the lifecycle node declare themselves: true or false, or below a key.
FLAGS = ("use_sim_time", "start_type_description_service", "autostart")
FOREIGN_SECTION = "qos_overrides."
KEY = "ros__parameters"
_TRUE = re.compile(r"y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON")
_FALSE = re.compile(r"n|N|no|No|NO|false|False|FALSE|off|Off|OFF")
_NULL = re.compile(r"|~|null|Null|NULL")
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|[0-9]+)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.?(inf|Inf|INF|infinity)")
_NAN = re.compile(r"[-+]?\.?(nan|NaN|NAN)")


class ParameterFileError(ValueError):
    """A parameter file cannot be used; the message names it, the place and what is allowed."""


@dataclass(frozen=True)
class Section:
    """The parameters of one node, or of all nodes that match a pattern.

    Attributes:
        name: Name of the node as in the file, with a leading slash: ``/**``, ``/mpc_node``.
        parameters: The mapping below ``ros__parameters``.
    """

    name: str
    parameters: yaml.MappingNode

    def matches(self, node: str) -> bool:
        """Return whether the section is for the node of this full name, by rcl's wildcards."""
        return _matches(self.name.split("/")[1:], node.split("/")[1:])

    def could_match(self, node: str) -> bool:
        """Return whether it may be for a node of this base name, in any namespace."""
        return self.matches(f"/{node}") or self.name.endswith(f"/{node}")

    @property
    def keys(self) -> set[str]:
        """Names of the parameters on the first level."""
        return {key.value for key, _ in self.parameters.value}


def read(path: Path, node: str | None = None) -> dict[str, Value]:
    """Read the parameters of mpc_node, keys joined by dots, without those that rclpy declares.

    Args:
        path: The file.
        node: Fully qualified name of the node; None for mpc_node in any namespace.

    Raises:
        ParameterFileError: The node would refuse the file, ignore it, or take one of two values.
    """
    sections = read_sections(path)
    if node is None:
        fitting = [section for section in sections if section.could_match(NODE)]
    else:
        fitting = [section for section in sections if section.matches(node)]
    if not fitting:
        raise ParameterFileError(
            f"{path} has no parameters for {node or NODE}: its top-level keys are "
            f"{', '.join(section.name.lstrip('/') for section in sections) or 'none'}; allowed "
            f"are '/**', for every node, and '{(node or NODE).lstrip('/')}'"
        )
    named = {section.name for section in fitting if "*" not in section.name}
    if len(named) > 1:
        raise ParameterFileError(
            f"{path} has parameters for {' and for '.join(sorted(named))}; allowed is one of them"
        )
    return _values(path, fitting)


def read_sections(path: Path) -> list[Section]:
    """Read the sections of a parameter file for all nodes."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                what = "an alias" if isinstance(event, yaml.AliasEvent) else "a tag"
                raise ParameterFileError(f"{path} has {what} {_line(event)}; ROS reads none")
        documents = list(yaml.compose_all(text, yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterFileError(f"{path} cannot be read: {error}") from error
    if len(documents) != 1 or not isinstance(documents[0], yaml.MappingNode):
        raise ParameterFileError(
            f"{path} must have a top-level key, '/**' or the name of the node, in one document"
        )
    return list(_sections(path, documents[0], ""))


def _sections(path: Path, tree: yaml.MappingNode, above: str) -> Iterator[Section]:
    """Walk through namespaces down to ``ros__parameters``."""
    names = set()
    for key, value in tree.value:
        name = f"{above}/{str(key.value).strip('/')}"
        if name in names:
            raise ParameterFileError(f"{path} has {key.value!r} twice, again {_line(key)}")
        names.add(name)
        if key.value == KEY or not isinstance(value, yaml.MappingNode):
            raise ParameterFileError(
                f"{path} has {key.value!r} {_line(key)} where the name of a node must be; allowed "
                f"are parameters below {KEY!r}, and that below '/**' or the name of the node"
            )
        below = [key.value for key, _ in value.value]
        if KEY not in below:
            yield from _sections(path, value, name)
            continue
        if len(below) > 1:
            others = [repr(name) for name in below if name != KEY] or [repr(KEY)]
            raise ParameterFileError(
                f"{path} must hold {KEY!r} below {key.value!r}, alone: there is also "
                f"{', '.join(others)}"
            )
        parameters = value.value[0][1]
        if not isinstance(parameters, yaml.MappingNode):
            raise ParameterFileError(f"{path} has no parameters below {KEY!r} {_line(value)}")
        yield Section(name, parameters)


def _values(path: Path, sections: list[Section]) -> dict[str, Value]:
    found: dict[str, tuple[Value, yaml.Node]] = {}
    for section in sections:
        for name, node in _flat(path, section.parameters, ""):
            if name in found:
                raise ParameterFileError(
                    f"{path} has {name} twice, {_line(found[name][1])} and {_line(node)}"
                )
            found[name] = _value(path, name, node), node
    for name in FLAGS:
        if name in found and not isinstance(found[name][0], bool):
            raise ParameterFileError(
                f"{path}: {name} is {_written(found[name][1])} {_line(found[name][1])}; allowed "
                "are true and false"
            )
    return {name: value for name, (value, _) in found.items() if not is_foreign(name)}


def is_foreign(name: str) -> bool:
    """Return whether rclpy or the lifecycle node declares a parameter itself."""
    return name in FLAGS or name.startswith(FOREIGN_SECTION)


def _flat(path: Path, tree: yaml.MappingNode, above: str) -> Iterator[tuple[str, yaml.Node]]:
    for key, node in tree.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value:
            raise ParameterFileError(f"{path} has a key that is no name {_line(key)}")
        name = f"{above}{key.value}"
        if isinstance(node, yaml.MappingNode) and node.value:
            yield from _flat(path, node, f"{name}.")
        else:
            yield name, node


def _value(path: Path, name: str, node: yaml.Node) -> Value:
    if isinstance(node, yaml.SequenceNode):
        items = [_scalar(path, name, item) for item in node.value]
        kinds = {type(item) for item in items}
        if kinds == {int, float}:
            raise ParameterFileError(
                f"{path}: {name} is {_written(node)} {_line(node)}; ROS allows lists of one type, "
                f"so write [{', '.join(repr(float(item)) for item in items)}]"
            )
        if len(kinds) > 1:
            raise ParameterFileError(
                f"{path}: {name} is {_written(node)} {_line(node)}; ROS allows lists of one type"
            )
        return items
    return _scalar(path, name, node)


def _scalar(path: Path, name: str, node: yaml.Node) -> Scalar:
    """Read one value as rcl does."""
    if not isinstance(node, yaml.ScalarNode):
        raise ParameterFileError(
            f"{path}: {name} has {_written(node)} {_line(node)}; allowed are true or false, "
            "numbers, strings, and lists of one of these"
        )
    text = str(node.value)
    if node.style is not None:  # quoted
        return text
    if _NULL.fullmatch(text):
        raise ParameterFileError(f"{path}: {name} has no value {_line(node)}")
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return bool(_TRUE.fullmatch(text))
    if _INTEGER.fullmatch(text):
        digits = text.lstrip("+-")
        base = 16 if digits[:2] in ("0x", "0X") else 8 if re.fullmatch("0[0-7]+", digits) else 10
        number = int(text, base)
        return number if abs(number) < 2**63 else float(number)
    if _FLOAT.fullmatch(text):
        return float(text)
    infinite = _INFINITE.fullmatch(text)
    if infinite:
        return -math.inf if infinite[1] == "-" else math.inf
    return math.nan if _NAN.fullmatch(text) else text


def _matches(pattern: list[str], name: list[str]) -> bool:
    """Return whether tokens of a pattern match: ``*`` matches one token, ``**`` any number."""
    if not pattern or not name:
        return not name and all(token == "**" for token in pattern)
    if pattern[0] == "**":
        return _matches(pattern[1:], name) or _matches(pattern, name[1:])
    return pattern[0] in ("*", name[0]) and _matches(pattern[1:], name[1:])


def _written(node: yaml.Node) -> str:
    """Return the text of a value, on one line."""
    mark, end = node.start_mark, node.end_mark
    return " ".join(str(mark.buffer)[mark.pointer : end.pointer].split()) if mark.buffer else ""


def _line(node: yaml.Node | yaml.Event) -> str:
    mark = node.start_mark
    return f"in line {mark.line + 1}" if mark else ""
