"""Tools for agents, called by the protocol's own client over standard input and output."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from indexing import NAME, bring_up_to_date
from numpy.testing import assert_allclose
from PIL import Image

from fgclip_rt.errors import ArgumentError, ImageError
from fgclip_rt.model import Model, load
from fgclip_rt.pocket.captions import box_caption
from fgclip_rt.pocket.scenes import draw, make_scene
from fgclip_rt.serving.mcp.sources import Sources
from fgclip_rt.serving.mcp.vectors import Vectors

mcp = pytest.importorskip("mcp")

SCENE = 5


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    folder = tmp_path_factory.mktemp("agent") / "photos"
    folder.mkdir()
    for seed in range(8):
        draw(make_scene(seed, "test")).save(folder / f"{seed}.png")
    (folder.parent / "secret.png").write_bytes((folder / "0.png").read_bytes())
    bring_up_to_date(model, folder, folder.with_name("photos.index"))
    return folder


def with_client(photos: Path, use: Callable[[Any], Awaitable[None]]) -> None:
    """Start the command and use it by the client."""

    async def run() -> None:
        command = ["-m", "fgclip_rt", "mcp", NAME, "--root", str(photos)]
        command += ["--index", str(photos.with_name("photos.index"))]
        parameters = mcp.StdioServerParameters(command=sys.executable, args=command)
        async with mcp.Client(parameters) as client:
            await use(client)

    asyncio.run(asyncio.wait_for(run(), 120))


def test_an_agent_scores_finds_and_searches(photos: Path, model: Model) -> None:
    scene = make_scene(SCENE, "test")
    name = box_caption(scene.things[0].look, "en", SCENE)

    async def use(client: Any) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {
            *("text_embedding", "image_embedding", "cosine_similarity", "score", "score_regions"),
            *("find_in_image", "heatmap", "search_images", "index_status"),
        }
        assert all(tool.annotations.read_only_hint for tool in tools.values())

        texts = await client.call_tool("text_embedding", {"texts": ["a star", "a moon"]})
        pictures = await client.call_tool("image_embedding", {"images": ["5.png", str(photos / "6.png")]})
        uris = [answer.structured_content["saved_uris"] for answer in (pictures, texts)]
        assert uris[0][0].startswith(f"embedding://image/{NAME}/")
        asked = {"uris_a": uris[0], "uris_b": uris[1], "mode": "matrix"}
        answer = (await client.call_tool("cosine_similarity", asked)).structured_content
        expected = model.embed_images([photos / "5.png", photos / "6.png"]) @ model.embed_texts(["a star", "a moon"]).T
        assert_allclose(answer["similarities"], expected, atol=1e-4)
        assert answer["shape"] == [2, 2]
        # Numbers of a vector reach no model.
        assert all(len(block.text) < 500 for block in (*texts.content, *pictures.content))

        scored = (await client.call_tool("score", {"images": ["5.png"], "texts": [name]})).structured_content
        assert scored["result"][0]["image"] == "5.png"
        boxes = [list(thing.box) for thing in scene.things]
        regions = await client.call_tool("score_regions", {"image": "5.png", "boxes": boxes, "texts": [name]})
        cosines = [each["cosine"] for each in regions.structured_content["result"]]
        assert cosines[0] == max(cosines)

        found = await client.call_tool("find_in_image", {"image": "5.png", "text": name})
        assert found.content[0].text.startswith("box [")
        for answer in (found, await client.call_tool("heatmap", {"image": "5.png", "texts": [name]})):
            data = base64.b64decode(answer.content[-1].data)
            with Image.open(io.BytesIO(data)) as image:
                assert image.format == "PNG"

        searched = await client.call_tool("search_images", {"image": "5.png", "box": boxes[0], "top": 3})
        assert "\n1. 5.png, cosine " in searched.content[0].text
        status = (await client.call_tool("index_status", {})).structured_content
        assert (status["images"], status["folder"]) == (8, str(photos))

    with_client(photos, use)


def test_an_agent_reads_our_sentence_and_nothing_outside_of_its_folder(photos: Path) -> None:
    async def use(client: Any) -> None:
        for image in ("../secret.png", str(photos.parent / "secret.png"), "/etc/passwd", "http://example.org/a.png"):
            refused = await client.call_tool("image_embedding", {"images": [image]})
            assert refused.is_error
            assert image in refused.content[0].text
        gone = {"uris_a": ["embedding://text/x/0"], "uris_b": ["embedding://text/x/0"]}
        for tool, arguments, part in (
            ("cosine_similarity", gone, "not held here"),
            ("text_embedding", {"texts": []}, "0 texts"),
            ("text_embedding", {"texts": ["a"], "walk_type": "odd"}, "'odd'"),
            ("text_embedding", {"texts": ["a"], "model": "clip"}, "leave the name out"),
            ("search_images", {}, "either a text or an image"),
            ("score_regions", {"image": "5.png", "boxes": [[5, 5, 1, 1]], "texts": ["a"]}, "box"),
        ):
            refused = await client.call_tool(tool, arguments)
            assert refused.is_error, tool
            assert part in refused.content[0].text

    with_client(photos, use)


def test_links_do_not_lead_out_of_a_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(photos / "0.png")
    with pytest.raises(ImageError):
        Sources([tmp_path / "in"]).read("link.png")
    assert Sources([tmp_path / "in", photos]).read("0.png") == photos / "0.png"
    with pytest.raises(ImageError, match="--root"):
        Sources([]).read("0.png")
    with pytest.raises(ImageError, match="base64"):
        Sources([]).read("data:image/png;base64,%%%")
    assert Sources([]).read("data:image/png;base64,AAEC") == bytes(range(3))


def test_no_two_contents_share_an_address(model: Model) -> None:
    vectors = Vectors(NAME, "0" * 64)
    vector = model.embed_texts("a star")[0]
    same = vectors.keep("text", b"a star", vector, "short")
    assert vectors.keep("text", b"a star", vector, "short") == same
    others = {
        vectors.keep("text", b"a star", vector, "box"),
        vectors.keep("image", b"a star", vector, "short"),
        vectors.keep("text", b"a sta", vector, "rshort"),
        Vectors(NAME, "1" * 64).keep("text", b"a star", vector, "short"),
    }
    assert same not in others
    assert len(others) == 4
    assert len(same.rsplit("/", 1)[1]) == 32
    with pytest.raises(ArgumentError, match="embed its text or image again"):
        vectors.get("embedding://text/x/0")
