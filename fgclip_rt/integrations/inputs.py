"""Texts and images of one list, and models by the path of their bundle."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import numpy as np

from fgclip_rt.arrays import FloatArray
from fgclip_rt.errors import BundleError
from fgclip_rt.model import Model, load
from fgclip_rt.space import Origin

#: A loaded model, or the path of its bundle, or ``fg-clip2-pocket``.
ModelSource: TypeAlias = Model | str | os.PathLike[str]

#: Models that were loaded from a path and are still in use: LanceDB makes its function again for every table.
_loaded: WeakValueDictionary[tuple[str, str, str | None], Model] = WeakValueDictionary()
_loading = threading.Lock()


def open_model(source: ModelSource, device: str = "auto", precision: str | None = None) -> Model:
    """A model as it is, or loaded from its bundle; arguments and errors are those of :func:`fgclip_rt.load`."""
    if isinstance(source, Model):
        return source
    key = (os.path.abspath(source), device, precision)  # noqa: PTH100 (resolve would follow links, which may change)
    with _loading:
        model = _loaded.get(key)
        if model is None:
            model = _loaded[key] = load(source, device, precision)
        return model


def check_origin(model: Model, manifest_sha256: str | None, space_sha256: str | None, where: str) -> None:
    """Refuse a model whose vectors do not belong to those that are stored.

    Args:
        model: the model.
        manifest_sha256: digest of the manifest of the bundle that the stored vectors were made with; None if none are
            stored.
        space_sha256: fingerprint of their space; None if none are stored, or by an earlier version.
        where: the store, as part of a sentence.

    Raises:
        BundleError: its vectors are of another space.
    """
    if manifest_sha256 is None:
        return
    now = Origin.of(model.bundle, model.precision)
    names = Origin("the model", now.precision, space_sha256, manifest_sha256).unlike(now)
    if names is not None:
        raise BundleError(
            f"{where} holds vectors of {names[0]}, and {model.bundle.path} is {names[1]}; use the bundle that made "
            "them, or embed everything again.",
            code="bundle_replaced",
        )


def embed_mixed(
    model: Model,
    inputs: Sequence[Any],
    walk_type: str,
    max_num_patches: int | None = None,
    batch_size: int | None = None,
    *,
    normalize: bool = True,
) -> FloatArray:
    """Vectors of texts, which are strings, and images, which are everything else, float32 [n, D] in their order.

    Raises:
        FgclipError: as for :meth:`fgclip_rt.Model.embed_images` and :meth:`fgclip_rt.Model.embed_texts`.
    """
    is_text = np.array([isinstance(each, str) for each in inputs], bool)
    texts = [each for each in inputs if isinstance(each, str)]
    images = [each for each in inputs if not isinstance(each, str)]
    vectors = np.empty((len(inputs), model.dim), np.float32)
    if texts:
        vectors[is_text] = model.embed_texts(texts, walk_type, normalize)
    if images:
        vectors[~is_text] = model.embed_images(images, max_num_patches, batch_size, normalize)
    return vectors
