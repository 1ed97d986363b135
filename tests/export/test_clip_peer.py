"""An FG-CLIP checkpoint against transformers' CLIP, live: towers, long text, dense features and preparation."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import fgclip_rt
from fgclip_rt import export
from fgclip_rt.export.checkpoints.stand_ins import initialise
from fgclip_rt.export.families.fgclip1 import reference
from fgclip_rt.export.families.fgclip1.config import Config
from fgclip_rt.manifest import SquareSpec
from fgclip_rt.model import Model
from fgclip_rt.preparation import SquarePreparation
from helpers import GOLDENS, assert_parity, picture, released_pillow

transformers = pytest.importorskip("transformers")
processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")

SIDE, KEPT, END = 80, 20, 49407
#: The towers differ in every option that may differ. The epsilons are large, or a wrong one would not show.
VISION = {
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-3,
    "image_size": SIDE,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-4,
}
CONFIG: dict[str, Any] = {"vision_config": VISION, "text_config": TEXT, "projection_dim": 40}
#: Tensors that CLIP lacks.
OWN = {
    "text_filip_projection.weight",
    "text_model.embeddings.position_embedding_ori.weight",
    "text_model.embeddings.position_embedding_res.weight",
    "logit_scale_finegraind",
    "logit_scale_hardneg",
}
#: (height, width)
SIZES = [(80, 80), (150, 200), (640, 480), (20, 900), (500, 40), (1, 1)]
#: The last three fill a short text, exceed it, and exceed a long text.
TEXTS = [
    "a photo of a cat",
    "A black cat, on a window-sill!",
    "",
    "naïve café 🦊 一只黑猫",
    "long " * 75,
    "o " * 120,
    "so " * 300,
]

PREPARATION = SquarePreparation(
    SquareSpec(patch_size=16, channels=3, resample="bicubic", image_size=64, exif_transpose=False)
)


def processed(image: np.ndarray[Any, Any], side: int) -> Tensor:
    """Pixels as FG-CLIP's README makes them: resized to a square, which the processor then leaves as it is."""
    processor = processing.CLIPImageProcessorPil(size=side, crop_size=side)
    with released_pillow():
        return processor(Image.fromarray(image).resize((side, side)), return_tensors="pt")["pixel_values"]


def clip(weights: dict[str, Tensor], length: int) -> Any:
    """Transformers' model for texts of ``length`` tokens."""
    text = TEXT | {"max_position_embeddings": length}
    model = transformers.CLIPModel(transformers.CLIPConfig(**CONFIG | {"text_config": text})).eval()
    assert set(weights) - set(model.state_dict()) == OWN
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name not in OWN}, strict=True)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A random FG-CLIP of sizes other than the goldens', loud enough that vectors differ."""
    module = reference.Fgclip1(Config.from_json(CONFIG))
    initialise(module, seed=7)
    with torch.no_grad():
        for number, name in enumerate(("logit_scale", "logit_scale_finegraind", "logit_scale_hardneg"), 3):
            getattr(module, name).fill_(number)
    return module.state_dict()


@pytest.fixture(scope="module")
def peer(weights: dict[str, Tensor]) -> Any:
    """CLIP with FG-CLIP's weights."""
    return clip(weights, 77)


@pytest.fixture(scope="module")
def ours(weights: dict[str, Tensor], peer: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """FG-CLIP with the same weights, exported from a folder with transformers' own config and processor."""
    checkpoint = tmp_path_factory.mktemp("peer") / "fgclip1"
    peer.config.architectures = ["FGCLIPModel"]
    peer.config.save_pretrained(checkpoint)
    save_file(weights, checkpoint / "model.safetensors")
    processing.CLIPImageProcessorPil(size=SIDE, crop_size=SIDE).save_pretrained(checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDENS / "fgclip1" / "checkpoint" / name, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgclip_rt.export.bundle.probe.IMAGE_SIZES", ((150, 200), (1, 1)))
        bundle = export.export(export.checkpoint_source(str(checkpoint)), checkpoint.with_name("bundle"))
    return fgclip_rt.load(bundle.path, device="cpu")


def images() -> list[np.ndarray[Any, Any]]:
    return [picture(*size, seed) for seed, size in enumerate(SIZES)]


def input_ids(ours: Model, walk_type: str) -> Tensor:
    """Texts of all lengths, padded with the token that they end with."""
    ids = torch.tensor(ours.tokenizer(TEXTS, walk_type).input_ids).long()
    assert (ids[:, -1] == END).all()
    assert 2 in (ends := (ids == END).int().argmax(dim=1) + 1)
    assert ids.shape[1] in ends
    return ids


def test_image_features(ours: Model, peer: Any) -> None:
    batch = torch.cat([processed(image, SIDE) for image in images()])
    expected = peer.get_image_features(batch).pooler_output.numpy()
    assert np.ptp(expected, axis=0).max() > 0.5, "the images must differ for this to mean anything"
    assert_parity(ours.embed_images(images(), normalize=False), expected)


def test_dense_features_are_those_of_the_last_layer_without_attention(ours: Model, peer: Any) -> None:
    vision = peer.vision_model
    last = vision.encoder.layers[-1]
    for image, dense in zip(images(), ours.dense_features(images(), normalize=False), strict=True):
        _, x, _ = vision(processed(image, SIDE), output_hidden_states=True).hidden_states
        x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
        x = x + last.mlp(last.layer_norm2(x))
        expected = peer.visual_projection(vision.post_layernorm(x))[0, 1:]
        assert np.ptp(expected.numpy(), axis=0).max() > 0.5, "the patches must differ for this to mean anything"
        assert_parity(dense, expected.view(5, 5, -1).numpy())


def test_short_text_features(ours: Model, peer: Any) -> None:
    expected = peer.get_text_features(input_ids(ours, "short")).pooler_output.numpy()
    assert np.ptp(expected, axis=0).max() > 0.5, "the texts must differ for this to mean anything"
    for walk_type in ("short", "box"):
        assert_parity(ours.embed_texts(TEXTS, walk_type, normalize=False), expected)


def test_long_text_is_that_of_a_longer_clip(ours: Model, weights: dict[str, Tensor]) -> None:
    embeddings = "text_model.embeddings.position_embedding"
    own, stretched = weights[f"{embeddings}_ori.weight"], weights[f"{embeddings}_res.weight"]
    longer = {
        f"{embeddings}.weight": torch.cat([own[:KEPT], stretched[KEPT:]]),
        "text_projection.weight": weights["text_filip_projection.weight"],
    }
    expected = clip(weights | longer, 248).get_text_features(input_ids(ours, "long")).pooler_output.numpy()
    assert np.ptp(expected, axis=0).max() > 0.5, "the texts must differ for this to mean anything"
    assert_parity(ours.embed_texts(TEXTS, "long", normalize=False), expected)


def test_logits(ours: Model, peer: Any) -> None:
    pixels = torch.cat([processed(image, SIDE) for image in images()])
    expected = peer(input_ids=input_ids(ours, "short"), pixel_values=pixels)
    logits = ours.logits(ours.embed_images(images()), ours.embed_texts(TEXTS))
    assert_parity(logits, expected.logits_per_image.numpy())
    probabilities = ours.probabilities(ours.embed_images(images()), ours.embed_texts(TEXTS))
    np.testing.assert_allclose(probabilities, expected.logits_per_image.softmax(dim=1), rtol=0, atol=1e-4)


def test_tokens_are_the_tokenizers(ours: Model) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDENS / "fgclip1" / "checkpoint")
    for walk_type, length in (("short", 77), ("long", 248)):
        expected = tokenizer(TEXTS, max_length=length, padding="max_length", truncation=True)
        np.testing.assert_array_equal(ours.tokenizer(TEXTS, walk_type).input_ids, expected["input_ids"])


def test_defaults_are_transformers() -> None:
    expected, defaults = transformers.CLIPConfig(), Config()
    assert defaults.projection_dim == expected.projection_dim
    for tower in ("vision_config", "text_config"):
        for name, value in vars(getattr(defaults, tower)).items():
            assert value == getattr(getattr(expected, tower), name), f"{tower}.{name}"


@settings(max_examples=40)
@given(height=st.integers(1, 400), width=st.integers(1, 400))
def test_pixels_are_the_processors(height: int, width: int) -> None:
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    patches, [expected] = PREPARATION(Image.fromarray(image)), processed(image, 64)
    assert patches.grid == (4, 4)
    assert patches.image_size == (height, width)
    pixels = patches.pixels.reshape(4, 4, 16, 16, 3).transpose(4, 0, 2, 1, 3).reshape(3, 64, 64)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (processing.OPENAI_CLIP_MEAN, processing.OPENAI_CLIP_STD))
    np.testing.assert_allclose((pixels / 255 - mean) / std, expected.numpy(), rtol=0, atol=1e-6)
