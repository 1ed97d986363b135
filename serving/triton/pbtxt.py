"""Configurations as protobuf's text format, in which Triton reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


class Name(str):
    """A name of an enumeration, which stands without quotes."""

    __slots__ = ()


def mapping(entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries of a field that is a map."""
    return [{"key": key, "value": value} for key, value in entries.items()]


def render(message: Mapping[str, Any]) -> str:
    """A message, each of its fields on a line.

    Args:
        message: fields by name: a string, :class:`Name`, number or boolean, a message, or a list of one of them.
    """
    return "".join(f"{line}\n" for name, value in message.items() for line in _field(name, value))


def _field(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        inner = " ".join(part for key, each in value.items() for part in _field(key, each))
        return [f"{name} {{ {inner} }}"]
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [f"{name}: {_scalar(value)}"]
    if value and isinstance(value[0], Mapping):
        return [part for each in value for part in _field(name, each)]
    return [f"{name}: [ {', '.join(map(_scalar, value))} ]"]


def _scalar(value: Any) -> str:
    # Strings of JSON in ASCII are strings of protobuf as well.
    return str(value) if isinstance(value, Name) else json.dumps(value)
