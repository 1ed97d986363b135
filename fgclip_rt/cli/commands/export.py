"""``fgclip-rt export``: checkpoint to bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from fgclip_rt.export import request
from fgclip_rt.export.bundle.output import check_new_folder
from fgclip_rt.export.checkpoints.registry import ModelSpec
from fgclip_rt.export.precision.gate import Gate

from ... import answers
from ...answers import Exported, Gated, Problem, Refused
from ...bundle import Bundle
from ...errors import ArgumentError, ImageError, ParityError
from ...outputs import check_space
from ...packages import require
from .. import options
from ..inputs import find_images, read_texts
from ..interrupt import stopping_at_once
from ..options import WeightFiles
from ..output import say, say_json, warn
from ..parity import LEGEND, describe_lowering, floored, say_parity
from ..progress import progress_bars
from ..status import Command, Failed


@click.command(cls=Command, epilog=LEGEND)
@click.option(
    "--model",
    required=True,
    shell_complete=options.complete_model,
    help="A model's name, its Hub id, a local checkpoint folder, or a file of weights (.pt).",
)
@click.option("--output", type=options.PATH, help="Bundle folder to make.  [default: by the model's name]")
@click.option(
    "--precision",
    multiple=True,
    default=["fp32"],
    shell_complete=options.completed(request.NAMES),
    help="Precision to write: fp32, fp16, bf16, int8 or fp8; repeatable.",
)
@click.option(
    "--calibration",
    multiple=True,
    type=options.PATH,
    help="Images to calibrate int8 and fp8 on, a file or a folder; repeatable.  [default: none]",
)
@click.option(
    "--calibration-texts",
    type=options.PATH,
    help="Texts to calibrate int8 and fp8 on, one a line; - reads standard input.  [default: none]",
)
@click.option(
    "--floor",
    type=float,
    help="Smallest cosine to accept in lower precisions.  [default: that of each, 0.99 to 0.9995]",
)
@click.option(
    "--gate", type=options.PATH, help="CSV file of image,text[,box] that lower precisions must find.  [default: none]"
)
@click.option("--max-loss", type=float, help="Points of 100 that no figure of --gate may lose more.  [default: 0.5]")
@click.option(
    "--random-weights", is_flag=True, help="Real sizes with random weights and no download: for benchmarks only."
)
@click.option("--seed", default=0, help="Seed of the random weights.")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@options.weight_files
@click.option("--all", "every", is_flag=True, help="Of what was refused, show every comparison that failed.")
@options.overwrite
@options.json
def run(
    model: str,
    output: Path | None,
    precision: tuple[str, ...],
    calibration: tuple[Path, ...],
    calibration_texts: Path | None,
    floor: float | None,
    gate: Path | None,
    max_loss: float | None,
    random_weights: bool,
    seed: int,
    revision: str | None,
    files: WeightFiles,
    every: bool,
    overwrite: bool,
    json: bool,
) -> None:
    """Turn an FG-CLIP checkpoint into a bundle that runs without PyTorch.

    The bundle appears only when every graph has given the reference's numbers on the probe inputs. A lower precision
    that falls below its floor is refused, and the others are kept. Calibration images and texts are of the kind that
    the model will meet; a fourth of them is held out to measure on. With --gate, a lower precision is also refused if
    it finds fewer of your own pairs than fp32, as 'fgclip-rt evaluate --pairs' counts them, with ties as wrong.
    """
    require("export")
    _check_files(random_weights, revision, files)
    # Torch and ONNX, which take seconds, are imported when nothing is left to refuse without them.
    spec = request.check_model(model, random=random_weights)
    images, texts = _calibration(calibration, calibration_texts)
    if images:
        request.check_enough(len(set(images)), len(set(texts)))
    request.check(precision, floor, measured=bool(images), gated=gate is not None)
    if gate is None and max_loss is not None:
        raise ArgumentError("--max-loss goes with the pairs of --gate; name their file, or leave it out.")
    pairs = None if gate is None else Gate.read(gate, max_loss)
    has_own = spec is not None and spec.folder is not None and not random_weights
    request.check_calibrated(precision, measured=bool(images) or has_own)
    path = output or _default_output(model, spec, random=random_weights)
    check_new_folder(path, overwrite)
    check_space(path, request.least_bytes(model, files.weights, precision))
    with stopping_at_once():
        import fgclip_rt.export as exporter
        from fgclip_rt.export import checkpoint_source, random_source

    if random_weights:
        source = random_source(model, seed)
        warn(
            f"fgclip-rt: RANDOM WEIGHTS: {source.name} gets its real sizes, but its numbers will mean nothing and its "
            "tokenizer spells texts byte by byte; use this bundle for benchmarks only."
        )
    else:
        local = exporter.LocalFiles(files.weights, files.config, files.tokenizer, files.processor)
        source = checkpoint_source(model, revision, local)
    try:
        with progress_bars() as begin:
            bundle = exporter.export(
                source,
                path,
                precision,
                inputs=exporter.CalibrationInputs(images, texts) if images else None,
                floor=floor,
                gate=pairs,
                overwrite=overwrite,
                begin=begin,
            )
    except ParityError as error:
        _say_refused(error, path, source.notes, _gated(pairs), json=json, every=every)
        raise Failed(error) from None
    finally:
        for note in source.notes:
            warn(f"fgclip-rt: {note}")
    answer = answers.exported(bundle, source.notes, _gated(pairs))
    if json:
        say_json(answer)
    else:
        _say(answer)


def _check_files(random_weights: bool, revision: str | None, files: WeightFiles) -> None:
    if random_weights and revision is not None:
        raise ArgumentError("--revision goes with weights from the Hub; leave it out with --random-weights.")
    if random_weights and files != WeightFiles():
        raise ArgumentError(
            "--random-weights takes no files; leave out --weights, --config, --tokenizer and --processor."
        )


def _calibration(images: tuple[Path, ...], texts: Path | None) -> tuple[list[Path], list[str]]:
    """Images and texts to calibrate on; none, if none were given."""
    for path in images:
        if not path.exists():
            raise ImageError(f"{path} does not exist; name images, or a folder of them, with --calibration.")
    if images and texts is not None:
        return [Path(file) for file in find_images(images).files], read_texts(texts)
    if images or texts is not None:
        given, missing = ("images", "--calibration-texts") if images else ("texts", "--calibration")
        raise ArgumentError(f"both towers are calibrated, and only {given} were given; add {missing}.")
    return [], []


def _default_output(model: str, spec: ModelSpec | None, *, random: bool) -> Path:
    if spec is not None:
        return Path(f"{spec.name}-random" if random else spec.name)
    # A checkpoint folder in the working folder has the name itself.
    path = Path(model).resolve()
    return Path(f"{path.name if path.is_dir() else path.stem}-bundle")


def _gated(gate: Gate | None) -> dict[str, Gated]:
    """The figures in which the precisions that came to the gate lose most."""
    losses = {} if gate is None else gate.losses
    return {precision: Gated(loss.name, loss.before, loss.after, loss.points) for precision, loss in losses.items()}


def _say_refused(
    error: ParityError, path: Path, notes: Sequence[str], gated: dict[str, Gated], *, json: bool, every: bool
) -> None:
    kept = Bundle.open(path, check_hashes=False) if error.kept else None
    if json:
        say_json(
            Refused(
                passed=False,
                bundle=None if kept is None else str(kept.path),
                precisions=list(error.kept),
                refused=error.measured,
                error=Problem(error.code, str(error)),
            )
        )
        return
    for name, rows in error.measured.items():
        # None failed if the gate refused.
        if failed := [row for row in rows if not row.passed]:
            say_parity(failed, f"comparisons that {name} failed", every=every)
    if kept is not None:
        _say(answers.exported(kept, notes, gated))


def _say(answer: Exported) -> None:
    say(f"{answer.bundle}: {answer.model}, {answer.size / 1e6:,.1f} MB, vectors of {answer.embedding_size}")
    for precision, worst in answer.parity.items():
        decided = f", {worst.by_float64} of them by float64" if worst.by_float64 else ""
        share = (
            f"; of each dense map, {floored(worst.within)} or more of the vectors keep the floor"
            if worst.within < 1
            else ""
        )
        say(
            f"  {precision}: {worst.comparisons} comparisons with the reference passed{decided}, "
            f"largest error {worst.max_error:.1e} of the largest value, smallest cosine 1 - "
            f"{1 - worst.min_cosine:.0e}{share}"
        )
        if precision in answer.lowering:
            say(f"    {describe_lowering(answer.lowering[precision])}")
        if precision in answer.gate:
            gated = answer.gate[precision]
            change = f"{gated.figure} is {gated.after:.1%}, and {gated.before:.1%} in fp32"
            say(f"    answers: {change}; no other figure of --gate loses more")
    if answer.lowering:
        say(f"  every comparison: fgclip-rt inspect {answer.bundle} --all")
