"""A checkpoint's tokenizer, brought into the form that a bundle holds, and its settings of padding and masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fgclip_rt.errors import CheckpointError
from fgclip_rt.tokenizer_definition import check_tokenizer, read_tokenizer, text_ends

from .files import TOKENIZER, TOKENIZER_CONFIG, Checkpoint

_REMEDY = "restore the tokenizer that came with the weights, or name its folder with --tokenizer"
#: Settings that a bundle cannot express, and the values that change nothing.
_FIXED = {"padding_side": "right", "truncation_side": "right", "split_special_tokens": False}
#: Tokens of the tokenizers' classes in transformers, for configurations that name none.
_GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}


@dataclass(frozen=True)
class TextSettings:
    """A checkpoint's tokenizer as a bundle holds it.

    Attributes:
        definition: text of the ``tokenizer.json``.
        pad_token_id: the token that fills a text up to its length.
        masked: whether the text tower takes an attention mask, which hides the padding from it.
    """

    definition: str
    pad_token_id: int
    masked: bool = False


class CheckpointTokenizer:
    """The tokenizer of a checkpoint.

    Attributes:
        definition: text of its ``tokenizer.json``, with the changes so far.
    """

    def __init__(self, checkpoint: Checkpoint, vocabulary_size: int) -> None:
        """Read the files. Added tokens that the model has no row for are left out, and noted.

        Args:
            checkpoint: holds the files.
            vocabulary_size: rows of the model's table of tokens.

        Raises:
            CheckpointError: a file is missing or damaged, or the tokenizer is of a model with more tokens.
        """
        self._checkpoint = checkpoint
        self._path, self._config_path = checkpoint.where(TOKENIZER), checkpoint.where(TOKENIZER_CONFIG)
        self._set(checkpoint.text(TOKENIZER))
        self._config = checkpoint.json(TOKENIZER_CONFIG)
        for name, value in _FIXED.items():
            if self._config.get(name, value) != value:
                raise CheckpointError(
                    f"{self._config_path}: {name} is {self._config[name]!r}, and these models are trained with "
                    f"{value!r}; restore the file that came with the weights."
                )
        self._drop_added_past(vocabulary_size)
        self._check_vocabulary(vocabulary_size)

    def follow_flags(self) -> None:
        """Put start and end tokens around a text as ``add_bos_token`` and ``add_eos_token`` say, if one is set.

        So does transformers, whatever the post-processor of the ``tokenizer.json`` does.

        Raises:
            CheckpointError: a value is no truth value, or the token to add is unknown.
        """
        flags = {name: self._config.get(f"add_{name}_token") for name in ("bos", "eos")}
        if all(flag is None for flag in flags.values()):
            return
        for name, flag in flags.items():
            if flag is not None and not isinstance(flag, bool):
                raise CheckpointError(
                    f"{self._config_path}: add_{name}_token is {flag!r}, and must be true or false; restore the file "
                    "that came with the weights."
                )
        start, end = ([self._token(f"{name}_token")] if flags[name] else [] for name in ("bos", "eos"))
        try:
            found = text_ends(self._tokenizer)
        except ValueError:
            found = None
        if found != ([number for _, number in start], [number for _, number in end]):
            self._change(post_processor=_template(start, end))
            said = " and ".join(f"add_{name}_token {bool(flag)}" for name, flag in flags.items())
            self._checkpoint.note(
                f"{self._path} and {self._config_path} differ in the tokens around a text; the latter was followed "
                f"({said}), as transformers does."
            )

    def lowercase(self) -> None:
        """Have texts lower-cased after special tokens are split off."""
        self._set(with_lowercase(self.definition))

    def end_token(self) -> int:
        """Id of the token that ends a text.

        Raises:
            CheckpointError: it is unknown.
        """
        return self._token("eos_token")[1]

    def check(self, length: int, start: list[int], end: list[int]) -> None:
        """Make sure that any text can be encoded, and has the tokens around it that the model was trained with.

        Args:
            length: fewest tokens of any kind of text.
            start: token ids before a text.
            end: token ids after it.

        Raises:
            CheckpointError: it cannot, or has other tokens around it.
        """
        try:
            check_tokenizer(self._tokenizer, self.definition, length)
            found = text_ends(self._tokenizer)
        except ValueError as error:
            raise CheckpointError(f"{self._path} {error}; {_REMEDY}.") from None
        if found != (start, end):
            raise CheckpointError(
                f"{self._path} puts the tokens {found[0]} before a text and {found[1]} after it, and the model was "
                f"trained with {start} and {end}; {_REMEDY}."
            )

    def padding_token(self) -> int:
        """The id that texts are padded with.

        Raises:
            CheckpointError: there is none that the model knows.
        """
        return self._token("pad_token")[1]

    def makes_mask(self) -> bool:
        """Whether the tokenizer makes an attention mask: it does unless its file leaves it out, as the released do.

        Raises:
            CheckpointError: the file is damaged.
        """
        names = self._config.get("model_input_names")
        if names is None and "model_input_names" not in self._config:
            self._checkpoint.note(
                f"{self._config_path} has no model_input_names, so an attention mask hides the padding from the text "
                "tower, as with transformers; the released models were trained without a mask, and their files have "
                '"model_input_names": ["input_ids"].'
            )
            return True
        if not isinstance(names, list):
            raise CheckpointError(
                f"{self._config_path}: model_input_names is {names!r}, and must be a list; "
                "restore the file that came with the weights."
            )
        return "attention_mask" in names

    def note_padding_side(self) -> None:
        """Note that texts are padded on the right if the file does not say so; transformers pads on the left."""
        if "padding_side" not in self._config:
            self._checkpoint.note(
                f"{self._config_path} has no padding_side; texts are padded on the right, as the models were trained, "
                "and not on the left, as transformers would."
            )

    def _set(self, definition: str) -> None:
        self.definition = definition
        try:
            self._tokenizer = read_tokenizer(definition)
        except ValueError as error:
            raise CheckpointError(f"{self._path} {error}; restore the file.", code="checkpoint_damaged") from None

    def _change(self, **parts: Any) -> None:
        self._set(json.dumps(json.loads(self.definition) | parts, ensure_ascii=False))

    def _token(self, name: str) -> tuple[str, int]:
        """Content and id of a token that the configuration names."""
        token = self._config.get(name, _GEMMA.get(name))
        content = token.get("content") if isinstance(token, dict) else token
        number = self._tokenizer.token_to_id(content) if isinstance(content, str) else None
        if not isinstance(content, str) or number is None:
            raise CheckpointError(
                f"{self._config_path}: {name} {content!r} is not in {TOKENIZER}; "
                "restore the files that came with the weights."
            )
        return content, number

    def _drop_added_past(self, size: int) -> None:
        """Leave out added tokens that are in no vocabulary and past the model's table: it could not read them."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        past = {
            token.content: number
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if number >= size and token.content not in vocabulary
        }
        if past:
            kept = [token for token in json.loads(self.definition)["added_tokens"] if token["content"] not in past]
            self._change(added_tokens=kept)
            names = ", ".join(f"{content!r} {number}" for content, number in past.items())
            self._checkpoint.note(
                f"{self._path} adds tokens past the model's {size:,} ({names}); they were left out, so that texts with "
                "them are encoded by their characters."
            )

    def _check_vocabulary(self, size: int) -> None:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        token = max(vocabulary, key=vocabulary.__getitem__, default=None)
        if token is not None and vocabulary[token] >= size:
            raise CheckpointError(
                f"{self._path} has the token {token!r} with id {vocabulary[token]}, past the model's {size} tokens; "
                f"{_REMEDY}."
            )


def with_lowercase(definition: str) -> str:
    """A ``tokenizer.json`` that lower-cases texts, character by character, after special tokens are split off."""
    document = json.loads(definition)
    normalizer = document.get("normalizer")
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    lowercase = {"type": "Lowercase"}
    others = [step for step in steps if step not in (None, lowercase)]
    return json.dumps(
        document | {"normalizer": {"type": "Sequence", "normalizers": [lowercase, *others]}}, ensure_ascii=False
    )


def _template(start: Sequence[tuple[str, int]], end: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A post-processor that puts tokens, each with its id, before and after a text."""

    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": token, "type_id": kind}} for token, _ in ends] for ends in (start, end)
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": kind}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (*start, *end)
        },
    }
