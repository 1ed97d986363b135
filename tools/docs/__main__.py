"""``python -m tools.docs``."""

from __future__ import annotations

from pathlib import Path

import click

import fgclip_rt

from . import generate


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(path_type=Path), default="docs", help="Folder of the pages.")
@click.option("--bundle", default="fg-clip2-pocket", help="Bundle of fg-clip2-pocket, whose tokenizer is used.")
def main(folder: Path, bundle: str) -> None:
    """Write what the documents hold of the code: the options of commands, JSON Schemas and test vectors."""
    for name, data in generate(fgclip_rt.load(bundle, device="cpu").tokenizer).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
