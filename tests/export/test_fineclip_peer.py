"""FineCLIP's towers against other implementations, live: timm's EVA02-CLIP and transformers' CLIP text."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fgclip_rt.export.checkpoints.registry import MODELS
from fgclip_rt.export.checkpoints.stand_ins import initialise
from fgclip_rt.export.families.fineclip import reference
from fgclip_rt.export.families.fineclip.config import Config
from helpers import assert_parity

WIDTH, HEADS, LAYERS, EMBED = 80, 4, 3, 40
#: One of timm's models; tests make others from it by changing its sizes.
BASE = "eva02_base_patch16_clip_224"


@pytest.fixture(scope="module")
def timm() -> Any:
    """The library. If torchvision is missing, mocks replace it, because these models do not use it."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            for name in ("", ".datasets", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):
                patch.setitem(sys.modules, f"torchvision{name}", MagicMock())
        return pytest.importorskip("timm", reason="timm is not installed; pip install --no-deps timm will do")


def small(image_size: int = 80, patch_size: int = 16, activation: str = "gelu") -> reference.FineClip:
    """A random FineCLIP of sizes other than the goldens', loud enough that vectors differ."""
    vision = {
        **MODELS["fineclip-vitb16"].config["vision_cfg"],
        "image_size": image_size,
        "patch_size": patch_size,
        "width": WIDTH,
        "layers": LAYERS,
        "head_width": WIDTH // HEADS,
    }
    text = {"width": 48, "heads": 3, "layers": LAYERS, "vocab_size": 99, "context_length": 30}
    config = {"embed_dim": EMBED, "vision_cfg": vision, "text_cfg": text, "quick_gelu": activation == "quick_gelu"}
    module = reference.FineClip(Config.from_json(config))
    initialise(module, seed=9)
    return module.eval().requires_grad_(False)


def load(timm: Any, peer: Any, module: reference.FineClip) -> None:
    """Give ``peer`` the weights of ``module`` by timm's own reading of EVA-CLIP's checkpoints."""
    state = module.state_dict()
    # timm resizes tensors that do not fit.
    assert peer.pos_embed.shape == state["visual.pos_embed"].shape
    assert peer.patch_embed.proj.weight.shape == state["visual.patch_embed.proj.weight"].shape
    peer.load_state_dict(timm.models.eva.checkpoint_filter_fn(state, peer), strict=True, assign=True)


def epsilons(module: Any) -> list[float]:
    """Epsilons of all LayerNorms, because features hardly depend on them."""
    return [part.eps for part in module.modules() if isinstance(part, torch.nn.LayerNorm)]


@pytest.mark.parametrize(
    ("name", "peers"), [("fineclip-vitb16", BASE), ("fineclip-vitl14-336", "eva02_large_patch14_clip_336")]
)
def test_checkpoints_have_these_names_and_shapes(timm: Any, name: str, peers: str) -> None:
    config = Config.from_json(MODELS[name].config)
    with torch.device("meta"):
        module, peer = reference.FineClip(config), timm.create_model(peers, num_classes=config.embed_dim)
    load(timm, peer, module)
    assert config.vision_cfg.heads == peer.blocks[0].attn.num_heads
    assert epsilons(module.visual) == epsilons(peer)


# Rotary positions of any grid are stretched to a grid of 16 by 16.
@pytest.mark.parametrize(("image_size", "patch_size"), [(80, 16), (256, 16), (350, 14)])
def test_image_and_dense_features(timm: Any, image_size: int, patch_size: int) -> None:
    module = small(image_size, patch_size)
    sizes = {"embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS, "num_classes": EMBED}
    peer = timm.create_model(BASE, img_size=image_size, patch_size=patch_size, **sizes).eval()
    load(timm, peer, module)

    pixels = torch.randn(3, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = peer(pixels)
        assert np.ptp(expected.numpy(), axis=0).max() > 0.5, "the images must differ for this to mean anything"
        assert_parity(module.get_image_features(pixels).numpy(), expected.numpy())

        [x] = peer.forward_intermediates(
            pixels, indices=[LAYERS - 2], output_fmt="NLC", norm=False, intermediates_only=True
        )
        last = peer.blocks[-1]
        x = x + last.attn.proj(last.attn.norm(last.attn.v_proj(last.norm1(x))))
        x = x + last.mlp(last.norm2(x))
        expected = F.normalize(peer.head(peer.norm(x)), dim=-1)
        assert_parity(module.get_image_dense_features(pixels).numpy(), expected.numpy())


def clip_text(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a text tower by transformers' names."""
    renamed = {}
    for name, tensor in weights.items():
        for ours, theirs in (
            ("token_embedding", "text_model.embeddings.token_embedding"),
            ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
            ("transformer.resblocks", "text_model.encoder.layers"),
            (".ln_1", ".layer_norm1"),
            (".ln_2", ".layer_norm2"),
            (".c_fc", ".fc1"),
            (".c_proj", ".fc2"),
            (".attn.", ".self_attn."),
            ("ln_final", "text_model.final_layer_norm"),
        ):
            name = name.replace(ours, theirs)
        if ".in_proj_" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            renamed[name] = tensor
    renamed["text_projection.weight"] = renamed.pop("text_projection").T
    return renamed


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_text_features(activation: str) -> None:
    transformers = pytest.importorskip("transformers")
    module = small(activation=activation)
    text = module.config.text_cfg
    config = transformers.CLIPTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        intermediate_size=4 * text.width,
        projection_dim=EMBED,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        max_position_embeddings=text.context_length,
        hidden_act=activation,
        bos_token_id=97,
        eos_token_id=2,  # makes transformers pool at the largest id, as the first CLIP did
    )
    peer = transformers.CLIPTextModelWithProjection(config).eval()
    peer.load_state_dict(clip_text(module.text.state_dict()), strict=True)
    assert epsilons(module.text) == epsilons(peer)

    ids = torch.zeros(5, text.context_length, dtype=torch.long)
    generator = torch.Generator().manual_seed(2)
    for row, count in zip(ids, (0, 1, 7, 20, text.context_length - 2), strict=True):
        row[: count + 2] = torch.cat(
            [torch.tensor([97]), torch.randint(1, 97, (count,), generator=generator), torch.tensor([98])]
        )
    with torch.inference_mode():
        expected = peer(input_ids=ids).text_embeds
        assert np.ptp(expected.numpy(), axis=0).max() > 0.5, "the texts must differ for this to mean anything"
        assert_parity(module.text(ids).numpy(), expected.numpy())
