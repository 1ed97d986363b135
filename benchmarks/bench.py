"""Measure a bundle: its precisions, and its peers where they are asked for, side by side in one run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, BenchmarkError, MissingDependencyError, check_positive
from fgclip_rt.machine import this_machine, usable_cores, vector_extensions, versions
from fgclip_rt.packages import EXPORT_PACKAGES, missing_packages
from fgclip_rt.progress import BeginStage, silent

from .contest import Contest
from .operations import OperationCounter
from .results import FORMAT, FORMAT_VERSION, BundleInfo, Result, Row, Table
from .task import Case, CheckpointName, Contender

#: What a user would pick instead, in the order of the tables.
PEERS = ("pytorch", "pytorch compiled", "transformers", "onnxruntime", "openvino")

#: Those that run an export of the reference.
_PLAIN = ("onnxruntime", "openvino")

_PACKAGES = ("onnxruntime", "numpy", "pillow", "torch", "transformers", "openvino")
_PRODUCTS = "products"


def bench(
    bundle: Path,
    cases: Sequence[Case] | None = None,
    *,
    precisions: Sequence[str] | None = None,
    peers: Sequence[str] = (),
    checkpoint: CheckpointName | None = None,
    threads: int | None = None,
    rounds: int = 9,
    seconds: float = 60.0,
    begin: BeginStage = silent,
) -> Result:
    """Measure a bundle on this machine's CPU.

    Args:
        bundle: its folder.
        cases: what to compute; None takes :func:`usual_cases`.
        precisions: of the bundle; None takes all, and one that onnxruntime cannot run says so in its row.
        peers: of :data:`PEERS`, run beside it with the same weights.
        checkpoint: where the peers find the weights of a bundle whose weights are not random.
        threads: of each contender; None takes one for each core that we may use.
        rounds: turns of each contender on each case.
        seconds: after so many a case has no further round.
        begin: is told how far it is.

    Raises:
        FgclipError: the bundle cannot be opened, an argument cannot be used, or a package is missing.
        BenchmarkError: nothing could run a case, or the disk for temporary files is full.
    """
    opened = Bundle.open(bundle)
    for precision in precisions or ():
        opened.check_precision(precision)
    _check_peers(peers)
    check_positive("rounds", rounds)
    check_positive("threads", threads, most=1024)
    cases = usual_cases(opened) if cases is None else cases
    count = usable_cores() if threads is None else threads
    ours = [
        Contender(f"fgclip-rt {precision}", "fgclip-rt", str(bundle), count, precision=precision)
        for precision in precisions or opened.manifest.precisions
    ]
    products = Contender(_PRODUCTS, "products", str(bundle), count)
    others = [Contender(peer, peer, str(bundle), count, checkpoint=checkpoint) for peer in peers]
    operations = OperationCounter(opened)
    done = begin("measure", len(cases) * rounds)
    tables: list[Table] = []
    for group in _groups(cases, plain=bool(set(peers) & set(_PLAIN))):
        with _plain_export(opened, group, peers, checkpoint) as (plain, problem):
            contenders = [
                msgspec.structs.replace(contender, plain=plain, problem=problem)
                if contender.kind in _PLAIN
                else contender
                for contender in (*ours, *others)
            ]
            with Contest([*contenders, products], rounds, seconds) as contest:
                for case in group:
                    *rows, limit = contest.measure(case, done)
                    tables.append(_table(case, count, rows, limit, operations))
    return Result(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        command=" ".join(["fgclip-rt", *sys.argv[1:]]),
        machine=describe_machine(),
        versions=versions(*_PACKAGES),
        bundle=describe_bundle(opened),
        tables=tuple(tables),
    )


def usual_cases(bundle: Bundle) -> list[Case]:
    """One image of every bucket, one text of every length, and dense features and regions where there are some."""
    buckets = bundle.manifest.image.buckets
    lengths = sorted({spec.length for spec in bundle.manifest.text.walk_types.values()})
    cases = [Case("vision", bucket) for bucket in buckets] + [Case("text", length) for length in lengths]
    if "dense" in bundle.manifest.graphs:
        cases.append(Case("dense", buckets[-1]))
    if "region" in bundle.manifest.graphs:
        cases.append(Case("region", buckets[-1], 16))
    return cases


def describe_machine() -> dict[str, str]:
    """What the figures depend on."""
    machine = this_machine()
    return {
        "cpu": machine.cpu,
        "flags": vector_extensions(machine.flags),
        "cores": str(machine.cores),
        "memory available": "unknown" if machine.memory is None else f"{machine.memory / 1e9:.0f} GB",
        "system": machine.system,
    }


def describe_bundle(bundle: Bundle) -> BundleInfo:
    """Which bundle it was."""
    manifest = bundle.manifest
    return BundleInfo(
        name=manifest.model.name,
        weights=manifest.model.weights,
        manifest_sha256=bundle.manifest_sha256,
        sizes={name: info.size for name, info in manifest.files.items()},
    )


def _check_peers(peers: Sequence[str]) -> None:
    for peer in peers:
        if peer not in PEERS:
            raise ArgumentError(f"peer {peer!r} is unknown; choose from {', '.join(PEERS)}.")
    needed = [*EXPORT_PACKAGES, *(package for package in ("transformers", "openvino") if package in peers)]
    if peers and (missing := missing_packages(needed)):
        raise MissingDependencyError(
            f"peers need packages that are not installed ({', '.join(missing)}); run pip install 'fgclip-rt[bench]'."
        )


def _groups(cases: Sequence[Case], *, plain: bool) -> Iterator[list[Case]]:
    """Cases that the same processes compute: those of a graph, or of one length where it was exported for that."""
    groups: dict[object, list[Case]] = {}
    for case in cases:
        groups.setdefault((case.graph, case.length) if plain else case.graph, []).append(case)
    yield from groups.values()


@contextmanager
def _plain_export(
    bundle: Bundle, cases: Sequence[Case], peers: Sequence[str], checkpoint: CheckpointName | None
) -> Iterator[tuple[str | None, str]]:
    """A plain export for the cases, all of one length, in a folder that goes with the block; or why there is none."""
    if not set(peers) & set(_PLAIN):
        yield None, "not asked for"
        return
    with tempfile.TemporaryDirectory(prefix="fgclip-rt-bench-") as folder:
        path = Path(folder) / "plain.onnx"
        largest = max(cases, key=lambda case: case.batch)
        # In a process of its own, whose memory goes with it.
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", f"{__package__}.plain"),
                *(str(bundle.path), str(path)),
                *(msgspec.json.encode(argument).decode() for argument in (largest, checkpoint)),
            ],
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            yield str(path), ""
        else:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            yield None, f"the plain export into {tempfile.gettempdir()} failed ({''.join(last)})"


def _table(case: Case, threads: int, rows: Sequence[Row], limit: Row, operations: OperationCounter) -> Table:
    if all(row.problem for row in rows):
        raise BenchmarkError(f"nothing could compute {case}: {rows[0].problem}.")
    # Regions have no layers, and their one small product tells nothing of the machine.
    count = 0 if case.graph == "region" else operations.count(case)
    return Table(case=case, threads=threads, rows=tuple(rows), products=limit.seconds, operations=count)
