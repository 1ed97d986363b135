"""How fast a bundle's vision tower is on an NVIDIA GPU, beside what a user would pick instead, in one run.

    python benchmarks/gpu.py BUNDLE --output results.json

The contenders have the same sizes and inputs: the PyTorch reference (eager in float32, eager in float16 autocast, and
that compiled), onnxruntime's CUDA provider in every precision of the bundle, and every engine of the bundle that fits
this GPU. They take turns, and each figure is the median over the turns:

- *model*: inputs and outputs stay on the GPU. By CUDA events where we enqueue the work ourselves (PyTorch, engines), by
  the host's clock around a synchronised run for onnxruntime, whose stream is its own.
- *end to end*: from RGB images in memory to vectors in NumPy, by the host's clock.

The share of the GPU's rate is of what a large float16 matrix product reaches in the same run. Random weights take as
long as others. What cannot run is listed with its reason; nothing else is left out. ``--device cpu`` tries the plumbing
where there is no GPU, and its figures are of no use.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from PIL import Image

from fgclip_rt.backends.refuse import Refuse
from fgclip_rt.bundle import Bundle
from fgclip_rt.choice import fit_engines
from fgclip_rt.engine_files import Engine, axes
from fgclip_rt.errors import FgclipError
from fgclip_rt.export import find_model
from fgclip_rt.export.families import table as families
from fgclip_rt.export.precision.layers import Layer, find_layers
from fgclip_rt.model import Model, open_model
from fgclip_rt.preparation import Patches, preparation

OUTPUT = "image_embeds"


@dataclass(frozen=True)
class Case:
    """Images of one bucket, prepared and not."""

    bucket: int
    images: Sequence[Image.Image]
    patches: Sequence[Patches]

    @cached_property
    def pixels(self) -> np.ndarray[Any, Any]:
        """uint8 [B, N, P·P·3], padded to the bucket."""
        pixels = np.zeros((len(self.patches), self.bucket, self.patches[0].pixels.shape[1]), np.uint8)
        for row, each in zip(pixels, self.patches, strict=True):
            row[: len(each.pixels)] = each.pixels
        return pixels

    @cached_property
    def shapes(self) -> np.ndarray[Any, Any]:
        """int32 [B, 2]."""
        return np.array([each.grid for each in self.patches], np.int32)

    def inputs(self, bundle: Bundle) -> dict[str, np.ndarray[Any, Any]]:
        """What the vision graph takes of them."""
        known = {"patches": self.pixels, "spatial_shapes": self.shapes}
        graph = next(iter(bundle.manifest.graphs["vision"].values()))
        return {spec.name: known[spec.name] for spec in graph.inputs}


@dataclass
class Figures:
    """What was measured of one contender on one case; milliseconds for the whole batch."""

    contender: str
    bucket: int
    batch: int
    model: list[float] = field(default_factory=list)
    end_to_end: list[float] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class Contender:
    """One way to run the tower.

    Attributes:
        name: what it is called in the results.
        model: makes, for a case, a function that runs the model alone and returns its milliseconds.
        end_to_end: makes, for a case, a function that goes from images to vectors.
    """

    name: str
    model: Callable[[Case], Callable[[], float]]
    end_to_end: Callable[[Case], Callable[[], object]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--buckets", type=_numbers, help="numbers of patches; all of the model's by default")
    parser.add_argument("--batch", type=_numbers, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contender")
    parser.add_argument("--repeats", type=int, default=10, help="runs in a turn")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no NVIDIA GPU that PyTorch can use; --device cpu tries the plumbing only.")

    bundle = Bundle.open(options.bundle)
    machine = describe_machine(options.device)
    rate = matmul_rate(options.device)
    targets = try_targets(bundle) if options.device == "cuda" else {}
    contenders, absent = find_contenders(bundle, options.device)
    measured: list[Figures] = []
    for bucket in options.buckets or bundle.manifest.image.buckets:
        for batch in options.batch:
            case = make_case(bundle, bucket, batch)
            measured += measure(contenders, case, options.rounds, options.repeats)
    operations = vision_operations(bundle)
    rows = [summary(figures, operations, rate) for figures in measured]
    result = {
        "machine": machine,
        "bundle": {"name": bundle.manifest.model.name, "manifest_sha256": bundle.manifest_sha256},
        "matmul_tflops": rate / 1e12,
        "tensorrt_rtx_targets": targets,
        "absent": absent,
        "rows": rows,
        "samples": [asdict(figures) for figures in measured],
    }
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print_table(machine, rate, rows, absent)
    for target, outcome in targets.items():
        print(f"tensorrt-rtx, target {target}: {outcome}")


def describe_machine(device: str) -> dict[str, str]:
    """What the figures depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "onnxruntime": ort.__version__}
    if device == "cpu":
        return {"device": "CPU: a trial of the plumbing", **versions}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"sm{properties.major}{properties.minor}",
        "memory_gb": f"{properties.total_memory / 1e9:.0f}",
        "cuda": str(torch.version.cuda),
        **versions,
    }


def try_targets(bundle: Bundle) -> dict[str, str]:
    """What TensorRT-RTX makes of this GPU by its two names, whatever its documentation says: the text engine, run."""
    from fgclip_rt.engines import Shapes, build
    from fgclip_rt.engines.runner import EngineBackend

    precision = "fp16" if "fp16" in bundle.manifest.precisions else bundle.manifest.precisions[0]
    expected = open_model(bundle, "cpu", precision).embed_texts(["a cat"])
    found = {}
    for target in ("current", "sm80"):
        try:
            shapes = Shapes(text_lengths=[bundle.manifest.text.walk_types["short"].length])
            (built,) = build(bundle, "tensorrt-rtx", [precision], targets=[target], graphs=["text"], shapes=shapes)
            # Past the check of targets, which would refuse it.
            refuse = Refuse(bundle.path, precision, "tensorrt-rtx", "only this engine is tried")
            model = Model(bundle, EngineBackend(bundle, precision, [built.engine], refuse))
            cosine = float((model.embed_texts(["a cat"]) * expected).sum())
            found[target] = f"builds and runs, cosine {cosine:.6f} with onnxruntime on the CPU"
        except Exception as error:  # whatever it is, it is the answer
            found[target] = f"{type(error).__name__}: {error}"
    return found


def matmul_rate(device: str) -> float:
    """Operations a second of a large matrix product of random numbers, in float16 on a GPU."""
    size, kind = (8192, torch.float16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    times = [_timed(lambda: a @ b, device) for _ in range(25)][5:]
    return 2 * size**3 / (median(times) / 1000)


def find_contenders(bundle: Bundle, device: str) -> tuple[list[Contender], list[dict[str, str]]]:
    """All that can run, and why not for the rest."""
    makers: dict[str, Callable[[], Contender]] = {"pytorch": lambda: pytorch(bundle, device)}
    if device == "cuda":
        makers["pytorch autocast"] = lambda: pytorch(bundle, device, autocast=True)
        makers["pytorch compiled"] = lambda: pytorch(bundle, device, autocast=True, compiled=True)
    for precision in bundle.manifest.precisions:
        makers[f"onnxruntime {precision}"] = partial(onnxruntime, bundle, precision, device)
    for precision in bundle.manifest.precisions:
        for library in ("tensorrt", "tensorrt-rtx"):
            if device == "cuda":
                makers[f"{library} {precision}"] = partial(engines, bundle, precision, library)
    contenders, absent = [], []
    for name, make in makers.items():
        try:
            contenders.append(make())
        except (FgclipError, RuntimeError) as error:
            absent.append({"contender": name, "reason": str(error).splitlines()[0]})
    return contenders, absent


def pytorch(bundle: Bundle, device: str, *, autocast: bool = False, compiled: bool = False) -> Contender:
    """The reference of the bundle's model, with random weights, in float32 or in float16 autocast."""
    spec = find_model(bundle.manifest.model.name)
    if spec is None:
        raise RuntimeError(f"{bundle.manifest.model.name} is no registered model, so its sizes are not known")
    reference = families.random(spec.family, spec.config)
    features = reference.module.to(device).get_image_features
    call = torch.compile(features) if compiled else features

    def inputs(case: Case) -> tuple[torch.Tensor, ...]:
        return reference.image_inputs(
            torch.from_numpy(case.pixels).to(device), torch.from_numpy(case.shapes).to(device)
        )

    def run(values: tuple[torch.Tensor, ...]) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=autocast):
            return torch.nn.functional.normalize(call(*values), dim=-1)

    def model(case: Case) -> Callable[[], float]:
        values = inputs(case)
        return lambda: _timed(lambda: run(values), device)

    def end_to_end(case: Case) -> Callable[[], object]:
        return lambda: run(inputs(prepared(bundle, case))).float().cpu().numpy()

    kind = "compiled" if compiled else "autocast" if autocast else ""
    return Contender(f"pytorch {kind}".rstrip(), model, end_to_end)


def onnxruntime(bundle: Bundle, precision: str, device: str) -> Contender:
    """The bundle's graph by onnxruntime, through the runtime that users have."""
    runtime = open_model(bundle, device, precision, backend="onnxruntime")

    def model(case: Case) -> Callable[[], float]:
        session = runtime.backend._session("vision")  # type: ignore[attr-defined]
        binding = session.io_binding()
        for name, values in case.inputs(bundle).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values, device, 0))
        binding.bind_output(OUTPUT, device)

        def run() -> float:
            binding.synchronize_inputs()
            start = perf_counter()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return 1000 * (perf_counter() - start)

        return run

    return Contender(f"onnxruntime {precision}", model, _end_to_end(runtime))


def engines(bundle: Bundle, precision: str, library: str) -> Contender:
    """The bundle's engines of a library."""
    runtime = open_model(bundle, "cuda", precision, backend=library)
    found = [
        fit.engine
        for fit in fit_engines(bundle, precision)
        if fit.problem is None and fit.engine.key.library.name == library and fit.engine.key.graph == "vision"
    ]

    def model(case: Case) -> Callable[[], float]:
        engine = next((engine for engine in found if _takes(bundle, engine, case)), None)
        if engine is None:
            raise RuntimeError(f"no engine takes {len(case.images)} images of {case.bucket} patches")
        return time_engine(bundle, engine, case)

    return Contender(f"{library} {precision}", model, _end_to_end(runtime))


def time_engine(bundle: Bundle, engine: Engine, case: Case) -> Callable[[], float]:
    """Runs an engine whose inputs lie on the GPU already, and gives the milliseconds between two events."""
    from fgclip_rt.engines.execution import TensorRtPlan
    from fgclip_rt.engines.libraries import LIBRARIES

    plan = TensorRtPlan(LIBRARIES[engine.key.library.name](), engine)  # type: ignore[arg-type]
    inputs = {name: torch.from_numpy(values).cuda() for name, values in case.inputs(bundle).items()}
    execution = plan.execution({name: tuple(values.shape) for name, values in inputs.items()})
    graph = bundle.manifest.graphs[engine.key.graph][engine.key.precision]
    outputs = {spec.name: torch.empty(execution.output_shape(spec.name), device="cuda") for spec in graph.outputs}
    activations = torch.empty(max(1, execution.memory), dtype=torch.uint8, device="cuda")
    addresses = {name: values.data_ptr() for name, values in {**inputs, **outputs}.items()}
    execution.bind(addresses, activations.data_ptr(), activations.numel())
    stream = torch.cuda.Stream()

    def run() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        execution.enqueue(stream.cuda_stream)
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end)

    # What the engine runs in must live as long as the function.
    run.keep = (plan, inputs, outputs, activations)  # type: ignore[attr-defined]
    return run


def make_case(bundle: Bundle, bucket: int, batch: int) -> Case:
    """Images of noise that fill a bucket."""
    prepare = preparation(bundle.manifest.image)
    side = int(bucket**0.5) * bundle.manifest.image.patch_size
    random = np.random.default_rng(bucket)
    images = [Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(batch)]
    return Case(bucket, images, [prepare(image, bucket) for image in images])


def prepared(bundle: Bundle, case: Case) -> Case:
    """The case with its images prepared anew, as it takes time to do."""
    prepare = preparation(bundle.manifest.image)
    return Case(case.bucket, case.images, [prepare(image, case.bucket) for image in case.images])


def measure(contenders: Sequence[Contender], case: Case, rounds: int, repeats: int) -> list[Figures]:
    """Every contender in turn, ``rounds`` times."""
    running: list[tuple[Figures, Callable[[], float], Callable[[], object]]] = []
    every: list[Figures] = []
    for contender in contenders:
        figures = Figures(contender.name, case.bucket, len(case.images))
        every.append(figures)
        try:
            model, whole = contender.model(case), contender.end_to_end(case)
            for _ in range(3):  # compiles, captures, and fills caches
                model()
                whole()
        except Exception as error:  # whatever it is, it belongs into the results
            figures.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            running.append((figures, model, whole))
    for _ in range(rounds):
        for figures, model, whole in running:
            figures.model.append(median(model() for _ in range(repeats)))
            figures.end_to_end.append(median(_seconds(whole) * 1000 for _ in range(repeats)))
    return every


def vision_operations(bundle: Bundle) -> Callable[[int], float]:
    """Operations of the vision tower for an image of a number of patches: its matrix products, two per product.

    They are those of the graph's layers, each for all patches; where a last block runs for the class token alone, that
    is a little too many.
    """
    graph = ir.load(bundle.file(next(iter(bundle.manifest.graphs["vision"].values())).file))
    layers = [layer for layer in find_layers(graph) if layer.name.startswith("vision.")]
    shapes = {layer.name: weight_shape(layer) for layer in layers if layer.kind == "linear"}
    linear = sum(rows * columns for rows, columns in shapes.values())
    attention = sum(shapes[f"{layer.name}.v"][1] for layer in layers if layer.kind == "attention")
    return lambda patches: 2.0 * (linear * patches + 2 * attention * patches**2)


def weight_shape(layer: Layer) -> tuple[int, ...]:
    """Of a linear layer, whose weights need not be read for it."""
    assert layer.weight.const_value is not None
    return tuple(layer.weight.const_value.shape.numpy())


def summary(figures: Figures, operations: Callable[[int], float], rate: float) -> dict[str, Any]:
    """Medians, and what follows from them."""
    row: dict[str, Any] = {
        "contender": figures.contender,
        "bucket": figures.bucket,
        "batch": figures.batch,
        "problem": figures.problem,
    }
    if figures.problem:
        return row
    model, whole = median(figures.model), median(figures.end_to_end)
    return {
        **row,
        "model_ms": model,
        "end_to_end_ms": whole,
        "model_images_per_second": 1000 * figures.batch / model,
        "end_to_end_images_per_second": 1000 * figures.batch / whole,
        "share_of_matmul_rate": figures.batch * operations(figures.bucket) / (model / 1000) / rate,
        "spread": (max(figures.model) - min(figures.model)) / model,
    }


def print_table(
    machine: Mapping[str, str], rate: float, rows: Sequence[Mapping[str, Any]], absent: Sequence[Mapping[str, str]]
) -> None:
    """The results for a reader."""
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"matrix products: {rate / 1e12:.1f} TFLOP/s")
    print(
        f"{'contender':<22}{'patches':>8}{'batch':>6}{'model ms':>10}{'end to end':>11}{'images/s':>10}{'of rate':>9}"
    )
    for row in rows:
        head = f"{row['contender']:<22}{row['bucket']:>8}{row['batch']:>6}"
        if row["problem"]:
            print(f"{head}  {row['problem']}")
        else:
            print(
                f"{head}{row['model_ms']:>10.3f}{row['end_to_end_ms']:>11.3f}"
                f"{row['model_images_per_second']:>10.0f}{row['share_of_matmul_rate']:>9.1%}"
            )
    for entry in absent:
        print(f"{entry['contender']:<22} not run: {entry['reason']}")


def _end_to_end(runtime: Model) -> Callable[[Case], Callable[[], object]]:
    return lambda case: lambda: runtime.embed_images(case.images, case.bucket, len(case.images))


def _takes(bundle: Bundle, engine: Engine, case: Case) -> bool:
    graph = bundle.manifest.graphs[engine.key.graph][engine.key.precision]
    ranges = axes(engine.key.profiles, graph.inputs)
    least, _, most = ranges["batch"]
    return ranges["patches"][2] == case.bucket and least <= len(case.images) <= most


def _timed(run: Callable[[], object], device: str) -> float:
    """Milliseconds of work that PyTorch enqueues."""
    if device == "cpu":
        return 1000 * _seconds(run)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
