"""Holds requests for cold versions: Envoy asks here, the activator makes a copy ready, the request goes on.

Envoy's external authorisation call carries the question, one HTTP/1.1 request on a unix socket for each request that is
held. The answer names the endpoint and the target in headers, or is the exact error in the caller's protocol. A client
that hangs up makes Envoy close the connection, which cancels the wait.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

from msm.gateway.answers import ErrorAnswer, error_answer, is_grpc
from msm.gateway.local_replies import disguised
from msm.http.head import headers_known
from msm.http.request import Request, bytes_answer, plain_refusal
from msm.http.server import Listener
from msm.kit.errors import Internal, MsmError
from msm.observe.logs import get_logger
from msm.planning.activation import Activated, ActivationRequest
from msm.xds.names import (
    DIALECT_HEADER,
    ENDPOINT_HEADER,
    OPEN_ENDED_HEADER,
    OPENAI_DIALECT,
    REVISION_HEADER,
    SERVICE_HEADER,
    TARGET_HEADER,
    UNKNOWN_HEADER,
    VERSION_HEADER,
)

__all__ = ["Activated", "ActivationRequest", "ActivationServer", "Activator", "allowed", "denied"]

MARGIN_S = 0.5  # the activator's deadline lies this much before Envoy's, so that its own error is what is told
REMAINING_HEADER = "x-envoy-expected-rq-timeout-ms"  # what Envoy's own limit leaves, also when it asks again
UPSTREAM_TIMEOUT_HEADER = "x-envoy-upstream-rq-timeout-ms"
RETRY_ON_HEADER = "x-envoy-retry-on"
TO_UPSTREAM = (ENDPOINT_HEADER, TARGET_HEADER, UPSTREAM_TIMEOUT_HEADER, RETRY_ON_HEADER)
"""Headers of a permission that go on with the request."""
TO_CLIENT = ("content-type", "grpc-status", "retry-after")
"""Headers of a refusal that the caller gets."""
MOST_BODY: Final = 1024  # the question is asked without the body of the request
_KNOWN: Final = headers_known(
    SERVICE_HEADER, UNKNOWN_HEADER, VERSION_HEADER, REMAINING_HEADER, DIALECT_HEADER, OPEN_ENDED_HEADER
)
log = get_logger("activation")


class Activator(Protocol):
    """Makes versions ready. Both calls raise `msm.kit.errors` and may be cancelled at any time."""

    async def activate(self, request: ActivationRequest) -> Activated:
        """Return once a copy of every version that the request may be sent to is ready and its route is published."""
        ...

    async def rescue(self, target: str, deaths: int) -> str:
        """The socket of a worker that holds `target` and is alive, waiting for one if need be.

        `deaths` counts the workers that died over the request since it was rescued; raises when it must not be sent
        again.
        """
        ...


class ActivationServer:
    """Answers Envoy's questions on the unix socket `path` by an `Activator`. `holding` counts those that wait."""

    def __init__(self, path: Path, activator: Activator, *, hold_s: float, rescue_socket: str | None = None) -> None:
        self._path = path
        self._activator = activator
        self._hold_s = hold_s
        self._rescue_socket = rescue_socket
        self._listener = Listener(self._handle, plain_refusal, MOST_BODY, _KNOWN)
        self._server: asyncio.Server | None = None
        self._checks: set[asyncio.Task[None]] = set()

    @property
    def holding(self) -> int:
        return len(self._checks)

    async def start(self) -> None:
        """Begin to serve. A socket file that a dead process left behind is replaced."""
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._listener.connect, str(self._path), backlog=4096)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """End all waits. Requests that are held stay held: Envoy asks again when a server is back."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._listener.abort()
        for check in self._checks:
            check.cancel()
        if self._checks:
            await asyncio.wait(self._checks)

    def _handle(self, request: Request) -> None:
        request.task = check = asyncio.get_running_loop().create_task(self._check(request))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    async def _check(self, request: Request) -> None:
        question = self._question(request.headers)
        openai = request.headers.get(DIALECT_HEADER.encode()) == OPENAI_DIALECT.encode()
        open_ended = OPEN_ENDED_HEADER.encode() in request.headers
        try:
            activated = await self._activator.activate(question)
            answer = allowed(activated, self._rescue_socket, open_ended=open_ended)
        except MsmError as error:
            answer = denied(error_answer(error, openai=openai), grpc_caller=question.grpc)
        except Exception:
            log.exception("an activation failed", service=question.service)
            broken = Internal(f"activating model {question.service} failed; the log of the node says why")
            answer = denied(error_answer(broken, openai=openai), grpc_caller=question.grpc)
        request.respond(answer)

    def _question(self, headers: dict[bytes, bytes]) -> ActivationRequest:
        def text(name: str) -> str:
            return headers.get(name.encode(), b"").decode("latin-1")

        remaining = text(REMAINING_HEADER)
        deadline = min(self._hold_s, int(remaining) / 1000) if remaining.isdigit() else self._hold_s
        return ActivationRequest(
            service=text(UNKNOWN_HEADER) or text(SERVICE_HEADER),
            version=text(VERSION_HEADER) or None,
            grpc=is_grpc(text("content-type")),
            deadline_s=max(0.0, deadline - MARGIN_S),
        )


@lru_cache(maxsize=1024)
def allowed(activated: Activated, rescue_socket: str | None, *, open_ended: bool = False) -> bytes:
    """The permission to go on, whole: hundreds who waited for one copy get the same."""
    # Envoy tries the endpoints of the list in order, one an attempt: behind the worker stands the rescue proxy.
    sockets = [activated.socket, *([rescue_socket] if rescue_socket else [])]
    headers = {ENDPOINT_HEADER: ",".join(sockets), TARGET_HEADER: activated.target}
    if activated.timeout_s is not None and not open_ended:
        headers[UPSTREAM_TIMEOUT_HEADER] = str(round(activated.timeout_s * 1000))
    if activated.replay:
        headers[RETRY_ON_HEADER] = "reset"
    if activated.revision is not None:
        headers[REVISION_HEADER] = str(activated.revision)
    return bytes_answer(200, b"text/plain", b"", _lines(headers))


def denied(answer: ErrorAnswer, *, grpc_caller: bool) -> bytes:
    """The refusal of a request, whole. Envoy turns the body into grpc-message for a gRPC caller."""
    status = disguised(answer.http_status)
    if grpc_caller:
        return bytes_answer(
            status, b"application/grpc", answer.message.encode(), _lines({"grpc-status": str(answer.grpc_status)})
        )
    wait = {} if answer.retry_after is None else {"retry-after": answer.retry_after}
    return bytes_answer(status, b"application/json", answer.body, _lines(wait))


def _lines(headers: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
