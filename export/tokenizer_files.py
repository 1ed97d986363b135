"""Tokenizers: what a checkpoint says of its own, and stand-ins for random weights, which spell texts byte by byte."""

from __future__ import annotations

import json

import tokenizers

from fgclip_rt.errors import CheckpointError

from .checkpoint import TOKENIZER, Checkpoint

CONFIG = "tokenizer_config.json"


def read_tokenizer(checkpoint: Checkpoint) -> tuple[str, tokenizers.Tokenizer]:
    """A checkpoint's ``tokenizer.json``, and the tokenizer that it defines.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    definition = checkpoint.text(TOKENIZER)
    try:
        return definition, tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{checkpoint.where(TOKENIZER)} is not a tokenizer ({error}); restore the file."
        ) from None


def padding_token(checkpoint: Checkpoint, tokenizer: tokenizers.Tokenizer, vocabulary_size: int) -> int:
    """The id that a checkpoint's tokenizer pads with.

    Raises:
        CheckpointError: there is none that the model knows.
    """
    document = checkpoint.json(CONFIG)
    if document.get("padding_side", "right") != "right":
        raise CheckpointError(
            f"{checkpoint.where(CONFIG)}: padding_side is {document['padding_side']!r}, and these models pad on the "
            "right; restore the file that came with the weights."
        )
    pad = document.get("pad_token")
    content = pad.get("content") if isinstance(pad, dict) else pad
    pad_token_id = tokenizer.token_to_id(content) if isinstance(content, str) else None
    if pad_token_id is None:
        raise CheckpointError(
            f"{checkpoint.where(CONFIG)}: pad_token {content!r} is not in tokenizer.json; "
            "restore the files that came with the weights."
        )
    if pad_token_id >= vocabulary_size:
        raise CheckpointError(
            f"{checkpoint.where(TOKENIZER)} has the padding token {pad_token_id}, past the model's "
            f"{vocabulary_size} tokens; restore the tokenizer that came with the weights."
        )
    return pad_token_id


def makes_mask(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's tokenizer makes an attention mask: unless its file says otherwise, as SigLIP 2's does.

    Raises:
        CheckpointError: the file is damaged.
    """
    names = checkpoint.json(CONFIG).get("model_input_names", ["input_ids", "attention_mask"])
    if not isinstance(names, list):
        raise CheckpointError(
            f"{checkpoint.where(CONFIG)}: model_input_names is {names!r}, and must be a list; "
            "restore the file that came with the weights."
        )
    return "attention_mask" in names


def byte_tokenizer() -> str:
    """A ``tokenizer.json`` of Gemma's kind with byte tokens only: any text, one token a byte."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocabulary = special + [f"<0x{byte:02X}>" for byte in range(256)]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": index,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for index, token in enumerate(special)
            ],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": None,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
            },
            "decoder": {"type": "ByteFallback"},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {token: index for index, token in enumerate(vocabulary)},
                "merges": [],
            },
        },
        ensure_ascii=False,
    )


def clip_byte_tokenizer() -> str:
    """A ``tokenizer.json`` of CLIP's kind with byte tokens only, and its start and end where CLIP has them."""
    vocabulary = {token: index for index, token in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary |= {start: 49406, end: 49407}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])]
    )
    tokenizer.add_special_tokens([start, end])
    definition: str = tokenizer.to_str()
    return definition
