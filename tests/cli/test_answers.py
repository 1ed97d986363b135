"""Answers of commands: whole numbers in narrow terminals, JSON for programs, and the messages of failures."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
import pytest
import torch

import fgclip_rt
from fgclip_rt import answers
from fgclip_rt.benchmarks.advice import Advice, BucketAdvice
from fgclip_rt.benchmarks.results import BundleInfo, Pipeline, Result, Row, Table
from fgclip_rt.benchmarks.task import Case
from fgclip_rt.bundle import Bundle
from fgclip_rt.cli import options
from fgclip_rt.cli.app import COMMANDS
from fgclip_rt.cli.commands import bench, build, doctor, evaluate
from fgclip_rt.engine_files import Engine, EngineKey, EngineRecord, Library, Profile
from fgclip_rt.engines import Built
from fgclip_rt.export import PRECISIONS, request
from fgclip_rt.export.checkpoints.registry import MODELS
from fgclip_rt.export.families import table as families
from fgclip_rt.manifest import FileInfo
from fgclip_rt.timing import Timing
from helpers import edit_manifest, run_command

PROGRAM = Path(sys.executable).with_name("fgclip-rt")
PHOTO = Path(__file__).parents[1] / "goldens/fgclip2/images/1_chelsea_451x300.png"
OTHER = PHOTO.with_name("0_astronaut_200x150.png")

#: A number as tables write it, with its separators, exponent or percent sign.
NUMBER = re.compile(r"(?<![\w.,:×/-])\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?%?(?![\w.,:×/-])")


def tables(bundle: Path, photo: Path) -> list[list[object]]:
    """Commands that print tables."""
    return [
        ["verify", bundle],
        ["verify", bundle, "--all"],
        ["inspect", bundle],
        ["inspect", bundle, "--all"],
        ["score", bundle, photo, OTHER, "--text", "a white cat on a mat", "--text", "一只黑猫"],
        ["regions", bundle, photo, "--box", "10,20,200,180", "--box", "0,0,64,64", "--text", "a rather long name"],
        ["models"],
        ["doctor"],
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("width", [80, 60])
def test_tables_fit_and_no_number_is_broken(
    width: int, number: int, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tables(bundle_path, PHOTO)[number]
    wide = run_command(*arguments).stdout
    monkeypatch.setattr("fgclip_rt.cli.output._width", lambda _: width)
    narrow = run_command(*arguments).stdout
    lines = table_lines(narrow)
    assert lines
    # A terminal that is narrower than the numbers breaks their lines, not they.
    assert max(map(len, lines)) <= max(width, 80)
    # Every number is there in one piece.
    for found in NUMBER.findall("\n".join(table_lines(wide))):
        assert found in narrow, found


def say_evaluated() -> None:
    share = answers.Share("true before false caption", "en", 1234, 1500, 0.5, 1234 / 1500)
    figures = [share, msgspec.structs.replace(share, language="zh")]
    counted = {"colour": answers.Counted(1, 2)}
    flipped = [answers.Flipped(part.measure, part.language, part.share, 123, 98, 0.105) for part in figures]
    others = [answers.EvaluatedBeside("int8", "onnxruntime 1.32.0 on cpu", flipped)]
    evaluate._say(answers.Evaluated("bundle", "onnxruntime 1.32.0 on cpu", "fp32", 500, 0, figures, counted, others))


def say_timings() -> None:
    timing = Timing("vision", "1,024 patches", "int8", 12345.67, 9, "fp32", 0.98, "onnxruntime 1.32.0 on cpu")
    doctor._say_timings(doctor.Diagnosed("bundle", [], [timing], []))


def say_result() -> None:
    names = ("fgclip-rt fp32", "transformers, torch.compile", "plain export, onnxruntime")
    rows = tuple(Row(name, (1.2345, 1.3456, 1.5), cosine=1.0, peak=6_123_456_789) for name in names)
    table = Table(Case("vision", 1024, 32), 16, rows, (0.1, 0.1, 0.1), 10**9)
    machine = dict.fromkeys(("cpu", "cores", "flags", "memory available"), "1")
    bundle = BundleInfo("fg-clip2-base", "random", "0", {})
    bench._say_result(Result("fgclip-rt-bench", 1, "bench", machine, {}, bundle, (table,)))


def say_expected() -> None:
    bucket = BucketAdvice(16384, 1_234_567, 16001.5, {1: 0.0, 32: 0.0123}, {1: 1234.5, 32: 2345.6}, 32)
    advice = Advice(1_234_567, (), (bucket,), 2345.6, 32, 2345.6)
    bench._say_expected(bench.Expected(advice, Pipeline(10, {"decode": 1.0}, (1.0,), (1.1,))))


def say_engines(path: Path) -> None:
    profile = Profile((1, 1024, 768), (8, 1024, 768), (32, 1024, 768))
    library = Library("tensorrt-rtx", "1.7.1.116")
    key = EngineKey("vision", "fp16", {}, library, ("sm86", "sm89", "sm120"), None, {"patches": profile}, False, 1)
    files = {"engine.plan": FileInfo(2_053_123_456, "0" * 64)}
    record = EngineRecord("fgclip-rt-engine", 1, key, "0" * 64, "engine.plan", files, 1234.5, 12345)
    engine = Engine(path / "engines/vision-fp16-1024-tensorrt-rtx-0123456789ab", record)
    build._report(Bundle.open(path, check_hashes=False), [Built(engine, cached=True)], json=False)


@pytest.mark.parametrize("width", [80, 60])
def test_tables_of_long_work_fit_too(
    width: int, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for say in (say_evaluated, say_timings, say_result, say_expected, partial(say_engines, bundle_path)):
        say()
        wide = table_lines(capsys.readouterr().out)
        with monkeypatch.context() as patch:
            patch.setattr("fgclip_rt.cli.output._width", lambda _: width)
            say()
        narrow = table_lines(capsys.readouterr().out)
        assert narrow
        assert max(map(len, narrow)) <= 80
        for found in NUMBER.findall("\n".join(wide)):
            assert found in "\n".join(narrow), found


def table_lines(text: str) -> list[str]:
    """The lines of all tables: from each header, which a rule follows, to the next text that is no row."""
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("─")]
    found = []
    for rule, following in zip(rules, [*rules[1:], len(lines) + 2], strict=True):
        # A title stands before the next header, and a sentence after the last table: neither has columns.
        found += takewhile(
            lambda line: "  " in line or len(line) < 20 or line.startswith("─"), lines[rule - 1 : following - 2]
        )
    return found


def test_a_terminal_of_80_characters_gets_lines_of_80(bundle_path: Path) -> None:
    """The terminal is a real one, whose width the command asks for."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [PROGRAM, "verify", str(bundle_path)]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=subprocess.PIPE, env=environment) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 65536):
                shown += part
        except OSError:  # the other end was closed
            pass
        assert process.wait() == 0
    os.close(leader)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    header = next(line for line in lines if line.startswith("graph"))
    assert header.split() == ["graph", "cases", "1-cos", "error", "logits", "flips", "result"]
    assert max(map(len, lines[:-1])) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    for option in ("-h", "--help"):
        text = run_command(command, option).stdout
        assert " ".join(COMMANDS[command].split()) in " ".join(text.split())
        assert max(map(len, text.splitlines())) <= 80
    # The list of commands does not cut the summary.
    assert " ".join(COMMANDS[command].split()) in " ".join(run_command("--help").stdout.split())


def test_a_misspelt_command_or_option_is_corrected() -> None:
    assert "Did you mean 'embed'?" in run_command("embd", status=2).stderr
    result = run_command("score", "--devise", "cpu", "--json", status=2)
    assert "Did you mean '--device'?" in result.stderr
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "usage_invalid"
    assert "--devise" in error["message"]


def completions(words: str, incomplete: str) -> set[str]:
    """The completions that a shell is offered, by click's protocol for bash."""
    result = subprocess.run(
        [PROGRAM],
        env=os.environ
        | {
            "_FGCLIP_RT_COMPLETE": "bash_complete",
            "COMP_WORDS": f"fgclip-rt {words} {incomplete}",
            "COMP_CWORD": str(1 + len(words.split())),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.partition(",")[2] for line in result.stdout.splitlines()}


def test_a_shell_completes_commands_options_and_values() -> None:
    assert completions("", "e") == {"export", "embed", "embed-shards", "evaluate"}
    assert {"--device", "--precision"} <= completions("embed", "--")
    assert completions("embed --device", "c") == {"cpu", "cuda"}
    assert completions("embed bundle --precision", "fp") == {"fp32", "fp16", "fp8"}
    assert completions("score bundle --walk-type", "") == {"short", "box", "long"}
    assert completions("export --model", "fg-clip2-p") == {"fg-clip2-pocket"}
    for shell in ("bash", "zsh", "fish"):
        script = subprocess.run(
            [PROGRAM], env=os.environ | {"_FGCLIP_RT_COMPLETE": f"{shell}_source"}, capture_output=True, text=True
        )
        assert "_FGCLIP_RT_COMPLETE" in script.stdout, script.stderr


def test_models_are_listed_with_what_they_have(pocket_path: Path) -> None:
    listed = {model["name"]: model for model in json.loads(run_command("models", "--json").stdout)}
    assert listed["fg-clip2-base"]["hub_id"] == "qihoo360/fg-clip2-base"
    assert listed["fineclip-vitb16"]["weights"] == "file"
    assert listed["fg-clip-large"]["images"] == "336×336 px"
    model, pocket = fgclip_rt.load(pocket_path), listed["fg-clip2-pocket"]
    assert pocket["weights"] == "shipped"
    assert pocket["texts"] == {name: spec.length for name, spec in model.manifest.text.walk_types.items()}
    assert set(pocket["has"]) == set(model.manifest.graphs) - {"vision", "text"}
    assert pocket["score"] == model.manifest.score.activation


@pytest.mark.parametrize(
    "arguments",
    [
        ["models"],
        ["export", "--model", "fg-clip2-bas"],
        ["export", "--model", "fg-clip2-base", "--random-weights", "--precision", "fp12"],
        ["export", "--model", "fg-clip2-base", "--random-weights", "--precision", "int8"],
        ["export", "--model", "fg-clip2-base", "--random-weights", "--floor", "2"],
        ["export", "--model", "fg-clip2-base", "--random-weights", "--output", PHOTO],
        ["export", "--help"],
    ],
)
def test_what_needs_no_torch_imports_none(arguments: list[object]) -> None:
    script = (
        "import sys\nfrom fgclip_rt.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxscript'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert "Traceback" not in result.stderr


def test_the_package_imports_no_command_line() -> None:
    script = (
        "import sys, fgclip_rt\nfgclip_rt.load, fgclip_rt.load_image\n"
        "import fgclip_rt.answers, fgclip_rt.parity\nprint({'click', 'rich'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_its_packages_the_command_line_says_how_to_get_them(package: str) -> None:
    hide = (
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == {package!r} else find(name, *a)\n"
        "from fgclip_rt.cli import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-P", "-c", hide, "models"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        f"fgclip-rt: the command line needs {package}, which is not installed; run pip install 'fgclip-rt[cli]'.\n"
    )


def test_the_module_runs_inside_a_checkout() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fgclip_rt", "models"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "fg-clip2-pocket" in result.stdout


def test_a_failure_is_a_document_too(bundle_path: Path, tmp_path: Path) -> None:
    result = run_command("score", tmp_path / "absent", PHOTO, "--text", "a", "--json", status=1)
    error = json.loads(result.stdout)["error"]
    assert error.keys() == {"code", "message"}
    assert result.stderr == f"fgclip-rt: {error['message']}\n"
    assert run_command("score", tmp_path / "absent", PHOTO, "--text", "a", status=1).stdout == ""

    bundle = tmp_path / "strict"
    shutil.copytree(bundle_path, bundle)
    edit_manifest(bundle, lambda document: document["parity"]["limits"]["fp32"].update(max_error=1e-12))
    result = run_command("verify", bundle, "--json", status=1)
    report = json.loads(result.stdout)
    assert list(report) == ["bundle", "precision", "backend", "passed", "rows", "error"]
    assert not report["passed"]
    assert result.stderr == f"fgclip-rt: {report['error']['message']}\n"


def test_answers_keep_their_keys_and_their_order(bundle_path: Path, tmp_path: Path) -> None:
    """Programs read them."""
    png, npz = tmp_path / "map.png", tmp_path / "out.npz"
    for arguments, keys in (
        (
            ["regions", bundle_path, PHOTO, "--text", "a", "--box", "0,0,9,9"],
            "image boxes box_format texts cosines unrotated",
        ),
        (
            ["heatmap", bundle_path, PHOTO, "--text", "a", "--output", png],
            "output image grid scale maps texts unrotated",
        ),
        (
            ["score", bundle_path, PHOTO, "--text", "a"],
            "images texts cosines logits probabilities activation unrotated skipped",
        ),
        (
            ["embed", bundle_path, PHOTO, "--output", npz],
            "output shape space_sha256 rows skipped passed_over unreadable truncated_texts unrotated",
        ),
        (["verify", bundle_path], "bundle precision backend passed rows"),
        (["inspect", bundle_path], "path size manifest spaces engines other_files other_files_total"),
        (["scene", "--output", tmp_path / "scene.png"], "output seed size boxes changed captions"),
    ):
        assert list(json.loads(run_command(*arguments, "--json").stdout)) == keys.split()


def test_embed_ends_with_1_where_an_image_that_was_named_is_missing(bundle_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    absent = tmp_path / "absent.png"
    result = run_command("embed", bundle_path, PHOTO, absent, "--output", output, "--json", status=1)
    report = json.loads(result.stdout)
    assert [row["input"] for row in report["rows"]] == [str(PHOTO)]
    assert [(entry["input"], entry["code"]) for entry in report["skipped"]] == [(str(absent), "image_unreadable")]
    assert result.stderr.splitlines()[-1] == f"fgclip-rt: {report['error']['message']}"
    assert f"{absent} could not be read, so {output} lacks it" in report["error"]["message"]
    with np.load(output) as file:
        assert file["vectors"].shape == (1, 96)


def test_texts_come_from_standard_input_too(
    bundle_path: Path, model: fgclip_rt.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a cat\n一只黑猫\n".encode())))
    run_command("embed", bundle_path, "--texts", "-", "--output", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert file["inputs"].tolist() == ["a cat", "一只黑猫"]
        np.testing.assert_allclose(file["vectors"], model.embed_texts(["a cat", "一只黑猫"]), atol=1e-6)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    result = run_command("embed", bundle_path, "--texts", "-", "--output", tmp_path / "none.npz", status=1)
    assert "standard input is empty" in result.stderr


def test_too_little_space_is_said_before_any_work(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    arguments = ["export", "--model", "fg-clip2-base", "--random-weights", "--output", "new/bundle"]
    message = run_command(*arguments, cwd=tmp_path, status=1).stderr
    # fp32 alone takes four bytes for each of 383,803,394 weights.
    assert message == (
        "fgclip-rt: new/bundle needs 1,535,213,576 bytes and its disk has 100 free; "
        "free some space, or choose another --output.\n"
    )
    message = run_command("embed", bundle_path, PHOTO, "--output", tmp_path / "out.npy", status=1).stderr
    # The vector is in the journal until it is in the output.
    assert f"needs {2 * 4 * 96} bytes and its disk has 100 free" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["click", "fgclip_rt.cli.app", "fgclip_rt.bundle", "numpy", "PIL", "torch"])
def test_ctrl_c_at_the_start_is_one_sentence(package: str, tmp_path: Path) -> None:
    """The interrupt comes while ``package`` is imported; imports take most of the time before the work begins."""
    interrupt = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {package!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from fgclip_rt.cli import main\nmain()"
    )
    command = [sys.executable, "-P", "-c", interrupt, "export", "--model", "fg-clip2-base", "--random-weights"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "fgclip-rt: interrupted; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


def test_random_weights_show_in_python(bundle_path: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "random"
    shutil.copytree(bundle_path, bundle)
    edit_manifest(bundle, lambda document: document["model"].update(weights="random", source=None))
    with pytest.warns(fgclip_rt.RandomWeightsWarning, match="random weights") as caught:
        model = fgclip_rt.load(bundle)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "RANDOM WEIGHTS" in repr(model)
    assert "RANDOM" not in repr(fgclip_rt.load(bundle_path))
    # Commands, ``verify`` included, print a sentence of their own instead of the warning.
    (line,) = run_command("verify", bundle).stderr.splitlines()
    assert line.startswith("fgclip-rt: this bundle has RANDOM WEIGHTS")


def test_answers_have_schemas() -> None:
    found = [kind for kind in vars(answers).values() if isinstance(kind, type) and issubclass(kind, answers.Answer)]
    assert len(found) > 15
    for kind in found:
        assert msgspec.json.schema(kind)


def test_what_can_be_asked_of_an_export_is_what_it_can_do() -> None:
    """The names that are checked before the export is imported are the export's own names."""
    assert tuple(PRECISIONS) == request.NAMES == options.PRECISIONS
    assert tuple(name for name, precision in PRECISIONS.items() if precision.is_quantised) == request.QUANTISED


@pytest.mark.parametrize("name", MODELS)
def test_the_registry_knows_how_many_weights_a_model_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = MODELS[name]

    def count(build: Callable[[], torch.nn.Module], *_: object, **__: object) -> NoReturn:
        with torch.device("meta"):
            raise Counted(sum(parameter.numel() for parameter in build().parameters()))

    monkeypatch.setattr(f"fgclip_rt.export.families.{spec.family}.model.random_module", count)
    with pytest.raises(Counted) as counted:
        families.random(spec.family, spec.config)
    assert counted.value.args == (spec.parameters,)


class Counted(Exception):  # noqa: N818 (it carries a number)
    """Stops the construction of a model, and carries its number of weights."""


def test_a_bundle_takes_what_was_estimated(pocket_export: tuple[Path, object]) -> None:
    """The estimate never exceeds the bundle, or an export that fits would be refused, and is at least 80 % of it."""
    folder, _ = pocket_export
    files = (folder / "fg-clip2-pocket").glob("weights*.safetensors")
    size = sum(path.stat().st_size for path in files)
    least = request.least_bytes("fg-clip2-pocket", None, ["fp32", "fp16", "int8"])
    assert 0.8 * size < least <= size
    # A model's folder gives the same estimate as its name.
    named = MODELS["fg-clip2-pocket"].folder
    assert request.least_bytes(str(named), None, ["fp32"]) == 4 * MODELS["fg-clip2-pocket"].parameters


def test_the_estimate_of_space_allows_for_an_optimizer_beside_the_weights(tmp_path: Path) -> None:
    """A training checkpoint has up to four numbers of each weight, of which a bundle holds one."""
    (tmp_path / "run.pt").write_bytes(bytes(16_000))
    assert request.least_bytes(str(tmp_path / "run.pt"), None, ["fp32"]) == 4_000
