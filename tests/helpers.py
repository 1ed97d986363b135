"""Functions and constants that several test modules share; nothing here needs torch."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from fgclip_rt import cli, parity
from fgclip_rt.bundle import file_info
from fgclip_rt.errors import FgclipError
from fgclip_rt.graphs import TextInputs
from fgclip_rt.manifest import Limits
from fgclip_rt.model import Model
from fgclip_rt.progress import BeginStage

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN_NAMES = ("fgclip2", "fgclip2-masked")
WALK_TYPES = ("short", "box", "long")

SQUARE_NAMES = ("fgclip1", "fineclip")

#: The limits of fp32, which the export's own must equal.
FP32_LIMITS = Limits(max_error=2e-5, min_cosine=0.999999, dense_share=1.0)

Json = dict[str, Any]
Completed = subprocess.CompletedProcess[str]

#: A manifest's entry for a precision whose ranges were measured.
LOWERING: Json = {
    "linear": "int8",
    "other": "float16",
    "moved": {"vision.blocks.0.mlp.fc2": "float16", "text_heads": "float32"},
    "residual": [{"first": "vision.blocks.0", "last": "vision.blocks.1"}],
    "smoothed": 24,
    "calibration": {
        "method": "percentile",
        "images": 96,
        "texts": 97,
        "held_out_images": 32,
        "held_out_texts": 33,
        "sha256": "0" * 64,
    },
}


class Golden:
    """Results of the released implementation on one checkpoint."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.checkpoint = GOLDENS / name / "checkpoint"
        index = json.loads((GOLDENS / name / "index.json").read_text(encoding="utf-8"))
        self.images = [GOLDENS / "fgclip2" / "images" / image for image in index["images"]]
        self.buckets: list[int] = index["buckets"]
        self.texts: list[str] = index["texts"]

    @cached_property
    def expected(self) -> dict[str, np.ndarray[Any, Any]]:
        return dict(np.load(GOLDENS / self.name / "expected.npz"))

    @cached_property
    def pixels(self) -> list[np.ndarray[Any, Any]]:
        """The processor's patches, padded to the bucket; both checkpoints share the images."""
        stored = np.load(GOLDENS / "fgclip2" / "pixels.npz")
        return [stored[f"image{i}.pixel_values"] for i in range(len(self.images))]

    @cached_property
    def grids(self) -> list[tuple[int, int]]:
        stored = np.load(GOLDENS / "fgclip2" / "expected.npz")
        return [tuple(stored[f"image{i}.spatial_shape"].tolist()) for i in range(len(self.images))]


def assert_parity(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Hold ``actual`` to the limits of fp32."""
    row = parity.compare(actual, expected, FP32_LIMITS, "", "")
    assert row.passed, row


def assert_one_sentence(error: object, *parts: str, code: str | None = None) -> None:
    """Check that the message of ``error`` is one sentence with all ``parts``, and its code ``code``, if given."""
    message = str(error)
    assert message.endswith("."), message
    assert "\n" not in message, message
    assert ". " not in message, message
    for part in parts:
        assert part in message
    if code is not None:
        assert isinstance(error, FgclipError)
        assert error.code == code


def run_program(*arguments: object, cwd: Path | None = None) -> Completed:
    """Run the installed ``fgclip-rt``, and accept any exit status."""
    program = Path(sys.executable).with_name("fgclip-rt")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)


def run_command(*arguments: object, cwd: Path | None = None, status: int = 0) -> Completed:
    """Run ``fgclip-rt`` in this process, which saves its start, and check its exit status."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Commands set these for their whole process.
        patch.setattr(signal, "signal", lambda *_: None)
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        patch.setattr(sys, "argv", ["fgclip-rt", *map(str, arguments)])
        if cwd is not None:
            patch.chdir(cwd)
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            with pytest.raises(SystemExit) as end:
                cli.main()
            for stream in streams:
                stream.flush()
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    assert end.value.code == status, stderr
    return Completed(arguments, status, stdout, stderr)


def error_of(*arguments: object, cwd: Path | None = None) -> str:
    """The one line with which a command fails."""
    lines = [
        line for line in run_command(*arguments, cwd=cwd, status=1).stderr.splitlines() if "RANDOM WEIGHTS" not in line
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("fgclip-rt: ")
    return lines[0]


class Progress:
    """Records the stages that work reports, and the number of steps done of each."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.steps: Counter[str] = Counter()

    def __call__(self, stage: str, steps: int) -> Callable[[], None]:
        self.totals[stage] = steps
        return lambda: self.steps.update([stage])

    def finished(self) -> dict[str, int]:
        """The stages and their numbers of steps, after a check that every step was reported."""
        assert dict(self.steps) == self.totals
        return self.totals


def embed_anew(model: Model, texts: Sequence[str], walk_type: str = "short") -> np.ndarray[Any, Any]:
    """Vectors of texts from one run of the graph, past the cache."""
    inputs = TextInputs.of(model.tokenizer(texts, walk_type), model.tokenizer.walk_type(walk_type).index)
    return model.graphs.text(inputs).result()


def raise_at(stage: str, error: type[BaseException]) -> BeginStage:
    """A progress callback that raises ``error`` when an export comes to ``stage``."""

    def begin(name: str, _: int) -> Callable[[], None]:
        if name == stage:
            raise error
        return lambda: None

    return begin


def contents(folder: Path) -> dict[Path, bytes | None]:
    """All paths below a folder, with the bytes of files and None for folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def edit_manifest(bundle: Path, edit: Callable[[Json], None]) -> None:
    """Edit the manifest of ``bundle`` in place."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def another_export(bundle: Path, copy: Path) -> Path:
    """A copy of a bundle as another version might export it: with another digest, and of the same space."""
    shutil.copytree(bundle, copy)
    edit_manifest(copy, lambda document: document["producer"].update(fgclip_rt="99"))
    return copy


def another_space(bundle: Path, copy: Path) -> Path:
    """A copy of a bundle whose manifest says that it is of other weights, under the name ``another``."""
    shutil.copytree(bundle, copy)
    edit_manifest(copy, lambda document: document["model"].update(name="another", checkpoint_sha256="0" * 64))
    return copy


def fit_digests(bundle: Path, *names: str) -> None:
    """Have the manifest of ``bundle`` list files as they are now, as somebody would who altered them on purpose."""

    def edit(document: Json) -> None:
        for name in names:
            document["files"][name] = msgspec.to_builtins(file_info(bundle / name))

    edit_manifest(bundle, edit)


def add_int8(document: Json) -> None:
    """Add a precision int8, whose graphs are fp32's, to a manifest."""
    for graph in document["graphs"].values():
        graph["int8"] = graph["fp32"]
    document["lowering"]["int8"] = copy.deepcopy(LOWERING)
    parity = document["parity"]
    parity["limits"]["int8"] = {"max_error": None, "min_cosine": 0.99, "dense_share": 0.99}
    parity["measured"]["int8"] = copy.deepcopy(parity["measured"]["fp32"])


def graph_inputs(graph: str, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of a graph of the masked golden checkpoint, with patches past one grid and a few hidden tokens."""
    random = np.random.default_rng(seed)
    if graph == "text":
        ids = random.integers(0, 700, (2, 64), dtype=np.int32)
        mask = (np.arange(64) < [[64], [50]]).astype(np.int32)
        return {"input_ids": ids, "walk_type": np.array([1, 1], np.int32), "attention_mask": mask}
    shapes = np.array([[3, 4], [2, 5]], np.int32)
    return {"patches": random.integers(0, 256, (2, 12, 768), dtype=np.uint8), "spatial_shapes": shapes}


@contextlib.contextmanager
def released_pillow() -> Iterator[None]:
    """Have Pillow resize as it did when the processors were released: horizontally first, whatever the shape.

    From 12.2 on it begins vertically for some shapes, and so do processors that call it.
    """
    resize = Image.Image.resize

    def horizontally_first(image: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        return resize(resize(image, (size[0], image.height), *args, **kwargs), size, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", horizontally_first)
        yield


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth structure with some noise, different for every seed; uint8 [H, W, 3]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width, 0:3][:2]
    waves = np.sin(y * generator.uniform(0.02, 0.3) + x * generator.uniform(0.02, 0.3) + generator.uniform(0, 6, 3))
    return np.clip(128 + 90 * waves + generator.normal(0, 10, waves.shape), 0, 255).astype(np.uint8)
