"""The files of a checkpoint: a folder as ``save_pretrained`` writes it, or a file that ``torch.save`` wrote."""

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
from torch import Tensor

from fgclip_rt.bundle import sha256
from fgclip_rt.errors import CheckpointError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
#: The key under which training scripts wrap a state dict, the most wrappers, and the prefix of parallel training.
_WRAPPER, _MOST_WRAPPERS, _PARALLEL = "state_dict", 4, "module."


@dataclass(frozen=True)
class Checkpoint(ABC):
    """A model's files, wherever they are.

    Attributes:
        path: the folder or file that was named.
        name: registry name, or name of the folder or file.
        source: Hub id, or name of the folder or file.
        revision: commit on the Hub; None if it did not come from there.
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
        """The origin of the model's sizes, for messages."""
        return f"its {self.config_file}"

    @abstractmethod
    def where(self, file: str) -> Path:
        """The path at which the file called ``file`` is or should be."""

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
            raise CheckpointError(
                f"{path} cannot be read ({error}); restore the file.", code="checkpoint_damaged"
            ) from None
        if not isinstance(document, dict):
            raise CheckpointError(f"{path} is not a JSON object; restore the file.", code="checkpoint_damaged")
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
            raise CheckpointError(
                f"{path} cannot be read ({error}); restore the file.", code="checkpoint_damaged"
            ) from None

    def sha256(self) -> str:
        """Digest over its weight files, in order.

        Raises:
            CheckpointError: one is missing or cannot be read.
        """
        try:
            return sha256(*self.weight_files())
        except OSError as error:
            raise CheckpointError(
                f"{error.filename} cannot be read ({error.strerror}); restore the file.", code="checkpoint_damaged"
            ) from None

    def _existing(self, file: str) -> Path:
        path = self.where(file)
        if not path.is_file():
            raise CheckpointError(
                f"{path.parent} has no {path.name}; point at a whole checkpoint.", code="checkpoint_incomplete"
            )
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
                "point at a checkpoint saved by save_pretrained as safetensors.",
                code="checkpoint_incomplete",
            )
        shards = self.json(_INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(
                f"{self.path / _INDEX} has no weight_map; restore the file.", code="checkpoint_damaged"
            )
        for name in shards.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(
                    f"{self.path / _INDEX} names {name!r}, no file of its folder; restore the file.",
                    code="checkpoint_damaged",
                )
        return [self._existing(name) for name in sorted(set(shards.values()))]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for path in self.weight_files():
            try:
                with safe_open(path, "pt") as file:
                    # Listed first, so that an error of the caller is not mistaken for an error of the file.
                    tensors = [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118 (not a dict)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a readable safetensors file ({error}); restore the file.", code="checkpoint_damaged"
                ) from None
            yield from tensors


@dataclass(frozen=True)
class CheckpointFile(Checkpoint):
    """A file of weights as ``torch.save`` writes it, and the files that go with it.

    Attributes:
        config: the path of its ``model_config.json``, or the contents.
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
        """Its tensors; wrapping dictionaries and the prefix of parallel training are removed."""
        document = _load(self.path)
        for _ in range(_MOST_WRAPPERS):  # not for ever: a dictionary may hold itself
            if isinstance(document, dict) and _WRAPPER in document:
                document = document[_WRAPPER]
        if not isinstance(document, dict) or not document:
            raise CheckpointError(
                f"{self.path} holds no state dict; save it by torch.save(model.state_dict(), path).",
                code="checkpoint_damaged",
            )
        for name, tensor in document.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise CheckpointError(
                    f"{self.path} holds {name!r}, which is no tensor; save the weights alone, by "
                    "torch.save(model.state_dict(), path).",
                    code="checkpoint_unsafe",
                )
            yield name.removeprefix(_PARALLEL), tensor


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is not a file of tensors, or holds other Python objects, whose loading could run code; save the "
            "weights alone, by torch.save(model.state_dict(), path).",
            code="checkpoint_unsafe",
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); restore the file.", code="checkpoint_damaged"
        ) from None
    except MemoryError:
        raise
    except Exception:  # damage raises any error of the unpickler or the archive, with no useful message
        raise CheckpointError(
            f"{path} is damaged, or not a file that torch.save wrote; restore it, or save the weights by "
            "torch.save(model.state_dict(), path).",
            code="checkpoint_damaged",
        ) from None
