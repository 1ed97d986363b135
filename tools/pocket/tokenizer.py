"""The pocket checkpoint's tokenizer: byte-fallback BPE of Gemma's kind, trained on captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
PAD, EOS, BOS, UNK = SPECIAL_TOKENS
_SPACE = "▁"
_LONGEST_TOKEN = 10  # characters: words, never phrases


def train_tokenizer(captions: Iterable[str], size: int) -> str:
    """The ``tokenizer.json`` of ``size`` tokens trained on ``captions``, lower-cased.

    Each character of printable ASCII and Latin-1 and of common full-width punctuation is a token, even if it does not
    occur. Other characters that do not occur are spelt in bytes, so that any text has tokens.
    """
    alphabet = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0x100)) if not chr(code).isupper()]
    alphabet += [_SPACE, *"，。！？：；、（）《》“”‘’…—·"]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 256,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", _SPACE)
    # Training keeps words apart. Afterwards no token crosses words, so the split is not needed.
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_SPACE, "merged_with_next"),
            pre_tokenizers.Split(tokenizers.Regex(r"[^\p{L}▁]|[的在是有和与个]"), "isolated"),
        ]
    )
    trained.train_from_iterator((caption.lower() for caption in captions), trainer)
    return _with_byte_tokens(json.loads(trained.to_str()))


def _with_byte_tokens(document: dict[str, Any]) -> str:
    """Put the 256 bytes after the special tokens, and finish the definition like Gemma's."""
    vocabulary = document["model"]["vocab"]
    learned = sorted(vocabulary, key=vocabulary.__getitem__)[len(SPECIAL_TOKENS) :]
    order = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    document["model"]["vocab"] = {token: index for index, token in enumerate(order)}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document | {"pre_tokenizer": None}))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B:1 {EOS}:1", special_tokens=[(EOS, SPECIAL_TOKENS.index(EOS))]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer.to_str(pretty=True)
