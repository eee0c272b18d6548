"""Inference requests as raw JSON text, so that a case can break any part of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.badinput.cases import Door, HttpCase, content
from tests.badinput.wire import request

TENSOR = {"name": '"x"', "shape": "[1,4]", "datatype": '"FP32"', "data": "[5.1,3.5,1.4,0.2]"}
TENSORS = {
    "perceptron": TENSOR,
    "every-type": {"name": '"fp32"', "shape": "[2]", "datatype": '"FP32"', "data": "[1,2]"},
    "echo": {"name": '"text"', "shape": "[2]", "datatype": '"BYTES"', "data": '["a","b"]'},
    "naughty": {"name": '"x"', "shape": "[1]", "datatype": '"FP32"', "data": "[0]"},
}


def tensor_text(model: str, changes: dict[str, str | None]) -> str:
    """The valid tensor of a model, changed: None takes a member away, `more` is put in as it stands."""
    members = {**TENSORS[model], **{key: value for key, value in changes.items() if key != "more"}}
    texts = [f'"{key}":{value}' for key, value in members.items() if value is not None]
    if more := changes.get("more"):
        texts.append(more)
    return "{" + ",".join(texts) + "}"


def infer_text(model: str, tensors: Iterable[dict[str, str | None]] = ({},), also: str = "") -> str:
    """An inference request with these tensors, and `also` among its members."""
    inputs = ",".join(tensor_text(model, changes) for changes in tensors)
    return f'{{"inputs":[{inputs}]{"," + also if also else ""}}}'


GOOD = infer_text("perceptron").encode()


def request_of(case: HttpCase, door: Door) -> bytes:
    """The whole request of a case, as it is sent to one of the doors."""
    if case.raw is not None:
        return _with_target(content(case.raw), case, door)
    body, headers = _body(case), dict(_plain_headers(case))
    if case.tail is not None and body is not None:
        headers.setdefault("inference-header-content-length", str(len(body)))
        body += content(case.tail)
    lines = [(name, value) for name, value in headers.items() if name not in case.headers]
    for name, value in case.headers.items():
        values = value if isinstance(value, list) else [value]
        lines += [(name, one) for one in values if one is not None]
    path = case.path or f"/v2/models/{case.model}/infer"
    return _with_target(request(case.method, path, lines, body), case, door)


def _body(case: HttpCase) -> bytes | None:
    if case.body is not None:
        return content(case.body)
    if case.tensors is None and case.tensor is None and not case.also and case.method != "POST":
        return None
    return infer_text(case.model, case.tensors or [case.tensor or {}], case.also).encode()


def _plain_headers(case: HttpCase) -> Iterator[tuple[str, str]]:
    if case.method == "POST":
        yield "content-type", "application/octet-stream" if case.tail is not None else "application/json"


def _with_target(raw: bytes, case: HttpCase, door: Door) -> bytes:
    """At the worker's own door the case says itself what the gateway says otherwise: which version is meant."""
    if door == "gateway":
        return raw
    first, line_end, rest = raw.partition(b"\r\n")
    return b"%b%bx-msm-target: default/%b/v1\r\n%b" % (first, line_end, case.model.encode(), rest)
