"""Time from the start of a process to a vector, which a script or a function that scales to zero pays each time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fgclip_rt.turns import take_turns

from ..results import Start

#: Program of a user of transformers: load a SigLIP 2 checkpoint, and embed one image.
_TRANSFORMERS = """
import sys
import torch
from PIL import Image
from transformers import Siglip2Model
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
folder, image = sys.argv[1:]
processor = Siglip2ImageProcessorPil.from_pretrained(folder)
model = Siglip2Model.from_pretrained(folder).eval()
with torch.inference_mode():
    model.get_image_features(**processor(Image.open(image).convert("RGB"), return_tensors="pt"))
"""


#: Runs a command, and reports its status, seconds, peak memory and errors. A process's peak counts the memory of the
#: process that forked it, so a small process must fork it.
_LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds = time.perf_counter() - start
peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, seconds, peak, done.stderr.decode(errors="replace")]))
"""


def measure_starts(
    bundle: Path,
    image: Path,
    checkpoint: Path | None = None,
    rounds: int = 15,
    progress: Callable[[], None] = lambda: None,
) -> tuple[Start, ...]:
    """Embed one image in a new process, in turns.

    Args:
        bundle: folder of the bundle for ``fgclip-rt embed``.
        image: an image file.
        checkpoint: a SigLIP 2 checkpoint folder for transformers; None leaves transformers out.
        rounds: number of turns of each, after one that fills the disk's cache.
        progress: called after each turn.
    """
    with tempfile.TemporaryDirectory(prefix="fgclip-rt-bench-") as folder:
        output = Path(folder) / "out.npy"
        ours = [sys.executable, "-P", "-m", "fgclip_rt", "embed", str(bundle), str(image), "--output", str(output)]
        commands = {"fgclip-rt embed": [*ours, "--overwrite"]}
        if checkpoint is not None:
            commands["transformers"] = [sys.executable, "-P", "-c", _TRANSFORMERS, str(checkpoint), str(image)]
        return start_in_turns(commands, rounds, progress)


def start_in_turns(
    commands: Mapping[str, Sequence[str]], rounds: int, progress: Callable[[], None] = lambda: None
) -> tuple[Start, ...]:
    """Run whole processes in turns.

    Args:
        commands: by name, the arguments of a process.
        rounds: number of turns of each, after one that fills the disk's cache.
        progress: called after each turn.
    """
    peaks = dict.fromkeys(commands, 0)
    problems = dict.fromkeys(commands, "")

    def start(name: str) -> float | None:
        launched = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *commands[name]]
        answer = subprocess.run(launched, capture_output=True, check=True).stdout
        status, seconds, peak, errors = json.loads(answer)
        if status:
            problems[name] = (errors.strip().splitlines() or ["no reason given"])[-1]
            return None
        peaks[name] = max(peaks[name], peak)
        return float(seconds)

    turns = {name: partial(start, name) for name in commands}
    measured = take_turns(turns, rounds, warm_up=1, progress=progress)
    return tuple(Start(name, tuple(measured.get(name, ())), peaks[name], problems[name]) for name in commands)
