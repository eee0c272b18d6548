from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.adapter.spec import server_name
from msm.adapter.translate import (
    Names,
    check_request,
    check_shapes,
    error_of,
    error_text,
    rename_answer,
    rename_event,
    rename_request,
    scrub,
)
from msm.kit.errors import Internal, InvalidInput, MsmError, NotFound, Overloaded, Unavailable
from msm.runtime.signature import Signature, Tensor

NAMES = Names("iris-v1-0a1b2c3d", "iris", "v1")
TRACEBACK = """Traceback (most recent call last):
  File "/opt/lib/python3.11/site-packages/server.py", line 3, in predict
    raise ValueError(
ValueError: X has 3 features, but 4 are expected, see /opt/models/iris-v1-0a1b2c3d/model.joblib
"""


def test_the_last_line_of_a_traceback_is_told_without_paths_and_inner_names() -> None:
    assert scrub(TRACEBACK, NAMES) == "ValueError: X has 3 features, but 4 are expected, see model.joblib"


def test_an_exception_about_values_is_the_callers_mistake_and_others_are_not() -> None:
    assert isinstance(error_of(500, TRACEBACK, NAMES), InvalidInput)
    failed = error_of(500, TRACEBACK.replace("ValueError", "RuntimeError"), NAMES)
    assert isinstance(failed, Internal)
    assert "Traceback" not in failed.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidInput), (422, InvalidInput), (404, NotFound), (429, Overloaded), (503, Unavailable)],
)
def test_statuses(status: int, kind: type[MsmError]) -> None:
    assert type(error_of(status, "no", NAMES)) is kind


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": "no such input"}', "no such input"),
        (b'{"error": {"message": "too long", "code": 3}}', "too long"),
        (b'{"detail": [{"loc": ["body", "inputs"], "msg": "is no list"}]}', "inputs: is no list"),
        (b"plain words", "plain words"),
        (b"[]", ""),
        (b"\xff", "\ufffd"),
    ],
)
def test_where_servers_put_their_words(body: bytes, text: str) -> None:
    assert error_text(body) == text


@given(st.binary(max_size=200))
def test_any_answer_of_a_server_becomes_one_of_our_errors(body: bytes) -> None:
    error = error_of(500, error_text(body), NAMES)
    assert isinstance(error, MsmError)
    assert error.message.isprintable()


@given(st.binary(max_size=200))
def test_an_answer_that_is_no_object_is_left_alone(body: bytes) -> None:
    renamed, _ = rename_answer(body, NAMES)
    try:
        known = isinstance(msgspec.json.decode(body), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        known = False
    assert known or renamed == body


def test_names_in_answers() -> None:
    inference = b'{"model_name":"iris-v1-0a1b2c3d","model_version":"1","outputs":[{"name":"y","data":[1.50]}]}'
    renamed, _ = rename_answer(inference, NAMES)
    assert b'"data":[1.50]' in renamed  # numbers are passed on as they were written
    assert msgspec.json.decode(renamed)["model_name"] == "iris"
    assert msgspec.json.decode(renamed)["model_version"] == "v1"
    metadata, _ = rename_answer(b'{"name":"iris-v1-0a1b2c3d","versions":["1"]}', NAMES)
    assert msgspec.json.decode(metadata) == {"name": "iris", "versions": ["v1"]}
    chat, _ = rename_answer(b'{"model":"inner","choices":[]}', NAMES)
    assert msgspec.json.decode(chat)["model"] == "iris"


def test_binary_data_after_the_json_part_stays() -> None:
    head = b'{"model_name":"inner","outputs":[]}'
    body, length = rename_answer(head + b"\0\1\2", NAMES, len(head))
    assert length is not None
    assert body[length:] == b"\0\1\2"
    assert msgspec.json.decode(body[:length])["model_name"] == "iris"


def test_events_of_a_stream() -> None:
    assert rename_event(b'data: {"model":"inner"}', NAMES) == b'data: {"model":"iris"}'
    for line in (b"data: [DONE]", b"event: x", b""):
        assert rename_event(line, NAMES) == line


def test_requests() -> None:
    assert msgspec.json.decode(rename_request(b'{"model":"iris","n":1}', "inner")) == {"model": "inner", "n": 1}
    for body in (b"", b"[]", b"{", b"\xff", b'{"inputs": {}}', b"{}"):
        with pytest.raises(InvalidInput):
            check_request(body, None)
    check_request(b'{"inputs": []}\0\0', 14)
    with pytest.raises(InvalidInput, match="has 14 bytes"):
        check_request(b'{"inputs": []}', 15)


def test_a_signature_tells_whose_mistake_it_is() -> None:
    signature = Signature((Tensor("x", "FP32", (-1, 4)), Tensor("z", "FP32", (1,), optional=True)))
    check_shapes(signature, [("x", (2, 4))])
    for sent, part in (([("x", (2, 3))], "has shape"), ([("y", (2, 4))], "no input 'y'"), ([], "'x' is missing")):
        with pytest.raises(InvalidInput, match=part):
            check_shapes(signature, sent)
    with pytest.raises(InvalidInput, match="needs a name and a shape"):
        check_request(b'{"inputs": [{"name": 3}]}', None, signature)


@given(st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True), min_size=3, max_size=3), st.data())
def test_different_versions_have_different_names_inside_a_server(parts: list[str], data: st.DataObject) -> None:
    name = server_name("/".join(parts))
    assert name == server_name("/".join(parts))
    assert "/" not in name
    assert "." not in name
    other = data.draw(st.permutations(parts))
    if other != parts:
        assert server_name("/".join(other)) != name
