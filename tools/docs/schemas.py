"""JSON Schemas of the bundle's JSON files, from the structs that read them."""

from __future__ import annotations

import inspect
import json
from typing import Any

import msgspec

from fgclip_rt.engine_files import EngineRecord
from fgclip_rt.manifest import Manifest


def schemas() -> dict[str, bytes]:
    """JSON Schemas (draft 2020-12) by the file's name."""
    return {
        "manifest.schema.json": _schema(Manifest, "manifest.json of a bundle"),
        "engine.schema.json": _schema(EngineRecord, "engine.json of an engine"),
    }


def _schema(kind: type[msgspec.Struct], title: str) -> bytes:
    schema = _plain(msgspec.json.schema(kind))
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """The schema without the markup of docstrings."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, str):
        return inspect.cleandoc(value).replace(":class:", "").replace(":data:", "").replace("``", "`")
    return value
