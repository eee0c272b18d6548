"""Where versions are put: one server that holds many (`SharedServer`), or a server for each (`OwnServers`)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

import msgspec

from msm.adapter import layout
from msm.adapter.grpc_upstream import GrpcUpstream
from msm.adapter.processes import ServerProcess, argv_and_env, free_ports
from msm.adapter.spec import ServerSpec, server_name
from msm.adapter.translate import Names, error_text, scrub
from msm.adapter.upstream import Reply, Upstream
from msm.kit.errors import LoadFailed, MsmError, Unavailable
from msm.runtime.repository import LoadSpec

log = logging.getLogger(__name__)

POLL_S: Final = 0.05
UNLOAD_S: Final = 15.0
LEAST_BYTES: Final = 64 * 1024
MOST_DEATHS: Final = 5
DEATHS_WITHIN_S: Final = 600.0
_JSON: Final = b"content-type: application/json\r\n"
_FREE_MARGIN: Final = 3  # ports for one server: HTTP, gRPC, metrics


class _IndexEntry(msgspec.Struct, frozen=True):
    """A model in a server's index."""

    name: str
    state: str = ""


@dataclass(slots=True)
class Server:
    """A running server and the ways to it."""

    process: ServerProcess
    rest: Upstream
    grpc: GrpcUpstream | None

    async def close(self) -> None:
        self.rest.close()
        if self.grpc is not None:
            await self.grpc.close()
        await self.process.stop()


@dataclass(frozen=True, slots=True)
class Placed:
    """A version in a server: its name there, what it costs and what the server says of it."""

    server: Server
    inner: str
    memory_bytes: int
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Host(Protocol):
    """Puts versions into servers. `on_end(targets)` hears of servers that ended by themselves."""

    async def start(self) -> None: ...
    async def load(self, target: str, order: LoadSpec) -> Placed: ...
    async def unload(self, target: str, placed: Placed) -> None: ...
    async def stop(self) -> None: ...
    def memory_bytes(self) -> int: ...


async def start_server(spec: ServerSpec, work: Path, values: Mapping[str, str], record: str) -> Server:
    """Start a server and wait until it can be used. Raises LoadFailed when it does not get there."""
    http, grpc, metrics = free_ports(_FREE_MARGIN)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    argv, env = argv_and_env(spec, {**values, **{name: str(port) for name, port in ports.items()}})
    try:
        process = await ServerProcess.start(argv, env, ports, work / f"{record}.pid")
    except OSError as error:
        raise LoadFailed(f"{Path(argv[0]).name} cannot be started: {error.strerror}", reason="not_started") from error
    server = Server(process, Upstream(http), GrpcUpstream(grpc) if spec.speaks_grpc else None)
    try:
        async with asyncio.timeout(spec.startup_seconds):
            await _until_ready(server, spec.readiness_path)
    except (TimeoutError, asyncio.CancelledError, LoadFailed) as error:
        await server.close()
        if isinstance(error, TimeoutError):
            raise LoadFailed(f"the server was not ready within {spec.startup_seconds:g} s", reason="timeout") from error
        raise
    return server


async def _until_ready(server: Server, path: str) -> None:
    while True:
        if server.process.ended.done():
            raise LoadFailed(f"the server {server.process.ended_how} before it was ready", reason="not_started")
        try:
            if (await server.rest.call("GET", path)).status == 200:
                return
        except MsmError:
            pass  # it does not listen yet
        await asyncio.wait([server.process.ended], timeout=POLL_S)


class SharedServer:
    """One server for many versions, driven by the repository extension of the Open Inference Protocol.

    Loads are done one after the other, so that the growth of the server's memory is that of one model.
    """

    def __init__(self, spec: ServerSpec, work: Path, on_end: Callable[[ServerProcess], None]) -> None:
        self._spec = spec
        self._work = work
        self._repository = work / "repository"
        self._on_end = on_end
        self._turn = asyncio.Lock()
        self._server: Server | None = None
        self.busy = False  # a load or unload is in progress: the server may be silent

    async def start(self) -> None:
        layout.remove(self._repository)
        self._repository.mkdir(parents=True)
        self._server = await start_server(self._spec, self._work, {"repository": str(self._repository)}, "server")
        process = self._server.process
        process.ended.add_done_callback(lambda _: self._on_end(process))

    async def load(self, target: str, order: LoadSpec) -> Placed:
        """Raises LoadFailed with the server's own words, Unavailable when it is gone."""
        server = self._there()
        inner = server_name(target)
        async with self._turn:
            await asyncio.to_thread(layout.lay_out, self._spec, self._repository, inner, order)
            before = await asyncio.to_thread(server.process.memory_bytes)
            try:
                await self._call_load(server, inner, target)
            except BaseException:
                await asyncio.to_thread(layout.remove, self._repository / inner)
                raise
            after = await asyncio.to_thread(server.process.memory_bytes)
        return Placed(server, inner, max(after - before, LEAST_BYTES), await _metadata(server, inner))

    async def _call_load(self, server: Server, inner: str, target: str) -> None:
        self.busy = True
        try:
            reply = await server.rest.call("POST", _path(inner, "load"), b"{}", _JSON)
        finally:
            self.busy = False
        if reply.status != 200:
            raise _load_failure(reply, inner, target)
        ready = await server.rest.call("GET", f"/v2/models/{quote(inner)}/ready")
        if ready.status != 200:
            raise LoadFailed("the server took the model, but does not call it ready", reason="load_failed")

    async def unload(self, target: str, placed: Placed) -> None:
        async with self._turn:
            self.busy = True
            try:
                reply = await placed.server.rest.call("POST", _path(placed.inner, "unload"), b"{}", _JSON)
                async with asyncio.timeout(UNLOAD_S):
                    while reply.status == 200 and await _is_there(placed.server, placed.inner):
                        await asyncio.wait([placed.server.process.ended], timeout=POLL_S)
            except TimeoutError as error:
                raise Unavailable("the server does not let go of the model", reason="unload_failed") from error
            finally:
                self.busy = False
            await asyncio.to_thread(layout.remove, self._repository / placed.inner)

    async def answers(self) -> bool:
        """Whether the server's loop answers within a moment."""
        reply = await self._there().rest.call("GET", self._spec.readiness_path)
        return reply.status < 500

    def kill(self) -> None:
        """End a server that hangs."""
        if self._server is not None:
            self._server.process.kill()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()

    def memory_bytes(self) -> int:
        return self._server.process.memory_bytes() if self._server is not None else 0

    def _there(self) -> Server:
        if self._server is None or self._server.process.ended.done():
            raise Unavailable("its server is gone", reason="server_away")
        return self._server


class OwnServers:
    """A server for each version. One that ends takes its version with it and nothing else."""

    def __init__(self, spec: ServerSpec, work: Path, on_lost: Callable[[str], None]) -> None:
        self._spec = spec
        self._work = work
        self._on_lost = on_lost
        self._servers: dict[str, Server] = {}
        self._deaths: dict[str, deque[float]] = {}
        self._stopping = False

    async def start(self) -> None:
        """Nothing to do: servers start with their versions."""

    async def load(self, target: str, order: LoadSpec) -> Placed:
        """Raises LoadFailed when the server does not get ready, or ended too often lately."""
        self._check_deaths(target)
        name = server_name(target)
        values = {"model_dir": order.path, "name": name}
        server = await start_server(self._spec, self._work, values, name)
        self._servers[target] = server
        server.process.ended.add_done_callback(lambda _: self._ended(target, server))
        memory = await asyncio.to_thread(server.process.memory_bytes)
        if self._spec.protocol == "openai":
            return Placed(server, await _served_name(server, name), max(memory, LEAST_BYTES))
        return Placed(server, name, max(memory, LEAST_BYTES), await _metadata(server, name))

    async def unload(self, target: str, placed: Placed) -> None:
        if self._servers.get(target) is placed.server:
            del self._servers[target]
        await placed.server.close()

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    def memory_bytes(self) -> int:
        return sum(server.process.memory_bytes() for server in self._servers.values())

    def _ended(self, target: str, server: Server) -> None:
        if self._servers.get(target) is server and not self._stopping:
            del self._servers[target]
            server.process.kill()  # what it started and left
            deaths = self._deaths.setdefault(target, deque(maxlen=MOST_DEATHS))
            deaths.append(asyncio.get_running_loop().time())
            log.error("a server ended", extra={"target": target, "how": server.process.ended_how})
            self._on_lost(target)

    def _check_deaths(self, target: str) -> None:
        deaths = self._deaths.get(target)
        if deaths is None or len(deaths) < MOST_DEATHS:
            return
        if asyncio.get_running_loop().time() - deaths[0] < DEATHS_WITHIN_S:
            minutes = DEATHS_WITHIN_S / 60
            raise LoadFailed(f"its server ended {MOST_DEATHS} times within {minutes:.0f} minutes", reason="crash_loop")


def _path(inner: str, verb: str) -> str:
    return f"/v2/repository/models/{quote(inner)}/{verb}"


def _load_failure(reply: Reply, inner: str, target: str) -> LoadFailed:
    _, model, version = target.split("/")
    told = scrub(error_text(reply.body), Names(inner, model, version))
    return LoadFailed(told or f"the server answered with status {reply.status}", reason="load_failed")


async def _is_there(server: Server, inner: str) -> bool:
    """Whether a server still holds something of a model: unloading may go on after the answer to the order."""
    reply = await server.rest.call("POST", "/v2/repository/index", b"{}", _JSON)
    try:
        entries = msgspec.json.decode(reply.body, type=list[_IndexEntry]) if reply.status == 200 else None
    except msgspec.DecodeError:
        entries = None
    if entries is None:  # a server without an index
        return (await server.rest.call("GET", f"/v2/models/{quote(inner)}/ready")).status == 200
    return any(entry.name == inner and entry.state in ("READY", "LOADING", "UNLOADING") for entry in entries)


async def _metadata(server: Server, inner: str) -> Mapping[str, Any]:
    """What the server says about a model; nothing when it says nothing that is understood."""
    try:
        reply = await server.rest.call("GET", f"/v2/models/{quote(inner)}")
        found = msgspec.json.decode(reply.body) if reply.status == 200 else {}
    except (MsmError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}


async def _served_name(server: Server, default: str) -> str:
    """The name by which an OpenAI-style server knows its only model."""
    try:
        reply = await server.rest.call("GET", "/v1/models")
        found = msgspec.json.decode(reply.body)["data"][0]["id"] if reply.status == 200 else default
    except (MsmError, msgspec.DecodeError, LookupError, TypeError):
        return default
    return found if isinstance(found, str) else default
