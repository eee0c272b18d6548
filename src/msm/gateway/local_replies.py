"""How answers that Envoy makes itself look (pure): in the caller's protocol, with a reason people can use.

REST callers get `{"error": …, "code": …}`, gRPC callers a right grpc-status and the same sentence as grpc-message,
callers of OpenAI-style paths an object `error` with message, type and code.
What the activator, the extraction script and direct responses say is already in that form and is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msm.xds.names import DIALECT_HEADER, OPENAI_DIALECT, SERVICE_HEADER

Json = dict[str, Any]
OURS = ("ext_authz_denied", "lua_response", "direct_response")


@dataclass(frozen=True, slots=True)
class Reply:
    """One kind of answer: when (a CEL condition), the sentence, the code for programs, the gRPC status."""

    when: str
    sentence: str
    code: str
    grpc_status: int

    @property
    def openai_type(self) -> str:
        """The type of the error in OpenAI's form: whether it is the caller's affair."""
        return "server_error" if self.grpc_status in (4, 13, 14) else "invalid_request_error"


def _details(*names: str) -> str:
    return " || ".join(f"response.code_details == '{name}'" for name in names)


# Envoy takes a 5xx of the activator for a broken activator, so those are told as these and told back here.
DISGUISES = {500: 490, 503: 493, 504: 494}


def disguised(status: int) -> int:
    """The status by which the activator tells Envoy of `status`."""
    return DISGUISES.get(status, status)


REPLIES = (
    Reply(_details("route_not_found"), f'model "%REQ({SERVICE_HEADER})%" is not registered', "model_not_found", 5),
    Reply(_details("ext_authz_error"), "the control plane of the mesh cannot be reached", "unavailable", 14),
    Reply("response.code == 413", "the body is larger than the limit", "too_large", 8),
    Reply(_details("no_healthy_upstream"), "no healthy worker holds the model", "unavailable", 14),
    Reply(
        "response.code == 504", "the model did not answer within the time limit of the service", "deadline_exceeded", 4
    ),
    Reply("response.code == 408", "the request did not arrive in time", "deadline_exceeded", 4),
    Reply("response.code == 431", "the headers are larger or more than the limit", "too_large", 8),
    Reply("response.code == 501", "the transfer coding is not supported", "unsupported", 12),
    Reply("response.code == 503", "the process that should answer cannot be reached or broke off", "unavailable", 14),
    Reply("response.code < 500", "the request was refused: %RESPONSE_CODE_DETAILS%", "invalid_input", 3),
    Reply("true", "the gateway failed: %RESPONSE_CODE_DETAILS%", "internal", 13),
)


def local_replies() -> Json:
    """The `local_reply_config` of the connection manager. The first mapper that matches decides."""
    mappers = [*(_undisguised(status, seen) for status, seen in DISGUISES.items()), _as_is()]
    for reply in REPLIES:
        mappers += [_for_grpc(reply), _for_openai(reply), _for_rest(reply)]
    return {"mappers": mappers}


def _condition(expression: str) -> Json:
    kind = "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    return {"extension_filter": {"name": "cel", "typed_config": {"@type": kind, "expression": expression}}}


def _undisguised(status: int, seen: int) -> Json:
    return {
        "filter": _condition(f"response.code == {seen} && ({_details('ext_authz_denied')})"),
        "status_code": status,
    }


def _as_is() -> Json:
    return {"filter": _condition(_details(*OURS))}


def _for_grpc(reply: Reply) -> Json:
    grpc = {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}}
    status = {"key": "grpc-status", "value": str(reply.grpc_status)}
    return {
        "filter": {"and_filter": {"filters": [grpc, _condition(reply.when)]}},
        "headers_to_add": [{"header": status, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        "body_format_override": {"text_format_source": {"inline_string": reply.sentence}},
    }


def _for_openai(reply: Reply) -> Json:
    dialect = {"header_filter": {"header": {"name": DIALECT_HEADER, "string_match": {"exact": OPENAI_DIALECT}}}}
    error = {"message": reply.sentence, "type": reply.openai_type, "param": None, "code": reply.code}
    return {
        "filter": {"and_filter": {"filters": [dialect, _condition(reply.when)]}},
        "body_format_override": {"json_format": {"error": error}, "content_type": "application/json"},
    }


def _for_rest(reply: Reply) -> Json:
    return {
        "filter": _condition(reply.when),
        "body_format_override": {
            "json_format": {"error": reply.sentence, "code": reply.code},
            "content_type": "application/json",
        },
    }
