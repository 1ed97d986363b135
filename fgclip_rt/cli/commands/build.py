"""``fgclip-rt build``: bundle to engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...answers import EnginesBuilt, engine_built
from ...bundle import Bundle
from ...errors import ArgumentError
from ...packages import ENGINE_PACKAGES, require
from .. import options
from ..output import numbers, say, say_json, say_table, words
from ..progress import progress_bars
from ..status import Command

if TYPE_CHECKING:
    from fgclip_rt.engines import Built


@click.command(cls=Command)
@options.bundle
@click.option(
    "--backend",
    required=True,
    shell_complete=options.completed(tuple(ENGINE_PACKAGES)),
    help="tensorrt, tensorrt-rtx or onnxruntime-tensorrt.",
)
@click.option(
    "--precision",
    multiple=True,
    shell_complete=options.completed(options.PRECISIONS),
    help="One of the bundle's; repeatable.  [default: fp16, if the bundle has it]",
)
@click.option("--target", help="GPUs to build for, such as sm89,sm120, or current.  [default: by the backend]")
@click.option("--graph", multiple=True, help="One of the graphs; repeatable.  [default: all]")
@click.option("--buckets", help="Numbers of patches.  [default: the model's buckets]")
@click.option("--text-lengths", help="Numbers of tokens.  [default: the model's]")
@click.option("--batch", default="1,8,32", help="Fewest, most usual and most images or texts in a run.")
@click.option("--boxes", default="1,16,256", help="Fewest, most usual and most boxes in a run.")
@click.option("--masks", default="1,16,256", help="Fewest, most usual and most masks in a run.")
@click.option("--strip-weights", is_flag=True, help="Leave weights out; they are read from the bundle at loading.")
@click.option("--jobs", default=1, help="Engines to build at the same time; each takes a core and memory.")
@click.option("--rebuild", is_flag=True, help="Build also what is there.")
@options.json
def run(
    bundle: Path,
    backend: str,
    precision: tuple[str, ...],
    target: str | None,
    graph: tuple[str, ...],
    buckets: str | None,
    text_lengths: str | None,
    batch: str,
    boxes: str,
    masks: str,
    strip_weights: bool,
    jobs: int,
    rebuild: bool,
    json: bool,
) -> None:
    """Build TensorRT engines of a bundle, in its folder engines/.

    One engine is built for each graph, precision and number of patches or tokens. What is there already, of the same
    graph, weights, library, targets and shapes, is kept. Each engine appears whole or not at all, and those that are
    finished when the command is interrupted stay.
    """
    if backend in ENGINE_PACKAGES:
        require(backend, ENGINE_PACKAGES[backend], f"backend {backend!r} needs {{}}, which is not installed")
    from ... import engines

    shapes = engines.Shapes(
        buckets=None if buckets is None else _numbers("buckets", buckets),
        text_lengths=None if text_lengths is None else _numbers("text-lengths", text_lengths),
        batch=_three("batch", batch),
        boxes=_three("boxes", boxes),
        masks=_three("masks", masks),
    )
    opened = Bundle.open(bundle)
    with progress_bars() as begin:
        built = engines.build(
            opened,
            backend,
            list(precision) or [_default_precision(opened)],
            targets=target.split(",") if target else (),
            graphs=list(graph) or None,
            shapes=shapes,
            strip_weights=strip_weights,
            jobs=jobs,
            rebuild=rebuild,
            begin=begin,
        )
    _report(opened, built, json)


def _default_precision(bundle: Bundle) -> str:
    precisions = bundle.manifest.precisions
    return "fp16" if "fp16" in precisions else precisions[0]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"--{option} is {text!r}; give whole numbers with commas between them.") from None


def _three(option: str, text: str) -> tuple[int, int, int]:
    numbers = _numbers(option, text)
    if len(numbers) != 3:
        raise ArgumentError(f"--{option} is {text!r}; give the smallest, the most usual and the largest number.")
    return numbers[0], numbers[1], numbers[2]


def _report(bundle: Bundle, built: list[Built], json: bool) -> None:
    answer = EnginesBuilt(
        bundle=str(bundle.path),
        size=sum(entry.engine.size for entry in built),
        engines=[engine_built(entry.engine, entry.cached) for entry in built],
    )
    if json:
        say_json(answer)
        return
    say_table(
        "",
        (words("engine"), words(""), numbers("MB"), numbers("layers"), numbers("seconds")),
        [
            (
                entry.engine.path.name,
                "was there" if entry.cached else "built",
                f"{entry.engine.size / 1e6:,.1f}",
                "-" if entry.engine.record.layers is None else f"{entry.engine.record.layers:,}",
                f"{entry.engine.record.seconds:.1f}",
            )
            for entry in built
        ],
    )
    key = built[0].engine.key
    # Precisions may differ in the GPUs that they can be built for.
    targets = dict.fromkeys(target for entry in built for target in entry.engine.key.targets)
    on = ", ".join(targets) + (f" on {key.gpu}" if key.gpu else "")
    weights = "whose weights stay in the bundle" if key.stripped else "for each holds its own weights"
    engines = f"{len(built)} engine{'s' if len(built) > 1 else ''}"
    say(f"{bundle.path}: {engines} for {key.library} and {on}, {answer.size / 1e6:,.1f} MB on disk, {weights}")
