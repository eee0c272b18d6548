"""The error tree of the mesh.

    MsmError
     ├─ InvalidInput       what the caller sent breaks a rule               (REST 400, gRPC INVALID_ARGUMENT)
     │   └─ InputTooLarge  a body, a tensor or a document over a limit      (413, RESOURCE_EXHAUSTED)
     ├─ Unauthenticated    no token, or a wrong one                         (401, UNAUTHENTICATED)
     ├─ Forbidden          a known caller without the right                 (403, PERMISSION_DENIED)
     ├─ NotFound           no such object; may carry the nearest names      (404, NOT_FOUND)
     ├─ Conflict           the object is not in the state the caller saw    (409, ABORTED)
     ├─ Unsupported        a format, encoding or call that is not offered   (415, UNIMPLEMENTED)
     ├─ Overloaded         a queue or quota is full; try again later        (429, RESOURCE_EXHAUSTED)
     ├─ Unavailable        cannot be done now; try again later              (503, UNAVAILABLE)
     │   └─ LoadFailed     a version could not be loaded; says why          (503, UNAVAILABLE)
     ├─ DeadlineExceeded   it took longer than the caller or a limit allows (504, DEADLINE_EXCEEDED)
     └─ Internal           our mistake; details are in the log              (500, INTERNAL)

The protocol numbers in brackets live where the protocols are spoken (`msm.api`, `msm.gateway`, `msm.runtime`);
an error knows only its `reason`. Messages name the object, the rule and the value, in one sentence, and hold no
paths, process numbers or tracebacks. Inner packages raise these; foreign exceptions are mapped where they enter
and stay as the cause.
"""

from __future__ import annotations

from collections.abc import Sequence


class MsmError(Exception):
    """Root of all errors a caller may see.

    `reason` is a stable snake_case code for programs, `message` one sentence for people.
    """

    reason = "error"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason


class InvalidInput(MsmError):
    """What the caller sent breaks a rule. `problems` lists all of them as (path, sentence) when there are several."""

    reason = "invalid_input"

    def __init__(self, message: str, *, reason: str | None = None, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message, reason=reason)
        self.problems = tuple(problems)


class InputTooLarge(InvalidInput):
    """A body, tensor or document is over a limit; the message names the limit and the size."""

    reason = "too_large"


class Unauthenticated(MsmError):
    """There is no valid token with the call."""

    reason = "unauthenticated"


class Forbidden(MsmError):
    """The caller is known and lacks the right."""

    reason = "forbidden"


class NotFound(MsmError):
    """There is no such object. `nearest` holds names the caller may have meant, best first."""

    reason = "not_found"

    def __init__(self, message: str, *, reason: str | None = None, nearest: Sequence[str] = ()) -> None:
        super().__init__(message, reason=reason)
        self.nearest = tuple(nearest)


class Conflict(MsmError):
    """The object is not in the state the caller assumed (changed meanwhile, still referred to, immutable)."""

    reason = "conflict"


class Unsupported(MsmError):
    """A format, encoding or call that is not offered."""

    reason = "unsupported"


class Overloaded(MsmError):
    """A queue or quota is full. `retry_after_s` is the wait that is worth while."""

    reason = "overloaded"

    def __init__(self, message: str, *, reason: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s


class Unavailable(MsmError):
    """It cannot be done now. `retry_after_s` is the wait that is worth while."""

    reason = "unavailable"

    def __init__(self, message: str, *, reason: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s


class LoadFailed(Unavailable):
    """A model version could not be loaded; the message is the load's own error."""

    reason = "load_failed"


class DeadlineExceeded(MsmError):
    """It took longer than the caller, or a limit, allows."""

    reason = "deadline_exceeded"


class Internal(MsmError):
    """Our mistake. The message says what failed; details are in the log, never in the answer."""

    reason = "internal"
