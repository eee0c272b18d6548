"""OpenAI-style completions, chat completions and embeddings: requests in, answers and chunks out. Pure.

What the request asks for and the worker cannot do (several choices, tools, log probabilities …) is refused by name:
an answer that silently lacks it would be wrong. Members that change nothing (`user`, `metadata` …) are ignored.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
import orjson

from msm.kit.errors import InvalidInput
from msm.runtime.protocols import call
from msm.runtime.protocols.generate import json_object
from msm.runtime.protocols.tensors import Array
from msm.runtime.protocols.text import FinishReason

DONE: Final = b"[DONE]"
MAX_INPUTS: Final = 2048
MAX_STOPS: Final = 16
DEFAULT_COMPLETION_TOKENS: Final = 16  # what the protocol says for completions; a chat has no limit of its own
# Members that would change the answer in a way that is not offered, and the values that change nothing.
_NOT_OFFERED: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,),
    "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,), "tools": ([],), "tool_choice": ("none",),
    "functions": ([],), "function_call": ("none",), "response_format": ({"type": "text"},), "audio": (),
    "modalities": (["text"],), "dimensions": (),
}  # fmt: skip
_ROLES: Final = ("system", "developer", "user", "assistant")
_PLACE: Final = re.compile(r" - at '\$\.([\w.\[\]]+)'")
_MISSING: Final = re.compile(r"missing required field '(\w+)'")
Kind = Literal["completion", "chat"]
T = TypeVar("T")


class BadParameter(InvalidInput):
    """A member of the request is wrong; `param` names it."""

    reason = "invalid_parameter"

    def __init__(self, param: str, message: str, *, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.param = param


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _Sampling(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None


class _Completion(_Sampling, frozen=True, kw_only=True):
    prompt: Any = None


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    content: Any = None


class _Chat(_Sampling, frozen=True, kw_only=True):
    messages: list[_Message]


class _Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    input: Any
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None


class TextCall(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded request for text: `prompt` of a completion, or `messages` of a chat. `model` is the caller's word."""

    kind: Kind
    model: str
    prompt: str = ""
    messages: tuple[dict[str, str], ...] = ()
    stream: bool = False
    include_usage: bool = False
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class EmbeddingsCall(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded request for embeddings of `texts`."""

    model: str
    texts: tuple[str, ...]
    as_base64: bool


class Usage(msgspec.Struct, frozen=True):
    """What a request took, in tokens of the model."""

    prompt_tokens: int
    completion_tokens: int

    def told(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def decode_completion(body: bytes) -> TextCall:
    """A request of `/v1/completions`. Raises InvalidInput."""
    found = _converted(body, _Completion)
    prompt = found.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise BadParameter("prompt", "prompt must be one text; tokens and several prompts are not offered")
    return _text_call(found, "completion", default_tokens=DEFAULT_COMPLETION_TOKENS, prompt=prompt)


def decode_chat(body: bytes) -> TextCall:
    """A request of `/v1/chat/completions`. Raises InvalidInput."""
    found = _converted(body, _Chat)
    if not found.messages:
        raise BadParameter("messages", "messages is empty, at least one is needed")
    messages = tuple(_message(at, message) for at, message in enumerate(found.messages))
    return _text_call(found, "chat", default_tokens=None, messages=messages)


def decode_embeddings(body: bytes) -> EmbeddingsCall:
    """A request of `/v1/embeddings`. Raises InvalidInput."""
    found = _converted(body, _Embeddings)
    texts = [found.input] if isinstance(found.input, str) else found.input
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadParameter("input", "input must be a text or a list of texts; tokens are not offered")
    if len(texts) > MAX_INPUTS:
        raise BadParameter("input", f"input has {len(texts)} texts, at most {MAX_INPUTS} are allowed")
    if not all(texts):
        raise BadParameter("input", "input must not hold an empty text")
    return EmbeddingsCall(model=found.model or "", texts=tuple(texts), as_base64=found.encoding_format == "base64")


def _converted(body: bytes, kind: type[T]) -> T:
    found = json_object(body)
    for name, harmless in _NOT_OFFERED.items():
        value = found.get(name)
        if value is not None and value not in harmless:
            raise BadParameter(name, f"{name} is not offered by this server", reason="unsupported_parameter")
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        text = call.told(str(error).replace("`", "'"))
        place = _PLACE.search(text)
        missing = _MISSING.search(text)
        param = missing[1] if missing else place[1] if place else ""
        raise BadParameter(param, text) from error


def _message(at: int, message: _Message) -> dict[str, str]:
    param = f"messages[{at}]"
    if message.role not in _ROLES:
        raise BadParameter(
            f"{param}.role", f"{param}.role is {call.told(message.role)!r}, offered are {', '.join(_ROLES)}"
        )
    content = message.content
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise BadParameter(f"{param}.content", f"{param}.content must be text; other parts are not offered")
    return {"role": message.role, "content": content}


def _text_call(found: _Sampling, kind: Kind, *, default_tokens: int | None, **asked: Any) -> TextCall:
    stops = [found.stop] if isinstance(found.stop, str) else found.stop or []
    if len(stops) > MAX_STOPS or not all(stops):
        raise BadParameter("stop", f"stop must be at most {MAX_STOPS} texts, none of them empty")
    if found.stream_options is not None and not found.stream:
        raise BadParameter("stream_options", "stream_options is for stream: true only")
    return TextCall(
        kind=kind,
        model=found.model or "",
        stream=found.stream is True,
        include_usage=found.stream_options is not None and found.stream_options.include_usage,
        stop=tuple(stops),
        max_tokens=found.max_completion_tokens or found.max_tokens or default_tokens,
        temperature=found.temperature,
        top_p=found.top_p,
        seed=found.seed,
        **asked,
    )


def text_answer(head: Mapping[str, Any], kind: Kind, text: str, finish: FinishReason, usage: Usage) -> dict[str, Any]:
    """A whole answer. `head` is that of `answer_head`."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
    if kind == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    name = "chat.completion" if kind == "chat" else "text_completion"
    return {**head, "object": name, "choices": [choice], "usage": usage.told()}


def answer_head(ident: str, created: int, model: str) -> dict[str, Any]:
    """What all chunks of one answer have in common. `created` is in seconds since 1970."""
    return {"id": ident, "created": created, "model": model}


class Chunks:
    """The data of the events of one streamed answer."""

    def __init__(self, head: Mapping[str, Any], kind: Kind, *, include_usage: bool) -> None:
        name = "chat.completion.chunk" if kind == "chat" else "text_completion"
        self._head = {**head, "object": name}
        self._chat = kind == "chat"
        self._include_usage = include_usage

    def first(self) -> bytes | None:
        """What comes before any text: who speaks, in a chat."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None) if self._chat else None

    def text(self, piece: str) -> bytes:
        """A piece of the text."""
        return self._chunk({"delta": {"content": piece}} if self._chat else {"text": piece}, None)

    def last(self, finish: FinishReason) -> bytes:
        """Why the text ends."""
        return self._chunk({"delta": {}} if self._chat else {"text": ""}, finish)

    def usage(self, usage: Usage) -> bytes | None:
        """What it took, if that was asked for."""
        return orjson.dumps({**self._head, "choices": [], "usage": usage.told()}) if self._include_usage else None

    def _chunk(self, content: dict[str, Any], finish: FinishReason | None) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        more = {"usage": None} if self._include_usage else {}
        return orjson.dumps({**self._head, "choices": [choice], **more})


def embeddings_answer(model: str, vectors: Array, tokens: int, *, as_base64: bool) -> dict[str, Any]:
    """The answer to an embeddings request: `vectors` has a row of FP32 for each text."""
    rows = np.ascontiguousarray(vectors, "<f4")
    data = [
        {
            "object": "embedding",
            "index": at,
            "embedding": base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist(),
        }
        for at, row in enumerate(rows)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
