"""Writing a model repository, and checking it against Triton's own definition of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, BundleError, check_positive
from fgclip_rt.outputs import check_space, folder_written_whole, output_exists
from fgclip_rt.packages import require
from fgclip_rt.space import fingerprint

#: Name of the model, of its inputs and of its output.
MODEL, IMAGE, TEXT, VECTOR = "fgclip", "IMAGE", "TEXT", "EMBEDDING"

#: Folder of the bundle beside ``model.py``.
BUNDLE = "bundle"

_CONFIG = """\
name: "{model}"
backend: "python"
max_batch_size: {max_batch_size}
input [
  {{ name: "{image}" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "{text}" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "{vector}" data_type: TYPE_FP32 dims: [ {dim} ] }}
]
instance_group [ {{ kind: {kind} count: {instances} }} ]
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
  default_queue_policy {{ max_queue_size: {max_queue} timeout_action: REJECT }}
}}
parameters {{ key: "precision" value {{ string_value: "{precision}" }} }}
parameters {{ key: "manifest_sha256" value {{ string_value: "{digest}" }} }}
parameters {{ key: "space_sha256" value {{ string_value: "{space}" }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""

_MODEL = '''\
"""The model of this repository. It needs fgclip-rt in the Python of the server."""

from fgclip_rt.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

_README = """\
# {name} for Triton Inference Server

Made by fgclip-rt {version}. It has one model, `{model}`. Its Python backend decodes images, tokenises texts, and runs
the bundle in `{model}/1/{bundle}`. The server's Python needs the package of this version. `Dockerfile`:

```text
FROM nvcr.io/nvidia/tritonserver:26.07-py3
RUN pip install fgclip-rt=={version}
```

```sh
docker build -t fgclip-triton .
docker run --rm --shm-size 1g -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD:/repository:ro" \\
    fgclip-triton tritonserver --model-repository /repository
```

A request has one of two inputs, bytes [n, 1]: `{image}`, whole image files, or `{text}`, UTF-8. The output `{vector}`
is float32 [n, {dim}], of length one. Parameters of a request are `walk_type` of texts ({walk_types}), and
`max_num_patches` of images.

```python
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient("localhost:8001")
image = triton.InferInput("{image}", [1, 1], "BYTES")
image.set_data_from_numpy(np.array([[open("a.jpg", "rb").read()]], np.object_))
vector = client.infer("{model}", [image]).as_numpy("{vector}")
```

Of the metrics at port 8002, `nv_inference_pending_request_count` tells an autoscaler that requests wait.
`nv_inference_count` divided by `nv_inference_exec_count` is the mean batch.
"""


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a repository.

    Attributes:
        precision: the precision that runs; None takes the bundle's first.
        gpu: whether each instance runs on a GPU.
        instances: processes that run the model, on the CPU or on each GPU.
        threads: CPU threads of each; None takes all cores.
        max_batch_size: most items of a batch.
        delay: seconds that a request waits for others at most.
        max_queue: requests that may wait; more are rejected at once.
    """

    precision: str | None = None
    gpu: bool = False
    instances: int = 1
    threads: int | None = None
    max_batch_size: int = 32
    delay: float = 0.005
    max_queue: int = 256


def write_repository(bundle: Bundle, output: Path, settings: Repository, *, overwrite: bool = False) -> None:
    """Write a model repository, whole or not at all. It holds a copy of the bundle.

    Args:
        bundle: the opened bundle.
        output: the repository's folder.
        settings: its settings.
        overwrite: replace what stands there.

    Raises:
        OutputError: the folder exists, or cannot be written.
        ArgumentError: a setting is out of range, or the bundle has no such precision.
    """
    from fgclip_rt import __version__

    precision = settings.precision or bundle.manifest.precisions[0]
    bundle.check_precision(precision)
    for name in ("instances", "threads", "max_batch_size", "max_queue"):
        check_positive(f"--{name.replace('_', '-')}", getattr(settings, name))
    if not 0 <= settings.delay <= 60:
        raise ArgumentError(f"--max-wait is {settings.delay:g}; give seconds from 0 to 60.")
    if output.exists() and not overwrite:
        raise output_exists(output)
    files = [path for path in bundle.path.rglob("*") if path.is_file()]
    check_space(output, sum(path.stat().st_size for path in files))
    names = {"model": MODEL, "image": IMAGE, "text": TEXT, "vector": VECTOR, "dim": bundle.manifest.embedding_size}
    with folder_written_whole(output, tuple) as folder:
        version = folder / MODEL / "1"
        version.mkdir(parents=True)
        config = _CONFIG.format(
            **names,
            max_batch_size=settings.max_batch_size,
            kind="KIND_GPU" if settings.gpu else "KIND_CPU",
            instances=settings.instances,
            delay=round(settings.delay * 1e6),
            max_queue=settings.max_queue,
            precision=precision,
            digest=bundle.manifest_sha256,
            space=fingerprint(bundle, precision),
            threads=settings.threads or "",
        )
        (folder / MODEL / "config.pbtxt").write_text(config, encoding="utf-8")
        (version / "model.py").write_text(_MODEL, encoding="utf-8")
        shutil.copytree(bundle.path, version / BUNDLE)
        walk_types = ", ".join(bundle.manifest.text.walk_types)
        name = bundle.manifest.model.name
        text = _README.format(**names, bundle=BUNDLE, name=name, version=__version__, walk_types=walk_types)
        (folder / "README.md").write_text(text, encoding="utf-8")


def check_repository(repository: Path) -> None:
    """Parse a repository's configuration by Triton's own definition, and hold it to the bundle beside it.

    Raises:
        MissingDependencyError: Triton's client, which has the definition, is not installed.
        BundleError: Triton would refuse the configuration, it does not fit the bundle, or the bundle is damaged.
    """
    require("triton", ["tritonclient", "google.protobuf", "grpc"], "--check needs {}, which is not installed")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    path = repository / MODEL / "config.pbtxt"
    config: Any = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise BundleError(f"{path} is no configuration of Triton's ({error}); write the repository anew.") from None
    bundle = Bundle.open(repository / MODEL / "1" / BUNDLE)
    expected = {
        "name": MODEL,
        "backend": "python",
        "inputs": [(IMAGE, "TYPE_STRING", [1], True), (TEXT, "TYPE_STRING", [1], True)],
        "outputs": [(VECTOR, "TYPE_FP32", [bundle.manifest.embedding_size])],
        "manifest_sha256": bundle.manifest_sha256,
        "space_sha256": fingerprint(bundle, config.parameters["precision"].string_value),
    }
    kinds = model_config_pb2.DataType
    found = {
        "name": config.name,
        "backend": config.backend,
        "inputs": [(each.name, kinds.Name(each.data_type), list(each.dims), each.optional) for each in config.input],
        "outputs": [(each.name, kinds.Name(each.data_type), list(each.dims)) for each in config.output],
        "manifest_sha256": config.parameters["manifest_sha256"].string_value,
        "space_sha256": config.parameters["space_sha256"].string_value,
    }
    for key, value in expected.items():
        if found[key] != value:
            raise BundleError(
                f"{path} has {key} {found[key]} instead of {value}; write the repository anew.", code="bundle_invalid"
            )
    bundle.check_precision(config.parameters["precision"].string_value)
