"""Serves an application inside the node's own event loop: no signal handlers, no access log, a bounded end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from msm.api.app import Application
from msm.kit.errors import Conflict, InvalidInput, Unavailable
from msm.kit.ports import listener_of

GRACE_S = 2
BACKLOG = 512


class _Server(uvicorn.Server):
    """Leaves signals to the node, which owns the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One listening socket with one application. `run` is the task; its owner cancels it to stop."""

    def __init__(self, application: Application, listener: socket.socket) -> None:
        self._application = application
        self._listener = listener
        config = uvicorn.Config(
            application,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            backlog=BACKLOG,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Server(config)

    @property
    def address(self) -> str:
        """Where it listens: a URL, or the path of the unix socket."""
        name = self._listener.getsockname()
        if isinstance(name, tuple):
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            return f"http://{host}:{name[1]}"
        return str(name)

    async def run(self) -> None:
        """Serve until cancelled; then end streams, let requests finish for two seconds, and close the socket."""
        serving = asyncio.create_task(self._server.serve([self._listener]), name="http server")
        try:
            await asyncio.shield(serving)
        finally:
            self._application.close_streams()
            self._server.should_exit = True
            await asyncio.wait({serving})


def bind_tcp(host: str, port: int) -> socket.socket:
    """A socket bound to the address; port 0 lets the kernel choose. Raises Conflict when it is taken, naming by
    whom, and InvalidInput when the host is none of this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidInput(f"the host {host} cannot be resolved") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} on {host} is taken by {listener_of(port)}; choose another", reason="port_taken"
            ) from error
        if error.errno in (errno.EADDRNOTAVAIL, errno.EACCES):
            raise InvalidInput(f"cannot listen on {host} port {port}: {error.strerror}") from error
        raise Unavailable(f"cannot listen on {host} port {port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def bind_unix(path: Path) -> socket.socket:
    """A unix socket of mode 0600 at `path`; what a dead process left there is removed."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(f"cannot listen on a unix socket of the data directory: {error.strerror}") from error
    listener.setblocking(False)
    return listener
