"""Finding a checkpoint: by a model's name, a Hub id, a folder, or a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgclip_rt.bundle import MANIFEST
from fgclip_rt.errors import CheckpointError, reason

from .files import (
    PREPROCESSOR,
    PROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Checkpoint,
    CheckpointFile,
    CheckpointFolder,
)
from .registry import ModelSpec, find_model, unknown_model

#: The repository of CLIP's tokenizer, for models with its vocabulary and no file of their own.
_CLIP = "openai/clip-vit-base-patch16"


#: Suffixes of files that ``torch.save`` wrote.
_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True)
class LocalFiles:
    """Files that go with a model, for a file of weights or for a folder that lacks them.

    Attributes:
        weights: the file, for a model that is named by its registry name; None if the file itself is named.
        config: the ``model_config.json`` of a file that is no registered model's; None takes the known sizes.
        tokenizer: a folder with the files of the tokenizer, or a ``tokenizer.json``. None takes the checkpoint's own.
            For a file of weights these lie beside it, or CLIP's are downloaded.
        processor: a folder with the settings of images, or their file; None takes the checkpoint's own.
    """

    weights: Path | None = None
    config: Path | None = None
    tokenizer: Path | None = None
    processor: Path | None = None


def locate(model: str, revision: str | None = None, files: LocalFiles | None = None) -> Checkpoint:
    """The checkpoint called ``model``: a registry name or Hub id, downloaded unless it is shipped, a folder or a file.

    Raises:
        CheckpointError: the name is unknown, the download failed, or the model needs other files.
    """
    files = files or LocalFiles()
    spec = find_model(model)
    path = Path(model)
    if spec is not None and spec.hub_id is None and spec.folder is None:
        return _weights_of(spec, revision, files)
    if spec is None and path.suffix in _SUFFIXES and path.is_file():
        return _weight_file(path, revision, files)
    if spec is None and not (model and path.is_dir()):
        raise unknown_model(model)
    needless = ("weights", "config") if spec is None else ("weights", "config", "tokenizer", "processor")
    _refuse_needless(model, files, needless, "everything lies in its folder")
    if spec is not None and spec.hub_id is not None:
        return _download(spec.name, spec.hub_id, revision)
    if spec is not None and spec.folder is not None:
        return _shipped(spec.name, spec.folder, revision)
    return _folder(path, revision, files)


def _refuse_needless(model: str, files: LocalFiles, options: tuple[str, ...], reason: str) -> None:
    for option in options:
        if getattr(files, option) is not None:
            raise CheckpointError(f"{model} needs no --{option}, {reason}; leave it out.", code="argument_invalid")


def _folder(path: Path, revision: str | None, files: LocalFiles) -> Checkpoint:
    if (path / MANIFEST).is_file() and not (path / "config.json").exists():
        raise CheckpointError(
            f"{path} is an exported bundle, not a checkpoint; give the folder it was exported from.",
            code="checkpoint_missing",
        )
    if revision is not None:
        raise CheckpointError(
            f"{path} is a local folder and has no revision {revision!r}; leave out --revision.", code="argument_invalid"
        )
    for given in (files.tokenizer, files.processor):
        if given is not None and not given.exists():
            raise CheckpointError(f"{given} is no file or folder; check the path.", code="checkpoint_missing")
    name = path.resolve().name
    checkpoint = CheckpointFolder(path, name, name, None, "local", files.tokenizer, files.processor)
    for file in (TOKENIZER, TOKENIZER_CONFIG, PREPROCESSOR, PROCESSOR):
        taken = checkpoint.where(file)
        if taken != path / file and taken.is_file() and (path / file).is_file():
            checkpoint.note(f"{path} has a {file} of its own; {taken} was taken.")
    return checkpoint


def _shipped(name: str, folder: Path, revision: str | None) -> Checkpoint:
    if revision is not None:
        raise CheckpointError(
            f"{name} comes with fgclip-rt and has no revision {revision!r}; leave out --revision.",
            code="argument_invalid",
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"the checkpoint of {name} comes with the sources of fgclip-rt and not with this installation ({folder}); "
            f"export it in a checkout, or load the bundle {name}.",
            code="checkpoint_missing",
        )
    return CheckpointFolder(folder, name=name, source=name, revision=None, origin="shipped")


def _weights_of(spec: ModelSpec, revision: str | None, files: LocalFiles) -> Checkpoint:
    if files.weights is None:
        raise CheckpointError(
            f"{spec.name} is on no hub; give the file of its weights: "
            f"fgclip-rt export --model {spec.name} --weights FILE.pt.",
            code="argument_invalid",
        )
    if files.config is not None:
        raise CheckpointError(
            f"{spec.name} has known sizes; leave out --config, or give the file as --model.", code="argument_invalid"
        )
    return _with_tokenizer(files.weights, spec.name, spec.config, revision, files)


def _weight_file(path: Path, revision: str | None, files: LocalFiles) -> Checkpoint:
    if files.weights is not None:
        raise CheckpointError(f"{path} is a file of weights itself; leave out --weights.", code="argument_invalid")
    if files.config is None:
        raise CheckpointError(
            f"{path} does not say what sizes its model has; give its model_config.json with --config, or the name of a "
            "known model: --model NAME --weights FILE.pt.",
            code="argument_invalid",
        )
    return _with_tokenizer(path, path.stem, files.config, revision, files)


def _with_tokenizer(
    path: Path, name: str, config: Path | Mapping[str, Any], revision: str | None, files: LocalFiles
) -> Checkpoint:
    if revision is not None:
        raise CheckpointError(
            f"{path} is a local file and has no revision {revision!r}; leave out --revision.", code="argument_invalid"
        )
    _refuse_needless(name, files, ("processor",), "because its images are prepared by fixed rules")
    given = files.tokenizer
    if given is not None and given.is_dir():
        given = given / TOKENIZER
    for file in (path, files.config, given):
        if file is not None and not file.is_file():
            raise CheckpointError(f"{file} is no file; check the path.", code="checkpoint_missing")
    beside = path.with_name(TOKENIZER)
    tokenizer = given or (beside if beside.is_file() else _clip_tokenizer())
    return CheckpointFile(path, name, path.name, None, "local", config, tokenizer)


def _clip_tokenizer() -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(_CLIP, TOKENIZER))
    except Exception as error:  # the errors of the HTTP client beneath differ from version to version
        raise CheckpointError(
            f"CLIP's tokenizer could not be downloaded from {_CLIP} ({reason(error)}); with no network, copy its "
            f"{TOKENIZER} here and give its path with --tokenizer.",
            code="download_failed",
        ) from None


def _download(name: str, hub_id: str, revision: str | None) -> Checkpoint:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=["*.json", "*.safetensors"]
        )
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"{hub_id} has no revision {revision!r}; look at its page on the Hub.", code="checkpoint_missing"
        ) from None
    except Exception as error:  # the errors of the HTTP client beneath differ from version to version
        raise CheckpointError(
            f"{hub_id} could not be downloaded ({reason(error)}); with no network, copy the checkpoint "
            "folder here and give its path: fgclip-rt export --model path/to/checkpoint.",
            code="download_failed",
        ) from None
    path = Path(folder)
    return CheckpointFolder(path, name=name, source=hub_id, revision=path.name, origin="released")
