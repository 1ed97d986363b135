"""The runtime needs no PyTorch: it neither imports nor looks for packages that only an export or a build needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers import Golden

HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "huggingface_hub",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
)

FORBID = f"""
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise AssertionError(f"{{name}} was imported")

sys.meta_path.insert(0, Forbid())
"""

USE = """
import sys
import fgclip_rt
bundle, image = sys.argv[1:]
model = fgclip_rt.load(bundle, device="cpu")
images, texts = model.embed_images([image]), model.embed_texts(["a cat", "一只黑猫"], "long")
regions = model.embed_regions(image, [[1, 2, 30, 40]])
print(images.shape, texts.shape, regions.shape, model.probabilities(images, texts).shape)
"""

LOADED = f"""
import sys
import fgclip_rt
print(sorted(set({HEAVY}) & set(sys.modules)))
"""


def run(script: str, folder: Path, *arguments: object) -> str:
    # -P: a folder named export beside the caller must not matter.
    command = [sys.executable, "-P", "-c", script, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_bundle_runs_where_nothing_heavy_can_be_imported(bundle_path: Path, tmp_path: Path) -> None:
    output = run(FORBID + USE, tmp_path, bundle_path, Golden("fgclip2").images[0])
    assert output == "(1, 96) (2, 96) (1, 96) (1, 2)"


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    assert run(LOADED, tmp_path) == "[]"
