"""The control socket: load, unload, index and liveness, for the node process alone (OIP repository extension)."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import unquote

import msgspec

from msm.http.request import Request, json_answer, plain_refusal
from msm.kit.errors import InvalidInput, MsmError, NotFound
from msm.kit.tasks import Tasks
from msm.runtime import memory
from msm.runtime.repository import IndexEntry, LoadSpec

_PREFIX: Final = b"/v2/repository/models/"
_FORMATS: Final = b"/v2/repository/formats/"
_DRAIN_S: Final = 30.0
T = TypeVar("T")


class _LoadBody(msgspec.Struct, frozen=True):
    parameters: LoadSpec


class _UnloadBody(msgspec.Struct, frozen=True):
    drain_s: float = _DRAIN_S


class Holds(Protocol):
    """What is loaded and unloaded here: the worker's own repository, or one that drives a server."""

    async def load(self, target: str, spec: LoadSpec) -> msgspec.Struct: ...
    async def unload(self, target: str, drain_s: float) -> None: ...
    async def prepare(self, name: str) -> None: ...
    def index(self) -> Sequence[IndexEntry]: ...


class ControlApp:
    """Answers the requests of the control socket. `resident` gives the memory to report, in bytes."""

    def __init__(
        self, worker: str, repository: Holds, tasks: Tasks, resident: Callable[[], int] = memory.resident_bytes
    ) -> None:
        self._worker = worker
        self._repository = repository
        self._tasks = tasks
        self._resident = resident

    def handle(self, request: Request) -> None:
        """Answer a request; a load or unload is answered when it has ended."""
        path, method = request.path.partition(b"?")[0], request.method
        if path == b"/v2/health/live" and method == b"GET":
            request.respond(json_answer(200, self._live()))
        elif path == b"/v2/repository/index" and method == b"POST":
            request.respond(json_answer(200, [msgspec.to_builtins(entry) for entry in self._repository.index()]))
        elif path.startswith(_FORMATS) and path.endswith(b"/prepare") and method == b"POST":
            name = path[len(_FORMATS) : -len(b"/prepare")].decode("latin-1")
            request.task = self._tasks.start(f"prepare {name}", _answer(request, self._prepare(name)))
        elif path.startswith(_PREFIX) and method == b"POST":
            self._change(request, path[len(_PREFIX) :])
        else:
            raise NotFound(
                f"there is no call {method.decode('latin-1')[:20]} {path[:100].decode('latin-1')!r}",
                reason="no_such_path",
            )

    def _live(self) -> dict[str, Any]:
        return {"live": True, "pid": os.getpid(), "id": self._worker, "rss_bytes": self._resident()}

    def _change(self, request: Request, rest: bytes) -> None:
        name, _, verb = rest.rpartition(b"/")
        target = unquote(name.decode("latin-1"), errors="strict")
        if (
            target.count("/") != 2
            or not all(target.split("/"))
            or len(target.encode()) > 255
            or not target.isprintable()
        ):
            raise InvalidInput(f"{target[:100]!r} is not namespace/model/version", reason="invalid_target")
        if verb == b"load":
            spec = _decoded(request.body, _LoadBody).parameters
            work = self._load(target, spec)
        elif verb == b"unload":
            drain_s = _decoded(request.body or b"{}", _UnloadBody).drain_s
            work = self._unload(target, drain_s)
        else:
            raise NotFound(f"a version cannot be told to {verb[:20].decode('latin-1')!r}", reason="no_such_path")
        request.task = self._tasks.start(f"{verb.decode()} call for {target}", _answer(request, work))

    async def _load(self, target: str, spec: LoadSpec) -> object:
        return msgspec.to_builtins(await self._repository.load(target, spec))

    async def _prepare(self, name: str) -> object:
        await self._repository.prepare(name)
        return {}

    async def _unload(self, target: str, drain_s: float) -> object:
        await self._repository.unload(target, drain_s)
        return {}


async def _answer(request: Request, work: Coroutine[Any, Any, object]) -> None:
    try:
        request.respond(json_answer(200, await work))
    except MsmError as error:
        request.respond(plain_refusal(request, error))


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is wrong: {str(error).replace('`', chr(39))}", reason="invalid_body") from error
