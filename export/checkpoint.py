"""Finding a checkpoint and loading its tensors strictly by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fgclip_rt.bundle import MANIFEST, sha256
from fgclip_rt.errors import CheckpointError

from .registry import find_model, unknown_model

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
#: Names of tensors listed in one message before it says how many more there are.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Checkpoint:
    """A folder as ``save_pretrained`` writes it.

    Attributes:
        path: the folder.
        name: registry name, or the folder's.
        source: Hub id or folder name.
        revision: commit on the Hub, if it came from there.
        origin: ``released`` from the Hub, ``shipped`` with this package, or ``local``.
    """

    path: Path
    name: str
    source: str
    revision: str | None
    origin: Literal["released", "shipped", "local"]

    def json(self, file: str) -> dict[str, Any]:
        """One of its JSON files.

        Raises:
            CheckpointError: it is missing, not JSON, or not an object.
        """
        path = self.path / file
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise CheckpointError(f"{self.path} has no {file}; point at a whole checkpoint folder.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); restore the file.") from None
        if not isinstance(document, dict):
            raise CheckpointError(f"{path} is not a JSON object; restore the file.")
        return document

    def file(self, name: str) -> Path:
        """Path of one of its files.

        Raises:
            CheckpointError: it is missing.
        """
        path = self.path / name
        if not path.is_file():
            raise CheckpointError(f"{self.path} has no {name}; point at a whole checkpoint folder.")
        return path

    def text(self, name: str) -> str:
        """Text of one of its files.

        Raises:
            CheckpointError: it is missing, cannot be read, or is not UTF-8.
        """
        path = self.file(name)
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

    def weight_files(self) -> list[Path]:
        """Its safetensors files: one, or the shards that its index names.

        Raises:
            CheckpointError: there are none, or a shard is missing.
        """
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
        return [self.file(name) for name in sorted(set(shards.values()))]


def locate(model: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint called ``model``: a registry name or Hub id, downloaded unless it is shipped, or a folder.

    Raises:
        CheckpointError: the name is unknown, or the download failed.
    """
    spec = find_model(model)
    if spec is not None and spec.hub_id is not None:
        return _download(spec.name, spec.hub_id, revision)
    if spec is not None and spec.folder is not None:
        return _shipped(spec.name, spec.folder, revision)
    path = Path(model)
    if not model or not path.is_dir():
        raise unknown_model(model)
    if (path / MANIFEST).is_file() and not (path / "config.json").exists():
        raise CheckpointError(f"{path} is an exported bundle, not a checkpoint; give the folder it was exported from.")
    if revision is not None:
        raise CheckpointError(f"{path} is a local folder and has no revision {revision!r}; leave out --revision.")
    name = path.resolve().name
    return Checkpoint(path, name=name, source=name, revision=None, origin="local")


def _shipped(name: str, folder: Path, revision: str | None) -> Checkpoint:
    if revision is not None:
        raise CheckpointError(f"{name} comes with fgclip-rt and has no revision {revision!r}; leave out --revision.")
    if not folder.is_dir():
        raise CheckpointError(f"{name} is missing from this installation ({folder}); install fgclip-rt again.")
    return Checkpoint(folder, name=name, source=name, revision=None, origin="shipped")


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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{hub_id} could not be downloaded ({reason.rstrip('.')}); with no network, copy the checkpoint "
            "folder here and give its path: fgclip-rt export --model path/to/checkpoint."
        ) from None
    path = Path(folder)
    return Checkpoint(path, name=name, source=hub_id, revision=path.name, origin="released")


def load_weights(module: nn.Module, files: list[Path], folder: Path) -> None:
    """Fill ``module``, built on the meta device, with float32 copies of the checkpoint's tensors.

    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unexpected, duplicated, misshaped or not finite; one
            message names them all.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found: dict[str, Tensor] = {}
    misshaped: list[str] = []
    unexpected: list[str] = []
    not_finite: list[str] = []
    for path in files:
        for name, tensor in _read(path):
            if name not in expected or name in found:
                unexpected.append(name)
            elif tuple(tensor.shape) != expected[name]:
                misshaped.append(f"{name} is {list(tensor.shape)} instead of {list(expected[name])}")
            elif not tensor.is_floating_point():
                misshaped.append(f"{name} is {tensor.dtype} instead of a float")
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
            f"{folder} does not hold the model that its config.json describes: tensors {', '.join(problems)}; "
            "restore the checkpoint's files."
        )
    module.load_state_dict(found, strict=True, assign=True)


def _read(path: Path) -> list[tuple[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            return [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); restore the file.") from None


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
