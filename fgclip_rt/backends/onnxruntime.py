"""The graphs of a bundle in onnxruntime, on a CPU or through its CUDA provider."""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented, RuntimeException  # noqa: A004 (its names)

from ..arrays import Array
from ..bundle import Bundle
from ..devices import gpu_name, parse_device
from ..errors import ArgumentError, DeviceError, check_positive, reason
from ..machine import cuda_gpus, usable_cores
from ..packages import CUDA_REMEDY
from . import GPU_TOKENS_PER_BATCH, Finished, Result

_CPU, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"

#: Patches or tokens of a batch whose size is not given: for each thread, and at most. They keep the cores busy, and are
#: few enough for activations to stay in the caches. A longer image or text runs alone. On two cores, images of 256
#: patches were slower in batches of 2,048 patches than of 1,024, and as fast in batches of 256.
_TOKENS_PER_THREAD, _TOKENS_PER_BATCH = 512, 2048


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
        self._lock = threading.Lock()
        self.device, why = _choose_device(kind, self._gpu)
        slow = f"{precision} is for TensorRT, and computed in float32 here" if self._is_slow() else None
        self.reason = "; ".join(part for part in (why, slow, note) if part)

    def __str__(self) -> str:
        return f"onnxruntime {ort.__version__} on {self._name} ({self.reason})"

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """Run ``graph`` for ``outputs``, in their order; the result is ready when this returns.

        Raises:
            ArgumentError: the bundle has no such graph.
            DeviceError: memory ran out, or onnxruntime cannot run this precision on the device.
        """
        return run_session(self.session(graph), graph, inputs, outputs)

    def batch_size(self, graph: str, length: int) -> int:  # noqa: ARG002 (all graphs are alike in this)
        """The batch size with :data:`_TOKENS_PER_THREAD` patches or tokens for each thread; at least one."""
        if self.device == "cuda":
            return max(1, GPU_TOKENS_PER_BATCH // length)
        return max(1, min(_TOKENS_PER_BATCH, self._threads * _TOKENS_PER_THREAD) // length)

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
            DeviceError: onnxruntime cannot run this precision on the device, or cannot start its CUDA provider.
        """
        with self._lock:
            if graph not in self._sessions:
                self._sessions[graph] = self._load(graph)
            return self._sessions[graph]

    def _load(self, graph: str) -> ort.InferenceSession:
        graphs = self._bundle.manifest.graphs
        if graph not in graphs:
            raise ArgumentError(
                f"this bundle has no {graph} graph, only {', '.join(graphs)}; export the model again.",
                code="graph_missing",
            )
        file = self._bundle.file(graphs[graph][self.precision].file)
        self._bundle.check_unchanged()
        try:
            session = open_session(file, self._threads, self._name)
        except (NotImplemented, InvalidGraph):
            others = ", ".join(name for name in self._bundle.manifest.precisions if name != self.precision)
            raise DeviceError(
                f"onnxruntime {ort.__version__} has nothing to run the {graph} graph in {self.precision} with on "
                f"{self.device}; use another precision of the bundle ({others or 'it has none, so export one'}).",
                code="precision_unsupported",
            ) from None
        except (Fail, RuntimeException) as error:
            if self.device != "cuda":
                raise
            raise DeviceError(
                f"onnxruntime cannot open the {graph} graph on {self._name} ({reason(error)}); check the GPU's number, "
                "its memory and its driver with nvidia-smi, or pass device='cpu'."
            ) from None
        self._bundle.check_unchanged()
        if self.device == "cuda" and CUDA_PROVIDER not in session.get_providers():
            # onnxruntime continues without a provider that fails to start, but a caller who asked for it must know.
            missing = preload_cuda()
            raise DeviceError(
                f"onnxruntime lists its CUDA provider but could not start it{f' ({missing})' if missing else ''}; "
                f"install its libraries with '{CUDA_REMEDY}', check the driver with nvidia-smi, or pass device='cpu'.",
                code="device_missing",
            )
        return session


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
    model: Path | bytes,
    threads: int,
    device: str = "cpu",
    *,
    weights: Path | None = None,
    config: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX model.

    Args:
        model: its file, or the contents of one.
        threads: number of threads of one operator on the CPU.
        device: ``cpu``; or ``cuda`` or ``cuda:1`` for the CUDA provider, with the CPU's for operators that it does not
            run.
        weights: the folder of external weights; None takes the folder of the file.
        config: more entries of onnxruntime's session configuration; None adds none.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # onnxruntime would take a thread for each core of the machine, of which a container may have a few.
    options.intra_op_num_threads = threads
    # Otherwise the threads of a finished run would wait by spinning, and share the cores with the threads of the next
    # graph. Texts beside images took half as long again.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    kind, index = parse_device(device)
    providers: list[Any] = [_CPU]
    if kind == "cuda":
        preload_cuda()
        # By default the provider rounds float32 products to TF32, three decimal digits, and parity would not hold.
        providers = [(CUDA_PROVIDER, {"use_tf32": "0", "device_id": str(index)}), _CPU]
    # A provider that fails would be replaced by the CPU's, with a message on standard output.
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=providers, enable_fallback=0)


def run_session(
    session: ort.InferenceSession, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> Finished:
    """Run a session that was opened for ``graph``.

    Raises:
        DeviceError: memory ran out.
    """
    try:
        return Finished(session.run(list(outputs), dict(inputs)))
    except RuntimeException as error:
        if "allocate" not in str(error):
            raise
        raise DeviceError(
            f"memory ran out in the {graph} graph; use a smaller batch_size or max_num_patches, "
            "or a machine with more memory.",
            code="out_of_memory",
        ) from None


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
