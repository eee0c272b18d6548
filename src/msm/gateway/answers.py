"""Errors of the mesh in the words of HTTP and gRPC, for the gateway's own answers (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import orjson

from msm.http.openai_errors import error_object
from msm.http.status import grpc_status, http_status, retry_after_s
from msm.kit.errors import MsmError

GRPC_CONTENT = "application/grpc"


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error in all protocols: `body` is for REST, `message` for gRPC. `retry_after` is in seconds."""

    http_status: int
    grpc_status: int
    message: str
    body: bytes
    retry_after: str | None


def error_answer(error: MsmError, *, openai: bool = False) -> ErrorAnswer:
    """How `error` is told to a caller; REST callers of OpenAI-style paths get it in the form they know."""
    wait = retry_after_s(error)
    retry = None if wait is None else str(max(1, math.ceil(wait)))
    told = error_object(error) if openai else {"error": error.message, "code": error.reason}
    body = orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)
    return ErrorAnswer(http_status(error), grpc_status(error), error.message, body, retry)


def is_grpc(content_type: str) -> bool:
    """Whether a caller with this content type speaks gRPC."""
    return content_type.startswith(GRPC_CONTENT)
