"""Artifacts of the catalogue (3.7): refused with the reason, harmless, and nobody else's trouble."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.badinput import broken_models, hostile_code, strange_folders
from tests.badinput.cases import ArtifactCase, read
from tests.badinput.checks import MOST_SENTENCE, harmless
from tests.badinput.makers import MARK
from tests.badinput.mesh import JSON, Subject
from tests.badinput.wire import Answer, request

CASES = read("artifacts", ArtifactCase)
MAKERS = hostile_code.MAKERS | broken_models.MAKERS | strange_folders.MAKERS
MEMORY_LIMIT = 64 << 20
SETTLE_S = 90.0


def through(what: str) -> Any:
    cases = [case for case in CASES if what in case.through]
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case.id} {case.title}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every artifact by the name of its generator; each in a folder of its own."""
    root = tmp_path_factory.mktemp("artifacts")
    paths: dict[str, Path] = {}
    for name in sorted({case.make for case in CASES if case.make}):
        (root / name).mkdir()
        folder = root / name / "a"
        folder.mkdir()
        paths[name] = MAKERS[name](folder)
    return paths


def nothing_ran(case: ArtifactCase, made: dict[str, Path]) -> None:
    """No code of the artifact was executed, unless it was trusted."""
    if case.make is not None and not case.trusted:
        assert not (made[case.make].parent / MARK).exists(), "code of the artifact ran"
        assert not (made[case.make] / MARK).exists(), "code of the artifact ran"


def judge(case: ArtifactCase, reason: str | None, message: str | None) -> None:
    """The reason is right, and the message a sentence without paths of this machine."""
    assert reason in case.reasons, f"{reason}, right is {case.reasons}: {message}"
    assert message
    assert len(message) <= MOST_SENTENCE, message
    assert re.search(case.message, message, re.DOTALL), f"{case.message!r} is not in {message!r}"
    harmless(Answer(400, body=message.encode()), case.uri.encode() if case.uri else b"/etc/passwd")


# ---- through the whole mesh


@pytest.fixture(scope="module")
def fates(subject: Subject, made: dict[str, Path]) -> Iterator[dict[str, dict[str, Any]]]:
    """What became of every version, by the id of its case. All are declared at once, and deleted at the end."""
    cases = [case for case in CASES if "mesh" in case.through]
    port = urlsplit(subject.mesh.api).port
    manifests = [_manifest(case, made, port or 0) for case in cases]
    subject.mesh.apply(manifests)
    names = {manifest["metadata"]["name"] for manifest in manifests}
    try:
        yield {name.removeprefix("bad-"): fate for name, fate in _settled(subject, names).items()}
    finally:
        for name in names:
            subject.mesh.call("DELETE", f"/models/default/{name}")


def _manifest(case: ArtifactCase, made: dict[str, Path], port: int) -> dict[str, Any]:
    uri = case.uri.replace("{api}", str(port)) if case.uri else made[case.make or ""].as_uri()
    version: dict[str, Any] = {"name": "v1", "uri": uri, "trusted": case.trusted}
    version |= {key: value for key, value in (("format", case.format), ("digest", case.digest)) if value}
    return {
        "apiVersion": "msm/v1",
        "kind": "Model",
        "metadata": {"name": f"bad-{case.id.lower()}"},
        "spec": {"versions": [version]},
    }


def _settled(subject: Subject, names: set[str]) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + SETTLE_S
    while True:
        fates = {
            item["metadata"]["name"]: ((item.get("status") or {}).get("versions") or {}).get("v1", {})
            for item in subject.mesh.models()
            if item["metadata"]["name"] in names
        }
        waiting = [name for name, fate in fates.items() if fate.get("phase") not in ("Failed", "Valid")]
        if not waiting or time.monotonic() > deadline:
            return fates
        time.sleep(0.1)


@pytest.mark.timeout(180)
@through("mesh")
def test_a_bad_artifact_fails_with_its_reason_in_the_mesh(
    case: ArtifactCase, fates: dict[str, dict[str, Any]], made: dict[str, Path], subject: Subject
):
    fate = fates[case.id.lower()]
    assert fate.get("phase") == "Failed", fate
    judge(case, fate.get("reason"), fate.get("message"))
    nothing_ran(case, made)
    subject.gateway.serves()


# ---- straight to the mesh's probation process, with limits of our own


@through("probation")
def test_a_bad_artifact_fails_with_its_reason_in_probation(case: ArtifactCase, subject: Subject, made: dict[str, Path]):
    spec = {
        "path": str(made[case.make or ""]),
        "format": case.format,
        "trusted": case.trusted,
        "parameters": {},
        "timeout_s": case.timeout_s,
        "memory_limit_bytes": MEMORY_LIMIT,
    }
    with subject.probation.line() as line:
        answer = line.ask(request("POST", "/probe", [JSON], json.dumps(spec).encode()), within_s=60)
    assert answer.status == 422, answer.text[:500]
    told = json.loads(answer.body)
    judge(case, told["reason"], told["error"])
    nothing_ran(case, made)
    subject.gateway.serves()
