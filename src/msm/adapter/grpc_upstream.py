"""gRPC to a server on the loopback, messages as bytes."""

from __future__ import annotations

from typing import Any, Final

from msm.adapter.translate import Names, error_of, scrub
from msm.kit.errors import DeadlineExceeded, InvalidInput, MsmError, Overloaded, Unavailable, Unsupported

_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


class GrpcUpstream:
    """Unary calls to the server at `port`. The library is imported, and the channel opened, by the first of them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._channel: Any = None

    async def call(self, path: str, message: bytes, names: Names) -> bytes:
        """One exchange. Raises our errors for the server's statuses."""
        import grpc

        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", options=_OPTIONS)
        try:
            answer: bytes = await self._channel.unary_unary(path)(message)
        except grpc.aio.AioRpcError as failure:
            raise _error(failure.code().name, failure.details() or "", names) from failure
        return answer

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def _error(code: str, text: str, names: Names) -> MsmError:
    """Our error for a status of gRPC."""
    who, told = f"model {names.model} version {names.version}", scrub(text, names)
    match code:
        case "INVALID_ARGUMENT" | "OUT_OF_RANGE" | "FAILED_PRECONDITION":
            return InvalidInput(f"{who}: {told or 'the request was refused'}", reason="refused_by_server")
        case "NOT_FOUND" | "UNAVAILABLE":
            return Unavailable(f"{who}: {told or 'its server is not ready'}", reason="server_not_ready")
        case "UNIMPLEMENTED":
            return Unsupported(
                f"{who}: {told or 'its server does not offer this call'}", reason="unsupported_by_server"
            )
        case "RESOURCE_EXHAUSTED":
            return Overloaded(f"{who}: {told or 'its server has too much to do'}", reason="server_busy")
        case "DEADLINE_EXCEEDED":
            return DeadlineExceeded(f"{who}: its server took too long")
        case _:
            return error_of(500, text, names)
