"""The data socket: inference, metadata and readiness over REST and gRPC, for the versions this worker holds.

A request is routed by its path, its version chosen by the header `x-msm-target`; then decode → check → submit. Errors
are raised and become answers in the caller's protocol at one place, `refuse`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import Message

import msm
from msm.http.head import headers_known
from msm.http.request import Request, json_answer
from msm.kit.errors import InvalidInput, MsmError, NotFound, Unavailable, Unsupported
from msm.kit.tasks import Tasks
from msm.runtime import answers
from msm.runtime.answers import Origin
from msm.runtime.asking import Version
from msm.runtime.engine import Engine
from msm.runtime.inference import Doors, InferenceCalls, only_json
from msm.runtime.jobs import error_headers
from msm.runtime.openai import OPENAI_PATHS, OpenAiCalls
from msm.runtime.paths import Route, route
from msm.runtime.protocols import oip_grpc
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.repository import Repository
from msm.runtime.signature import Signature, Tensor
from msm.runtime.streams import STREAM_INFER, StreamCalls

KNOWN_HEADERS: Final = headers_known(
    "x-msm-target", "x-msm-service", "inference-header-content-length", "grpc-timeout", "x-request-timeout", "accept"
)

NAMESPACE: Final = "default"
EXTENSIONS: Final = ("binary_tensor_data", "generate")


class DataApp:
    """Answers the requests of the data socket. `draining` makes it send new ones to another worker."""

    def __init__(self, worker: str, repository: Repository, tasks: Tasks, max_body_bytes: int) -> None:
        self._worker = worker
        self._repository = repository
        self._streams: dict[str, Callable[[Request, Route], None]] = {
            **StreamCalls(self._version, self.refuse, tasks, max_body_bytes).handlers,
            **OpenAiCalls(self._version, self.refuse, tasks).handlers,
        }
        self._inference = InferenceCalls(Doors(self._target, self._engine, self.refuse, worker))
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
                    only_json(request)
                self._streams[found.call](request, found)
            elif found.call.startswith("grpc."):
                self._grpc(request, found.call[5:])
            elif not found.model:
                self._server(request, found.call)
            else:
                target = self._target(request, found.model, found.version)
                source = answers.origin(target, self._worker)
                if found.call == "infer":
                    self._inference.rest(request, target, source)
                elif found.call == "v1_predict":
                    self._inference.predict(request, target, source)
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
            self._inference.grpc(request)
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
