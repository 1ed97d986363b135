"""The page in a repository: how to start a server, and a client."""

from __future__ import annotations

from collections.abc import Sequence

from fgclip_rt.manifest import Manifest

from .graph_models import GraphModel
from .settings import BOXES, BUNDLE, IMAGE, MODEL, TEXT, VECTOR, VECTORS, Repository

#: Its ONNX Runtime is 1.27, and bundles need 1.22 or later.
_IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"

_README = """\
# {name} for Triton Inference Server

Made by fgclip-rt {version}. Ask the model `{model}`: its Python backend decodes images and tokenises texts{runs}.
The server's Python needs the package of this version. `Dockerfile`:

```text
FROM {image}
RUN pip install fgclip-rt=={version}
```

```sh
docker build -t fgclip-triton .
docker run --rm {gpus}--shm-size 1g -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD:/repository:ro" \\
    fgclip-triton tritonserver --model-repository /repository
```
{notes}
A request has one of two inputs, bytes [n, 1]: `{image_input}`, whole image files, or `{text}`, UTF-8. The output
`{vector}` is float32 [n, {dim}], of length one. Parameters of a request are `walk_type` of texts ({walk_types}),
and `max_num_patches` of images.
{regions}
```python
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient("localhost:8001")
image = triton.InferInput("{image_input}", [1, 1], "BYTES")
image.set_data_from_numpy(np.array([[open("a.jpg", "rb").read()]], np.object_))
vector = client.infer("{model}", [image]).as_numpy("{vector}")
```

Of the metrics at port 8002, `nv_inference_pending_request_count` tells an autoscaler that requests wait.
`nv_inference_count` divided by `nv_inference_exec_count` is the mean batch.
"""

_REGIONS = """
With `{image}`, `{boxes}` may be given, float32 [n, r, 4]: x1, y1, x2, y2 in pixels, r boxes for each image. Then the
output is `{vectors}` instead, float32 [n, r, {dim}].
"""

_ONNXRUNTIME = """
The files of weights in {models} models are hard links to one, and an object store or a copy holds them {models} times.
The server shares nothing between models, so its memory holds the weights of a tower once for each model of it.
"""

#: As ``OnnxRuntimeBackend`` does by an option that Triton does not pass on: these kernels give wrong numbers.
_WITHOUT_KERNELS = "-e ORT_DISABLE_MEMORY_EFFICIENT_ATTENTION=1 "

_TENSORRT = """
The plans run with {libraries} only. Choose the image of Triton that has it, and put its name into the `Dockerfile`.
"""


def readme(manifest: Manifest, models: Sequence[GraphModel], settings: Repository, libraries: Sequence[str]) -> str:
    """Text of the page.

    Args:
        manifest: the bundle's.
        models: the models that run graphs; none if the model that is asked runs them.
        settings: the repository's.
        libraries: what runs its plans.
    """
    from fgclip_rt import __version__

    runs = f", and calls the {len(models)} others, each of which runs a graph" if models else ""
    notes = ""
    if settings.mode == "onnxruntime":
        notes = _ONNXRUNTIME.format(models=sum(model.length is not None for model in models))
    elif settings.mode == "tensorrt":
        notes = _TENSORRT.format(libraries=" and ".join(libraries))
    gpus = "--gpus all " if settings.on_gpu else ""
    if settings.on_gpu and settings.mode == "onnxruntime":
        gpus += _WITHOUT_KERNELS
    dim = manifest.embedding_size
    regions = _REGIONS.format(image=IMAGE, boxes=BOXES, vectors=VECTORS, dim=dim) if settings.regions else ""
    return _README.format(
        name=manifest.model.name,
        version=__version__,
        model=MODEL,
        runs=runs or f", and runs the bundle in `{MODEL}/1/{BUNDLE}`",
        image=_IMAGE,
        gpus=gpus,
        notes=notes,
        image_input=IMAGE,
        text=TEXT,
        vector=VECTOR,
        dim=dim,
        walk_types=", ".join(manifest.text.walk_types),
        regions=regions,
    )
