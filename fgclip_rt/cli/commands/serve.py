"""``fgclip-rt serve``: a bundle behind HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from ...bundle import Bundle
from ...errors import ArgumentError
from ...packages import require
from .. import options
from ..options import Loading
from ..output import warn
from ..status import Command
from ..units import DURATION, SIZE


@click.command(cls=Command)
@options.loading
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is every one of the machine.")
@click.option("--port", default=8080, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option("--alias", multiple=True, metavar="NAME", help="Another name of the model; repeatable.")
@click.option("--max-wait", default="5ms", type=DURATION, help="Longest wait of an item for others, to run together.")
@click.option("--max-work", default=65_536, type=click.IntRange(1), help="Patches and tokens that may wait together.")
@click.option("--max-body", default="64MB", type=SIZE, help="Largest body of a request.")
@click.option("--timeout", default="60s", type=DURATION, help="Longest time of a request.")
@click.option("--api-key-file", type=options.PATH, help="File of keys, one a line, that clients must show.")
@click.option(
    "--allow-url", multiple=True, metavar="HOST", help="Host to fetch images from, as *.example.org; repeatable."
)
@click.option("--index", type=options.PATH, help="Index of images to search, with a page at /.  [default: none]")
@click.option("--mcp", is_flag=True, help="Give agents tools at /mcp, as 'fgclip-rt mcp' does.")
@click.option("--root", multiple=True, type=options.PATH, help="Folder whose images agents may name; repeatable.")
@click.option("--forward", metavar="URL", help="Server of immich's own, for its tasks other than CLIP.")
@click.option("--linger", default="1s", type=DURATION, help="Time after SIGTERM in which requests are still taken.")
@click.option("--drain", default="30s", type=DURATION, help="Time after that in which requests are answered.")
@click.option("--log-json", is_flag=True, help="Write the log as JSON, a document a line.")
@options.max_image_pixels
def run(
    loading: Loading,
    host: str,
    port: int,
    alias: tuple[str, ...],
    max_wait: float,
    max_work: int,
    max_body: float,
    timeout: float,
    api_key_file: Path | None,
    allow_url: tuple[str, ...],
    index: Path | None,
    mcp: bool,
    root: tuple[Path, ...],
    forward: str | None,
    linger: float,
    drain: float,
    log_json: bool,
    max_image_pixels: int | None,
) -> None:
    """Serve a bundle by HTTP, to clients of OpenAI's embeddings and your own.

    The port answers at once, and /readyz says when the model does. SIGTERM ends the server: what it has taken, it
    answers. /docs shows what may be asked.
    """
    require("serve", ("starlette", "uvicorn", "multipart", "prometheus_client"))
    if mcp:
        require("mcp", ("mcp",))
    elif root:
        raise ArgumentError("--root is for agents; give it with --mcp.")
    from fgclip_rt.serving import Batcher
    from fgclip_rt.serving.http import Application, Observer, Settings
    from fgclip_rt.serving.http.server import bind, serve

    options.limit_pixels(max_image_pixels)
    # A wrong path is a wrong path at once, and not after the port is open.
    Bundle.open(loading.bundle, check_hashes=False)
    settings = Settings(
        aliases=alias,
        max_body=int(max_body),
        timeout=timeout,
        api_key_file=api_key_file,
        allow_urls=allow_url,
        index=index,
        mcp=mcp,
        roots=root,
        forward=forward,
    )

    def open_batcher(observer: Observer) -> Batcher:
        return Batcher(
            loading.open(),
            max_wait=max_wait,
            max_work=max_work,
            on_batch=observer.on_batch,
            on_prepared=observer.on_prepared,
        )

    application = Application(open_batcher, settings)
    bound = bind(host, port)
    address, number = bound.getsockname()[:2]
    warn(f"fgclip-rt: listening on http://{f'[{address}]' if ':' in address else address}:{number}; Ctrl-C ends it.")
    serve(application, bound, linger=linger, drain=drain, log_json=log_json)
