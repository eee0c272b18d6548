"""Inference calls of the data socket, REST of every form and gRPC: decode → check → submit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msm.http.request import Request
from msm.kit.errors import Internal, InvalidInput, MsmError, Unsupported
from msm.runtime import answers
from msm.runtime.answers import Origin
from msm.runtime.engine import Engine
from msm.runtime.jobs import FormJob, GrpcJob, PredictJob, RestJob
from msm.runtime.protocols import deadlines, oip_grpc, oip_json, rest_bodies, rest_v1
from msm.runtime.protocols.call import InferenceCall
from msm.runtime.protocols.rest_bodies import Form
from msm.runtime.validate import check_inputs, check_wanted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Doors:
    """What calls need of the data socket: the version of a request, its engine, the answer to an error, who they are.

    `target_of` takes the model and the version that the caller named; `engine_of` raises Unavailable.
    """

    target_of: Callable[[Request, str, str], str]
    engine_of: Callable[[str], Engine]
    refuse: Callable[[Request | None, MsmError, Origin | None], bytes]
    worker: str


class InferenceCalls:
    """Takes inference requests; each is answered when its job is done. All but `grpc` raise the mistakes of callers."""

    def __init__(self, doors: Doors) -> None:
        self._target_of = doors.target_of
        self._engine_of = doors.engine_of
        self._refuse = doors.refuse
        self._worker = doors.worker

    def rest(self, request: Request, target: str, source: Origin) -> None:
        engine = self._engine_of(target)
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
        """As `rest`, when the libraries of `forms` are imported, which must not hold up the event loop."""
        request, _, source = asked
        try:
            for form in forms:
                await asyncio.get_running_loop().run_in_executor(None, form.load)
            self.rest(*asked)
        except MsmError as error:
            request.respond(self._refuse(request, error, source))
        except Exception:
            log.exception("a request could not be handled")
            request.respond(self._refuse(request, Internal("the request could not be handled"), source))

    async def _read_in_thread(
        self, engine: Engine, form: Form, asked: tuple[Request, Origin], answer: Form | None, timeout: float | None
    ) -> None:
        """As `rest`, for a body that would hold up the event loop. Cancelled when the caller goes."""
        request, source = asked
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            call = await loop.run_in_executor(None, form.read, request.body, engine.signature)
            left = None if timeout is None else max(timeout - (loop.time() - began), 0.0)
            self._submit(engine, (request, source, call), answer, left)
        except MsmError as error:
            request.respond(self._refuse(request, error, source))
        except Exception:
            log.exception("a body could not be read", extra={"target": engine.target})
            request.respond(self._refuse(request, Internal("the body could not be read"), source))

    def _submit(
        self, engine: Engine, asked: tuple[Request, Origin, InferenceCall], answer: Form | None, timeout: float | None
    ) -> None:
        request, source, call = asked
        inputs = _inputs(engine, call)
        if call.timeout_s is not None and (timeout is None or call.timeout_s < timeout):
            timeout = call.timeout_s
        if answer is None:
            engine.submit(RestJob(inputs, request, source, call), timeout)
        else:
            engine.submit(FormJob(inputs, request, source, (call, answer)), timeout)

    def predict(self, request: Request, target: str, source: Origin) -> None:
        engine = self._engine_of(target)
        timeout = _timeout(request.headers)
        if _forms(request.headers)[0] is not None:
            raise Unsupported(
                "predictions of the v1 protocol are asked for in application/json", reason="wrong_content_type"
            )
        call = rest_v1.decode(request.body, engine.signature)
        inputs = _inputs(engine, call)
        if call.timeout_s is not None:
            timeout = call.timeout_s if timeout is None else min(timeout, call.timeout_s)
        engine.submit(PredictJob(inputs, request, source, call), timeout)

    def grpc(self, request: Request) -> None:
        timeout = _timeout(request.headers)  # what is over already is not even read
        message, raw = oip_grpc.parse_infer(request.body)
        target = self._target_of(request, message.model_name, message.model_version)
        source = answers.origin(target, self._worker)
        try:
            engine = self._engine_of(target)
            call = oip_grpc.decode(message, raw)
            if call.timeout_s is not None and (timeout is None or call.timeout_s < timeout):
                timeout = call.timeout_s
            engine.submit(GrpcJob(_inputs(engine, call), request, source, call), timeout)
        except MsmError as error:
            request.respond(self._refuse(request, error, source))


def _inputs(engine: Engine, call: InferenceCall) -> dict[str, Any]:
    signature = engine.signature
    if call.outputs is not None:
        check_wanted(signature, call.outputs)
    return check_inputs(signature, engine.accepts, call.inputs)


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


def only_json(request: Request) -> None:
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
