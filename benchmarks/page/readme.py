"""``benchmarks/README.md`` and its pictures, made of ``benchmarks/results/*.json`` and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from ..report import COLUMNS, cells, limit, milliseconds, problems, verdicts
from ..results import Result, Table, find_tables, read_result
from .targets import outcomes

_INTRODUCTION = """\
# Benchmarks

```sh
make bench                                       # all of this page again, on your machine: about an hour on two cores
fgclip-rt bench BUNDLE                           # your bundle: buckets, texts, dense features, regions, all precisions
fgclip-rt bench BUNDLE --peer all                # beside PyTorch, transformers, a plain export and OpenVINO
fgclip-rt bench BUNDLE --images photos/          # what to expect of your images, and which batches to take
python benchmarks/gpu.py BUNDLE                  # on an NVIDIA GPU: PyTorch, onnxruntime and engines
```

**How it is measured.** Contenders have the same weights, inputs and number of threads, and are held to give the same vectors.
Each runs in a process of its own, so that its threads wait for nobody else's and its memory is its own, and they take turns. A turn
lasts 250 ms or more, after as many untimed runs and a pause in which the last one's threads fall asleep. Figures are medians; beside a ratio
of medians stands, in brackets, between what half of the turns' ratios lie. Weights are random, which takes as long as others.
Where they are not, peers need the checkpoint too: `--checkpoint`, and what else `export` was given of it (`--weights`, `--config`, `--tokenizer`).

| contender | is |
|---|---|
| `fgclip-rt fp32`, `fgclip-rt int8` | the bundle in this runtime |
| `pytorch`, `pytorch compiled` | the reference, eager and by `torch.compile`, for one shape |
| `transformers` | transformers' SigLIP 2 towers with the same weights |
| `onnxruntime`, `openvino` | a plain `torch.onnx.export` of the reference for one grid, with its mask and without our rewrites, as a careful user would make it |

*Of product rate* is the share that a contender reaches of the rate at which this machine multiplies matrices: NumPy's product of
1,024×768 and 768×3,072 float32 numbers, measured in the same turns. The operations are those of the bundle's own matrix products, which
onnxruntime lists when it runs them. Activations, norms and softmax count as nothing, so 100 % is out of reach, except for INT8, whose products are
faster ones. *Memory, at most* is what was resident in the contender's process; PyTorch's holds both towers.

This page is generated from [`results/`](results) by `make bench-report`.
"""


_TRIED = """\
*Bound* is what the figure would be if the bundle's own matrix products ran at this machine's rate and nothing else took any time: target and bound
tell what share of that rate the target asks for. *Fastest turns* is the same figure by the fastest turn of each, which others' work on this machine
disturbed least. *Within the spread* is what medians, the middle half of the turns and the fastest ones do not agree about.

Four targets lie at that limit. In quiet hours PyTorch ran at 71 to 75 % of the product rate at 256 patches and OpenVINO at 83 to 85 %, so that 0.75 and
0.85 ask for 95 to 100 % of it, where what is no product takes 5 %; at 1,024 patches PyTorch ran at 81 % and 0.86 asks for 94 %, where the exponentials of
attention alone take 6 %. What the neighbours did moved these figures more than anything that was tried: in seven runs of two days medians at 256
patches were 0.61 to 0.85 of PyTorch's, 0.70 to 1.04 of OpenVINO's and 81 to 99 % of the product rate, and at 1,024 patches 0.79 to 0.90 of PyTorch's; by
the fastest turns, in five of them, 0.67 to 0.80, 0.81 to 0.97, 88 to 94 % and 0.77 to 0.92.

What was tried on the base model and is left out, since it gained nothing, or less than it costs. At 256 patches in a quiet hour (271 ms; 62 + 12
products take 242, attention 20, all additions 4, GELU 4.3, norms 1.7):

- one product for queries, keys and values; `Gemm` with its bias in the place of `MatMul` and `Add`; 1×1 `Conv`; weights on the left: 184, 180, 179 and
  174 GFLOP/s where `MatMul` has 185;
- attention without the channel that hides keys: 1.1 to 1.5 % of the time, at every length; it would need a second graph for images that fill their
  batch, or a branch in every block;
- attention by `MatMul` and `Softmax`, or with a mask as a bias of the scores: 21 and 21 ms at 256 patches, 317 and 318 at 1,024, where it takes 20 and 276;
- ONNX's own `Attention` with a count of keys (opset 24): 2 % of the time at 256 patches, nothing at 1,024, and at 4,096 it takes a fifth longer than
  attention by blocks and holds the scores, 1 GB where all else takes 0.25;
- norms and GELU fused with the additions before them (`SkipLayerNormalization`, `FastGelu`): 2 to 4 % slower;
- Strassen's products on top of onnxruntime's: for the layers of a block 0.96 (768 to 3,072), 0.80 to 0.90 (3,072 to 768) and 1.05 (768 to 768) of the time,
  with 1.75 times the weights and 2.6 times the rounding error. That error follows the largest number of all patches and not that of the patch itself,
  and trained vision transformers are known for a few patches far above the others (https://arxiv.org/abs/2309.16588), for which the rest would pay;
- work in pieces that get smaller (`dynamic_block_base`): 0.98 to 1.00 at 256 patches, 1.00 to 1.03 at 1,024;
- huge pages for the weights, pinned threads, denormals as zero: no difference;
- weights used as they lie in the file, not packed when they are loaded: a start of 0.07 s in place of 0.42, and runs 10 % slower;
- graph optimisation at export: it takes 5 of 35 ms of loading the pocket model, and packing weights takes the rest;
- one session for `vision` and `dense`: onnxruntime computes the dense head too when nobody asks for it, 8 % at 256 patches;
- threads that sleep in the place of spinning: files to vectors 3 % faster on the pocket model, whose runs are short, and every run 2 to 3 % slower.
"""


def write(folder: Path) -> None:
    """Write the page and its pictures beside the results in ``folder/results``.

    Raises:
        BenchmarkError: a file there holds no results.
    """
    results = {path.stem: read_result(path) for path in sorted((folder / "results").glob("*.json"))}
    draw(results, folder / "results")
    (folder / "README.md").write_text(text(results), encoding="utf-8")


def text(results: dict[str, Result]) -> str:
    """The page."""
    parts = [_INTRODUCTION]
    for name, result in results.items():
        parts += _section(name, result)
    return "\n".join(parts)


def draw(results: dict[str, Result], folder: Path) -> None:
    """The pictures, which need matplotlib."""
    from . import pictures

    for name, result in results.items():
        for key, title, tables, kind in _pictures(result):
            getattr(pictures, kind)(tables, f"{result.bundle.name}: {title}", folder / f"{name}-{key}.svg")
        if result.pipeline is not None:
            pictures.stages(
                result.pipeline, f"{result.bundle.name}: from files to vectors", folder / f"{name}-files.svg"
            )
        if result.starts:
            pictures.starts(result.starts, "start of a process to its first vector", folder / f"{name}-start.svg")


def _section(name: str, result: Result) -> Iterator[str]:
    bundle, machine = result.bundle, result.machine
    yield f"## {bundle.name}\n"
    yield f"{machine['cpu']}, {machine['cores']} cores ({machine['flags']}), {machine['memory available']} free;"
    yield ", ".join(f"{package} {version}" for package, version in result.versions.items()) + "."
    yield f"Manifest `{bundle.manifest_sha256[:16]}`, {bundle.weights} weights. Full figures: [`{name}.json`](results/{name}.json).\n"
    if result.starts and result.pipeline is not None:
        yield from _targets(result)
    for key, title, tables, _ in _pictures(result):
        yield f"### {title[0].upper()}{title[1:]}\n"
        yield f"![{title}](results/{name}-{key}.svg)\n"
        yield from _table(COLUMNS, (row for table in tables for row in cells(table, with_threads=key == "cost")))
        yield ""
        rates = sorted(table.rate for table in tables)
        span = f"{rates[0] / 1e9:,.0f} to {rates[-1] / 1e9:,.0f} GFLOP/s" if len(tables) > 1 else limit(tables[0])
        yield f"Products of matrices, {'/'.join(sorted({str(t.threads) for t in tables}))} threads: {span}.\n"
        yield from (f"- {line}\n" for line in (*problems(tables), *verdicts(tables)))
    if result.pipeline is not None:
        yield from _pipeline(name, result)
    if result.starts:
        yield from _starts(name, result)
    yield from _sizes(result)


def _pictures(result: Result) -> Iterator[tuple[str, str, Sequence[Table], str]]:
    """Name, title, tables and kind of each picture that these results have."""
    threads = max(table.threads for table in result.tables)
    usual = [table for table in result.tables if table.threads == threads]
    groups: list[tuple[str, str, Sequence[Table], str]] = [
        (
            "vision",
            "images, one at a time",
            [t for t in find_tables(usual, graph="vision", batch=1) if len(t.rows) > 2],
            "times",
        ),
        ("vision-8", "images, eight at a time", find_tables(usual, graph="vision", batch=8), "times"),
        ("text", "texts", find_tables(usual, graph="text"), "times"),
        ("dense", "dense features", find_tables(usual, graph="dense"), "times"),
        ("region", "regions of an image whose dense features are there", find_tables(usual, graph="region"), "times"),
        ("cost", "cost by patches, batch and threads", _alone(result.tables), "cost"),
    ]
    for key, title, tables, kind in groups:
        if tables:
            yield key, title, tables, kind


def _alone(tables: Sequence[Table]) -> list[Table]:
    """Vision tables that were measured without peers."""
    return [table for table in find_tables(tables, graph="vision") if len(table.rows) <= 2]


def _targets(result: Result) -> Iterator[str]:
    yield "### What was to be reached\n"
    yield from _table(("what", "target", "measured", "fastest turns", "bound", "reached"), outcomes(result))
    yield ""
    yield _TRIED


def _pipeline(name: str, result: Result) -> Iterator[str]:
    assert result.pipeline is not None
    pipeline = result.pipeline
    total = sum(pipeline.stages.values())
    yield "### From files to vectors\n"
    yield f"![from files to vectors](results/{name}-files.svg)\n"
    rows = [
        (stage, milliseconds(seconds / pipeline.images), f"{seconds / total:.2%}")
        for stage, seconds in pipeline.stages.items()
    ]
    yield from _table(("stage", "for each image", "share"), rows)
    whole = median(pipeline.whole)
    yield ""
    yield (
        f"{pipeline.images} JPEG files of 320×240 to 1,600×1,200 pixels, each in its own bucket: "
        f"{pipeline.images / whole:.2f} images a second, {pipeline.share} of what the model alone embeds.\n"
    )


def _starts(name: str, result: Result) -> Iterator[str]:
    yield "### Start of a process to its first vector\n"
    yield f"![start](results/{name}-start.svg)\n"
    rows = [
        (start.contender, "not run", start.problem, "")
        if start.problem
        else (
            start.contender,
            f"{start.median:.2f} s",
            f"{min(start.seconds):.2f}–{max(start.seconds):.2f} s",
            f"{start.peak / 1e6:,.0f} MB",
        )
        for start in result.starts
    ]
    yield from _table(("one image of fg-clip2-pocket", "median", "all", "memory, at most"), rows)
    yield ""


def _sizes(result: Result) -> Iterator[str]:
    weights = {name: size for name, size in result.bundle.sizes.items() if name.endswith(".safetensors")}
    yield "### On disk\n"
    yield from _table(("file", "size"), [(f"`{name}`", f"{size / 1e6:,.1f} MB") for name, size in weights.items()])
    yield ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


if __name__ == "__main__":
    import sys

    write(Path(sys.argv[1]))
