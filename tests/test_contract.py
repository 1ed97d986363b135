"""The contract of imports: a room, which is a package or a module, imports only rooms on lower floors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fgclip_rt import interface

ROOT = Path(__file__).parents[1]

#: From the lowest to the highest. A module imports its own room and rooms on lower floors, but no other room of its own
#: floor. Imports inside functions count too, because they only delay the dependency.
FLOORS = (
    (
        "arrays",
        "manifest",
        "machine",
        "names",
        "tokenizer_definition",
        "progress",
        "forks",
        "starts",
        "children",
        "turns",
        "pixel_budget",
        "shipped",
    ),
    ("errors", "ahead", "scores", "recent"),
    ("interface", "image_files"),
    ("devices", "bundle", "preparation", "images", "text", "boxes", "masks", "batching"),
    ("heatmap", "outputs", "packages", "probe", "reading"),
    ("space",),
    ("engine_files", "folders", "journal", "vectors", "map_files", "pocket"),
    ("backends",),
    ("engines", "graphs"),
    ("choice", "dense", "native"),
    ("model",),
    ("parity", "doctor", "timing", "evaluation"),
    ("answers", "integrations"),
    ("index", "shards"),
    ("serving",),
    ("export",),
    ("benchmarks",),
    ("cli",),
)

#: The floors within ``export/``, in the same order.
EXPORT_FLOORS = (
    ("checkpoints", "reference"),
    ("graphs", "request"),
    ("families",),
    ("bundle",),
    ("precision",),
    ("pipeline",),
)

#: The only rooms that may import each of these packages.
HEAVY = {
    "torch": ("export", "benchmarks", "tools"),
    "transformers": ("benchmarks",),
    "openvino": ("benchmarks",),
    "matplotlib": ("benchmarks",),
    "onnxscript": ("export",),
    "onnx_ir": ("export", "benchmarks"),
    "onnx": ("export", "engines"),
    "huggingface_hub": ("export",),
    "tensorrt": ("engines",),
    "tensorrt_rtx": ("engines",),
    "cuda": ("engines",),
    "pyarrow": ("vectors", "shards"),
    "fsspec": ("shards",),
    "ray": ("shards", "serving", "benchmarks"),
    "tritonclient": ("serving",),
    "pillow_heif": ("image_files",),
    "rich": ("cli",),
    "click": ("cli", "tools"),
    "chromadb": ("integrations",),
    "lancedb": ("integrations",),
    "langchain_core": ("integrations",),
    "llama_index": ("integrations",),
    "pydantic": ("integrations",),
    "opentelemetry": ("serving",),
    "mcp": ("serving",),
    "usearch": ("index", "benchmarks"),
}


@cache
def sources() -> dict[str, Path]:
    """Source files by module name without ``fgclip_rt``; the trainer's names begin with ``tools``."""
    found = {}
    for folder in ("fgclip_rt", "export", "engines", "serving", "benchmarks", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / "fgclip_rt" if folder == "fgclip_rt" else ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> tuple[str, ...]:
    """Absolute names of a module's imports; our own modules are named without ``fgclip_rt``."""
    return tuple(_imports(module, sources()[module]))


def _imports(module: str, path: Path) -> Iterator[str]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("fgclip_rt.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = [*base, *(node.module.split(".") if node.module else [])]
            origin = origin[1:] if origin[:1] == ["fgclip_rt"] else origin
            for alias in node.names:
                name = ".".join([*origin, alias.name])
                yield name if name in sources() else ".".join(origin)


def arrows(depth: int) -> Iterator[tuple[str, str, str]]:
    """The importing room, the imported room and a message, for each import of our own modules."""
    for module in sources():
        for name in imports(module):
            if name in sources():
                yield *(".".join(path.split(".")[:depth]) for path in (module, name)), f"{module} imports {name}"


def test_every_arrow_points_down() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    turned = [
        message
        for room, other, message in arrows(1)
        # The package itself and its entry point may import every room; the trainer is no part of the package.
        if room not in ("", "__main__", "tools") and other and room != other and floor[other] >= floor[room]
    ]
    assert turned == []


def test_every_arrow_within_export_points_down() -> None:
    floor = {f"export.{room}": number for number, rooms in enumerate(EXPORT_FLOORS) for room in rooms}
    turned = [
        message
        for room, other, message in arrows(2)
        if room in floor and other in floor and room != other and floor[other] >= floor[room]
    ]
    assert turned == []


def test_a_reference_knows_no_graph() -> None:
    """An export's proof of parity depends on it: the reference shares no rewrite with the graphs."""
    turned = []
    for module in sources():
        if module.startswith("export.reference") or module.endswith(".reference"):
            found = [name for name in imports(module) if "graphs" in name.split(".")]
            turned += [f"{module} imports {name}" for name in found]
    assert turned == []


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_stay_in_their_rooms(package: str) -> None:
    found = [
        f"{module} imports {name}"
        for module in sources()
        for name in imports(module)
        if name.split(".")[0] == package and module.split(".")[0] not in HEAVY[package]
    ]
    assert found == []


def test_every_room_has_its_floor() -> None:
    rooms = {module.split(".")[0] for module in sources()} - {"", "__main__", "tools"}
    assert rooms == {room for floor in FLOORS for room in floor}


def test_a_checkout_has_the_rooms_under_the_names_that_they_are_imported_by() -> None:
    for room in ("export", "engines", "serving", "benchmarks"):
        assert (ROOT / "fgclip_rt" / room).resolve() == ROOT / room


#: Names that only tensors have, unlike ``boxes`` and the keys of a tokenizer's configuration.
TENSORS = {
    value
    for name, value in vars(interface).items()
    if name.isupper()
    and isinstance(value, str)
    and ("_" in value)
    and value not in ("walk_type", "attention_mask", "input_ids")
}


def test_only_one_module_spells_the_names_of_tensors() -> None:
    assert "dense_features" in TENSORS
    assert len(TENSORS) >= 12
    found = [
        f"{module}:{node.lineno} {node.value}"
        for module, path in sources().items()
        if module != "interface"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in TENSORS
    ]
    assert found == []
