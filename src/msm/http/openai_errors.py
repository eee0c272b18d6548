"""Errors as clients of OpenAI-style calls read them: `{"error": {"message", "type", "param", "code"}}`. Pure."""

from __future__ import annotations

from typing import Any, Final

from msm.http.status import http_status
from msm.kit.errors import MsmError

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


def error_type(status: int) -> str:
    """The type of an error by its HTTP status."""
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")


def error_object(error: MsmError) -> dict[str, Any]:
    """The body of an error's answer. `param` is the error's attribute of that name, if it has one."""
    return {
        "error": {
            "message": error.message,
            "type": error_type(http_status(error)),
            "param": getattr(error, "param", None),
            "code": error.reason,
        }
    }
