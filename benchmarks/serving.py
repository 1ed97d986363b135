"""A server beside the calls that it stands for: what HTTP costs, and what happens when too much is asked."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from fgclip_rt.arrays import FloatArray
from fgclip_rt.children import Child
from fgclip_rt.errors import BenchmarkError
from fgclip_rt.manifest import Strict
from fgclip_rt.model import Model

from .load import Drive, Driven
from .memory import resident_memory

#: Images that an overloaded server may hold at most, and how many times as many clients ask it.
_MOST_HELD = 16
_OVER = 10

#: The deadline of each request to the overloaded server, in seconds; and what its queue may take of that, at the rate
#: of `embed_images`: who accepts more than can be answered in time has nothing to promise.
_DEADLINE = 10.0
_QUEUE = 0.6

#: Seconds that a request of the rates may take. Sixty-four clients of a large model wait longer than a minute.
PATIENT = 600.0

#: Clients at a time of the rates.
CLIENTS = (1, 8, 64)

#: Texts of one turn of the overhead.
_TEXTS = 40


class Overhead(Strict, frozen=True):
    """One text at a time, each another one.

    Attributes:
        embedded: seconds of each ``embed_texts``.
        served: seconds of each request.
    """

    embedded: tuple[float, ...]
    served: tuple[float, ...]

    def at(self, share: float) -> tuple[float, float]:
        """The quantiles of both."""
        return quantile(self.embedded, share), quantile(self.served, share)


class Rate(Strict, frozen=True):
    """Requests of one image each, beside ``embed_images`` of the same files, in turns.

    Attributes:
        clients: number of clients, each of which waits for its answer.
        embedded: images a second of ``embed_images``, by turn.
        served: images a second of the server, by turn.
        latencies: seconds of each request.
        busy: share of the time in which the clients themselves kept a core busy.
    """

    clients: int
    embedded: tuple[float, ...]
    served: tuple[float, ...]
    latencies: tuple[float, ...]
    busy: float

    @property
    def share(self) -> float:
        """What the server reaches of ``embed_images``, by medians."""
        return median(self.served) / median(self.embedded)


class Overload(Strict, frozen=True):
    """More clients than the server may hold requests of.

    Attributes:
        clients: number of clients.
        held: number of requests that the server may hold.
        seconds: time from the first request to the last answer.
        statuses: number of answers by HTTP status.
        latencies: seconds of each answer with status 200.
        lost: requests that were not answered.
        surplus: connections on which more came than was asked for.
        wrong: answers with another vector than that of their request.
        deadline: seconds that each request allowed.
        memory: resident bytes of the server, second by second.
    """

    clients: int
    held: int
    seconds: float
    statuses: dict[str, int]
    latencies: tuple[float, ...]
    lost: int
    surplus: int
    wrong: int
    deadline: float
    memory: tuple[int, ...]

    @property
    def growth(self) -> float:
        """The least memory of the last quarter of the time, as a share of that of the second quarter, less one.

        The photos that are held at a moment make memory rise and fall by a tenth. What leaks stays in the least.
        """
        quarter = max(1, len(self.memory) // 4)
        return min(self.memory[-quarter:]) / min(self.memory[quarter : 2 * quarter] or self.memory) - 1


class Server:
    """``fgclip-rt serve`` in a process of its own, on a free port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port


@contextlib.contextmanager
def running(bundle: Path, *options: str) -> Iterator[Server]:
    """A server that is ready, and ends with the block.

    Raises:
        BenchmarkError: it has ended before it was ready.
    """
    command = [sys.executable, "-P", "-m", "fgclip_rt", "serve", str(bundle), "--port", "0", "--linger", "0s", *options]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        try:
            yield Server(process, _await(process, Path(log.name)))
        finally:
            process.terminate()
            process.wait()


def _await(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port of a server, once it is ready."""
    port = 0
    while process.poll() is None:
        time.sleep(0.05)
        if not port and (said := log.read_text().partition("127.0.0.1:")[2].partition(";")[0]):
            port = int(said)
        if port:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return port
            connection.close()
    raise BenchmarkError(f"the server has ended ({log.read_text().strip()[-300:]}); mend that, and measure again.")


@contextlib.contextmanager
def clients() -> Iterator[Callable[[Drive], Driven]]:
    """A function that has another process send requests."""
    child: Child[Driven] = Child(f"{__package__}.load", "", Driven)

    def drive(wanted: Drive) -> Driven:
        child.send(wanted)
        return child.receive()

    try:
        yield drive
    finally:
        child.stop()


def measure_overhead(model: Model, bundle: Path, rounds: int) -> Overhead:
    """Time texts in ``rounds`` turns, of the model and of a server."""
    embedded: list[float] = []
    served: list[float] = []
    with running(bundle) as server, clients() as drive:
        for turn in range(-1, rounds):  # the first is a warm-up
            bodies = [_body(f"a red star number {turn} {number}") for number in range(_TEXTS)]
            done = drive(Drive(server.port, bodies, [], 1, 600, most=_TEXTS))
            check_answers(done)
            own = []
            for number in range(_TEXTS):
                begun = time.perf_counter()
                model.embed_texts([f"a red moon number {turn} {number}"])
                own.append(time.perf_counter() - begun)
            if turn >= 0:
                embedded += own
                served += done.latencies
    return Overhead(tuple(embedded), tuple(served))


def measure_rates(
    model: Model, bundle: Path, photos: Sequence[Path], counts: Sequence[int], rounds: int, seconds: float
) -> list[Rate]:
    """Time requests of one image from each number of clients, and ``embed_images`` of the same files, in turns."""
    bodies = [image_body(photo) for photo in photos]
    vectors = _vectors(model, photos)
    rates = []
    with running(bundle, "--timeout", f"{PATIENT:.0f}s") as server, clients() as drive:
        drive(Drive(server.port, bodies, vectors, 8, min(seconds, 2.0), timeout=PATIENT))  # a warm-up
        for count in counts:
            embedded, served, latencies, busy = [], [], [], []
            for _ in range(rounds):
                begun = time.perf_counter()
                images = 0
                while images == 0 or time.perf_counter() - begun < seconds:
                    model.embed_images(photos)
                    images += len(photos)
                embedded.append(images / (time.perf_counter() - begun))
                done = drive(Drive(server.port, bodies, vectors, count, seconds, timeout=PATIENT))
                check_answers(done)
                served.append(len(done.latencies) / done.seconds)
                latencies += done.latencies
                busy.append(done.busy / done.seconds)
            rates.append(Rate(count, tuple(embedded), tuple(served), tuple(latencies), median(busy)))
    return rates


def measure_overload(model: Model, bundle: Path, photos: Sequence[Path], seconds: float, rate: float) -> Overload:
    """Ask ten times what a server may hold, for ``seconds``. It holds what ``rate`` images a second answer in time."""
    held = min(_MOST_HELD, max(1, int(_QUEUE * _DEADLINE * rate)))
    bodies = [image_body(photo) for photo in photos]
    work = held * model.manifest.image.buckets[-1]
    with running(bundle, "--max-work", str(work)) as server, clients() as drive:
        memory: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(min(1.0, seconds / 20)):
                memory.append(resident_memory(server.process.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            done = drive(Drive(server.port, bodies, _vectors(model, photos), _OVER * held, seconds, timeout=_DEADLINE))
        finally:
            over.set()
            watching.join()
    return Overload(
        clients=_OVER * held,
        held=held,
        seconds=done.seconds,
        statuses=done.statuses,
        latencies=tuple(done.latencies),
        lost=done.lost,
        surplus=done.surplus,
        wrong=done.wrong,
        deadline=_DEADLINE,
        memory=tuple(memory),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of all is not above; zero of none."""
    return float(np.quantile(values, share)) if values else 0.0


def _vectors(model: Model, photos: Sequence[Path]) -> list[list[float]]:
    vectors: FloatArray = model.embed_images(photos)
    numbers: list[list[float]] = vectors.tolist()
    return numbers


def check_answers(done: Driven) -> None:
    """Refuse figures of answers that were not all right."""
    if done.lost or done.surplus or done.wrong or set(done.statuses) != {"200"}:
        raise BenchmarkError(
            f"of the answers {done.statuses}, {done.lost} were lost and {done.wrong} wrong; mend the server first."
        )


def _body(text: str) -> str:
    return msgspec.json.encode({"input": text, "encoding_format": "base64"}).decode()


def image_body(photo: Path) -> str:
    return _body("data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode())
