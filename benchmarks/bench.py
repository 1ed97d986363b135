"""Measure a bundle: its precisions, and its peers if they are asked for, side by side in one run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import msgspec

from fgclip_rt.bundle import Bundle
from fgclip_rt.choice import ENGINE_BACKENDS
from fgclip_rt.errors import ArgumentError, BenchmarkError, DeviceError, check_positive
from fgclip_rt.machine import cuda_gpus, this_machine, usable_cores, vector_extensions, versions
from fgclip_rt.packages import EXPORT_PACKAGES, require
from fgclip_rt.progress import BeginStage, silent

from .contest import Contest
from .operations import OperationCounter
from .products import operations as product_operations
from .results import FORMAT, FORMAT_VERSION, BundleInfo, Result, Row, Table
from .task import Case, CheckpointName, Contender, Device

#: Peers, which a user may choose instead, in the order of the tables, and the devices of each.
_PEERS: dict[str, tuple[Device, ...]] = {
    "pytorch": ("cpu", "cuda"),
    "pytorch compiled": ("cpu",),
    "pytorch autocast": ("cuda",),
    "pytorch autocast compiled": ("cuda",),
    "pytorch graphs autocast compiled": ("cuda",),
    "transformers": ("cpu",),
    "onnxruntime": ("cpu",),
    "openvino": ("cpu",),
}
PEERS = tuple(_PEERS)

DEVICES: tuple[Device, ...] = ("cpu", "cuda")

#: Peers that run a plain export of the reference.
_PLAIN = ("onnxruntime", "openvino")

#: Packages whose versions the figures depend on.
_PACKAGES: dict[Device, tuple[str, ...]] = {
    "cpu": ("onnxruntime", "numpy", "pillow", "torch", "transformers", "openvino"),
    "cuda": ("onnxruntime", "numpy", "pillow", "torch", "tensorrt", "tensorrt-rtx", "cuda-bindings"),
}

#: Batch sizes on a GPU, because few images or texts do not fill it.
_GPU_BATCHES = (1, 8, 32)

_PRODUCTS = "products"


def bench(
    bundle: Path,
    cases: Sequence[Case] | None = None,
    *,
    device: Device = "cpu",
    precisions: Sequence[str] | None = None,
    peers: Sequence[str] = (),
    checkpoint: CheckpointName | None = None,
    threads: int | None = None,
    rounds: int = 9,
    seconds: float = 60.0,
    begin: BeginStage = silent,
    measured: Callable[[Result], None] = lambda _: None,
) -> Result:
    """Measure a bundle on this machine.

    On a CPU, the runtime runs each precision. On a GPU, onnxruntime's provider and the engines of each library run it.
    The model alone is timed there with inputs and outputs on the GPU.

    Args:
        bundle: its folder.
        cases: the cases to measure; None takes :func:`usual_cases`.
        device: the device that computes.
        precisions: some of the bundle's; None takes all. The row of a precision that cannot run says why.
        peers: some of :func:`available_peers`, which run beside the bundle with the same weights.
        checkpoint: the checkpoint of the bundle's weights, for peers; None if they are random or shipped.
        threads: number of threads of each contender; None takes one for each core that we may use.
        rounds: number of turns of each contender on each case.
        seconds: seconds after which a case has no further round.
        begin: is told how far the work is.
        measured: is given the results so far after each case.

    Raises:
        FgclipError: the bundle cannot be opened, an argument cannot be used, or a package or the GPU is missing.
        BenchmarkError: no contender could run a case, or the disk for temporary files is full.
    """
    check_device(device)
    opened = Bundle.open(bundle)
    for precision in precisions or ():
        opened.check_precision(precision)
    _check_peers(peers, device)
    check_positive("rounds", rounds)
    check_positive("threads", threads, most=1024)
    cases = usual_cases(opened, device) if cases is None else cases
    count = usable_cores() if threads is None else threads
    ours = _ours(bundle, precisions or opened.manifest.precisions, device, count)
    products = Contender(_PRODUCTS, "products" if device == "cpu" else "products on a GPU", str(bundle), count, device)
    others = [Contender(peer, peer, str(bundle), count, device, checkpoint=checkpoint) for peer in peers]
    operations = OperationCounter(opened)
    done = begin("measure", len(cases) * rounds)
    result = Result(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        command=" ".join(["fgclip-rt", *sys.argv[1:]]),
        machine=describe_machine(device),
        versions=versions(*_PACKAGES[device]),
        bundle=describe_bundle(opened),
        tables=(),
    )
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
                    table = _table(case, products, rows, limit, operations)
                    result = msgspec.structs.replace(result, tables=(*result.tables, table))
                    measured(result)
    return result


def available_peers(device: Device) -> tuple[str, ...]:
    """The peers of :data:`PEERS` that run on a device."""
    return tuple(peer for peer, devices in _PEERS.items() if device in devices)


def usual_cases(bundle: Bundle, device: Device = "cpu") -> list[Case]:
    """Images of every bucket and texts of every length.

    On a CPU, each case has one image or text, and dense features and regions are added if the model has them. On a GPU,
    cases have batches of several sizes, and images are also measured end to end.
    """
    buckets = bundle.manifest.image.buckets
    lengths = sorted({spec.length for spec in bundle.manifest.text.walk_types.values()})
    if device == "cuda":
        return [
            *(Case("vision", *size, whole) for whole in (False, True) for size in product(buckets, _GPU_BATCHES)),
            *(Case("text", *size) for size in product(lengths, _GPU_BATCHES)),
        ]
    cases = [Case("vision", bucket) for bucket in buckets] + [Case("text", length) for length in lengths]
    if "dense" in bundle.manifest.graphs:
        cases.append(Case("dense", buckets[-1]))
    if "region" in bundle.manifest.graphs:
        cases.append(Case("region", buckets[-1], 16))
    return cases


def describe_machine(device: Device) -> dict[str, str]:
    """The properties of this machine that figures depend on, in words."""
    machine = this_machine()
    return {
        **({} if device == "cpu" else {"gpu": "; ".join(cuda_gpus())}),
        "cpu": machine.cpu,
        "flags": vector_extensions(machine.flags),
        "cores": str(machine.cores),
        "memory available": "unknown" if machine.memory is None else f"{machine.memory / 1e9:.0f} GB",
        "system": machine.system,
    }


def describe_bundle(bundle: Bundle) -> BundleInfo:
    """Name, origin of the weights, digest and file sizes of a bundle."""
    manifest = bundle.manifest
    return BundleInfo(
        name=manifest.model.name,
        weights=manifest.model.weights,
        manifest_sha256=bundle.manifest_sha256,
        sizes={name: info.size for name, info in manifest.files.items()},
    )


def _ours(bundle: Path, precisions: Sequence[str], device: Device, threads: int) -> list[Contender]:
    """Contenders that run the bundle: the runtime on a CPU, or onnxruntime's provider and then engines on a GPU."""
    if device == "cpu":
        return [
            Contender(f"fgclip-rt {precision}", "fgclip-rt", str(bundle), threads, precision=precision)
            for precision in precisions
        ]
    return [
        *(
            Contender(f"fgclip-rt {precision}", "onnxruntime provider", str(bundle), threads, device, precision)
            for precision in precisions
        ),
        *(
            Contender(f"fgclip-rt {name}{way}", f"engines{way}", str(bundle), threads, device, precision, library)
            for precision, library in product(precisions, ENGINE_BACKENDS)
            for name, way in product([f"{precision} {library}"], ("", " enqueued", " back to back"))
        ),
    ]


def check_device(device: str) -> Device:
    """Make sure that a bundle can be measured on a device.

    Raises:
        ArgumentError: the device is unknown.
        DeviceError: there is no such device here.
        MissingDependencyError: a package that the device is measured with is not installed.
    """
    if device not in DEVICES:
        raise ArgumentError(f"device {device!r} is unknown; choose one of {', '.join(DEVICES)}.")
    if device == "cpu":
        return "cpu"
    if not cuda_gpus():
        raise DeviceError(
            "device 'cuda' needs an NVIDIA GPU, and CUDA gives this process none; check the driver with nvidia-smi and "
            "look at CUDA_VISIBLE_DEVICES, or use device 'cpu'."
        )
    require("bench", ["torch"], "device 'cuda' is measured with {}, which is not installed")
    return "cuda"


def _check_peers(peers: Sequence[str], device: Device) -> None:
    available = available_peers(device)
    for peer in peers:
        if peer not in PEERS:
            raise ArgumentError(f"peer {peer!r} is unknown; choose from {', '.join(available)}.")
        if peer not in available:
            raise ArgumentError(
                f"peer {peer!r} is not measured on device {device!r}; choose from {', '.join(available)}."
            )
    needed = [*EXPORT_PACKAGES, *(package for package in ("transformers", "openvino") if package in peers)]
    if peers:
        require("bench", needed, "peers need packages that are not installed ({})")


def _groups(cases: Sequence[Case], *, plain: bool) -> Iterator[list[Case]]:
    """Cases that the same processes compute: cases of one graph, and of one length if a plain export is needed."""
    groups: dict[object, list[Case]] = {}
    for case in cases:
        groups.setdefault((case.graph, case.length) if plain else case.graph, []).append(case)
    yield from groups.values()


@contextmanager
def _plain_export(
    bundle: Bundle, cases: Sequence[Case], peers: Sequence[str], checkpoint: CheckpointName | None
) -> Iterator[tuple[str | None, str]]:
    """A plain export for cases of one length, removed when the block ends.

    Yields:
        The path of the export, and an empty string; or None, and the reason why there is none.
    """
    if not set(peers) & set(_PLAIN):
        yield None, "not asked for"
        return
    with tempfile.TemporaryDirectory(prefix="fgclip-rt-bench-") as folder:
        path = Path(folder) / "plain.onnx"
        largest = max(cases, key=lambda case: case.batch)
        # A process of its own, because its memory is free when it ends.
        completed = subprocess.run(
            [
                *(sys.executable, "-P", "-m", f"{__package__}.plain"),
                *(str(bundle.path), str(path)),
                *(msgspec.json.encode(argument).decode() for argument in (largest, checkpoint)),
            ],
            capture_output=True,
            check=False,
        )
        if completed.returncode == 0:
            yield str(path), ""
        else:
            last = completed.stderr.decode(errors="replace").strip().splitlines()[-1:]
            yield None, f"the plain export into {tempfile.gettempdir()} failed ({''.join(last)})"


def _table(case: Case, products: Contender, rows: Sequence[Row], limit: Row, operations: OperationCounter) -> Table:
    if all(row.problem for row in rows):
        raise BenchmarkError(
            f"no contender could compute {case} ({rows[0].problem}); measure another case, or check the machine with "
            "'fgclip-rt doctor'."
        )
    if limit.problem:
        raise BenchmarkError(
            f"matrix products cannot be measured on device {products.device!r} ({limit.problem}); check the machine "
            "with 'fgclip-rt doctor'."
        )
    # Regions have no layers, and their one small product does not show the machine's rate.
    count = 0 if case.graph == "region" else operations.count(case)
    return Table(
        case=case,
        threads=products.threads,
        rows=tuple(rows),
        products=limit.seconds,
        operations=count,
        product_operations=product_operations(products.device),
    )
