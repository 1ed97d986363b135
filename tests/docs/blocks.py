"""Code blocks of Markdown pages, and checks of those that cannot run here."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tools.docs.commands import load_command

ROOT = Path(__file__).parents[2]

#: Reasons for which a block is only checked, as in ``<!-- checked: gpu -->``.
REASONS = ("network", "gpu", "gigabytes", "minutes")

#: Commands that a block which is only checked may use besides those that are looked into.
_OTHERS = ("./embed", "cat", "cc", "cd", "cmake", "cp", "curl", "export", "mv")

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (?P<mark>[a-z]+(: [a-z]+)?) -->\n\Z")


class Block(msgspec.Struct, frozen=True):
    """A fenced block of a page.

    Attributes:
        language: its language, such as ``sh``; empty if none is given.
        code: its lines.
        mark: text of the comment right before it, such as ``checked: gpu``; None if there is none.
        line: number of its first line of code.
    """

    language: str
    code: str
    mark: str | None
    line: int


def pages() -> dict[str, Path]:
    """The pages that users read, by their path in the repository."""
    return {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))}


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page in Markdown."""
    for found in _FENCE.finditer(text):
        mark = _MARK.search(text, 0, found.start())
        yield Block(
            found["language"],
            found["code"],
            None if mark is None else mark["mark"],
            text.count("\n", 0, found.start("code")) + 1,
        )


def check_python(code: str) -> None:
    """Make sure that a block of Python is well formed."""
    ast.parse(code)


def check_shell(code: str) -> None:
    """Make sure that the programs of a block know its options, and that the repository has the files that it names.

    Raises:
        click.UsageError: a command of ours does not take these arguments.
        AssertionError: a target, an extra, a file or a program is unknown.
    """
    for line in lines(code):
        for words in commands(line):
            _check(words)


def lines(code: str) -> list[str]:
    """The lines of a block of shell, those joined that end in a backslash."""
    return code.replace("\\\n", " ").splitlines()


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, and the targets of its redirections, each as its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def _check(words: list[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words
    if program == "fgclip-rt":
        name, *rest = arguments
        load_command(name).make_context(name, rest)
    elif program == "make":
        folder = ROOT / arguments[1] if arguments[0] == "-C" else ROOT
        targets = re.findall(r"^([a-z-]+):", (folder / "Makefile").read_text("utf-8"), re.MULTILINE)
        wanted = {each for each in arguments[2 * (arguments[0] == "-C") :] if "=" not in each}
        assert wanted <= set(targets), words
    elif program == "pip":
        _check_extras(arguments)
    elif program == "python":
        for path in arguments:
            assert not path.startswith(("tests/", "tools/")) or (ROOT / path).exists(), path
    else:
        assert program in _OTHERS, words


def _check_extras(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert arguments[0] == "install"
    for requirement in arguments[1:]:
        found = re.fullmatch(r"(\.|fgclip-rt)(\[(?P<extras>[a-z,-]+)\])?", requirement)
        assert found is not None, requirement
        assert set((found["extras"] or "cli").split(",")) <= set(project["optional-dependencies"]), requirement
