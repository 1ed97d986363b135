"""Checkpoint to bundle: trace, write, prove parity, and only then let the bundle appear."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from safetensors import SafetensorError

import fgclip_rt
from fgclip_rt import parity
from fgclip_rt.bundle import MANIFEST, Bundle, file_info, list_files
from fgclip_rt.errors import ArgumentError, BundleError, CheckpointError, OutputError, ParityError
from fgclip_rt.manifest import (
    FORMAT,
    FORMAT_VERSION,
    GraphFile,
    Manifest,
    ModelInfo,
    Parity,
    ParityRow,
    TensorSpec,
    decode_manifest,
)
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe

from . import families, probe
from .checkpoint import locate
from .families import ReferenceModel
from .onnx_writer import trace, write_graphs
from .registry import find_model, unknown_model

PRECISIONS = ("fp32",)

_PROBE, _WEIGHTS = "probe.safetensors", "weights.safetensors"

#: Begins a stage, given its name and number of steps, and returns what to call after each step.
BeginStage: TypeAlias = Callable[[str, int], Callable[[], None]]


def _silent(name: str, steps: int) -> Callable[[], None]:  # noqa: ARG001 (a BeginStage)
    return lambda: None


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: what to call it.
        load: reads it and says what the manifest is to say of it.
    """

    name: str
    load: Callable[[], tuple[ReferenceModel, ModelInfo]]


def checkpoint_source(model: str, revision: str | None = None) -> Source:
    """A checkpoint by registry name, Hub id or folder.

    Raises:
        CheckpointError: it cannot be found.
    """
    checkpoint = locate(model, revision)

    def load() -> tuple[ReferenceModel, ModelInfo]:
        info = ModelInfo(
            name=checkpoint.name,
            family=families.family_name(checkpoint),
            source=checkpoint.source,
            revision=checkpoint.revision,
            weights=checkpoint.origin,
            checkpoint_sha256=checkpoint.sha256(),
        )
        return families.load(checkpoint), info

    return Source(checkpoint.name, load)


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
    return Source(spec.name, lambda: (families.family(spec.family).random(spec.config, seed), info))


def export(
    source: Source,
    output: Path,
    precisions: Sequence[str] = ("fp32",),
    *,
    overwrite: bool = False,
    begin: BeginStage = _silent,
) -> Bundle:
    """Export a model as a bundle.

    Everything is written to a folder beside ``output`` and renamed at the end, so that ``output`` is a whole bundle
    that has proven its parity, or is not there.

    Args:
        source: from :func:`checkpoint_source` or :func:`random_source`.
        output: the bundle's folder.
        precisions: which precisions to write.
        overwrite: replace a bundle at ``output``.
        begin: is told how far the export is.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ParityError: a graph does not give the reference's numbers.
        OutputError: ``output`` exists or cannot be written.
    """
    if not precisions:
        raise ArgumentError(f"no precision was asked for; choose from {', '.join(PRECISIONS)}.")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ArgumentError(f"precision {precision!r} cannot be exported; choose from {', '.join(PRECISIONS)}.")
    with new_folder(output, overwrite) as folder:
        done = begin("load weights", 1)
        model, info = source.load()
        done()
        manifest = _write(model, info, folder, begin)
        # The check loads the graphs as a user would; the reference has said all that is needed of it by now.
        del model
        gc.collect()
        _write_manifest(manifest, folder)
        rows = _check(Bundle.open(folder, check_hashes=False), begin)
        _write_manifest(_with_measured(manifest, rows), folder)
    return Bundle.open(output, check_hashes=False)


def verify_against(bundle: Bundle, checkpoint: str) -> Probe:
    """The probe of ``bundle`` computed anew from a checkpoint: by its reference, its tokenizer and its preparation.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or is of another size.
    """
    model, _ = checkpoint_source(checkpoint).load()
    if model.embedding_size != bundle.manifest.embedding_size:
        raise CheckpointError(
            f"{checkpoint} has vectors of {model.embedding_size} and {bundle.path} of "
            f"{bundle.manifest.embedding_size}; give the checkpoint that the bundle was exported from."
        )
    return probe.record(model)


def _write(model: ReferenceModel, info: ModelInfo, folder: Path, begin: BeginStage) -> Manifest:
    """Write graphs, weights, tokenizer and probe; return the manifest, in which ``measured`` is still empty."""
    sources = model.graphs()
    done = begin("trace graphs", len(sources))
    models: dict[str, ir.Model] = {}
    for name, source in sources.items():
        models[name] = trace(source)
        done()

    done = begin("write weights", 1)
    write_graphs({f"{name}.onnx": graph for name, graph in models.items()}, folder / _WEIGHTS)
    done()

    text = model.text_spec
    (folder / text.tokenizer).write_text(model.tokenizer_json, encoding="utf-8")
    done = begin("run reference", probe.count_steps(model))
    probe.record(model, done).save(folder / _PROBE)

    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        model=info,
        producer=_producer(),
        embedding_size=model.embedding_size,
        score=model.score,
        image=model.image_spec,
        text=text,
        graphs={name: {"fp32": _graph_file(f"{name}.onnx", graph)} for name, graph in models.items()},
        parity=Parity(probe=_PROBE, limits={"fp32": parity.LIMITS["fp32"]}, measured={}),
        files={name: file_info(folder / name) for name in list_files(folder)},
    )


def _check(bundle: Bundle, begin: BeginStage) -> tuple[ParityRow, ...]:
    recorded = Probe.load(bundle.file(_PROBE))
    done = begin("check parity", parity.count_rows(recorded))
    rows = parity.check(Model(bundle, device="cpu"), recorded, parity.LIMITS["fp32"], done)
    failed = [row for row in rows if not row.passed]
    if failed:
        raise ParityError(
            f"parity failed in {len(failed)} of {len(rows)} comparisons, so no bundle was written; "
            "if the checkpoint's files are intact, report this with the comparisons that failed.",
            rows,
        )
    return rows


def _with_measured(manifest: Manifest, rows: tuple[ParityRow, ...]) -> Manifest:
    measured = msgspec.structs.replace(manifest.parity, measured={"fp32": rows})
    return msgspec.structs.replace(manifest, parity=measured)


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _producer() -> dict[str, str]:
    versions = {name: version(name) for name in ("torch", "onnxscript", "numpy", "pillow", "tokenizers")}
    return {
        "fgclip_rt": fgclip_rt.__version__,
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        **versions,
    }


def _graph_file(file: str, model: ir.Model) -> GraphFile:
    return GraphFile(
        file=file,
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
    )


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=value.name, dtype=np.dtype(value.dtype.numpy()).name, shape=shape)


@contextmanager
def new_folder(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside ``output`` that takes its name when the block ends well, and vanishes otherwise.

    Raises:
        OutputError: ``output`` exists and is not to be overwritten, or is no bundle, or cannot be written.
    """
    if output.is_symlink() and not output.exists():
        raise OutputError(f"{output} is a link to nothing; remove it, or choose another --output.")
    output = output.resolve()
    if output.exists():
        if not overwrite:
            raise OutputError(f"{output} exists already; choose another --output, or replace it with --overwrite.")
        if not _is_only_a_bundle(output):
            raise OutputError(
                f"{output} is not a bundle or holds other files too, so it will not be replaced; "
                "choose another --output, or remove it."
            )
    partial = output.parent / f".{output.name}.partial-{uuid.uuid4().hex}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror}); choose another --output.") from None
    try:
        yield partial
        _open_permissions(partial)
        _put_in_place(partial, output, overwrite)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Reading a checkpoint raises CheckpointError, so these two come from writing.
        if isinstance(error, (OSError, SafetensorError)):
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise OutputError(f"{output} cannot be written ({reason}); choose another --output.") from None
        raise


def _is_only_a_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, whole or not, and holds nothing else that replacing it would lose."""
    try:
        manifest = decode_manifest((folder / MANIFEST).read_bytes(), MANIFEST)
    except (OSError, BundleError):
        return False
    return all(name in manifest.files for name in list_files(folder))


def _put_in_place(folder: Path, output: Path, overwrite: bool) -> None:
    """Rename ``folder`` to ``output``, in the place of the bundle there, which is kept when that fails."""
    if not output.exists():
        folder.rename(output)
        return
    # An export takes long enough for somebody else to have made the folder since it was first looked for.
    if not overwrite or not _is_only_a_bundle(output):
        raise OutputError(f"{output} was made while the export ran, so it is kept; choose another --output.")
    replaced = folder.with_name(f".{output.name}.replaced-{uuid.uuid4().hex}")
    output.rename(replaced)
    try:
        folder.rename(output)
    except BaseException:
        replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _open_permissions(folder: Path) -> None:
    """Give every file the mode of a newly made one; safetensors writes for the owner only."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)
