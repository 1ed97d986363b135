"""Checkpoints load strictly by name, in float32, and messages name the fault."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgclip_rt import export
from fgclip_rt.errors import CheckpointError
from fgclip_rt.export.checkpoints.locate import LocalFiles, locate
from fgclip_rt.export.families import table as families
from fgclip_rt.export.families.base import ReferenceModel
from fgclip_rt.manifest import NaflexSpec
from fgclip_rt.preparation import Patches
from fgclip_rt.text import Tokenizer
from helpers import GOLDENS, Golden, assert_one_sentence, picture

MASKED = GOLDENS / "fgclip2-masked" / "checkpoint"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

Tensors = dict[str, Tensor]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(MASKED, tmp_path / "checkpoint"))


def load(path: Path) -> ReferenceModel:
    return families.load(locate(str(path)))[1]


def refused(path: Path, *parts: str, code: str = "checkpoint_invalid") -> str:
    with pytest.raises(CheckpointError) as info:
        export.checkpoint_source(str(path)).load()
    assert_one_sentence(info.value, *parts, code=code)
    return str(info.value)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def edit_weights(checkpoint: Path, edit: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    save_file(edit(tensors) or tensors, checkpoint / WEIGHTS)


def features(model: ReferenceModel) -> list[np.ndarray[Any, Any]]:
    """Outputs of every part of a model: image, dense, region and text features, and logits."""
    pixels = picture(1, 12 * 256, seed=3).reshape(12, 768)
    boxes = np.array([[3, 3, 40, 30]], np.float32)
    image = model.image(Patches(pixels, (3, 4), (48, 64), 128), boxes, np.zeros((0, 3, 4), np.float32))
    results = [image.features, image.dense, image.regions]
    tokenizer = Tokenizer((MASKED / "tokenizer.json").read_text(encoding="utf-8"), model.text_spec)
    texts = Golden("fgclip2-masked").texts[:3]
    results += [model.text(tokenizer(texts, walk_type), walk_type) for walk_type in model.text_spec.walk_types]
    return [*results, model.logits(results[0][None], results[3])]


def assert_equal_models(path: Path, other: Path) -> None:
    """Equal but for the rounding of sums, whose order depends on where PyTorch finds the tensors in memory."""
    for a, b in zip(features(load(path)), features(load(other)), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: {k: v for k, v in tensors.items() if k != "longtext_head.bias"})
    refused(checkpoint, str(checkpoint), "1 missing (longtext_head.bias)")


def test_an_unexpected_tensor_is_named(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors | {"extra.weight": torch.zeros(3)})
    refused(checkpoint, str(checkpoint), "1 unexpected (extra.weight)")


def test_a_misshaped_tensor_is_named_with_both_shapes(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors | {"boxtext_head.bias": torch.zeros(63)})
    refused(checkpoint, str(checkpoint), "1 misshaped (boxtext_head.bias is [63] instead of [64])")


def test_a_tensor_of_whole_numbers_is_refused(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors | {"boxtext_head.bias": torch.zeros(64, dtype=torch.int8)})
    refused(checkpoint, "boxtext_head.bias is torch.int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(checkpoint: Path, value: float) -> None:
    def edit(tensors: Tensors) -> None:
        tensors["longtext_head.weight"][3] = value

    edit_weights(checkpoint, edit)
    refused(checkpoint, "1 not finite (longtext_head.weight)")


def test_one_message_names_all_that_is_wrong_with_the_tensors(checkpoint: Path) -> None:
    def edit(tensors: Tensors) -> None:
        del tensors["longtext_head.bias"]
        tensors["boxtext_head.bias"] = torch.zeros(63)
        tensors |= {f"extra.{i}": torch.zeros(1) for i in range(8)}

    edit_weights(checkpoint, edit)
    message = refused(checkpoint, "1 missing (longtext_head.bias)", "8 unexpected", "1 misshaped", "and 3 more")
    assert len(re.findall(r"extra\.\d", message)) == 5


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_a_truncated_weight_file_is_refused(checkpoint: Path, size: int) -> None:
    (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes()[:size])
    refused(checkpoint, WEIGHTS, code="checkpoint_damaged")


SCALARS = ("logit_scale_finegraind", "logit_scale_hardneg")


def notes_of(path: Path, **files: Path) -> list[str]:
    """The notes of a checkpoint that loads."""
    found = locate(str(path), files=LocalFiles(**files))
    families.load(found)
    return found.notes


def with_leftovers(tensors: Tensors) -> Tensors:
    """The scalars that FG-CLIP 2's trainer adds, and the numbers of positions that old versions saved."""
    positions = {f"{tower}.embeddings.position_ids": torch.arange(64)[None] for tower in ("text_model", "vision_model")}
    return tensors | {name: torch.tensor(4.6, dtype=torch.bfloat16) for name in SCALARS} | positions


def test_leftovers_of_training_are_passed_over_and_named(checkpoint: Path) -> None:
    edit_weights(checkpoint, with_leftovers)
    assert_equal_models(checkpoint, MASKED)
    (note,) = notes_of(checkpoint)
    assert "4 of the tensors that training leaves" in note
    assert all(name in note for name in (*SCALARS, "text_model.embeddings.position_ids"))


def test_leftovers_do_not_hide_what_is_unknown(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: with_leftovers(tensors) | {"logit_scale_new": torch.tensor(4.6)})
    refused(checkpoint, "tensors 1 unexpected (logit_scale_new)")


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "base_model.model.", "_orig_mod.", "module._orig_mod.", "a.b."]
)
def test_names_under_one_prefix_load(checkpoint: Path, prefix: str) -> None:
    edit_weights(checkpoint, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert_equal_models(checkpoint, MASKED)


def test_a_prefix_that_not_all_names_have_is_not_removed(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors | {"model.longtext_head.bias": tensors["longtext_head.bias"] + 1})
    refused(checkpoint, "1 unexpected (model.longtext_head.bias)")


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scalar_may_be_a_list_of_one_number(checkpoint: Path, shape: tuple[int, ...]) -> None:
    edit_weights(checkpoint, lambda tensors: tensors | {"logit_scale": tensors["logit_scale"].reshape(shape)})
    assert_equal_models(checkpoint, MASKED)
    edit_weights(checkpoint, lambda tensors: tensors | {"logit_bias": torch.zeros(1, 1)})
    refused(checkpoint, "logit_bias is [1, 1] instead of [1]")


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
@pytest.mark.parametrize("layers", [2**20, 10**8, 2**64])
def test_a_depth_that_the_tensors_do_not_have_is_refused_at_once(checkpoint: Path, section: str, layers: int) -> None:
    edit_json(checkpoint / "config.json", lambda document: document[section].update(num_hidden_layers=layers))
    refused(checkpoint, "transformer blocks" if layers == 2**20 else f"{section}.num_hidden_layers")


# Files that a trainer does not save


FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


@pytest.fixture
def trained(checkpoint: Path) -> Path:
    """A folder as FG-CLIP 2's trainer leaves it."""
    for name in FILES:
        (checkpoint / name).unlink()
    return checkpoint


def test_folders_fill_in_what_a_trainer_does_not_save(trained: Path) -> None:
    refused(trained, "preprocessor_config.json", "--processor", code="checkpoint_incomplete")
    found = locate(str(trained), files=LocalFiles(tokenizer=MASKED, processor=MASKED))
    _, model = families.load(found)
    for a, b in zip(features(model), features(load(MASKED)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    assert found.notes == []
    shutil.copy(MASKED / "preprocessor_config.json", trained)
    refused(trained, "tokenizer.json", "--tokenizer", code="checkpoint_incomplete")


def test_files_fill_in_what_a_trainer_does_not_save(trained: Path, tmp_path: Path) -> None:
    """The configuration of a tokenizer lies beside it, or is the checkpoint's own."""
    settings = shutil.copy(MASKED / "preprocessor_config.json", tmp_path / "settings.json")
    assert notes_of(trained, tokenizer=MASKED / "tokenizer.json", processor=Path(settings)) == []
    alone = shutil.copy(MASKED / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"has no tokenizer_config\.json"):
        notes_of(trained, tokenizer=Path(alone), processor=MASKED)
    shutil.copy(MASKED / "tokenizer_config.json", trained)
    assert notes_of(trained, tokenizer=Path(alone), processor=MASKED) == []


def test_a_named_tokenizer_comes_before_the_checkpoints_own(checkpoint: Path) -> None:
    other = GOLDENS / "fgclip2" / "checkpoint"
    notes = notes_of(checkpoint, tokenizer=other)
    assert [f"{other / name} was taken" in note for name, note in zip(FILES[:2], notes, strict=True)] == [True, True]
    _, model = families.load(locate(str(checkpoint), files=LocalFiles(tokenizer=other)))
    assert not model.text_spec.attention_mask
    assert load(checkpoint).text_spec.attention_mask


@pytest.mark.parametrize("option", ["tokenizer", "processor"])
def test_a_missing_folder_is_named(checkpoint: Path, option: str) -> None:
    with pytest.raises(CheckpointError) as info:
        locate(str(checkpoint), files=LocalFiles(**{option: checkpoint / "absent"}))
    assert_one_sentence(info.value, str(checkpoint / "absent"), "no file or folder", code="checkpoint_missing")


# Settings of images


def nest(checkpoint: Path, edit: Callable[[dict[str, Any]], None] = lambda _: None, *, both: bool = False) -> None:
    """Save the settings of images as transformers 5 does, beside the old file or in its place."""
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    edit(settings)
    document = {"image_processor": settings, "processor_class": "Siglip2Processor"}
    (checkpoint / "processor_config.json").write_text(json.dumps(document))
    if not both:
        (checkpoint / "preprocessor_config.json").unlink()


MEAN = {"image_mean": [0.48, 0.46, 0.41]}


def test_nested_settings_of_images_are_read(checkpoint: Path, tmp_path: Path) -> None:
    flat = Path(shutil.copytree(checkpoint, tmp_path / "flat"))
    edit_json(flat / "preprocessor_config.json", lambda document: document.update(MEAN))
    nest(checkpoint, lambda settings: settings.update(MEAN))
    assert_equal_models(checkpoint, flat)
    assert notes_of(checkpoint) == []


def test_nested_settings_win_as_in_transformers_and_it_is_noted(checkpoint: Path, tmp_path: Path) -> None:
    nested = Path(shutil.copytree(checkpoint, tmp_path / "nested"))
    nest(nested, lambda settings: settings.update(MEAN))
    nest(checkpoint, lambda settings: settings.update(MEAN), both=True)
    assert_equal_models(checkpoint, nested)
    (note,) = notes_of(checkpoint)
    assert "processor_config.json and preprocessor_config.json" in note
    assert "differ in image_mean; the former was taken" in note


def test_other_settings_of_a_processor_are_named(checkpoint: Path) -> None:
    nest(checkpoint)
    edit_json(checkpoint / "processor_config.json", lambda document: document.update(images_kwargs={}, auto_map={}))
    (note,) = notes_of(checkpoint)
    assert "has images_kwargs beside image_processor" in note


def test_equal_settings_in_both_files_need_no_note(checkpoint: Path) -> None:
    nest(checkpoint, both=True)
    assert notes_of(checkpoint) == []


def test_a_processor_without_settings_of_images_leaves_them_to_their_own_file(checkpoint: Path) -> None:
    (checkpoint / "processor_config.json").write_text('{"processor_class": "Siglip2Processor"}')
    assert_equal_models(checkpoint, MASKED)
    (checkpoint / "preprocessor_config.json").unlink()
    refused(checkpoint, "preprocessor_config.json", code="checkpoint_incomplete")


@pytest.mark.parametrize("text", ["{", "[]", '{"image_processor": 7}'])
def test_a_damaged_processor_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "processor_config.json").write_text(text)
    refused(checkpoint, str(checkpoint / "processor_config.json"), code="checkpoint_damaged")


def test_a_fault_of_nested_settings_names_their_place(checkpoint: Path) -> None:
    nest(checkpoint, lambda settings: settings.update(resample=3))
    refused(checkpoint, "processor_config.json: image_processor: resample is 3")


def edit_settings(checkpoint: Path, **values: Any) -> None:
    edit_json(checkpoint / "preprocessor_config.json", lambda document: document.update(values))


@pytest.mark.parametrize(
    ("values", "buckets"),
    [
        ({}, (128, 256, 576, 784, 1024)),
        ({"dynamic_max_patches": True, "max_num_patches": 576}, (128, 256, 576, 784, 1024)),
        ({"dynamic_max_patches": False}, (256,)),
        ({"dynamic_max_patches": False, "max_num_patches": 576}, (576,)),
        ({"dynamic_max_patches": False, "max_num_patches": 16_384}, (16_384,)),
    ],
)
def test_without_dynamic_patches_every_image_takes_the_same_number(
    checkpoint: Path, values: dict[str, Any], buckets: tuple[int, ...]
) -> None:
    edit_settings(checkpoint, **values)
    spec = load(checkpoint).image_spec
    assert isinstance(spec, NaflexSpec)
    assert (spec.buckets, spec.max_num_patches) == (buckets, 16_384)


def test_a_missing_choice_of_patches_is_the_processors_own(checkpoint: Path) -> None:
    edit_json(checkpoint / "preprocessor_config.json", lambda document: document.pop("dynamic_max_patches"))
    assert load(checkpoint).image_spec.buckets == (128, 256, 576, 784, 1024)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"max_num_patches": 576}, "(max_num_patches 576)"),
        ({"do_convert_rgb": False}, "(do_convert_rgb False)"),
        ({"do_center_crop": True, "crop_size": {"height": 9, "width": 9}}, "do_center_crop True"),
        ({"image_processor_type": "ViTImageProcessor"}, "(image_processor_type 'ViTImageProcessor')"),
        ({"gamma": 2.2, "do_pad": None}, "(gamma 2.2)"),
    ],
)
def test_settings_that_change_nothing_are_named(checkpoint: Path, values: dict[str, Any], part: str) -> None:
    edit_settings(checkpoint, **values)
    (note,) = notes_of(checkpoint)
    assert part in note


@pytest.mark.parametrize(
    "values",
    [
        {"image_processor_type": "Siglip2ImageProcessorFast"},
        {"image_processor_type": "Fgclip2ImageProcessorFast", "do_convert_rgb": True},
        {"data_format": "channels_first", "default_to_square": True, "size": None, "device": None},
        {"auto_map": {"AutoImageProcessor": "x.Y"}, "processor_class": "Fgclip2Processor"},
    ],
)
def test_settings_of_the_released_classes_need_no_note(checkpoint: Path, values: dict[str, Any]) -> None:
    edit_settings(checkpoint, **values)
    assert notes_of(checkpoint) == []


@pytest.mark.parametrize(
    "name", [WEIGHTS, "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    refused(checkpoint, str(checkpoint), name, code="checkpoint_incomplete")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_damaged_json_file_is_named(checkpoint: Path, name: str, text: str) -> None:
    (checkpoint / name).write_text(text)
    refused(checkpoint, str(checkpoint / name), code="checkpoint_damaged")


def shard(checkpoint: Path) -> None:
    """Turn the checkpoint's weights into two shards and their index."""
    tensors = load_file(checkpoint / WEIGHTS)
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, checkpoint / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (checkpoint / WEIGHTS).unlink()


def test_shards_give_the_same_model(checkpoint: Path) -> None:
    shard(checkpoint)
    assert_equal_models(checkpoint, MASKED)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    shard(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    refused(checkpoint, "model-00002-of-00002.safetensors", code="checkpoint_incomplete")


@pytest.mark.parametrize("document", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_without_shards_is_refused(checkpoint: Path, document: dict[str, Any]) -> None:
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / INDEX).write_text(json.dumps(document))
    refused(checkpoint, INDEX, "weight_map", code="checkpoint_damaged")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_computed_in_float32(checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    rounded = Path(shutil.copytree(MASKED, tmp_path / "rounded"))
    edit_weights(checkpoint, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    edit_weights(rounded, lambda tensors: {name: tensor.to(dtype).float() for name, tensor in tensors.items()})
    assert_equal_models(checkpoint, rounded)


@pytest.mark.parametrize(
    ("section", "values", "parts"),
    [
        ("vision_config", {"num_attention_heads": 3}, ["hidden_size 64", "num_attention_heads 3"]),
        ("text_config", {"num_attention_heads": 7}, ["text_config", "num_attention_heads 7"]),
        ("text_config", {"hidden_act": None}, ["text_config.hidden_act", "`str`"]),
        ("vision_config", {"num_patches": 200}, ["num_patches 200", "square"]),
        ("vision_config", {"hidden_size": "64"}, ["vision_config.hidden_size", "`int`"]),
        ("vision_config", {"patch_size": 0}, ["vision_config.patch_size", ">= 1"]),
        ("vision_config", {"num_channels": 4}, ["vision_config.num_channels is 4", "RGB"]),
        ("text_config", {"max_position_embeddings": 1}, ["text_config.max_position_embeddings", ">= 2"]),
        ("text_config", {"longtext_len": 1}, ["text_config.longtext_len", ">= 2"]),
        ("text_config", {"num_hidden_layers": 1.5}, ["text_config.num_hidden_layers", "`int`"]),
        ("text_config", {"vocab_size": True}, ["text_config.vocab_size", "`int`"]),
        ("text_config", {"layer_norm_eps": -1e-6}, ["text_config.layer_norm_eps"]),
        ("text_config", {"projection_size": 32}, ["32", "64"]),
        ("vision_config", {"hidden_size": 2**64}, ["vision_config.hidden_size"]),
        ("vision_config", {"patch_size": 2**32}, ["vision_config.patch_size", "<= 16384"]),
        ("vision_config", {"num_patches": 2**40}, ["vision_config.num_patches", "<= 1048576"]),
        ("text_config", {"intermediate_size": 2**63}, ["text_config.intermediate_size"]),
        ("text_config", {"longtext_len": 2**31}, ["text_config.longtext_len", "<= 1048576"]),
        ("text_config", {"layer_norm_eps": float("inf")}, ["text_config.layer_norm_eps"]),
        ("text_config", {"keep_len": 197}, ["keep_len 197", "196"]),
    ],
)
def test_a_value_that_no_model_can_be_built_with_is_named(
    checkpoint: Path, section: str, values: dict[str, Any], parts: list[str]
) -> None:
    edit_json(checkpoint / "config.json", lambda document: document[section].update(values))
    refused(checkpoint, "config.json", *parts)


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_an_activation_that_cannot_be_exported_is_named(checkpoint: Path, section: str) -> None:
    edit_json(checkpoint / "config.json", lambda document: document[section].update(hidden_act="relu"))
    refused(checkpoint, "config.json", f"{section}.hidden_act", "'relu'", code="checkpoint_unsupported")


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_a_section_that_is_no_object_is_named(checkpoint: Path, section: str) -> None:
    edit_json(checkpoint / "config.json", lambda document: document.update({section: 7}))
    refused(checkpoint, section)


def test_a_config_of_other_sizes_does_not_fit_the_tensors(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda document: document["text_config"].update(num_hidden_layers=3))
    refused(checkpoint, "16 missing (text_model.encoder.layers.2.")


@pytest.mark.parametrize("model_type", ["clip", None, "fgclip", ["fgclip2"]])
def test_an_unsupported_model_type_lists_the_supported(checkpoint: Path, model_type: Any) -> None:
    edit_json(checkpoint / "config.json", lambda document: document.update(model_type=model_type))
    refused(checkpoint, "config.json", repr(model_type), "supported: fgclip2", code="checkpoint_unsupported")


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("resample", 3, "is 3"),
        ("patch_size", 14, "is 14"),
        ("do_resize", False, "is False"),
        ("do_rescale", False, "is False"),
        ("do_normalize", False, "is False"),
        ("do_normalize", None, "got `null`"),
        ("rescale_factor", 1 / 127.5, f"is {1 / 127.5!r}"),
        ("rescale_factor", "1/255", "got `str`"),
        ("image_mean", [0.5, 0.5], "has 2 numbers"),
        ("image_mean", 0.5, "got `float`"),
        ("image_std", [0.5, 0.5, 0.0], "> 0.0"),
        ("image_std", ["a", "b", "c"], "got `str`"),
        ("image_std", [float("inf")] * 3, "<= 255"),
        ("image_mean", [float("nan")] * 3, "-255"),
        ("max_num_patches", 16_385, "<= 16384"),
        ("max_num_patches", 2**64, "max_num_patches"),
        ("dynamic_max_patches", "yes", "got `str`"),
    ],
)
def test_preprocessing_that_a_bundle_cannot_express_is_refused(
    checkpoint: Path, key: str, value: Any, fault: str
) -> None:
    edit_json(checkpoint / "preprocessor_config.json", lambda document: document.update({key: value}))
    refused(checkpoint, "preprocessor_config.json", key, fault)


def test_a_mean_and_deviation_of_their_own_are_used(checkpoint: Path) -> None:
    before = features(load(checkpoint))[0]
    values = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    edit_json(checkpoint / "preprocessor_config.json", lambda document: document.update(values))
    assert np.abs(features(load(checkpoint))[0] - before).max() > 1e-3


@pytest.mark.parametrize("pad_token", ["<padding>", None, {"content": "<padding>"}])
def test_a_pad_token_outside_the_vocabulary_is_refused(checkpoint: Path, pad_token: Any) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.update(pad_token=pad_token))
    refused(checkpoint, "tokenizer_config.json", "pad_token")


@pytest.mark.parametrize("pad_token", ["<pad>", {"content": "<pad>", "lstrip": False}])
def test_the_pad_token_is_found_in_either_notation(checkpoint: Path, pad_token: Any) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.update(pad_token=pad_token))
    assert load(checkpoint).text_spec.pad_token_id == 0


@pytest.mark.parametrize("name", ["fg-clip3", "qihoo360/fg-clip3-base", "no/such/folder"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(CheckpointError) as info:
        export.checkpoint_source(name)
    assert_one_sentence(info.value, repr(name), *export.MODELS, code="checkpoint_missing")
    with pytest.raises(CheckpointError):
        export.random_source(name)


def test_a_file_is_no_checkpoint_folder(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a known model nor a checkpoint folder"):
        export.checkpoint_source(str(checkpoint / WEIGHTS))


def test_a_bundle_is_no_checkpoint(masked_bundle_path: Path) -> None:
    with pytest.raises(CheckpointError) as info:
        export.checkpoint_source(str(masked_bundle_path))
    assert_one_sentence(info.value, str(masked_bundle_path), "is an exported bundle", code="checkpoint_missing")


def test_a_revision_goes_with_the_hub_only() -> None:
    with pytest.raises(CheckpointError) as info:
        export.checkpoint_source(str(MASKED), revision="main")
    assert_one_sentence(info.value, "main", str(MASKED), code="argument_invalid")


@pytest.mark.parametrize("name", ["fg-clip2-base", "qihoo360/fg-clip2-so400m"])
@pytest.mark.parametrize("revision", [None, "0123abc"])
def test_a_failed_download_says_how_to_use_local_weights(
    name: str, revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as info:
        export.checkpoint_source(name, revision)
    assert_says_how_to_use_local_weights(info.value)


def test_an_error_of_the_http_client_is_a_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy may refuse, for example: huggingface_hub passes on the error of its HTTP client.
    client_error = next(base for base in HfHubHTTPError.__mro__[1:] if base.__name__ == "HTTPError")

    def refuse(*_: object, **__: object) -> None:
        raise client_error("403 Forbidden")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="403 Forbidden") as info:
        export.checkpoint_source("fg-clip2-base")
    assert_says_how_to_use_local_weights(info.value)


def assert_says_how_to_use_local_weights(error: CheckpointError) -> None:
    message = str(error)
    assert error.code == "download_failed"
    assert "\n" not in message
    assert message.startswith("qihoo360/fg-clip2-")
    assert "give its path: fgclip-rt export --model path/to/checkpoint." in message


@pytest.mark.parametrize("shards", [None, [], {}, {"logit_scale": 3}, {"logit_scale": ["a"]}, {"logit_scale": "../x"}])
def test_a_damaged_index_of_shards_is_named(checkpoint: Path, shards: Any) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    refused(checkpoint, "model.safetensors.index.json", code="checkpoint_damaged")


def test_a_tokenizer_that_is_not_utf8_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_bytes(b"\xff\xfe")
    refused(checkpoint, "tokenizer.json", code="checkpoint_damaged")


def test_a_tokenizer_that_does_not_say_whether_it_masks_does_and_it_is_noted(checkpoint: Path) -> None:
    """So does transformers, although the released models were trained without a mask."""
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.pop("model_input_names"))
    assert load(checkpoint).text_spec.attention_mask
    (note,) = notes_of(checkpoint)
    assert "has no model_input_names, so an attention mask hides the padding" in note


@pytest.mark.parametrize(("names", "masked"), [(["input_ids"], False), (["input_ids", "attention_mask"], True)])
def test_a_tokenizer_that_says_whether_it_masks_is_followed(checkpoint: Path, names: list[str], masked: bool) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.update(model_input_names=names))
    assert load(checkpoint).text_spec.attention_mask == masked
    assert notes_of(checkpoint) == []


@pytest.mark.parametrize(
    ("name", "value"), [("padding_side", "left"), ("truncation_side", "left"), ("split_special_tokens", True)]
)
def test_tokenisation_that_a_bundle_cannot_express_is_refused(checkpoint: Path, name: str, value: Any) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.update({name: value}))
    refused(checkpoint, "tokenizer_config.json", f"{name} is {value!r}")


def test_a_missing_padding_side_is_noted(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.pop("padding_side"))
    (note,) = notes_of(checkpoint)
    assert "padded on the right" in note


EOS, BOS = 1, 2
PIECES: dict[str, Any] = {
    "text": {"Sequence": {"id": "A", "type_id": 0}},
    "eos": {"SpecialToken": {"id": "<eos>", "type_id": 0}},
    "bos": {"SpecialToken": {"id": "<bos>", "type_id": 0}},
}


def set_ends(checkpoint: Path, pieces: str | None, **flags: bool) -> None:
    """Have the tokenizer put pieces around a text, and its configuration say ``flags`` only."""

    def edit_post_processor(document: dict[str, Any]) -> None:
        if pieces is None:
            document["post_processor"] = None
        else:
            document["post_processor"]["single"] = [PIECES[piece] for piece in pieces.split()]
            document["post_processor"]["special_tokens"]["<bos>"] = {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}

    def edit_flags(document: dict[str, Any]) -> None:
        del document["add_bos_token"], document["add_eos_token"]
        document.update({f"add_{name}_token": flag for name, flag in flags.items()})

    edit_json(checkpoint / "tokenizer.json", edit_post_processor)
    edit_json(checkpoint / "tokenizer_config.json", edit_flags)


@pytest.mark.parametrize("pieces", [None, "text", "bos text eos", "bos text", "text text eos", "eos"])
@pytest.mark.parametrize("flags", [{"eos": True}, {"eos": True, "bos": False}])
def test_flags_for_start_and_end_are_followed_as_in_transformers(
    checkpoint: Path, pieces: str | None, flags: dict[str, bool]
) -> None:
    set_ends(checkpoint, pieces, **flags)
    model = load(checkpoint)
    tokens = Tokenizer(model.tokenizer_json, model.text_spec)(["a cat"]).input_ids
    np.testing.assert_array_equal(tokens, Tokenizer(load(MASKED).tokenizer_json, model.text_spec)(["a cat"]).input_ids)
    (note,) = notes_of(checkpoint)
    assert "add_bos_token False and add_eos_token True" in note


def test_a_sound_tokenizer_needs_no_flags(checkpoint: Path) -> None:
    set_ends(checkpoint, "text eos")
    assert load(checkpoint).tokenizer_json == (checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    assert notes_of(checkpoint) == []


@pytest.mark.parametrize(
    ("pieces", "flags", "found"),
    [
        (None, {}, "[] before a text and [] after it"),
        ("text", {}, "[] before a text and [] after it"),
        ("bos text eos", {}, "[2] before a text and [1] after it"),
        ("text eos eos", {}, "[] before a text and [1, 1] after it"),
        ("text eos", {"eos": False}, "[] before a text and [] after it"),
        ("text eos", {"bos": True, "eos": True}, "[2] before a text and [1] after it"),
    ],
)
def test_texts_without_their_end_or_with_a_start_are_refused(
    checkpoint: Path, pieces: str | None, flags: dict[str, bool], found: str
) -> None:
    set_ends(checkpoint, pieces, **flags)
    refused(checkpoint, str(checkpoint / "tokenizer.json"), found, "trained with [] and [1]", "--tokenizer")


def test_a_flag_that_is_no_truth_value_is_refused(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.update(add_eos_token="yes"))
    refused(checkpoint, "tokenizer_config.json", "add_eos_token is 'yes'")


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda document: document["model"].update(dropout=0.1), "has dropout 0.1"),
        (lambda document: document["model"].update(unk_token="<none>", byte_fallback=False), "cannot encode the text"),
        (lambda document: document["model"]["vocab"].update({"☃": 2**31}), "'☃' with id 2147483648"),
        (lambda document: document["model"]["vocab"].update({"☃": 775}), "'☃' with id 775, past the model's 775"),
        (
            lambda document: document.update(
                normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "z"}
            ),
            "cannot encode the text",
        ),
    ],
)
def test_a_hostile_tokenizer_is_refused(checkpoint: Path, edit: Callable[[dict[str, Any]], None], fault: str) -> None:
    edit_json(checkpoint / "tokenizer.json", edit)
    refused(checkpoint, str(checkpoint / "tokenizer.json"), fault)


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_past_the_table_is_left_out_and_noted(checkpoint: Path, special: bool) -> None:
    """transformers 5 adds ``<mask>`` to a tokenizer that has none."""
    token = {"id": 775, "content": "<region>", "special": special, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    edit_json(checkpoint / "tokenizer.json", lambda document: document["added_tokens"].append(token))
    model = load(checkpoint)
    assert Tokenizer(model.tokenizer_json, model.text_spec)(["a <region> of"]).input_ids.max() < 775
    assert json.loads(model.tokenizer_json) == json.loads((MASKED / "tokenizer.json").read_text(encoding="utf-8"))
    (note,) = notes_of(checkpoint)
    assert "past the model's 775 ('<region>' 775); they were left out" in note


def test_input_names_that_are_no_list_are_named(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda document: document.update(model_input_names=None))
    refused(checkpoint, "tokenizer_config.json", "model_input_names")


def test_a_download_is_exported_with_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Hub's client is the one part that cannot run here; it returns a folder named after the commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "snapshots" / commit
    shutil.copytree(GOLDENS / "fgclip2-masked/checkpoint", snapshot)
    asked = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in ("fg-clip2-large", "qihoo360/fg-clip2-large"):
        source = export.checkpoint_source(name, revision="main")
        _, info = source.load()
        assert asked["repo"] == "qihoo360/fg-clip2-large"
        assert asked["revision"] == "main"
        assert (source.name, info.name, info.source) == ("fg-clip2-large", "fg-clip2-large", "qihoo360/fg-clip2-large")
        assert (info.weights, info.revision) == ("released", commit)
