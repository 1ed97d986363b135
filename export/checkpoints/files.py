"""The files of a checkpoint: a folder as ``save_pretrained`` writes it, or a file that ``torch.save`` wrote."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fgclip_rt.bundle import sha256
from fgclip_rt.errors import CheckpointError

from . import pickles

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
#: The settings of images: in a file of their own, or, by transformers 5, nested in the file of the whole processor.
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
#: Keys under which training scripts wrap a state dict, and the most wrappers. OpenCLIP knows the first, and EVA-CLIP
#: and DeepSpeed the others.
_WRAPPERS, _MOST_WRAPPERS = ("state_dict", "model", "module"), 4
#: Remedies for a missing file. The trainers of some families save neither a tokenizer nor the settings of images.
_REMEDIES = {
    **dict.fromkeys((TOKENIZER, TOKENIZER_CONFIG), "name the folder of the model's tokenizer with --tokenizer"),
    PREPROCESSOR: "name the folder that has it, or its processor_config.json, with --processor",
}


@dataclass(frozen=True)
class Checkpoint(ABC):
    """A model's files, wherever they are.

    Attributes:
        path: the folder or file that was named.
        name: registry name, or name of the folder or file.
        source: Hub id, or name of the folder or file.
        revision: commit on the Hub; None if it did not come from there.
        origin: ``released`` from the Hub, ``shipped`` with this package, or ``local``.
        notes: sentences for the user: what was passed over in its files, and what was chosen.
        config_file: the file that states the model's sizes.
    """

    path: Path
    name: str
    source: str
    revision: str | None
    origin: Literal["released", "shipped", "local"]
    notes: list[str] = field(default_factory=list, kw_only=True, compare=False)
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

    def note(self, text: str) -> None:
        """Add a sentence to the notes, unless it is there already, because a checkpoint may be loaded twice."""
        if text not in self.notes:
            self.notes.append(text)

    def has(self, file: str) -> bool:
        """Whether the file called ``file`` is there."""
        return self.where(file).is_file()

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
            remedy = _REMEDIES.get(file, "point at a whole checkpoint")
            raise CheckpointError(f"{path.parent} has no {path.name}; {remedy}.", code="checkpoint_incomplete")
        return path


@dataclass(frozen=True)
class CheckpointFolder(Checkpoint):
    """A folder as ``save_pretrained`` writes it.

    Attributes:
        tokenizer: a folder, or a ``tokenizer.json``, that comes before the checkpoint's own files of the tokenizer;
            None if there is none.
        processor: likewise for the settings of images.
    """

    tokenizer: Path | None = None
    processor: Path | None = None
    config_file = "config.json"

    def where(self, file: str) -> Path:
        named = self.tokenizer if file in (TOKENIZER, TOKENIZER_CONFIG) else None
        named = self.processor if file in (PREPROCESSOR, PROCESSOR) else named
        own = self.path / file
        if named is None:
            return own
        # A file has its name from its owner; the configuration of a tokenizer lies beside it.
        file_given = named.with_name(file) if file == TOKENIZER_CONFIG else named
        given = named / file if named.is_dir() else file_given
        return own if own.is_file() and not given.is_file() else given

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
        """Its tensors, without the dictionaries around them."""
        document = pickles.load(self.path)
        for _ in range(_MOST_WRAPPERS):  # not for ever: a dictionary may hold itself
            key = self._wrapper(document)
            if key is None:
                break
            document = document[key]
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
            yield name, tensor

    def _wrapper(self, document: Any) -> str | None:
        """The key of a dictionary that leads to the weights; None if they are in the dictionary itself.

        Raises:
            CheckpointError: several keys do, and none comes before the others.
        """
        if not isinstance(document, dict):
            return None
        first = _WRAPPERS[0]
        keys = [key for key, value in document.items() if isinstance(key, str) and _weights_in(value)]
        known = [key for key in _WRAPPERS if key in keys] or [first] * (first in document)
        if first not in known and _count_tensors(document) >= max(
            (_weights_in(document[key]) for key in keys), default=0
        ):
            return None
        if not known and len(keys) > 1:
            raise CheckpointError(
                f"{self.path} holds {len(keys)} state dicts ({', '.join(map(repr, keys))}); save the one to export, by "
                "torch.save(model.state_dict(), path)."
            )
        key = (known or keys)[0]
        others = [other for other in keys if other != key]
        if others:
            names = " and ".join(map(repr, others))
            reason = ", as OpenCLIP does" if key == first else ""
            self.note(f"{self.path} holds {names} beside {key!r}; the weights were taken from {key!r}{reason}.")
        elif not known:
            self.note(f"{self.path} holds one state dict, {key!r}; the weights were taken from it.")
        return key


def _weights_in(value: Any, depth: int = 1) -> int:
    """Number of tensors in a dictionary, or in the one that it wraps; 0 if a value is neither."""
    if not isinstance(value, dict):
        return 0
    wrapped = (_weights_in(value.get(key), depth + 1) for key in _WRAPPERS if depth < _MOST_WRAPPERS)
    return max(_count_tensors(value), *wrapped, 0)


def _count_tensors(document: dict[Any, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in document.values())
