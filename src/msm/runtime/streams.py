"""Calls of the Open Inference Protocol whose answer is a stream: generate, generate_stream and ModelStreamInfer.

An answer begins with its first step, so that an error before it has its own status; one that comes later is told inside
the stream: as an event `error`, or in the trailers of gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Final, Protocol

from msm.http.head import Head
from msm.http.request import Request
from msm.kit.errors import DeadlineExceeded, InvalidInput, MsmError
from msm.kit.tasks import Tasks
from msm.runtime import answers
from msm.runtime.asking import Find, Version, answered, predict, steps_of
from msm.runtime.batching import Outputs
from msm.runtime.protocols import generate, oip_grpc, oip_stream, sse
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols.call import InferenceCall
from msm.runtime.protocols.tensors import Array
from msm.runtime.validate import check_inputs, check_wanted

STREAM_INFER: Final = "grpc.ModelStreamInfer"
_PATH_END: Final = b"/ModelStreamInfer"
_AHEAD: Final = 32  # requests of one stream that are worked on while an answer is being written


class Named(Protocol):
    """What a path names."""

    @property
    def model(self) -> str: ...

    @property
    def version(self) -> str: ...


Refuse = Callable[[Request, MsmError], bytes]
Handler = Callable[[Request, Named], None]


def comes_in_pieces(head: Head) -> bool:
    """Whether a request is to be handled before its body has come."""
    kind = head.headers.get(b"content-type", b"").lower()
    return head.path.endswith(_PATH_END) and kind.startswith(b"application/grpc")


class StreamCalls:
    """Answers the calls in `handlers`, each in a task of its own."""

    def __init__(self, find: Find, refuse: Refuse, tasks: Tasks, max_message: int) -> None:
        self._find = find
        self._refuse = refuse
        self._tasks = tasks
        self._max_message = max_message
        self.handlers: dict[str, Handler] = {
            "generate": self._generate,
            "generate_stream": self._generate_stream,
            STREAM_INFER: self._stream_infer,
        }

    def _generate(self, request: Request, named: Named) -> None:
        version = self._find(request, named.model, named.version)
        work = _whole(request, version, generate.decode(request.body))
        request.task = self._tasks.start("generate", answered(work, lambda error: self._refused(request, error)))

    def _generate_stream(self, request: Request, named: Named) -> None:
        version = self._find(request, named.model, named.version)
        work = _events(request, version, generate.decode(request.body))

        def failed(error: MsmError) -> None:
            if not request.started:
                self._refused(request, error)
                return
            request.write(sse.event(answers.error_body(error), "error"))
            request.finish()

        request.task = self._tasks.start("generate_stream", answered(work, failed))

    def _refused(self, request: Request, error: MsmError) -> None:
        request.respond(self._refuse(request, error))

    def _stream_infer(self, request: Request, named: Named) -> None:
        told = b"x-msm-target" in request.headers
        version = self._find(request, "", "") if told else None
        # The head goes out now: a caller may wait for it before it sends, and nothing is replayed after it.
        request.start(answers.grpc_stream_head(None if version is None else version.source))

        def failed(error: MsmError) -> None:
            request.finish(answers.grpc_trailers(error))

        call = StreamInfer(request, self._find, self._max_message)
        request.task = self._tasks.start("ModelStreamInfer", answered(call.run(), failed))


async def _whole(request: Request, version: Version, call: generate.GenerateCall) -> None:
    inputs = check_inputs(
        version.engine.signature, version.engine.accepts, generate.to_inputs(version.engine.signature, call)
    )
    async with steps_of(version, inputs, call.timeout_s) as steps:
        found = [outputs async for outputs in steps]
        source = version.source
        body = generate.encode(source.json_prefix, call.id, generate.join(found) if found else {})
        request.respond(answers.json_body(source, body))


async def _events(request: Request, version: Version, call: generate.GenerateCall) -> None:
    inputs = check_inputs(
        version.engine.signature, version.engine.accepts, generate.to_inputs(version.engine.signature, call)
    )
    source = version.source
    async with steps_of(version, inputs, call.timeout_s) as steps:
        async for outputs in steps:
            event = sse.event(generate.encode(source.json_prefix, call.id, outputs))
            if not request.started:
                request.start(answers.event_stream_head(source))
            request.write(event)
            await request.drained()
        if not request.started:
            request.start(answers.event_stream_head(source))
        request.finish()


Frames = AsyncGenerator[bytes, None]


class StreamInfer:
    """One call of ModelStreamInfer.

    Requests are answered in their order. Those that need one run of the model are given to it as they come, so that
    they are batched; those that generate are run one after the other.
    """

    def __init__(self, request: Request, find: Find, max_message: int) -> None:
        self._request = request
        self._find = find
        self._deframer = oip_stream.Deframer(max_message)
        self._service = request.headers.get(b"x-msm-service", b"").decode("latin-1")
        self._pending: asyncio.Queue[Frames | None] = asyncio.Queue(_AHEAD)

    async def run(self) -> None:
        """Read, answer and end the call with its status. Raises MsmError for what ends it early."""
        timeout = self._request.headers.get(b"grpc-timeout")
        try:
            async with (
                asyncio.timeout(None if timeout is None else oip_grpc.timeout_s(timeout)),
                asyncio.TaskGroup() as group,
            ):
                group.create_task(self._read())
                group.create_task(self._write())
        except TimeoutError as error:
            raise DeadlineExceeded("the stream did not end in time") from error
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from several
        self._request.finish(answers.grpc_trailers(None))

    async def _read(self) -> None:
        incoming = self._request.incoming
        assert incoming is not None
        while data := await incoming.read():
            for message in self._deframer.feed(data):
                await self._pending.put(self._begin(oip_stream.parse(message)))
        self._deframer.end()
        await self._pending.put(None)

    async def _write(self) -> None:
        while (frames := await self._pending.get()) is not None:
            async with contextlib.aclosing(frames):
                async for frame in frames:
                    self._request.write(frame)
                    await self._request.drained()

    def _begin(self, message: pb.ModelInferRequest) -> Frames:
        """Start on a request as far as that does not need to wait; what it gives is written later."""
        names = (message.model_name, message.model_version)
        try:
            version = self._find(self._request, message.model_name, message.model_version)
            names = (version.source.model, version.source.version)
            self._check_name(message, version)
            call = oip_grpc.decode(message)
            check_wanted(version.engine.signature, call.outputs or ())
            inputs = check_inputs(version.engine.signature, version.engine.accepts, call.inputs)
            if "generate" in version.tasks:
                return self._steps(version, call, inputs, empty_final=oip_stream.wants_empty_final(message))
            outcome = predict(version.engine, inputs, call.timeout_s)
        except MsmError as error:
            return _failed(names, message.id, error)
        return self._one(version, call, outcome)

    def _check_name(self, message: pb.ModelInferRequest, version: Version) -> None:
        """The mesh has chosen the version by a header before it saw a message, which must name the same service."""
        name = message.model_name
        allowed = {self._service, version.source.model, version.source.model.rpartition("/")[2]}
        if name and name not in allowed and name.partition(":")[0] not in allowed:
            own = self._service or version.source.model
            raise InvalidInput(
                f"the message names model {name[:100]!r}, but the stream is for {own!r}", reason="other_model"
            )

    async def _one(self, version: Version, call: InferenceCall, outcome: asyncio.Future[Outputs]) -> Frames:
        names = (version.source.model, version.source.version)
        try:
            outputs = await outcome
            chosen = outputs if call.outputs is None else answers.choose(call, outputs)
        except MsmError as error:
            yield oip_stream.failure(names, call.id, error)
        else:
            yield oip_stream.response(names, call.id, chosen, last=True)

    async def _steps(
        self, version: Version, call: InferenceCall, inputs: dict[str, Array], *, empty_final: bool
    ) -> Frames:
        names = (version.source.model, version.source.version)
        try:
            async with steps_of(version, inputs, call.timeout_s) as steps:
                async for outputs in steps:
                    chosen = outputs if call.outputs is None else answers.choose(call, outputs)
                    yield oip_stream.response(names, call.id, chosen, last=False)
                if empty_final:
                    yield oip_stream.response(names, call.id, None, last=True)
        except MsmError as error:
            yield oip_stream.failure(names, call.id, error)


async def _failed(names: tuple[str, str], ident: str, error: MsmError) -> Frames:
    yield oip_stream.failure(names, ident, error)
