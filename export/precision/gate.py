"""A gate on answers: a lower precision must find a user's own pairs as well as fp32 does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from fgclip_rt.errors import ArgumentError
from fgclip_rt.evaluation.data import Captions, Regions
from fgclip_rt.evaluation.readers import read_pairs
from fgclip_rt.evaluation.running import PAIR_CUTOFFS, Rate, measure_captions, measure_regions
from fgclip_rt.model import Model
from fgclip_rt.progress import BeginStage, silent

#: Points of 100 that a figure may lose, if nobody says another number.
MAX_LOSS = 0.5


class Loss(msgspec.Struct, frozen=True):
    """A figure of fp32 and of a lower precision, on the same pairs.

    Attributes:
        name: such as ``text to image R@5``.
        before: the share of right choices of fp32, from 0 to 1.
        after: that of the lower precision.
    """

    name: str
    before: float
    after: float

    @property
    def points(self) -> float:
        """The loss in points of 100, less than zero for a gain."""
        return 100 * (self.before - self.after)


class Gate(msgspec.Struct, frozen=True):
    """Pairs of images and texts, and the loss that is allowed on them.

    Attributes:
        file: where the pairs stand.
        captions: pairs of whole images; None if there are none.
        regions: pairs of boxes; None if there are none.
        max_loss: points of 100 that no figure may lose more than.
        losses: the largest loss of each precision that :meth:`judge` has judged.
    """

    file: Path
    captions: Captions | None
    regions: Regions | None
    max_loss: float
    losses: dict[str, Loss] = {}

    @classmethod
    def read(cls, file: Path, max_loss: float | None = None) -> Gate:
        """Read pairs as ``evaluate --pairs`` does; None allows a loss of :data:`MAX_LOSS`.

        Raises:
            ArgumentError: the loss is no number of points.
            BenchmarkError: the file cannot be read, has no pairs, or names an image that is not there.
        """
        max_loss = MAX_LOSS if max_loss is None else max_loss
        if not 0 <= max_loss < 100:
            raise ArgumentError(f"--max-loss is {max_loss:g}; give points from 0 to 100, such as 0.5.")
        return cls(file, *read_pairs(file), max_loss)

    def answers(self, model: Model, begin: BeginStage = silent) -> list[Rate]:
        """The figures of a model on the pairs. Ties are wrong, so that texts that are all alike are found by no image.

        Raises:
            ArgumentError: there are boxes, and the model has no features of regions.
            BoxError: a box cannot be sampled.
            ImageError: an image cannot be read.
        """
        rates: list[Rate] = []
        if self.captions is not None:
            done = begin(f"answer pairs in {model.precision}", len(self.captions.images))
            rates += measure_captions(model, self.captions, "short", PAIR_CUTOFFS, "strict", done)
        if self.regions is not None:
            done = begin(f"answer boxes in {model.precision}", len(self.regions.regions))
            rates += measure_regions(model, self.regions, PAIR_CUTOFFS, "strict", done=done)
        return rates

    def judge(self, precision: str, before: Sequence[Rate], after: Sequence[Rate]) -> str | None:
        """Keep the largest loss of a precision, and give the reason for refusing it, as a clause.

        Args:
            precision: its name.
            before: the figures of fp32.
            after: those of the precision.

        Returns:
            The clause, or None if no figure loses more than is allowed.
        """
        losses = [Loss(one.name, one.share, other.share) for one, other in zip(before, after, strict=True)]
        worst = self.losses[precision] = max(losses, key=lambda loss: loss.points)
        # A loss of exactly the limit is allowed, and shares are not exact.
        if worst.points <= self.max_loss + 1e-9:
            return None
        return (
            f"{precision} was refused: its {worst.name} on {self.file} is {worst.after:.1%}, and that of fp32 "
            f"{worst.before:.1%}, a loss of {worst.points:.2f} points where --max-loss allows {self.max_loss:g}"
        )
