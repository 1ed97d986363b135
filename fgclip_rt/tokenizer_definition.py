"""The content of a ``tokenizer.json``: read, and checked for all that encoding a text relies on.

A file can be of the right form and still fail on a text, give other tokens from call to call, or lose the text. Each
fault is a ``ValueError`` whose message completes a sentence about the file; callers name the file and the remedy.
"""

from __future__ import annotations

import re

import tokenizers

#: Texts that between them meet unknown characters, runs of one character and the edges of words.
_PROBES = ("a cat", "一只黑猫 🦊 naïve ½\u0301 \U0010ffff\x01", *(char * 40 + "!" for char in "a1 -"))
#: Token ids are int32. A number of ten digits may be larger; one file in millions has such a number.
_LARGEST_ID = 2**31 - 1
_TEXT_LOST = "has a post-processor that does not hold the text once"
_TEN_DIGITS = re.compile(r":\s*[0-9]{10}")


def read_tokenizer(definition: str) -> tokenizers.Tokenizer:
    """The tokenizer that the text of a ``tokenizer.json`` defines, without its own cutting and padding.

    Raises:
        ValueError: it defines none.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(definition)
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise ValueError(f"is not a tokenizer ({error})") from None
    # Length is handled per call, so that one tokenizer serves every walk type and thread.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_tokenizer(tokenizer: tokenizers.Tokenizer, definition: str, length: int) -> None:
    """Make sure that a tokenizer encodes any text, the same way every time, and into token ids that are int32.

    Args:
        tokenizer: of :func:`read_tokenizer`.
        definition: the text that it was read from.
        length: fewest tokens of any walk type.

    Raises:
        ValueError: it does not.
    """
    dropout = getattr(tokenizer.model, "dropout", None)
    if dropout:
        raise ValueError(f"has dropout {dropout}, so that a text gets other tokens from call to call")
    added = tokenizer.num_special_tokens_to_add(is_pair=False)
    if added >= length:
        raise ValueError(f"adds {added} tokens to every text, and the model reads {length}")
    if _TEN_DIGITS.search(definition):
        _check_id(max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0))
    start, end = text_ends(tokenizer)
    _check_id(max((*start, *end), default=0))


def is_of_library(error: BaseException) -> bool:
    """Whether an error is one of tokenizers: a bare Exception; or a panic, which is none and has no public class."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def text_ends(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The token ids that a tokenizer puts before and after a text.

    Raises:
        ValueError: some text cannot be encoded, or its tokens are not between them once.
    """
    added = tokenizer.num_special_tokens_to_add(is_pair=False)
    found = []
    for text in _PROBES:
        ids, whole = _encode(tokenizer, text)
        starts = [at for at in range(added + 1) if whole[at : at + len(ids)] == ids]
        if len(whole) != len(ids) + added or not starts:
            raise ValueError(_TEXT_LOST)
        # A text may have no tokens, if the tokenizer knows none of its characters.
        if ids:
            found.append((whole[: starts[0]], whole[starts[0] + len(ids) :]))
    if not found:
        raise ValueError(_TEXT_LOST)
    return found[0]


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, alone and as the post-processor completes them."""
    try:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, tokenizer.post_process(encoding, None, True).ids
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise ValueError(f"cannot encode the text {text!r} ({error})") from None


def _check_id(number: int) -> None:
    if number > _LARGEST_ID:
        raise ValueError(f"has the token id {number}, over the largest that a model reads, {_LARGEST_ID}")
