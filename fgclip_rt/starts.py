"""Starts of long texts that settle the first tokens, so that the work does not grow with the text.

The ids of a start are the first ids of the whole text if the start ends where a token of the whole text ends, and if
nothing before that place depends on what follows it. Two kinds of tokenizer are known, with a proof for each.

**Words.** CLIP's tokenizer finds words by a regular expression and drops everything between them. No word holds white
space, and no step of the cleaning looks across it. So every start that ends at white space is one.

**Pieces.** Gemma's tokenizer merges pairs over the whole text. In each step it takes the pair that comes first in its
list, and of those the leftmost. Merges on two sides of a place that no token crosses do not affect each other. So any
start that ends at such a place has the first ids of the whole text. No token covers more than M characters, where M is
the length of the longest in the vocabulary. Of any M starts, each one character longer than the one before, at least
one ends at such a place. The first ids that all of the M share are those of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import tokenizers

#: Characters of the longest start. Texts up to this length are tokenised whole; it takes at most some 50 ms.
MOST = 8192

#: Characters for each token of the first start that is tried. English has four to five, Chinese one.
_FIRST = 8

#: The longest token with which M starts take less than a second.
_LONGEST = 256

_SPACES = re.compile(r"[ \t\r\n]+")


class Starts:
    """Starts of texts for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Take a tokenizer that neither truncates nor pads."""
        self._tokenizer = tokenizer

    def settle(self, text: str, count: int, most: int = MOST) -> str | None:
        """A start of ``text`` that has the same first ``count`` ids, and more ids than these.

        Args:
            text: a text, as it goes to the tokenizer.
            count: number of ids that matter, without special tokens of the tokenizer's own; at least one.
            most: number of characters of the longest start. A text that is no longer is returned whole.

        Returns:
            The start; None if no start of at most ``most`` characters is known to settle the ids.

        Raises:
            Exception: the tokenizer failed.
        """
        if len(text) > most and self._splits_words:
            # Only that there is white space counts, not how much.
            text = _SPACES.sub(" ", text)
        if len(text) <= most:
            return text
        size = min(_FIRST * count, most)
        while True:
            starts = self._ends_of_tokens(text, size)
            if starts and self._agree(starts, count):
                return starts[0]
            if size == most:
                return None
            size = min(2 * size, most)

    def _ends_of_tokens(self, text: str, size: int) -> list[str]:
        """Starts of at most ``size`` characters, the longest first. One or more ends where a token of ``text`` does."""
        if self._splits_words:
            end = text.rfind(" ", 0, size + 1)
            return [text[:end]] if end > 0 else []
        if not self._longest or size < self._longest:
            return []
        window = text[size - self._longest : size]
        if len(self._normalize(window)) != len(window):
            # A character that becomes two, such as İ, may have the end of a token inside.
            return []
        return [text[:end] for end in range(size, size - self._longest, -1)]

    def _agree(self, starts: Sequence[str], count: int) -> bool:
        """Whether the longest of ``starts`` has more than ``count`` ids, and all have the same first ones."""
        longest, *others = starts
        ids = self._ids(longest)
        return len(ids) > count and all(self._ids(start)[:count] == ids[:count] for start in others)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    @cached_property
    def _splits_words(self) -> bool:
        """Whether the tokenizer is of the kind of words."""
        first, *_ = _steps(self._tokenizer.pre_tokenizer) or [{}]
        finds_words = first.get("type") == "Split" and first["behavior"] == "Removed" and first["invert"]
        contents = [token.content for token in self._added_tokens]
        return bool(finds_words) and self._added_tokens_are_plain and not any(map(_SPACES.search, contents))

    @cached_property
    def _longest(self) -> int:
        """Number M of characters of the longest token; zero if the tokenizer is not of the kind of pieces."""
        model = self._tokenizer.model
        merges_everything = (
            isinstance(model, tokenizers.models.BPE)
            and not (model.dropout or model.ignore_merges)
            and not (model.continuing_subword_prefix or model.end_of_word_suffix)
            and all(map(_keeps_characters, _steps(self._tokenizer.normalizer)))
            and all(map(_splits_at_a_character, _steps(self._tokenizer.pre_tokenizer)))
        )
        if not (merges_everything and self._added_tokens_are_plain):
            return 0
        longest = max(map(len, self._tokenizer.get_vocab()))
        return longest if longest <= _LONGEST else 0

    @cached_property
    def _added_tokens_are_plain(self) -> bool:
        """Whether no added token takes white space around it, or needs the end of a word."""
        return not any(token.lstrip or token.rstrip or token.single_word for token in self._added_tokens)

    @property
    def _added_tokens(self) -> Sequence[tokenizers.AddedToken]:
        return list(self._tokenizer.get_added_tokens_decoder().values())


def _steps(component: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, as ``tokenizer.json`` has them; empty if there is none."""
    if component is None:
        return []
    step = json.loads(component.__getstate__())
    parts: list[dict[str, Any]] = step.get("normalizers") or step.get("pretokenizers") or [step]
    return parts


def _keeps_characters(step: dict[str, Any]) -> bool:
    """Whether a step of a normalizer changes each character by itself."""
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == len(step["content"]) == 1
    return bool(step["type"] == "Lowercase")


def _splits_at_a_character(step: dict[str, Any]) -> bool:
    """Whether a step of a pre-tokenizer splits at single characters of one kind."""
    return step["type"] == "Split" and len(step["pattern"].get("String", "")) == 1 and not step["invert"]
