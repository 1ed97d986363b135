"""A real server on the loopback interface, in a process of its own, and how tests talk to it."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import time
from typing import Any

import httpx
from PIL import Image

NAME = "fg-clip2-pocket"


class Server:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)


def start(*options: str, wait: bool = True) -> Server:
    """Start a server on a free port, and wait until it is ready."""
    command = [sys.executable, "-m", "fgclip_rt", "serve", NAME, "--port", "0", "--linger", "0s", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "listening on http://127.0.0.1:" in line, line + process.stderr.read()
    server = Server(process, int(line.split("127.0.0.1:")[1].split(";")[0]))
    while wait and server.http.get("/readyz").status_code != 200:
        time.sleep(0.02)
    return server


def end(server: Server) -> None:
    server.process.terminate()
    server.process.communicate(timeout=60)


def png(photo: Image.Image) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    return buffer.getvalue()


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def failure(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a failure, whose sentence stands in it twice and ends like a sentence."""
    document = answer.json()
    message = document["error"]["message"]
    assert message == document["detail"]
    assert message.endswith(".")
    assert answer.headers["x-should-retry"] in ("true", "false")
    return answer.status_code, document["error"]["code"]
