"""``fgclip-rt mcp``: tools for agents."""

from __future__ import annotations

from pathlib import Path

import click

from ...packages import require
from .. import options
from ..options import Loading
from ..status import Command


@click.command(cls=Command)
@options.loading
@click.option("--root", multiple=True, type=options.PATH, help="Folder whose images agents may name; repeatable.")
@click.option("--index", type=options.PATH, help="Index of images to search.  [default: none]")
@options.max_image_pixels
def run(loading: Loading, root: tuple[Path, ...], index: Path | None, max_image_pixels: int | None) -> None:
    """Give agents tools to look at images, by the Model Context Protocol.

    It speaks on standard input and output. The tools score texts, find things in an image, draw heat maps, and search
    an index. Only files below --root are read, nothing is fetched, and nothing is written.
    """
    require("mcp", ("mcp",))
    from fgclip_rt.index import ImageIndex
    from fgclip_rt.serving.mcp import Sources, add_tools, make_server

    options.limit_pixels(max_image_pixels)
    model = loading.open()
    server = make_server()
    add_tools(server, model, Sources(root), None if index is None else ImageIndex(index))
    server.run("stdio")
