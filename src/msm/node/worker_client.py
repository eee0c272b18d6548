"""Calls to one worker's control socket, with typed answers (contract: "The worker" in the architecture
page).
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from msm.kit.errors import Internal, LoadFailed, Unavailable
from msm.node.http_unix import Answer, UnixHttp
from msm.resources.meta import to_plain
from msm.resources.serving import Signature, VersionKey

T = TypeVar("T")
HeldState = Literal["READY", "LOADING", "UNLOADING", "HUNG"]


class Live(msgspec.Struct, frozen=True):
    """A worker's answer to the question whether it lives."""

    live: bool
    pid: int
    id: str
    rss_bytes: int = 0


class Held(msgspec.Struct, frozen=True):
    """One version as the worker holds it. `requests` and `failures` count since it was loaded.

    `execution` says how the worker runs it, and why.
    """

    name: str
    state: HeldState
    digest: str | None = None
    in_flight: int = 0
    queued: int = 0
    requests: int = 0
    failures: int = 0
    idle_s: float | None = None
    load_seconds: float | None = None
    execution: str | None = None


class Loaded(msgspec.Struct, frozen=True):
    """What a load gave. `memory_bytes` is told by servers that are measured at the load."""

    format: str
    load_seconds: float
    signature: dict[str, Any] | None = None
    memory_bytes: int | None = None


class LoadOrder(msgspec.Struct, frozen=True):
    """What a worker needs to load a version. `predict_s` is the time one call may take before it counts as hung,
    `accelerated` the file of the converted model that is loaded in place of the artifact."""

    path: str
    format: str
    digest: str
    trusted: bool
    parameters: dict[str, Any]
    signature: dict[str, Any] | None
    timeout_s: float
    predict_s: float | None
    accelerated: str | None = None


PREPARE_S = 60.0  # importing a large library from a cold disk


class _Refusal(msgspec.Struct, frozen=True):
    error: str = "no reason was given"
    reason: str = "load_failed"


_live = msgspec.json.Decoder(Live)
_index = msgspec.json.Decoder(list[Held])
_loaded = msgspec.json.Decoder(Loaded)
_refusal = msgspec.json.Decoder(_Refusal)


def signature_as_json(signature: Signature | None) -> dict[str, Any] | None:
    """A signature as the worker and probation read it."""
    return None if signature is None else to_plain(signature)


class WorkerClient:
    """The control calls of one worker process."""

    def __init__(self, worker: str, socket: str) -> None:
        self._worker = worker
        self._http = UnixHttp(socket, f"worker {worker}")

    async def live(self, *, timeout_s: float) -> Live:
        """Raises Unavailable or DeadlineExceeded when its event loop does not answer."""
        answer = await self._http.call("GET", "/v2/health/live", timeout_s=timeout_s)
        return _decode(_live, answer, self._worker)

    async def index(self, *, timeout_s: float) -> list[Held]:
        """Every version it holds, loads or unloads."""
        answer = await self._http.call("POST", "/v2/repository/index", {}, timeout_s=timeout_s)
        return _decode(_index, answer, self._worker)

    async def load(self, key: VersionKey, order: LoadOrder, *, wait_s: float) -> Loaded:
        """Returns when the version answers requests.

        Raises LoadFailed with the load's own error, Unavailable ("peer_away") when the worker is gone,
        DeadlineExceeded after `wait_s`; then the worker goes on loading.
        """
        answer = await self._http.call("POST", _path(key, "load"), {"parameters": order}, timeout_s=wait_s)
        if answer.status == 200:
            return _decode(_loaded, answer, self._worker)
        raise _load_failure(answer)

    async def prepare(self, name: str) -> None:
        """Have the worker import the libraries of a format; serving goes on meanwhile."""
        answer = await self._http.call("POST", f"/v2/repository/formats/{quote(name)}/prepare", {}, timeout_s=PREPARE_S)
        if answer.status != 200:
            raise Unavailable(_read_refusal(answer).error)

    async def unload(self, key: VersionKey, *, drain_s: float) -> None:
        """Returns when the memory is given back. Unknown versions count as unloaded."""
        answer = await self._http.call("POST", _path(key, "unload"), {"drain_s": drain_s}, timeout_s=drain_s + 15.0)
        if answer.status != 200:
            raise Unavailable(f"worker {self._worker} could not unload {key}: {_read_refusal(answer).error}")

    async def close(self) -> None:
        await self._http.close()


def _path(key: VersionKey, action: str) -> str:
    return f"/v2/repository/models/{quote(str(key), safe='')}/{action}"


def _decode(decoder: msgspec.json.Decoder[T], answer: Answer, worker: str) -> T:
    if answer.status != 200:
        raise Unavailable(f"worker {worker} answered with status {answer.status}")
    try:
        return decoder.decode(answer.body)
    except msgspec.DecodeError as error:
        raise Internal(f"worker {worker} gave an answer that is not understood") from error


def _read_refusal(answer: Answer) -> _Refusal:
    try:
        return _refusal.decode(answer.body)
    except msgspec.DecodeError:
        return _Refusal(error=f"status {answer.status}")


def _load_failure(answer: Answer) -> LoadFailed:
    refusal = _read_refusal(answer)
    return LoadFailed(refusal.error, reason=refusal.reason)
