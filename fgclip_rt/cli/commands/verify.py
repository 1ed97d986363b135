"""``fgclip-rt verify``: parity again, on this machine."""

from __future__ import annotations

import click
from msgspec import UNSET

from ...answers import Problem, Verified
from ...bundle import Bundle
from ...errors import ParityError
from ...packages import require
from ...parity import check
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
@click.option("--all", "every", is_flag=True, help="Show every comparison, not the worst figures of each graph.")
@options.json
def run(loading: Loading, checkpoint: str | None, files: WeightFiles, every: bool, json: bool) -> None:
    """Check that a bundle gives the reference's numbers on this machine.

    The probe recorded in the bundle needs no PyTorch; --checkpoint runs the reference anew and does.
    """
    files.check_goes_with(checkpoint)
    model = loading.open()
    with progress_bars() as begin:
        probe = Probe.of(model.bundle) if checkpoint is None else _record_anew(model.bundle, checkpoint, files, begin)
        rows = check(model, probe, model.manifest.parity.limits[model.precision], begin)

    failed = sum(not row.passed for row in rows)
    where = f"{model.precision} on {model.backend}"
    remedy = (
        "do not trust its numbers here, and export it again on this machine."
        if checkpoint is None
        else f"export it again from {checkpoint}, if that is the checkpoint you mean."
    )
    error = ParityError(
        f"{loading.bundle} fails {failed} of {len(rows)} comparisons in {where}; {remedy}", {model.precision: rows}
    )
    if json:
        say_json(
            Verified(
                bundle=str(loading.bundle),
                precision=model.precision,
                backend=str(model.backend),
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


def _record_anew(bundle: Bundle, checkpoint: str, files: WeightFiles, begin: BeginStage) -> Probe:
    """The probe computed by a checkpoint's reference."""
    require("export")
    with stopping_at_once():
        import fgclip_rt.export as exporter
        from fgclip_rt.export import verify_against

    local = exporter.LocalFiles(files.weights, files.config, files.tokenizer, files.processor)
    return verify_against(bundle, checkpoint, local, begin)
