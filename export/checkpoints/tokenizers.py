"""A checkpoint's tokenizer, and its configuration of padding and masks."""

from __future__ import annotations

import tokenizers

from fgclip_rt.errors import CheckpointError

from .files import TOKENIZER, Checkpoint

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
            f"{checkpoint.where(TOKENIZER)} is not a tokenizer ({error}); restore the file.", code="checkpoint_damaged"
        ) from None


def padding_token(checkpoint: Checkpoint, tokenizer: tokenizers.Tokenizer, vocabulary_size: int) -> int:
    """The id that a checkpoint's tokenizer pads with.

    Raises:
        CheckpointError: there is none that the model knows, or the configuration is damaged.
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
    """Whether a checkpoint's tokenizer makes an attention mask. It does, unless its file leaves it out, as SigLIP 2's.

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
