"""The pages themselves: the site builds, links lead somewhere, and what is made from the code is not stale."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mkdocs.commands.build
import mkdocs.config
import numpy as np
from safetensors.numpy import load_file
from test_contract import FLOORS

import tools.docs
from blocks import ROOT, blocks, pages
from fgclip_rt.errors import CODES
from fgclip_rt.model import Model
from slow_resize import resize

DOCS = ROOT / "docs"


def test_generated_files_are_as_the_code_says(pocket: Model) -> None:
    for name, data in tools.docs.generate(pocket.tokenizer).items():
        assert (DOCS / name).read_bytes() == data, f"docs/{name} is stale; run 'make docs'"


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    config = mkdocs.config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    mkdocs.commands.build.build(config)
    built = list(tmp_path.rglob("*.html"))
    assert len(built) > len(pages()) - 1
    for path in built:
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]*)"', path.read_text(encoding="utf-8"))
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|icon|preconnect)"[^>]*>', path.read_text(encoding="utf-8"))
        assert loaded
        assert not [address for address in loaded if "//" in address], path


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r' src="([^"]+)"', text)
    assert "docs/pictures/maps.webp" in targets
    for target in targets:
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            assert (ROOT / path).is_file(), target
            assert not anchor or anchor in anchors(ROOT / path), target


def test_files_of_the_repository_that_pages_name_are_there() -> None:
    """The site holds no links to them, since they lie outside it."""
    named = {
        path
        for page in pages().values()
        for path in re.findall(
            r"`((?:tests|tools|fgclip_rt|benchmarks|native/examples|\.ci)/[\w./-]*)`", page.read_text("utf-8")
        )
    }
    assert "tests/slow_resize.py" in named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them of plain words."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}


def test_every_error_code_has_its_section() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `(\w+)`\n\n(.*)\n\n- \*\*Why\.\*\* \S.*\n- \*\*Do\.\*\* \S.*$", text, re.MULTILINE)
    assert dict(sections) == dict(CODES)
    assert len(sections) == len(CODES) == text.count("\n### ")


def test_the_design_page_has_every_room_on_its_floor() -> None:
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    table = text.partition("| floor | rooms |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[2]) for line in table.splitlines()[2:]]
    assert rows == [list(rooms) for rooms in reversed(FLOORS)]


def test_the_page_of_the_format_has_every_key_of_the_manifest() -> None:
    schema = json.loads((DOCS / "bundle/manifest.schema.json").read_text(encoding="utf-8"))
    text = (DOCS / "bundle/index.md").read_text(encoding="utf-8")
    for key in schema["$defs"]["Manifest"]["properties"]:
        assert f"`{key}`" in text


def test_vectors_of_patches_are_those_of_the_arithmetic_on_the_page() -> None:
    tensors = load_file(DOCS / "bundle/vectors/patches.safetensors")
    grids = namespace_of("preparation.md")["target_grid"]
    images = [name for name in tensors if name.endswith(".image")]
    assert len(images) >= 7
    for name in images:
        number, image = name.split(".")[0], tensors[name]
        rows, columns = grids(*image.shape[:2], 16, 16)
        for kind, (height, width), resample in (
            ("naflex.16", (rows * 16, columns * 16), "bilinear"),
            ("square", (32, 32), "bicubic"),
        ):
            resized = resize(image, height, width, resample)
            cut = [
                resized[y : y + 16, x : x + 16].reshape(-1) for y in range(0, height, 16) for x in range(0, width, 16)
            ]
            assert np.array_equal(tensors[f"{number}.{kind}"], cut)


def test_vectors_of_grids_are_those_of_the_code_on_the_page() -> None:
    cases = json.loads((DOCS / "bundle/vectors/grids.json").read_text(encoding="utf-8"))
    grids = namespace_of("preparation.md")["target_grid"]
    assert {case["bucket"] for case in cases if case["max_num_patches"] is None} == {128, 256, 576, 784, 1024}
    for case in cases:
        assert list(grids(case["height"], case["width"], 16, case["bucket"])) == case["grid"]


def test_vectors_of_patches_tell_the_order_of_the_passes() -> None:
    tensors = load_file(DOCS / "bundle/vectors/patches.safetensors")
    differing = 0
    for name in tensors:
        if name.endswith(".image"):
            image = tensors[name]
            vertically_first = resize(image.swapaxes(0, 1), 32, 32, "bicubic").swapaxes(0, 1)
            differing += not np.array_equal(vertically_first, resize(image, 32, 32, "bicubic"))
    assert differing >= 3


def namespace_of(page: str) -> dict[str, object]:
    """Names that the blocks of Python of a page of the bundle define."""
    names: dict[str, object] = {}
    for block in blocks((DOCS / "bundle" / page).read_text(encoding="utf-8")):
        if block.language == "python":
            exec(block.code, names)
    return names
