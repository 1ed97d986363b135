"""Sizes of batches: those that ``bench --images`` found fastest, or those of so many patches and tokens at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from fgclip_rt.backends import CPU_TOKENS_PER_BATCH, GPU_TOKENS_PER_BATCH
from fgclip_rt.errors import ArgumentError, reason


class _Bucket(msgspec.Struct):
    bucket: int
    batch_size: int


class BatchAdvice(msgspec.Struct):
    """What a result of ``bench --images`` says of batches.

    Attributes:
        batch_size: the one size that is fastest over all buckets.
        buckets: the size for each bucket that occurred.
    """

    batch_size: int
    buckets: list[_Bucket]

    def of(self, bucket: int) -> int | None:
        """The size for a bucket; None if none of the measured images was in it."""
        return next((each.batch_size for each in self.buckets if each.bucket == bucket), None)


class _Result(msgspec.Struct):
    advice: BatchAdvice


def read_advice(path: Path) -> BatchAdvice:
    """Read what ``fgclip-rt bench BUNDLE --images FOLDER --output PATH`` wrote.

    Raises:
        ArgumentError: the file cannot be read, or is no such result.
    """
    try:
        advice = msgspec.json.decode(path.read_bytes(), type=_Result).advice
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read ({reason(error)}); give --bench a file that is there.") from None
    except msgspec.DecodeError as error:
        raise ArgumentError(
            f"{path} is no result of bench ({error}); write one by 'fgclip-rt bench BUNDLE --images FOLDER --output "
            "FILE'."
        ) from None
    if min([advice.batch_size, *(each.batch_size for each in advice.buckets)]) < 1:
        raise ArgumentError(f"{path} advises a batch of less than one image; measure again with 'fgclip-rt bench'.")
    return advice


def usual_batch(*, gpu: bool, most: int) -> Callable[[str, int], int]:
    """Sizes by graph and length without advice: 16,384 patches or tokens at once on a GPU, and 2,048 on a CPU."""
    tokens = GPU_TOKENS_PER_BATCH if gpu else CPU_TOKENS_PER_BATCH
    return lambda _, length: max(1, min(most, tokens // length))
