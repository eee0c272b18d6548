"""Names and errors between our side and a server's, as bytes to bytes. Pure.

Inside a server a version has another name (`msm.adapter.spec.server_name`); callers must not see it, nor the server's
tracebacks and paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from msm.kit.errors import Internal, InvalidInput, MsmError, NotFound, Overloaded, Unavailable, Unsupported
from msm.runtime.signature import Signature

_MOST_TEXT: Final = 500
_PATH: Final = re.compile(r"(?<![\w.:/])/(?:[^\s/'\":,;()]+/)+([^\s/'\":,;()]*)")
_EXCEPTION: Final = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Za-z_]\w*(?:Error|Exception|Warning)): ?(.*)$")
# What Python code raises about values that it was given: the caller's mistake as far as anybody can tell.
_ABOUT_INPUT: Final = frozenset({"ValueError", "TypeError", "KeyError", "IndexError", "ValidationError"})
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Names(msgspec.Struct, frozen=True):
    """One version: `inner` is its name in the server, `model` and `version` are what callers know."""

    inner: str
    model: str
    version: str


def _object(body: bytes | memoryview) -> dict[str, msgspec.Raw]:
    try:
        return _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("the body is not a JSON object", reason="invalid_json") from error


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]


class _Inputs(msgspec.Struct, frozen=True):
    inputs: tuple[_Input, ...]


def check_shapes(signature: Signature, inputs: Iterable[tuple[str, Sequence[int]]]) -> None:
    """Whether what is sent has the names and shapes of a signature: not every server can tell a caller's mistake from
    its own. Raises InvalidInput."""
    known = {tensor.name: tensor for tensor in signature.inputs}
    sent = dict(inputs)
    for name, shape in sent.items():
        tensor = known.get(name)
        if tensor is None:
            raise InvalidInput(
                f"there is no input {name[:100]!r}, the inputs are {', '.join(known)}", reason="unknown_input"
            )
        if not tensor.allows(tuple(shape)):
            raise InvalidInput(
                f"input {name!r} has shape {list(shape)[:16]}, the model takes {list(tensor.shape)}",
                reason="wrong_shape",
            )
    missing = [name for name, tensor in known.items() if name not in sent and not tensor.optional]
    if missing:
        raise InvalidInput(f"input {missing[0]!r} is missing", reason="missing_input")


def check_request(body: bytes, header_length: int | None, signature: Signature | None = None) -> None:
    """Refuse what no server could understand: a body whose JSON part is not an object with `inputs`; with a
    `signature` also what does not have its names and shapes. Raises InvalidInput.
    """
    if header_length is not None and header_length > len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes",
            reason="invalid_header_length",
        )
    part = memoryview(body)[:header_length] if header_length is not None else body
    found = _object(part)
    if bytes(found.get("inputs", b""))[:1] != b"[":
        raise InvalidInput("inputs is missing or not a list", reason="invalid_inputs")
    if signature is not None and signature.inputs:
        try:
            sent = msgspec.json.decode(part, type=_Inputs).inputs
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(
                "each input needs a name and a shape of whole numbers", reason="invalid_inputs"
            ) from error
        check_shapes(signature, ((item.name, item.shape) for item in sent))


def rename_request(body: bytes, inner: str) -> bytes:
    """An OpenAI-style request with the server's own name of the model. Raises InvalidInput."""
    found: dict[str, Any] = dict(_object(body))
    found["model"] = inner
    return msgspec.json.encode(found)


def rename_answer(body: bytes, names: Names, header_length: int | None = None) -> tuple[bytes, int | None]:
    """An answer with the caller's names, and the new length of its JSON part when binary data follows.

    Of OpenAI-style answers `model` is renamed, of the others what they hold of `model_name` and `model_version`, or of
    `name` and `versions`. What is not a JSON object stays as it is.
    """
    head, tail = (body, b"") if header_length is None else (body[:header_length], body[header_length:])
    try:
        found: dict[str, Any] = dict(_OBJECT.decode(head))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body, header_length
    if "model_name" in found or ("outputs" in found and "model" not in found and "name" not in found):
        found["model_name"], found["model_version"] = names.model, names.version
    elif "name" in found:
        found["name"] = names.model
        if "versions" in found:
            found["versions"] = [names.version]
    elif "model" in found:
        found["model"] = names.model
    renamed = msgspec.json.encode(found)
    return renamed + tail, None if header_length is None else len(renamed)


def rename_event(line: bytes, names: Names) -> bytes:
    """One line of a stream of server-sent events with the caller's names."""
    if not line.startswith(b"data:"):
        return line
    content = line[5:].strip()
    renamed, _ = rename_answer(content, names)
    return line if renamed is content else b"data: " + renamed


def scrub(text: str, names: Names | None = None) -> str:
    """A server's words for people: of a traceback its last line, no paths but their last parts, our names."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    if not lines:
        return ""
    if lines[0].startswith("Traceback") or any(line.startswith("Traceback (") for line in lines):
        told = [line for line in lines if _EXCEPTION.match(line)] or lines[-1:]
        lines = told[-1:]
    told_text = " ".join(lines)
    if names is not None:
        told_text = told_text.replace(names.inner, names.model)
    told_text = _PATH.sub(lambda found: found[1] or "a folder", told_text)
    told_text = "".join(char if char.isprintable() else " " for char in told_text)
    return told_text if len(told_text) <= _MOST_TEXT else told_text[: _MOST_TEXT - 1] + "…"


def error_text(body: bytes) -> str:
    """The sentence in a server's error answer: of `{"error"}`, `{"detail"}`, `{"message"}`, or the whole text."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[: 1 << 16].decode("utf-8", "replace")
    for key in ("error", "detail", "message"):
        value = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, list):
            value = "; ".join(_fault(item) for item in value[:5])
        if isinstance(value, str) and value:
            return value
    return ""


def _fault(item: Any) -> str:
    """One fault of a validation error as FastAPI lists them."""
    if not isinstance(item, dict):
        return str(item)
    place = ".".join(str(part) for part in item.get("loc", ()) if part != "body")
    return f"{place}: {item.get('msg', 'it is wrong')}"


def error_of(status: int, text: str, names: Names) -> MsmError:
    """Our error for a server's refusal of an inference request."""
    told = scrub(text, names)
    exception = _EXCEPTION.match(told)
    about_input = exception is not None and exception[1] in _ABOUT_INPUT
    who = f"model {names.model} version {names.version}"
    if status in (400, 413, 422) or (status >= 500 and about_input):
        return InvalidInput(f"{who}: {told or 'the request was refused'}", reason="refused_by_server")
    if status == 404:
        return NotFound(f"{who}: {told or 'its server does not offer this call'}", reason="no_such_path")
    if status in (405, 415, 501):
        return Unsupported(f"{who}: {told or 'its server does not offer this call'}", reason="unsupported_by_server")
    if status == 429:
        return Overloaded(f"{who}: {told or 'its server has too much to do'}", reason="server_busy")
    if status == 503:
        return Unavailable(f"{who}: {told or 'its server is not ready'}", reason="server_not_ready")
    return Internal(f"{who} failed: {told or f'its server answered with status {status}'}", reason="server_error")
