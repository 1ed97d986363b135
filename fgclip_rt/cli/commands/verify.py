"""``fgclip-rt verify``: parity again, on this machine."""

from __future__ import annotations

from pathlib import Path

import click
from msgspec import UNSET

from ...answers import Problem, Verified
from ...bundle import Bundle
from ...errors import ArgumentError, ParityError
from ...packages import require
from ...parity import Reader, check
from ...probe import Probe
from ...progress import BeginStage
from .. import options
from ..interrupt import stopping_at_once
from ..options import Loading, WeightFiles
from ..output import say, say_json
from ..parity import LEGEND, say_parity
from ..progress import progress_bars
from ..status import Command, Failed


@click.command(cls=Command, epilog=LEGEND)
@options.loading
@click.option("--checkpoint", help="Compare with this checkpoint's reference instead of the recorded probe.")
@options.weight_files
@click.option("--native", type=options.PATH, metavar="LIB", help="Run through this libfgclip_rt, the C library.")
@click.option("--all", "every", is_flag=True, help="Show every comparison, not the worst figures of each graph.")
@options.json
def run(
    loading: Loading, checkpoint: str | None, files: WeightFiles, native: Path | None, every: bool, json: bool
) -> None:
    """Check that a bundle gives the reference's numbers on this machine.

    The probe recorded in the bundle needs no PyTorch; --checkpoint runs the reference anew and does.
    """
    files.check_goes_with(checkpoint)
    reader, bundle, precision, backend = _open(loading, native)
    with progress_bars() as begin:
        probe = Probe.of(bundle) if checkpoint is None else _record_anew(bundle, checkpoint, files, begin)
        rows = check(reader, probe, bundle.manifest.parity.limits[precision], begin)

    failed = sum(not row.passed for row in rows)
    where = f"{precision} on {backend}"
    remedy = (
        "do not trust its numbers here, and export it again on this machine."
        if checkpoint is None
        else f"export it again from {checkpoint}, if that is the checkpoint you mean."
    )
    error = ParityError(
        f"{loading.bundle} fails {failed} of {len(rows)} comparisons in {where}; {remedy}", {precision: rows}
    )
    if json:
        say_json(
            Verified(
                bundle=str(loading.bundle),
                precision=precision,
                backend=backend,
                passed=not failed,
                rows=rows,
                error=Problem(error.code, str(error)) if failed else UNSET,
            )
        )
    else:
        say_parity(rows, every=every)
    if failed:
        raise Failed(error)
    if not json:
        say(f"{loading.bundle}: all {len(rows)} comparisons passed in {where}")


def _open(loading: Loading, native: Path | None) -> tuple[Reader, Bundle, str, str]:
    """The reader that is checked, its bundle, its precision, and the name of what runs it."""
    if native is None:
        model = loading.open()
        return model, model.bundle, model.precision, str(model.backend)
    from ...native.library import find_library
    from ...native.reader import NativeReader

    if loading.backend is not None or loading.preparation != "python":
        raise ArgumentError("--backend and --preparation are of the Python runtime; leave them out with --native.")
    bundle = Bundle.open(loading.bundle)
    reader = NativeReader(find_library(native), bundle, loading.device, loading.precision, loading.threads)
    return reader, bundle, reader.precision, str(reader)


def _record_anew(bundle: Bundle, checkpoint: str, files: WeightFiles, begin: BeginStage) -> Probe:
    """The probe computed by a checkpoint's reference."""
    require("export")
    with stopping_at_once():
        import fgclip_rt.export as exporter
        from fgclip_rt.export import verify_against

    local = exporter.LocalFiles(files.weights, files.config, files.tokenizer, files.processor)
    return verify_against(bundle, checkpoint, local, begin)
