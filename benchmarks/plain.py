"""The export that a careful user would make alone: the reference as it stands, with its mask and none of our rewrites.

Images have one grid, because the reference reads grids as numbers. The batch is dynamic.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from fgclip_rt.arrays import Array
from fgclip_rt.bundle import Bundle

from .task import Case, CheckpointName, Contender, Run, UnableError

#: Names of the inputs of a plain export.
_TEXT, _IMAGE = ("input_ids",), ("pixel_values", "mask")


def export_plain(bundle: Path, path: Path, case: Case, checkpoint: CheckpointName | None) -> None:
    """Write the reference's tower for images or texts of one length to ``path``, and inputs beside it (``.npz``).

    Args:
        bundle: its folder.
        path: the ONNX file.
        case: the graph, the length, and the largest batch that will be asked for.
        checkpoint: as for :class:`fgclip_rt.benchmarks.task.Contender`.

    Raises:
        UnableError: the case is of regions, of texts with an attention mask, or of features that the model lacks.
    """
    import torch
    from torch import Tensor, nn

    from .inputs import grid
    from .peers import Tower, load_reference

    opened = Bundle.open(bundle, check_hashes=False)
    tower = Tower(opened, load_reference(opened, checkpoint))
    function = tower.function(case)

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = tower.reference.module

        def forward(self, input_ids: Tensor) -> Tensor:
            return function(input_ids, None)

    if case.graph == "region":
        raise UnableError("regions have no tower")
    example = tower.inputs(case)
    wrapped: nn.Module
    names: tuple[str, ...]
    if case.graph == "text":
        if opened.manifest.text.attention_mask:
            raise UnableError("the plain export of texts is written for models without a mask")
        wrapped, names, example = Text(), _TEXT, example[:1]
    else:
        wrapped, example = tower.reference.one_grid(case.graph, grid(case.length)), example[: len(_IMAGE)]
        names = _IMAGE[: len(example)]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        wrapped.eval(),
        # A batch of one would be exported as static.
        tuple(tensor[:1].repeat(2, *[1] * (tensor.dim() - 1)) for tensor in example),
        path,
        dynamo=True,
        input_names=list(names),
        output_names=["features"],
        dynamic_shapes=tuple({0: torch.export.Dim("batch", min=1, max=1024)} for _ in names),
        external_data=True,
        verbose=False,
    )
    arrays: dict[str, Array] = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **arrays)


def _inputs(contender: Contender, case: Case) -> dict[str, Array]:
    """The inputs that the export was written with, as many as the batch of a case has.

    Raises:
        UnableError: the case begins with images that are not prepared.
    """
    if case.end_to_end:
        raise UnableError("it takes images that are prepared")
    assert contender.plain is not None
    with np.load(Path(contender.plain).with_suffix(".npz")) as arrays:
        return {name: array[: case.batch] for name, array in arrays.items()}


class OnnxRuntime:
    """The plain export in onnxruntime, with its default optimisations."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = contender.threads
        self._session = ort.InferenceSession(contender.plain, options, providers=["CPUExecutionProvider"])

    def prepare(self, case: Case) -> Run:
        inputs = _inputs(self._contender, case)
        return lambda: self._session.run(None, inputs)[0]


class OpenVino:
    """The plain export in OpenVINO, compiled for latency."""

    def __init__(self, contender: Contender) -> None:
        import openvino

        self._contender = contender
        # By default it would compute in bfloat16 where the CPU has it, and its vectors would not be float32's.
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": contender.threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._model = openvino.Core().compile_model(contender.plain, "CPU", options)

    def prepare(self, case: Case) -> Run:
        inputs = _inputs(self._contender, case)
        return lambda: self._model(inputs)[0].copy()


if __name__ == "__main__":
    import msgspec

    export_plain(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        msgspec.json.decode(sys.argv[3], type=Case),
        msgspec.json.decode(sys.argv[4], type=CheckpointName | None),
    )
