"""The model that Triton's Python backend runs: a batch of requests to vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import fgclip_rt
from fgclip_rt.arrays import FloatArray
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, BundleError, FgclipError
from fgclip_rt.model import Embedded, Model

from .calls import TritonBackend
from .graph_models import GraphModel
from .settings import BOXES, BUNDLE, IMAGE, TEXT, VECTOR, VECTORS


class Asked(msgspec.Struct, frozen=True):
    """A request.

    Attributes:
        images: files of images; None if it has texts.
        texts: UTF-8; None if it has images.
        walk_type: kind of the texts.
        max_num_patches: of the images.
        boxes: float32 [n, r, 4], r boxes of each image in pixels; None asks for the images themselves.
    """

    images: Sequence[bytes] | None
    texts: Sequence[bytes] | None
    walk_type: str = "short"
    max_num_patches: int | None = None
    boxes: FloatArray | None = None


def answer(model: Model, asked: Sequence[Asked]) -> list[FloatArray | FgclipError]:
    """The vectors of each request, float32 [n, D] or of boxes [n, r, D], or the error that it cannot be answered.

    Images of all requests run together, and so do texts; one that is refused fails its own request only.
    """
    answers: list[FloatArray | FgclipError] = [_refusal(each) for each in asked]
    groups: dict[tuple[str, Any], list[int]] = {}
    for number, each in enumerate(asked):
        if each.boxes is not None:
            answers[number] = _embed_boxes(model, each)
        elif each.images and each.texts is None:
            groups.setdefault((IMAGE, each.max_num_patches), []).append(number)
        elif each.texts and each.images is None:
            groups.setdefault((TEXT, each.walk_type), []).append(number)
    for (kind, setting), numbers in groups.items():
        items = [item for number in numbers for item in (asked[number].images or asked[number].texts or ())]
        try:
            embedded = _embed(model, kind, setting, items)
        except FgclipError as error:
            answers = [error if number in numbers else each for number, each in enumerate(answers)]
            continue
        vectors = dict(zip(embedded.rows, embedded.vectors, strict=True))
        refused = {failure.index: failure.error for failure in embedded.failures}
        first = 0
        for number in numbers:
            count = len(asked[number].images or asked[number].texts or ())
            span = range(first, first + count)
            failed = next((index for index in span if index in refused), None)
            if failed is None:
                answers[number] = np.stack([vectors[index] for index in span])
            else:
                answers[number] = _own_error(model, kind, setting, items[failed], failed - first, refused[failed])
            first += count
    return answers


def _embed(model: Model, kind: str, setting: Any, items: Sequence[bytes]) -> Embedded[FloatArray]:
    if kind == IMAGE:
        return model.embed_images(items, setting, on_error="skip")
    # As in a path, bytes that are not UTF-8 become what the tokenizer refuses.
    return model.embed_texts([item.decode("utf-8", "surrogateescape") for item in items], setting, on_error="skip")


def _own_error(model: Model, kind: str, setting: Any, item: bytes, index: int, error: FgclipError) -> FgclipError:
    """The error of an item, which names its number in its own request instead of that in the batch."""
    try:
        if kind == IMAGE:
            model.prepare(item, setting, f"image {index}")
        else:
            model.tokenizer([item.decode("utf-8", "surrogateescape")], setting, first=index)
    except FgclipError as own:
        return own
    return error


def _embed_boxes(model: Model, asked: Asked) -> FloatArray | FgclipError:
    assert asked.boxes is not None
    if not asked.images or asked.texts is not None:
        return ArgumentError(f"a request has {BOXES} without {IMAGE}; give the image of each list of boxes.")
    pairs = zip(asked.images, asked.boxes, strict=True)
    try:
        return np.stack([model.embed_regions(image, boxes, asked.max_num_patches) for image, boxes in pairs])
    except FgclipError as error:
        return error


def _refusal(asked: Asked) -> ArgumentError:
    found = "both" if asked.images is not None and asked.texts is not None else "neither"
    return ArgumentError(f"a request has {found} of {IMAGE} and {TEXT}; give one of them, with at least one item.")


class TritonPythonModel:
    """An instance of the model, as the Python backend wants it."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Open the bundle, and run each graph once if it runs here, so that the server is ready only then."""
        config = json.loads(arguments["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        path = Path(arguments["model_repository"], arguments["model_version"], BUNDLE)
        models = msgspec.json.decode(settings["models"], type=list[GraphModel])
        if models:
            backend = TritonBackend(models, settings["precision"], settings["device"])
            self._model = Model(Bundle.open(path, graphs=False), backend)
        else:
            gpu = arguments["model_instance_kind"] == "GPU"
            self._model = fgclip_rt.load(
                path,
                f"cuda:{arguments['model_instance_device_id']}" if gpu else "cpu",
                settings["precision"],
                int(settings["threads"]) if settings["threads"] else None,
            )
        if self._model.bundle.manifest_sha256 != settings["manifest_sha256"]:
            raise BundleError(
                f"{path} is another bundle than the configuration names; write the repository anew.",
                code="bundle_replaced",
            )
        if not models:
            self._warm_up()

    def _warm_up(self) -> None:
        for bucket in self._model.manifest.image.buckets:
            self._model.embed_images([np.zeros((64, 64, 3), np.uint8)], bucket)
        for walk_type in self._model.manifest.text.walk_types:
            self._model.embed_texts(["warm up"], walk_type)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of a batch."""
        import triton_python_backend_utils as triton

        def response(found: FloatArray | FgclipError) -> Any:
            if isinstance(found, FgclipError):
                error = triton.TritonError(f"{found.code}: {found}", triton.TritonError.INVALID_ARG)
                return triton.InferenceResponse(error=error)
            name = VECTOR if found.ndim == 2 else VECTORS
            return triton.InferenceResponse([triton.Tensor(name, np.ascontiguousarray(found, np.float32))])

        def items(request: Any, name: str) -> Sequence[bytes] | None:
            tensor = triton.get_input_tensor_by_name(request, name)
            return None if tensor is None else list(tensor.as_numpy().reshape(-1))

        def asked(request: Any) -> Asked:
            knobs = json.loads(request.parameters() or "{}")
            most = knobs.get("max_num_patches")
            boxes = triton.get_input_tensor_by_name(request, BOXES)
            return Asked(
                items(request, IMAGE),
                items(request, TEXT),
                str(knobs.get("walk_type", "short")),
                None if most is None else int(most),
                None if boxes is None else boxes.as_numpy(),
            )

        return [response(found) for found in answer(self._model, [asked(request) for request in requests])]
