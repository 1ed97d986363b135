"""Stand-ins for a checkpoint: random weights and tokenizers, for benchmarks at real size with no download.

Vectors are arbitrary, but every operator does the same work as with real weights. The tokenizers spell texts byte by
byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import tokenizers
import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


@torch.no_grad()
def random_module(build: Callable[[], _Module], seed: int, **scalars: float) -> _Module:
    """The module that ``build`` makes, with seeded random weights.

    Args:
        build: makes the reference.
        seed: seed of the weights.
        scalars: values of its logit scale and bias, by name.
    """
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu")
    initialise(module, seed)
    for name, value in scalars.items():
        module.get_parameter(name).fill_(value)
    return module


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill a reference from a seeded generator, except for its logit scales and biases.

    The gains keep activations near one, and attention far enough from uniform that vectors differ between inputs:
    otherwise a wrong graph could reach parity.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        tensor.normal_(0.0, std, generator=generator)

    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            normal(module.bias, 0.02)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            gain = 1.5 if name.endswith(("q_proj", "k_proj")) else 1.0
            normal(module.weight, gain * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                normal(module.bias, 0.02)
        elif isinstance(module, nn.MultiheadAttention):
            normal(module.in_proj_weight, 1.5 * module.embed_dim**-0.5)
            normal(module.in_proj_bias, 0.02)
        elif isinstance(module, nn.Embedding):
            normal(module.weight, 0.3 if "position" in name else 1.0)
        else:
            for own, parameter in module.named_parameters(recurse=False):
                if not own.startswith("logit_"):
                    normal(parameter, _std(own, parameter))


def _std(name: str, parameter: Tensor) -> float:
    """Standard deviation for a parameter that a module holds directly."""
    if name.endswith("bias"):
        return 0.02
    if name.startswith("pos"):
        return 0.3
    return float(len(parameter)) ** -0.5 if parameter.ndim == 2 else 1.0


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
    """A ``tokenizer.json`` of CLIP's kind with byte tokens only, and CLIP's ids of start and end."""
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
