"""``make bench``: everything on ``benchmarks/README.md``, measured on this machine."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

import fgclip_rt
from fgclip_rt.bundle import Bundle
from fgclip_rt.export import CalibrationInputs, checkpoint_source, export, random_source
from fgclip_rt.machine import usable_cores
from fgclip_rt.pocket.calibration import calibration_inputs

from ..bench import available_peers, bench
from ..pipeline import make_photos, measure_pipeline
from ..results import Result, Table
from ..task import Case
from . import readme
from .start import measure_starts

#: Peers in cases that take long. The other peers run PyTorch too, and their times are near to its own.
_FEW = ("pytorch", "onnxruntime", "openvino")


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, measure, and write results, pictures and page."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of README.md and results/")
    parser.add_argument("--bundles", type=Path, help="folder from which bundles are taken, and in which they are kept")
    parser.add_argument("--model", action="append", help="a registered model; by default fg-clip2-base and -large")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="stop adding rounds to a case after this many seconds"
    )
    options = parser.parse_args(arguments)
    models = options.model or ["fg-clip2-base", "fg-clip2-large"]
    (options.folder / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fgclip-rt-bench-") as temporary:
        folder = options.bundles or Path(temporary)
        for name in models:
            first = name == models[0]
            bundle = make_bundle(folder, name, ("fp32", "int8") if first else ("fp32",))
            result = (_whole if first else _towers)(bundle, folder, options.rounds, options.seconds)
            path = options.folder / "results" / f"{name}.json"
            path.write_bytes(msgspec.structs.replace(result, command="make bench").to_json())
            print(f"{path}", file=sys.stderr)
    readme.write(options.folder)


def make_bundle(folder: Path, name: str, precisions: Sequence[str]) -> Path:
    """Export a registered model unless ``folder`` has its bundle; with random weights unless the package ships some."""
    path = folder / name
    if not path.exists():
        print(f"export {name}", file=sys.stderr)
        shipped = name == "fg-clip2-pocket"
        source = checkpoint_source(name) if shipped else random_source(name)
        inputs = CalibrationInputs(*calibration_inputs()) if "int8" in precisions else None
        export(source, path, precisions, inputs=inputs)
    return path


def _whole(bundle: Path, folder: Path, rounds: int, seconds: float) -> Result:
    """Every graph, length, batch and number of threads; then times from files to vectors, and of whole processes."""
    spec = Bundle.open(bundle).manifest
    buckets, lengths = spec.image.buckets, sorted({walk_type.length for walk_type in spec.text.walk_types.values()})
    largest = spec.image.max_num_patches
    maps = [length for length in (4096, 16_384) if length <= largest]
    cores = usable_cores()
    tables: list[Table] = []
    # Seconds for cases that take long or have no peers.
    brief = seconds / 3

    def add(
        cases: Sequence[Case],
        peers: Sequence[str] = (),
        threads: int = cores,
        rounds: int = rounds,
        seconds: float = seconds,
    ) -> Result:
        print(f"{', '.join(map(str, cases))}; threads {threads}; peers {', '.join(peers) or 'none'}", file=sys.stderr)
        precisions = None if peers else ["fp32"]
        result = bench(
            bundle,
            cases,
            precisions=precisions,
            peers=peers,
            threads=threads,
            rounds=rounds,
            seconds=seconds,
        )
        tables.extend(result.tables)
        return result

    add([Case("vision", bucket) for bucket in buckets], available_peers("cpu"))
    add([Case("vision", bucket, 8) for bucket in buckets], _FEW, seconds=brief)
    add([Case("text", length) for length in lengths], available_peers("cpu"))
    add([Case("text", length, 8) for length in lengths], _FEW, seconds=brief)
    if "dense" in spec.graphs and maps:
        add([Case("dense", maps[0])], _FEW, rounds=3)
        add([Case("dense", length) for length in maps[1:]], rounds=1)
    if "region" in spec.graphs:
        add([Case("region", buckets[-1], 16)], ["pytorch"])
    lengths = [64, *buckets, 2048]
    for threads in sorted({1, cores}):
        add([Case("vision", length) for length in lengths if length <= largest], threads=threads, seconds=brief)
    result = add([Case("vision", bucket, 4) for bucket in buckets], seconds=brief)

    print("files to vectors, and starts", file=sys.stderr)
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    pipeline = measure_pipeline(fgclip_rt.load(bundle, device="cpu"), make_photos(photos, 16), 3)
    pocket = make_bundle(folder, "fg-clip2-pocket", ("fp32",))
    starts = measure_starts(pocket, make_photos(photos, 1)[0], _siglip2(folder))
    return msgspec.structs.replace(result, tables=tuple(tables), pipeline=pipeline, starts=starts)


def _towers(bundle: Path, _: Path, rounds: int, seconds: float) -> Result:
    """The towers of a larger model at their most usual sizes."""
    cases = [Case("vision", 256), Case("vision", 1024), Case("text", 64)]
    return bench(bundle, cases, peers=_FEW, rounds=rounds, seconds=seconds)


def _siglip2(folder: Path) -> Path:
    """Write the pocket model's towers as a checkpoint that transformers loads."""
    from transformers import Siglip2Config, Siglip2Model
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    path = folder / "siglip2-pocket"
    towers = checkpoint_source("fg-clip2-pocket").load()[0].siglip2_towers()
    assert towers is not None
    config, weights = towers
    model = Siglip2Model(Siglip2Config(**config))
    model.load_state_dict(weights, strict=False)
    model.save_pretrained(path)
    Siglip2ImageProcessorPil(max_num_patches=256).save_pretrained(path)
    return path


if __name__ == "__main__":
    main()
