"""Checkpoints that are files of weights: wrapped, prefixed and rounded ones load alike; damaged ones are refused."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fgclip_rt import export
from fgclip_rt.errors import CheckpointError
from fgclip_rt.export.checkpoints.files import CheckpointFile
from fgclip_rt.export.checkpoints.locate import LocalFiles, locate
from fgclip_rt.export.checkpoints.registry import MODELS, ModelSpec
from fgclip_rt.export.checkpoints.tensors import load_weights
from fgclip_rt.export.families import table as families
from fgclip_rt.export.families.base import ReferenceModel
from fgclip_rt.export.families.fineclip.config import Config
from fgclip_rt.export.families.fineclip.model import FineClipModel
from fgclip_rt.export.families.fineclip.reference import FineClip
from fgclip_rt.export.families.fineclip.tokenizer import fineclip_tokenizer
from fgclip_rt.preparation import Patches
from fgclip_rt.text import Tokenizer
from helpers import GOLDENS, Json, assert_one_sentence, picture

FINECLIP = GOLDENS / "fineclip"
CLIP_TOKENIZER = GOLDENS / "fgclip1" / "checkpoint" / "tokenizer.json"
FOLDER = GOLDENS / "fgclip2-masked" / "checkpoint"
TOKEN_TABLE, BIAS, LAST = "text.token_embedding.weight", "visual.head.bias", "visual.norm.bias"


Tensors = dict[str, Tensor]
Feature = np.ndarray[Any, Any]


def vocabulary() -> dict[str, int]:
    """CLIP's vocabulary, cut to seven tokens."""
    return {
        "a": 0,
        "b": 1,
        "a</w>": 2,
        "b</w>": 3,
        "ab</w>": 4,
        "<|startoftext|>": 5,
        "<|endoftext|>": 6,
    }


def tokenizer_json(**more: int) -> str:
    """CLIP's tokenizer with seven tokens, and ``more``."""
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocabulary() | more, "merges": ["a b</w>"]}
    return json.dumps({"version": "1.0", "model": model})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for PyTorch, because models of this size spend their time on waiting for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden_tensors() -> Tensors:
    """Tensors of the golden checkpoint, in half precision."""
    tensors: Tensors = torch.load(FINECLIP / "checkpoint.pt", weights_only=True)
    return tensors


@pytest.fixture
def tensors(golden_tensors: Tensors) -> Tensors:
    """Tensors of the golden checkpoint, cut to the tokens of :func:`vocabulary`. Tests may change the dictionary."""
    return golden_tensors | {TOKEN_TABLE: golden_tensors[TOKEN_TABLE][-len(vocabulary()) :].clone()}


@pytest.fixture
def config() -> Json:
    document: Json = json.loads((FINECLIP / "model_config.json").read_text(encoding="utf-8"))
    document["text_cfg"]["vocab_size"] = len(vocabulary())
    return document


@pytest.fixture
def folder(tmp_path: Path, config: Json) -> Path:
    """A folder with the config and the tokenizer for weights called ``weights.pt``."""
    (tmp_path / "model_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    return tmp_path


@pytest.fixture
def checkpoint(folder: Path, tensors: Tensors) -> Path:
    """The weights of a whole checkpoint, which tests may damage."""
    torch.save(tensors, folder / "weights.pt")
    return folder / "weights.pt"


def load(path: Path, **files: Path) -> ReferenceModel:
    """Load a file of weights with the ``model_config.json`` beside it."""
    beside = LocalFiles(**{"config": path.with_name("model_config.json"), **files})
    return families.load(locate(str(path), files=beside))[1]


def refused(path: Path, *parts: str, code: str = "checkpoint_invalid") -> str:
    with pytest.raises(CheckpointError) as info:
        load(path)
    assert_one_sentence(info.value, *parts, code=code)
    return str(info.value)


def misplaced(
    model: str, *parts: str, revision: str | None = None, code: str = "argument_invalid", **files: Path
) -> None:
    """Check that files are refused unread, because they are not the files that the model needs."""
    with pytest.raises(CheckpointError) as info:
        locate(model, revision, LocalFiles(**files))
    assert_one_sentence(info.value, *parts, code=code)


def features(model: ReferenceModel) -> list[Feature]:
    """Outputs of every part of a model: image, dense, region, mask and text features, and logits."""
    pixels = picture(1, 16 * 256, seed=3).reshape(16, 768)
    boxes = np.array([[3, 3, 40, 30]], np.float32)
    masks = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    image = model.image(Patches(pixels, (4, 4), (48, 64), 16), boxes, masks)
    tokenizer = Tokenizer(model.tokenizer_json, model.text_spec)
    texts = model.text(tokenizer(["ab a", "b", ""]), "short")
    named = [image.features, image.dense, image.regions, image.masks]
    return [*(values for values in named if values is not None), texts, model.logits(image.features[None], texts)]


def assert_same_features(model: ReferenceModel, expected: list[Feature], atol: float = 2e-5) -> None:
    """Equal but for the rounding of sums, whose order depends on where PyTorch finds the tensors in memory."""
    actual = features(model)
    assert len(actual) == 6
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def expected(golden_tensors: Tensors) -> list[Feature]:
    """Features of the weights, loaded into the reference without a file."""
    document = json.loads((FINECLIP / "model_config.json").read_text(encoding="utf-8"))
    document["text_cfg"]["vocab_size"] = len(vocabulary())
    reference = FineClip(Config.from_json(document))
    state = {name: tensor.float() for name, tensor in golden_tensors.items() if "freqs_" not in name}
    reference.load_state_dict(state | {TOKEN_TABLE: state[TOKEN_TABLE][-len(vocabulary()) :]}, strict=True)
    return features(FineClipModel(reference, fineclip_tokenizer(tokenizer_json())))


# Files that load


def test_a_file_of_weights_loads(checkpoint: Path, expected: list[Feature]) -> None:
    model = load(checkpoint)
    assert_same_features(model, expected)
    assert (model.embedding_size, model.image_spec.max_num_patches) == (48, 16)
    assert all(parameter.dtype == torch.float32 for parameter in model.module.parameters())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_the_released_vocabulary_loads_whole() -> None:
    """The golden files load unchanged, with CLIP's own tokenizer named in the call."""
    model = load(FINECLIP / "checkpoint.pt", tokenizer=CLIP_TOKENIZER)
    stored = np.load(FINECLIP / "expected.npz")["text.short.input_ids"]
    texts = json.loads((FINECLIP / "index.json").read_text(encoding="utf-8"))["texts"]
    ids = Tokenizer(model.tokenizer_json, model.text_spec)(texts).input_ids
    np.testing.assert_array_equal(ids, stored)


def wrapped(tensors: Tensors) -> Json:
    moments = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    return {"epoch": 10, "name": "run", "state_dict": tensors, "optimizer": moments}


def wrapped_twice(tensors: Tensors) -> Json:
    return {"state_dict": {"state_dict": tensors, "epoch": 3}, "step": 7}


def parallel(tensors: Tensors) -> Json:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def wrapped_parallel(tensors: Tensors) -> Json:
    return wrapped(parallel(tensors))


def ordered(tensors: Tensors) -> Json:
    state = OrderedDict(tensors)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


def as_parameters(tensors: Tensors) -> Json:
    return {name: nn.Parameter(tensor) for name, tensor in tensors.items()}


def without_sines(tensors: Tensors) -> Json:
    return {name: tensor for name, tensor in tensors.items() if "freqs_" not in name}


def with_other_sines(tensors: Tensors) -> Json:
    """Replace the sines by those of another image size; nothing reads them."""
    assert any("freqs_" in name for name in tensors)
    return {name: torch.full((9,), torch.nan) if "freqs_" in name else tensor for name, tensor in tensors.items()}


def beside_numpy(tensors: Tensors) -> Json:
    """The optimizer's state as a schedule of NumPy's cosine leaves it, and more of NumPy's data."""
    moments = {"param_groups": [{"lr": np.cos(0.3) * 1e-5, "betas": (np.float32(0.9), np.float16(0.99))}]}
    data = {"history": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "bc"]), "kind": np.dtype("f8")}
    more = {"type": np.float32, "best": np.bool_(True), "step": np.int64(3), "random": np.random.get_state()}
    mixed = np.array([1, "a", None], dtype=object)
    return wrapped(tensors) | {"optimizer": moments, "mixed": mixed, "when": np.datetime64("2025-01-01")} | data | more


def beside_objects(tensors: Tensors) -> Json:
    """Options, paths and containers of Python."""
    options = argparse.Namespace(lr=1e-5, output=PurePosixPath("/x/y"), rates=frozenset([1]), steps=range(3))
    counts: Json = defaultdict(list, {"a": [1]})
    times = {"at": datetime(2025, 1, 1, tzinfo=UTC), "took": timedelta(1)}
    return (
        wrapped(tensors)
        | {"args": options, "counts": counts, "last": deque([1, 2], maxlen=3), "at": Path("/x")}
        | times
    )


def in_numpy_dictionary(tensors: Tensors) -> Json:
    return {"state_dict": defaultdict(int, tensors), "lr": np.cos(0.3)}


def under_model(tensors: Tensors) -> Json:
    return {"model": tensors, "epoch": 3, "scaler": {"scale": 65536.0}}


def under_module(tensors: Tensors) -> Json:
    return {"module": parallel(tensors), "global_steps": 7, "optimizer": None}


def under_another_key(tensors: Tensors) -> Json:
    return {"model_state_dict": tensors, "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}}}


def with_average(tensors: Tensors) -> Json:
    """OpenCLIP takes the plain weights, so the others may hold anything."""
    average = {name: tensor * 0 for name, tensor in tensors.items()}
    return {"state_dict_ema": average, "state_dict": tensors, "model": average}


def beside_one_tensor(tensors: Tensors) -> Json:
    return {"model": tensors, "rng_state": torch.get_rng_state()}


def renamed(tensors: Tensors, rename: Callable[[str], str]) -> Json:
    return {rename(name): tensor for name, tensor in tensors.items()}


def compiled(tensors: Tensors) -> Json:
    return renamed(tensors, lambda name: f"_orig_mod.{name}")


def compiled_parallel(tensors: Tensors) -> Json:
    return {"state_dict": renamed(tensors, lambda name: f"module._orig_mod.{name}")}


def compiled_tower(tensors: Tensors) -> Json:
    return renamed(tensors, lambda name: name.replace("visual.", "visual._orig_mod."))


def recomputed(tensors: Tensors) -> Json:
    wrapper = "_fsdp_wrapped_module._checkpoint_wrapped_module."
    return renamed(tensors, lambda name: wrapper + name.replace("blocks.0.", f"blocks.0.{wrapper}"))


def under_peft(tensors: Tensors) -> Json:
    return renamed(tensors, lambda name: f"base_model.model.{name}")


def under_any_prefix(tensors: Tensors) -> Json:
    return renamed(tensors, lambda name: f"student.clip.{name}")


def with_leftovers(tensors: Tensors) -> Json:
    """The state of ``torch.optim.swa_utils.AveragedModel``, and buffers of old versions."""
    mask = {"module.text.attn_mask": torch.full((77, 77), -torch.inf), "n_averaged": torch.tensor(3)}
    return parallel(tensors) | mask | {"module.text.position_ids": torch.arange(77)[None]}


@pytest.mark.parametrize(
    "wrap",
    [
        wrapped,
        wrapped_twice,
        parallel,
        wrapped_parallel,
        ordered,
        as_parameters,
        without_sines,
        with_other_sines,
        beside_numpy,
        beside_objects,
        in_numpy_dictionary,
        under_model,
        under_module,
        under_another_key,
        with_average,
        beside_one_tensor,
        compiled,
        compiled_parallel,
        compiled_tower,
        recomputed,
        under_peft,
        under_any_prefix,
        with_leftovers,
    ],
)
def test_what_is_put_around_the_weights_changes_nothing(
    folder: Path, tensors: Tensors, expected: list[Feature], wrap: Callable[[Tensors], Json]
) -> None:
    torch.save(wrap(tensors), folder / "weights.pt")
    assert_same_features(load(folder / "weights.pt"), expected)


@pytest.mark.parametrize("wrap", [beside_numpy, beside_objects])
def test_data_beside_the_weights_are_read_in_the_old_format(
    folder: Path, tensors: Tensors, expected: list[Feature], wrap: Callable[[Tensors], Json]
) -> None:
    torch.save(wrap(tensors), folder / "weights.pt", _use_new_zipfile_serialization=False)
    assert_same_features(load(folder / "weights.pt"), expected)


@pytest.mark.parametrize(
    ("wrap", "parts"),
    [
        (
            with_average,
            ["'state_dict_ema' and 'model' beside 'state_dict'", "taken from 'state_dict', as OpenCLIP does"],
        ),
        (under_another_key, ["one state dict, 'model_state_dict'"]),
        (
            lambda tensors: {"model": tensors, "model_ema": tensors},
            ["'model_ema' beside 'model'; the weights", "'model'."],
        ),
        (with_leftovers, ["holds 3 of the tensors", "text.attn_mask", "n_averaged", "text.position_ids"]),
        (wrapped_twice, []),
        (parallel, []),
        (beside_numpy, []),
    ],
)
def test_a_choice_among_the_weights_is_noted(
    folder: Path, tensors: Tensors, wrap: Callable[[Tensors], Json], parts: list[str]
) -> None:
    torch.save(wrap(tensors), folder / "weights.pt")
    checkpoint = locate(str(folder / "weights.pt"), files=LocalFiles(config=folder / "model_config.json"))
    families.load(checkpoint)
    families.load(checkpoint)
    assert len(checkpoint.notes) == bool(parts)
    assert all(part in note for note in checkpoint.notes for part in parts), checkpoint.notes


def test_several_state_dicts_are_named(folder: Path, tensors: Tensors) -> None:
    torch.save({"student": tensors, "teacher": tensors, "epoch": 3}, folder / "weights.pt")
    refused(folder / "weights.pt", "2 state dicts ('student', 'teacher')")


@pytest.mark.parametrize(
    ("rename", "part"),
    [
        (lambda name: f"encoder.clip_{name}", "all names begin with 'encoder.'"),
        (lambda name: f"{'student' if 'visual' in name else 'teacher'}.{name}", "begin with 'student.' or 'teacher.'"),
    ],
)
def test_names_that_are_not_the_models_are_described_by_their_beginnings(
    folder: Path, tensors: Tensors, rename: Callable[[str], str], part: str
) -> None:
    torch.save(renamed(tensors, rename), folder / "weights.pt")
    refused(folder / "weights.pt", "missing", "unexpected", part)


def test_a_prefix_that_was_removed_is_named(folder: Path, tensors: Tensors) -> None:
    del tensors[BIAS]
    torch.save(under_peft(tensors), folder / "weights.pt")
    refused(folder / "weights.pt", f"1 missing ({BIAS})", "without 'base_model.model.'")


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_either_format_of_torch_save_is_read(
    folder: Path, tensors: Tensors, expected: list[Feature], zipped: bool, suffix: str
) -> None:
    path = folder / f"weights{suffix}"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    assert_same_features(load(path), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_precision_are_computed_in_float32(folder: Path, tensors: Tensors, dtype: torch.dtype) -> None:
    torch.save({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "weights.pt")
    torch.save({name: tensor.to(dtype).float() for name, tensor in tensors.items()}, folder / "rounded.pt")
    model = load(folder / "weights.pt")
    assert all(parameter.dtype == torch.float32 for parameter in model.module.parameters())
    assert_same_features(model, features(load(folder / "rounded.pt")))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, config: Json) -> str:
    """The name of a registered model that is on no hub and has the sizes of the golden one."""
    spec = ModelSpec("fineclip-small", "fineclip", MappingProxyType(config), parameters=1)
    monkeypatch.setitem(MODELS, spec.name, spec)
    return "fineclip-small"


def test_a_registered_model_takes_its_sizes_from_the_registry(
    registered: str, checkpoint: Path, expected: list[Feature]
) -> None:
    checkpoint.with_name("model_config.json").unlink()
    found = locate(registered, files=LocalFiles(weights=checkpoint))
    assert (found.name, found.source, found.revision, found.origin) == (registered, "weights.pt", None, "local")
    family, model = families.load(found)
    assert family == "fineclip"
    assert_same_features(model, expected)


def test_weights_of_a_registered_model_may_have_any_suffix(registered: str, checkpoint: Path) -> None:
    path = checkpoint.rename(checkpoint.with_name("open_clip_pytorch_model.bin"))
    assert locate(registered, files=LocalFiles(weights=path)).path == path


def test_the_source_says_where_the_weights_come_from(checkpoint: Path) -> None:
    files = LocalFiles(config=checkpoint.with_name("model_config.json"))
    source = export.checkpoint_source(str(checkpoint), files=files)
    _, info = source.load()
    assert (source.name, info.name, info.source) == ("weights", "weights", "weights.pt")
    assert (info.family, info.weights, info.revision) == ("fineclip", "local", None)
    same = locate(str(checkpoint), files=files).sha256()
    assert info.checkpoint_sha256 == same
    assert re.fullmatch("[0-9a-f]{64}", same)
    checkpoint.write_bytes(b"other")
    assert locate(str(checkpoint), files=files).sha256() != same


# Tokenizers


def no_network(*_: object, **__: object) -> str:
    raise OSError("no route to the Hub.\nTry again later.")


def test_a_tokenizer_beside_the_weights_is_taken(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    found = locate(str(checkpoint), files=LocalFiles(config=checkpoint.with_name("model_config.json")))
    assert isinstance(found, CheckpointFile)
    assert found.tokenizer == checkpoint.with_name("tokenizer.json")


def test_a_named_tokenizer_comes_before_one_beside_the_weights(checkpoint: Path) -> None:
    found = locate(
        str(checkpoint),
        files=LocalFiles(config=checkpoint.with_name("model_config.json"), tokenizer=CLIP_TOKENIZER),
    )
    assert found.where("tokenizer.json") == CLIP_TOKENIZER


def test_without_a_tokenizer_clips_is_downloaded(
    checkpoint: Path, tmp_path: Path, expected: list[Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = checkpoint.with_name("tokenizer.json").rename(tmp_path / "downloaded.json")
    asked = []

    def download(*arguments: str) -> str:
        asked.append(arguments)
        return str(downloaded)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert_same_features(load(checkpoint), expected)
    assert asked == [("openai/clip-vit-base-patch16", "tokenizer.json")]


def test_a_tokenizer_that_cannot_be_downloaded_can_be_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.with_name("tokenizer.json").unlink()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    refused(checkpoint, "openai/clip-vit-base-patch16", "(no route to the Hub)", "--tokenizer", code="download_failed")


def of_another_kind(document: Json) -> None:
    document["model"] |= {"type": "WordLevel", "unk_token": "a"}


def without_end(document: Json) -> None:
    del document["model"]["vocab"]["<|endoftext|>"]


@pytest.mark.parametrize("edit", [of_another_kind, without_end])
def test_a_tokenizer_that_is_not_clips_is_refused(checkpoint: Path, edit: Callable[[Json], None]) -> None:
    document = json.loads(tokenizer_json())
    edit(document)
    checkpoint.with_name("tokenizer.json").write_text(json.dumps(document))
    refused(checkpoint, "tokenizer.json", "--tokenizer")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": {}}'])
def test_a_damaged_tokenizer_is_refused(checkpoint: Path, text: str) -> None:
    checkpoint.with_name("tokenizer.json").write_text(text)
    refused(checkpoint, "tokenizer.json", "--tokenizer", code="checkpoint_damaged")


def test_a_tokenizer_that_is_not_utf8_is_named(checkpoint: Path) -> None:
    checkpoint.with_name("tokenizer.json").write_bytes(b"\xff\xfe")
    refused(checkpoint, str(checkpoint.with_name("tokenizer.json")), code="checkpoint_damaged")


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda document: document["model"].update(dropout=0.5), "has dropout 0.5"),
        (lambda document: document["model"]["vocab"].update({"<|endoftext|>": 2**31}), "has the token id 2147483648"),
        (lambda document: document["model"]["vocab"].update({"<|endoftext|>": 2**32}), "is not a tokenizer"),
    ],
)
def test_a_hostile_tokenizer_is_refused(checkpoint: Path, edit: Callable[[Json], None], fault: str) -> None:
    document = json.loads(tokenizer_json())
    edit(document)
    checkpoint.with_name("tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=fault):
        load(checkpoint)


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(checkpoint: Path) -> None:
    more = tokenizer_json(**{"ba</w>": 6, "<|endoftext|>": 7})
    checkpoint.with_name("tokenizer.json").write_text(more)
    refused(checkpoint, str(checkpoint.with_name("tokenizer.json")), "token 7", "--tokenizer")


# Files that do not hold weights


def test_an_empty_file_is_refused(checkpoint: Path) -> None:
    checkpoint.write_bytes(b"")
    refused(checkpoint, str(checkpoint), code="checkpoint_damaged")


@pytest.mark.parametrize("name", ["missing.pt", "missing"])
def test_missing_weights_are_named(checkpoint: Path, registered: str, name: str) -> None:
    misplaced(
        registered,
        str(checkpoint.with_name(name)),
        "is no file",
        code="checkpoint_missing",
        weights=checkpoint.with_name(name),
    )


def test_a_model_that_is_a_missing_file_is_named(tmp_path: Path) -> None:
    misplaced(
        str(tmp_path / "missing.pt"),
        "missing.pt",
        "neither a known model nor",
        "file of weights",
        code="checkpoint_missing",
    )


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
def test_a_missing_file_that_goes_with_the_weights_is_named(checkpoint: Path, kind: str) -> None:
    files = {"config": checkpoint.with_name("model_config.json")} | {kind: checkpoint.with_name("missing.json")}
    misplaced(
        str(checkpoint), str(checkpoint.with_name("missing.json")), "is no file", code="checkpoint_missing", **files
    )


def test_a_folder_is_no_file(checkpoint: Path, registered: str) -> None:
    misplaced(registered, str(checkpoint.parent), "is no file", code="checkpoint_missing", weights=checkpoint.parent)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02",
        b"\n",
        b"hello world",
        b'{"state_dict": {}}',
        bytes(range(256)),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    ],
)
def test_a_file_of_other_bytes_is_refused(checkpoint: Path, data: bytes) -> None:
    checkpoint.write_bytes(data)
    with pytest.raises(CheckpointError) as info:
        load(checkpoint)
    assert_one_sentence(info.value, str(checkpoint))
    # PyTorch takes some bytes for a pickle of other objects.
    assert info.value.code in ("checkpoint_damaged", "checkpoint_unsafe")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(folder: Path, tensors: Tensors, zipped: bool) -> None:
    path = folder / "weights.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for size in (100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(path, str(path), code="checkpoint_damaged")


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"bias": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=str(path)):
            list(CheckpointFile(path, "", "", None, "local", {}, path).tensors())


def test_a_zip_of_other_files_is_refused(checkpoint: Path) -> None:
    with zipfile.ZipFile(checkpoint, "w") as file:
        file.writestr("notes.txt", "nothing")
    refused(checkpoint, str(checkpoint), code="checkpoint_damaged")


def test_safetensors_are_no_file_of_torch_save(checkpoint: Path) -> None:
    save_file({"a": torch.zeros(3)}, checkpoint)
    refused(checkpoint, str(checkpoint), "torch.save", code="checkpoint_unsafe")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_refused(checkpoint: Path) -> None:
    """OpenAI released its own models as TorchScript archives."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(checkpoint))
    message = refused(checkpoint, str(checkpoint), code="checkpoint_damaged")
    assert "weights_only` set to `False`" not in message


class Runs:
    """Runs code when it is loaded, unless something prevents it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "torch, old format", "pickle"])
def test_code_in_a_file_does_not_run(checkpoint: Path, tensors: Tensors, how: str) -> None:
    made = checkpoint.with_name("made")
    document = {"state_dict": tensors, "args": Runs(made)}
    if how == "pickle":
        checkpoint.write_bytes(pickle.dumps(document, protocol=2))
    else:
        torch.save(document, checkpoint, _use_new_zipfile_serialization=how == "torch")
    refused(checkpoint, str(checkpoint), "other Python objects", code="checkpoint_unsafe")
    assert not made.exists()
    # A loader that trusts the file does run the code.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "pickle":
            pickle.loads(checkpoint.read_bytes())
        else:
            torch.load(checkpoint, weights_only=False)
    assert made.is_dir()


def whole_module(_: Tensors) -> Any:
    return nn.Linear(2, 2)


def function(tensors: Tensors) -> Any:
    return {"state_dict": tensors, "hook": os.getcwd}


def partial_function(tensors: Tensors) -> Any:
    return {"state_dict": tensors, "schedule": functools.partial(print, "run")}


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (whole_module, "torch.nn.modules.linear.Linear"),
        (function, "posix.getcwd"),
        (partial_function, "functools.partial"),
        (lambda tensors: {"state_dict": tensors, "a": np.load}, "numpy.load"),
        (lambda tensors: {"state_dict": tensors, "a": eval}, "eval"),
    ],
)
def test_other_python_objects_are_refused(
    folder: Path, tensors: Tensors, wrap: Callable[[Tensors], Any], name: str
) -> None:
    torch.save(wrap(tensors), folder / "weights.pt")
    parts = [str(folder / "weights.pt"), "other Python objects", name]
    refused(folder / "weights.pt", *(parts[:2] if name.startswith("posix") else parts), code="checkpoint_unsafe")


def test_allowed_names_make_nothing_and_do_not_outlast_the_file(folder: Path, tensors: Tensors) -> None:
    """An array of NumPy could ask for all memory; a stand-in takes none."""

    class Huge:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.array([1.0]).__reduce__()[0], (np.ndarray, (2**50,), b"b")

    torch.save({"state_dict": tensors, "huge": Huge()}, folder / "weights.pt")
    load(folder / "weights.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        None,
        7,
        "state_dict",
        torch.zeros(3),
        [torch.zeros(3)],
        {"state_dict": {}},
        {"state_dict": None},
        {"state_dict": [torch.zeros(3)]},
        {"state_dict": {"state_dict": {}}},
    ],
)
def test_what_is_no_state_dict_is_refused(folder: Path, document: Any) -> None:
    torch.save(document, folder / "weights.pt")
    parts = str(folder / "weights.pt"), "no state dict", "torch.save(model.state_dict(), path)"
    refused(folder / "weights.pt", *parts, code="checkpoint_damaged")


@pytest.mark.parametrize("entry", [{"epoch": 3}, {"model": {"a": torch.zeros(3)}}, {7: torch.zeros(3)}, {BIAS: None}])
def test_an_entry_that_is_no_tensor_is_named(folder: Path, tensors: Tensors, entry: dict[Any, Any]) -> None:
    torch.save(tensors | entry, folder / "weights.pt")
    refused(folder / "weights.pt", str(folder / "weights.pt"), f"holds {next(iter(entry))!r}", code="checkpoint_unsafe")


# Tensors that do not fit


@pytest.fixture
def small(folder: Path) -> Callable[[Any], nn.Module]:
    """Saves a document and loads it into a module of two tensors."""

    def load_small(document: Any) -> nn.Module:
        path = folder / "weights.pt"
        torch.save(document, path)
        checkpoint = CheckpointFile(path, "weights", "weights.pt", None, "local", {}, folder / "tokenizer.json")
        with torch.device("meta"):
            module = nn.Linear(2, 3)
        load_weights(module, checkpoint, unused=("freqs_cos",))
        return module

    return load_small


SMALL = {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.ones(3)}


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"bias": torch.ones(4)}, ["1 misshaped (bias is [4] instead of [3])"]),
        ({"bias": torch.ones(3, 1)}, ["1 misshaped (bias is [3, 1] instead of [3])"]),
        ({"bias": torch.ones(3, dtype=torch.int64)}, ["1 misshaped (bias is torch.int64 instead of a float)"]),
        ({"bias": torch.ones(3, dtype=torch.bool)}, ["bias is torch.bool"]),
        ({"bias": torch.ones(3, dtype=torch.complex64)}, ["bias is torch.complex64"]),
        ({"bias": torch.full((3,), torch.nan)}, ["1 not finite (bias)"]),
        ({"bias": torch.full((3,), -torch.inf, dtype=torch.float16)}, ["1 not finite (bias)"]),
        ({"bias": torch.full((3,), 1e300, dtype=torch.float64)}, ["1 not finite (bias)"]),
        ({"scale": torch.ones(3)}, ["1 unexpected (scale)"]),
        ({"freqs_cos.weight": torch.ones(3)}, ["1 unexpected (freqs_cos.weight)"]),
        ({"module.bias": torch.ones(3)}, ["1 unexpected (module.bias)"]),
        ({"_orig_mod.bias": torch.ones(3)}, ["1 unexpected (bias)"]),
        ({"logit_scale_other": torch.ones(())}, ["1 unexpected (logit_scale_other)"]),
        (
            {f"extra.{index}": torch.ones(1) for index in range(8)},
            ["8 unexpected (extra.0, extra.1, extra.2, extra.3, extra.4 and 3 more)"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    small: Callable[[Any], nn.Module], more: dict[str, Tensor], parts: list[str]
) -> None:
    with pytest.raises(CheckpointError) as info:
        small(SMALL | more)
    assert_one_sentence(info.value, "weights.pt", *parts)


def test_all_faults_of_tensors_are_named_at_once(small: Callable[[Any], nn.Module]) -> None:
    with pytest.raises(CheckpointError) as info:
        small({"state_dict": {"module.bias": torch.ones(4), "module.scale": torch.ones(1)}})
    assert_one_sentence(info.value, "1 missing (weight)", "1 unexpected (scale)", "1 misshaped (bias is [4]")


def test_tensors_that_fit_are_taken_by_name(small: Callable[[Any], nn.Module]) -> None:
    module = small(dict(reversed(SMALL.items())) | {"rope.freqs_cos": torch.ones(2, dtype=torch.int8)})
    for name, tensor in SMALL.items():
        torch.testing.assert_close(module.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda tensors: tensors.pop(BIAS), f"1 missing ({BIAS})"),
        (lambda tensors: tensors.update({"visual.neck": torch.zeros(1)}), "1 unexpected (visual.neck)"),
        (lambda tensors: tensors.update({BIAS: torch.zeros(49)}), f"1 misshaped ({BIAS} is [49] instead of [48])"),
        (lambda tensors: tensors.update({BIAS: torch.zeros(48).int()}), f"{BIAS} is torch.int32"),
        (lambda tensors: tensors.update({LAST: torch.full((64,), torch.nan)}), f"1 not finite ({LAST})"),
    ],
)
def test_a_model_whose_tensors_do_not_fit_is_refused(
    folder: Path, tensors: Tensors, edit: Callable[[Tensors], object], part: str
) -> None:
    edit(tensors)
    torch.save(wrapped_parallel(tensors), folder / "weights.pt")
    refused(folder / "weights.pt", str(folder / "weights.pt"), "model_config.json", part)


def test_weights_of_other_sizes_than_the_registered_model_are_refused(checkpoint: Path) -> None:
    assert "fineclip-vitb16" in MODELS
    with pytest.raises(CheckpointError) as info:
        families.load(locate("fineclip-vitb16", files=LocalFiles(weights=checkpoint, tokenizer=CLIP_TOKENIZER)))
    assert_one_sentence(info.value, str(checkpoint), "missing (visual.blocks.3.", "visual.cls_token is [1, 1, 64]")


# Options that do not go together


def test_a_registered_model_without_weights_asks_for_them(tmp_path: Path) -> None:
    for name in ("fineclip-vitb16", "fineclip-vitl14-336"):
        misplaced(name, name, f"--model {name} --weights")
        misplaced(name, name, "--weights", config=tmp_path / "c.json", tokenizer=CLIP_TOKENIZER)


def test_a_registered_model_takes_no_config(checkpoint: Path, registered: str) -> None:
    files = {"weights": checkpoint, "config": checkpoint.with_name("model_config.json")}
    misplaced(registered, registered, "leave out --config", **files)


def test_a_file_without_a_config_asks_for_one(checkpoint: Path) -> None:
    """A config beside the weights is not taken unasked, because nobody is to guess a model's kind."""
    misplaced(str(checkpoint), str(checkpoint), "--config", "--model NAME --weights")


def test_a_file_needs_no_other_weights(checkpoint: Path) -> None:
    files = {"weights": checkpoint, "config": checkpoint.with_name("model_config.json")}
    misplaced(str(checkpoint), str(checkpoint), "leave out --weights", **files)


@pytest.mark.parametrize("option", ["weights", "config", "tokenizer", "processor"])
@pytest.mark.parametrize("model", ["fg-clip2-base", "qihoo360/fg-clip-base", "fg-clip2-pocket"])
def test_a_whole_model_takes_no_files(
    checkpoint: Path, model: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    misplaced(model, model, f"needs no --{option}", **{option: checkpoint})


@pytest.mark.parametrize("option", ["weights", "config"])
def test_a_folder_has_its_own_weights_and_sizes(checkpoint: Path, option: str) -> None:
    misplaced(str(FOLDER), str(FOLDER), f"needs no --{option}", **{option: checkpoint})


def test_a_file_of_weights_needs_no_processor(checkpoint: Path) -> None:
    files = {"config": checkpoint.with_name("model_config.json"), "processor": FOLDER}
    misplaced(str(checkpoint), "weights needs no --processor", "fixed rules", **files)


def test_the_tokenizer_of_a_file_may_be_a_folder(checkpoint: Path) -> None:
    config = checkpoint.with_name("model_config.json")
    found = locate(str(checkpoint), files=LocalFiles(config=config, tokenizer=CLIP_TOKENIZER.parent))
    assert found.where("tokenizer.json") == CLIP_TOKENIZER


@pytest.mark.parametrize("option", ["weights", "config", "tokenizer"])
@pytest.mark.parametrize("model", ["fineclip-vit-b16", "missing.pt", "missing/folder"])
def test_an_unknown_model_is_called_unknown_whatever_goes_with_it(checkpoint: Path, model: str, option: str) -> None:
    misplaced(
        model,
        repr(model),
        "neither a known model nor",
        "fineclip-vitb16",
        code="checkpoint_missing",
        **{option: checkpoint},
    )


def test_a_revision_goes_with_the_hub_only(checkpoint: Path, registered: str) -> None:
    config = checkpoint.with_name("model_config.json")
    misplaced(str(checkpoint), "'main'", str(checkpoint), "leave out --revision", revision="main", config=config)
    misplaced(registered, "'main'", str(checkpoint), "leave out --revision", revision="main", weights=checkpoint)


# Configurations


@pytest.mark.parametrize(
    ("section", "values", "parts"),
    [
        ("vision_cfg", {"rope": False}, ["vision_cfg.rope is False", "EVA02-CLIP"]),
        ("vision_cfg", {"naiveswiglu": False}, ["vision_cfg.naiveswiglu is False", "EVA02-CLIP"]),
        ("vision_cfg", {"subln": False}, ["vision_cfg.subln is False", "EVA02-CLIP"]),
        ("vision_cfg", {"qkv_bias": False}, ["vision_cfg.qkv_bias is False", "EVA02-CLIP"]),
        ("vision_cfg", {"postnorm": True}, ["vision_cfg.postnorm is True", "EVA02-CLIP"]),
        ("vision_cfg", {"global_average_pool": True}, ["vision_cfg.global_average_pool is True", "EVA02-CLIP"]),
        ("vision_cfg", {"ls_init_value": 1e-5}, ["vision_cfg.ls_init_value is 1e-05", "EVA02-CLIP"]),
        ("vision_cfg", {"ls_init_value": 0}, ["vision_cfg.ls_init_value is 0.0", "EVA02-CLIP"]),
        ("text_cfg", {"ls_init_value": 0.1}, ["text_cfg.ls_init_value is 0.1"]),
        ("vision_cfg", {"image_size": 65}, ["vision_cfg.image_size 65", "patch_size 16"]),
        ("vision_cfg", {"patch_size": 128}, ["vision_cfg.image_size 64", "patch_size 128"]),
        ("vision_cfg", {"head_width": 24}, ["vision_cfg.width 64", "head_width 24"]),
        ("vision_cfg", {"head_width": 128}, ["vision_cfg.width 64", "head_width 128"]),
        ("vision_cfg", {"head_width": 2}, ["vision_cfg.head_width is 2", "multiple of 4"]),
        ("text_cfg", {"heads": 5}, ["text_cfg.width 32", "heads 5"]),
        ("vision_cfg", {"image_size": 0}, ["vision_cfg.image_size", ">= 1"]),
        ("vision_cfg", {"image_size": [64, 64]}, ["vision_cfg.image_size", "`int`", "`array`"]),
        ("vision_cfg", {"layers": 0}, ["vision_cfg.layers", ">= 1"]),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, ["vision_cfg.layers", "`int`", "`array`"]),
        ("vision_cfg", {"layers": True}, ["vision_cfg.layers", "`int`", "`bool`"]),
        ("vision_cfg", {"width": "64"}, ["vision_cfg.width", "`int`", "`str`"]),
        ("vision_cfg", {"mlp_ratio": 0}, ["vision_cfg.mlp_ratio", "> 0.0"]),
        ("vision_cfg", {"mlp_ratio": float("nan")}, ["vision_cfg.mlp_ratio", "> 0.0"]),
        ("vision_cfg", {"rope": None}, ["vision_cfg.rope", "`bool`", "`null`"]),
        ("vision_cfg", {"intp_freq": "yes"}, ["vision_cfg.intp_freq", "`bool`"]),
        ("vision_cfg", {"pt_hw_seq_len": 0}, ["vision_cfg.pt_hw_seq_len", ">= 1"]),
        ("text_cfg", {"context_length": 1}, ["text_cfg.context_length", ">= 2"]),
        ("text_cfg", {"vocab_size": 7.5}, ["text_cfg.vocab_size", "`int`"]),
        ("text_cfg", {"mlp_ratio": -1}, ["text_cfg.mlp_ratio", "> 0.0"]),
        ("vision_cfg", {"width": 2**64}, ["vision_cfg.width"]),
        ("vision_cfg", {"image_size": 2**31}, ["vision_cfg.image_size", "<= 16384"]),
        ("text_cfg", {"context_length": 2**40}, ["text_cfg.context_length", "<= 1048576"]),
        (None, {"embed_dim": 0}, ["embed_dim", ">= 1"]),
        (None, {"embed_dim": None}, ["embed_dim", "`int`", "`null`"]),
        (None, {"quick_gelu": "yes"}, ["quick_gelu", "`bool`"]),
        (None, {"text_cfg": 7}, ["text_cfg", "`object`"]),
        (None, {"text_cfg": None}, ["text_cfg", "`object`"]),
    ],
)
def test_an_option_that_no_model_can_be_built_with_is_named(
    config: Json, section: str | None, values: Json, parts: list[str]
) -> None:
    document = copy.deepcopy(config)
    (document if section is None else document[section]).update(values)
    with pytest.raises(CheckpointError) as info:
        Config.from_json(document)
    assert_one_sentence(info.value, "model_config.json", *parts)


def test_a_missing_option_is_named(config: Json) -> None:
    del config["embed_dim"]
    with pytest.raises(CheckpointError) as info:
        Config.from_json(config)
    assert_one_sentence(info.value, "model_config.json", "embed_dim")


def test_options_that_steer_training_are_passed_over(config: Json) -> None:
    known = Config.from_json(config)
    config["vision_cfg"] |= {"drop_path_rate": 0.1, "patch_dropout": 0.5, "xattn": True}
    config["text_cfg"] |= {"xattn": True, "fusedLN": True}
    assert Config.from_json(config | {"custom_text": True}) == known


@pytest.mark.parametrize("section", ["vision_cfg", "text_cfg"])
def test_an_infinite_ratio_is_named(checkpoint: Path, config: Json, section: str) -> None:
    config[section]["mlp_ratio"] = float("inf")
    checkpoint.with_name("model_config.json").write_text(json.dumps(config))
    refused(checkpoint, "model_config.json", f"{section}.mlp_ratio")


@pytest.mark.parametrize(
    ("section", "values", "part"),
    [
        ("vision_cfg", {"layers": 4}, "missing (visual.blocks.3.norm1.weight"),
        ("text_cfg", {"layers": 2}, "unexpected (text.transformer.resblocks.2.ln_1.weight"),
        ("text_cfg", {"context_length": 78}, "text.positional_embedding is [77, 32] instead of [78, 32]"),
        ("vision_cfg", {"image_size": 80}, "visual.pos_embed is [1, 17, 64] instead of [1, 26, 64]"),
    ],
)
def test_a_config_of_other_sizes_does_not_fit_the_weights(
    checkpoint: Path, config: Json, section: str, values: Json, part: str
) -> None:
    config[section].update(values)
    checkpoint.with_name("model_config.json").write_text(json.dumps(config))
    refused(checkpoint, str(checkpoint), part)


@pytest.mark.parametrize("section", ["vision_cfg", "text_cfg"])
def test_a_depth_that_the_weights_do_not_have_is_refused_at_once(checkpoint: Path, config: Json, section: str) -> None:
    config[section]["layers"] = 2**20
    checkpoint.with_name("model_config.json").write_text(json.dumps(config))
    refused(checkpoint, str(checkpoint), "transformer blocks", "1,048,5")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_named(checkpoint: Path, text: str) -> None:
    path = checkpoint.with_name("model_config.json")
    path.write_text(text)
    refused(checkpoint, str(path), code="checkpoint_damaged")


def test_a_config_that_is_not_text_is_named(checkpoint: Path) -> None:
    path = checkpoint.with_name("model_config.json")
    path.write_bytes(b"\x80\x81\x82")
    refused(checkpoint, str(path), code="checkpoint_damaged")


@pytest.mark.parametrize(
    "document",
    [
        {
            "embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        },
        {"embed_dim": 512, "vision_cfg": {"timm_model_name": "vit_base_patch16_224"}},
        {"embed_dim": 512},
        {"embed_dim": 512, "vision_cfg": []},
        {"embed_dim": 512, "vision_cfg": None},
        {"embed_dim": 512, "vision_cfg": 7},
        {"architectures": ["FGCLIPModel"], "model_type": "clip"},
        {},
    ],
)
def test_a_config_of_another_family_lists_the_supported(checkpoint: Path, document: Json) -> None:
    """A ViT of open_clip is an example: its weights come as such a file too."""
    path = checkpoint.with_name("model_config.json")
    path.write_text(json.dumps(document))
    message = refused(checkpoint, str(path), "supported: fineclip", code="checkpoint_unsupported")
    assert "fgclip2" not in message
