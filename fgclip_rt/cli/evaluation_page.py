"""An evaluation as one page of HTML, with no script and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from msgspec import Struct

from .. import __version__
from ..answers import Benchmarked, BenchmarkFigure, BenchmarkSettings, Evaluated

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; display: block; overflow-x: auto; }
td, th { text-align: left; padding: .25rem 1.25rem .25rem 0; border-bottom: 1px solid #8884; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; width: 14rem; height: 1.25rem; }
.scale { stroke: #8886; }
.interval { stroke: #3987e5; stroke-width: 6; opacity: .45; }
.share { fill: #3987e5; }
.published { stroke: #d95926; stroke-width: 2.5; }
"""

#: Width and height of a drawn share of one.
_WIDTH, _HEIGHT = 256, 20

#: Titles of the columns that hold no numbers.
_WORDS = ("figure", "measure", "language", "class", "change", "setting", "value", "")


class _Drawing(Struct, frozen=True):
    """A cell that is markup already."""

    markup: str


_Row = Sequence[str | _Drawing]


def benchmark_page(answer: Benchmarked) -> str:
    """The page of figures on a benchmark or on pairs."""
    return _page(f"Right choices: {answer.benchmark}", _benchmark_parts(answer))


def scenes_page(answer: Evaluated) -> str:
    """The page of figures on drawn scenes."""
    return _page("Right choices: drawn scenes", _scenes_parts(answer))


def settings_in_words(settings: BenchmarkSettings) -> dict[str, str]:
    """The settings of a benchmark, each by its name; those that it does not have are left out."""
    words = {
        "protocol": settings.protocol,
        "inputs": "all" if settings.limit is None else f"the first {settings.limit:,}",
        "texts": ", ".join(f"{name} of {length} tokens" for name, length in settings.walk_types.items()),
        "case": "lower" if settings.lowercase else "kept",
        "images": settings.images,
    }
    if settings.script_lowercase is False and settings.lowercase:
        words["case"] = "lower, whereas the released script keeps it"
    if settings.templates:
        whose = "the benchmark's own" if settings.official_templates else "not known to be the benchmark's own"
        words["templates"] = f"{settings.templates}, {whose}"
    if settings.class_vectors is not None:
        words["classes' vectors"] = f"of {settings.class_vectors}"
    if settings.max_num_patches is not None:
        words["patches"] = f"{settings.max_num_patches:,} for each image"
    if settings.boxes is not None:
        words["boxes"] = settings.boxes
    if settings.left_out:
        words["left out"] = f"{settings.left_out:,}"
    return words


def _benchmark_parts(answer: Benchmarked) -> Iterator[str]:
    yield _origin(answer, f"on <code>{escape(answer.data)}</code>")
    titles = ("figure", "right", "of", "share", "95 % interval", "published", "difference", "")
    yield _table(titles, map(_figure_row, answer.figures))
    known = [figure for figure in answer.figures if figure.published is not None]
    if known:
        yield "<p>The blue dot is the share, the band its interval, and the orange line the published figure.</p>"
    if answer.caveat is not None:
        yield f"<p>Published figures: {escape(answer.caveat)}.</p>"
    if any(figure.difference is None for figure in known):
        yield "<p>No difference is shown, because the settings are not those of the published figures.</p>"
    yield "<h2>Settings</h2>"
    yield _table(("setting", "value"), settings_in_words(answer.settings).items())
    for other in answer.others:
        rows = [(flip.name, *_flip(flip.share, flip.lost, flip.gained, flip.p_value)) for flip in other.figures]
        yield _flips(("figure",), rows, f"{other.precision} ({other.backend})", answer.precision)
    if answer.classes:
        yield f"<h2>Classes</h2><p>By {escape(answer.figures[0].name)}; the lowest shares come first.</p>"
        shares = [(each.right / each.total, each) for each in answer.classes]
        shares.sort(key=lambda pair: (pair[0], -pair[1].total))
        yield _table(
            ("class", "right", "of", "share", ""),
            ((each.name, *_counts(each.right, each.total), _draw(share)) for share, each in shares),
        )


def _scenes_parts(answer: Evaluated) -> Iterator[str]:
    yield _origin(answer, f"on {answer.scenes:,} scenes, from seed {answer.seed} on")
    yield _table(
        ("measure", "language", "right", "of", "share", "by chance", ""),
        (
            (each.measure, each.language, *_counts(each.right, each.total), f"{each.chance:.1%}", _draw(each.share))
            for each in answer.figures
        ),
    )
    yield "<h2>True before false captions</h2><p>By what the false caption changes.</p>"
    changes = answer.true_before_false_by_change.items()
    yield _table(
        ("change", "right", "of", "share"),
        ((change, *_counts(count.right, count.total)) for change, count in changes if count.total),
    )
    for other in answer.others:
        rows = [
            (flip.measure, flip.language, *_flip(flip.share, flip.lost, flip.gained, flip.p_value))
            for flip in other.figures
        ]
        yield _flips(("measure", "language"), rows, f"{other.precision} ({other.backend})", answer.precision)


def _origin(answer: Benchmarked | Evaluated, inputs: str) -> str:
    return (
        f"<p><code>{escape(answer.bundle)}</code> in {escape(answer.precision)} by {escape(answer.backend)}, {inputs}; "
        f"fgclip-rt {__version__}.</p>"
    )


def figure_cells(figure: BenchmarkFigure) -> tuple[str, ...]:
    """A figure in words: name, right choices, all choices, share, interval, published share and difference."""
    return (
        figure.name,
        f"{figure.right:,}",
        f"{figure.total:,}",
        f"{figure.share:.1%}",
        f"{100 * figure.low:.1f} to {figure.high:.1%}",
        "" if figure.published is None else f"{figure.published:.1f}%",
        "" if figure.difference is None else f"{figure.difference:+.1f}",
    )


def _figure_row(figure: BenchmarkFigure) -> _Row:
    return (*figure_cells(figure), _draw(figure.share, (figure.low, figure.high), figure.published))


def _flips(titles: Sequence[str], rows: Iterable[_Row], other: str, precision: str) -> str:
    return (
        f"<h2>Choices of {escape(other)} that are not those of {escape(precision)}</h2>"
        f"{_table((*titles, 'share', 'lost', 'gained', 'p'), rows)}"
        "<p>p is how often equally good models would differ so much or more (McNemar's exact test).</p>"
    )


def _flip(share: float, lost: int, gained: int, p_value: float) -> tuple[str, ...]:
    return f"{share:.1%}", f"{lost:,}", f"{gained:,}", f"{p_value:.3f}"


def _counts(right: int, total: int) -> tuple[str, ...]:
    return f"{right:,}", f"{total:,}", f"{right / total:.1%}"


def _draw(share: float, interval: tuple[float, float] | None = None, published: float | None = None) -> _Drawing:
    """A share from 0 to 1 on a line, with its interval and a published figure in percent."""
    middle = _HEIGHT / 2
    parts = [f'<path class="scale" d="M0 {middle}H{_WIDTH}"/>']
    if interval is not None:
        low, high = (_WIDTH * end for end in interval)
        parts.append(f'<path class="interval" d="M{low:.1f} {middle}H{high:.1f}"/>')
    if published is not None:
        parts.append(f'<path class="published" d="M{_WIDTH * published / 100:.1f} 2V{_HEIGHT - 2}"/>')
    parts.append(f'<circle class="share" cx="{_WIDTH * share:.1f}" cy="{middle}" r="4"/>')
    # The dots of shares of zero and one stand over the line's ends.
    box = f"-5 0 {_WIDTH + 10} {_HEIGHT}"
    return _Drawing(f'<svg viewBox="{box}" role="img" aria-label="{share:.1%}">{"".join(parts)}</svg>')


def _table(titles: Sequence[str], rows: Iterable[_Row]) -> str:
    kinds = ["" if title in _WORDS else ' class="number"' for title in titles]
    head = "".join(f"<th{kind}>{escape(title)}</th>" for kind, title in zip(kinds, titles, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{cell.markup if isinstance(cell, _Drawing) else escape(cell)}</td>"
            for kind, cell in zip(kinds, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _page(title: str, parts: Iterable[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )
