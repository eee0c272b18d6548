"""Reads what the workers really hold and brings the table of copies in line with it.

At adoption this is where the copies come from; afterwards it brings numbers (in flight, idle, requests), finds copies
that a worker lost or should not have, and workers in which a call never ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msm.kit.clock import Clock
from msm.kit.errors import MsmError
from msm.kit.tasks import Tasks
from msm.node.config import NodeSettings
from msm.node.copies import Details
from msm.node.journal import Journal
from msm.node.residents import Residents
from msm.node.versions import Versions
from msm.node.worker_client import Held
from msm.node.workers import Worker, Workers
from msm.planning import recovery
from msm.planning.picture import CopyView
from msm.resources.observed import CopyState
from msm.resources.serving import VersionKey

INDEX_TIMEOUT_S = 5.0
USE_GRAIN_S = 0.5  # a last use that moved by less is not worth a new entry

STATES: dict[str, CopyState] = {"READY": "Ready", "HUNG": "Ready", "LOADING": "Loading", "UNLOADING": "Unloading"}


class Observer:
    """Compares the workers' indexes with the table."""

    def __init__(
        self, settings: NodeSettings, residents: Residents, journal: Journal, tasks: Tasks, clock: Clock
    ) -> None:
        self._settings = settings
        self._residents = residents
        self._journal = journal
        self._tasks = tasks
        self._clock = clock
        self._versions: Versions
        self._workers: Workers

    def attach(self, versions: Versions, workers: Workers) -> None:
        """Connect the parts that come later in the making."""
        self._versions, self._workers = versions, workers

    # ---- adoption

    async def adopt(self, worker: Worker) -> None:
        """Take over what an adopted worker holds; what is not declared any more, or has other content, goes."""
        try:
            index = await worker.client.index(timeout_s=INDEX_TIMEOUT_S)
        except MsmError as error:
            self._journal.note(f"worker/{worker.id}", "IndexUnreadable", error.message, severity="warning")
            return
        kept = 0
        for held in index:
            key = _parse(held.name)
            if key is not None and self._take_over(worker, key, held):
                kept += 1
            elif held.state in ("READY", "HUNG"):
                self._drop_stray(worker, held.name, "it is not declared with this content")
        message = f"worker {worker.id} goes on with {kept} of {len(index)} copies"
        self._journal.note(f"worker/{worker.id}", "CopiesAdopted", message, data={"kept": kept, "found": len(index)})

    def _take_over(self, worker: Worker, key: VersionKey, held: Held) -> bool:
        status = self._versions.status(key)
        if self._residents.wanted(key) is None or status is None or status.memory_bytes is None:
            return False
        if held.digest is not None and held.digest != status.digest:
            return False
        if self._residents.copies.get(key, worker.id) is not None:
            return True
        now = self._clock.monotonic()
        load_seconds = held.load_seconds or status.load_seconds or 0.0
        details = Details(digest=status.digest or "", reason="it was loaded by an earlier node process")
        details.adopted_load = held.state != "READY"
        copy = CopyView(
            key=key,
            worker=worker.id,
            state=STATES[held.state],
            memory_bytes=status.memory_bytes,
            in_flight=held.in_flight,
            last_used=now - (held.idle_s or 0.0),
            ready_since=now - (held.idle_s or 0.0),
            load_seconds=load_seconds,
        )
        self._residents.copies.add(copy, details)
        return True

    def _drop_stray(self, worker: Worker, target: str, why: str) -> None:
        key = _parse(target)
        if key is None:
            return
        message = f"{target} in worker {worker.id} is unloaded: {why}"
        self._journal.note(f"worker/{worker.id}", "StrayCopy", message, severity="warning")
        self._tasks.start(f"unload stray {target}", self._unload_stray(worker, key))

    async def _unload_stray(self, worker: Worker, key: VersionKey) -> None:
        try:
            await worker.client.unload(key, drain_s=self._settings.drain_s)
        except MsmError as error:
            # The next reading of the index finds it again.
            self._journal.note(f"worker/{worker.id}", "UnloadFailed", error.message, severity="warning")

    # ---- watching

    async def run(self) -> None:
        """Read every worker's index again and again."""
        while True:
            await self._clock.sleep(self._settings.stats_interval_s)
            ready = [worker for worker in self._workers.all() if worker.ready]
            await asyncio.gather(*(self.look(worker) for worker in ready))

    async def look(self, worker: Worker) -> None:
        """Read one worker's index once. A worker that does not answer is the supervisor's business."""
        life, asked_at = worker.life, self._clock.monotonic()
        try:
            index = await worker.client.index(timeout_s=INDEX_TIMEOUT_S)
        except MsmError:
            return
        if worker.life != life or not worker.ready:
            return
        self._compare(worker, index, asked_at)
        verdict = recovery.hangs(0.0, [held.name for held in index if held.state == "HUNG"], self._settings.hang_s)
        if verdict.hangs:
            self._workers.condemn(worker.id, verdict.reason)

    def _compare(self, worker: Worker, index: Sequence[Held], asked_at: float) -> None:
        found: set[VersionKey] = set()
        for held in index:
            key = _parse(held.name)
            if key is None:
                continue
            found.add(key)
            copy = self._residents.copies.get(key, worker.id)
            if copy is not None:
                self._update(copy, held)
            elif held.state == "READY":
                self._drop_stray(worker, held.name, "the node does not know of it")
        for copy in self._residents.copies.on(worker.id):
            if copy.key not in found:
                self._missing(copy, asked_at)

    def _update(self, copy: CopyView, held: Held) -> None:
        table = self._residents.copies
        details = table.details(copy)
        if details.adopted_load and held.state == "READY" and copy.state == "Loading":
            details.adopted_load = False
            work = self._residents.carrier.became_ready(copy.key, copy.worker, held.load_seconds or 0.0)
            self._tasks.start(f"adopt load of {copy.key}", work)
            return
        details.requests, details.failures = held.requests, held.failures
        details.execution = held.execution
        if copy.state != "Ready":
            return
        in_flight = held.in_flight + held.queued
        last_used = max(copy.ready_since, self._clock.monotonic() - (held.idle_s or 0.0))
        if in_flight != copy.in_flight or last_used - copy.last_used > USE_GRAIN_S:
            table.change(copy.key, copy.worker, in_flight=in_flight, last_used=last_used)

    def _missing(self, copy: CopyView, asked_at: float) -> None:
        details = self._residents.copies.details(copy)
        if (copy.state == "Ready" and copy.ready_since < asked_at) or details.adopted_load:
            self._residents.lost_copy(copy)


def _parse(target: str) -> VersionKey | None:
    """A worker may hold what this node never ordered; such names are left alone."""
    try:
        return VersionKey.parse(target)
    except ValueError:
        return None
