"""FineCLIP's tokenizer: CLIP's vocabulary behind the text cleaning of the EVA-CLIP code, in one ``tokenizer.json``."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from html.entities import html5
from typing import Any

from fgclip_rt.errors import CheckpointError
from fgclip_rt.tokenizer_definition import read_tokenizer

_REMEDY = "give CLIP's own with --tokenizer, such as that of openai/clip-vit-base-patch16"
#: Start and end as CLIP's file spells them, and as EVA-CLIP does; a text that holds the latter gets these tokens.
_SPELLINGS = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
#: CLIP's pattern. It ignores case, so ſ is an s, and the combining iota (U+0345) matches no part of it.
_WORDS = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\u0345]+"
_QUOTES = str.maketrans(dict.fromkeys("\u02bc‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))
#: An ampersand, which may be escaped itself, and more than once.
_AMPERSANDS = r"(?:&|＆)(?:(?:amp|AMP|#0*38(?!\d)|#[xX]0*26(?![0-9a-fA-F]));?)+"
_TERMINAL_ESCAPE = r"\x1b\[[0-9;]*[A-Za-z]"
#: A letter that ``str.lower`` looks at beside a sigma. It passes over those that are case-ignorable too, such as ʰ.
#: A pattern that took these would also try each of a long run of them as its beginning.
_LETTER = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
#: A sigma that ends a word has a lower case of its own. ``\K`` drops the match before it.
_FINAL_SIGMA = rf"{_LETTER}\p{{Case_Ignorable}}*\KΣ(?!\p{{Case_Ignorable}}*{_LETTER})"
#: Right after punctuation there is no start or end token: its bracket belongs to the punctuation.
_NO_TOKEN = r"(?<=[^\s\p{L}\p{N}])<(?=(?:start|end)_of_text>)"


def fineclip_tokenizer(clip_tokenizer_json: str) -> str:
    """Make FineCLIP's ``tokenizer.json`` from CLIP's: vocabulary and merges are kept, everything around them is new.

    The original cleans texts in Python, by ``ftfy.fix_text``, ``html.unescape`` (twice) and ``str.lower``. A
    normalizer can do a part: straight quotes, normal width, no ligatures, no control characters or terminal escapes,
    C1 controls and HTML entities of the characters of Windows-1252, NFC, and lower case with its final sigma. Other
    entities stay. Text in a wrong encoding stays too, because its repair depends on the whole text.

    Raises:
        CheckpointError: the text is not JSON, not a tokenizer, or not one with CLIP's start and end tokens. The end
            must have the largest of all ids, because FineCLIP finds it by that.
    """
    try:
        document = json.loads(clip_tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"CLIP's tokenizer.json is not JSON ({error}); {_REMEDY}.", code="checkpoint_damaged"
        ) from None
    try:
        read_tokenizer(clip_tokenizer_json)
    except ValueError as error:
        raise CheckpointError(f"CLIP's tokenizer.json {error}; {_REMEDY}.", code="checkpoint_damaged") from None
    model = document["model"]
    if (model.get("type"), model.get("end_of_word_suffix")) != ("BPE", "</w>"):
        raise CheckpointError(f"CLIP's tokenizer.json is another model's, with no BPE that ends in </w>; {_REMEDY}.")
    vocabulary = {_SPELLINGS.get(token, token): number for token, number in model["vocab"].items()}
    if not vocabulary.keys() >= set(_SPELLINGS.values()):
        raise CheckpointError(f"CLIP's tokenizer.json has not both {' and '.join(_SPELLINGS)}; {_REMEDY}.")
    start, end = ((token, vocabulary[token]) for token in _SPELLINGS.values())
    largest = max(vocabulary.values())
    if end[1] != largest:
        raise CheckpointError(
            f"CLIP's tokenizer.json has <|endoftext|> at {end[1]} and ids up to {largest}, but FineCLIP takes the "
            f"largest id of a text for its end; {_REMEDY}."
        )
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    splits = [
        {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    ends = {"type": "RobertaProcessing", "cls": start, "sep": end, "trim_offsets": False, "add_prefix_space": False}
    document |= {
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **kind} for token, number in (start, end)],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": ends,
        "model": model | {"unk_token": end[0], "vocab": vocabulary},
    }
    return json.dumps(document, ensure_ascii=False)


def _normalizers() -> list[dict[str, Any]]:
    # One pass for all patterns with one replacement, case ignored: a pass takes time, an alternative hardly any.
    passes: dict[str, list[str]] = {}
    for pattern, content in _replacements():
        passes.setdefault(content.translate(_QUOTES).lower(), []).append(pattern)
    return [
        *(_replace("|".join(patterns), content) for content, patterns in passes.items()),
        {"type": "NFC"},
        _replace(r"\s+", " "),
        _replace(_FINAL_SIGMA, "ς"),
        {"type": "Lowercase"},
        _replace(_NO_TOKEN, "< "),
    ]


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _replacements() -> Iterator[tuple[str, str]]:
    """Regular expressions and their replacements. Later ones see the results of earlier ones."""
    yield _AMPERSANDS, "&"
    yield _TERMINAL_ESCAPE, ""
    # Controls except white space, deprecated Arabic ones, byte order marks, annotations and objects.
    for code in (*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)):
        yield chr(code), ""
    for char in map(chr, _QUOTES):
        yield char, char
    for char in map(chr, (*range(0x100, 0x250), *range(0xFB00, 0xFB07))):
        tag, *codes = unicodedata.decomposition(char).split() or [""]
        letters = "".join(chr(int(code, 16)) for code in codes)
        if tag == "<compat>" and len(letters) > 1 and letters.isalpha():
            yield char, letters
    for char in map(chr, (0x3000, *range(0xFF01, 0xFFF0))):
        normal = unicodedata.normalize("NFKC", char)
        if normal != char:
            yield char, normal
    for code in (*range(32, 127), *range(128, 256)):
        char = bytes([code]).decode("cp1252", "ignore")
        if char and code in range(0x80, 0xA0):
            yield chr(code), char
        if char:
            yield _entity(char, code), char


def _entity(char: str, code: int) -> str:
    """The spellings of a character in HTML; by its ``code`` in Windows-1252 too, as browsers allow."""
    # Some names need no semicolon, unless they begin a longer one.
    names = sorted((name for name, value in html5.items() if value == char), reverse=True)
    forms = [name if name.endswith(";") else rf"{name}(?![0-9A-Za-z]*;)" for name in names]
    for number in sorted({ord(char), code}):
        forms += [rf"#0*{number}(?!\d);?", rf"#[xX]0*(?i:{number:x})(?![0-9a-fA-F]);?"]
    return f"&(?:{'|'.join(forms)})"
