"""What every answer must keep, whatever was asked: a sentence for the caller and nothing of the inside."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.badinput.cases import Expect
from tests.badinput.wire import CLOSED, Answer

SLOWEST_S = 5.0
MOST_ECHO = 200
MOST_SENTENCE = 1000

_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_INSIDE = {
    "a traceback": re.compile(r"Traceback \(most recent|File \"[^\"]+\", line \d+"),
    "a path of this machine": re.compile(
        r"(?<![\w/.:-])/(?:tmp|root|home|usr|var|run|work|opt|proc|dev|srv|etc)/[\w.-]"
    ),
    "an internal socket": re.compile(r"[\w-]+\.sock\b"),
    "a process number": re.compile(r"(?i)\b(?:pid|process)\b\W{0,3}\d{2,}"),
    "an address in memory": re.compile(r"\b0x[0-9a-f]{8,}\b"),
    "the name of an internal module": re.compile(r"\bmsm(?:_model_\d+|\.(?:runtime|node|gateway|xds|store|api)\.)"),
}


def harmless(answer: Answer, sent: bytes) -> None:
    """(b) no traceback, path, process number or internal name, and no long echo of the input; (c) in time."""
    text = answer.text
    asked = sent[: 1 << 16].decode("utf-8", "replace")
    for what, pattern in _INSIDE.items():
        found = pattern.search(text)
        assert found is None or found.group() in asked, f"the answer holds {what}: {text[:500]}"
    assert answer.took_s <= SLOWEST_S, f"the answer took {answer.took_s:.1f} s"
    if answer.status >= 400:
        assert not _echoes(text, sent.decode("utf-8", "replace")), f"the answer repeats the input: {text[:500]}"


def _echoes(text: str, sent: str) -> bool:
    return any(text[at : at + MOST_ECHO + 1] in sent for at in range(max(0, len(text) - MOST_ECHO)))


def rest_error(answer: Answer) -> dict[str, Any]:
    """The error of a REST answer, in the protocol's form: {"error": sentence, "code": reason}, or OpenAI's."""
    assert (answer.header("content-type") or "").startswith("application/json"), answer.text[:500]
    error = json.loads(answer.body)
    assert isinstance(error, dict), error
    if isinstance(error.get("error"), dict):
        inner = error["error"]
        assert set(error) == {"error"}, error
        assert set(inner) == {"message", "type", "param", "code"}, error
        error = {"error": inner["message"], "code": inner["code"]}
    assert set(error) <= {"error", "code", "request_id"}, error
    sentence, code = error.get("error"), error.get("code")
    assert isinstance(sentence, str), error
    assert 0 < len(sentence) <= MOST_SENTENCE, error
    assert sentence.isprintable(), error
    assert isinstance(code, str), error
    assert _SNAKE.fullmatch(code), error
    return error


def as_expected(answer: Answer, right: Expect) -> None:
    """Status, code and sentence are those of the catalogue."""
    assert answer.status in right.statuses, f"{answer.status}, right is {right.status}: {answer.text[:500]}"
    if answer.status == CLOSED or answer.status < 400:
        return
    error = rest_error(answer)
    if right.codes:
        assert error["code"] in right.codes, error
    if right.message:
        assert re.search(right.message, error["error"], re.DOTALL), f"{right.message!r} is not in {error['error']!r}"
