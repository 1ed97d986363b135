"""FG-CLIP's checkpoints load as they were saved, and messages name the fault."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgclip_rt.errors import CheckpointError
from fgclip_rt.export.checkpoints.locate import locate
from fgclip_rt.export.checkpoints.stand_ins import clip_byte_tokenizer
from fgclip_rt.export.families import table as families
from fgclip_rt.export.families.base import ReferenceModel
from fgclip_rt.export.families.fgclip1.config import Config, PreprocessorConfig, VisionConfig
from fgclip_rt.export.families.square import SquareModel
from fgclip_rt.export.families.table import FAMILIES
from fgclip_rt.preparation import Patches
from fgclip_rt.text import Tokenizer
from helpers import GOLDENS, Json, assert_one_sentence, picture

GOLDEN = GOLDENS / "fgclip1" / "checkpoint"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
PROJECTION, POSITIONS = "text_filip_projection.weight", "text_model.embeddings.position_embedding_res.weight"

Tensors = dict[str, Tensor]
Edit = Callable[[Json], object]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for PyTorch, because models of this size spend their time on waiting for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy that tests may damage. Its tokenizer is small, and so quick to read, but has CLIP's padding token."""
    copied = shutil.copytree(GOLDEN, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("tokenizer.json"))
    (copied / "tokenizer.json").write_text(clip_byte_tokenizer(), encoding="utf-8")
    return Path(copied)


def load(path: Path) -> ReferenceModel:
    return families.load(locate(str(path)))[1]


def refused(path: Path, *parts: str) -> str:
    with pytest.raises(CheckpointError) as info:
        load(path)
    assert_one_sentence(info.value, *parts)
    return str(info.value)


def edit_json(path: Path, edit: Edit) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def edit_weights(checkpoint: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    edit(tensors)
    save_file(tensors, checkpoint / WEIGHTS)


def features(model: ReferenceModel) -> list[np.ndarray[Any, Any]]:
    """Outputs of every part of a model: image, dense, region and text features, and logits."""
    pixels = picture(1, 16 * 256, seed=3).reshape(16, 768)
    boxes = np.array([[3, 3, 40, 30]], np.float32)
    image = model.image(Patches(pixels, (4, 4), (48, 64), 16), boxes, np.zeros((0, 4, 4), np.float32))
    assert image.dense is not None
    assert image.regions is not None
    tokenizer = Tokenizer(model.tokenizer_json, model.text_spec)
    texts = [model.text(tokenizer(["a cat", ""], kind), kind) for kind in model.text_spec.walk_types]
    return [image.features, image.dense, image.regions, *texts, model.logits(image.features[None], texts[0])]


def assert_equal_models(path: Path, other: Path) -> None:
    """Equal but for the rounding of sums, whose order depends on where PyTorch finds the tensors in memory."""
    for a, b in zip(features(load(path)), features(load(other)), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


# Checkpoints that load


def test_the_golden_checkpoint_loads() -> None:
    model = load(GOLDEN)
    kinds = {name: (kind.index, kind.length) for name, kind in model.text_spec.walk_types.items()}
    assert kinds == {"short": (0, 77), "box": (0, 77), "long": (1, 248)}
    assert (model.embedding_size, model.image_spec.max_num_patches, model.text_spec.pad_token_id) == (48, 16, 49407)
    assert model.score.activation == "softmax"
    assert model.score.logit_scale == load_file(GOLDEN / WEIGHTS)["logit_scale"].item()
    assert all(parameter.dtype == torch.float32 for parameter in model.module.parameters())


def test_half_precision_weights_are_computed_in_float32(checkpoint: Path, tmp_path: Path) -> None:
    rounded = Path(shutil.copytree(checkpoint, tmp_path / "rounded"))
    edit_weights(checkpoint, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    edit_weights(rounded, lambda tensors: tensors.update({k: v.bfloat16().float() for k, v in tensors.items()}))
    assert_equal_models(checkpoint, rounded)


def test_shards_give_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(checkpoint, tmp_path / "whole"))
    tensors = load_file(checkpoint / WEIGHTS)
    (checkpoint / WEIGHTS).unlink()
    shards = {f"model-0000{i + 1}-of-00002.safetensors": sorted(tensors)[i::2] for i in range(2)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, checkpoint / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_equal_models(checkpoint, whole)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    refused(checkpoint, "model-00002-of-00002.safetensors")


def test_files_that_nothing_reads_may_be_missing(checkpoint: Path) -> None:
    (checkpoint / "special_tokens_map.json").unlink()
    assert load(checkpoint).embedding_size == 48


def test_a_mean_and_deviation_of_their_own_are_used(checkpoint: Path) -> None:
    before = features(load(checkpoint))[0]
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    edit_json(checkpoint / "preprocessor_config.json", lambda document: document.update(values))
    assert np.abs(features(load(checkpoint))[0] - before).max() > 1e-3


def test_a_scalar_may_be_a_list_of_one_number(checkpoint: Path, tmp_path: Path) -> None:
    scalars = Path(shutil.copytree(checkpoint, tmp_path / "scalars"))
    edit_weights(scalars, lambda tensors: tensors.update(logit_scale=tensors["logit_scale"].reshape(1)))
    assert_equal_models(scalars, checkpoint)


# config.json


@pytest.fixture(scope="module")
def golden_config() -> Json:
    document: Json = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize(
    ("section", "values", "parts"),
    [
        ("vision_config", {"num_attention_heads": 3}, ["vision_config.hidden_size 64", "num_attention_heads 3"]),
        ("text_config", {"num_attention_heads": 5}, ["text_config.hidden_size 32", "num_attention_heads 5"]),
        ("vision_config", {"hidden_act": "relu"}, ["vision_config.hidden_act is 'relu'", "quick_gelu"]),
        ("text_config", {"hidden_act": "silu"}, ["text_config.hidden_act is 'silu'", "quick_gelu"]),
        ("text_config", {"hidden_act": None}, ["text_config.hidden_act", "`str`"]),
        ("vision_config", {"num_channels": 1}, ["vision_config.num_channels is 1", "RGB"]),
        ("vision_config", {"image_size": 65}, ["vision_config.image_size 65", "patch_size 16"]),
        ("vision_config", {"patch_size": 128}, ["vision_config.image_size 64", "patch_size 128"]),
        ("vision_config", {"patch_size": 0}, ["vision_config.patch_size", ">= 1"]),
        ("vision_config", {"image_size": [64, 64]}, ["vision_config.image_size", "`int`", "`array`"]),
        ("vision_config", {"hidden_size": "64"}, ["vision_config.hidden_size", "`int`", "`str`"]),
        ("vision_config", {"num_hidden_layers": 0}, ["vision_config.num_hidden_layers", ">= 1"]),
        ("text_config", {"num_hidden_layers": 1.5}, ["text_config.num_hidden_layers", "`int`"]),
        ("text_config", {"vocab_size": True}, ["text_config.vocab_size", "`int`", "`bool`"]),
        ("text_config", {"layer_norm_eps": 0}, ["text_config.layer_norm_eps", "> 0.0"]),
        ("text_config", {"layer_norm_eps": float("nan")}, ["text_config.layer_norm_eps", "> 0.0"]),
        ("text_config", {"max_position_embeddings": 20}, ["text_config.max_position_embeddings", ">= 21"]),
        ("vision_config", {"hidden_size": 2**64}, ["vision_config.hidden_size"]),
        ("vision_config", {"image_size": 2**40}, ["vision_config.image_size", "<= 16384"]),
        ("text_config", {"vocab_size": 2**31}, ["text_config.vocab_size", "<= 1048576"]),
        ("text_config", {"layer_norm_eps": float("inf")}, ["text_config.layer_norm_eps"]),
        (None, {"projection_dim": 0}, ["projection_dim", ">= 1"]),
        (None, {"projection_dim": None}, ["projection_dim", "`int`", "`null`"]),
        (None, {"vision_config": 7}, ["vision_config", "`object`"]),
        (None, {"text_config": None}, ["text_config", "`object`"]),
    ],
)
def test_an_option_that_no_model_can_be_built_with_is_named(
    golden_config: Json, section: str | None, values: Json, parts: list[str]
) -> None:
    document = copy.deepcopy(golden_config)
    (document if section is None else document[section]).update(values)
    with pytest.raises(CheckpointError) as info:
        Config.from_json(document)
    assert_one_sentence(info.value, "config.json", *parts)


@pytest.mark.parametrize(("positions", "long"), [(77, 248), (21, 24), (64, 196)])
def test_long_text_is_as_long_as_longclips(golden_config: Json, positions: int, long: int) -> None:
    document = golden_config | {"text_config": {"max_position_embeddings": positions}}
    assert Config.from_json(document).text_config.longtext_len == long


def test_options_that_are_left_out_are_those_of_clip(golden_config: Json) -> None:
    config = Config.from_json({})
    assert config.vision_config == VisionConfig(768, 3072, 12, 12, 1e-5, "quick_gelu", 3, 224, 32)
    assert (config.projection_dim, config.text_config.vocab_size, config.text_config.longtext_len) == (512, 49408, 248)
    assert Config.from_json(golden_config | {"attention_dropout": 0.5, "dtype": "float64"}) == Config.from_json(
        golden_config
    )


@pytest.mark.parametrize(
    ("section", "values", "part"),
    [
        ("vision_config", {"num_hidden_layers": 4}, "16 missing (vision_model.encoder.layers.3."),
        ("text_config", {"num_hidden_layers": 2}, "16 unexpected (text_model.encoder.layers.2."),
        ("vision_config", {"image_size": 80}, "vision_model.embeddings.position_embedding.weight is [17, 64]"),
        ("text_config", {"max_position_embeddings": 78}, "3 misshaped (text_model.embeddings.position_embedding."),
        (None, {"projection_dim": 32}, "text_filip_projection.weight is [48, 32] instead of [32, 32]"),
    ],
)
def test_a_config_of_other_sizes_does_not_fit_the_tensors(
    checkpoint: Path, section: str | None, values: Json, part: str
) -> None:
    def edit(document: Json) -> None:
        (document if section is None else document[section]).update(values)

    edit_json(checkpoint / "config.json", edit)
    if "image_size" in values:
        sizes = {"size": values["image_size"], "crop_size": values["image_size"]}
        edit_json(checkpoint / "preprocessor_config.json", lambda document: document.update(sizes))
    refused(checkpoint, str(checkpoint), "config.json", part)


@pytest.mark.parametrize(
    "architectures",
    [
        ["CLIPModel"],
        "CLIPModel",
        ["CLIPTextModel", "CLIPVisionModel"],
        [],
        None,
        {},
        7,
    ],
)
def test_other_architectures_list_the_supported_families(checkpoint: Path, architectures: Any) -> None:
    """CLIP's own checkpoints have the same ``model_type``, so ``architectures`` decides."""
    edit_json(checkpoint / "config.json", lambda document: document.update(architectures=architectures))
    supported = [name for name, spec in FAMILIES.items() if spec.config_file == "config.json"]
    parts = [repr(architectures), "'clip'", f"supported: {', '.join(supported)}."]
    refused(checkpoint, str(checkpoint / "config.json"), *parts)


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_a_depth_that_the_tensors_do_not_have_is_refused_at_once(checkpoint: Path, section: str) -> None:
    edit_json(checkpoint / "config.json", lambda document: document[section].update(num_hidden_layers=2**20))
    refused(checkpoint, str(checkpoint), "transformer blocks", "1,048,5")


# preprocessor_config.json

VISION = VisionConfig(image_size=64)


@pytest.mark.parametrize(
    "size",
    [64, {"shortest_edge": 64}, {"height": 64, "width": 64}, {"shortest_edge": 64, "longest_edge": 64}],
)
def test_the_models_own_size_is_found_in_every_notation(size: int | dict[str, int]) -> None:
    document: Json = {"size": size, "crop_size": size, "do_center_crop": True, "resample": 3, "colour": "red"}
    assert PreprocessorConfig.from_json(document, VISION).crop_size == size


@pytest.mark.parametrize("name", ["size", "crop_size"])
@pytest.mark.parametrize(
    "size", [224, {"shortest_edge": 224}, {"height": 64, "width": 72}, {"height": 64, "width": 0}, {}, 0, -64]
)
def test_another_size_than_the_models_is_refused(name: str, size: int | dict[str, int]) -> None:
    with pytest.raises(CheckpointError) as info:
        PreprocessorConfig.from_json({"size": 64, "crop_size": 64} | {name: size}, VISION)
    assert_one_sentence(info.value, "preprocessor_config.json", f"{name} is {size!r}", "64 pixels")


@pytest.mark.parametrize("name", ["size", "crop_size"])
def test_a_size_that_is_left_out_is_clips(name: str) -> None:
    document = {"size": 64, "crop_size": 64}
    del document[name]
    with pytest.raises(CheckpointError) as info:
        PreprocessorConfig.from_json(document, VISION)
    assert_one_sentence(info.value, "preprocessor_config.json", f"{name} is 224", "64 pixels")
    assert PreprocessorConfig.from_json({}, VisionConfig()) == PreprocessorConfig()


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"do_normalize": False}, ["do_normalize is False"]),
        ({"do_rescale": False}, ["do_rescale is False"]),
        ({"rescale_factor": 1 / 127.5}, ["rescale_factor is", "prepared with 1/255"]),
        ({"rescale_factor": 1}, ["rescale_factor is", "prepared with 1/255"]),
        ({"rescale_factor": float("nan")}, ["rescale_factor is", "prepared with 1/255"]),
        ({"rescale_factor": "1/255"}, ["rescale_factor", "`float`", "`str`"]),
        ({"do_normalize": None}, ["do_normalize", "`bool`", "`null`"]),
        ({"image_mean": [0.5] * 4}, ["image_mean has 4 numbers", "3 channels"]),
        ({"image_std": [0.5] * 2}, ["image_std has 2 numbers", "3 channels"]),
        ({"image_mean": []}, ["image_mean has 0 numbers", "3 channels"]),
        ({"image_mean": 0.5}, ["image_mean", "`array`", "`float`"]),
        ({"image_std": [0.5, 0.5, 0]}, ["image_std", "> 0.0"]),
        ({"image_std": [0.5, 0.5, float("nan")]}, ["image_std", "> 0.0"]),
        ({"image_std": ["a", "b", "c"]}, ["image_std", "`float`", "`str`"]),
        ({"size": True}, ["size", "`bool`"]),
        ({"size": 64.0}, ["size", "`float`"]),
        ({"size": [64, 64]}, ["size", "`array`"]),
        ({"size": None}, ["size", "`null`"]),
        ({"crop_size": {"height": "64"}}, ["crop_size", "`int`", "`str`"]),
    ],
)
def test_preprocessing_that_a_bundle_cannot_express_is_refused(values: Json, parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as info:
        PreprocessorConfig.from_json({"size": 64, "crop_size": 64} | values, VISION)
    assert_one_sentence(info.value, "preprocessor_config.json", *parts)


@pytest.mark.parametrize(
    "values",
    [{"do_resize": False, "size": 224}, {"do_center_crop": False, "crop_size": 224}, {"resample": 2}],
)
def test_steps_that_do_nothing_to_a_square_are_noted(checkpoint: Path, values: Json) -> None:
    """Images are made square before, so resizing and cropping change nothing, whether they are on or off."""
    edit_json(checkpoint / "preprocessor_config.json", lambda document: document.update(values))
    found = locate(str(checkpoint))
    families.load(found)
    name = next(iter(values))
    assert [f"{name} {values[name]!r}" in note for note in found.notes] == [True]


def test_nested_settings_of_images_are_read(checkpoint: Path) -> None:
    """So transformers 5 saves a CLIPProcessor."""
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    (checkpoint / "preprocessor_config.json").unlink()
    document = {"image_processor": settings | {"image_mean": [0.1, 0.2, 0.3]}, "processor_class": "CLIPProcessor"}
    (checkpoint / "processor_config.json").write_text(json.dumps(document))
    found = locate(str(checkpoint))
    model = families.load(found)[1]
    assert isinstance(model, SquareModel)
    assert tuple(model.mean) == (0.1, 0.2, 0.3)
    assert found.notes == []


def test_the_golden_checkpoint_needs_no_note() -> None:
    found = locate(str(GOLDEN))
    families.load(found)
    assert found.notes == []


def test_a_checkpoint_with_other_preprocessing_is_refused(checkpoint: Path) -> None:
    edit_json(checkpoint / "preprocessor_config.json", lambda document: document.update(crop_size=224))
    refused(checkpoint, "preprocessor_config.json", "crop_size is 224")


# Tokenizers


def test_a_missing_pad_token_is_named(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.pop("pad_token"))
    refused(checkpoint, str(checkpoint / "tokenizer_config.json"), "pad_token")


@pytest.mark.parametrize("pad_token", ["<pad>", None, 49407, {"content": "<pad>"}, {}])
def test_a_pad_token_outside_the_vocabulary_is_refused(checkpoint: Path, pad_token: Any) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.update(pad_token=pad_token))
    refused(checkpoint, str(checkpoint / "tokenizer_config.json"), "pad_token")


@pytest.mark.parametrize(("pad_token", "number"), [("!", 0), ({"content": "<|startoftext|>"}, 49406)])
def test_the_pad_token_is_the_tokenizers_own(checkpoint: Path, pad_token: Any, number: int) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.update(pad_token=pad_token))
    assert load(checkpoint).text_spec.pad_token_id == number


def test_a_padding_token_past_the_models_is_refused(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda document: document["text_config"].update(vocab_size=49407))
    refused(checkpoint, str(checkpoint / "tokenizer.json"), "49407")


def with_another_end(document: Json) -> None:
    """The tokenizer of another model, which ends texts with a token that this one does not look for."""
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] != 49407]
    document["model"]["vocab"]["<|endoftext|>"] = 300
    for token in document["post_processor"]["special_tokens"].values():
        token["ids"] = [300 if number == 49407 else number for number in token["ids"]]


@pytest.mark.parametrize("token", ["<|startoftext|>", "<|endoftext|>"])
def test_a_tokenizer_without_start_or_end_is_refused(checkpoint: Path, token: str) -> None:
    def edit(document: Json) -> None:
        pieces = document["post_processor"]["single"]
        document["post_processor"]["single"] = [
            piece for piece in pieces if piece.get("SpecialToken", {}).get("id") != token
        ]

    edit_json(checkpoint / "tokenizer.json", edit)
    refused(checkpoint, "tokenizer.json", "[49406] and [49407]", "--tokenizer")


def test_an_added_token_past_the_table_is_left_out_and_noted(checkpoint: Path) -> None:
    token = {"id": 49408, "content": "<region>", "special": True, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    shutil.copy(GOLDEN / "tokenizer.json", checkpoint)
    plain = load(checkpoint).tokenizer_json
    edit_json(checkpoint / "tokenizer.json", lambda document: document["added_tokens"].append(token))
    found = locate(str(checkpoint))
    model = families.load(found)[1]
    assert json.loads(model.tokenizer_json) == json.loads(plain)
    assert ["'<region>' 49408" in note for note in found.notes] == [True]


def test_a_tokenizer_that_does_not_end_texts_as_the_model_needs_is_refused(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer.json", with_another_end)
    refused(checkpoint, "tokenizer.json")


# Files and tensors


@pytest.mark.parametrize("name", [WEIGHTS, *FILES])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    refused(checkpoint, str(checkpoint), name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_json_file_is_named(checkpoint: Path, name: str, text: str) -> None:
    (checkpoint / name).write_text(text)
    refused(checkpoint, str(checkpoint / name))


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_a_truncated_weight_file_is_refused(checkpoint: Path, size: int) -> None:
    (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes()[:size])
    refused(checkpoint, str(checkpoint / WEIGHTS))


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda tensors: tensors.pop(PROJECTION), f"1 missing ({PROJECTION})"),
        (lambda tensors: tensors.update({"logit_bias": torch.zeros(1)}), "1 unexpected (logit_bias)"),
        (lambda tensors: tensors.update({"logit_scale": torch.zeros(2)}), "logit_scale is [2] instead of []"),
        (lambda tensors: tensors.update({"logit_scale": torch.zeros(1, 1)}), "logit_scale is [1, 1] instead of []"),
        (lambda tensors: tensors.update({POSITIONS: torch.zeros(77, 32)}), f"{POSITIONS} is [77, 32] instead of [248"),
        (lambda tensors: tensors.update({PROJECTION: torch.zeros(48, 32).int()}), f"{PROJECTION} is torch.int32"),
        (lambda tensors: tensors.update({PROJECTION: torch.full((48, 32), torch.inf)}), f"1 not finite ({PROJECTION})"),
    ],
)
def test_tensors_that_do_not_fit_are_named(checkpoint: Path, edit: Callable[[Tensors], object], part: str) -> None:
    edit_weights(checkpoint, edit)
    refused(checkpoint, str(checkpoint), "config.json", part)


def test_weights_of_plain_clip_miss_what_fgclip_adds(checkpoint: Path) -> None:
    def edit(tensors: Tensors) -> None:
        for name in (PROJECTION, POSITIONS, POSITIONS.replace("_res", "_ori"), "logit_scale_finegraind"):
            del tensors[name]

    edit_weights(checkpoint, edit)
    refused(checkpoint, "4 missing (", PROJECTION, POSITIONS)
