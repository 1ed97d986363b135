"""The space that vectors are of: its fingerprint, and the origin that whatever keeps vectors records and checks.

``docs/bundle/index.md`` says how the fingerprint is computed, and why so.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import msgspec
import numpy as np

from .bundle import Bundle
from .probe import recorded_logits

#: Steps of a cosine from 0 to 1. Float32's rounding is a thousandth of a step and less, so that it rarely crosses a
#: border; and vectors of which no cosine moves by a step are interchangeable.
_STEPS = 500


class Origin(msgspec.Struct, frozen=True):
    """A bundle and a precision that made vectors.

    Attributes:
        model: name of the model.
        precision: the precision.
        space_sha256: fingerprint of the space, by :func:`fingerprint`; None if whoever kept the vectors knew none yet.
        manifest_sha256: digest of the bundle's manifest.
    """

    model: str
    precision: str
    space_sha256: str | None
    manifest_sha256: str

    @classmethod
    def of(cls, bundle: Bundle, precision: str) -> Origin:
        """The origin of vectors that a bundle makes.

        Raises:
            BundleError: its probe is damaged.
        """
        return cls(bundle.manifest.model.name, precision, fingerprint(bundle, precision), bundle.manifest_sha256)

    def __str__(self) -> str:
        known = (
            f"bundle {self.manifest_sha256[:12]}" if self.space_sha256 is None else f"space {self.space_sha256[:12]}"
        )
        return f"{self.model} in {self.precision} ({known})"

    def unlike(self, now: Origin) -> tuple[str, str] | None:
        """Names of both origins, as they differ; None if their vectors belong into one space.

        Vectors whose space was not recorded belong to their own bundle only. Whether both have one precision is not
        looked at: two precisions of a space may share it, and it is for the caller to want one.
        """
        if self.space_sha256 is None:
            # So that the names of both say what was compared.
            now = msgspec.structs.replace(now, space_sha256=None)
            alike = self.manifest_sha256 == now.manifest_sha256
        else:
            alike = self.space_sha256 == now.space_sha256
        return None if alike else (str(self), str(now))


def fingerprint(bundle: Bundle, precision: str) -> str:
    """Fingerprint of the space of a bundle's vectors: bundles with the same one may share an index.

    It is a SHA-256, in hexadecimal, of all that the reference's vectors follow from, so that another export of a
    checkpoint has the same one. So have precisions, but for those that were calibrated: their vectors follow from the
    calibration too, so that they have a space of their own in each bundle. So have random weights.

    Raises:
        BundleError: the probe is damaged.
    """
    manifest = bundle.manifest
    weights, lowering = manifest.model.checkpoint_sha256, manifest.lowering.get(precision)
    calibrated = lowering is not None and lowering.calibration is not None
    key: dict[str, Any] = {
        "family": manifest.model.family,
        "weights": weights,
        "image": msgspec.to_builtins(manifest.image),
        "text": {**msgspec.to_builtins(manifest.text), "tokenizer": manifest.files[manifest.text.tokenizer].sha256},
        "box_shares": manifest.box_shares,
        # Stand for what else the checkpoint's configuration says, such as its activation.
        "cosines": _rounded_cosines(bundle),
        "bundle": bundle.manifest_sha256 if calibrated or weights is None else None,
        "precision": precision if calibrated else None,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _rounded_cosines(bundle: Bundle) -> list[int]:
    """Cosines of the probe's first image with its short texts, in steps of :data:`_STEPS`."""
    score = bundle.manifest.score
    cosines = (recorded_logits(bundle)[0].astype(np.float64) - score.logit_bias) / math.exp(score.logit_scale)
    return [int(step) for step in np.rint(_STEPS * cosines)]
