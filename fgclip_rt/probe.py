"""The recorded probe: inputs and the reference's results, so that parity can be checked without PyTorch.

Everything lies in one safetensors file. Per image ``i``: ``image.i.rgb`` uint8 [H, W, 3], ``image.i.patches`` uint8
[n, P·P·3], ``image.i.grid`` int32 [2], and the reference's ``image.i.features`` [D]. If the model has them,
``image.i.dense`` [h·w, D]; ``image.i.boxes`` float64 [r, 4] and ``image.i.regions`` [r, D]; ``image.i.masks`` float32
[m, h, w] and ``image.i.mask_features`` [m, D]. Per walk type ``w``: ``text.w.input_ids`` int32 [m, L],
``text.w.attention_mask`` and ``text.w.features`` [m, D]. ``logits`` float32 [n, m] compare the images with the short
texts. The texts themselves are in the file's metadata: ``texts`` is JSON that holds a list for each walk type.

A bundle whose fp32 graphs miss their limits because float32 does has a second file. It holds the same inputs, and the
results of the reference in float64.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .arrays import Array
from .bundle import Bundle
from .errors import BundleError, reason
from .manifest import Manifest


@dataclass(frozen=True)
class ProbeImage:
    """An image, its preparation, and the reference's results; None for each part that the model lacks."""

    rgb: Array
    patches: Array
    grid: Array
    features: Array
    dense: Array | None = None
    boxes: Array | None = None
    regions: Array | None = None
    masks: Array | None = None
    mask_features: Array | None = None


@dataclass(frozen=True)
class ProbeTexts:
    """The texts of one walk type, their tokens, and the reference's features."""

    texts: tuple[str, ...]
    input_ids: Array
    attention_mask: Array
    features: Array


@dataclass(frozen=True)
class Probe:
    """Recorded images, texts by walk type, and logits.

    Attributes:
        images: the images.
        walk_types: the texts, by walk type.
        logits: float32 [n, m] of the images and the short texts.
        exact: the same inputs with the results of the reference in float64; None if float32 suffices.
    """

    images: tuple[ProbeImage, ...]
    walk_types: dict[str, ProbeTexts]
    logits: Array
    exact: Probe | None = None

    def save(self, path: Path) -> None:
        """Write the file, without :attr:`exact`."""
        contiguous = {name: np.ascontiguousarray(value) for name, value in _tensors(self).items()}
        texts = {walk_type: part.texts for walk_type, part in self.walk_types.items()}
        save_file(contiguous, path, metadata={"texts": json.dumps(texts, ensure_ascii=False)})

    @classmethod
    def of(cls, bundle: Bundle) -> Probe:
        """Read the probe of a bundle, with its exact results if it has any.

        Raises:
            BundleError: a file is damaged or not a probe, or not one of this bundle's model.
        """
        parity = bundle.manifest.parity
        path = bundle.file(parity.probe)
        probe = cls.load(path)
        _check(probe, bundle.manifest, path)
        if parity.exact_probe is None:
            return probe
        exact_path = bundle.file(parity.exact_probe)
        exact = cls.load(exact_path)
        _check(exact, bundle.manifest, exact_path, "float64")
        if _shapes(exact) != _shapes(probe):
            raise BundleError(f"{exact_path} has other inputs than {path}; export the bundle again.")
        return replace(probe, exact=exact)

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Read one file.

        Raises:
            BundleError: it is damaged or not a probe.
        """
        with _reading(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            texts = msgspec.json.decode(file.metadata()["texts"], type=dict[str, tuple[str, ...]])
            count = len({name.split(".")[1] for name in tensors if name.startswith("image.")})
            return cls(
                images=tuple(_part(ProbeImage, tensors, f"image.{index}") for index in range(count)),
                walk_types={
                    walk_type: _part(ProbeTexts, tensors, f"text.{walk_type}", texts=entries)
                    for walk_type, entries in texts.items()
                },
                logits=tensors["logits"],
            )


def recorded_logits(bundle: Bundle) -> Array:
    """The reference's logits of a probe's images and short texts [n, m], without reading the rest.

    They are float64 if the bundle has the results of the reference in float64, and else float32.

    Raises:
        BundleError: the file is damaged or not a probe.
    """
    path = bundle.file(bundle.manifest.parity.files[-1])
    with _reading(path) as file:
        logits: Array = file.get_tensor("logits")
        if logits.ndim != 2 or not logits.size or not np.isfinite(logits).all():
            raise ValueError("its logits are no table of numbers")
        return logits


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """A probe's file, open; errors of the block name the file.

    Raises:
        BundleError: it is damaged or not a probe.
    """
    try:
        with safe_open(path, "np") as file:
            yield file
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); check its permissions.", code="bundle_unreadable"
        ) from None
    # A type that NumPy lacks, such as float8, is an AttributeError.
    except (
        SafetensorError,
        msgspec.DecodeError,
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise BundleError(f"{path} is not a probe ({reason(error)}); export the bundle again.") from None


def _tensors(probe: Probe) -> dict[str, Array]:
    """The arrays of a probe, by their names in its file."""
    tensors = {"logits": probe.logits}
    for index, image in enumerate(probe.images):
        present = {name: value for name, value in vars(image).items() if value is not None}
        tensors |= {f"image.{index}.{name}": value for name, value in present.items()}
    for walk_type, part in probe.walk_types.items():
        tensors |= {f"text.{walk_type}.{name}": value for name, value in vars(part).items() if name != "texts"}
    return tensors


def _part(kind: Any, tensors: dict[str, Array], prefix: str, **given: Any) -> Any:
    """An object of ``kind`` whose fields are the tensors under ``prefix``, except for the given fields."""
    values = {}
    for field in fields(kind):
        name = f"{prefix}.{field.name}"
        # Only fields that a model may lack have a default.
        if field.name not in given and (name in tensors or field.default is MISSING):
            values[field.name] = tensors[name]
    return kind(**given, **values)


def _check(probe: Probe, manifest: Manifest, path: Path, floats: str = "float32") -> None:
    """Make sure that every array of a probe has the type and the shape that the model has.

    Args:
        probe: a probe.
        manifest: the manifest of its bundle.
        path: its file, for messages.
        floats: type of the results.

    Raises:
        BundleError: an array has another type or shape, or a walk type or image is missing.
    """
    width, pixels = manifest.embedding_size, manifest.image.channels * manifest.image.patch_size**2

    def expect(name: str, array: Array | None, dtype: str, *shape: int | None) -> None:
        fits = array is None or (
            array.dtype == dtype
            and array.ndim == len(shape)
            and all(size in (actual, None) for size, actual in zip(shape, array.shape, strict=True))
        )
        if not fits:
            assert array is not None
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise BundleError(
                f"{path} holds {name} as {array.dtype} {list(array.shape)}, not {dtype} [{wanted}]; "
                "export the bundle again."
            )

    if not probe.images or not all(image.rgb.size for image in probe.images):
        raise BundleError(f"{path} holds no image, or an empty one; export the bundle again.")
    for index, image in enumerate(probe.images):
        name = f"image.{index}"
        expect(f"{name}.rgb", image.rgb, "uint8", None, None, 3)
        expect(f"{name}.grid", image.grid, "int32", 2)
        rows, columns = image.grid.tolist()
        expect(f"{name}.patches", image.patches, "uint8", rows * columns, pixels)
        expect(f"{name}.features", image.features, floats, width)
        expect(f"{name}.dense", image.dense, floats, rows * columns, width)
        expect(f"{name}.boxes", image.boxes, "float64", None, 4)
        expect(f"{name}.regions", image.regions, floats, None if image.boxes is None else len(image.boxes), width)
        expect(f"{name}.masks", image.masks, "float32", None, rows, columns)
        expect(
            f"{name}.mask_features",
            image.mask_features,
            floats,
            None if image.masks is None else len(image.masks),
            width,
        )
    for walk_type, part in probe.walk_types.items():
        name, spec = f"text.{walk_type}", manifest.text.walk_types.get(walk_type)
        if spec is None:
            raise BundleError(
                f"{path} holds texts of {walk_type!r}, no walk type of the model; export the bundle again."
            )
        expect(f"{name}.input_ids", part.input_ids, "int32", len(part.texts), spec.length)
        expect(f"{name}.attention_mask", part.attention_mask, "int32", len(part.texts), spec.length)
        expect(f"{name}.features", part.features, floats, len(part.texts), width)
    short = probe.walk_types.get("short")
    expect("logits", probe.logits, floats, len(probe.images), 0 if short is None else len(short.texts))


def _shapes(probe: Probe) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every array of a probe that has passed :func:`_check`."""
    return [(name, array.shape) for name, array in _tensors(probe).items()]
