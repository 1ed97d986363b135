"""Child processes: their messages, their ends, and the folder that they are started from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgclip_rt.children import Child, ChildDiedError

#: A child that prints as libraries do, and answers twice: with the request, and with its own argument.
MODULE = """
import os, sys
from fgclip_rt.children import serve

def handle(request, answer):
    print("noise of a library")
    os.system("echo noise of a program")
    if request == "die":
        sys.exit("last words")
    answer(request)
    answer(os.environ["GIVEN"] + sys.argv[1])

serve(str, handle)
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child[str]]:
    (tmp_path / "talker.py").write_text(MODULE, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    child: Child[str] = Child("talker", "argument", str, {"PYTHONPATH": paths, "GIVEN": "given "})
    yield child
    child.stop()


def test_it_answers_whatever_libraries_print(child: Child[str]) -> None:
    for request in ("héllo 猫\n", ""):
        child.send(request)
        assert [child.receive(), child.receive()] == [request, "given argument"]


def test_its_last_words_are_told(child: Child[str]) -> None:
    child.send("die")
    with pytest.raises(ChildDiedError) as info:
        child.receive()
    assert str(info.value) == "ended with status 1 (last words)"
    assert not info.value.killed
    # Its pipe may still take a request or two.
    for _ in range(100):
        try:
            child.send("x" * 100_000)
        except ChildDiedError as death:
            assert str(death) == str(info.value)  # noqa: PT017 (which of them fails is the system's choice)
            return
    raise AssertionError("a dead process went on listening")


def test_a_child_that_the_system_kills_is_told_of(child: Child[str]) -> None:
    child._process.kill()
    with pytest.raises(ChildDiedError, match="was killed, as systems do when memory runs out") as info:
        child.receive()
    assert info.value.killed
    assert not info.value.stopped


def test_a_stopped_child_answers_nobody(child: Child[str]) -> None:
    found: list[ChildDiedError] = []

    def wait() -> None:
        with pytest.raises(ChildDiedError) as info:
            child.receive()
        found.append(info.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    child.stop()
    waiting.join()
    assert [death.stopped for death in found] == [True]
    assert child._process.returncode == -signal.SIGKILL


def test_an_interrupt_of_its_parents_session_does_not_reach_it(child: Child[str]) -> None:
    assert os.getsid(child._process.pid) != os.getsid(0)


def test_a_folder_called_like_ours_beside_the_caller_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "fgclip_rt").mkdir()
    (tmp_path / "fgclip_rt" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    # -P: the parent must import our package, not the folder beside it.
    script = (
        "from fgclip_rt.children import Child, ChildDiedError\n"
        "child = Child('fgclip_rt.benchmarks.worker', '{}', str)\n"
        "try:\n    child.receive()\n"
        "except ChildDiedError as death:\n    print(death)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "required field" in done.stdout, done.stdout
