"""The versions that this adapter's servers hold: load, unload, find, index. Used from the event loop only.

Speaks to the node as the built-in worker's repository does; the work itself is a host's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from msm.adapter.hosts import Host, Placed
from msm.adapter.translate import Names
from msm.kit.errors import Conflict, LoadFailed, Unavailable
from msm.kit.tasks import Tasks
from msm.runtime.protocols.tensors import DTYPES
from msm.runtime.repository import IndexEntry, LoadSpec

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0


class Loaded(msgspec.Struct, frozen=True):
    """What the node is told about a load. `memory_bytes` is what the server grew by."""

    format: str
    load_seconds: float
    memory_bytes: int
    signature: dict[str, Any] | None = None


class Held:
    """One version in a server, and its counters."""

    __slots__ = (
        "digest",
        "empty",
        "failures",
        "in_flight",
        "last_used",
        "loaded",
        "names",
        "placed",
        "requests",
        "signature",
        "timeout_s",
    )

    def __init__(self, names: Names, placed: Placed, loaded: Loaded, order: LoadSpec, now: float) -> None:
        self.names = names
        self.placed = placed
        self.loaded = loaded
        self.digest = order.digest
        self.signature = order.signature
        self.timeout_s = order.timeout_s or TIMEOUT_S
        self.in_flight = self.requests = self.failures = 0
        self.last_used = now
        self.empty = asyncio.Event()
        self.empty.set()

    def begin(self) -> None:
        """A request goes to the server."""
        self.in_flight += 1
        self.requests += 1
        self.empty.clear()

    def end(self, now: float, *, failed: bool) -> None:
        """It is answered, or given up."""
        self.in_flight -= 1
        self.failures += failed
        self.last_used = now
        if not self.in_flight:
            self.empty.set()


class Repository:
    """All versions of this adapter by target ("namespace/model/version")."""

    def __init__(self, host: Host, tasks: Tasks) -> None:
        self._host = host
        self._tasks = tasks
        self._held: dict[str, Held] = {}
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._stopping = False

    def find(self, target: str) -> Held | None:
        """The version, unless it is not here or on its way out."""
        return None if target in self._unloading else self._held.get(target)

    def lost(self, target: str) -> None:
        """The server of a version ended by itself."""
        self._held.pop(target, None)

    async def prepare(self, name: str) -> None:
        """Servers import what they need by themselves."""

    async def load(self, target: str, spec: LoadSpec) -> Loaded:
        """Load a version, or wait for the load that runs already, or return at once when it is held.

        Raises LoadFailed with the server's words; Conflict when it is held with another digest.
        """
        if self._stopping:
            raise Unavailable("this worker is stopping", reason="stopping")
        unloading = self._unloading.get(target)
        if unloading is not None:
            await asyncio.wait([unloading])
        held = self._held.get(target)
        if held is not None:
            if held.digest != spec.digest:
                raise Conflict(f"version {target} is held with digest {held.digest}", reason="other_digest")
            return held.loaded
        task = self._loading.get(target)
        if task is None:
            task = self._tasks.start(f"load {target}", self._load(target, spec))
            self._loading[target] = task
            task.add_done_callback(lambda _: self._loading.pop(target, None))
        return await asyncio.shield(task)

    async def _load(self, target: str, spec: LoadSpec) -> Loaded:
        loop = asyncio.get_running_loop()
        started = loop.time()
        placed = await self._host.load(target, spec)
        if placed.server.process.ended.done():
            raise LoadFailed("the server ended as soon as the model was loaded", reason="load_failed")
        seconds = loop.time() - started
        loaded = Loaded(spec.format or "", seconds, placed.memory_bytes, signature_of(placed.metadata))
        namespace, model, version = target.split("/")
        service = model if namespace == "default" else f"{namespace}/{model}"
        self._held[target] = Held(Names(placed.inner, service, version), placed, loaded, spec, loop.time())
        log.info("loaded", extra={"target": target, "seconds": round(seconds, 3), "memory_bytes": placed.memory_bytes})
        return loaded

    async def unload(self, target: str, drain_s: float) -> None:
        """Stop serving a version; return when its last request is answered and the server let go of it.

        A version that is not held is no error. One that is loading is unloaded after its load.
        """
        loading = self._loading.get(target)
        if loading is not None:
            await asyncio.wait([loading])
        task = self._unloading.get(target)
        if task is None:
            held = self._held.get(target)
            if held is None:
                return
            task = self._tasks.start(f"unload {target}", self._unload(target, held, drain_s))
            self._unloading[target] = task
            task.add_done_callback(lambda _: self._unloading.pop(target, None))
        await asyncio.shield(task)

    async def _unload(self, target: str, held: Held, drain_s: float) -> None:
        await _drained([held], drain_s)
        await self._host.unload(target, held.placed)
        self._held.pop(target, None)
        log.info("unloaded", extra={"target": target})

    def index(self) -> list[IndexEntry]:
        """All versions, also those on their way in or out."""
        now = asyncio.get_running_loop().time()
        entries = [self._entry(target, held, now) for target, held in self._held.items()]
        return [
            *entries,
            *(IndexEntry(name=target, state="LOADING") for target in self._loading if target not in self._held),
        ]

    def _entry(self, target: str, held: Held, now: float) -> IndexEntry:
        return IndexEntry(
            name=target,
            state="UNLOADING" if target in self._unloading else "READY",
            digest=held.digest,
            in_flight=held.in_flight,
            requests=held.requests,
            failures=held.failures,
            idle_s=0.0 if held.in_flight else now - held.last_used,
            load_seconds=held.loaded.load_seconds,
        )

    async def stop(self, drain_s: float) -> None:
        """Take no more loads; return when what was accepted is answered, at most after `drain_s`."""
        self._stopping = True
        await _drained(list(self._held.values()), drain_s)


async def _drained(held: list[Held], drain_s: float) -> None:
    try:
        async with asyncio.timeout(drain_s):
            for each in held:
                await each.empty.wait()
    except TimeoutError:
        log.warning("requests are left behind", extra={"count": sum(each.in_flight for each in held)})


def signature_of(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The signature in a server's model metadata; None when it tells none, or something that is not understood."""
    try:
        sides = {side: [_tensor(item) for item in metadata[side]] for side in ("inputs", "outputs")}
    except (LookupError, TypeError, ValueError):
        return None
    return sides if sides["inputs"] else None


def _tensor(item: Mapping[str, Any]) -> dict[str, Any]:
    name, datatype, shape = str(item["name"]), str(item["datatype"]), [int(size) for size in item["shape"]]
    if datatype not in DTYPES:
        raise ValueError(f"{datatype} is not a datatype")
    return {"name": name, "datatype": datatype, "shape": shape}
