"""Holds requests for cold versions: Envoy asks here, the activator makes a copy ready, the request goes on.

Envoy's external authorisation call carries the question. The answer names the endpoint and the target in headers, or is
the exact error in the caller's protocol. A client that hangs up cancels its call and so its wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from envoy.type.v3 import http_status_pb2
from google.rpc import status_pb2

from msm.gateway.answers import ErrorAnswer, error_answer, is_grpc
from msm.kit.errors import Internal, MsmError
from msm.observe.logs import get_logger
from msm.planning.activation import Activated, ActivationRequest
from msm.xds.names import (
    ENDPOINT_HEADER,
    REVISION_HEADER,
    SERVICE_HEADER,
    TARGET_HEADER,
    UNKNOWN_HEADER,
    VERSION_HEADER,
)

__all__ = ["Activated", "ActivationRequest", "ActivationService", "Activator", "denied"]

SERVICE = "envoy.service.auth.v3.Authorization"
PERMISSION_DENIED = 7
MARGIN_S = 0.5  # the activator's deadline lies this much before Envoy's, so that its own error is what is told
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


class ActivationService:
    """Envoy's `Authorization.Check`, answered by an `Activator`."""

    def __init__(self, activator: Activator, *, hold_s: float, rescue_socket: str | None = None) -> None:
        self._activator = activator
        self._hold_s = hold_s
        self._rescue_socket = rescue_socket
        self.holding = 0

    def register(self, server: grpc.aio.Server) -> None:
        """Add this service to a gRPC server that has not been started yet."""
        handler = grpc.unary_unary_rpc_method_handler(
            self._check,
            request_deserializer=external_auth_pb2.CheckRequest.FromString,
            response_serializer=bytes,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Check": handler}),))

    async def _check(self, request: Any, context: Any) -> bytes:
        question = self._question(request, context)
        self.holding += 1
        try:
            return allowed(await self._activator.activate(question), self._rescue_socket)
        except MsmError as error:
            return denied(error_answer(error), grpc_caller=question.grpc)
        except Exception:
            log.exception("an activation failed", service=question.service)
            broken = Internal(f"activating model {question.service} failed; the log of the node says why")
            return denied(error_answer(broken), grpc_caller=question.grpc)
        finally:
            self.holding -= 1

    def _question(self, request: Any, context: Any) -> ActivationRequest:
        headers = request.attributes.request.http.headers
        remaining = context.time_remaining()
        deadline = self._hold_s if remaining is None else min(self._hold_s, remaining)
        return ActivationRequest(
            service=headers.get(UNKNOWN_HEADER) or headers.get(SERVICE_HEADER, ""),
            version=headers.get(VERSION_HEADER) or None,
            grpc=is_grpc(headers.get("content-type", "")),
            deadline_s=max(0.0, deadline - MARGIN_S),
        )


@lru_cache(maxsize=1024)
def allowed(activated: Activated, rescue_socket: str | None) -> bytes:
    """The permission to go on, serialized: hundreds who waited for one copy get the same."""
    # Envoy tries the endpoints of the list in order, one an attempt: behind the worker stands the rescue proxy.
    sockets = [activated.socket, *([rescue_socket] if rescue_socket else [])]
    headers = [(ENDPOINT_HEADER, ",".join(sockets)), (TARGET_HEADER, activated.target)]
    if activated.timeout_s is not None:
        headers.append(("x-envoy-upstream-rq-timeout-ms", str(round(activated.timeout_s * 1000))))
    if activated.replay:
        headers.append(("x-envoy-retry-on", "reset"))
    answer = [] if activated.revision is None else [(REVISION_HEADER, str(activated.revision))]
    response = external_auth_pb2.CheckResponse(
        status=status_pb2.Status(),
        ok_response=external_auth_pb2.OkHttpResponse(
            headers=_headers(headers), response_headers_to_add=_headers(answer)
        ),
    )
    return bytes(response.SerializeToString())


def denied(answer: ErrorAnswer, *, grpc_caller: bool) -> bytes:
    """The refusal of a request, serialized. Envoy turns the body into grpc-message for a gRPC caller."""
    headers = [("grpc-status", str(answer.grpc_status))] if grpc_caller else [("content-type", "application/json")]
    if answer.retry_after is not None and not grpc_caller:
        headers.append(("retry-after", answer.retry_after))
    body = answer.message if grpc_caller else answer.body.decode()
    response = external_auth_pb2.CheckResponse(
        status=status_pb2.Status(code=PERMISSION_DENIED),
        denied_response=external_auth_pb2.DeniedHttpResponse(
            status=http_status_pb2.HttpStatus(code=answer.http_status), headers=_headers(headers), body=body
        ),
    )
    return bytes(response.SerializeToString())


def _headers(pairs: Iterable[tuple[str, str]]) -> list[Any]:
    overwrite = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    return [
        base_pb2.HeaderValueOption(header={"key": key, "value": value}, append_action=overwrite) for key, value in pairs
    ]
