"""What the errors of `msm.kit.errors` are called in HTTP and in gRPC. Pure."""

from __future__ import annotations

from typing import Final

from msm.kit import errors

_STATUS: Final[dict[type[errors.MsmError], tuple[int, int]]] = {
    errors.InputTooLarge: (413, 8),
    errors.InvalidInput: (400, 3),
    errors.Unauthenticated: (401, 16),
    errors.Forbidden: (403, 7),
    errors.NotFound: (404, 5),
    errors.Conflict: (409, 10),
    errors.Unsupported: (415, 12),
    errors.Overloaded: (429, 8),
    errors.Unavailable: (503, 14),
    errors.DeadlineExceeded: (504, 4),
    errors.Internal: (500, 13),
}
PHRASES: Final[dict[int, str]] = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 409: "Conflict", 413: "Content Too Large", 415: "Unsupported Media Type",
    422: "Unprocessable Content", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip


def _lookup(error: errors.MsmError) -> tuple[int, int]:
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return 500, 13


def http_status(error: errors.MsmError) -> int:
    """The HTTP status of an error."""
    return _lookup(error)[0]


def grpc_status(error: errors.MsmError) -> int:
    """The gRPC status code of an error."""
    return _lookup(error)[1]


def retry_after_s(error: errors.MsmError) -> float | None:
    """Seconds after which trying again is worth while, or None."""
    return error.retry_after_s if isinstance(error, errors.Overloaded | errors.Unavailable) else None


def percent_encode(message: str) -> bytes:
    """`grpc-message` for a text: bytes outside of printable ASCII, and '%', as %XX of its UTF-8."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in message.encode("utf-8", "replace")
    )
