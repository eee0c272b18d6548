"""The gRPC server that the node's Envoy asks: routes and activations on one unix socket.

Start it only when the world it serves is complete: a proxy that connects drops what the world doesn't have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import grpc

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_concurrent_streams", 2**31 - 1),
)


class GrpcService(Protocol):
    """A service that can be added to a server."""

    def register(self, server: grpc.aio.Server) -> None: ...


class ControlServer:
    """Serves `services` on the unix socket `path`, readable for this user alone."""

    def __init__(self, path: Path, *services: GrpcService) -> None:
        self._path = path
        self._services = services
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Begin to serve. A socket file that a dead process left behind is replaced."""
        server = grpc.aio.server(options=OPTIONS)
        for service in self._services:
            service.register(server)
        self._path.unlink(missing_ok=True)
        server.add_insecure_port(f"unix:{self._path}")
        self._path.chmod(0o600)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """End all calls. Requests that are held stay held: Envoy asks again when a server is back."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
