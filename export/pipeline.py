"""Checkpoint to bundle: trace, write, prove parity, lower the precision, and only then let the bundle appear."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir
from PIL import Image

import fgclip_rt
from fgclip_rt import parity
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import CheckpointError, ParityError
from fgclip_rt.evaluation.running import Rate
from fgclip_rt.machine import versions
from fgclip_rt.manifest import FORMAT, FORMAT_VERSION, FP32, Limits, Manifest, ModelInfo, Parity
from fgclip_rt.model import open_model
from fgclip_rt.probe import Probe
from fgclip_rt.progress import BeginStage, silent, tracked

from . import request
from .bundle import probe
from .bundle.assembly import Assembly
from .bundle.output import new_folder
from .checkpoints.locate import LocalFiles, locate
from .checkpoints.registry import find_model, unknown_model
from .families import table as families
from .families.base import ReferenceModel
from .graphs.trace import trace
from .precision import calibration
from .precision.calibration import CalibrationData, CalibrationInputs
from .precision.gate import Gate
from .precision.planner import Inputs, Planner, as_on_a_gpu
from .precision.precisions import PRECISIONS, Precision

_PROBE, _EXACT_PROBE = "probe.safetensors", "probe.float64.safetensors"


@dataclass(frozen=True)
class Source:
    """A model that can be exported.

    Attributes:
        name: its name in messages and for the default output.
        load: reads it, and describes it for the manifest.
        calibration: makes images, and texts by walk type, to calibrate on; None if the user has to give them.
        notes: sentences for the user, complete once it is loaded: what was passed over, and what was chosen.
    """

    name: str
    load: Callable[[], tuple[ReferenceModel, ModelInfo]]
    calibration: Callable[[], tuple[list[Image.Image], dict[str, list[str]]]] | None = None
    notes: Sequence[str] = ()


def checkpoint_source(model: str, revision: str | None = None, files: LocalFiles | None = None) -> Source:
    """A checkpoint by registry name, Hub id, folder, or file of weights.

    Args:
        model: the name, id or path.
        revision: branch, tag or commit on the Hub; None takes the default branch.
        files: files that go with the model.

    Raises:
        CheckpointError: the checkpoint cannot be found.
    """
    checkpoint = locate(model, revision, files)

    def load() -> tuple[ReferenceModel, ModelInfo]:
        family, reference = families.load(checkpoint)
        info = ModelInfo(
            name=checkpoint.name,
            family=family,
            source=checkpoint.source,
            revision=checkpoint.revision,
            weights=checkpoint.origin,
            checkpoint_sha256=checkpoint.sha256(),
        )
        return reference, info

    spec = find_model(model)
    return Source(checkpoint.name, load, None if spec is None else spec.calibration, checkpoint.notes)


def random_source(model: str, seed: int = 0) -> Source:
    """A registered model's sizes with seeded random weights.

    Raises:
        CheckpointError: the name is not registered.
    """
    spec = find_model(model)
    if spec is None:
        raise unknown_model(model)
    info = ModelInfo(
        name=spec.name, family=spec.family, source=None, revision=None, weights="random", checkpoint_sha256=None
    )
    return Source(spec.name, lambda: (families.random(spec.family, spec.config, seed), info))


def export(
    source: Source,
    output: Path,
    precisions: Sequence[str] = (FP32,),
    *,
    inputs: CalibrationInputs | None = None,
    floor: float | None = None,
    gate: Gate | None = None,
    overwrite: bool = False,
    begin: BeginStage = silent,
) -> Bundle:
    """Export a model as a bundle.

    Everything is written to a folder beside ``output`` and renamed at the end. So ``output`` is a whole bundle that has
    proven its parity, or is not there.

    Args:
        source: from :func:`checkpoint_source` or :func:`random_source`.
        output: the bundle's folder.
        precisions: the precisions to write, keys of :data:`fgclip_rt.export.precision.precisions.PRECISIONS`.
        inputs: images and texts that 8-bit precisions are calibrated on, and that every lower precision is measured on
            besides the probe. With None, 8-bit precisions take the source's own, if it has any.
        floor: the smallest cosine to accept in lower precisions, if it is above the precision's own; None keeps these.
        gate: pairs that lower precisions must find as well as fp32 does; None judges them by their numbers alone.
        overwrite: replace a bundle at ``output``.
        begin: is told how far the export is.

    Raises:
        ArgumentError: an argument cannot be used, has no effect, or calibration inputs are missing.
        CheckpointError: the checkpoint cannot be loaded.
        ImageError: an image to calibrate on, or one of the gate, cannot be read.
        ParityError: a precision does not give the reference's numbers, or loses too many of the gate's answers. If
            others do not, ``output`` holds them.
        OutputError: ``output`` exists or cannot be written.
    """
    request.check(precisions, floor, measured=inputs is not None, gated=gate is not None)
    asked = [precision for name, precision in PRECISIONS.items() if name in precisions]
    inputs = _calibration_inputs(precisions, inputs, source)
    with new_folder(output, overwrite) as folder:
        # The reference's memory is free once this returns.
        written = _write(source, inputs, folder, begin)
        gc.collect()
        _prove(written.assembly, source, begin)
        lower = [precision for precision in asked if precision.name != FP32]
        refused = _lower(written, {precision: _limits(precision, floor) for precision in lower}, gate, begin)
        kept = [precision.name for precision in asked if precision.name in written.assembly.manifest.precisions]
        if not kept:
            raise _refusal(refused, "no bundle was written", ())
        written.assembly.finish(kept)
    if refused:
        raise _refusal(refused, f"{output} holds {' and '.join(kept)} only", kept)
    return Bundle.open(output, check_hashes=False)


def _calibration_inputs(
    precisions: Sequence[str], inputs: CalibrationInputs | None, source: Source
) -> CalibrationInputs | None:
    request.check_calibrated(precisions, measured=inputs is not None or source.calibration is not None)
    if inputs is None and source.calibration is not None and not set(precisions).isdisjoint(request.QUANTISED):
        return CalibrationInputs(*source.calibration())
    return inputs


def _limits(precision: Precision, floor: float | None) -> Limits:
    own = precision.limits
    return msgspec.structs.replace(own, min_cosine=max(own.min_cosine, floor or 0.0))


def _refusal(refused: Sequence[ParityError], outcome: str, kept: Sequence[str]) -> ParityError:
    measured = {precision: rows for error in refused for precision, rows in error.measured.items()}
    reasons = "; ".join(str(error) for error in refused)
    return ParityError(
        f"{reasons}; {outcome}; do without, or calibrate on inputs nearer to what the model will meet.",
        measured,
        kept,
        code="precision_refused",
    )


def verify_against(
    bundle: Bundle, checkpoint: str, files: LocalFiles | None = None, begin: BeginStage = silent
) -> Probe:
    """The probe of ``bundle`` computed anew from a checkpoint: by its reference, its tokenizer and its preparation.

    Args:
        bundle: an opened bundle.
        checkpoint: as for :func:`checkpoint_source`.
        files: files that go with the model.
        begin: is told how far the reference is.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or is of another size.
    """
    model, _ = checkpoint_source(checkpoint, files=files).load()
    if model.embedding_size != bundle.manifest.embedding_size:
        raise CheckpointError(
            f"{checkpoint} has vectors of {model.embedding_size} and {bundle.path} of "
            f"{bundle.manifest.embedding_size}; give the checkpoint that the bundle was exported from."
        )
    recorded = probe.record(model, begin)
    if bundle.manifest.parity.exact_probe is None:
        return recorded
    return replace(recorded, exact=probe.record(model, begin, exact=True))


@dataclass(frozen=True)
class _Written:
    """The result of tracing, from which the reference can be dropped.

    Attributes:
        assembly: a bundle with tokenizer and probe.
        graphs: float32 graphs, by name.
        sensitive: names of the layers that stay in float32, by graph.
        calibration: inputs to calibrate on; None if there are none.
    """

    assembly: Assembly
    graphs: Mapping[str, ir.Model]
    sensitive: Mapping[str, Sequence[str]]
    calibration: CalibrationData | None


def _write(source: Source, inputs: CalibrationInputs | None, folder: Path, begin: BeginStage) -> _Written:
    """Load and trace a model, record its reference, and write all of it."""
    done = begin("load weights", 1)
    model, info = source.load()
    done()
    data = None
    if inputs is not None:
        data = calibration.read(inputs, list(model.text_spec.walk_types), begin)

    sources = model.graphs()
    graphs = {name: trace(sources[name]) for name in tracked(begin, "trace graphs", list(sources))}

    text = model.text_spec
    (folder / text.tokenizer).write_text(model.tokenizer_json, encoding="utf-8")
    probe.record(model, begin).save(folder / _PROBE)
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        model=info,
        producer=_producer(),
        embedding_size=model.embedding_size,
        score=model.score,
        image=model.image_spec,
        text=text,
        box_shares=model.box_shares,
        graphs={},
        lowering={},
        parity=Parity(probe=_PROBE, exact_probe=None, limits={}, measured={}),
        files={},
    )
    assembly = Assembly(folder, manifest)
    done = begin("write weights", 1)
    assembly.write(FP32, graphs, PRECISIONS[FP32].limits)
    done()
    return _Written(assembly, graphs, {name: tuple(graph.sensitive) for name, graph in sources.items()}, data)


def _prove(assembly: Assembly, source: Source, begin: BeginStage) -> None:
    """Hold the float32 graphs to the reference, loaded as a user would load them.

    If they miss the limits, the reference runs again in float64, to tell a wrong graph from the limits of float32.
    """
    limits = PRECISIONS[FP32].limits
    recorded = Probe.load(assembly.folder / _PROBE)
    model = open_model(assembly.write_manifest(), device="cpu")
    rows = parity.check(model, recorded, limits, begin, "check fp32 parity")
    failed = [row for row in rows if not row.passed]
    if failed and all(parity.may_be_float32(row) for row in failed):
        exact = probe.record(source.load()[0], begin, exact=True)
        exact.save(assembly.folder / _EXACT_PROBE)
        assembly.set_exact_probe(_EXACT_PROBE)
        model = open_model(assembly.write_manifest(), device="cpu")
        rows = parity.check(model, replace(recorded, exact=exact), limits, begin, "check fp32 parity by float64")
        failed = [row for row in rows if not row.passed]
    if failed:
        raise ParityError(
            f"parity failed in {len(failed)} of {len(rows)} comparisons, so no bundle was written; "
            "if the checkpoint's files are intact, report this with the comparisons that failed.",
            {FP32: rows},
        )
    assembly.set_measured(FP32, rows)


def _lower(
    written: _Written, limits: Mapping[Precision, Limits], gate: Gate | None, begin: BeginStage
) -> list[ParityError]:
    """Add lower precisions, and return the errors of the precisions that were refused."""
    if not limits:
        return []
    recorded, data, held_out = Probe.load(written.assembly.folder / _PROBE), written.calibration, None
    before = gate.answers(open_model(written.assembly.write_manifest(), device="cpu"), begin) if gate else []
    if data is not None:
        held_out = data.held_out(open_model(written.assembly.write_manifest(), device="cpu"), begin)
    inputs = Inputs(recorded, data, held_out)
    planner = Planner(written.assembly, written.graphs, written.sensitive, inputs, begin)
    refused = []
    for precision, limit in limits.items():
        try:
            planner.add(precision, limit)
            if gate is not None:
                _pass(gate, before, written.assembly, precision.name, begin)
        except ParityError as error:
            refused.append(error)
    return refused


def _pass(gate: Gate, before: Sequence[Rate], assembly: Assembly, precision: str, begin: BeginStage) -> None:
    """Hold the answers of a precision that was written to those of fp32.

    Raises:
        ParityError: it loses too many, and is removed.
    """
    reason = gate.judge(precision, before, gate.answers(as_on_a_gpu(assembly.write_manifest(), precision), begin))
    if reason is not None:
        rows = assembly.manifest.parity.measured[precision]
        assembly.remove(precision)
        raise ParityError(reason, {precision: rows}, code="precision_refused")


def _producer() -> dict[str, str]:
    packages = ("onnxruntime", "torch", "onnxscript", "numpy", "pillow", "tokenizers")
    return {"fgclip_rt": fgclip_rt.__version__, **versions(*packages)}
