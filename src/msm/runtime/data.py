"""The data socket: inference, metadata and readiness over REST and gRPC, for the versions this worker holds.

A request is routed by its path, its version chosen by the header `x-msm-target`; then decode → check → submit. Errors
are raised and become answers in the caller's protocol at one place, `refuse`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from google.protobuf.message import Message

import msm
from msm.http.head import headers_known
from msm.http.server import Request, json_answer
from msm.kit.errors import Internal, InvalidInput, MsmError, NotFound, Unavailable, Unsupported
from msm.kit.tasks import Tasks
from msm.runtime import answers
from msm.runtime.answers import Origin
from msm.runtime.asking import Version
from msm.runtime.batching import Outputs
from msm.runtime.engine import Engine, Job
from msm.runtime.openai import OPENAI_PATHS, OpenAiCalls
from msm.runtime.protocols import deadlines, oip_grpc, oip_json, rest_bodies, rest_v1
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols.call import InferenceCall
from msm.runtime.protocols.rest_bodies import Form
from msm.runtime.repository import Repository
from msm.runtime.signature import Signature, Tensor
from msm.runtime.streams import STREAM_INFER, StreamCalls
from msm.runtime.validate import check_inputs, check_wanted

log = logging.getLogger(__name__)

KNOWN_HEADERS: Final = headers_known(
    "x-msm-target", "x-msm-service", "inference-header-content-length", "grpc-timeout", "x-request-timeout", "accept"
)

NAMESPACE: Final = "default"
EXTENSIONS: Final = ("binary_tensor_data", "generate")


class _InferJob(Job):
    """A request that waits for its version."""

    __slots__ = ("call", "request", "source")

    def __init__(self, inputs: dict[str, Any], request: Request, source: Origin, call: InferenceCall) -> None:
        super().__init__(inputs)
        self.request = request
        self.source = source
        self.call = call

    @property
    def abandoned(self) -> bool:
        return self.request.done

    def fail(self, error: MsmError) -> None:
        request = self.request
        request.respond(answers.refusal(error, error_headers(error, self.source), grpc=request.is_grpc))


class RestJob(_InferJob):
    """A request over REST."""

    __slots__ = ()

    def succeed(self, outputs: Outputs) -> None:
        self.request.respond(answers.rest_inference(self.source, self.call, outputs))


class FormJob(_InferJob):
    """A request over REST whose answer has a form of its own."""

    __slots__ = ("form",)

    def __init__(
        self, inputs: dict[str, Any], request: Request, source: Origin, wanted: tuple[InferenceCall, Form]
    ) -> None:
        super().__init__(inputs, request, source, wanted[0])
        self.form = wanted[1]

    def succeed(self, outputs: Outputs) -> None:
        self.request.respond(answers.form_inference(self.source, self.call, outputs, self.form))


class PredictJob(_InferJob):
    """A prediction of KServe v1."""

    __slots__ = ()

    def succeed(self, outputs: Outputs) -> None:
        self.request.respond(answers.v1_prediction(self.source, outputs))


class GrpcJob(_InferJob):
    """A request over gRPC."""

    __slots__ = ()

    def succeed(self, outputs: Outputs) -> None:
        self.request.respond(answers.grpc_inference(self.source, self.call, outputs))


@dataclass(frozen=True, slots=True)
class Route:
    """What a path means: a call and the model and version it names. `method` is the only one allowed."""

    call: str
    method: bytes
    model: str = ""
    version: str = ""


@lru_cache(maxsize=16384)
def route(path: bytes) -> Route | None:
    """The meaning of a request's path, None when it has none."""
    if path.startswith(b"/inference.GRPCInferenceService/"):
        return Route("grpc." + path.rpartition(b"/")[2].decode("latin-1"), b"POST")
    parts = path.partition(b"?")[0].rstrip(b"/").split(b"/")[1:]
    if parts[:2] == [b"v2", b"models"] and len(parts) > 2:
        return _model_route(parts[2:])
    if parts[:2] == [b"v1", b"models"] and len(parts) == 3:
        return _v1_route(parts[2])
    if parts[:1] == [b"v1"] and (openai := OPENAI_PATHS.get(b"/" + b"/".join(parts))) is not None:
        return Route(openai, b"POST")
    calls = {(b"v2",): "server", (b"v2", b"health", b"live"): "live", (b"v2", b"health", b"ready"): "ready"}
    call = calls.get(tuple(parts))
    return None if call is None else Route(call, b"GET")


def _model_route(parts: list[bytes]) -> Route | None:
    model, version = _text(parts[0]), ""
    rest = parts[1:]
    if rest[:1] == [b"versions"] and len(rest) > 1:
        version = _text(rest[1])
        rest = rest[2:]
        if not version:
            return None
    calls = {
        (): ("metadata", b"GET"),
        (b"ready",): ("model_ready", b"GET"),
        (b"infer",): ("infer", b"POST"),
        (b"generate",): ("generate", b"POST"),
        (b"generate_stream",): ("generate_stream", b"POST"),
    }
    found = calls.get(tuple(rest))
    return None if found is None or not model else Route(*found, model, version)


def _v1_route(part: bytes) -> Route | None:
    name = _text(part)
    if name.endswith(":predict"):
        return Route("v1_predict", b"POST", name[:-8]) if name != ":predict" else None
    return Route("v1_ready", b"GET", name) if name else None


def _text(part: bytes) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")


def error_headers(error: MsmError, source: Origin | None) -> bytes:
    """Who refused it, and whether another worker may do better."""
    headers = b"" if source is None else source.headers
    return headers + answers.RETRIABLE if isinstance(error, Unavailable) else headers


class DataApp:
    """Answers the requests of the data socket. `draining` makes it send new ones to another worker."""

    def __init__(self, worker: str, repository: Repository, tasks: Tasks, max_body_bytes: int) -> None:
        self._worker = worker
        self._repository = repository
        self._streams: dict[str, Callable[[Request, Route], None]] = {
            **StreamCalls(self._version, self.refuse, tasks, max_body_bytes).handlers,
            **OpenAiCalls(self._version, self.refuse, tasks).handlers,
        }
        self.draining = False

    def handle(self, request: Request) -> None:
        """Answer a request, now or when its job is done."""
        source: Origin | None = None
        try:
            found = route(request.path)
            if found is None:
                raise _no_path(request)
            if request.method != found.method:
                request.respond(self._wrong_method(request, found))
                return
            if found.call in self._streams and (found.call != STREAM_INFER or request.incoming is not None):
                if found.call in ("generate", "generate_stream"):
                    _only_json(request)
                self._streams[found.call](request, found)
            elif found.call.startswith("grpc."):
                self._grpc(request, found.call[5:])
            elif not found.model:
                self._server(request, found.call)
            else:
                target = self._target(request, found.model, found.version)
                source = answers.origin(target, self._worker)
                if found.call == "infer":
                    self._infer(request, target, source)
                elif found.call == "v1_predict":
                    self._predict(request, target, source)
                else:
                    self._model(request, found.call, target, source)
        except MsmError as error:
            request.respond(self.refuse(request, error, source))

    def refuse(self, request: Request | None, error: MsmError, source: Origin | None = None) -> bytes:
        """The answer to an error, in the protocol of the request."""
        if source is None:
            source = self._source_of(request)
        headers = error_headers(error, source)
        if request is not None and request.path.partition(b"?")[0] in OPENAI_PATHS:
            return answers.openai_refusal(error, headers)
        return answers.refusal(error, headers, grpc=request is not None and request.is_grpc)

    def _source_of(self, request: Request | None) -> Origin | None:
        target = None if request is None else request.headers.get(b"x-msm-target")
        return None if target is None else answers.origin(target.decode("latin-1"), self._worker)

    def _wrong_method(self, request: Request, found: Route) -> bytes:
        method = request.method.decode("latin-1")
        error = InvalidInput(f"method {method[:20]} is not offered here, only {found.method.decode()}")
        error.reason = "method_not_allowed"
        allow = b"allow: %b\r\n" % found.method
        if found.call in OPENAI_PATHS.values():
            return answers.openai_refusal(error, allow, status=405)
        return answers.refusal(error, allow, grpc=request.is_grpc, status=405)

    def _target(self, request: Request, model: str, version: str) -> str:
        """The version a request is for: told by the mesh in a header, else by the caller in the path."""
        told = request.headers.get(b"x-msm-target")
        if told is not None:
            return told.decode("latin-1")
        model = model if "/" in model else f"{NAMESPACE}/{model}"
        if not version:
            return self._repository.newest_of(model) or f"{model}/"
        return f"{model}/{version}"

    def _version(self, request: Request, model: str, version: str) -> Version:
        """The version that a streaming or OpenAI-style call is for. Raises Unavailable when it is not held."""
        target = self._target(request, model, version)
        engine = self._engine(target)
        streams, tasks = self._repository.streams(target), self._repository.tasks(target)
        return Version(answers.origin(target, self._worker), engine, streams, tasks)

    def _engine(self, target: str) -> Engine:
        engine = self._repository.find(target)
        if engine is None or self.draining:
            why = "not on this worker" if engine is None else "on a worker that is stopping"
            raise Unavailable(f"version {target[:200].rstrip('/')} is {why}", reason="not_loaded")
        return engine

    def _infer(self, request: Request, target: str, source: Origin) -> None:
        engine = self._engine(target)
        headers = request.headers
        timeout = _timeout(headers)
        form, answer = _forms(headers)
        if not all(one is None or one.loaded for one in (form, answer)):
            waiting = self._after_import([one for one in (form, answer) if one is not None], (request, target, source))
            request.task = asyncio.get_running_loop().create_task(waiting)
        elif form is None:
            length = headers.get(b"inference-header-content-length")
            call = oip_json.decode(request.body, None if length is None else _header_length(length))
            self._submit(engine, (request, source, call), answer, timeout)
        elif form.in_thread(request.body):
            reading = self._read_in_thread(engine, form, (request, source), answer, timeout)
            request.task = asyncio.get_running_loop().create_task(reading)
        else:
            self._submit(engine, (request, source, form.read(request.body, engine.signature)), answer, timeout)

    async def _after_import(self, forms: list[Form], asked: tuple[Request, str, Origin]) -> None:
        """As `_infer`, when the libraries of `forms` are imported, which must not hold up the event loop."""
        request, _, source = asked
        try:
            for form in forms:
                await asyncio.get_running_loop().run_in_executor(None, form.load)
            self._infer(*asked)
        except MsmError as error:
            request.respond(self.refuse(request, error, source))
        except Exception:
            log.exception("a request could not be handled")
            request.respond(self.refuse(request, Internal("the request could not be handled"), source))

    async def _read_in_thread(
        self, engine: Engine, form: Form, asked: tuple[Request, Origin], answer: Form | None, timeout: float | None
    ) -> None:
        """As `_infer`, for a body that would hold up the event loop. Cancelled when the caller goes."""
        request, source = asked
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            call = await loop.run_in_executor(None, form.read, request.body, engine.signature)
            left = None if timeout is None else max(timeout - (loop.time() - began), 0.0)
            self._submit(engine, (request, source, call), answer, left)
        except MsmError as error:
            request.respond(self.refuse(request, error, source))
        except Exception:
            log.exception("a body could not be read", extra={"target": engine.target})
            request.respond(self.refuse(request, Internal("the body could not be read"), source))

    def _submit(
        self, engine: Engine, asked: tuple[Request, Origin, InferenceCall], answer: Form | None, timeout: float | None
    ) -> None:
        request, source, call = asked
        inputs = self._inputs(engine, call)
        if call.timeout_s is not None and (timeout is None or call.timeout_s < timeout):
            timeout = call.timeout_s
        if answer is None:
            engine.submit(RestJob(inputs, request, source, call), timeout)
        else:
            engine.submit(FormJob(inputs, request, source, (call, answer)), timeout)

    def _predict(self, request: Request, target: str, source: Origin) -> None:
        engine = self._engine(target)
        timeout = _timeout(request.headers)
        if _forms(request.headers)[0] is not None:
            raise Unsupported(
                "predictions of the v1 protocol are asked for in application/json", reason="wrong_content_type"
            )
        call = rest_v1.decode(request.body, engine.signature)
        inputs = self._inputs(engine, call)
        if call.timeout_s is not None:
            timeout = call.timeout_s if timeout is None else min(timeout, call.timeout_s)
        engine.submit(PredictJob(inputs, request, source, call), timeout)

    def _inputs(self, engine: Engine, call: InferenceCall) -> dict[str, Any]:
        signature = engine.signature
        if call.outputs is not None:
            check_wanted(signature, call.outputs)
        return check_inputs(signature, engine.accepts, call.inputs)

    def _server(self, request: Request, call: str) -> None:
        if call == "server":
            server = {"name": "msm", "version": msm.__version__, "extensions": EXTENSIONS}
            request.respond(json_answer(200, server))
        elif call == "live":
            request.respond(json_answer(200, {"live": True}))
        else:
            request.respond(json_answer(503 if self.draining else 200, {"ready": not self.draining}))

    def _model(self, request: Request, call: str, target: str, source: Origin) -> None:
        engine = self._engine(target)
        if call == "metadata":
            request.respond(json_answer(200, self._metadata(target, source, engine.signature), source.headers))
            return
        ready = engine.state == "READY"
        headers = source.headers if ready else source.headers + answers.RETRIABLE
        body: dict[str, Any] = {"name": source.model, "version": source.version, "ready": ready}
        if call == "v1_ready":
            del body["version"]
        request.respond(json_answer(200 if ready else 503, body, headers))

    def _metadata(self, target: str, source: Origin, signature: Signature) -> dict[str, Any]:
        result = self._repository.result(target)
        return {
            "name": source.model,
            "versions": [source.version],
            "platform": "" if result is None else result.format,
            "inputs": [_tensor(tensor) for tensor in signature.inputs],
            "outputs": [_tensor(tensor) for tensor in signature.outputs],
        }

    def _grpc(self, request: Request, call: str) -> None:
        if not request.is_grpc:
            raise Unsupported("gRPC calls need content-type application/grpc", reason="wrong_content_type")
        if call == "ModelInfer":
            self._grpc_infer(request)
        elif call in ("ModelReady", "ModelMetadata"):
            self._grpc_model(request, call)
        elif call == "ModelStreamInfer":  # it is handled before its body came, unless it is no gRPC
            raise Unsupported("ModelStreamInfer needs content-type application/grpc", reason="wrong_content_type")
        elif call in ("ServerLive", "ServerReady", "ServerMetadata"):
            oip_grpc.parse(getattr(pb, f"{call}Request"), request.body)
            request.respond(answers.grpc_message(None, self._server_answer(call).SerializeToString()))
        else:
            raise Unsupported(f"call {call[:100]!r} is not offered", reason="unknown_call")

    def _server_answer(self, call: str) -> Message:
        if call == "ServerLive":
            return pb.ServerLiveResponse(live=True)
        if call == "ServerReady":
            return pb.ServerReadyResponse(ready=not self.draining)
        return pb.ServerMetadataResponse(name="msm", version=msm.__version__, extensions=EXTENSIONS)

    def _grpc_infer(self, request: Request) -> None:
        timeout = _timeout(request.headers)  # what is over already is not even read
        message, raw = oip_grpc.parse_infer(request.body)
        target = self._target(request, message.model_name, message.model_version)
        source = answers.origin(target, self._worker)
        try:
            engine = self._engine(target)
            call = oip_grpc.decode(message, raw)
            if call.timeout_s is not None and (timeout is None or call.timeout_s < timeout):
                timeout = call.timeout_s
            engine.submit(GrpcJob(self._inputs(engine, call), request, source, call), timeout)
        except MsmError as error:
            request.respond(self.refuse(request, error, source))

    def _grpc_model(self, request: Request, call: str) -> None:
        message = oip_grpc.parse(getattr(pb, f"{call}Request"), request.body)
        target = self._target(request, message.name, message.version)
        source = answers.origin(target, self._worker)
        try:
            engine = self._engine(target)
        except MsmError as error:
            request.respond(self.refuse(request, error, source))
            return
        if call == "ModelReady":
            answer: Message = pb.ModelReadyResponse(ready=engine.state == "READY")
        else:
            answer = pb.ModelMetadataResponse(**self._metadata(target, source, engine.signature))
        request.respond(answers.grpc_message(source, answer.SerializeToString()))


def _no_path(request: Request) -> MsmError:
    path = repr(request.path[:100].decode("latin-1"))
    if request.is_grpc:
        return Unsupported(f"call {path} is not offered", reason="unknown_call")
    return NotFound(f"there is no path {path} here", reason="no_such_path")


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _forms(headers: dict[bytes, bytes]) -> tuple[Form | None, Form | None]:
    """The forms of the body and of the answer, None for those of the Open Inference Protocol.

    Raises Unsupported for a body of another type or charset, or one that is compressed.
    """
    form: Form | None = None
    kind = headers.get(b"content-type")
    if kind is not None and kind != b"application/json":
        form = rest_bodies.form_of(kind)
    coding = headers.get(b"content-encoding")
    if coding is not None and coding.lower() != b"identity":
        raise Unsupported(
            f"content-encoding {coding[:50].decode('latin-1')!r} is not offered, send the body as it is",
            reason="wrong_content_encoding",
        )
    length = headers.get(b"inference-header-content-length")
    if length is not None and form in (None, rest_bodies.RAW):
        form = rest_bodies.RAW if length.isdigit() and not length.strip(b"0") else None
    accept = headers.get(b"accept")
    answer = None if accept is None or accept == b"*/*" else rest_bodies.answer_form(accept)
    if form is None and answer is rest_bodies.RAW:
        answer = None  # the binary data extension's own form is chosen in the request
    return form, answer


def _only_json(request: Request) -> None:
    """Raises Unsupported for a body of another form."""
    form, _ = _forms(request.headers)
    if form is not None:
        raise Unsupported("generation takes its inputs as JSON only", reason="wrong_content_type")


def _header_length(text: bytes) -> int:
    if not text.isdigit() or len(text) > 15:
        raise InvalidInput("Inference-Header-Content-Length is not a number of bytes", reason="invalid_header_length")
    return int(text)


def _timeout(headers: dict[bytes, bytes]) -> float | None:
    """Seconds that the caller waits, by the shorter of its headers. Raises DeadlineExceeded when they are over."""
    rpc, own = headers.get(b"grpc-timeout"), headers.get(b"x-request-timeout")
    limit = None if rpc is None else oip_grpc.timeout_s(rpc)
    if own is None:
        return limit
    seconds = deadlines.seconds(own)
    return seconds if limit is None else min(limit, seconds)
