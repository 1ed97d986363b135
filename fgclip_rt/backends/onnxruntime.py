"""The graphs of a bundle in onnxruntime, on a CPU or through its CUDA provider."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,  # noqa: A004 (its name)
)

from .. import forks
from ..arrays import Array
from ..bundle import Bundle
from ..devices import gpu_name, parse_device
from ..errors import ArgumentError, BundleError, DeviceError, FgclipError, check_positive, reason
from ..interface import describe
from ..machine import cuda_gpus, usable_cores
from ..manifest import FP32, GraphFile, TensorSpec
from ..packages import CUDA_REMEDY
from . import CPU_TOKENS_PER_BATCH, GPU_TOKENS_PER_BATCH, Finished, Result, lost_cuda
from .external_data import Model, without_links
from .mapped import MappedFile

_CPU, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"

#: Patches or tokens of a batch whose size is not given, for each thread. They keep the cores busy, and are few enough
#: for activations to stay in the caches. A longer image or text runs alone. On two cores, images of 256 patches were
#: slower in batches of 2,048 patches than of 1,024, and as fast in batches of 256.
_TOKENS_PER_THREAD = 512

#: The kernels of attention that the CUDA provider may choose from, as a sum of its bits: all but the memory-efficient
#: ones (2). Those give wrong numbers where queries are wider than 64 and values are not, as in our heads of 72 and 64
#: channels: in onnxruntime 1.31 on an H100, float32 vectors of images of 256 patches and more had a cosine of 0.9.
_SDPA_KERNELS = 1 + 4 + 8 + 16 + 32 + 64 + 128

#: Gives the memory of a run back when it ends, which onnxruntime keeps otherwise for as long as the session lives.
_SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")

#: onnxruntime's names of the types that :class:`TensorSpec` names.
_DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}

#: Says in onnxruntime's messages that memory ran out.
_NO_MEMORY = re.compile(r"allocat|out of memory|bad_alloc", re.IGNORECASE)


class OnnxRuntimeBackend:
    """Sessions by graph, each loaded when it is first needed. Safe to use from several threads.

    Attributes:
        precision: the precision that runs, one of the manifest's.
        device: the device of the graphs, ``cpu`` or ``cuda``.
        reason: why ``auto`` chose that device.
    """

    def __init__(
        self, bundle: Bundle, precision: str, device: str = "auto", threads: int | None = None, note: str | None = None
    ) -> None:
        """Prepare to run ``bundle``.

        Args:
            bundle: an opened bundle.
            precision: one of the manifest's.
            device: ``auto``, ``cpu`` or ``cuda``.
            threads: number of threads of one operator on the CPU; None takes one for each core that we may use.
            note: why no other backend runs it, added to the reason for the device; None adds nothing.

        Raises:
            ArgumentError: the device is unknown or ``threads`` is not positive.
            DeviceError: CUDA was asked for and this onnxruntime has no provider for it.
        """
        kind, self._gpu = parse_device(device)
        check_positive("threads", threads, most=1024)
        self._bundle = bundle
        self.precision = precision
        self._threads = usable_cores() if threads is None else int(threads)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._mapped: dict[str, MappedFile] = {}
        self._lost_cuda = False
        self.device, why = _choose_device(kind, self._gpu)
        slow = f"{precision} is for TensorRT, and computed in float32 here" if self._is_slow() else None
        self.reason = "; ".join(part for part in (why, slow, note) if part)
        forks.call_in_children(self._leave_sessions)

    def __str__(self) -> str:
        return f"onnxruntime {ort.__version__} on {self._name} ({self.reason})"

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """Run ``graph`` for ``outputs``, in their order; the result is ready when this returns.

        Raises:
            ArgumentError: the bundle has no such graph.
            BundleError: the graph is not the one that the manifest describes, or the bundle was changed in place.
            DeviceError: memory ran out, or onnxruntime cannot run this precision on the device.
        """
        session = self.session(graph)
        for file in list(self._mapped.values()):
            file.check()
        return run_session(session, graph, inputs, outputs)

    def batch_size(self, graph: str, length: int) -> int:  # noqa: ARG002 (all graphs are alike in this)
        """The batch size with :data:`_TOKENS_PER_THREAD` patches or tokens for each thread; at least one."""
        if self.device == "cuda":
            return max(1, GPU_TOKENS_PER_BATCH // length)
        return max(1, min(CPU_TOKENS_PER_BATCH, self._threads * _TOKENS_PER_THREAD) // length)

    @property
    def _name(self) -> str:
        """The device, as users name it."""
        return gpu_name(self._gpu) if self.device == "cuda" else self.device

    def _is_slow(self) -> bool:
        """Whether the device computes this precision in float32: the CUDA provider has no 8-bit products."""
        return self.device == "cuda" and self.precision in ("int8", "fp8")

    def session(self, graph: str) -> ort.InferenceSession:
        """The session of ``graph``, opened when it is first asked for.

        Raises:
            ArgumentError: the bundle has no such graph.
            BundleError: the graph is not the one that the manifest describes, or the bundle was changed in place.
            DeviceError: onnxruntime cannot run this precision on the device, cannot start its CUDA provider, or used
                CUDA before this process was forked.
        """
        session = self._sessions.get(graph)
        if session is None:
            with forks.opening:
                session = self._sessions.get(graph)
                if session is None:
                    session = self._sessions[graph] = self._load(graph)
        return session

    def _leave_sessions(self) -> None:
        """Have a forked child open sessions of its own; the threads of its parent's are not there."""
        if self._sessions:
            self._lost_cuda = self.device == "cuda"
            forks.leave_alone(self._sessions)
            self._sessions = {}
            self._mapped = {}

    def _load(self, graph: str) -> ort.InferenceSession:
        if self._lost_cuda:
            raise lost_cuda()
        graphs = self._bundle.manifest.graphs
        if graph not in graphs:
            raise ArgumentError(
                f"this bundle has no {graph} graph, only {', '.join(graphs)}; export the model again.",
                code="graph_missing",
            )
        entry = graphs[graph][self.precision]
        self._bundle.check_unchanged()
        model = self._read(entry.file)
        try:
            session = open_session(model.content, self._threads, self._name, weights=model.folder)
        except Exception as error:  # each kind of the library's errors is a class of its own
            raise self._cannot_open(graph, entry.file, error) from None
        self._bundle.check_unchanged()
        if self.device == "cuda" and CUDA_PROVIDER not in session.get_providers():
            # onnxruntime continues without a provider that fails to start, but a caller who asked for it must know.
            missing = preload_cuda()
            raise DeviceError(
                f"onnxruntime lists its CUDA provider but could not start it{f' ({missing})' if missing else ''}; "
                f"install its libraries with '{CUDA_REMEDY}', check the driver with nvidia-smi, or pass device='cpu'.",
                code="device_missing",
            )
        _check_interface(session, entry, self._bundle.file(entry.file))
        return session

    def _read(self, name: str) -> Model:
        """The ONNX model in one of the bundle's files, whose weights are watched from now on."""
        path, listed = self._bundle.file(name), self._bundle.manifest.files
        try:
            model = without_links(path.read_bytes(), path.parent)
            for location, file in model.files.items():
                # A bundle in the making lists no files yet.
                if listed and location not in listed:
                    raise BundleError(
                        f"{path} reads {location}, which the manifest does not list; export the bundle again."
                    )
                self._mapped.setdefault(location, MappedFile(file, listed.get(location)))
            str(model.folder).encode()
        except UnicodeEncodeError:
            raise BundleError(
                f"{path} or its weights lie in a folder whose name is not UTF-8, as onnxruntime needs it; rename the "
                "folder.",
                code="bundle_unreadable",
            ) from None
        except OSError as error:
            raise BundleError(
                f"{error.filename} cannot be read ({error.strerror}); check its permissions.", code="bundle_unreadable"
            ) from None
        except ValueError as error:
            raise BundleError(f"{path} is no ONNX graph ({error}); export the bundle again.") from None
        return model

    def _cannot_open(self, graph: str, file: str, error: Exception) -> FgclipError:
        """Our error for what onnxruntime raised while it opened a graph."""
        if isinstance(error, NotImplemented) or (isinstance(error, InvalidGraph) and self.precision != FP32):
            others = ", ".join(name for name in self._bundle.manifest.precisions if name != self.precision)
            return DeviceError(
                f"onnxruntime {ort.__version__} has nothing to run the {graph} graph in {self.precision} with on "
                f"{self.device}; use another precision of the bundle ({others or 'it has none, so export one'}).",
                code="precision_unsupported",
            )
        if _lacks_memory(error):
            return DeviceError(
                f"memory ran out while the {graph} graph was opened; use a machine with more memory, or a lower "
                "precision.",
                code="out_of_memory",
            )
        if self.device != "cpu" and not isinstance(error, (InvalidArgument, InvalidGraph, InvalidProtobuf)):
            return DeviceError(
                f"onnxruntime could not open the {graph} graph on {self._name} ({_reason(error)}); check the GPU's "
                "number, its memory and its driver with nvidia-smi, or use device 'cpu'."
            )
        return BundleError(
            f"{self._bundle.file(file)} cannot be opened by onnxruntime {ort.__version__} ({_reason(error)}); "
            "export the bundle again."
        )


@functools.cache
def preload_cuda() -> str:
    """Load CUDA's libraries from their packages, where the CUDA provider does not look by itself.

    Returns:
        onnxruntime's first complaint, as part of a sentence; empty if it has none.
    """
    if not hasattr(ort, "preload_dlls"):  # before 1.21
        return ""
    complaints = io.StringIO()
    # It prints them.
    with contextlib.redirect_stdout(complaints):
        ort.preload_dlls()
    first, *_ = complaints.getvalue().strip().splitlines() or [""]
    return first.rstrip(".")


def open_session(
    model: bytes,
    threads: int,
    device: str = "cpu",
    *,
    weights: Path,
    config: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX model.

    Args:
        model: contents of its file.
        threads: number of threads of one operator on the CPU.
        device: ``cpu``; or ``cuda`` or ``cuda:1`` for the CUDA provider, with the CPU's for operators that it does not
            run.
        weights: folder of the external weights.
        config: more entries of onnxruntime's session configuration; None adds none.
    """
    options = ort.SessionOptions()
    # It prints errors too, which it then raises, and so do we.
    options.log_severity_level = 4
    # onnxruntime would take a thread for each core of the machine, of which a container may have a few.
    options.intra_op_num_threads = threads
    # Otherwise the threads of a finished run would wait by spinning, and share the cores with the threads of the next
    # graph. Texts beside images took half as long again.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    # onnxruntime would keep a plan of the memory for each shape that it has met, and shapes are ever new.
    options.enable_mem_pattern = False
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    kind, index = parse_device(device)
    providers: list[Any] = [_CPU]
    if kind == "cuda":
        preload_cuda()
        # By default the provider rounds float32 products to TF32, three decimal digits, and parity would not hold.
        settings = {"use_tf32": "0", "sdpa_kernel": str(_SDPA_KERNELS), "device_id": str(index)}
        providers = [(CUDA_PROVIDER, settings), _CPU]
    # A provider that fails would be replaced by the CPU's, with a message on standard output.
    return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)


def run_session(
    session: ort.InferenceSession, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> Finished:
    """Run a session that was opened for ``graph``.

    A run of more patches, tokens or boxes than the batches that we choose gives its memory back. It takes so long that
    the time to ask the system for the memory again does not count.

    Raises:
        BundleError: the graph does not take the inputs.
        DeviceError: memory ran out, or the device failed.
    """
    options, on_cpu = None, session.get_providers() == [_CPU]
    if on_cpu and _tokens(inputs) > CPU_TOKENS_PER_BATCH:
        options = ort.RunOptions()
        options.add_run_config_entry(*_SHRINK)
    try:
        return Finished(session.run(list(outputs), dict(inputs), options))
    except Exception as error:  # each kind of the library's errors is a class of its own
        raise _cannot_run(graph, error, on_cpu) from None


def _tokens(inputs: Mapping[str, Array]) -> int:
    """Patches or tokens of all images or texts of a run, or numbers of all its boxes or masks, if these are more."""
    return max(math.prod(array.shape[:2]) for array in inputs.values())


def _cannot_run(graph: str, error: Exception, on_cpu: bool) -> FgclipError:
    """Our error for what onnxruntime raised while it ran a graph."""
    if _lacks_memory(error):
        return DeviceError(
            f"memory ran out in the {graph} graph; use a smaller batch_size or max_num_patches, "
            "or a machine with more memory.",
            code="out_of_memory",
        )
    # A CPU does not fail: the graph and its manifest do not fit each other.
    if on_cpu or isinstance(error, InvalidArgument):
        return BundleError(
            f"the {graph} graph does not take what its manifest promises ({_reason(error)}); export the bundle again."
        )
    return DeviceError(
        f"the device failed in the {graph} graph ({_reason(error)}); check it with 'fgclip-rt doctor', or use device "
        "'cpu'."
    )


def _check_interface(session: ort.InferenceSession, entry: GraphFile, path: Path) -> None:
    """Make sure that a session has the inputs and outputs that the manifest gives its graph."""
    for role, actual, expected in (
        ("inputs", session.get_inputs(), entry.inputs),
        ("outputs", session.get_outputs(), entry.outputs),
    ):
        specs = [TensorSpec(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in actual]
        if sorted(specs, key=describe) != sorted(expected, key=describe):
            raise BundleError(
                f"{path} has the {role} {', '.join(map(describe, specs))}, and its manifest says "
                f"{', '.join(map(describe, expected))}; export the bundle again."
            )


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def _reason(error: Exception) -> str:
    """onnxruntime's reason, without its number, as part of a sentence."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason(error))


def _choose_device(device: str, index: int) -> tuple[str, str]:
    has_cuda = CUDA_PROVIDER in ort.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise DeviceError(
            f"device 'cuda' needs onnxruntime's CUDA provider, which is not installed; run '{CUDA_REMEDY}', "
            "or use device 'cpu'.",
            code="device_missing",
        )
    if device != "auto":
        return device, "as asked"
    if not has_cuda:
        return "cpu", "this onnxruntime has no CUDA provider"
    if len(cuda_gpus()) <= index:
        return "cpu", "onnxruntime has a CUDA provider, but CUDA gives this process no GPU"
    return "cuda", "an NVIDIA GPU was found"
