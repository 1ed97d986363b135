"""``make bench-serve``: the server, measured on this machine; ``benchmarks/serving.md`` from ``results/serving/``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Literal

import msgspec

import fgclip_rt
from fgclip_rt.machine import this_machine, usable_cores, versions
from fgclip_rt.manifest import Strict

from ..pipeline import make_photos
from ..results import decode
from ..serving import CLIENTS, Overhead, Overload, Rate, measure_overhead, measure_overload, measure_rates, quantile
from . import infinity
from .readme import table
from .suite import make_bundle

_PAGE = Template((Path(__file__).parent / "serving.md").read_text("utf-8"))

#: Packages whose versions stand on the page.
_PACKAGES = ("onnxruntime", "pillow", "starlette", "uvicorn", "h11", "msgspec")


class Served(Strict, frozen=True):
    """All figures of one bundle.

    Attributes:
        model: its name.
        manifest_sha256: digest of its manifest.
        cpu: the machine's CPU.
        cores: number of cores that the processes share.
        versions: versions of the packages that took part.
        overhead: texts.
        rates: images, for each number of clients.
        overload: too many images.
    """

    model: str
    manifest_sha256: str
    cpu: str
    cores: int
    versions: dict[str, str]
    overhead: Overhead
    rates: tuple[Rate, ...]
    overload: Overload
    format: Literal["fgclip-rt-bench-serve"] = "fgclip-rt-bench-serve"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results and page."""
    parser = argparse.ArgumentParser(prog="make bench-serve", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of serving.md and results/serving/")
    parser.add_argument("--bundles", type=Path, help="folder from which bundles are taken, and in which they are kept")
    parser.add_argument("--model", action="append", help="a registered model; by default fg-clip2-pocket and -base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of a turn")
    parser.add_argument("--overload", type=float, default=60.0, help="seconds of too much work")
    options = parser.parse_args(arguments)
    results = options.folder / "results" / "serving"
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fgclip-rt-bench-") as temporary:
        bundles = options.bundles or Path(temporary)
        photos = make_photos(Path(temporary), 16)
        for name in options.model or ["fg-clip2-pocket", "fg-clip2-base"]:
            bundle = make_bundle(bundles, name, ("fp32",))
            print(f"serve {name}", file=sys.stderr)
            served = measure(bundle, photos, options.rounds, options.seconds, options.overload)
            (results / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(served), indent=1))
    write(options.folder)


def measure(bundle: Path, photos: Sequence[Path], rounds: int, seconds: float, overload: float) -> Served:
    """Measure a bundle.

    Raises:
        BenchmarkError: the server lost an answer, or gave a wrong one.
    """
    model = fgclip_rt.load(bundle, device="cpu")
    # More turns, because a text is short.
    overhead = measure_overhead(model, bundle, 3 * rounds)
    rates = measure_rates(model, bundle, photos, CLIENTS, rounds, seconds)
    rate = quantile([each for rate in rates for each in rate.embedded], 0.5)
    return Served(
        model.manifest.model.name,
        model.bundle.manifest_sha256,
        this_machine().cpu,
        usable_cores(),
        versions(*_PACKAGES),
        overhead,
        tuple(rates),
        measure_overload(model, bundle, photos, overload, rate),
    )


def write(folder: Path) -> None:
    """Write the page from the results in ``folder/results/serving``.

    Raises:
        BenchmarkError: a file there holds no results.
    """
    paths = sorted((folder / "results" / "serving").glob("*.json"))
    found = [decode(path, Served, "results of a server") for path in paths]
    (folder / "serving.md").write_text(text(found, infinity.read(folder)), encoding="utf-8")


def text(results: Sequence[Served], compared: infinity.Compared | None) -> str:
    """The page in Markdown; None has no other server beside ours."""
    lines = [line for result in results for line in _section(result)]
    if compared is not None:
        lines += infinity.section(compared)
    return _PAGE.substitute(models="\n".join(lines).removesuffix("\n"))


def _section(result: Served) -> Iterator[str]:
    yield f"## {result.model}\n"
    yield f"{result.cpu}, {result.cores} cores;"
    yield ", ".join(f"{package} {version}" for package, version in result.versions.items()) + "."
    yield f"Manifest `{result.manifest_sha256[:16]}`.\n"
    yield from table(("what", "target", "measured"), _outcomes(result))
    yield ""
    rows = [
        (
            str(rate.clients),
            f"{quantile(rate.served, 0.5):.2f}",
            f"{quantile(rate.embedded, 0.5):.2f}",
            f"{rate.share:.2f}",
            f"{1000 * quantile(rate.latencies, 0.5):,.0f} ms",
            f"{1000 * quantile(rate.latencies, 0.99):,.0f} ms",
            f"{rate.busy:.1%}",
        )
        for rate in result.rates
    ]
    columns = ("clients", "images a second", "`embed_images`", "rate", "p50", "p99", "clients' own share of a core")
    yield from table(columns, rows)
    yield ""


def _outcomes(result: Served) -> Iterator[tuple[str, str, str]]:
    overhead, overload = result.overhead, result.overload
    own, served = overhead.at(0.5)
    fastest_own, fastest = overhead.at(0.1)
    yield (
        "overhead of one text",
        "≤ 2 ms",
        f"{1000 * (served - own):.1f} ms ({1000 * own:.1f} to {1000 * served:.1f}); "
        f"fastest tenth {1000 * (fastest - fastest_own):.1f} ms",
    )
    for rate in result.rates:
        target = "≥ 0.95" if rate.clients >= 8 else ""
        yield (
            f"rate with {rate.clients} clients" if rate.clients > 1 else "rate with 1 client",
            target,
            f"{rate.share:.2f}",
        )
    others = sum(count for status, count in overload.statuses.items() if status not in ("200", "429"))
    yield (
        f"overloaded for {overload.seconds:.0f} s by {overload.clients} clients, {overload.held} images held",
        "200 or 429",
        f"{overload.statuses.get('200', 0):,} × 200, {overload.statuses.get('429', 0):,} × 429, {others} others",
    )
    yield "its answers lost, surplus, wrong", "0, 0, 0", f"{overload.lost}, {overload.surplus}, {overload.wrong}"
    yield (
        "p99 of what it accepted",
        f"≤ {overload.deadline:.0f} s",
        f"{quantile(overload.latencies, 0.99):.2f} s",
    )
    last = overload.memory[-1] / 1e6 if overload.memory else 0.0
    yield "growth of its memory", "none", f"{overload.growth:+.1%}, to {last:,.0f} MB"


if __name__ == "__main__":
    main()
