"""Texts to token ids, as the checkpoint's own tokenizer makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import BoolArray, IntArray
from .errors import ArgumentError, BundleError, TextError
from .manifest import TextSpec, WalkTypeSpec
from .tokenizer_definition import check_tokenizer, read_tokenizer


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
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special_names = [token.content for token in added if token.special]

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
        """Tokenise ``texts``: :meth:`prepare` and :meth:`encode` them.

        Args:
            texts: the texts.
            walk_type: the kind of text, which sets the length.
            first: number of the first text, for messages.

        Raises:
            ArgumentError: the walk type is unknown.
            TextError: an entry is not text.
        """
        return self.encode([self.prepare(text, index) for index, text in enumerate(texts, first)], walk_type)

    def prepare(self, text: str, index: int = 0) -> str:
        """The text as it is encoded, lower-cased if the model was trained so. Equal results mean equal vectors.

        Args:
            text: the text.
            index: its number, for messages.

        Raises:
            TextError: it is not text.
        """
        if not isinstance(text, str):
            raise TextError(f"text {index} is of type {type(text).__name__}; pass strings.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TextError(
                f"text {index} holds half of a surrogate pair and is not valid Unicode; repair it."
            ) from None
        return text.lower() if self.spec.lowercase else text

    def special_tokens(self, text: str) -> list[str]:
        """The special tokens, such as the end of a text, that ``text`` spells out; it is encoded as these tokens.

        Raises:
            TextError: it is not text.
        """
        prepared = self.prepare(text)
        return [token for token in self._special_names if token in prepared]

    def encode(self, prepared: Sequence[str], walk_type: str = "short") -> Tokens:
        """Tokens of prepared texts: cut from the right so that the end token stays, and padded on the right.

        Raises:
            ArgumentError: the walk type is unknown.
        """
        length = self.walk_type(walk_type).length
        ids = np.full((len(prepared), length), self.spec.pad_token_id, dtype=np.int32)
        mask = np.zeros((len(prepared), length), dtype=np.int32)
        truncated = np.zeros(len(prepared), dtype=np.bool_)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(prepared), add_special_tokens=False)):
            truncated[row] = len(encoding.ids) > length - self._special_tokens
            encoding.truncate(length - self._special_tokens)
            token_ids = self._tokenizer.post_process(encoding, None, True).ids
            ids[row, : len(token_ids)] = token_ids
            mask[row, : len(token_ids)] = 1
        return Tokens(ids, mask, truncated)


def as_texts(texts: str | Iterable[str]) -> Iterator[str]:
    """Iterate over texts; a single one counts as a list of one."""
    if isinstance(texts, str):
        return iter([texts])
    if not isinstance(texts, Iterable):
        raise ArgumentError(f"texts must be strings, not {type(texts).__name__}; pass one or a list of them.")
    return iter(texts)
