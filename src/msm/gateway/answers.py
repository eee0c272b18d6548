"""Errors of the mesh in the words of HTTP and gRPC, for the gateway's own answers (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import orjson

from msm.kit.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InputTooLarge,
    Internal,
    InvalidInput,
    MsmError,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

GRPC_CONTENT = "application/grpc"

# First match wins, so a class stands before its base.
STATUS: tuple[tuple[type[MsmError], int, int], ...] = (
    (InputTooLarge, 413, 8),
    (InvalidInput, 400, 3),
    (Unauthenticated, 401, 16),
    (Forbidden, 403, 7),
    (NotFound, 404, 5),
    (Conflict, 409, 10),
    (Unsupported, 415, 12),
    (Overloaded, 429, 8),
    (DeadlineExceeded, 504, 4),
    (Unavailable, 503, 14),
    (Internal, 500, 13),
)


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error in both protocols: `body` is for REST, `message` for gRPC. `retry_after` is in seconds."""

    http_status: int
    grpc_status: int
    message: str
    body: bytes
    retry_after: str | None


def error_answer(error: MsmError) -> ErrorAnswer:
    """How `error` is told to a caller of either protocol."""
    http, grpc = next(((h, g) for kind, h, g in STATUS if isinstance(error, kind)), (500, 13))
    retry = None
    if isinstance(error, Overloaded | Unavailable):
        retry = str(max(1, math.ceil(error.retry_after_s)))
    body = orjson.dumps({"error": error.message, "code": error.reason}, option=orjson.OPT_APPEND_NEWLINE)
    return ErrorAnswer(http, grpc, error.message, body, retry)


def is_grpc(content_type: str) -> bool:
    """Whether a caller with this content type speaks gRPC."""
    return content_type.startswith(GRPC_CONTENT)


def grpc_message(text: str) -> str:
    """`text` percent-encoded as the header grpc-message wants it."""
    return "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in text.encode("utf-8")
    )
