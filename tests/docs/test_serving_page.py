"""The blocks of the page on the server that need one, against one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from blocks import Block, blocks, pages
from fgclip_rt.pocket.scenes import draw, make_scene
from http_server import Server, end, start

PAGE = "docs/serving.md"

#: Where the page says that the server is.
ADDRESS = "localhost:8080"

#: Makes a refused request an error, as no reader would write.
STRICT = 'curl() { command curl --fail-with-body "$@"; }\n'

BLOCKS = [block for block in blocks(pages()[PAGE].read_text(encoding="utf-8")) if ADDRESS in block.code]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = start("--alias", "fg-clip", "--alias", "ViT-B-16-SigLIP2__webli")
    yield made
    end(made)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_a_block_runs(block: Block, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo: Image.Image = draw(make_scene(21))
    photo.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    code = block.code.replace(ADDRESS, f"127.0.0.1:{server.port}")
    if block.language == "python":
        names: dict[str, object] = {}
        exec(compile("\n" * (block.line - 1) + code, PAGE, "exec"), names)
        assert names.keys() & {"vector", "vectors"}
        return
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", STRICT + code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_page_shows_every_kind_of_client() -> None:
    code = "".join(block.code for block in BLOCKS)
    for part in ("openai", "langchain", "llama_index", "haystack", "/predict", "/models/interface", "/v2/embed"):
        assert part in code
