"""Bodies in and out: limits and types of what comes, JSON of what goes."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from msm.kit.errors import InputTooLarge, InvalidInput, Unsupported
from msm.resources.manifest import MAX_BYTES
from msm.resources.text import shown

JSON = "application/json"
MANIFESTS = frozenset({JSON, "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
T = TypeVar("T")


def answer(value: Any, status: int = 200) -> Response:
    """`value` as JSON; never cached, since it is the state of this moment."""
    return Response(msgspec.json.encode(value), status, {"cache-control": "no-store"}, JSON)


async def read_body(request: Request, allowed: frozenset[str], limit: int = MAX_BYTES) -> bytes:
    """The body, at most `limit` bytes of one of the `allowed` types. Raises Unsupported and InputTooLarge."""
    check_type(request, allowed)
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
    parts = bytearray()
    try:
        async for part in request.stream():
            parts += part
            if len(parts) > limit:
                raise _too_large(limit)
    except ClientDisconnect as gone:
        raise InvalidInput("the body ended early") from gone
    return bytes(parts)


def check_type(request: Request, allowed: frozenset[str]) -> None:
    """Raise Unsupported unless the body is of one of these types, in UTF-8 and not compressed."""
    given = request.headers.getlist("content-type")
    kind, _, parameters = (given[0] if len(given) == 1 else "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() not in allowed or charset not in ("", "charset=utf-8"):
        shown_type = shown(", ".join(given)) if given else "missing"
        raise Unsupported(f"the content-type is {shown_type}; supported are {', '.join(sorted(allowed))} in UTF-8")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Unsupported("compressed bodies are not supported here")


async def read_json(request: Request, declared: type[T], *, default: T | None = None) -> T:
    """The body as a `declared` value; an empty body is `default` when there is one. Raises InvalidInput."""
    if default is not None and request.headers.get("content-length", "") in ("", "0") and not _chunked(request):
        return default
    body = await read_body(request, frozenset({JSON}), 64 * 1024)
    try:
        return msgspec.json.decode(body, type=declared)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not what is needed here: {error}") from error


def _chunked(request: Request) -> bool:
    return "transfer-encoding" in request.headers


def _too_large(limit: int) -> InputTooLarge:
    return InputTooLarge(f"the body is larger than {limit} bytes, the limit here")


def flag(request: Request, name: str) -> bool:
    """A query parameter that is true or false. Raises InvalidInput for anything else."""
    value = request.query_params.get(name, "false")
    if value not in ("true", "false"):
        raise InvalidInput(f"the parameter {name} is {shown(value)}; it is true or false")
    return value == "true"


def number(request: Request, name: str, *, least: int, most: int, default: int | None = None) -> int | None:
    """A query parameter that is a whole number in bounds. Raises InvalidInput for anything else."""
    value = request.query_params.get(name)
    if value is None:
        return default
    parsed = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None
    if parsed is None or not least <= parsed <= most:
        raise InvalidInput(f"the parameter {name} is {shown(value)}; it is a whole number from {least} to {most}")
    return parsed
