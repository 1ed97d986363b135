"""Texts to token ids, as the checkpoint's own tokenizer makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import tokenizers

from .arrays import BoolArray, IntArray
from .errors import ArgumentError, BundleError, TextError, reason
from .manifest import TextSpec, WalkTypeSpec
from .starts import MOST, Starts
from .tokenizer_definition import check_tokenizer, is_of_library, read_tokenizer


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts.

    Attributes:
        input_ids: int32 [n, L], padded to the walk type's length.
        attention_mask: int32 [n, L], one on real tokens.
        truncated: bool [n], whether a text was longer than L tokens and lost its end.
    """

    input_ids: IntArray
    attention_mask: IntArray
    truncated: BoolArray


class Encoded(msgspec.Struct, frozen=True):
    """One tokenised text, before padding.

    Attributes:
        ids: its tokens, the tokenizer's own special ones included.
        truncated: whether it was too long and lost its end.
        special: the first special token that the text's own characters spell, such as ``<eos>``; None if none do.
    """

    ids: list[int]
    truncated: bool
    special: str | None


class Tokenizer:
    """Tokenisation by the specification in a manifest. Safe to use from several threads."""

    def __init__(self, definition: str, spec: TextSpec) -> None:
        """Take the text of a ``tokenizer.json``.

        Raises:
            BundleError: it is not a tokenizer, or one that fails on a text, loses it, or is not repeatable.
        """
        self.spec = spec
        try:
            self._tokenizer = read_tokenizer(definition)
            shortest = min((kind.length for kind in spec.walk_types.values()), default=0)
            check_tokenizer(self._tokenizer, definition, shortest)
        except ValueError as error:
            raise BundleError(f"{spec.tokenizer} {error}; export the bundle again.") from None
        self._special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_contents = {number: token.content for number, token in added.items() if token.special}
        self._starts = Starts(self._tokenizer)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the definition and the specification."""
        return type(self), (self._tokenizer.to_str(), self.spec)

    def walk_type(self, name: str) -> WalkTypeSpec:
        """The walk type called ``name``.

        Raises:
            ArgumentError: there is none; the message lists the model's walk types.
        """
        try:
            return self.spec.walk_types[name]
        except (KeyError, TypeError):
            choices = ", ".join(self.spec.walk_types)
            raise ArgumentError(
                f"this model has no walk type {name!r}; choose from {choices}.", code="walk_type_missing"
            ) from None

    def __call__(self, texts: Sequence[str], walk_type: str = "short", *, first: int = 0) -> Tokens:
        """Tokenise ``texts``: :meth:`prepare`, :meth:`encode` and :meth:`pad` them.

        Args:
            texts: the texts.
            walk_type: the kind of text, which sets the length.
            first: number of the first text, for messages.

        Raises:
            ArgumentError: the walk type is unknown.
            TextError: an entry is not text, or cannot be tokenised.
        """
        return self.pad(list(self.encode_each(texts, walk_type, first=first)), walk_type)

    def encode_each(self, texts: Iterable[str], walk_type: str = "short", *, first: int = 0) -> Iterator[Encoded]:
        """:meth:`prepare` and :meth:`encode` texts one by one; arguments and errors are those of a call."""
        for index, text in enumerate(texts, first):
            yield self.encode(self.prepare(text, walk_type, index), walk_type, index)

    def prepare(self, text: str, walk_type: str = "short", index: int = 0) -> str:
        """The characters of a text that are encoded. Equal results mean equal vectors.

        They are lower-cased if the model was trained so. Of a text of more than 8,192 characters only the start is
        kept that settles the tokens which the walk type has room for.

        Args:
            text: the text.
            walk_type: the kind of text, which sets the length.
            index: its number, for messages.

        Raises:
            ArgumentError: the walk type is unknown.
            TextError: it is not text, or it is so long that its tokens cannot be told from its start.
        """
        if not isinstance(text, str):
            raise TextError(f"text {index} is of type {type(text).__name__}; pass strings.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TextError(
                f"text {index} holds half of a surrogate pair and is not valid Unicode; repair it."
            ) from None
        cased = text.lower() if self.spec.lowercase else text
        room = self._room(walk_type)
        with _refusing(index):
            start = self._starts.settle(cased, room)
        if start is None:
            raise TextError(
                f"text {index} has {len(text):,} characters, and the first {MOST:,} do not settle its first {room} "
                "tokens; shorten it, or put spaces into its long runs.",
                code="text_too_long",
            )
        return start

    def encode(self, prepared: str, walk_type: str = "short", index: int = 0) -> Encoded:
        """Tokens of a prepared text, cut from the right so that the end token stays.

        Args:
            prepared: the text, as :meth:`prepare` returns it.
            walk_type: the kind of text, which sets the length.
            index: its number, for messages.

        Raises:
            ArgumentError: the walk type is unknown.
            TextError: the tokenizer fails on it.
        """
        room = self._room(walk_type)
        with _refusing(index):
            # Texts are encoded one by one: the library's threads for many of them would not survive a fork.
            encoding = self._tokenizer.encode(prepared, add_special_tokens=False)
            truncated = len(encoding.ids) > room
            encoding.truncate(room)
            special = self._find_special(prepared, encoding)
            return Encoded(self._tokenizer.post_process(encoding, None, True).ids, truncated, special)

    def pad(self, encoded: Sequence[Encoded], walk_type: str = "short") -> Tokens:
        """Encoded texts of one walk type side by side, padded on the right.

        Raises:
            ArgumentError: the walk type is unknown.
        """
        length = self.walk_type(walk_type).length
        ids = np.full((len(encoded), length), self.spec.pad_token_id, dtype=np.int32)
        mask = np.zeros((len(encoded), length), dtype=np.int32)
        for row, text in enumerate(encoded):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = 1
        return Tokens(ids, mask, np.array([text.truncated for text in encoded], dtype=np.bool_))

    def _room(self, walk_type: str) -> int:
        """Number of tokens of a text itself that its walk type has room for."""
        return self.walk_type(walk_type).length - self._special_tokens

    def _find_special(self, prepared: str, encoding: tokenizers.Encoding) -> str | None:
        """The first special token of a text that the text itself spells."""
        found = [self._special_contents[number] for number in encoding.ids if number in self._special_contents]
        if not found:
            return None
        # Characters that the vocabulary lacks have special ids too, in some tokenizers, and nobody spelt those.
        normalizer = self._tokenizer.normalizer
        cleaned = prepared if normalizer is None else str(normalizer.normalize_str(prepared))
        return next((content for content in found if content in prepared or content in cleaned), None)


def special_tokens_found(found: Mapping[int, str]) -> str:
    """One sentence about texts that spell special tokens; ``found`` is the first token of each, by its number."""
    index, token = next(iter(found.items()))
    more = len(found) - 1
    subject = f"text {index} and {more} more hold" if more else f"text {index} holds"
    return (
        f"{subject} {token!r}{' or the like' if more else ''}, which the tokenizer reads as a special token and not as "
        "characters; spell it in another way unless that is meant."
    )


@contextlib.contextmanager
def _refusing(index: int) -> Iterator[None]:
    """Turn a failure of the library into one sentence that names the text.

    Raises:
        TextError: the library failed.
    """
    try:
        yield
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise TextError(
            f"text {index} cannot be tokenised ({reason(error)}); shorten it or word it in another way."
        ) from None


def as_texts(texts: str | Iterable[str]) -> Iterator[str]:
    """Iterate over texts; a single one counts as a list of one."""
    if isinstance(texts, str):
        return iter([texts])
    if not isinstance(texts, Iterable):
        raise ArgumentError(f"texts must be strings, not {type(texts).__name__}; pass one or a list of them.")
    return iter(texts)
