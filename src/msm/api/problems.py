"""Errors as answers: RFC 9457 problem documents under /api, `{"error": …}` under /v2 and /v1 as those want."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal

import msgspec
from starlette.responses import Response

from msm.http.openai_errors import error_object
from msm.kit import errors
from msm.resources.wire import Fault, ProblemDocument

# The first class an error is an instance of decides.
STATUS: tuple[tuple[type[errors.MsmError], int], ...] = (
    (errors.InputTooLarge, 413),
    (errors.InvalidInput, 400),
    (errors.Unauthenticated, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Unsupported, 415),
    (errors.Overloaded, 429),
    (errors.Unavailable, 503),
    (errors.DeadlineExceeded, 504),
    (errors.MsmError, 500),
)


class MethodNotAllowed(errors.Unsupported):
    """The path exists, the method does not; `allowed` does."""

    reason = "method_not_allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"the method {method} is not offered here; offered are {allowed}")
        self.allowed = allowed


class Misdirected(errors.InvalidInput):
    """The Host header names another server."""

    reason = "misdirected"


def status_of(error: errors.MsmError) -> int:
    """The HTTP status that says what `error` says."""
    match error:
        case MethodNotAllowed():
            return 405
        case Misdirected():
            return 421
        case _:
            return next(status for kind, status in STATUS if isinstance(error, kind))


Form = Literal["problem", "protocol", "openai"]


def problem(error: errors.MsmError, *, form: Form = "problem") -> Response:
    """The answer to a request that failed with `error`: a problem document, or in the form of a protocol."""
    status = status_of(error)
    if form != "problem":
        told = error_object(error) if form == "openai" else {"error": error.message, "code": error.reason}
        body: bytes = msgspec.json.encode(told)
        return Response(body, status, _headers(error), "application/json")
    document = ProblemDocument(
        type=f"urn:msm:problem:{error.reason}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        reason=error.reason,
        errors=_faults(error),
        nearest=error.nearest if isinstance(error, errors.NotFound) else (),
    )
    return Response(msgspec.json.encode(document), status, _headers(error), "application/problem+json")


def _faults(error: errors.MsmError) -> tuple[Fault, ...]:
    problems = error.problems if isinstance(error, errors.InvalidInput) else ()
    return tuple(Fault(path=path, reason=sentence) for path, sentence in problems)


def _headers(error: errors.MsmError) -> Mapping[str, str]:
    headers = {"cache-control": "no-store"}
    match error:
        case errors.Unauthenticated():
            headers["www-authenticate"] = 'Bearer realm="msm"'
        case errors.Overloaded() | errors.Unavailable():
            headers["retry-after"] = str(max(1, round(error.retry_after_s)))
        case MethodNotAllowed():
            headers["allow"] = error.allowed
    return headers
