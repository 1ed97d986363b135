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
from fgclip_rt.export.checkpoints.locate import locate
from fgclip_rt.export.families import table as families
from fgclip_rt.export.families.base import ReferenceModel
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
