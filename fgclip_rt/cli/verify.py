"""``fgclip-rt verify``: parity again, on this machine."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..bundle import Bundle
from ..errors import ParityError
from ..model import open_model
from ..parity import check
from ..probe import Probe
from . import options
from .console import progress_bars, say, say_json, say_parity
from .export import require_export_packages


def run(
    bundle: options.Bundle,
    checkpoint: Annotated[
        str | None, typer.Option(help="Compare with this checkpoint's reference instead of the recorded probe.")
    ] = None,
    weights: options.Weights = None,
    config: options.Config = None,
    tokenizer: options.Tokenizer = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    json: options.Json = False,
) -> None:
    """Check that a bundle gives the reference's numbers on this machine.

    The probe recorded in the bundle needs no PyTorch; --checkpoint runs the reference anew and does.
    """
    options.check_goes_with_checkpoint(checkpoint, weights, config, tokenizer)
    opened = Bundle.open(bundle)
    model = open_model(opened, device, precision, threads, backend)
    with progress_bars() as begin:
        if checkpoint is None:
            probe = Probe.load(opened.file(opened.manifest.parity.probe))
        else:
            require_export_packages()
            import fgclip_rt.export as exporter

            probe = exporter.verify_against(opened, checkpoint, exporter.LocalFiles(weights, config, tokenizer), begin)
        rows = check(model, probe, opened.manifest.parity.limits[model.precision], begin)
    failed = [row for row in rows if not row.passed]
    if json:
        say_json(
            {
                "bundle": str(bundle),
                "precision": model.precision,
                "backend": str(model.backend),
                "passed": not failed,
                "rows": msgspec.to_builtins(rows),
            }
        )
    else:
        say_parity(rows)
    if failed:
        raise ParityError(
            f"{bundle} fails {len(failed)} of {len(rows)} comparisons in {model.precision} on {model.backend}; "
            + (
                "do not trust its numbers here, and export it again on this machine."
                if checkpoint is None
                else f"export it again from {checkpoint}, if that is the checkpoint you mean."
            ),
            {model.precision: rows},
        )
    if not json:
        say(f"{bundle}: all {len(rows)} comparisons passed in {model.precision} on {model.backend}")
