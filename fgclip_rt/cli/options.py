"""Arguments and options that several commands take. Those that belong together come to a command as one value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import Struct

from ..bundle import Bundle
from ..errors import ArgumentError, TextError
from .output import warn

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ..model import Model

_T = TypeVar("_T", bound=Struct)
_Function = TypeVar("_Function", bound=Callable[..., Any])
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PATH = click.Path(path_type=Path)

_DEVICES = ("auto", "cpu", "cuda")
_BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
_PREPARATIONS = ("python", "native")
_WALK_TYPES = ("short", "box", "long")
#: Of which a bundle has some.
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")


def completed(values: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Shell completion of an option by ``values``. Other values are refused later, by what takes them."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
        from click.shell_completion import CompletionItem

        return [CompletionItem(value) for value in values if value.startswith(incomplete)]

    return complete


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The models that have a name, and whatever path begins so."""
    from click.shell_completion import CompletionItem

    from fgclip_rt.export.checkpoints.registry import MODELS

    names = completed(tuple(MODELS))(ctx, param, incomplete)
    return names or [CompletionItem(incomplete, type="file")]


bundle = click.argument(
    "bundle",
    type=PATH,
    metavar="BUNDLE",
    help="Bundle folder, made by 'fgclip-rt export'; or fg-clip2-pocket, which comes with the package.",
)
precision = click.option(
    "--precision",
    shell_complete=completed(PRECISIONS),
    help="One of the bundle's precisions.  [default: its first]",
)
device = click.option(
    "--device", default="auto", shell_complete=completed(_DEVICES), help="auto, cpu, cuda, or another GPU, as cuda:1."
)
threads = click.option("--threads", type=int, help="CPU threads.  [default: one for each usable core]")
_backend = click.option(
    "--backend",
    shell_complete=completed(_BACKENDS),
    help="onnxruntime, tensorrt or tensorrt-rtx.  [default: engines where they fit, else onnxruntime]",
)
_preparation = click.option(
    "--preparation",
    default="python",
    shell_complete=completed(_PREPARATIONS),
    help="python, or native to have the C library resize images: equal patches, in less time.",
)
max_num_patches = click.option(
    "--max-num-patches", type=int, help="Patches to resize every image to.  [default: by each image's own size]"
)
max_image_pixels = click.option(
    "--max-image-pixels", type=int, help="Largest image to decode, in pixels.  [default: Pillow's, 178,956,970]"
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
json = click.option("--json", is_flag=True, help="Print JSON for a program to read.")


def walk_type(default: str) -> _Decorator:
    """``--walk-type``, whose best default depends on the command."""
    return click.option(
        "--walk-type",
        default=default,
        shell_complete=completed(_WALK_TYPES),
        help="Kind of text: short, box or long.",
    )


def warn_random(bundle: Bundle) -> None:
    """Say so if a bundle's weights are random."""
    if bundle.manifest.model.weights == "random":
        warn("fgclip-rt: this bundle has RANDOM WEIGHTS: its numbers mean nothing and serve benchmarks only.")


class Loading(Struct, frozen=True):
    """Which model to load, and how; as for :func:`fgclip_rt.load`."""

    bundle: Path
    device: str
    precision: str | None
    threads: int | None
    backend: str | None
    preparation: str = "python"

    def open(self) -> Model:
        """Load it, and say so when its weights are random."""
        from ..model import open_model

        bundle = Bundle.open(self.bundle)
        model = open_model(
            bundle, self.device, self.precision, self.threads, self.backend, preparation=self.preparation
        )
        warn_random(bundle)
        return model


class Loadings(Struct, frozen=True):
    """The same in several precisions, or in the bundle's first if none is given."""

    bundle: Path
    device: str
    precisions: tuple[str, ...]
    threads: int | None
    backend: str | None
    preparation: str = "python"

    def each(self) -> list[Loading]:
        """One for each precision.

        Raises:
            ArgumentError: a precision is given twice.
        """
        if len(set(self.precisions)) < len(self.precisions):
            raise ArgumentError("a precision is given twice; give each of them once.")
        return [
            Loading(self.bundle, self.device, precision, self.threads, self.backend, self.preparation)
            for precision in self.precisions or (None,)
        ]


class Pixels(Struct, frozen=True):
    """How images are read and how large they become."""

    max_num_patches: int | None
    exif_transpose: bool | None
    max_image_pixels: int | None

    def set_limit(self) -> None:
        """Set the limit on the size of an image for this process."""
        limit_pixels(self.max_image_pixels)

    def warn_unrotated(self, count: int, total: int) -> None:
        """Report images that carry a rotation that was not applied, unless that was asked for."""
        if count and self.exif_transpose is None:
            warn(
                f"fgclip-rt: {count} of {total} images carry an EXIF rotation that was not applied, as in the model's "
                "reference; turn them upright with --exif-transpose, or accept it with --no-exif-transpose."
            )


class Texts(Struct, frozen=True):
    """Texts, and of which kind they are."""

    text: tuple[str, ...]
    walk_type: str

    def check(self) -> None:
        """Refuse texts that the terminal did not pass as UTF-8.

        Raises:
            TextError: one is not valid Unicode.
        """
        for number, text in enumerate(self.text, 1):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise TextError(f"--text number {number} is not valid UTF-8; check the terminal's encoding.") from None


class WeightFiles(Struct, frozen=True):
    """The files that go with a model, as :class:`fgclip_rt.export.LocalFiles` describes them."""

    weights: Path | None = None
    config: Path | None = None
    tokenizer: Path | None = None
    processor: Path | None = None

    def check_goes_with(self, checkpoint: str | None) -> None:
        """Refuse files that go with no ``--checkpoint``."""
        if checkpoint is None and self != WeightFiles():
            raise ArgumentError(
                "--weights, --config, --tokenizer and --processor go with a checkpoint; name it with --checkpoint."
            )


def limit_pixels(limit: int | None) -> None:
    """Set the limit on the size of an image for this process; None leaves Pillow's."""
    import warnings

    from PIL import Image

    # Images are read up to twice this number, and Pillow warns from it on, which would only repeat that one is large.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    if limit is not None:
        if limit < 1:
            raise ArgumentError(f"--max-image-pixels is {limit}; give a positive number of pixels.")
        # Pillow only compares with it, so that the half of an odd limit is exact.
        Image.MAX_IMAGE_PIXELS = limit / 2  # type: ignore[assignment]


def _group(name: str, kind: type[_T], *options: _Decorator) -> Callable[[_Function], _Function]:
    """A decorator that adds ``options`` and hands their values to the command as ``name``, one ``kind``."""
    own = kind.__struct_fields__

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def gathered(**values: Any) -> Any:
            parts = {part: values.pop(part) for part in own}
            return function(**values, **{name: kind(**parts)})

        decorated: Any = gathered
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


loading = _group("loading", Loading, bundle, device, precision, threads, _backend, _preparation)
loadings = _group(
    "loadings",
    Loadings,
    bundle,
    device,
    click.option(
        "--precision",
        "precisions",
        multiple=True,
        shell_complete=completed(PRECISIONS),
        help="One of the bundle's precisions; repeatable.  [default: its first]",
    ),
    threads,
    _backend,
    _preparation,
)
pixels = _group(
    "pixels",
    Pixels,
    max_num_patches,
    click.option(
        "--exif-transpose/--no-exif-transpose",
        default=None,
        help="Turn images upright by their EXIF orientation.  [default: as the model's reference]",
    ),
    max_image_pixels,
)
weight_files = _group(
    "files",
    WeightFiles,
    click.option(
        "--weights",
        type=PATH,
        help="File of weights (.pt) of a model that is on no hub, such as fineclip-vitb16.  [default: none]",
    ),
    click.option(
        "--config",
        type=PATH,
        help="model_config.json of a file of weights given as the model.  [default: none]",
    ),
    click.option(
        "--tokenizer",
        type=PATH,
        help="Folder of the tokenizer, or its tokenizer.json, for a checkpoint that has none.  [default: its own, or "
        "for a file of weights CLIP's from the Hub]",
    ),
    click.option(
        "--processor",
        type=PATH,
        help="Folder of the settings of images, or their file, for a checkpoint that has none.  [default: its own]",
    ),
)


def texts(walk: str) -> Callable[[_Function], _Function]:
    """``--text`` and ``--walk-type``, by default ``walk``."""
    text = click.option("--text", multiple=True, required=True, help="A text; repeatable.")
    return _group("texts", Texts, text, walk_type(walk))
