"""The node's API of the catalogue (3.8): clear problem documents, and nothing changed."""

from __future__ import annotations

import re

import pytest

from tests.badinput.cases import AdminCase, content, read
from tests.badinput.checks import harmless, rest_error
from tests.badinput.mesh import Subject
from tests.badinput.wire import Answer

CASES = read("admin", AdminCase)


def send(case: AdminCase, subject: Subject) -> Answer:
    body = None if case.body is None else content(case.body)
    return subject.api(
        case.method, case.path, body=body, headers=case.headers, token=case.token, through_gateway=case.gateway
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id} {case.title}")
def test_a_bad_call_is_refused_with_its_problem_and_changes_nothing(case: AdminCase, subject: Subject):
    answer = send(case, subject)
    assert answer.status in case.statuses, f"{answer.status}, right is {case.status}: {answer.text[:500]}"
    for name, pattern in case.answer.items():
        assert re.search(pattern, answer.header(name) or ""), f"{name}: {answer.text[:500]}"
    if answer.status >= 400:
        code, sentence = told(case, answer)
        assert not case.codes or code in case.codes, answer.text
        assert re.search(case.message, sentence, re.DOTALL), f"{case.message!r} is not in {sentence!r}"
        harmless(answer, b"" if case.body is None else content(case.body) + case.path.encode())
    subject.is_unchanged()


def told(case: AdminCase, answer: Answer) -> tuple[str, str]:
    """Code and sentence of an error, in the form that the path wants."""
    if case.path.startswith("//v2/") or case.gateway:
        error = rest_error(answer)
        return error["code"], error["error"]
    document = Subject.problem(answer)
    return document["reason"], document["detail"]


def test_every_wrong_token_gets_the_same_text(subject: Subject):
    single = [case for case in CASES if case.id.startswith("D1") and case.status == 401 and case.id != "D1j"]
    texts = {send(case, subject).body for case in single if not case.path.startswith("//")}
    assert len(texts) == 1, texts


def test_the_hundred_and_first_stream_is_refused(subject: Subject):
    with subject.streams("/watch", 100) as opened:
        assert [answer.status for answer in opened] == [200] * 100
        answer = subject.api("GET", "/watch")
        assert answer.status == 429, answer.text
        assert int(answer.header("retry-after") or 0) > 0
        subject.gateway.serves()


def test_the_page_runs_no_script_that_a_name_could_carry(subject: Subject):
    answer = subject.api("GET", "//", token=None)
    assert answer.status == 200
    policy = answer.header("content-security-policy") or ""
    assert "default-src 'none'" in policy or "default-src 'self'" in policy
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")
    assert "unsafe-eval" not in policy
