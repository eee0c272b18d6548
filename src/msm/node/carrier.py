"""Carries out what residency decided: loads and unloads copies and keeps the routes in step. Decides nothing.

A copy takes requests only after the proxy acknowledged it, and gives its memory up only after the proxy stopped sending
to it. Whoever works on a copy looks whether it is still there after every wait: when a worker dies, all it held is
forgotten at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from msm.kit.clock import Clock
from msm.kit.errors import DeadlineExceeded, MsmError
from msm.kit.tasks import Tasks
from msm.node.artifacts import Artifacts
from msm.node.config import NodeSettings
from msm.node.copies import Copies, Details
from msm.node.decisions import Decisions
from msm.node.demand import Demands
from msm.node.fetch import TRANSIENT
from msm.node.http_unix import PEER_AWAY
from msm.node.journal import Journal
from msm.node.ports import Desired, Traffic
from msm.node.versions import Versions
from msm.node.worker_client import Loaded, LoadOrder, signature_as_json
from msm.node.workers import Worker, Workers
from msm.planning.moves import Load, Unload, Urgency
from msm.planning.picture import CopyView, FailedLoad
from msm.planning.routing import Endpoint
from msm.resources.meta import ObjectKey
from msm.resources.serving import VersionKey, VersionSpec

UNLOAD_TRIES = 3
DEATH_NOTICE_S = 0.5
PASSING_S = 15.0


@dataclass(frozen=True, slots=True)
class Around:
    """The parts of the node that a carrier works with. `changed(key, memory_is_back)` asks for a new decision."""

    versions: Versions
    workers: Workers
    artifacts: Artifacts
    traffic: Traffic
    changed: Callable[[VersionKey, bool], None]


@dataclass(frozen=True, slots=True)
class _Held:
    """The copy that a task works on."""

    key: VersionKey
    worker: Worker
    details: Details


class Carrier:
    """The copies of this node, who waits for them, and the work that makes and ends them."""

    def __init__(self, settings: NodeSettings, desired: Desired, journal: Journal, tasks: Tasks, clock: Clock) -> None:
        self._settings = settings
        self._desired = desired
        self._journal = journal
        self._tasks = tasks
        self._clock = clock
        self.copies = Copies()
        self.demands = Demands()
        self.decisions = Decisions()
        self.failures: dict[VersionKey, tuple[FailedLoad, ...]] = {}
        self._served: set[VersionKey] = set()  # versions with a ready copy that the proxy knows
        self._around: Around

    def attach(self, around: Around) -> None:
        """Connect the parts that come later in the making."""
        self._around = around

    # ---- what is there

    def is_served(self, key: VersionKey) -> bool:
        """Whether a request for this version finds its way by itself."""
        return key in self._served

    def endpoints(self, key: VersionKey) -> tuple[Endpoint, ...]:
        """Where the ready copies of a version are."""
        found = []
        for copy in self.copies.ready(key):
            worker = self._around.workers.get(copy.worker)
            if worker is not None:
                found.append(Endpoint(copy.worker, str(worker.data)))
        return tuple(found)

    def versions_of(self, key: ObjectKey) -> list[VersionKey]:
        """The declared versions of a model."""
        model = self._desired.model(key)
        return [VersionKey(key.namespace, key.name, spec.name) for spec in model.spec.versions] if model else []

    def note(self, key: VersionKey, reason: str, message: str, data: dict[str, Any]) -> None:
        """Keep a decision about a version for `explain` and tell it as an event."""
        self.decisions.made(key, reason, message, data)
        self._journal.note(str(key.model_key), reason, message, data=data)

    # ---- load

    def load(self, move: Load) -> None:
        """Begin a load; the memory is charged from now on."""
        worker = self._around.workers.get(move.worker)
        model = self._desired.model(move.key.model_key)
        spec = model.version(move.key.version) if model else None
        status = self._around.versions.status(move.key)
        if worker is None or model is None or spec is None or status is None or status.digest is None:
            return  # the picture changed within this turn; its change has brought attention already
        background = move.priority is not Urgency.WAITING
        details = Details(digest=status.digest, reason=move.reason, background=background)
        self.copies.add(CopyView(move.key, move.worker, "Loading", move.memory_bytes), details)
        self.note(move.key, "Loading", f"{move.key} is loaded into worker {worker.id}: {move.reason}", dict(move.data))
        order = LoadOrder(
            path="",
            format=status.format or spec.format or "",
            digest=status.digest,
            trusted=spec.trusted,
            parameters=spec.parameters,
            signature=signature_as_json(status.signature),
            timeout_s=model.spec.timeout_seconds,
            predict_s=status.predict_seconds,
        )
        self._tasks.start(f"load {move.key}", self._do_load(_Held(move.key, worker, details), spec, order))

    async def _do_load(self, held: _Held, spec: VersionSpec, order: LoadOrder) -> None:
        try:
            artifact = await self._around.artifacts.fetch(spec.uri, order.digest)
            accelerated = await self._around.versions.accelerated(held.key, spec, artifact)
            ready = msgspec.structs.replace(order, path=str(artifact.path), accelerated=accelerated)
            loaded = await held.worker.client.load(held.key, ready, wait_s=self._settings.load_timeout_s)
        except MsmError as error:
            await self._load_failed(held, error)
            return
        if self._still(held):
            if loaded.memory_bytes is not None:
                self._measured(held, loaded)
            await self.became_ready(held.key, held.worker.id, loaded.load_seconds)

    def _measured(self, held: _Held, loaded: Loaded) -> None:
        """A server that cannot be tried beforehand was measured at the load: charge that from now on."""
        memory = self._around.versions.measured(held.key, loaded)
        if memory is not None:
            self.copies.change(held.key, held.worker.id, memory_bytes=memory)

    def _still(self, held: _Held) -> bool:
        """Whether the copy that a task works on is there: when a worker dies, all it held is forgotten at once."""
        return self.copies.holds(held.key, held.worker.id, held.details)

    async def became_ready(self, key: VersionKey, worker: str, load_seconds: float) -> None:
        """A copy answers in its worker: bring it into the routes, then let those go on who wait for it."""
        now = self._clock.monotonic()
        status = self._around.versions.status(key)
        # The first load of a format in a worker also imports its libraries; loading again will not.
        again_s = min(load_seconds, (status.load_seconds if status else None) or load_seconds)
        copy = self.copies.change(key, worker, state="Ready", ready_since=now, last_used=now, load_seconds=again_s)
        self.failures.pop(key, None)
        message = f"{key} is ready in worker {worker} after {load_seconds:.2f} s"
        self.note(key, "CopyLoaded", message, {"load_seconds": load_seconds, "memory_bytes": copy.memory_bytes})
        await self.publish(key.model_key)
        if self.is_served(key):  # else its worker died meanwhile: who waits goes on waiting for the next copy
            self.demands.settle(key)
        self._around.changed(key, False)

    async def _load_failed(self, held: _Held, error: MsmError) -> None:
        key, worker = held.key, held.worker
        if isinstance(error, DeadlineExceeded):
            await self._abandon(held)
        if (error.reason == PEER_AWAY and await worker.died(DEATH_NOTICE_S)) or not self._still(held):
            return  # it died over the load: what it held is forgotten, and blamed, with it
        self.copies.remove(key, worker.id)
        passing_s = PASSING_S if error.reason in TRANSIENT else None
        failed = FailedLoad(worker.id, self._clock.monotonic(), error.message, passing_s)
        self.failures[key] = (*self.failures.get(key, ()), failed)
        message = f"{key} could not be loaded into worker {worker.id}: {error.message}"
        self._journal.note(str(key.model_key), "LoadFailed", message, severity="error", data={"reason": error.reason})
        self._around.changed(key, True)

    async def _abandon(self, held: _Held) -> None:
        """A load did not end in time. The thread in it cannot be ended; if it does not come back, the worker goes."""
        try:
            await held.worker.client.unload(held.key, drain_s=0.0)
        except MsmError:
            if self._still(held):
                self._around.workers.condemn(held.worker.id, f"the load of {held.key} does not end")
                await held.worker.died(DEATH_NOTICE_S)

    # ---- unload

    def unload(self, move: Unload) -> None:
        """Begin to take a ready copy out of the routes and then out of memory; any other copy is left as it is."""
        copy = self.copies.get(move.key, move.worker)
        worker = self._around.workers.get(move.worker)
        if copy is None or worker is None or copy.state != "Ready":
            return
        self.copies.change(copy.key, copy.worker, state="Draining")
        if not self.copies.ready(move.key):
            self._served.discard(move.key)
        self.copies.details(copy).reason = move.reason
        self.note(
            move.key,
            "Unloading",
            f"{move.key} is unloaded from worker {move.worker}: {move.reason}",
            dict(move.data),
        )
        held = _Held(move.key, worker, self.copies.details(copy))
        self._tasks.start(f"unload {move.key}", self._do_unload(held))

    async def _do_unload(self, held: _Held) -> None:
        key, worker = held.key, held.worker
        await self.publish(key.model_key)
        for _ in range(UNLOAD_TRIES):
            if not self._still(held):
                return
            self.copies.change(key, worker.id, state="Unloading")
            try:
                await worker.client.unload(key, drain_s=self._settings.drain_s)
            except MsmError as error:
                if error.reason == PEER_AWAY and await worker.died(DEATH_NOTICE_S):
                    return
                self._journal.note(str(key.model_key), "UnloadFailed", error.message, severity="warning")
                continue
            if self._still(held):
                self.copies.remove(key, worker.id)
            self._around.changed(key, True)
            return
        if self._still(held):
            self._around.workers.condemn(worker.id, f"{key} cannot be unloaded")

    # ---- routes

    async def publish(self, key: ObjectKey) -> None:
        """Bring the present copies of a model into the proxy. A proxy that does not answer in time is not waited for:
        it gets the whole picture when it is back."""
        shown = {version for version in self.versions_of(key) if self.copies.ready(version)}
        try:
            async with asyncio.timeout(self._settings.publish_timeout_s):
                await self._around.traffic.changed(key)
        except (TimeoutError, MsmError) as error:
            why = error.message if isinstance(error, MsmError) else "no answer in time"
            self._journal.note(
                str(key), "RoutesNotAcknowledged", f"the proxy has not taken over {key}: {why}", severity="warning"
            )
        self._served |= {version for version in shown if self.copies.ready(version)}

    def forget(self, copy: CopyView) -> None:
        """A copy is gone without having been unloaded."""
        self.copies.remove(copy.key, copy.worker)
        if not self.copies.ready(copy.key):
            self._served.discard(copy.key)

    def republish(self, key: ObjectKey) -> None:
        """Bring the present copies of a model into the proxy without waiting for it."""
        self._tasks.start(f"publish {key}", self.publish(key))
