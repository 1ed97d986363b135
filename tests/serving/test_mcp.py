"""Tools for agents, called by the protocol's own client over standard input and output, and over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
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
from helpers import run_command
from http_server import Server, end, failure, start

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


Use = Callable[[Any], Awaitable[None]]


def use_client(connection: Any, use: Use) -> None:
    """Connect the client and use it."""

    async def run() -> None:
        async with mcp.Client(connection) as client:
            await use(client)

    asyncio.run(asyncio.wait_for(run(), 120))


@pytest.fixture(scope="module")
def server(photos: Path) -> Iterator[Server]:
    """A server with tools and no keys."""
    made = start("--mcp", "--root", str(photos), "--index", str(photos.with_name("photos.index")))
    yield made
    end(made)
    assert made.process.returncode == 0


@pytest.fixture(params=["stdio", "http"])
def with_client(request: pytest.FixtureRequest, photos: Path) -> Callable[[Use], None]:
    """Uses the tools by the client: in a process of its own, or by the server's address."""
    if request.param == "http":
        address = f"http://127.0.0.1:{request.getfixturevalue('server').port}/mcp"
        return lambda use: use_client(address, use)
    command = ["-m", "fgclip_rt", "mcp", NAME, "--root", str(photos)]
    command += ["--index", str(photos.with_name("photos.index"))]
    parameters = mcp.StdioServerParameters(command=sys.executable, args=command)
    return lambda use: use_client(parameters, use)


def test_an_agent_scores_finds_and_searches(with_client: Callable[[Use], None], photos: Path, model: Model) -> None:
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

    with_client(use)


def test_an_agent_reads_our_sentence_and_nothing_outside_of_its_folder(
    with_client: Callable[[Use], None], photos: Path
) -> None:
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

    with_client(use)


CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "score", "arguments": {"images": ["5.png"], "texts": ["a star"]}},
}
TYPES = {"accept": "application/json, text/event-stream"}


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"origin": "http://evil.example"}, "http://evil.example"),
        ({"origin": "null"}, "null"),
        ({"origin": "http://[::1"}, "http://[::1"),
        # A page whose own name was made to lead here.
        ({"host": "evil.example:8080", "origin": "http://evil.example:8080"}, "http://evil.example:8080"),
        ({"host": "evil.example:8080"}, "'evil.example:8080'"),
        ({"host": "localhost.evil.example"}, "'localhost.evil.example'"),
    ],
)
def test_pages_of_elsewhere_are_refused(server: Server, headers: dict[str, str], named: str) -> None:
    answer = server.http.post("/mcp", json=CALL, headers=TYPES | headers)
    assert failure(answer) == (403, "origin_refused")
    assert named in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "http://localhost:6274"}, {"host": "localhost:80", "origin": "http://[::1]:1"}]
)
def test_this_machine_is_answered_by_one_document(server: Server, headers: dict[str, str]) -> None:
    answer = server.http.post("/mcp", json=CALL, headers=TYPES | headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["result"]["structuredContent"]["result"][0]["image"] == "5.png"


def test_the_limits_of_the_server_hold(server: Server) -> None:
    late = server.http.post("/mcp", json=CALL, headers=TYPES | {"x-request-timeout-ms": "0.001"})
    assert failure(late) == (504, "deadline_passed")
    # No stream waits for news, which there are none of.
    assert server.http.get("/mcp", headers={"accept": "text/event-stream"}).status_code == 405
    assert 'requests_total{path="/mcp",status="504"}' in server.http.get("/metrics").text


def test_keys_and_bounds_of_bodies_are_those_of_the_server(photos: Path, tmp_path: Path) -> None:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    made = start("--mcp", "--api-key-file", str(keys), "--max-body", "1MB")
    try:
        assert failure(made.post("/mcp", **CALL)) == (401, "unauthorized")
        shown = {"authorization": "Bearer secret"}
        large = made.http.post("/mcp", content=b" " * 2**21, headers=shown)
        assert failure(large) == (413, "body_too_large")
        # A proxy may keep the name that its clients ask for.
        named = made.http.post("/mcp", json=CALL, headers=TYPES | shown | {"host": "photos.example.org"})
        assert "no folder is allowed" in named.json()["result"]["content"][0]["text"]

        async def use(client: Any) -> None:
            assert "score" in {tool.name for tool in (await client.list_tools()).tools}
            assert "search_images" not in {tool.name for tool in (await client.list_tools()).tools}
            content = "data:image/png;base64," + base64.b64encode((photos / "0.png").read_bytes()).decode()
            scored = await client.call_tool("score", {"images": [content], "texts": ["a star"]})
            assert not scored.is_error

        connection = streamable_http_client(
            f"http://127.0.0.1:{made.port}/mcp", http_client=httpx2.AsyncClient(headers=shown, timeout=60)
        )
        use_client(connection, use)
    finally:
        end(made)


def test_without_the_option_there_are_no_tools() -> None:
    made = start()
    try:
        assert failure(made.http.post("/mcp", json=CALL, headers=TYPES)) == (404, "not_found")
    finally:
        end(made)
    refused = run_command("serve", NAME, "--port", 0, "--root", ".", status=1)
    assert "give it with --mcp" in refused.stderr


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


def test_the_log_is_written_once(photos: Path) -> None:
    """The SDK gives the root logger a handler, which would write every line again, and not as JSON."""
    made = start("--mcp", "--root", str(photos), "--log-json")
    try:
        assert made.http.post("/mcp", json=CALL, headers=TYPES).status_code == 200
    finally:
        made.process.terminate()
        _, said = made.process.communicate(timeout=30)
    lines = [json.loads(line) for line in said.splitlines()]
    assert sum("/mcp" in str(line) for line in lines) == 1
