"""A job over shards: which vectors it makes, and the documents that its output folder holds."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from ..bundle import Bundle
from ..errors import ArgumentError, ShardError
from ..outputs import first_change
from ..space import Origin, fingerprint

FORMAT = "fgclip-rt shards"
FORMAT_VERSION = 1

Layout: TypeAlias = Literal["parquet", "clip-retrieval"]
DType: TypeAlias = Literal["float32", "float16"]
Kind: TypeAlias = Literal["tar", "parquet", "files"]

LAYOUTS: tuple[Layout, ...] = ("parquet", "clip-retrieval")
DTYPES: tuple[DType, ...] = ("float32", "float16")


class Columns(msgspec.Struct, frozen=True):
    """Columns of Parquet files; None takes the usual names.

    Attributes:
        image: bytes of an image file, or a struct with ``bytes``.
        id: the item's id.
        caption: the item's caption.
    """

    image: str | None = None
    id: str | None = None
    caption: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything besides the images that the rows of an output depend on; ``job.json`` of its folder.

    Attributes:
        format: :data:`FORMAT`.
        format_version: :data:`FORMAT_VERSION`.
        manifest_sha256: digest of the bundle's manifest.
        space_sha256: fingerprint of the space of the vectors; None if an earlier version began the output.
        model: name of the model.
        precision: the precision that makes the vectors.
        dim: width D of each.
        dtype: type of their numbers.
        layout: files that hold the rows.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.
        exif_transpose: likewise.
        columns: columns of Parquet files.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    manifest_sha256: str
    model: str
    precision: str
    dim: int
    dtype: DType = "float32"
    layout: Layout = "parquet"
    max_num_patches: int | None = None
    exif_transpose: bool | None = None
    columns: Columns = Columns()
    space_sha256: str | None = None

    @property
    def origin(self) -> Origin:
        """What makes the vectors."""
        return Origin(self.model, self.precision, self.space_sha256, self.manifest_sha256)


def make_job(
    bundle: Bundle,
    precision: str | None = None,
    *,
    dtype: DType = "float32",
    layout: Layout = "parquet",
    max_num_patches: int | None = None,
    exif_transpose: bool | None = None,
    columns: Columns | None = None,
) -> Job:
    """The job of embedding with a bundle; arguments are those of :class:`Job`.

    Args:
        bundle: the opened bundle.
        precision: one of the bundle's; None takes its first.
        dtype: float32 or float16.
        layout: parquet or clip-retrieval.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.
        exif_transpose: likewise.
        columns: columns of Parquet files; None takes the usual names.

    Raises:
        ArgumentError: the bundle has no such precision, or the type or layout is unknown.
        BundleError: the bundle's probe is damaged.
    """
    precision = bundle.manifest.precisions[0] if precision is None else precision
    bundle.check_precision(precision)
    for name, value, known in (("--dtype", dtype, DTYPES), ("--layout", layout, LAYOUTS)):
        if value not in known:
            raise ArgumentError(f"{name} is {value}; choose {' or '.join(known)}.")
    return Job(
        manifest_sha256=bundle.manifest_sha256,
        space_sha256=fingerprint(bundle, precision),
        model=bundle.manifest.model.name,
        precision=precision,
        dim=bundle.manifest.embedding_size,
        dtype=dtype,
        layout=layout,
        max_num_patches=max_num_patches,
        exif_transpose=exif_transpose,
        columns=columns or Columns(),
    )


class Shard(msgspec.Struct, frozen=True):
    """A part of the inputs that is done as a whole.

    Attributes:
        name: names its outputs.
        kind: ``tar``, ``parquet``, or ``files``.
        source: path or URL of the file; of ``files`` the list or folder that they are of.
        stamp: the size of the file, or the digest of the names of the files.
        files: of ``files``, the id, and the path or URL, of each item.
    """

    name: str
    kind: Kind
    source: str
    stamp: str
    files: list[tuple[str, str]] = []


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """A shard that is done; ``SHARD.json``.

    Attributes:
        shard: its name.
        source: its input.
        stamp: as :attr:`Shard.stamp` was.
        rows: number of its vectors.
        errors: number of its dead letters by code.
        unrotated: number of images that carry an EXIF rotation that was not applied.
        seconds: time that it took.
        images_per_second: rows and dead letters a second.
        manifest_sha256: digest of the bundle's manifest.
        precision: the precision that made the vectors.
        fgclip_rt: version of this package.
        space_sha256: fingerprint of the space of the vectors; None if an earlier version did the shard.
    """

    shard: str
    source: str
    stamp: str
    rows: int
    errors: dict[str, int]
    unrotated: int
    seconds: float
    images_per_second: float
    manifest_sha256: str
    precision: str
    fgclip_rt: str
    space_sha256: str | None = None


def check_same_job(output: str, then: Job, now: Job) -> None:
    """Refuse to add vectors of another space, or files of another form, to an output.

    Raises:
        ShardError: the jobs differ; the message names the first difference.
    """
    names = then.origin.unlike(now.origin) if then.precision == now.precision else None
    if names is not None:
        raise ShardError(
            f"{output} was made with {names[0]}, and now it is {names[1]}; name the bundle that made it, ask "
            f"'fgclip-rt compare {output} BUNDLE' how far apart they are, or choose another --output.",
            code="shard_mismatch",
        )
    change = first_change(_named(then), _named(now), _shown)
    if change is not None:
        raise ShardError(f"{output} was made {change}, or choose another --output.", code="shard_mismatch")


def _named(job: Job) -> dict[str, object]:
    """The settings of a job by the names that users know."""
    return {
        "format version": job.format_version,
        "--precision": job.precision,
        "--layout": job.layout,
        "--dtype": job.dtype,
        "--max-num-patches": job.max_num_patches,
        "--exif-transpose": job.exif_transpose,
        "the columns": job.columns,
    }


def _shown(setting: object) -> str:
    if isinstance(setting, Columns):
        return ", ".join(filter(None, (setting.image, setting.id, setting.caption))) or "left out"
    return str(setting)


def is_restored(marker: Marker, shard: Shard) -> bool:
    """Whether a shard broke off when it was done, and has another content now."""
    return "shard_damaged" in marker.errors and marker.stamp != shard.stamp


def check_same_shard(output: str, marker: Marker, shard: Shard) -> None:
    """Refuse a shard whose input is another than the one that is done.

    Raises:
        ShardError: it is.
    """
    if marker.stamp != shard.stamp:
        raise ShardError(
            f"{output} has the shard {shard.name} of another input ({marker.source} then, {shard.source} now, or its "
            f"content changed); choose another --output, or remove {shard.name}.json to have it done again.",
            code="shard_mismatch",
        )
