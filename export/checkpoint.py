"""Finding a checkpoint and loading its tensors strictly by name."""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fgclip_rt.bundle import MANIFEST, sha256
from fgclip_rt.errors import CheckpointError

from .registry import ModelSpec, find_model, unknown_model

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
#: Where CLIP's tokenizer comes from, for models that have its vocabulary and come without.
_CLIP = "openai/clip-vit-base-patch16"
#: Of files that ``torch.save`` wrote.
_SUFFIXES = (".pt", ".pth")
#: Where training scripts put a state dict, how often at most, and what parallel training puts before every name.
_WRAPPER, _MOST_WRAPPERS, _PARALLEL = "state_dict", 4, "module."
#: Names of tensors listed in one message before it says how many more there are.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Checkpoint(ABC):
    """A model's files, wherever they are.

    Attributes:
        path: the folder or file that was named.
        name: registry name, or the folder's or file's.
        source: Hub id, or the folder's or file's name.
        revision: commit on the Hub, if it came from there.
        origin: ``released`` from the Hub, ``shipped`` with this package, or ``local``.
        config_file: the file that states the model's sizes.
    """

    path: Path
    name: str
    source: str
    revision: str | None
    origin: Literal["released", "shipped", "local"]
    config_file: ClassVar[str]

    @property
    def described_by(self) -> str:
        """What states the model's sizes, for messages."""
        return f"its {self.config_file}"

    @abstractmethod
    def where(self, file: str) -> Path:
        """Where the file called ``file`` is, or should be."""

    @abstractmethod
    def weight_files(self) -> list[Path]:
        """The files that hold its tensors.

        Raises:
            CheckpointError: there are none, or one of them is missing.
        """

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its tensors by name, one file after the other.

        Raises:
            CheckpointError: a file is missing or damaged.
        """

    def json(self, file: str) -> dict[str, Any]:
        """One of its JSON files.

        Raises:
            CheckpointError: it is missing, not JSON, or not an object.
        """
        path = self._existing(file)
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); restore the file.") from None
        if not isinstance(document, dict):
            raise CheckpointError(f"{path} is not a JSON object; restore the file.")
        return document

    def text(self, file: str) -> str:
        """Text of one of its files.

        Raises:
            CheckpointError: it is missing, cannot be read, or is not UTF-8.
        """
        path = self._existing(file)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); restore the file.") from None

    def sha256(self) -> str:
        """Digest over its weight files, in order.

        Raises:
            CheckpointError: one is missing or cannot be read.
        """
        try:
            return sha256(*self.weight_files())
        except OSError as error:
            raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}); restore the file.") from None

    def _existing(self, file: str) -> Path:
        path = self.where(file)
        if not path.is_file():
            raise CheckpointError(f"{path.parent} has no {path.name}; point at a whole checkpoint.")
        return path


@dataclass(frozen=True)
class CheckpointFolder(Checkpoint):
    """A folder as ``save_pretrained`` writes it."""

    config_file = "config.json"

    def where(self, file: str) -> Path:
        return self.path / file

    def weight_files(self) -> list[Path]:
        """Its safetensors files: one, or the shards that its index names."""
        if (self.path / _WEIGHTS).is_file():
            return [self.path / _WEIGHTS]
        if not (self.path / _INDEX).is_file():
            raise CheckpointError(
                f"{self.path} has neither {_WEIGHTS} nor {_INDEX}; "
                "point at a checkpoint saved by save_pretrained as safetensors."
            )
        shards = self.json(_INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{self.path / _INDEX} has no weight_map; restore the file.")
        for name in shards.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{self.path / _INDEX} names {name!r}, no file of its folder; restore the file.")
        return [self._existing(name) for name in sorted(set(shards.values()))]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for path in self.weight_files():
            try:
                with safe_open(path, "pt") as file:
                    # Listed first, so that an error of whoever takes them is not mistaken for one of the file.
                    tensors = [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118 (not a dict)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a readable safetensors file ({error}); restore the file."
                ) from None
            yield from tensors


@dataclass(frozen=True)
class CheckpointFile(Checkpoint):
    """A file of weights as ``torch.save`` writes it, and the files that go with it.

    Attributes:
        config: its ``model_config.json``: where that is, or what it holds.
        tokenizer: its ``tokenizer.json``.
    """

    config: Path | Mapping[str, Any]
    tokenizer: Path
    config_file = "model_config.json"

    @property
    def described_by(self) -> str:
        return str(self.config) if isinstance(self.config, Path) else f"the name {self.name}"

    def where(self, file: str) -> Path:
        if file == self.config_file and isinstance(self.config, Path):
            return self.config
        return self.tokenizer if file == TOKENIZER else self.path.with_name(file)

    def json(self, file: str) -> dict[str, Any]:
        if file == self.config_file and not isinstance(self.config, Path):
            return dict(self.config)
        return super().json(file)

    def weight_files(self) -> list[Path]:
        return [self.path]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its tensors; wrapping dictionaries and the prefix of parallel training are taken off."""
        document = _load(self.path)
        for _ in range(_MOST_WRAPPERS):  # not for ever: a dictionary may hold itself
            if isinstance(document, dict) and _WRAPPER in document:
                document = document[_WRAPPER]
        if not isinstance(document, dict) or not document:
            raise CheckpointError(f"{self.path} holds no state dict; save it by torch.save(model.state_dict(), path).")
        for name, tensor in document.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise CheckpointError(
                    f"{self.path} holds {name!r}, which is no tensor; save the weights alone, by "
                    "torch.save(model.state_dict(), path)."
                )
            yield name.removeprefix(_PARALLEL), tensor


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is not a file of tensors, or holds other Python objects, whose loading could run code; save the "
            "weights alone, by torch.save(model.state_dict(), path)."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore the file.") from None
    except MemoryError:
        raise
    except Exception:  # a damaged file is any error of the unpickler or the archive, and what they say helps nobody
        raise CheckpointError(
            f"{path} is damaged, or not a file that torch.save wrote; restore it, or save the weights by "
            "torch.save(model.state_dict(), path)."
        ) from None


@dataclass(frozen=True)
class LocalFiles:
    """What goes with a model that comes as a file of weights.

    Attributes:
        weights: the file, for a model that is named by its registry name.
        config: its ``model_config.json``, for a file that is no registered model's.
        tokenizer: its ``tokenizer.json``; None takes one that lies beside the weights, or downloads CLIP's.
    """

    weights: Path | None = None
    config: Path | None = None
    tokenizer: Path | None = None


def locate(model: str, revision: str | None = None, files: LocalFiles | None = None) -> Checkpoint:
    """The checkpoint called ``model``: a registry name or Hub id, downloaded unless it is shipped, a folder or a file.

    Raises:
        CheckpointError: the name is unknown, the download failed, or the files are not those that the model needs.
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
    for option, value in (("--weights", files.weights), ("--config", files.config), ("--tokenizer", files.tokenizer)):
        if value is not None:
            raise CheckpointError(f"{model} needs no {option}, everything lies in its folder; leave it out.")
    if spec is not None and spec.hub_id is not None:
        return _download(spec.name, spec.hub_id, revision)
    if spec is not None and spec.folder is not None:
        return _shipped(spec.name, spec.folder, revision)
    if (path / MANIFEST).is_file() and not (path / "config.json").exists():
        raise CheckpointError(f"{path} is an exported bundle, not a checkpoint; give the folder it was exported from.")
    if revision is not None:
        raise CheckpointError(f"{path} is a local folder and has no revision {revision!r}; leave out --revision.")
    name = path.resolve().name
    return CheckpointFolder(path, name=name, source=name, revision=None, origin="local")


def _shipped(name: str, folder: Path, revision: str | None) -> Checkpoint:
    if revision is not None:
        raise CheckpointError(f"{name} comes with fgclip-rt and has no revision {revision!r}; leave out --revision.")
    if not folder.is_dir():
        raise CheckpointError(f"{name} is missing from this installation ({folder}); install fgclip-rt again.")
    return CheckpointFolder(folder, name=name, source=name, revision=None, origin="shipped")


def _weights_of(spec: ModelSpec, revision: str | None, files: LocalFiles) -> Checkpoint:
    if files.weights is None:
        raise CheckpointError(
            f"{spec.name} is on no hub; give the file of its weights: "
            f"fgclip-rt export --model {spec.name} --weights FILE.pt."
        )
    if files.config is not None:
        raise CheckpointError(f"{spec.name} has known sizes; leave out --config, or give the file as --model.")
    return _with_tokenizer(files.weights, spec.name, spec.config, revision, files)


def _weight_file(path: Path, revision: str | None, files: LocalFiles) -> Checkpoint:
    if files.weights is not None:
        raise CheckpointError(f"{path} is a file of weights itself; leave out --weights.")
    if files.config is None:
        raise CheckpointError(
            f"{path} does not say what sizes its model has; give its model_config.json with --config, or the name of a "
            "known model: --model NAME --weights FILE.pt."
        )
    return _with_tokenizer(path, path.stem, files.config, revision, files)


def _with_tokenizer(
    path: Path, name: str, config: Path | Mapping[str, Any], revision: str | None, files: LocalFiles
) -> Checkpoint:
    if revision is not None:
        raise CheckpointError(f"{path} is a local file and has no revision {revision!r}; leave out --revision.")
    for file in (path, files.config, files.tokenizer):
        if file is not None and not file.is_file():
            raise CheckpointError(f"{file} is no file; check the path.")
    beside = path.with_name(TOKENIZER)
    tokenizer = files.tokenizer or (beside if beside.is_file() else _clip_tokenizer())
    return CheckpointFile(path, name, path.name, None, "local", config, tokenizer)


def _clip_tokenizer() -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(_CLIP, TOKENIZER))
    except Exception as error:  # the errors of the HTTP client beneath differ from version to version
        raise CheckpointError(
            f"CLIP's tokenizer could not be downloaded from {_CLIP} ({_reason(error)}); with no network, copy its "
            f"{TOKENIZER} here and give its path with --tokenizer."
        ) from None


def _download(name: str, hub_id: str, revision: str | None) -> Checkpoint:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=["*.json", "*.safetensors"]
        )
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{hub_id} has no revision {revision!r}; look at its page on the Hub.") from None
    except Exception as error:  # the errors of the HTTP client beneath differ from version to version
        raise CheckpointError(
            f"{hub_id} could not be downloaded ({_reason(error)}); with no network, copy the checkpoint "
            "folder here and give its path: fgclip-rt export --model path/to/checkpoint."
        ) from None
    path = Path(folder)
    return CheckpointFolder(path, name=name, source=hub_id, revision=path.name, origin="released")


def _reason(error: Exception) -> str:
    """The first sentence of an error's message."""
    text = str(error).strip()
    return (text.splitlines()[0].split(". ")[0] if text else type(error).__name__).rstrip(".")


def load_weights(module: nn.Module, checkpoint: Checkpoint, unused: tuple[str, ...] = ()) -> None:
    """Fill ``module``, built on the meta device, with float32 copies of the checkpoint's tensors.

    Args:
        module: the reference.
        checkpoint: where they are.
        unused: ends of names of tensors that checkpoints may hold and nothing reads.

    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unexpected, duplicated, misshaped or not finite; one
            message names them all.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found: dict[str, Tensor] = {}
    misshaped: list[str] = []
    unexpected: list[str] = []
    not_finite: list[str] = []
    for name, tensor in checkpoint.tensors():
        if name.endswith(unused) and name not in expected:
            continue
        if name not in expected or name in found:
            unexpected.append(name)
        elif tuple(tensor.shape) != expected[name]:
            misshaped.append(f"{name} is {list(tensor.shape)} instead of {list(expected[name])}")
        elif not tensor.is_floating_point():
            misshaped.append(f"{name} is {tensor.dtype} instead of a float")
        elif tensor.layout != torch.strided or tensor.is_meta:
            misshaped.append(f"{name} is {tensor.layout} on {tensor.device} instead of an array")
        else:
            found[name] = tensor.to(torch.float32)
            if not found[name].isfinite().all():
                not_finite.append(name)
    refused = {entry.split(" ", 1)[0] for entry in misshaped}
    missing = [name for name in expected if name not in found and name not in refused]
    faults = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped, "not finite": not_finite}
    problems = [f"{len(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} does not hold the model that {checkpoint.described_by} describes: tensors "
            f"{', '.join(problems)}; restore the checkpoint's files."
        )
    module.load_state_dict(found, strict=True, assign=True)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
