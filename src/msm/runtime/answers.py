"""Complete HTTP answers of the data socket, REST and gRPC. Pure: bytes from values, with all that repeats made once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import orjson

from msm.http.openai_errors import error_object
from msm.http.request import json_answer
from msm.http.status import grpc_status, http_status, percent_encode, retry_after_s
from msm.kit.errors import InvalidInput, MsmError
from msm.runtime.batching import Outputs
from msm.runtime.protocols import oip_grpc, oip_json, rest_v1, sse
from msm.runtime.protocols.call import InferenceCall
from msm.runtime.protocols.rest_bodies import RAW, Form
from msm.runtime.protocols.tensors import Array

RETRIABLE = b"x-msm-retriable: true\r\n"
_GRPC = b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n"


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answers: the headers of every answer for a version, and the beginnings of its inference answers."""

    model: str
    version: str
    headers: bytes
    json_head: bytes
    binary_head: bytes
    grpc_head: bytes
    json_prefix: bytes


@lru_cache(maxsize=16384)
def origin(target: str, worker: str) -> Origin:
    """The `Origin` of a target ("namespace/model/version") on a worker."""
    namespace, _, rest = target.partition("/")
    model, _, version = rest.rpartition("/")
    name = model if namespace == "default" else f"{namespace}/{model}"
    headers = f"x-msm-model: {name}\r\nx-msm-version: {version}\r\nx-msm-worker: {worker}\r\n".encode()
    return Origin(
        name,
        version,
        headers,
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + headers + b"content-length: ",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n" + headers,
        _GRPC + headers + b"transfer-encoding: chunked\r\n\r\n",
        oip_json.answer_prefix(name, version),
    )


def rest_inference(source: Origin, call: InferenceCall, outputs: Outputs) -> bytes:
    """The answer to a REST inference request. Raises MsmError when the outputs can't be told in the form asked for."""
    chosen: Mapping[str, tuple[str, Array]] = outputs
    binary: dict[str, bool] | None = None
    if call.outputs is not None:
        chosen = choose(call, outputs)
        binary = {wanted.name: call.binary if wanted.binary is None else wanted.binary for wanted in call.outputs}
    elif call.binary:
        binary = dict.fromkeys(outputs, True)
    text, blobs = oip_json.encode_parts(source.json_prefix, call.id, chosen, binary)
    if not blobs:
        return b"%b%d\r\n\r\n%b" % (source.json_head, len(text), text)
    size = len(text) + sum(map(len, blobs))
    head = b"%binference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n" % (
        source.binary_head, len(text), size,
    )  # fmt: skip
    return b"".join((head, text, *blobs))


def form_inference(source: Origin, call: InferenceCall, outputs: Outputs, form: Form) -> bytes:
    """The answer to an inference request in one of the other forms. Raises MsmError when it can't hold the outputs."""
    chosen = outputs if call.outputs is None else choose(call, outputs)
    body = form.encode(chosen)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b" % (form.media_type.encode(), source.headers)
    if form is RAW:
        head += b"inference-header-content-length: 0\r\n"
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def v1_prediction(source: Origin, outputs: Outputs) -> bytes:
    """The answer to a prediction of KServe v1. Raises MsmError for outputs without a JSON form."""
    body = rest_v1.encode(outputs)
    return b"%b%d\r\n\r\n%b" % (source.json_head, len(body), body)


def grpc_inference(source: Origin, call: InferenceCall, outputs: Outputs) -> bytes:
    """The answer to a ModelInfer call."""
    chosen = outputs if call.outputs is None else choose(call, outputs)
    parts = oip_grpc.encode_parts(source.model, source.version, call.id, chosen)
    size = sum(map(len, parts))
    head = b"%b%x\r\n\0%b" % (source.grpc_head, size + 5, size.to_bytes(4, "big"))
    return b"".join((head, *parts, b"\r\n0\r\ngrpc-status: 0\r\n\r\n"))


def choose(call: InferenceCall, outputs: Outputs) -> Mapping[str, tuple[str, Array]]:
    """The outputs that the call asks for. Raises InvalidInput for one that there is not."""
    wanted = call.outputs or ()
    for output in wanted:
        if output.name not in outputs:
            raise InvalidInput(
                f"there is no output {output.name[:100]!r}, the outputs are {', '.join(outputs)[:200]}",
                reason="unknown_output",
            )
    return {output.name: outputs[output.name] for output in wanted}


def grpc_message(source: Origin | None, message: bytes) -> bytes:
    """One message and status OK in the trailers."""
    head = _GRPC + b"transfer-encoding: chunked\r\n\r\n" if source is None else source.grpc_head
    framed = oip_grpc.frame(message)
    return b"%b%x\r\n%b\r\n0\r\ngrpc-status: 0\r\n\r\n" % (head, len(framed), framed)


def event_stream_head(source: Origin) -> bytes:
    """The beginning of an answer of server-sent events, for `Request.start`."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncache-control: no-store\r\n%b" % (
        sse.CONTENT_TYPE, source.headers,
    )  # fmt: skip


def grpc_stream_head(source: Origin | None) -> bytes:
    """The beginning of an answer of several messages, for `Request.start`; `grpc_trailers` end it."""
    return _GRPC if source is None else _GRPC + source.headers


def grpc_trailers(error: MsmError | None) -> bytes:
    """The status of a call whose answer has begun."""
    if error is None:
        return b"grpc-status: 0\r\n"
    return b"grpc-status: %d\r\ngrpc-message: %b\r\n" % (grpc_status(error), percent_encode(error.message))


def json_body(source: Origin, body: bytes) -> bytes:
    """An answer with a JSON body of a version."""
    return b"%b%d\r\n\r\n%b" % (source.json_head, len(body), body)


def error_body(error: MsmError) -> bytes:
    """An error as REST tells it, for the data of an event."""
    return orjson.dumps({"error": error.message, "code": error.reason})


def openai_refusal(error: MsmError, headers: bytes, status: int | None = None) -> bytes:
    """The answer to an error of an OpenAI-style call. `headers` are whole lines."""
    wait = retry_after_s(error)
    if wait is not None:
        headers += b"retry-after: %d\r\n" % math.ceil(wait)
    return json_answer(status or http_status(error), error_object(error), headers)


def refusal(error: MsmError, headers: bytes, *, grpc: bool, status: int | None = None) -> bytes:
    """The answer to an error: JSON for REST, status and message in the head for gRPC. `headers` are whole lines."""
    wait = retry_after_s(error)
    if wait is not None:
        headers += b"retry-after: %d\r\n" % math.ceil(wait)
    if not grpc:
        body = {"error": error.message, "code": error.reason}
        return json_answer(status or http_status(error), body, headers)
    return b"%b%bgrpc-status: %d\r\ngrpc-message: %b\r\ncontent-length: 0\r\n\r\n" % (
        _GRPC, headers, grpc_status(error), percent_encode(error.message),
    )  # fmt: skip
