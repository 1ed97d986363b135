"""Options in units: durations and sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import click

_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "min": 60.0}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class _Quantity(click.ParamType[float]):
    """A number and a unit, without a space between them."""

    def __init__(self, name: str, units: Mapping[str, float], example: str) -> None:
        self.name = name
        self._units = units
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number in the smallest whole unit: seconds or bytes."""
        if isinstance(value, (int, float)):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", value.strip())
        factor = self._units.get(found[2]) if found else None
        if found is None or factor is None or not math.isfinite(number := float(found[1]) * factor):
            self.fail(f"{value!r} is no {self.name}; write it as {self._example}.", param, ctx)
        return number


DURATION = _Quantity("duration", _SECONDS, "5ms, 2s or 1min")
SIZE = _Quantity("size", _BYTES, "500KB, 64MB or 1GiB")
