"""A SigLIP 2 checkpoint against transformers, live: towers, pooling, short text and preparation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import fgclip_rt
from fgclip_rt import export
from fgclip_rt.errors import ArgumentError
from fgclip_rt.evaluation.measures import MEASURES
from fgclip_rt.evaluation.scenes import lacking
from fgclip_rt.export import CalibrationInputs
from fgclip_rt.export.checkpoints.locate import locate
from fgclip_rt.export.checkpoints.stand_ins import initialise
from fgclip_rt.export.families import table as families
from fgclip_rt.export.families.siglip2 import reference
from fgclip_rt.export.families.siglip2.config import Config
from fgclip_rt.manifest import NaflexSpec
from fgclip_rt.model import Model
from fgclip_rt.preparation import NaflexPreparation, target_grid
from fgclip_rt.text import Tokenizer
from helpers import GOLDENS, assert_one_sentence, assert_parity, picture, released_pillow

transformers = pytest.importorskip("transformers")
processing = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")

TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION, TEXT = TOWER | {"num_patches": 81}, TOWER | {"vocab_size": 775, "max_position_embeddings": 64}
#: (height, width), one of each bucket and some far from square. No grid is one column wide, because
#: transformers resizes its position table with PyTorch's kernel, which is wrong for it (see ``resize_positions``).
SIZES = [(150, 200), (240, 256), (300, 451), (420, 448), (640, 480), (20, 900), (500, 40), (1, 1)]
TEXTS = ["a photo of a cat", "一只黑猫坐在窗台上", "", "naïve 🦊 café", "long " * 100]

PREPARATION = NaflexPreparation(NaflexSpec(16, 3, "bilinear", (128, 256, 576, 784, 1024), 16_384, False))


def processed(image: np.ndarray[Any, Any], max_num_patches: int) -> dict[str, torch.Tensor]:
    processor = processing.Siglip2ImageProcessorPil(max_num_patches=max_num_patches)
    with released_pillow():
        return dict(processor(Image.fromarray(image), return_tensors="pt"))


@pytest.fixture(scope="module")
def peer() -> Any:
    """A random SigLIP 2 of sizes other than the goldens', loud enough that vectors differ."""
    config = {"vision_config": VISION, "text_config": TEXT}
    module = reference.Siglip2(Config.from_json(config))
    initialise(module, seed=5)
    with torch.no_grad():
        module.logit_scale.fill_(4.7)
        module.logit_bias.fill_(-12)
    peer = transformers.Siglip2Model(transformers.Siglip2Config(**config)).eval()
    peer.load_state_dict(module.state_dict(), strict=True)
    return peer.requires_grad_(False)


@pytest.fixture(scope="module")
def ours(peer: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same model, saved by transformers and exported."""
    checkpoint = tmp_path_factory.mktemp("peer") / "siglip2"
    peer.save_pretrained(checkpoint)
    processing.Siglip2ImageProcessorPil(max_num_patches=256).save_pretrained(checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDENS / "fgclip2" / "checkpoint" / name, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgclip_rt.export.bundle.probe.IMAGE_SIZES", ((150, 200), (1, 1)))
        inputs = CalibrationInputs(
            [Image.fromarray(picture(40, 50 + i, i)) for i in range(16)], list("abcdefghijklmnop")
        )
        source = export.checkpoint_source(str(checkpoint))
        bundle = export.export(source, checkpoint.with_name("bundle"), ("fp32", "int8"), inputs=inputs)
    return fgclip_rt.load(bundle.path, device="cpu")


def test_image_features(ours: Model, peer: Any) -> None:
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    buckets = [PREPARATION.bucket(width, height) for height, width in SIZES]
    assert set(buckets) == set(PREPARATION.spec.buckets)
    for image, bucket in zip(images, buckets, strict=True):
        expected = peer.get_image_features(**processed(image, bucket)).pooler_output
        assert_parity(ours.embed_images(image, max_num_patches=bucket, normalize=False), expected.numpy())


def test_image_features_of_one_batch(ours: Model, peer: Any) -> None:
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    inputs = [processed(image, 256) for image in images]
    batch = {name: torch.cat([entry[name] for entry in inputs]) for name in inputs[0]}
    expected = peer.get_image_features(**batch).pooler_output.numpy()
    assert np.ptp(expected, axis=0).max() > 0.5, "the images must differ for this to mean anything"
    assert_parity(ours.embed_images(images, normalize=False), expected)


def test_files_are_turned_and_pillow_images_are_not(ours: Model, peer: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.png"
    Image.fromarray(picture(150, 260)).save(path, exif=exif)
    processor = processing.Siglip2ImageProcessorPil(max_num_patches=256)
    vectors = []
    for theirs, source in ((str(path), path), (Image.open(path).convert("RGB"), Image.open(path))):
        with released_pillow():
            inputs = dict(processor(processor.fetch_images(theirs), return_tensors="pt"))
        vectors.append(ours.embed_images(source, normalize=False))
        assert_parity(vectors[-1], peer.get_image_features(**inputs).pooler_output.numpy())
    assert np.abs(vectors[0] - vectors[1]).max() > 0.1, "the turn must matter for this to mean anything"


def test_short_text_features(ours: Model, peer: Any) -> None:
    ids = torch.tensor(ours.tokenizer(TEXTS, "short").input_ids).long()
    expected = peer.get_text_features(input_ids=ids).pooler_output.numpy()
    assert np.ptp(expected, axis=0).max() > 0.5, "the texts must differ for this to mean anything"
    assert_parity(ours.embed_texts(TEXTS, "short", normalize=False), expected)


@pytest.fixture(scope="module")
def peer_tokenizer(ours: Model) -> Any:
    """The tokenizer that transformers loads from the same checkpoint."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(ours.bundle.path.with_name("siglip2"))
    assert type(tokenizer).__name__ == "Siglip2Tokenizer"
    return tokenizer


def assert_same_tokens(ours: Model, peer_tokenizer: Any, texts: list[str]) -> None:
    expected = peer_tokenizer(texts, max_length=64, padding="max_length", truncation=True).input_ids
    np.testing.assert_array_equal(ours.tokenizer(texts).input_ids, expected)


#: Special tokens as they are spelt and otherwise, and characters whose lower case depends on their neighbours or is
#: longer than they are.
PIECES = ["<eos>", "<EOS>", "<pad>", "<Pad>", "<bos>", "<unk>", "<mask>", "<0x41>", "<0X41>", "<", "eos>", "ΟΔΟΣ", "Σ"]
PIECES += ["İ", "ẞ", "ŉ", "ﬁ", "Ⅷ", "Dž", "ÉE\u0301", "Cat", "一只", "🦊", " ", "  ", "▁", "\n", "\x00"]


@pytest.mark.parametrize(
    "text", ["A <EOS> star", "a <Pad> b", "a <eos> b", "ΟΔΟΣ", "İstanbul", "A<pad>B <BOS>", *TEXTS]
)
def test_texts_are_lower_cased_after_special_tokens_are_split_off(ours: Model, peer_tokenizer: Any, text: str) -> None:
    assert_same_tokens(ours, peer_tokenizer, [text])


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=4), max_size=12))
def test_token_ids_are_the_peers(ours: Model, peer_tokenizer: Any, pieces: list[str]) -> None:
    assert_same_tokens(ours, peer_tokenizer, ["".join(pieces)])


def test_the_tokenizer_lower_cases_and_not_the_runtime(ours: Model) -> None:
    assert not ours.manifest.text.lowercase
    assert ours.tokenizer.prepare("A <EOS> star") == "A <EOS> star"
    spelt = ("a <eos>", "a <Pad>", "<unk> <eos>")
    assert [ours.tokenizer.encode(text).special for text in spelt] == ["<eos>", None, "<unk>"]


def test_what_transformers_saves_loads_with_the_same_tokens(ours: Model, peer_tokenizer: Any, tmp_path: Path) -> None:
    """Its own file of the whole processor, and a tokenizer that lower-cases already."""
    checkpoint = tmp_path / "saved"
    shutil.copytree(ours.bundle.path.with_name("siglip2"), checkpoint)
    (checkpoint / "preprocessor_config.json").unlink()
    images = processing.Siglip2ImageProcessorPil(max_num_patches=576)
    transformers.Siglip2Processor(images, peer_tokenizer).save_pretrained(checkpoint)
    assert not (checkpoint / "preprocessor_config.json").exists()
    found = locate(str(checkpoint))
    model = families.load(found)[1]
    assert found.notes == []
    assert isinstance(model.image_spec, NaflexSpec)
    assert model.image_spec.buckets == (576,)
    tokenizer = Tokenizer(model.tokenizer_json, model.text_spec)
    texts = ["A <EOS> star", "ΟΔΟΣ", *TEXTS]
    np.testing.assert_array_equal(tokenizer(texts).input_ids, ours.tokenizer(texts).input_ids)


@pytest.mark.parametrize("flat", [{"max_num_patches": 784}, {}])
def test_nested_settings_of_images_win_as_here(ours: Model, tmp_path: Path, flat: dict[str, Any]) -> None:
    checkpoint = tmp_path / "both"
    shutil.copytree(ours.bundle.path.with_name("siglip2"), checkpoint)
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(settings | flat))
    nested = {"image_processor": settings | {"max_num_patches": 576}}
    (checkpoint / "processor_config.json").write_text(json.dumps(nested))
    expected = processing.Siglip2ImageProcessorPil.from_pretrained(checkpoint).max_num_patches
    assert families.load(locate(str(checkpoint)))[1].image_spec.buckets == (expected,) == (576,)


@settings(max_examples=60)
@given(height=st.integers(1, 500), width=st.integers(1, 500), limit=st.sampled_from([1, 7, 128, 256, 576]))
def test_patches_are_the_processors(height: int, width: int, limit: int) -> None:
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    patches, expected = PREPARATION(Image.fromarray(image), limit), processed(image, limit)
    assert list(patches.grid) == expected["spatial_shapes"][0].tolist()
    count = int(expected["pixel_attention_mask"].sum())
    values = expected["pixel_values"][0, :count].numpy()
    np.testing.assert_allclose((patches.pixels / 255 - 0.5) / 0.5, values, rtol=0, atol=1e-6)


@settings(max_examples=500)
@given(height=st.integers(1, 20_000), width=st.integers(1, 20_000), limit=st.integers(1, 16_384))
def test_target_grid_is_the_processors(height: int, width: int, limit: int) -> None:
    expected = processing.get_image_size_for_max_num_patches(height, width, 16, limit)
    assert tuple(16 * side for side in target_grid(height, width, 16, limit)) == expected


def test_lower_precisions_of_what_it_has(ours: Model) -> None:
    rows = ours.manifest.parity.measured["int8"]
    assert {row.graph for row in rows} == {"preparation", "vision", "tokens", "text", "logits"}
    assert any("held out" in row.case for row in rows)
    assert {measure for measures in lacking(ours).values() for measure in measures} == set(MEASURES) - {
        "short text to image",
        "image to short text",
        "true before false caption",
    }


def test_what_it_lacks_is_said(ours: Model) -> None:
    assert list(ours.manifest.text.walk_types) == ["short"]
    assert ours.manifest.box_shares is None
    with pytest.raises(ArgumentError) as error:
        ours.dense_features(picture(30, 40))
    assert_one_sentence(error.value, "siglip2 has no dense features", "neither maps nor regions")
    with pytest.raises(ArgumentError) as error:
        ours.embed_regions(picture(30, 40), [[0, 0, 9, 9]])
    assert_one_sentence(error.value, "siglip2 has no features of regions")
    with pytest.raises(ArgumentError) as error:
        ours.embed_texts("a cat", "long")
    assert_one_sentence(error.value, "no walk type 'long'", "short")
