"""The examples for Kubernetes name options, paths and metrics that there are. No cluster runs them here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgclip_rt.serving.http.metrics import Metrics
from fgclip_rt.serving.http.settings import PROBES
from tools.docs.commands import load_command

EXAMPLES = Path(__file__).parents[2] / "examples/kubernetes"


def documents(name: str) -> dict[str, Any]:
    """The documents of a file by their kinds."""
    found = yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8"))
    return {document["kind"]: document for document in found}


def test_a_deployment_names_what_the_server_has() -> None:
    found = documents("serve.yaml")
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    name, *arguments = container["args"]
    given = load_command(name).make_context(name, list(arguments)).params
    grace = found["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert given["linger"] + given["drain"] < grace
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} == {"/readyz", "/livez"} <= PROBES
    assert {probe["port"] for probe in probes} == {given["port"], container["ports"][0]["containerPort"]}
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in {each.name for each in Metrics().registry.collect()}
    assert 4 * int(metric["pods"]["target"]["averageValue"]) == given["max_work"]


@pytest.mark.parametrize("index", range(8))
def test_a_job_does_each_part_once(index: int) -> None:
    job = documents("embed-shards.yaml")["Job"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (line,) = container["args"]
    line = line.replace("$((JOB_COMPLETION_INDEX + 1))", str(index + 1))
    program, name, *arguments = shlex.split(line)
    assert program == "fgclip-rt"
    given = load_command(name).make_context(name, arguments).params
    assert given["part"] == f"{index + 1}/{job['completions']}"
