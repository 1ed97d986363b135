"""``make bench-infinity``: the server beside infinity, another embedding server, with models of one size.

infinity pins packages that ours are newer than, so it has an environment of its own, which make sets up.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from fgclip_rt.errors import BenchmarkError
from fgclip_rt.machine import this_machine, usable_cores, versions
from fgclip_rt.manifest import Strict

from ..load import Drive, Driven
from ..pipeline import make_photos
from ..results import decode
from ..serving import CLIENTS, PATIENT, check_answers, clients, image_body, quantile, running
from .readme import table
from .suite import make_bundle

#: Our model. Like theirs it has 196 patches of 16×16 pixels an image, and 12 layers of 768 channels.
_MODEL = "fg-clip-base"

#: Seconds that infinity may take to start.
_START = 600.0

#: Saves a CLIP ViT-B/16 with random weights in the folder of its argument, in the environment that reads it.
_MAKE = """
import json, sys
from pathlib import Path
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast
folder = Path(sys.argv[1])
folder.mkdir()
words = ["<|startoftext|>", "<|endoftext|>", "a</w>"]
(folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
(folder / "merges.txt").write_text("#version: 0.2\\n")
tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
vision = {"patch_size": 16, "image_size": 224, "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12}
CLIPModel(CLIPConfig(vision_config=vision, projection_dim=512)).eval().save_pretrained(folder)
"""

#: Prints the versions of the packages of its arguments, as JSON.
_VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


class Turns(Strict, frozen=True):
    """Requests of one image each from some clients, of one server.

    Attributes:
        rates: images a second, by turn.
        latencies: seconds of each request.
    """

    rates: tuple[float, ...]
    latencies: tuple[float, ...]


class Compared(Strict, frozen=True):
    """All figures.

    Attributes:
        cpu: the machine's CPU.
        cores: number of cores that the processes share.
        ours: versions of the packages of our server.
        theirs: versions of the packages of theirs.
        turns: our server's turns and theirs, by number of clients.
    """

    cpu: str
    cores: int
    ours: dict[str, str]
    theirs: dict[str, str]
    turns: dict[int, tuple[Turns, Turns]]
    format: Literal["fgclip-rt-bench-infinity"] = "fgclip-rt-bench-infinity"


#: The results, below the folder of the page.
RESULTS = Path("results", "serving", "infinity", f"{_MODEL}.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results; ``make bench-report`` writes the page."""
    parser = argparse.ArgumentParser(prog="make bench-infinity", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of serving.md and results/serving/")
    parser.add_argument("--python", type=Path, required=True, help="Python of an environment that has infinity-emb")
    parser.add_argument("--bundles", type=Path, help="folder from which bundles are taken, and in which they are kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of a turn")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fgclip-rt-bench-") as temporary:
        bundle = make_bundle(options.bundles or Path(temporary), _MODEL, ("fp32",))
        photos = make_photos(Path(temporary), 16)
        compared = measure(options.python, bundle, photos, Path(temporary), options.rounds, options.seconds)
    path: Path = options.folder / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(compared), indent=1))


def measure(python: Path, bundle: Path, photos: Sequence[Path], folder: Path, rounds: int, seconds: float) -> Compared:
    """Measure both servers in turns; ``folder`` takes their model.

    Raises:
        BenchmarkError: a server does not start, or a request fails.
    """
    checkpoint = folder / "clip"
    subprocess.run([python, "-c", _MAKE, checkpoint], check=True)
    bodies = [image_body(photo) for photo in photos]
    theirs = [msgspec.json.encode({**msgspec.json.decode(body), "modality": "image"}).decode() for body in bodies]
    turns: dict[int, tuple[Turns, Turns]] = {}
    with (
        running(bundle, "--timeout", f"{PATIENT:.0f}s") as server,
        infinity(python, checkpoint, folder) as port,
        clients() as drive,
    ):

        def turn(port: int, bodies: list[str], count: int, seconds: float) -> Driven:
            done = drive(Drive(port, bodies, [], count, seconds, timeout=PATIENT))
            check_answers(done)
            return done

        contenders = ((server.port, bodies), (port, theirs))
        for contender in contenders:  # a warm-up
            turn(*contender, 8, min(seconds, 2.0))
        for count in CLIENTS:
            done = [[turn(*contender, count, seconds) for contender in contenders] for _ in range(rounds)]
            ours, others = (_turns(each) for each in zip(*done, strict=True))
            turns[count] = ours, others
    return Compared(
        this_machine().cpu,
        usable_cores(),
        versions("onnxruntime", "pillow", "starlette", "uvicorn"),
        _their_versions(python),
        turns,
    )


@contextlib.contextmanager
def infinity(python: Path, checkpoint: Path, folder: Path) -> Iterator[int]:
    """The port of infinity with a checkpoint, in float32 on the CPU; it ends with the block.

    Raises:
        BenchmarkError: it ends before it is ready, or is not ready in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = {
        "--model-id": str(checkpoint),
        "--engine": "torch",
        "--device": "cpu",
        "--dtype": "float32",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--url-prefix": "/v1",
    }
    words = [word for option in options.items() for word in option]
    command = [str(python.with_name("infinity_emb")), "v2", *words, "--no-bettertransformer", "--no-model-warmup"]
    path = folder / "infinity.log"
    offline = {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **offline})
    try:
        until = time.monotonic() + _START
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > until:
                said = path.read_text("utf-8", "replace").strip()[-1000:]
                raise BenchmarkError(f"infinity did not start ({said}); mend its environment, and measure again.")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _their_versions(python: Path) -> dict[str, str]:
    packages = ("infinity-emb", "torch", "transformers", "pillow", "uvicorn")
    said = subprocess.run([python, "-c", _VERSIONS, *packages], check=True, stdout=subprocess.PIPE).stdout
    return msgspec.json.decode(said, type=dict[str, str])


def _turns(driven: Sequence[Driven]) -> Turns:
    return Turns(
        tuple(len(done.latencies) / done.seconds for done in driven),
        tuple(latency for done in driven for latency in done.latencies),
    )


def read(folder: Path) -> Compared | None:
    """The results in the folder of the page; None if there are none.

    Raises:
        BenchmarkError: the file there holds no results.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    return decode(path, Compared, "results of a comparison")


def section(compared: Compared) -> Iterator[str]:
    """The lines of the page."""
    yield f"## {_MODEL} beside infinity\n"
    yield f"{compared.cpu}, {compared.cores} cores;"
    yield ", ".join(f"{package} {version}" for package, version in compared.ours.items()) + ";"
    yield ", ".join(f"{package} {version}" for package, version in compared.theirs.items()) + "."
    yield ""
    rows = []
    for count, (ours, theirs) in compared.turns.items():
        rates = quantile(ours.rates, 0.5), quantile(theirs.rates, 0.5)
        rows.append(
            (
                str(count),
                f"{rates[0]:.2f}",
                f"{rates[1]:.2f}",
                f"{rates[0] / rates[1]:.2f}",
                *(
                    f"{1000 * quantile(turns.latencies, share):,.0f} ms"
                    for turns in (ours, theirs)
                    for share in (0.5, 0.99)
                ),
            )
        )
    columns = ("clients", "images a second", "infinity", "times as many", "p50", "p99", "infinity's p50", "its p99")
    yield from table(columns, rows)
    yield ""


if __name__ == "__main__":
    main()
