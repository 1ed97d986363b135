"""``fgclip-rt export``: checkpoint to bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..bundle import Bundle
from ..errors import ArgumentError, ImageError, MissingDependencyError, ParityError
from ..packages import EXPORT_PACKAGES, missing_packages
from . import options
from .console import describe_lowering, floored, progress_bars, say, say_json, say_parity, warn
from .inputs import find_images, read_texts

if TYPE_CHECKING:
    from fgclip_rt.export import CalibrationInputs


def run(
    model: Annotated[
        str, typer.Option(help="A model's name, its Hub id, a local checkpoint folder, or a file of weights (.pt).")
    ],
    output: Annotated[Path | None, typer.Option(help="Bundle folder to make.  [default: by the model's name]")] = None,
    precision: Annotated[
        list[str], typer.Option(help="Precision to write: fp32, fp16, bf16, int8 or fp8; repeatable.")
    ] = ["fp32"],  # noqa: B006
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="Images to calibrate int8 and fp8 on, a file or a folder; repeatable.  [default: none]"),
    ] = None,
    calibration_texts: Annotated[
        Path | None, typer.Option(help="Texts to calibrate int8 and fp8 on, one a line.  [default: none]")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(help="Smallest cosine to accept in lower precisions.  [default: that of each, 0.99 to 0.9995]"),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Real sizes with random weights and no download: for benchmarks only."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    weights: options.Weights = None,
    config: options.Config = None,
    tokenizer: options.Tokenizer = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Turn an FG-CLIP checkpoint into a bundle that runs without PyTorch.

    The bundle appears only when every graph has given the reference's numbers on the probe inputs. A lower precision
    that falls below its floor is refused, and the others are kept. Calibration images and texts are of the kind that
    the model will meet; a fourth of them is held out to measure on.
    """
    require_export_packages()
    import fgclip_rt.export as exporter

    files = exporter.LocalFiles(weights, config, tokenizer)
    if random_weights and revision is not None:
        raise ArgumentError("--revision goes with weights from the Hub; leave it out with --random-weights.")
    if random_weights and files != exporter.LocalFiles():
        raise ArgumentError("--random-weights takes no files; leave out --weights, --config and --tokenizer.")
    if random_weights:
        source = exporter.random_source(model, seed)
        warn(
            f"fgclip-rt: RANDOM WEIGHTS: {source.name} gets its real sizes, but its numbers will mean nothing and its "
            "tokenizer spells texts byte by byte; use this bundle for benchmarks only."
        )
    else:
        source = exporter.checkpoint_source(model, revision, files)
    inputs = _calibration_inputs(calibration, calibration_texts)
    path = output or _default_output(source.name, is_name=exporter.find_model(model) is not None, random=random_weights)
    try:
        with progress_bars() as begin:
            bundle = exporter.export(
                source,
                path,
                precision,
                inputs=inputs,
                floor=floor,
                overwrite=overwrite,
                begin=begin,
            )
    except ParityError as error:
        kept = Bundle.open(path, check_hashes=False) if error.kept else None
        if json:
            rows = msgspec.to_builtins(error.measured)
            bundle_path = None if kept is None else str(kept.path)
            say_json({"passed": False, "bundle": bundle_path, "precisions": error.kept, "refused": rows})
        else:
            for name, rows in error.measured.items():
                say_parity((row for row in rows if not row.passed), f"comparisons that {name} failed")
            if kept is not None:
                _report(kept, json=False)
        raise
    _report(bundle, json)


def _calibration_inputs(images: list[Path] | None, texts: Path | None) -> CalibrationInputs | None:
    from fgclip_rt.export import CalibrationInputs

    for path in images or ():
        if not path.exists():
            raise ImageError(f"{path} does not exist; name images, or a folder of them, with --calibration.")
    if images and texts is not None:
        return CalibrationInputs(find_images(images), read_texts(texts))
    if images or texts is not None:
        given, missing = ("images", "--calibration-texts") if images else ("texts", "--calibration")
        raise ArgumentError(f"both towers are calibrated, and only {given} were given; add {missing}.")
    return None


def _report(bundle: Bundle, json: bool) -> None:
    manifest = bundle.manifest
    worst = {
        precision: {
            "comparisons": len(rows),
            "max_error": max(row.max_error for row in rows),
            "min_cosine": min(row.min_cosine for row in rows),
            "within": min(row.within for row in rows),
        }
        for precision, rows in manifest.parity.measured.items()
    }
    if json:
        say_json(
            {
                "bundle": str(bundle.path),
                "model": manifest.model.name,
                "weights": manifest.model.weights,
                "embedding_size": manifest.embedding_size,
                "size": bundle.size,
                "parity": worst,
                "lowering": msgspec.to_builtins(manifest.lowering),
            }
        )
        return
    say(f"{bundle.path}: {manifest.model.name}, {bundle.size / 1e6:,.1f} MB, vectors of {manifest.embedding_size}")
    for precision, figures in worst.items():
        within = figures["within"]
        share = f"; of each dense map, {floored(within)} or more of the vectors keep the floor" if within < 1 else ""
        say(
            f"  {precision}: {figures['comparisons']} comparisons with the reference passed, "
            f"largest error {figures['max_error']:.1e} of the largest value, smallest cosine 1 - "
            f"{1 - figures['min_cosine']:.0e}{share}"
        )
        if precision in manifest.lowering:
            say(f"    {describe_lowering(manifest.lowering[precision])}")
    if manifest.lowering:
        say(f"  every comparison: fgclip-rt inspect {bundle.path}")


def require_export_packages() -> None:
    """Make sure that what :mod:`fgclip_rt.export` needs is there, before its import fails for want of it.

    Raises:
        MissingDependencyError: a package is not installed.
    """
    if missing := missing_packages(EXPORT_PACKAGES):
        raise MissingDependencyError(
            f"this command needs {', '.join(missing)}, which is not installed; run pip install 'fgclip-rt[export]'."
        )


def _default_output(name: str, *, is_name: bool, random: bool) -> Path:
    # A checkpoint folder in the working folder has the name itself.
    return Path(f"{name}-random" if random else name if is_name else f"{name}-bundle")
