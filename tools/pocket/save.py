"""Files of the pocket checkpoint, as ``save_pretrained`` writes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fgclip_rt.export.families.fgclip2 import reference

from .tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, UNK


def save(model: reference.Fgclip2, tokenizer_json: str, output: Path) -> None:
    """Write a checkpoint folder as ``save_pretrained`` does, its tensors in fp16."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    vision, text = model.config.vision_config, model.config.text_config
    documents: dict[str, dict[str, Any]] = {
        "config.json": {
            "architectures": ["Fgclip2Model"],
            "dtype": "float16",
            "model_type": "fgclip2",
            "text_config": {
                **asdict(text),
                "model_type": "fgclip2_text_model",
                "eos_token_id": SPECIAL_TOKENS.index(EOS),
            },
            "vision_config": {**asdict(vision), "model_type": "fgclip2_vision_model"},
        },
        "preprocessor_config.json": {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "dynamic_max_patches": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Fgclip2ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_num_patches": 256,
            "patch_size": 16,
            "resample": 2,
            "rescale_factor": 1 / 255,
        },
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_eos_token": True,
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "model_input_names": ["input_ids"],
            "model_max_length": 64,
            "padding_side": "right",
            "tokenizer_class": "GemmaTokenizer",
        },
    }
    for name, document in documents.items():
        (output / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (output / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
