"""Vectors of a run that did not end are taken up whole, and only by the same work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fgclip_rt.errors import OutputError
from fgclip_rt.journal import Journal, Stamp, Work, check_no_journal, digest, stamp
from helpers import assert_one_sentence, contents

WORK = Work({"bundle": "abc", "--walk-type": "short", "--batch-size": None}, digest(["a", "b"]), count=9, width=3)
VECTORS = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
BATCHES = [[4, 2], [0], [8, 1, 3]]


def unchanged(item: int) -> Stamp:
    return (item, 1) if item < 6 else None


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.npz"


def begin(output: Path, work: Work = WORK, stamp_of: Callable[[int], Stamp] = unchanged, *, resume: bool) -> Journal:
    return Journal(output, work, stamp_of, resume=resume)


def interrupt(output: Path) -> Path:
    """Leave three batches behind, as a run does that is interrupted; returns the journal's folder."""
    journal = begin(output, resume=False)

    def run() -> None:
        with journal:
            for items in BATCHES:
                journal.add(items, VECTORS[items], list(map(unchanged, items)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    return journal.folder


def kept(journal: Journal) -> list[int]:
    """The inputs that have a vector, after a check that it is theirs."""
    items = np.flatnonzero(journal.positions >= 0)
    np.testing.assert_array_equal(journal.vectors()[journal.positions[items]], VECTORS[items])
    assert journal.kept == len(items)
    return items.tolist()


def test_a_run_that_ends_well_leaves_nothing(output: Path) -> None:
    with begin(output, resume=False) as journal:
        assert journal.vectors().shape == (0, 3)
        journal.add([1], VECTORS[[1]], [None])
        assert kept(journal) == [1]
        assert contents(output.parent)
    assert contents(output.parent) == {}


def test_a_run_that_ends_before_its_first_batch_leaves_nothing(output: Path) -> None:
    with pytest.raises(KeyboardInterrupt), begin(output, resume=False):
        raise KeyboardInterrupt
    assert contents(output.parent) == {}


def test_a_later_run_goes_on_where_one_was_interrupted(output: Path) -> None:
    interrupt(output)
    with begin(output, resume=True) as journal:
        assert kept(journal) == [0, 1, 2, 3, 4, 8]
        assert (journal.missing(0, 6), journal.missing(6, 3)) == ([5], [6, 7])
        for items in ([5, 7], [6]):
            journal.add(items, VECTORS[items], list(map(unchanged, items)))
        assert journal.missing(0, 9) == []
        np.testing.assert_array_equal(journal.vectors()[journal.positions], VECTORS)
    assert contents(output.parent) == {}


def test_a_journal_is_gone_on_with_or_begun_anew_but_only_as_is_asked(output: Path) -> None:
    check_no_journal(output)
    interrupt(output)
    with pytest.raises(OutputError) as info:
        check_no_journal(output)
    assert_one_sentence(info.value, str(output), "--resume", "--overwrite", code="output_unfinished")
    with begin(output, resume=False) as journal:
        assert kept(journal) == []


@pytest.mark.parametrize("name", ["vectors", "journal"])
def test_a_batch_that_was_not_written_whole_is_dropped(output: Path, name: str) -> None:
    """Whatever byte the process or the machine came to."""
    folder = interrupt(output)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    lines = before[folder / "journal"].splitlines(keepends=True)
    # The byte at which each batch is whole.
    sizes = [12 * len(items) for items in BATCHES] if name == "vectors" else list(map(len, lines))
    ends = np.cumsum(sizes).tolist()
    for size in range(ends[-1]):
        for path, data in before.items():
            path.write_bytes(data[:size] if path.name == name else data)
        whole = sum(end <= size for end in ends)
        journal = begin(output, resume=True)
        assert kept(journal) == sorted(item for items in BATCHES[:whole] for item in items)
        # What follows it is cut off, so that a new batch stands where it is looked for.
        journal.add([7], VECTORS[[7]], [None])
        assert 7 in kept(begin_again(journal, output))


def begin_again(journal: Journal, output: Path) -> Journal:
    """Go on with a journal whose process was killed."""
    journal._vectors.close()
    journal._journal.close()
    return begin(output, resume=True)


@pytest.mark.parametrize("name", ["vectors", "journal"])
def test_a_batch_that_was_altered_is_dropped_with_all_that_follow(output: Path, name: str) -> None:
    folder = interrupt(output)
    path = folder / name
    data = bytearray(path.read_bytes())
    at = 12 * 2 if name == "vectors" else data.index(b"\n") + 1
    data[at] ^= 0xFF
    path.write_bytes(data)
    assert kept(begin(output, resume=True)) == [2, 4]


def test_a_line_that_names_no_input_is_dropped(output: Path) -> None:
    path = interrupt(output) / "journal"
    path.write_bytes(path.read_bytes().replace(b"[0]", b"[9]"))
    assert kept(begin(output, resume=True)) == [2, 4]


def test_a_vector_of_a_file_that_has_changed_is_computed_again(output: Path) -> None:
    interrupt(output)
    journal = begin(output, stamp_of=lambda item: None if item == 2 else unchanged(item), resume=True)
    assert kept(journal) == [0, 1, 3, 4, 8]
    journal.add([2], VECTORS[[2]], [None])
    # The later vector counts.
    journal = begin_again(journal, output)
    assert journal.missing(0, 9) == [2, 5, 6, 7]
    journal.add([2], -VECTORS[[2]], [unchanged(2)])
    journal = begin_again(journal, output)
    np.testing.assert_array_equal(journal.vectors()[journal.positions[2]], -VECTORS[2])


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        ({"settings": WORK.settings | {"--walk-type": "long"}}, ["--walk-type short", "now it is long"]),
        ({"settings": WORK.settings | {"--batch-size": 3}}, ["--batch-size left out", "now it is 3"]),
        ({"settings": WORK.settings | {"bundle": "abd"}}, ["bundle abc", "abd"]),
        ({"inputs": digest(["ab", ""])}, ["other inputs (9 then, 9 now)"]),
        ({"count": 10}, ["other inputs (9 then, 10 now)"]),
    ],
)
def test_other_work_is_refused_and_nothing_is_lost(output: Path, other: dict[str, object], parts: list[str]) -> None:
    interrupt(output)
    before = contents(output.parent)
    with pytest.raises(OutputError) as info:
        begin(output, msgspec.structs.replace(WORK, **other), resume=True)
    assert_one_sentence(info.value, str(output), *parts, "--overwrite", code="output_unfinished")
    assert contents(output.parent) == before


@pytest.mark.parametrize("work", [None, b"", b'{"settings": '])
def test_a_run_that_ended_while_it_began_is_begun_anew(output: Path, work: bytes | None) -> None:
    path = interrupt(output) / "work"
    path.unlink() if work is None else path.write_bytes(work)
    assert kept(begin(output, resume=True)) == []


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_do_not_write_one_output(output: Path, resume: bool) -> None:
    with begin(output, resume=False) as journal:
        journal.add([1], VECTORS[[1]], [(1, 1)])
        with pytest.raises(OutputError) as info:
            begin(output, resume=resume)
        assert_one_sentence(info.value, str(output), "another run", code="output_unwritable")
        assert kept(journal) == [1]


def test_a_place_that_cannot_be_written_is_an_error(output: Path) -> None:
    (output.parent / ".out.npz.unfinished").touch()
    with pytest.raises(OutputError) as info:
        begin(output, resume=False)
    assert_one_sentence(info.value, str(output), "File exists", code="output_unwritable")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_keeps_the_batches_before(output: Path) -> None:
    def run() -> None:
        with begin(output, resume=False) as journal:
            journal.add([1], VECTORS[[1]], [(1, 1)])
            os.dup2(os.open("/dev/full", os.O_WRONLY), journal._vectors.fileno())
            journal.add([2], VECTORS[[2]], [(2, 1)])

    with pytest.raises(OutputError) as info:
        run()
    assert_one_sentence(info.value, str(output), "the disk is full", code="disk_full")
    assert kept(begin(output, resume=True)) == [1]


def test_a_digest_tells_lists_of_texts_apart() -> None:
    lists = [["ab"], ["a", "b"], ["a", "b", ""], ["", "a", "b"], ["b", "a"], ["1:a"], []]
    assert len({digest(texts) for texts in lists}) == len(lists)


def test_a_stamp_tells_that_a_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    assert stamp(str(path)) is None
    path.write_bytes(b"one")
    first = stamp(str(path))
    assert first == stamp(str(path))
    os.utime(path, (1, 1))
    assert stamp(str(path)) != first
    path.write_bytes(b"three")
    os.utime(path, (1, 1))
    assert stamp(str(path)) == (5, 10**9)
