"""The Rust core prepares images, boxes, masks and texts as the Python runtime does, bit for bit."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgclip_rt.boxes import BOX_FORMATS, BoxUnitsWarning, grid_boxes
from fgclip_rt.errors import FgclipError
from fgclip_rt.manifest import NaflexSpec, TextSpec, WalkTypeSpec
from fgclip_rt.masks import mask_weights
from fgclip_rt.preparation import NaflexPreparation, _cut, _resize
from fgclip_rt.text import Tokenizer
from helpers import GOLDENS
from native import oracle
from native.oracle import Oracle, Refusal

REASON = oracle.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

BUCKETS = (128, 256, 576, 784, 1024)
FORMATS = {"rgb": (0, 1, 2), "bgr": (2, 1, 0), "rgba": (0, 1, 2), "bgra": (2, 1, 0), "gray": (0, 0, 0)}
#: Characters that count as a letter with a case, or as a mark on one, in some versions of Unicode only. Next to a sigma
#: that shows.
CHANGED = {"\u0295", "\U0001171e"}
NAMES = ("fgclip1", "fgclip2")

HARD_TEXTS = (
    *("", " ", "a", "a cat", "A Photo of a CAT, ÄÉŠ Ω", "ΟΔΟΣ ΟΔΟΣ. ΑΣ", "İstanbul ıI", "naïve ½\u0301", "ﬁ ǅ ß ẞ"),
    *(
        "一只黑猫坐在红色的椅子上",
        "一个繁忙的街头市场 with fruit 🦊 " * 40,
        "👩\u200d👩\u200d👧 🏳️\u200d🌈",
        "a\u200bb\u200c\u200d\ufeffc",
    ),
    *("\x00", "a\x00b", "\x01\x1b[1m\x7f", "\u2028\u2029\u0085\u3000\xa0", "\U0010ffff\ufffe\uffff", "\t\r\n \x0b\x0c"),
    *("<eos>", "<pad> <EOS>", "<|endoftext|>", "<0x0A>", "▁▁ ▁", "&amp; &lt;", "don't I'LL", "1" * 300, "-" * 9000),
    *("a" * 9000, "cat " * 5000, " " * 20_000, "e\u0301" * 5000, "的" * 9000, "abc 的 " * 2500, "x" + "\u0301" * 9000),
    *("word " * 200_000, "一只猫" * 350_000, "a" * 1_000_000, "\n" * 1_000_000),
)


@pytest.fixture(scope="module")
def core() -> Iterator[Oracle]:
    program = Oracle(oracle.build())
    yield program
    program.close()


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the Python runtime, or its error."""
    try:
        return call(*arguments)
    except FgclipError as error:
        return error


def drawn_sizes(seed: int, count: int) -> list[tuple[int, int]]:
    """Widths and heights of all aspect ratios: most small, some of one pixel, some over 10,000 pixels long."""
    draw = random.Random(seed)
    sizes = [(1, 1), (1, 12_000), (12_000, 1), (3, 10_001), (10_001, 3), (16, 16), (256, 256), (300, 400), (17, 2000)]
    while len(sizes) < count:
        kind = draw.random()
        if kind < 0.02:
            sides = [draw.randint(1, 4), draw.randint(10_000, 20_000)]
        elif kind < 0.06:
            sides = [1, draw.randint(1, 3000)]
        else:
            sides = [int(2 ** draw.uniform(0, 9.3)), int(2 ** draw.uniform(0, 9.3))]
        draw.shuffle(sides)
        sizes.append((sides[0], sides[1]))
    return sizes[:count]


def naflex() -> NaflexSpec:
    return NaflexSpec(
        patch_size=16, channels=3, resample="bilinear", buckets=BUCKETS, max_num_patches=1024, exif_transpose=False
    )


def check_patches(core: Oracle, seed: int, sizes: list[tuple[int, int]]) -> None:
    draw = random.Random(seed)
    noise = np.random.default_rng(seed)
    for width, height in sizes:
        most = draw.choice([None, 1, 5, 64, 128, 300])
        _, (rows, columns) = NaflexPreparation(naflex()).grid(width, height, most)
        layout, resample = draw.choice(list(FORMATS)), draw.choice(["bilinear", "bicubic"])
        channels = {"gray": 1, "rgba": 4, "bgra": 4}.get(layout, 3)
        stride = width * channels + draw.choice([0, 0, 1, 5, 64])
        data = noise.integers(0, 256, stride * height, np.uint8)
        if draw.random() < 0.3:
            data = np.where(data < 128, 0, 255).astype(np.uint8)
        pixels = data.reshape(height, stride)[:, : width * channels].reshape(height, width, channels)
        image = Image.fromarray(np.ascontiguousarray(pixels[..., list(FORMATS[layout])]))
        expected = _cut(_resize(image, columns * 16, rows * 16, resample), 16)
        _, found = core.result(
            "patches",
            # The last row ends with its last pixel.
            data[: stride * (height - 1) + width * channels].tobytes(),
            width=width,
            height=height,
            stride=stride,
            format=layout,
            filter=resample,
            rows=rows,
            columns=columns,
            patch=16,
        )
        assert found == expected.tobytes(), (width, height, rows, columns, layout, resample, stride)


def test_patches_are_equal(core: Oracle) -> None:
    check_patches(core, 1, drawn_sizes(1, 120))


@pytest.mark.slow
def test_patches_of_5000_sizes_are_equal(core: Oracle) -> None:
    check_patches(core, 2, drawn_sizes(2, 5000))


def test_grids_are_equal(core: Oracle) -> None:
    preparation = NaflexPreparation(naflex())
    sizes = [*drawn_sizes(3, 300), (4000, 3000), (1600, 1200), (1, 10**8), (100_000, 7)]
    flat = [side for size in sizes for side in size]
    answer, _ = core.result("grids", sizes=flat, patch=16, buckets=BUCKETS)
    for size, found in zip(sizes, answer["grids"], strict=True):
        bucket, (rows, columns) = preparation.grid(*size)
        assert found == [bucket, rows, columns], size


def drawn_boxes(draw: random.Random, width: int, height: int) -> list[list[float]]:
    def number(side: int) -> float:
        kind = draw.random()
        if kind < 0.03:
            return draw.choice([float("nan"), float("inf"), -1e7, 1e6, 0.0, -0.0])
        value = draw.uniform(-0.2, 1.2) * draw.choice([1, side, side])
        return float(f"{value:.1f}") if kind < 0.5 else value

    boxes = []
    for _ in range(draw.choice([1, 1, 2, 5])):
        x, y = sorted(number(width) for _ in range(2)), sorted(number(height) for _ in range(2))
        box = [x[0], y[0], x[1], y[1]]
        boxes.append(draw.sample(box, 4) if draw.random() < 0.1 else box)
    return boxes


def test_boxes_are_equal_and_equally_refused(core: Oracle) -> None:
    draw = random.Random(4)
    outcomes = set()
    for _ in range(3000):
        size = width, height = draw.randint(1, 3000), draw.randint(1, 3000)
        grid = rows, columns = draw.randint(1, 40), draw.randint(1, 40)
        boxes = drawn_boxes(draw, *size)
        box_format, shares = draw.choice(list(BOX_FORMATS)), draw.choice(["float64", "float32"])
        answer = core.ask(
            "boxes",
            np.array(boxes, "<f8").tobytes(),
            width=width,
            height=height,
            rows=rows,
            columns=columns,
            format=box_format,
            shares=shares,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BoxUnitsWarning)
            expected = attempt(grid_boxes, boxes, (height, width), grid, box_format, shares)
        if isinstance(expected, FgclipError):
            assert isinstance(answer, Refusal), (boxes, expected)
            assert answer.status == expected.code, (boxes, expected, answer)
            # The fault is told in the same words; the remedy names options, which differ.
            assert answer.message.split(";")[0] == str(expected).split(";")[0]
            outcomes.add(expected.code)
        else:
            assert not isinstance(answer, Refusal), (boxes, answer)
            assert answer[1] == expected.tobytes(), boxes
            outcomes.add("scaled")
    assert {"scaled", "box_invalid", "box_reversed", "box_outside", "box_units"} <= outcomes


def test_masks_agree(core: Oracle) -> None:
    noise = np.random.default_rng(5)
    for number in range(150):
        height, width, rows, columns = (int(side) for side in noise.integers(1, [90, 90, 20, 20]))
        shape = (rows, columns) if number % 3 == 0 else (height, width)
        masks: Any = noise.random((int(noise.integers(1, 4)), *shape), np.float32)
        if number % 2:
            masks = masks < noise.random() * 0.6
        elif number % 7 == 0:
            masks *= noise.choice([0, 2, -1])
        answer = core.ask(
            "masks",
            masks.tobytes(),
            bool=masks.dtype == np.bool_,
            count=len(masks),
            mask_width=shape[1],
            mask_height=shape[0],
            width=width,
            height=height,
            rows=rows,
            columns=columns,
        )
        expected = attempt(mask_weights, masks, (height, width), (rows, columns))
        if isinstance(expected, FgclipError):
            assert answer[:2] == (str(expected), expected.code)
        else:
            assert not isinstance(answer, Refusal), answer
            found = np.frombuffer(answer[1], "<f4").reshape(expected.shape)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def definition(name: str) -> str:
    return (GOLDENS / name / "checkpoint" / "tokenizer.json").read_text(encoding="utf-8")


def text_spec(lowercase: bool) -> TextSpec:
    kinds = {"short": WalkTypeSpec(0, 64), "long": WalkTypeSpec(1, 196)}
    return TextSpec("tokenizer.json", lowercase, 0, False, kinds)


def check_texts(core: Oracle, content: str, texts: list[str]) -> None:
    core.result("tokenizer", content.encode(), shortest=64)
    for lowercase in (True, False):
        tokenizer = Tokenizer(content, text_spec(lowercase))
        for text in texts:
            for kind, length in (("short", 64), ("long", 196)):
                answer = core.ask("encode", text.encode(), lowercase=lowercase, length=length, pad=0)
                expected = attempt(tokenizer, [text], kind)
                if isinstance(expected, FgclipError):
                    assert isinstance(answer, Refusal), (text[:50], expected)
                    assert answer.status == expected.code
                    assert answer.message == str(expected).replace("text 0 ", "a text ", 1)
                    continue
                assert not isinstance(answer, Refusal), (text[:50], answer)
                assert answer[0]["ids"] == expected.input_ids[0].tolist(), text[:50]
                assert answer[0]["mask"] == expected.attention_mask[0].tolist(), text[:50]
                assert answer[0]["truncated"] == expected.truncated[0], text[:50]


def generated_texts(seed: int, count: int) -> list[str]:
    """Texts of pieces that normalizers, patterns and merges look at, with any assigned characters between."""
    draw = random.Random(seed)
    pieces = [text for text in HARD_TEXTS if len(text) < 100]

    def character() -> str:
        while True:
            char = chr(draw.choice([draw.randrange(0x250), draw.randrange(0x10000), draw.randrange(sys.maxunicode)]))
            if unicodedata.category(char) not in ("Cs", "Cn"):
                return char

    texts = []
    for _ in range(count):
        parts = [draw.choice(pieces) if draw.random() < 0.4 else character() for _ in range(draw.randint(1, 60))]
        texts.append("".join(parts) * draw.choice([1, 1, 1, 30]))
    return texts


@pytest.mark.parametrize("name", NAMES)
def test_hard_texts_have_equal_ids(core: Oracle, name: str) -> None:
    check_texts(core, definition(name), [*(text for text in HARD_TEXTS if len(text) < 1000), *generated_texts(6, 60)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_long_and_many_texts_have_equal_ids(core: Oracle, name: str) -> None:
    check_texts(core, definition(name), [*HARD_TEXTS, *generated_texts(7, 1500)])


@pytest.mark.slow
def test_texts_have_equal_ids_by_the_tokenizer_of_every_bundle(core: Oracle, bundles: list[Path]) -> None:
    for bundle in bundles:
        content = (bundle / "tokenizer.json").read_text(encoding="utf-8")
        check_texts(core, content, [*(text for text in HARD_TEXTS if len(text) < 20_000), *generated_texts(8, 150)])


def test_malformed_tokenizers_get_the_same_verdict(core: Oracle) -> None:
    document = json.loads(definition("fgclip2"))

    def changed(pointer: str, value: object) -> str:
        copy = json.loads(json.dumps(document))
        *path, last = pointer.split("/")
        place = copy
        for name in path:
            place = place[name]
        place[last] = value
        return json.dumps(copy)

    text = {"Sequence": {"id": "A", "type_id": 0}}
    eos = {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    crafted = [
        *("", "{", "null", "[]", "1", "[" * 1000, json.dumps(document)[:-1], json.dumps(document) + "x"),
        *(changed("model/dropout", dropout) for dropout in (0.1, 0.0, None)),
        *(
            changed("post_processor/single", pieces)
            for pieces in ([text, text, eos], [eos], [text], [text, *[eos] * 64])
        ),
        changed("model/vocab/☃", 2**31),
        changed("model/vocab/☃", 2**31 - 1),
        changed("post_processor/special_tokens/<eos>/ids", [2**31]),
        changed("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "z"}),
        changed("normalizer", {"type": "Replace", "pattern": {"Regex": "("}, "content": "z"}),
        changed("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"}),
    ]
    accepted = 0
    for content in crafted:
        answer = core.ask("tokenizer", content.encode(), shortest=64)
        expected = attempt(Tokenizer, content, text_spec(lowercase=True))
        if isinstance(expected, FgclipError):
            assert isinstance(answer, Refusal), (content[-80:], expected)
            assert answer.status == expected.code
            assert answer.message.split("(")[0] == str(expected).split("(")[0]
        else:
            assert not isinstance(answer, Refusal), (content[-80:], answer)
            accepted += 1
    assert 0 < accepted < len(crafted)


def test_lower_case_is_that_of_python(core: Oracle) -> None:
    """Alone, and next to a sigma, whose lower case depends on the letters around it."""
    codes = range(sys.maxunicode + 1)
    known = [chr(code) for code in codes if chr(code) != "\n" and unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    others = set()
    for context in ("{}", "aΣ{}", "{}Σ", "aΣ{}a", "a{}Σ "):
        # A line break is no letter, so each line stands alone.
        text = "\n".join(context.format(char) for char in known)
        _, found = core.result("lower", text.encode())
        pairs = zip(known, found.decode().split("\n"), text.lower().split("\n"), strict=True)
        others |= {char for char, line, expected in pairs if line != expected}
    assert others <= CHANGED


def test_characters_whose_lower_case_is_newer_than_python(core: Oracle) -> None:
    unknown = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cn"]
    _, found = core.result("lower", "\n".join(unknown).encode())
    newer = [char for char, lower in zip(unknown, found.decode().split("\n"), strict=True) if lower != char.lower()]
    # Unicode 15 added no letters of two cases.
    if unicodedata.unidata_version.startswith(("14.", "15.")):
        assert len(newer) == 55
        assert {hex(ord(char)) for char in newer} >= {"0xa7cb", "0xa7da", "0x1c89"}
    else:
        assert len(newer) < 55


@pytest.fixture
def bundles(request: pytest.FixtureRequest) -> list[Path]:
    """The bundles of every family."""
    made = request.getfixturevalue("made")
    folders = [made(name) for name in ("fgclip1", "fgclip2", "fineclip")]
    found = [path.parent for folder in folders for path in folder.rglob("tokenizer.json")]
    assert len(found) >= len(folders)
    return found
