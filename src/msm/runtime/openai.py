"""OpenAI-style calls: completions, chat completions and embeddings, for the versions that offer them."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from msm.http.openai_errors import error_object
from msm.http.request import Request, json_answer
from msm.kit.errors import Internal, MsmError
from msm.kit.tasks import Tasks
from msm.runtime import answers
from msm.runtime.asking import Find, Version, answered, predict
from msm.runtime.formats.base import EMBED_INPUT, EMBED_OUTPUT, Cancelled, Steps, TextOptions
from msm.runtime.generation import Stream
from msm.runtime.protocols import openai, sse
from msm.runtime.protocols.call import Sent
from msm.runtime.protocols.tensors import objects
from msm.runtime.protocols.text import TextCutter
from msm.runtime.validate import check_inputs

log = logging.getLogger(__name__)

OPENAI_PATHS: Final = {
    b"/v1/completions": "openai.completions",
    b"/v1/chat/completions": "openai.chat",
    b"/v1/embeddings": "openai.embeddings",
}
Refuse = Callable[[Request, MsmError], bytes]


class OpenAiCalls:
    """Answers the calls in `handlers`, each in a task of its own."""

    def __init__(self, find: Find, refuse: Refuse, tasks: Tasks) -> None:
        self._find = find
        self._refuse = refuse
        self._tasks = tasks
        self.handlers: dict[str, Callable[[Request, Any], None]] = {
            "openai.completions": lambda request, _: self._text(request, openai.decode_completion(request.body)),
            "openai.chat": lambda request, _: self._text(request, openai.decode_chat(request.body)),
            "openai.embeddings": lambda request, _: self._embeddings(request),
        }

    def _text(self, request: Request, call: openai.TextCall) -> None:
        version = self._found(request, call.model, call.kind)
        answer = _TextAnswer(request, version, call)
        self._start(request, call.kind, answer.stream() if call.stream else answer.whole())

    def _embeddings(self, request: Request) -> None:
        call = openai.decode_embeddings(request.body)
        version = self._found(request, call.model, "embed")
        self._start(request, "embeddings", _embed(request, version, call))

    def _found(self, request: Request, model: str, task: str) -> Version:
        name, _, tag = model.partition(":")
        version = self._find(request, name, tag)
        if task not in version.tasks:
            offered = ", ".join(sorted(version.tasks)) or "infer only"
            raise openai.BadParameter(
                "model",
                f"version {version.source.version} of model {version.source.model!r} does not offer {task}: it offers "
                f"{offered}",
                reason="unsupported_task",
            )
        return version

    def _start(self, request: Request, name: str, work: Any) -> None:
        def failed(error: MsmError) -> None:
            if request.started:
                request.write(sse.event(orjson.dumps(error_object(error))))
                request.finish()
            else:
                request.respond(self._refuse(request, error))

        request.task = self._tasks.start(name, answered(work, failed))


class _TextAnswer:
    """One answer of text, as a whole or as a stream."""

    def __init__(self, request: Request, version: Version, call: openai.TextCall) -> None:
        self._request = request
        self._version = version
        self._call = call
        self._cutter = TextCutter(call.stop, call.max_tokens)
        self._prompt_tokens = 0
        prefix = "chatcmpl" if call.kind == "chat" else "cmpl"
        model = call.model or version.source.model
        self._head = openai.answer_head(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model)

    async def whole(self) -> None:
        async with self._texts() as texts:
            text = "".join([piece async for piece in texts])
            finish = self._cutter.finished or "stop"
            body = openai.text_answer(self._head, self._call.kind, text, finish, self._usage())
            self._request.respond(json_answer(200, body, self._version.source.headers))

    async def stream(self) -> None:
        request, call = self._request, self._call
        chunks = openai.Chunks(self._head, call.kind, include_usage=call.include_usage)
        async with self._texts() as texts:
            async for piece in texts:
                self._begin(chunks)
                if piece:
                    request.write(sse.event(chunks.text(piece)))
                    await request.drained()
            self._begin(chunks)
            request.write(sse.event(chunks.last(self._cutter.finished or "stop")))
            usage = chunks.usage(self._usage())
            if usage is not None:
                request.write(sse.event(usage))
            request.write(sse.event(openai.DONE))
            request.finish()

    def _begin(self, chunks: openai.Chunks) -> None:
        """Start the answer, unless it has been."""
        if self._request.started:
            return
        self._request.start(answers.event_stream_head(self._version.source))
        first = chunks.first()
        if first is not None:
            self._request.write(sse.event(first))

    def _usage(self) -> openai.Usage:
        return openai.Usage(self._prompt_tokens, self._cutter.tokens)

    @asynccontextmanager
    async def _texts(self) -> AsyncIterator[AsyncIterator[str]]:
        streams = self._version.streams
        assert streams is not None  # it offers a task that generates
        async with streams.stream(self._asked) as pieces:
            yield self._cut(pieces)

    async def _cut(self, pieces: Stream[Any]) -> AsyncIterator[str]:
        cutter = self._cutter
        async for piece in pieces:
            if not isinstance(piece, str):
                raise Internal(
                    f"the model gave {type(piece).__name__} as a piece of text, which must be text",
                    reason="model_output_invalid",
                )
            yield cutter.push(piece)
            if cutter.finished is not None:
                return
        yield cutter.end()

    def _asked(self, model: Any, cancelled: Cancelled) -> Steps[str]:
        """Called in the thread of the stream."""
        call = self._call
        options = TextOptions(cancelled, call.max_tokens, call.temperature, call.top_p, call.stop, call.seed)
        count = getattr(model, "count_tokens", None)
        if count is not None:
            text = call.prompt if call.kind == "completion" else "\n".join(m["content"] for m in call.messages)
            self._prompt_tokens = count(text) or 0
        if call.kind == "chat":
            return model.chat(call.messages, options)  # type: ignore[no-any-return]
        return model.complete(call.prompt, options)  # type: ignore[no-any-return]


async def _embed(request: Request, version: Version, call: openai.EmbeddingsCall) -> None:
    texts = objects([text.encode("utf-8", "surrogatepass") for text in call.texts])
    engine = version.engine
    inputs = check_inputs(engine.signature, engine.accepts, {EMBED_INPUT: Sent("BYTES", texts)})
    outputs = await predict(engine, inputs, None)
    _, vectors = outputs[EMBED_OUTPUT]
    body = openai.embeddings_answer(call.model or version.source.model, vectors, 0, as_base64=call.as_base64)
    request.respond(json_answer(200, body, version.source.headers))
