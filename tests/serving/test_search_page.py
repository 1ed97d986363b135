"""Searches by HTTP: what the index answers, row numbers instead of paths, and a page that a browser runs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from indexing import bring_up_to_date
from numpy.testing import assert_allclose
from PIL import Image

from fgclip_rt.index import ImageIndex, Query, find
from fgclip_rt.model import Model, load
from fgclip_rt.pocket.scenes import draw, make_scene
from http_server import NAME, Server, end, start

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

#: A name that would be markup, if it were taken for it.
HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """Sixteen scenes and their index."""
    folder = tmp_path_factory.mktemp("search") / "photos"
    (folder / "more").mkdir(parents=True)
    for seed in range(16):
        draw(make_scene(seed, "test")).save(folder / ("more" if seed > 11 else "") / f"{seed}.png")
    (folder / "7.png").rename(folder / HOSTILE)
    bring_up_to_date(model, folder, folder.with_name("photos.index"))
    return folder


@pytest.fixture(scope="module")
def server(photos: Path) -> Iterator[Server]:
    made = start("--index", str(photos.with_name("photos.index")))
    yield made
    end(made)
    assert made.process.returncode == 0


def images(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["image"] for hit in answer.json()["hits"]]


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("text", ["a big spotted yellow star", "小小的棕色格子月牙"])
def test_a_text_finds_what_the_index_finds(server: Server, model: Model, photos: Path, text: str, fine: bool) -> None:
    answer = server.post("/v1/search", text=text, top=4, fine=fine)
    with ImageIndex(photos.with_name("photos.index")) as index:
        expected = find(index, model, Query.of_text(model, text, fine=fine), 4)
    found = answer.json()
    assert images(answer) == [hit.image for hit in expected.hits]
    assert (found["fine"], found["searched"]) == (fine, 16)
    for hit, wanted in zip(found["hits"], expected.hits, strict=True):
        assert_allclose(hit["cosine"], wanted.cosine, atol=1e-5)
        assert hit["box"] == wanted.box
    below = server.post("/v1/search", text=text, folder="more", fine=fine)
    assert sorted(images(below)) == ["more/12.png", "more/13.png", "more/14.png", "more/15.png"]


def test_an_image_of_the_client_or_of_the_index_finds_itself(server: Server, photos: Path) -> None:
    data = (photos / "3.png").read_bytes()
    uploaded = server.http.post("/v1/search", files={"image": data}, data={"top": "2"})
    row = uploaded.json()["hits"][0]["row"]
    assert images(uploaded)[0] == "3.png"
    assert images(server.post("/v1/search", row=row, top=2)) == images(uploaded)
    left, top, right, bottom = make_scene(3, "test").things[0].box
    part = server.post("/v1/search", row=row, box=[left, top, right, bottom], top=2)
    hit = part.json()["hits"][0]
    assert hit["image"] == "3.png"
    assert max(left, hit["box"][0]) < min(right, hit["box"][2])


def test_images_are_sent_by_row_and_no_larger_than_asked(server: Server) -> None:
    row = server.post("/v1/search", text="a star", top=1).json()["hits"][0]["row"]
    for size, most in (("thumb", 320), ("full", 1600)):
        answer = server.http.get(f"/v1/images/{row}?size={size}")
        assert answer.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert max(image.size) <= most
    assert server.http.get(f"/v1/images/{row}?size=huge").status_code == 400


def test_a_map_is_that_of_the_model(server: Server, model: Model, photos: Path) -> None:
    hit = server.post("/v1/search", text="a star", top=1).json()["hits"][0]
    answer = server.http.get(f"/v1/images/{hit['row']}/map", params={"text": "a star"}).json()
    (expected,) = model.dense(photos / hit["image"]).map("a star")
    assert_allclose(np.array(answer["cosines"]), expected, atol=1e-4)
    assert (answer["width"], answer["height"]) == (hit["width"], hit["height"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "request_invalid"),
        ({"text": "a", "row": 1}, 400, "request_invalid"),
        ({"text": "a", "box": [0, 0, 9, 9]}, 400, "request_invalid"),
        ({"row": 0, "fine": True}, 400, "request_invalid"),
        ({"row": 0, "box": [9, 9, 1, 1]}, 400, "box_reversed"),
        ({"row": 9999}, 404, "not_found"),
        ({"row": -1}, 404, "not_found"),
        ({"row": 2**70}, 404, "not_found"),
        ({"text": "a", "top": 0}, 400, "request_invalid"),
        ({"text": "a", "top": 10**6}, 400, "request_invalid"),
        ({"text": "a", "folder": "../.."}, 400, "index_empty"),
        ({"text": "a", "folder": "x" * 10**6}, 400, "index_empty"),
        ({"text": "a", "folder": "\0"}, 400, "index_empty"),
        ({"image": "bm8="}, 400, "image_unsupported"),
    ],
)
def test_what_cannot_be_answered_is_said(server: Server, body: dict[str, object], status: int, code: str) -> None:
    answer = server.post("/v1/search", **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_huge_text_is_cut_as_every_text_is(server: Server) -> None:
    assert len(images(server.post("/v1/search", text="a star " * 10**5, top=2))) == 2


@pytest.mark.parametrize("path", ["/v1/images/..%2f..%2fetc%2fpasswd", "/v1/images/0/../../etc", "/v1/images/-1"])
def test_no_path_is_opened(server: Server, path: str) -> None:
    assert server.http.get(path).status_code == 404


def test_an_image_that_is_gone_is_said_with_its_name_and_no_path(server: Server, photos: Path) -> None:
    hits = server.post("/v1/search", text="a star", top=16).json()["hits"]
    (row,) = (hit["row"] for hit in hits if hit["image"] == "5.png")
    away = photos.with_name("away.png")
    (photos / "5.png").rename(away)
    try:
        refused = server.http.get(f"/v1/images/{row}/map", params={"text": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "image_unreadable")
        assert str(photos) not in refused.text
        answer = server.post("/v1/search", text="a star", top=16, fine=True, depth=16).json()
        assert [each["input"] for each in answer["skipped"]] == ["5.png"]
        assert str(photos) not in str(answer["skipped"])
    finally:
        away.rename(photos / "5.png")


def test_without_an_index_there_is_no_page(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    made = start("--api-key-file", str(keys))
    try:
        assert made.http.get("/").status_code == 404
        assert made.post("/v1/search", text="a").status_code == 401
    finally:
        end(made)


def test_another_models_index_ends_the_server(photos: Path, tmp_path: Path) -> None:
    import json
    import sqlite3

    shutil.copytree(photos.with_name("photos.index"), tmp_path / "other.index")
    table = sqlite3.connect(tmp_path / "other.index" / "index.sqlite")
    (text,) = table.execute("SELECT description FROM about").fetchone()
    table.execute("UPDATE about SET description = ?", (json.dumps({**json.loads(text), "space_sha256": "0" * 64}),))
    table.commit()
    table.close()
    made = start("--index", str(tmp_path / "other.index"), wait=False)
    assert made.process.stderr is not None
    said = made.process.stderr.read()
    assert "index anew with --overwrite" in said
    assert made.process.wait(60) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_in_a_browser(server: Server, photos: Path, tmp_path: Path) -> None:
    """Use the page as a person does. Pictures of it stay in pytest's folder, to be looked at."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        faults: list[str] = []
        page.set_default_timeout(60_000)
        expect = playwright.expect
        expect.set_options(timeout=60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"http://127.0.0.1:{server.port}/")

        page.fill("#text", "a big spotted yellow star")
        page.keyboard.press("Enter")
        expect(page.locator("#hits img[src]")).to_have_count(16)
        expected = images(server.post("/v1/search", text="a big spotted yellow star", top=24))
        assert page.locator("#hits .name").all_text_contents() == expected
        page.screenshot(path=tmp_path / "found.png")
        # A name of a file is shown as it is, and is no markup.
        assert HOSTILE in expected

        page.locator("#hits button").nth(0).click()
        page.wait_for_selector("#full[src]")
        assert page.is_disabled("#part")
        box = page.locator("#full").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.1)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.7, steps=4)
        page.mouse.up()
        page.fill("#maptext", "a star")
        page.click("#mapform button")
        page.wait_for_selector("#legend:not([hidden])")
        assert page.inner_text("#range").startswith("cosine ")
        page.screenshot(path=tmp_path / "map.png")
        with page.expect_request("**/v1/search") as asked:
            page.click("#part")
        drawn = asked.value.post_data_json["box"]
        first = server.post("/v1/search", text="a big spotted yellow star", top=1).json()["hits"][0]
        shares = [drawn[0] / first["width"], drawn[1] / first["height"], drawn[2] / first["width"]]
        assert_allclose(shares, [0.1, 0.1, 0.6], atol=0.03)
        page.wait_for_selector("#hits .frame")
        part = server.post("/v1/search", row=first["row"], box=drawn, top=24, depth=48)
        assert page.locator("#hits .name").all_text_contents() == images(part)

        page.set_input_files("#file", photos / "3.png")
        expect(page.locator("#hits .name").first).to_have_text("3.png")
        # Folders of what was found are offered, and searched below.
        assert page.locator("#folders option").evaluate_all("all => all.map((one) => one.value)") == ["more"]
        page.fill("#folder", "more")
        page.press("#text", "Enter")
        expect(page.locator("#hits .name")).to_have_count(4)
        assert all(name.startswith("more/") for name in page.locator("#hits .name").all_text_contents())
        page.fill("#folder", "nowhere")
        page.press("#text", "Enter")
        page.wait_for_selector("#said.bad")
        assert "no images" in page.inner_text("#said")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 360, "height": 640})
        page.screenshot(path=tmp_path / "narrow.png")
        # Nothing is wider than a narrow screen.
        assert page.locator("body").bounding_box()["width"] <= 360
        assert page.locator("#form").bounding_box()["width"] <= 360
        browser.close()
    assert faults == []
    assert all(url.startswith((f"http://127.0.0.1:{server.port}/", "blob:")) for url in requested)
