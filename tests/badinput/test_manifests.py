"""Manifests of the catalogue (3.6), read by the parser alone and through the API of a running node."""

from __future__ import annotations

import re

import pytest

from msm.kit.errors import InputTooLarge, InvalidInput
from msm.resources.manifest import load
from tests.badinput.cases import ManifestCase, content, read
from tests.badinput.checks import harmless
from tests.badinput.mesh import Subject

CASES = read("manifests", ManifestCase)
Problem = tuple[str, str]


def manifest(case: ManifestCase) -> bytes:
    """The text of a case, or the valid manifest with the case's changes."""
    if case.text is not None:
        return content(case.text)
    metadata = _flow(case.metadata, "name: ")
    version = _flow(case.version, "name: ", "uri: 'file:///m'")
    spec = b"  " + content(case.spec) + b"\n" if case.spec is not None else b""
    return b"apiVersion: msm/v1\nkind: Model\nmetadata: {%b}\nspec:\n  versions: [{%b}]\n%b" % (metadata, version, spec)


def _flow(changes: str | object | None, key: str, *rest: str) -> bytes:
    text = "" if changes is None else content(changes).decode()  # type: ignore[arg-type]
    if text.startswith(key):
        return text.encode()
    valid = "name: m" if not rest else "name: v1"
    return ", ".join([valid, *rest, *([text] if text else [])]).encode()


def assert_told(case: ManifestCase, problems: list[Problem], message: str) -> None:
    """One of the problems is the expected one, with its line; a fault without a place is the message alone."""
    told = [(path, reason) for path, reason in problems if path == case.path] if problems else [("", message)]
    assert told, f"no problem at {case.path}: {problems[:5]}"
    assert any(re.search(case.reason, reason, re.DOTALL) for _, reason in told), told
    if case.line is not None:
        assert any(f"line {case.line}:" in reason for _, reason in told), told


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id} {case.title}")
def test_the_parser_takes_what_is_right_and_tells_what_is_wrong(case: ManifestCase):
    text = manifest(case)
    if case.accepted:
        assert len(load(text)) == 1
        return
    with pytest.raises(InvalidInput) as caught:
        load(text)
    assert isinstance(caught.value, InputTooLarge) is (case.status == 413)
    assert_told(case, list(caught.value.problems), caught.value.message)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id} {case.title}")
def test_the_api_says_the_same_and_changes_nothing(case: ManifestCase, subject: Subject):
    text = manifest(case)
    path = "/apply?dryRun=true" if case.accepted else "/apply"
    answer = subject.api("POST", path, body=text, headers={"content-type": "application/yaml"})
    assert answer.status in ([200] if case.accepted else case.statuses), answer.body[:500]
    if not case.accepted:
        document = subject.problem(answer)
        problems = [(problem["path"], problem["reason"]) for problem in document.get("errors", ())]
        assert_told(case, problems, document["detail"])
        harmless(answer, text)
        assert "hunter2secret" not in answer.text
    subject.is_unchanged()
