"""The data socket of an adapter: inference requests go on to the server that holds their version, answers come back.

The version is chosen by the header `x-msm-target`, as for the built-in worker. REST bodies and gRPC messages are passed
on as bytes; only the names of the model are replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from google.protobuf.message import Message

import msm
from msm.adapter.repository import Held, Repository
from msm.adapter.translate import (
    Names,
    check_request,
    check_shapes,
    error_of,
    error_text,
    rename_answer,
    rename_event,
    rename_request,
)
from msm.adapter.upstream import AWAY, Reply
from msm.http.head import headers_known
from msm.http.request import Request, bytes_answer, json_answer
from msm.kit.errors import DeadlineExceeded, Internal, InvalidInput, MsmError, NotFound, Unavailable, Unsupported
from msm.kit.tasks import Tasks
from msm.runtime import answers
from msm.runtime.blackbox import BlackBox
from msm.runtime.protocols import oip_grpc
from msm.runtime.protocols import oip_pb2 as pb

KNOWN_HEADERS: Final = headers_known("x-msm-target", "inference-header-content-length", "grpc-timeout", "accept")
DEATH_NOTICE_S: Final = 1.0
_PASSED_ON: Final = (b"content-type", b"inference-header-content-length", b"accept")
_OPENAI: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/score",
)
_MODEL_CALLS: Final = {
    "": "GET", "ready": "GET", "stats": "GET", "config": "GET", "infer": "POST", "infer_stream": "POST",
    "generate": "POST", "generate_stream": "POST",
}  # fmt: skip
_NAME, _VERSION = b"\x0a", b"\x12"  # tags of fields 1 and 2, length-delimited


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the server is to get it."""

    method: str
    path: str
    body: bytes
    header_length: int | None = None


class DataApp:
    """Answers the requests of the data socket. `draining` makes it send new ones to another worker."""

    def __init__(self, worker: str, repository: Repository, tasks: Tasks, box: BlackBox, *, openai: bool) -> None:
        self._worker = worker
        self._repository = repository
        self._tasks = tasks
        self._box = box
        self._openai = openai
        self.draining = False

    def handle(self, request: Request) -> None:
        """Answer a request, now or when the server has."""
        try:
            path = request.path.partition(b"?")[0].decode("latin-1").rstrip("/")
            if path in ("/v2", "/v2/health/live", "/v2/health/ready"):
                request.respond(self._server(path))
                return
            held, target = self._held(request)
            if path.startswith("/inference.GRPCInferenceService/"):
                if not request.is_grpc:
                    raise Unsupported("gRPC calls need content-type application/grpc", reason="wrong_content_type")
                work = self._grpc(request, held, path)
            else:
                work = self._rest(request, held, self._call(request, path, held))
            forward = self._tasks.start(f"request for {target}", self._run(request, held, target, work))
            request.task = forward
        except MsmError as error:
            request.respond(self.refuse(request, error))

    def refuse(self, request: Request | None, error: MsmError) -> bytes:
        """The answer to an error, in the protocol of the request."""
        headers = b""
        target = None if request is None else request.headers.get(b"x-msm-target")
        if target is not None:
            headers = answers.origin(target.decode("latin-1"), self._worker).headers
        if isinstance(error, Unavailable):
            headers += answers.RETRIABLE
        return answers.refusal(error, headers, grpc=request is not None and request.is_grpc)

    def _server(self, path: str) -> bytes:
        if path == "/v2":
            return json_answer(200, {"name": "msm", "version": msm.__version__, "extensions": []})
        word = path.rpartition("/")[2]
        return json_answer(503 if self.draining else 200, {word: not self.draining})

    def _held(self, request: Request) -> tuple[Held, str]:
        told = request.headers.get(b"x-msm-target")
        if told is None:
            raise NotFound("the request names no version", reason="no_target")
        target = told.decode("latin-1")
        held = self._repository.find(target)
        if held is None or self.draining:
            why = "not on this worker" if held is None else "on a worker that is stopping"
            raise Unavailable(f"version {target[:200]} is {why}", reason="not_loaded")
        return held, target

    def _call(self, request: Request, path: str, held: Held) -> Call:
        """What to ask the server. Raises NotFound, InvalidInput, Unsupported."""
        method = request.method.decode("latin-1")
        coding = request.headers.get(b"content-encoding", b"identity").lower()
        if coding != b"identity":
            raise Unsupported(
                "compressed bodies are not offered, send the body as it is", reason="wrong_content_encoding"
            )
        if self._openai:
            if path not in _OPENAI:
                raise NotFound(f"there is no path {path[:100]!r} here", reason="no_such_path")
            _check_method(method, "POST")
            return Call(method, path, rename_request(request.body, held.names.inner))
        verb = _verb(path)
        _check_method(method, _MODEL_CALLS[verb])
        length = request.headers.get(b"inference-header-content-length")
        if length is not None and (not length.isdigit() or len(length) > 15):
            raise InvalidInput(
                "Inference-Header-Content-Length is not a number of bytes", reason="invalid_header_length"
            )
        header_length = None if length is None else int(length)
        if verb in ("infer", "infer_stream"):
            check_request(request.body, header_length, held.signature)
        inner = f"/v2/models/{quote(held.names.inner)}" + (f"/{verb}" if verb else "")
        return Call(method, inner, request.body, header_length)

    async def _run(self, request: Request, held: Held, target: str, work: Awaitable[bytes]) -> None:
        """Count, guard and bound a request on its way to the server."""
        loop = asyncio.get_running_loop()
        held.begin()
        slot = self._box.enter_target(target)
        failed = False
        try:
            async with asyncio.timeout(held.timeout_s):
                answer = await work
        except TimeoutError:
            failed = True
            names = held.names
            late = DeadlineExceeded(
                f"model {names.model} version {names.version} did not answer within {held.timeout_s:g} s"
            )
            answer = self.refuse(request, late)
        except MsmError as error:
            failed = not isinstance(error, InvalidInput)
            if error.reason == AWAY:
                # If its end took the connection with it, this process follows, and the black box must tell of this.
                await asyncio.wait([held.placed.server.process.ended], timeout=DEATH_NOTICE_S)
            answer = self.refuse(request, error)
        finally:
            self._box.leave(slot)
            held.end(loop.time(), failed=failed)
        request.respond(answer)

    async def _rest(self, request: Request, held: Held, call: Call) -> bytes:
        headers = b"".join(
            b"%b: %b\r\n" % (name, request.headers[name]) for name in _PASSED_ON if name in request.headers
        )
        reply = await held.placed.server.rest.call(call.method, call.path, call.body, headers)
        if reply.status >= 300:
            raise error_of(reply.status, error_text(reply.body), held.names)
        return self._answer(request, held.names, reply)

    def _answer(self, request: Request, names: Names, reply: Reply) -> bytes:
        """A good answer of the server, with the caller's names."""
        target = request.headers[b"x-msm-target"].decode("latin-1")
        headers = answers.origin(target, self._worker).headers
        kind = reply.headers.get("content-type", "application/json")
        length = reply.headers.get("inference-header-content-length")
        if kind.startswith("text/event-stream"):
            body = b"\n".join(rename_event(line, names) for line in reply.body.split(b"\n"))
        elif length is not None and length.isdigit():
            body, size = rename_answer(reply.body, names, int(length))
            headers += b"inference-header-content-length: %d\r\n" % (size or 0)
        elif not reply.body and request.path.rstrip(b"/").endswith(b"/ready"):
            return json_answer(200, {"name": names.model, "version": names.version, "ready": True}, headers)
        else:
            body, _ = rename_answer(reply.body, names)
        return bytes_answer(reply.status, kind.encode("latin-1"), body, headers)

    async def _grpc(self, request: Request, held: Held, path: str) -> bytes:
        names, server = held.names, held.placed.server
        call = path.rpartition("/")[2]
        if server.grpc is None:
            raise Unsupported(f"the server of model {names.model} speaks REST only", reason="unknown_call")
        if call not in ("ModelInfer", "ModelReady", "ModelMetadata"):
            raise Unsupported(f"call {call[:100]!r} is not offered", reason="unknown_call")
        message = oip_grpc.unframe(request.body)
        if call == "ModelInfer" and held.signature is not None and held.signature.inputs:
            sent = oip_grpc.parse(pb.ModelInferRequest, request.body).inputs
            check_shapes(held.signature, ((item.name, list(item.shape)) for item in sent))
        # Of a scalar field that comes twice the last one counts (protobuf encoding, "Last One Wins"): names are
        # replaced by writing them once more, whatever the size of the tensors. No version: the server's only one.
        message += _field(_NAME, names.inner) + _field(_VERSION, "")
        answer = await server.grpc.call(f"/inference.GRPCInferenceService/{call}", message, names)
        if call == "ModelInfer":
            answer += _field(_NAME, names.model) + _field(_VERSION, names.version)
        elif call == "ModelMetadata":
            answer = _metadata(answer, names).SerializeToString()
        target = request.headers[b"x-msm-target"].decode("latin-1")
        return answers.grpc_message(answers.origin(target, self._worker), answer)


def _verb(path: str) -> str:
    """What is asked of a model: the part of an address after its name and version. Raises NotFound."""
    parts = path.split("/")
    rest = parts[4:] if parts[1:3] == ["v2", "models"] and len(parts) > 3 else ["?"]
    if rest[:1] == ["versions"] and len(rest) > 1:
        rest = rest[2:]
    verb = "/".join(rest)
    if verb not in _MODEL_CALLS:
        raise NotFound(f"there is no path {path[:100]!r} here", reason="no_such_path")
    return verb


def _check_method(method: str, wanted: str) -> None:
    if method != wanted:
        error = InvalidInput(f"method {method[:20]} is not offered here, only {wanted}")
        error.reason = "method_not_allowed"
        raise error


def _field(tag: bytes, text: str) -> bytes:
    value = text.encode()
    if len(value) > 127:
        raise InvalidInput("the name of the model is too long for gRPC", reason="invalid_name")
    return b"%b%c%b" % (tag, len(value), value)


def _metadata(answer: bytes, names: Names) -> Message:
    try:
        found = pb.ModelMetadataResponse.FromString(answer)
    except Exception as error:  # a protobuf library's own error type; the server's message is broken
        raise Internal("its server gave an answer that is not understood", reason="bad_answer") from error
    found.name = names.model
    found.versions[:] = [names.version]
    return found
