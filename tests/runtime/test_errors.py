"""Errors tell programs what happened by a code, and people by a sentence; both survive a process boundary."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from collections.abc import Iterator

import numpy as np
import pytest
from test_contract import ROOT, sources

from fgclip_rt import errors
from fgclip_rt.errors import CODES, FgclipError, ParityError, reason
from fgclip_rt.parity import compare_exactly

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FgclipError)]
CONCRETE = [kind for kind in KINDS if kind is not FgclipError]


def make(kind: type[FgclipError], code: str | None = None) -> FgclipError:
    if issubclass(kind, ParityError):
        return kind("It failed.", {}, code=code)
    return kind("It failed.", code=code)


def raised() -> Iterator[tuple[str, str]]:
    """The module and the code of every call that makes an error; the class's own code if it gives none."""
    defaults = {kind.__name__: kind.code for kind in CONCRETE}
    for module, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defaults:
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                values = [value for value in given if isinstance(value, ast.Constant)]
                # A computed code is a constant elsewhere in its module.
                if len(values) == len(given):
                    yield module, str(values[0].value) if values else defaults[node.func.id]


def test_only_listed_codes_are_raised() -> None:
    assert {(module, code) for module, code in raised() if code not in CODES} == set()


def test_every_listed_code_is_raised() -> None:
    # The C library answers these five, which have no place in Python's own code.
    header = (ROOT / "native/include/fgclip_rt.h").read_text(encoding="utf-8")
    native = {"buffer_too_small", "cancelled", "forked", "internal", "runtime_missing"}
    assert native <= {name.lower() for name in re.findall(r"#define FGCLIP_([A-Z_]+) \d{3}\b", header)}
    assert set(CODES) - {code for _, code in raised()} == native


@pytest.mark.parametrize("kind", CONCRETE)
def test_a_code_that_is_not_listed_cannot_be_raised(kind: type[FgclipError]) -> None:
    with pytest.raises(AssertionError, match="no_such_code"):
        make(kind, "no_such_code")


@pytest.mark.parametrize("kind", CONCRETE)
def test_a_code_belongs_to_one_error_and_not_to_its_kind(kind: type[FgclipError]) -> None:
    other = "disk_full" if kind.code != "disk_full" else "argument_invalid"
    assert make(kind, other).code == other
    assert make(kind).code == kind.code


@pytest.mark.parametrize("code", CODES)
def test_codes_are_snake_case_and_their_meanings_one_sentence(code: str) -> None:
    assert code.replace("_", "").isalpha()
    assert code == code.lower()
    assert CODES[code].endswith(".")
    assert ". " not in CODES[code]


@pytest.mark.parametrize("kind", CONCRETE)
@pytest.mark.parametrize("code", [None, "disk_full"])
def test_an_error_survives_a_pickle(kind: type[FgclipError], code: str | None) -> None:
    error = make(kind, code)
    loaded = pickle.loads(pickle.dumps(error))
    assert type(loaded) is kind
    assert (str(loaded), loaded.code) == (str(error), error.code)


def test_a_pickled_parity_error_keeps_its_comparisons() -> None:
    row = compare_exactly(np.ones((2, 3)), np.ones((2, 3)), "tokens", "short")
    error = ParityError("It failed.", {"fp16": [row]}, ["fp32"], code="precision_refused")
    loaded = pickle.loads(pickle.dumps(error))
    assert (loaded.measured, loaded.kept, loaded.rows) == ({"fp16": (row,)}, ("fp32",), (row,))
    assert loaded.code == "precision_refused"


def test_the_docstring_draws_every_kind_under_its_base() -> None:
    assert errors.__doc__ is not None
    drawn = [line.split()[1:3] for line in errors.__doc__.splitlines() if "──" in line]
    assert [name for name, _ in drawn] == [kind.__name__ for kind in sorted(CONCRETE, key=first_line)]
    for kind in CONCRETE:
        builtin = [base for base in kind.__bases__ if base is not FgclipError]
        [note] = [note for name, note in drawn if name == kind.__name__]
        assert note == f"({builtin[0].__name__})" if builtin else "(" not in note


def first_line(kind: type) -> int:
    return inspect.getsourcelines(kind)[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no route", "no route"),
        ("no route.", "no route"),
        ("no route. Try again.", "no route"),
        ("no route\nat line 3", "no route"),
        ("  \n no route\n", "no route"),
        ("", "OSError"),
        (".", "OSError"),
    ],
)
def test_a_foreign_error_becomes_part_of_a_sentence(text: str, expected: str) -> None:
    assert reason(OSError(text)) == expected
