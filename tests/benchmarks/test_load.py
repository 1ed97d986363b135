"""The clients that the HTTP server is measured by, before a server that makes the mistakes that they are to find."""

from __future__ import annotations

import base64
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fgclip_rt.benchmarks.load import Drive, Load
from fgclip_rt.benchmarks.page import serving as page
from fgclip_rt.benchmarks.serving import Overload
from fgclip_rt.errors import BenchmarkError
from helpers import assert_one_sentence

PAGE = Path(__file__).parents[2] / "benchmarks"

VECTORS = [[1.0, 0.0], [0.0, 1.0]]


def answer(vector: Sequence[float] = (), status: str = "200 OK", headers: str = "") -> bytes:
    numbers = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
    body = msgspec.json.encode({"data": [{"embedding": numbers}]})
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@contextmanager
def served(answers: Sequence[bytes]) -> Iterator[int]:
    """A server of one connection: its answers in their order, after which it closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            connection, _ = listening.accept()
            with connection:
                for each in answers:
                    while b"}" not in connection.recv(2**16):
                        pass
                    connection.sendall(each)
                if answers:
                    connection.recv(2**16)

        thread = threading.Thread(target=run)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)


def drive(answers: Sequence[bytes], most: int) -> tuple[dict[str, int], int, int, int]:
    with served(answers) as port:
        done = Load(Drive(port, ['{"a": 1}', '{"a": 2}'], VECTORS, 1, 5.0, most)).run()
    assert len(done.latencies) == done.statuses.get("200", 0)
    return dict(done.statuses), done.lost, done.surplus, done.wrong


@pytest.mark.parametrize(
    ("answers", "most", "expected"),
    [
        ([answer(VECTORS[0]), answer(VECTORS[1])], 2, ({"200": 2}, 0, 0, 0)),
        ([answer(VECTORS[1]), answer(VECTORS[1])], 2, ({"200": 2}, 0, 0, 1)),
        ([answer(VECTORS[0])], 2, ({"200": 1}, 1, 0, 0)),
        ([answer(VECTORS[0]) * 2], 1, ({}, 1, 1, 0)),
        (
            [answer(status="429 No", headers="Retry-After-Ms: 1\r\n"), answer(VECTORS[1])],
            2,
            ({"429": 1, "200": 1}, 0, 0, 0),
        ),
        ([answer(status="500 No"), answer(VECTORS[1])], 2, ({"500": 1, "200": 1}, 0, 0, 0)),
    ],
    ids=["right", "wrong", "lost", "twice", "later", "failed"],
)
def test_each_answer_is_accounted_for(
    answers: Sequence[bytes], most: int, expected: tuple[dict[str, int], int, int, int]
) -> None:
    assert drive(answers, most) == expected


def test_the_page_is_what_the_results_say(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    shutil.copytree(PAGE / "results" / "serving", tmp_path / "results" / "serving")
    page.write(tmp_path)
    assert (PAGE / "serving.md").read_text(encoding="utf-8") == (tmp_path / "serving.md").read_text(encoding="utf-8")
    assert "beside infinity" in (tmp_path / "serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["none.json", "infinity/fg-clip-base.json"])
def test_a_file_that_holds_no_results_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "results" / "serving" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"format": "something else"}')
    with pytest.raises(BenchmarkError) as info:
        page.write(tmp_path)
    assert_one_sentence(info.value, name, "measure again")


@pytest.mark.parametrize(
    ("memory", "growth"),
    [
        ((90, *(100, 130) * 10), 0.0),  # photos come and go
        (tuple(range(100, 140)), 130 / 110 - 1),  # each second leaves a byte behind
    ],
)
def test_growth_is_of_what_stays(memory: tuple[int, ...], growth: float) -> None:
    found = Overload(1, 1, 40.0, {}, (), 0, 0, 0, 10.0, memory)
    assert found.growth == pytest.approx(growth)
