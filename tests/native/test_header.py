"""The header: it compiles, and says what the library does."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fgclip_rt.errors import CODES
from fgclip_rt.native.library import STRUCTS, Library
from native.conftest import NATIVE

HEADER = NATIVE / "include/fgclip_rt.h"
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic"]

#: The C type of each Rust type that stands in the signatures.
C_TYPES = {
    "c_char": "char",
    "c_void": "void",
    "f32": "float",
    "f64": "double",
    "i32": "int32_t",
    "u8": "uint8_t",
    "u32": "uint32_t",
    "usize": "size_t",
}


@pytest.fixture(scope="module")
def header() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(("compiler", "standard", "suffix"), [("cc", "c99", "c"), ("c++", "c++11", "cpp")])
def test_it_compiles_pedantically(compiler: str, standard: str, suffix: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    inits = re.findall(r"#define (FGCLIP_(\w+)_INIT)", HEADER.read_text())
    source = tmp_path / f"all.{suffix}"
    uses = "\n".join(f"fgclip_{kind.lower()} use_{kind.lower()} = {init};" for init, kind in inits)
    source.write_text(f"#include <fgclip_rt.h>\n#include <fgclip_rt.h>\n{uses}\n")
    assert len(inits) == 6
    subprocess.run(
        [compiler, f"-std={standard}", *STRICT, f"-I{HEADER.parent}", "-c", source, "-o", tmp_path / "all.o"],
        check=True,
    )


def test_it_declares_what_the_library_exports(header: str, build: Path) -> None:
    declared = set(re.findall(r"\b(fgclip_\w+)\(", header))
    listed = set(re.findall(r"^\s+(fgclip_\w+);", (NATIVE / "fgclip_rt.map").read_text(), re.MULTILINE))
    assert declared == listed
    for file, options in (("libfgclip_rt.so", ["-D"]), ("libfgclip_rt.a", ["-g"])):
        lines = subprocess.run(
            ["nm", "--defined-only", *options, build / file], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        names = {line.split()[-1].split("@")[0] for line in lines if len(line.split()) == 3}
        assert names - {"FGCLIP_RT_1.0"} == declared, file


def test_its_signatures_are_those_of_the_code(header: str) -> None:
    declared = {
        name: ([_c_parameter(part) for part in parameters.split(",") if part.strip() != "void"], result)
        for result, name, parameters in re.findall(r"^([\w ]+\*?) ?\b(fgclip_\w+)\(([^)]*)\);", header, re.MULTILINE)
    }
    code = (NATIVE / "capi/src/lib.rs").read_text()
    plain = re.findall(r'extern "C" fn (fgclip_\w+)\(([^)]*)\)(?: -> ([^{]*))? \{', code)
    guarded = re.findall(r"^    fn (fgclip_\w+)\(([^)]*)\) \{", code, re.MULTILINE)
    expected = {
        name: (_rust_parameters(parameters), _c_type(result.strip()) if result else "void")
        for name, parameters, result in plain
    }
    for name, parameters in guarded:
        expected[name] = ([*_rust_parameters(parameters), "fgclip_error*"], "int32_t")
    declared = {name: (parameters, result.replace(" ", "")) for name, (parameters, result) in declared.items()}
    expected = {name: (parameters, result.replace(" ", "")) for name, (parameters, result) in expected.items()}
    assert declared == expected


def test_its_statuses_are_those_of_the_code_and_of_python(library: Library) -> None:
    macros = dict(re.findall(r"#define FGCLIP_([A-Z_]+) (\d{3})\b", HEADER.read_text()))
    code = (NATIVE / "core/src/error.rs").read_text()
    assert macros == {name.upper(): number for number, name in re.findall(r"= (\d{3}), \"(\w+)\";", code)}
    assert all(library.name(int(number)) == name.lower() for name, number in macros.items())
    assert {name.lower() for name in macros} <= set(CODES)
    assert (library.name(0), library.name(1), library.name(-1)) == ("ok", "unknown", "unknown")


def test_its_structs_are_those_of_the_binding(tmp_path: Path) -> None:
    lines = []
    for name, kind in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines += [f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));' for field, *_ in kind._fields_]
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    body = "\n    ".join(lines)
    source.write_text(
        f"#include <fgclip_rt.h>\n#include <stdio.h>\n\nint main(void) {{\n    {body}\n    return 0;\n}}\n"
    )
    subprocess.run(["cc", "-std=c99", *STRICT, f"-I{HEADER.parent}", source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    expected = {name: ctypes.sizeof(kind) for name, kind in STRUCTS.items()}
    for name, kind in STRUCTS.items():
        expected |= {f"{name}.{field}": getattr(kind, field).offset for field, *_ in kind._fields_}
    assert {name: int(size) for name, size in map(str.split, printed.splitlines())} == expected


def test_its_versions_are_those_of_the_library(library: Library) -> None:
    (version,) = re.findall(r'^version = "(.*)"', (NATIVE / "Cargo.toml").read_text(), re.MULTILINE)
    assert library.c.fgclip_version() == version.encode()
    assert f"#define FGCLIP_ABI_VERSION {library.c.fgclip_abi_version()}\n" in HEADER.read_text()


def _c_parameter(text: str) -> str:
    """The type of a parameter, without its name and spaces."""
    kind = re.sub(r"\b\w+\s*$", "", text.strip())
    return re.sub(r"\s+", "", kind)


def _rust_parameters(text: str) -> list[str]:
    kinds = [part.split(":", 1)[1].strip() for part in text.split(",") if ":" in part]
    return [re.sub(r"\s+", "", _c_type(kind)) for kind in kinds]


def _c_type(kind: str) -> str:
    """The C spelling of a Rust type: ``*const *const c_char`` is ``const char *const *``."""
    if kind.startswith("*const *const "):
        return f"const {_c_type(kind.removeprefix('*const *const '))} *const *"
    if kind.startswith("*mut *const "):
        return f"const {_c_type(kind.removeprefix('*mut *const '))} **"
    if kind.startswith("*mut "):
        return f"{_c_type(kind.removeprefix('*mut '))} *"
    if kind.startswith("*const "):
        return f"const {_c_type(kind.removeprefix('*const '))} *"
    return C_TYPES.get(kind, kind)
