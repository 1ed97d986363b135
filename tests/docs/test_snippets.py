"""Every command and snippet of the README and of ``docs/`` runs, or is checked if it cannot run here."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from blocks import REASONS, ROOT, Block, blocks, check_python, check_shell, commands, lines, pages
from fgclip_rt.cli.app import COMMANDS
from helpers import picture, run_command

#: Blocks that are shown and not run: other text, data, and parts of the C library's examples, which its tests compile.
_SHOWN = ("c", "cmake", "cpp", "json", "text", "")

#: Largest difference of two printed numbers that are taken for the same: another CPU rounds differently.
_TOLERANCE = 5e-3


@pytest.fixture
def folder(
    tmp_path: Path, pocket_path: Path, square_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working folder with the files that the pages name."""
    (tmp_path / "fineclip-bundle").symlink_to(square_path("fineclip"))
    # One page replaces it.
    shutil.copytree(pocket_path, tmp_path / "bundle", copy_function=os.symlink)
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(("a.jpg", "b.jpg", "photos/1.jpg", "photos/2.jpg", "photos/3.jpg")):
        Image.fromarray(picture(240, 320 - 16 * seed, seed)).save(tmp_path / name)
    (tmp_path / "damaged.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:500])
    (tmp_path / "captions.txt").write_text("一只黑猫\na white cat\n", encoding="utf-8")
    (tmp_path / "vectors").symlink_to(ROOT / "docs/bundle/vectors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", pages())
def test_a_page_runs(page: str, folder: Path) -> None:
    """Blocks run in their order: those of Python share their names, and all share the folder."""
    names: dict[str, Any] = {}
    printed = ""
    for block in blocks(pages()[page].read_text(encoding="utf-8")):
        where = f"{page}:{block.line}"
        if block.mark == "output":
            assert_same_output(block.code, printed)
        elif block.mark is not None:
            check(block, where)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, pages()[page], "exec"), names)
        elif block.language == "sh":
            printed = run(block.code, where, folder)
        else:
            assert block.language in _SHOWN, where


def check(block: Block, where: str) -> None:
    """Check a block that cannot run here."""
    assert block.mark in [f"checked: {reason}" for reason in REASONS], where
    assert block.language in ("sh", "python"), where
    (check_python if block.language == "python" else check_shell)(block.code)


def run(code: str, where: str, folder: Path) -> str:
    """Run a block as a user's shell does, and give what it printed.

    A line that is a command of ours and nothing else runs in this process, which saves its start.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = []
    for line in lines(code):
        words = list(commands(line))
        if len(words) == 1 and words[0][0] == "fgclip-rt":
            printed.append(run_command(*words[0][1:], cwd=folder).stdout)
            continue
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{where}\n{result.stderr}"
        printed.append(result.stdout)
    return "".join(printed)


def assert_same_output(shown: str, printed: str) -> None:
    """Compare the last lines that were printed with those that are shown, word by word, and numbers as numbers."""
    number = re.compile(r"-?\d+\.\d+")
    expected = shown.splitlines()
    for ours, theirs in zip(expected, printed.splitlines()[-len(expected) :], strict=True):
        assert len(ours.split()) == len(theirs.split()), (ours, theirs)
        for word, other in zip(ours.split(), theirs.split(), strict=True):
            if number.fullmatch(word) and number.fullmatch(other):
                assert float(word) == pytest.approx(float(other), abs=_TOLERANCE)
            else:
                assert word.rstrip("─") == other.rstrip("─")


def test_every_command_is_used_somewhere() -> None:
    used = {
        name
        for path in pages().values()
        for block in blocks(path.read_text(encoding="utf-8"))
        if block.language == "sh"
        for name in re.findall(r"fgclip-rt ([a-z-]+)", block.code)
    }
    assert used == set(COMMANDS)


def test_a_block_that_is_only_checked_is_checked() -> None:
    for code, error in (
        ("fgclip-rt bench bundle --pear all", click.UsageError),
        ("cat a.txt | fgclip-rt embed bundle --texts -", click.UsageError),
        ("FGCLIP=1 fgclip-rt build bundle", click.UsageError),
        ("make coffee", AssertionError),
        ("pip install '.[cli,exprot]'", AssertionError),
        ("python tests/bundle.py bundles", AssertionError),
        ("wget example.org", AssertionError),
    ):
        with pytest.raises(error):
            check_shell(code)
    with pytest.raises(SyntaxError):
        check_python("model = = 1")
    check_shell("fgclip-rt export --model a \\\n  --precision fp16  # a comment\n\npip install .\nmake test\n")


def test_blocks_are_found_with_their_marks_and_lines() -> None:
    text = (
        "# Title\n\n<!-- checked: gpu -->\n```sh\nmake\n```\n\n<!-- checked: gpu -->\nwords\n\n```python\nx = 1\n```\n"
    )
    assert list(blocks(text)) == [
        Block("sh", "make\n", "checked: gpu", 5),
        Block("python", "x = 1\n", None, 12),
    ]


def test_shown_output_differs_in_a_word_or_a_number() -> None:
    assert_same_output("star  0.1905 ───\n", "star 0.1907 ─────\n")
    for printed in ("star 0.2905 ───\n", "heart 0.1905 ───\n", "star 0.1905\n", ""):
        with pytest.raises((AssertionError, ValueError)):
            assert_same_output("star  0.1905 ───\n", printed)


def test_snippets_of_python_are_formatted() -> None:
    """As the code is, so that ruff's line length and quotes hold for them too."""
    for page, path in pages().items():
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.language == "python":
                result = subprocess.run(
                    [sys.executable, "-m", "ruff", "format", "--diff", "--stdin-filename", "snippet.py", "-"],
                    input=block.code,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert result.returncode == 0, f"{page}:{block.line}\n{result.stdout}"
                assert ast.parse(block.code).body
