"""A missing package is named with the extra that installs it, before an import fails for want of it."""

from __future__ import annotations

import pytest

from fgclip_rt.errors import MissingDependencyError
from fgclip_rt.packages import EXPORT_PACKAGES, missing_packages, require
from helpers import assert_one_sentence


def test_what_is_installed_is_not_missing() -> None:
    assert missing_packages(["numpy", "no_such_package"]) == ["no_such_package"]
    require("export", ["numpy", "PIL"])


def test_the_packages_are_those_of_an_export_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError) as info:
        require("export")
    assert_one_sentence(
        info.value,
        f"this command needs {', '.join(EXPORT_PACKAGES)}, which is not installed",
        "; run pip install 'fgclip-rt[export]'.",
        code="dependency_missing",
    )


def test_a_fault_and_another_remedy_may_be_given() -> None:
    with pytest.raises(MissingDependencyError) as info:
        require("parquet", ["numpy", "no_such_package"], "writing needs {}, which is missing", "write .npz")
    expected = "writing needs no_such_package, which is missing; run pip install 'fgclip-rt[parquet]', or write .npz."
    assert str(info.value) == expected
