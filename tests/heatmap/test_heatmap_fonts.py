"""Fonts that are found for a text, and lines that are written with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fgclip_rt.errors import ArgumentError
from fgclip_rt.heatmap import check_font, fonts
from fgclip_rt.heatmap.fonts import Face, clusters, find_fonts
from fgclip_rt.heatmap.writing import Piece, clean, length, typeset, wrap, write
from helpers import assert_one_sentence

MakeFont = Callable[..., Path]
OWN = Face(None)


def faces(text: str) -> list[tuple[str, str | None]]:
    """The runs of a text with the names of their fonts, None for that which comes with Pillow."""
    pieces = typeset(text, find_fonts([text]))
    assert pieces is not None
    found: list[tuple[str, str | None]] = []
    for piece in pieces:
        name = None if piece.face.path is None else piece.face.path.name
        if found and found[-1][1] == name:
            found[-1] = (found[-1][0] + piece.text, name)
        else:
            found.append((piece.text, name))
    return found


def test_the_font_that_comes_with_pillow_writes_english_and_nothing_is_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fonts, "font_files", None)
    assert faces("a cat, 3 dogs…") == [("a cat, 3 dogs…", None)]


def test_one_font_writes_a_whole_text_if_it_can(make_font: MakeFont) -> None:
    make_font("b.ttf", "电脑")
    make_font("c.ttf", "caf é")
    assert faces("café") == [("café", "c.ttf")]
    assert faces("电 脑") == [("电 脑", "b.ttf")]


def test_several_fonts_write_a_text_that_none_has_alone(make_font: MakeFont) -> None:
    make_font("a.ttf", "电 ")
    make_font("b.ttf", "脑µ")
    assert faces("a big 电 is a 脑脑") == [("a big ", None), ("电 ", "a.ttf"), ("is a ", None), ("脑脑", "b.ttf")]


def test_fonts_that_read_well_come_first(make_font: MakeFont) -> None:
    for name in ("A-Bold.ttf", "A.ttf", "NotoSerif.ttf", "wqy-zenhei.ttf", "NotoSansCJK-Bold.ttf"):
        make_font(name, "电")
    assert faces("电") == [("电", "wqy-zenhei.ttf")]


def test_marks_are_written_by_the_font_of_their_letter(make_font: MakeFont) -> None:
    assert clusters("e\u0301a👩\u200d💻\ufe0f") == ["e\u0301", "a", "👩\u200d💻\ufe0f"]
    make_font("a.ttf", "\u0331")
    make_font("b.ttf", "e\u0331")
    assert faces("ae\u0331") == [("a", None), ("e\u0331", "b.ttf")]


def test_a_mark_is_not_in_a_font_that_has_the_circle_below_it_only(make_font: MakeFont) -> None:
    make_font("a.ttf", "3\u25cc")
    make_font("b.ttf", "3\u20e3")
    assert faces("3\ufe0f\u20e3") == [("3\ufe0f\u20e3", "b.ttf")]
    assert typeset("x\u0301", find_fonts(["x\u0301"])) is None


def test_joiners_and_selectors_need_no_font() -> None:
    assert faces("a\u200db\ufe0f\u200b") == [("a\u200db\ufe0f\u200b", None)]


@pytest.mark.parametrize("name", ["LastResort.otf", "notes.txt"])
def test_files_that_are_no_fonts_for_reading_are_passed_over(name: str, make_font: MakeFont) -> None:
    make_font(name, "电")
    assert list(find_fonts(["电"])) == [OWN]
    assert typeset("电", find_fonts(["电"])) is None


def test_a_font_whose_glyphs_have_no_ink_has_no_character(make_font: MakeFont) -> None:
    make_font("a.ttf", "电", ink=False)
    make_font("b.ttf", "电")
    assert faces("电") == [("电", "b.ttf")]


def test_damaged_fonts_are_passed_over(folder: Path, make_font: MakeFont) -> None:
    make_font("b.ttf", "电")
    (folder / "a.ttf").write_bytes(b"no font")
    (folder / "aa.ttf").write_bytes((folder / "b.ttf").read_bytes()[:300])
    assert faces("电") == [("电", "b.ttf")]


def test_fonts_lie_in_folders_too(folder: Path, make_font: MakeFont) -> None:
    path = make_font("a.ttf", "电")
    (folder / "deep/er").mkdir(parents=True)
    path.rename(folder / "deep/er/A.TTF")
    assert faces("电") == [("电", "A.TTF")]


def test_a_search_ends_in_time(make_font: MakeFont, monkeypatch: pytest.MonkeyPatch) -> None:
    make_font("a.ttf", "电")
    monkeypatch.setattr(fonts, "_SEARCH_SECONDS", -1.0)
    assert list(find_fonts(["电"])) == [OWN]


def test_a_search_ends_with_the_last_character_that_was_lacking(
    make_font: MakeFont, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.ttf", "b.ttf", "c.ttf"):
        make_font(name, "电脑" if name == "b.ttf" else "猫")
    opened: list[str] = []
    covered = fonts.covered
    monkeypatch.setattr(
        fonts, "covered", lambda face, wanted: opened.append(face.path and face.path.name) or covered(face, wanted)
    )
    assert [face.path and face.path.name for face in find_fonts(["电脑"])] == [None, "b.ttf"]
    assert "c.ttf" not in opened
    opened.clear()
    find_fonts(["电脑"])
    assert "a.ttf" not in opened


def test_a_named_font_comes_before_all_others(make_font: MakeFont, tmp_path: Path) -> None:
    make_font("a.ttf", "电脑")
    named = make_font("z.ttf", "a电").rename(tmp_path / "named.ttf")
    pieces = typeset("ab电脑", find_fonts(["ab电脑"], named))
    assert pieces is not None
    assert [piece.face.path and piece.face.path.name for piece in pieces] == ["named.ttf", None, "named.ttf", "a.ttf"]


def test_a_named_file_that_is_no_font_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.ttf", Path(__file__)):
        for refuse in (check_font, lambda each: find_fonts(["a"], each)):
            with pytest.raises(ArgumentError) as error:
                refuse(path)
            assert_one_sentence(error.value, f"--font {path} is not a font file")


def test_collections_for_chinese_are_read_at_their_chinese_face(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "NotoSansCJK-Regular.ttc").touch()
    (folder / "other.ttc").touch()
    tried: list[Face] = []
    monkeypatch.setattr(fonts, "covered", lambda face, _: tried.append(face) or frozenset())
    find_fonts(["电"])
    assert [(face.path and face.path.name, face.index) for face in tried] == [
        (None, 0),
        ("NotoSansCJK-Regular.ttc", 2),
        ("other.ttc", 0),
    ]


def test_variable_fonts_are_written_in_their_regular_weight(make_variable_font: MakeFont) -> None:
    font, _ = fonts.open_face(Face(make_variable_font("a.ttf", "a")), 100)
    assert font.getmask("a").getbbox() == (0, 0, 50, 70)


def test_fonts_of_pictures_are_brought_to_the_size_of_the_others(make_picture_font: MakeFont) -> None:
    make_picture_font("emoji.ttf", "🚗")
    assert faces("a 🚗 3") == [("a ", None), ("🚗", "emoji.ttf"), (" 3", None)]
    pieces = typeset("🚗🚗", find_fonts(["🚗🚗"]))
    assert pieces is not None
    assert length(pieces, 16) == pytest.approx(32, abs=1)
    strip = Image.new("RGB", (60, 24))
    write(strip, (0, 0), (60, 24), pieces, 16)
    red = (np.asarray(strip) == (255, 0, 0)).all(axis=-1)
    assert red.any(axis=0).sum() == 32
    assert red.any(axis=1).sum() == 16


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        (
            "linux",
            {"XDG_DATA_HOME": "/h", "XDG_DATA_DIRS": "/a:/b"},
            ["/h/fonts", "/home/.fonts", "/a/fonts", "/b/fonts"],
        ),
        (
            "linux",
            {"XDG_DATA_HOME": "", "XDG_DATA_DIRS": ""},
            ["/home/.local/share/fonts", "/home/.fonts", "/usr/local/share/fonts", "/usr/share/fonts"],
        ),
        ("darwin", {}, ["/home/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"]),
        (
            "win32",
            {"LOCALAPPDATA": "/local", "WINDIR": "/win"},
            ["/local/Microsoft/Windows/Fonts", "/win/Fonts"],
        ),
    ],
)
def test_each_system_has_its_folders_of_fonts(platform: str, variables: dict[str, str], expected: list[str]) -> None:
    script = (
        "import sys, pathlib; from fgclip_rt.heatmap.fonts import font_folders; "
        f"sys.platform = {platform!r}; print(*font_folders(), sep='\\n')"
    )
    environment = {"HOME": "/home", "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == expected


def test_a_text_is_written_on_one_line_with_what_is_hidden_spelled_out() -> None:
    assert clean(" a\n\tb  c ") == "a b c"
    assert clean("\x1b[31mred\u202e\x00\ue000") == "\\x1b[31mred\\u202e\\x00\\ue000"
    assert clean("e\u0301") == "é"
    assert clean("e\u0301" * 100_000) == "é" * 200 + "…"
    assert clean("a" * 400) == "a" * 400


TEXTS = st.text(st.sampled_from("ab é电,脑"), max_size=80)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TEXTS, width=st.integers(60, 300), most=st.integers(1, 4))
def test_lines_keep_to_their_width_and_lose_nothing_but_the_end(
    text: str, width: int, most: int, make_font: MakeFont, folder: Path
) -> None:
    if not (folder / "a.ttf").exists():
        make_font("a.ttf", "电脑é")
    found = find_fonts([text, "…"])
    pieces, more = typeset(text, found), typeset("…", found)
    assert pieces is not None
    assert more is not None
    lines = wrap(pieces, more, 17, width, most)
    assert len(lines) <= most
    assert all(length(line, 17) <= width for line in lines)
    written = "".join(piece.text for line in lines for piece in line)
    assert written == text or (written.endswith("…") and text.startswith(written[:-1]) and len(lines) == most)


def lines_of(text: str, width: int) -> list[str]:
    found = find_fonts([text])
    pieces = typeset(text, found)
    assert pieces is not None
    return ["".join(piece.text for piece in line) for line in wrap(pieces, [], 16, width, 9)]


def test_lines_break_after_spaces_and_between_wide_characters(make_font: MakeFont) -> None:
    make_font("a.ttf", "电脑猫狗")
    assert lines_of("several words here", 90) == ["several ", "words here"]
    assert lines_of("电脑猫狗", 50) == ["电脑猫", "狗"]
    assert lines_of("wordwithoutaspace", 90)[0].startswith("wordwith")


def test_runs_of_a_text_from_right_to_left_stand_from_right_to_left(make_font: MakeFont) -> None:
    first, second = Face(make_font("a.ttf", "א")), Face(make_font("b.ttf", "בג"))

    def ink(line: list[Piece]) -> list[int]:
        strip = Image.new("RGB", (40, 24))
        write(strip, (0, 0), (40, 24), line, 16)
        return [int(at) for at in np.flatnonzero((np.asarray(strip.convert("L")) < 128).any(axis=0))]

    alone = ink([Piece("ב", second)])
    both = ink([Piece("א", first), Piece("ב", second)])
    # The second letter stands where it would stand alone, and the first one to the right of it.
    assert both[: len(alone)] == alone
    assert both[len(alone)] >= 16


def test_nothing_is_written_outside_its_strip() -> None:
    text = clean("Z" + "\u0335\u0301\u0316" * 60)
    canvas = Image.new("RGB", (200, 90), "#0000ff")
    pieces = [Piece(cluster, OWN) for cluster in clusters(text)]
    write(canvas, (10, 30), (100, 25), pieces, 17)
    outside = np.asarray(canvas).copy()
    assert (outside[30:55, 10:110] != (0, 0, 255)).any()
    outside[30:55, 10:110] = (0, 0, 255)
    assert (outside == (0, 0, 255)).all()
