"""Random weights and a stand-in tokenizer, for benchmarks at real size with no download.

Nothing here knows anything: vectors are arbitrary, but every operator does the work that it would do with real
weights.
"""

from __future__ import annotations

import json

import torch
from torch import nn

from .reference import Fgclip2, PoolingHead


@torch.no_grad()
def initialise(model: Fgclip2, seed: int) -> None:
    """Fill ``model`` from a seeded generator.

    The gains keep activations near one, and attention far enough from uniform that vectors differ between inputs:
    otherwise parity would be easy to reach by mistake.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float) -> None:
        tensor.normal_(0.0, std, generator=generator)

    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            normal(module.bias, 0.02)
        elif isinstance(module, nn.Linear):
            gain = 1.5 if name.endswith(("q_proj", "k_proj")) else 1.0
            normal(module.weight, gain * module.in_features**-0.5)
            normal(module.bias, 0.02)
        elif isinstance(module, nn.MultiheadAttention):
            normal(module.in_proj_weight, 1.5 * module.embed_dim**-0.5)
            normal(module.in_proj_bias, 0.02)
        elif isinstance(module, nn.Embedding):
            normal(module.weight, 0.3 if "position" in name else 1.0)
        elif isinstance(module, PoolingHead):
            normal(module.probe, 1.0)
    model.logit_scale.fill_(4.7)
    model.logit_bias.fill_(-12.0)


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
