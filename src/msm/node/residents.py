"""Keeps the right versions loaded: asks the pure planner what to do and does it.

Level-triggered: whatever happens only says which versions deserve attention; the next turn of the event loop plans
from the whole present picture. A copy takes requests only after the proxy acknowledged it, and gives its memory up only
after the proxy stopped sending to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from msm.kit.clock import Clock
from msm.kit.errors import DeadlineExceeded, LoadFailed, MsmError, NotFound, Unavailable
from msm.kit.tasks import Tasks
from msm.node.artifacts import Artifacts
from msm.node.config import NodeSettings
from msm.node.copies import Copies, Details
from msm.node.decisions import Decisions
from msm.node.demand import Demands
from msm.node.guilt import Guilt
from msm.node.http_unix import PEER_AWAY
from msm.node.journal import Journal
from msm.node.ports import Desired, Traffic
from msm.node.versions import Versions
from msm.node.wishes import wishes
from msm.node.worker_client import LoadOrder, signature_as_json
from msm.node.workers import Worker, Workers
from msm.planning.moves import Dedicate, Load, Move, Rejection, Retire, Unload, Urgency
from msm.planning.picture import CopyView, FailedLoad, Picture, Wanted, WorkerView
from msm.planning.residency import plan
from msm.planning.routing import Endpoint
from msm.resources.meta import ObjectKey
from msm.resources.serving import Model, VersionKey, VersionStatus

UNLOAD_TRIES = 3
DEATH_NOTICE_S = 0.5


@dataclass(frozen=True, slots=True)
class _Held:
    """The copy that a task works on."""

    key: VersionKey
    worker: Worker
    details: Details


class Residents:
    """The copies of this node and the work that makes and ends them."""

    def __init__(self, settings: NodeSettings, desired: Desired, journal: Journal, tasks: Tasks, clock: Clock) -> None:
        self._settings = settings
        self._desired = desired
        self._journal = journal
        self._tasks = tasks
        self._clock = clock
        self.copies = Copies()
        self.demands = Demands()
        self.decisions = Decisions()
        self.guilt = Guilt()
        self._wanted: dict[VersionKey, Wanted] = {}
        self._of_model: dict[ObjectKey, frozenset[VersionKey]] = {}
        self._failures: dict[VersionKey, tuple[FailedLoad, ...]] = {}
        self._served: set[VersionKey] = set()  # versions with a ready copy that the proxy knows
        self._attention: set[VersionKey] = set()
        self._scheduled = False
        self._paused = True
        self._timer: asyncio.TimerHandle | None = None
        self._again_at: float | None = None
        self._versions: Versions
        self._workers: Workers
        self._artifacts: Artifacts
        self._traffic: Traffic

    def attach(self, versions: Versions, workers: Workers, artifacts: Artifacts, traffic: Traffic) -> None:
        """Connect the parts that come later in the making."""
        self._versions, self._workers = versions, workers
        self._artifacts, self._traffic = artifacts, traffic

    def resume(self) -> None:
        """Begin to act: until now changes were only taken in."""
        self._paused = False
        self.attend_all()

    def close(self) -> None:
        """Decide nothing more."""
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()

    # ---- what is there

    def is_served(self, key: VersionKey) -> bool:
        """Whether a request for this version finds its way by itself."""
        return key in self._served

    def endpoints(self, key: VersionKey) -> tuple[Endpoint, ...]:
        """Where the ready copies of a version are."""
        found = []
        for copy in self.copies.ready(key):
            worker = self._workers.get(copy.worker)
            if worker is not None:
                found.append(Endpoint(copy.worker, str(worker.data)))
        return tuple(found)

    def copies_of(self, key: ObjectKey) -> Mapping[VersionKey, tuple[Endpoint, ...]]:
        """The ready copies of every version of a model."""
        return {version: found for version in self._versions_of(key) if (found := self.endpoints(version))}

    def supposed(self, model: Model, now: float) -> dict[VersionKey, Wanted]:
        """What would be wanted of a model's versions if it were declared so."""
        return wishes(model, self._versions, self.guilt, now)

    def wanted(self, key: VersionKey) -> Wanted | None:
        return self._wanted.get(key)

    def _versions_of(self, key: ObjectKey) -> frozenset[VersionKey]:
        return self._of_model.get(key, frozenset())

    # ---- what changes

    def refresh(self, key: ObjectKey) -> None:
        """Take in what is declared and found about a model."""
        model = self._desired.model(key)
        now = self._clock.monotonic()
        fresh = wishes(model, self._versions, self.guilt, now) if model else {}
        before = self._versions_of(key)
        for gone in before - fresh.keys():
            self._forget(gone)
        if fresh:
            self._of_model[key] = frozenset(fresh)
        else:
            self._of_model.pop(key, None)
        self._wanted.update(fresh)
        changed = before | fresh.keys()
        for version in changed:
            self._leave_old_content(version)
        self.attend(changed)

    def _forget(self, key: VersionKey) -> None:
        self._wanted.pop(key, None)
        self._failures.pop(key, None)
        self.guilt.clear(key)
        self.decisions.forget(key)
        self.demands.settle(key, NotFound(f"version {key} was deleted while the request waited for it"))

    def _leave_old_content(self, key: VersionKey) -> None:
        """Unload copies of other content than what the version has now; failures and crashes of it count no more."""
        status = self._versions.status(key)
        if status is None or status.digest is None:
            return
        for copy in self.copies.ready(key):
            if self.copies.details(copy).digest != status.digest:
                self._failures.pop(key, None)
                self.guilt.clear(key)
                self._unload(Unload(key, copy.worker, "the version has other content now"))

    def settled(self, key: VersionKey) -> None:
        """There is a new finding about a version."""
        status = self._versions.status(key)
        self._failures.pop(key, None)
        if status is not None and status.phase == "Failed":
            self.demands.settle(key, failed_version(key, status))
        self.refresh(key.model_key)

    def attend(self, keys: Iterable[VersionKey]) -> None:
        """Decide about these versions at the next turn of the event loop."""
        self._attention.update(keys)
        if not self._scheduled and not self._paused:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._reconcile)

    def attend_all(self) -> None:
        """Decide about every version that is wanted, loaded or waited for."""
        self.attend(self._active())

    def attend_waiting(self) -> None:
        """Decide about what could not be had so far: memory came back, a load ended, a worker is there."""
        self.attend([*self.demands.waiting(), *self.decisions.open()])

    def _active(self) -> list[VersionKey]:
        minimum = [key for key, wanted in self._wanted.items() if wanted.minimum]
        return [*minimum, *self.copies.by_key, *self.demands.by_key, *self.decisions.open()]

    # ---- decide

    def _reconcile(self) -> None:
        self._scheduled = False
        if self._paused:
            return
        now = self._clock.monotonic()
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._judge_again(now)
            self._attention.update(self._active())
        attention, self._attention = self._attention, set()
        decision = plan(self.picture(attention), now)
        rejected = {rejection.key for rejection in decision.rejected}
        for key in attention - rejected:
            self.decisions.resolved(key)
        for move in decision.moves:
            self._act(move)
        for rejection in decision.rejected:
            self._reject(rejection)
        self._look_again(decision.look_again_at)

    def _judge_again(self, now: float) -> None:
        """Verdicts about crashing versions end by time alone."""
        for key, wanted in self._wanted.items():
            if wanted.isolated or wanted.blocked_until is not None:
                model = self._desired.model(key.model_key)
                if model is not None:
                    self._wanted.update(wishes(model, self._versions, self.guilt, now))
        self.demands.tidy(now)

    def picture(self, attention: set[VersionKey]) -> Picture:
        """Everything a decision sees of this node now."""
        workers = []
        for worker in self._workers.all():
            sums = self.copies.sums(worker.id)
            workers.append(
                WorkerView(
                    id=worker.id,
                    ready=worker.ready,
                    memory_bytes=sums.memory_bytes,
                    in_flight=sums.in_flight,
                    loads=sums.loads,
                    background=sums.background,
                    dedicated=worker.dedicated,
                )
            )
        return Picture(
            capacity_bytes=self._settings.capacity_bytes,
            used_bytes=self.copies.used_bytes,
            workers=tuple(workers),
            copies=self.copies.by_key,
            wanted=self._wanted,
            attention=attention,
            demand=self.demands.by_key,
            failures=self._failures,
            limits=self._settings.limits,
        )

    def _look_again(self, at: float | None) -> None:
        if at is None or (self._again_at is not None and self._again_at <= at):
            return
        self._again_at = at
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, at - self._clock.monotonic()) + 0.001
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.attend, ())

    # ---- act

    def _act(self, move: Move) -> None:
        match move:
            case Load():
                self._load(move)
            case Unload():
                self._unload(move)
            case Dedicate():
                self._note(move.key, "ProcessDedicated", f"{move.key} gets a process of its own: {move.reason}", {})
                self._workers.dedicate(move.key)
            case Retire():
                self._workers.retire(move.worker)

    def _reject(self, rejection: Rejection) -> None:
        if self.decisions.rejected(rejection) and rejection.cause not in ("busy", "not_valid"):
            self._journal.note(
                f"model/{rejection.key}",
                "LoadRejected",
                f"{rejection.key} is not loaded: {rejection.message}",
                severity="warning",
                data=dict(rejection.data),
            )
        if rejection.final:
            self.demands.settle(rejection.key, unavailable(rejection, self._clock.monotonic()))

    def _note(self, key: VersionKey, reason: str, message: str, data: dict[str, Any]) -> None:
        self.decisions.made(key, reason, message, data)
        self._journal.note(f"model/{key}", reason, message, data=data)

    # ---- load

    def _load(self, move: Load) -> None:
        worker = self._workers.get(move.worker)
        model = self._desired.model(move.key.model_key)
        spec = model.version(move.key.version) if model else None
        status = self._versions.status(move.key)
        if worker is None or model is None or spec is None or status is None or status.digest is None:
            return  # the picture changed within this turn; its change has brought attention already
        background = move.priority is not Urgency.WAITING
        details = Details(digest=status.digest, reason=move.reason, background=background)
        self.copies.add(CopyView(move.key, move.worker, "Loading", move.memory_bytes), details)
        self._note(move.key, "Loading", f"{move.key} is loaded into worker {worker.id}: {move.reason}", dict(move.data))
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
        self._tasks.start(f"load {move.key}", self._do_load(_Held(move.key, worker, details), spec.uri, order))

    async def _do_load(self, held: _Held, uri: str, order: LoadOrder) -> None:
        try:
            artifact = await self._artifacts.fetch(uri, order.digest)
            ready = msgspec.structs.replace(order, path=str(artifact.path))
            loaded = await held.worker.client.load(held.key, ready, wait_s=self._settings.load_timeout_s)
        except MsmError as error:
            await self._load_failed(held, error)
            return
        if self._still(held):
            await self.became_ready(held.key, held.worker.id, loaded.load_seconds)

    def _still(self, held: _Held) -> bool:
        """Whether the copy that a task works on is there: when a worker dies, all it held is forgotten at once."""
        return self.copies.holds(held.key, held.worker.id, held.details)

    async def became_ready(self, key: VersionKey, worker: str, load_seconds: float) -> None:
        """A copy answers in its worker: bring it into the routes, then let those go on who wait for it."""
        now = self._clock.monotonic()
        status = self._versions.status(key)
        # The first load of a format in a worker also imports its libraries; loading again will not.
        again_s = min(load_seconds, (status.load_seconds if status else None) or load_seconds)
        copy = self.copies.change(key, worker, state="Ready", ready_since=now, last_used=now, load_seconds=again_s)
        self._failures.pop(key, None)
        message = f"{key} is ready in worker {worker} after {load_seconds:.2f} s"
        self._note(key, "CopyLoaded", message, {"load_seconds": load_seconds, "memory_bytes": copy.memory_bytes})
        await self.publish(key.model_key)
        self.demands.settle(key)
        self.attend([key])
        self.attend_waiting()

    async def _load_failed(self, held: _Held, error: MsmError) -> None:
        key, worker = held.key, held.worker
        if isinstance(error, DeadlineExceeded):
            await self._abandon(held)
        if (error.reason == PEER_AWAY and await worker.died(DEATH_NOTICE_S)) or not self._still(held):
            return  # it died over the load: what it held is forgotten, and blamed, with it
        self.copies.remove(key, worker.id)
        failed = FailedLoad(worker.id, self._clock.monotonic(), error.message)
        self._failures[key] = (*self._failures.get(key, ()), failed)
        message = f"{key} could not be loaded into worker {worker.id}: {error.message}"
        self._journal.note(f"model/{key}", "LoadFailed", message, severity="error", data={"reason": error.reason})
        self.attend([key])
        self.attend_waiting()

    async def _abandon(self, held: _Held) -> None:
        """A load did not end in time. The thread in it cannot be ended; if it does not come back, the worker goes."""
        try:
            await held.worker.client.unload(held.key, drain_s=0.0)
        except MsmError:
            if self._still(held):
                self._workers.condemn(held.worker.id, f"the load of {held.key} does not end")
                await held.worker.died(DEATH_NOTICE_S)

    # ---- unload

    def release(self, key: VersionKey) -> None:
        """Unload every copy of a version because somebody asks for it; a request brings it back."""
        self.demands.keep(key, 0, self._clock.monotonic())
        for copy in self.copies.ready(key):
            self._unload(Unload(key, copy.worker, "asked for by the API"))

    def _unload(self, move: Unload) -> None:
        copy = self.copies.get(move.key, move.worker)
        worker = self._workers.get(move.worker)
        if copy is None or worker is None or copy.state != "Ready":
            return
        self.copies.change(copy.key, copy.worker, state="Draining")
        if not self.copies.ready(move.key):
            self._served.discard(move.key)
        self.copies.details(copy).reason = move.reason
        self._note(
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
                self._journal.note(f"model/{key}", "UnloadFailed", error.message, severity="warning")
                continue
            if self._still(held):
                self.copies.remove(key, worker.id)
            self.attend([key])
            self.attend_waiting()
            return
        if self._still(held):
            self._workers.condemn(worker.id, f"{key} cannot be unloaded")

    # ---- routes

    async def publish(self, key: ObjectKey) -> None:
        """Bring the present copies of a model into the proxy. A proxy that does not answer in time is not waited for:
        it gets the whole picture when it is back."""
        shown = {version for version in self._versions_of(key) if self.copies.ready(version)}
        try:
            async with asyncio.timeout(self._settings.publish_timeout_s):
                await self._traffic.changed(key)
        except (TimeoutError, MsmError) as error:
            why = error.message if isinstance(error, MsmError) else "no answer in time"
            self._journal.note(
                str(key), "RoutesNotAcknowledged", f"the proxy has not taken over {key}: {why}", severity="warning"
            )
        self._served |= {version for version in shown if self.copies.ready(version)}

    # ---- losses

    def lost_copy(self, copy: CopyView) -> None:
        """A worker does not hold a copy any more that it should hold."""
        self.copies.remove(copy.key, copy.worker)
        if not self.copies.ready(copy.key):
            self._served.discard(copy.key)
        self._journal.note(
            f"model/{copy.key}", "CopyLost", f"worker {copy.worker} holds {copy.key} no more", severity="warning"
        )
        self._tasks.start(f"publish {copy.key.model_key}", self.publish(copy.key.model_key))
        self.attend([copy.key])

    def lost_worker(self, worker: str, suspects: tuple[VersionKey, ...]) -> None:
        """A worker died: its copies are gone; what was in use is made warm again; the guilty are noted."""
        now = self._clock.monotonic()
        lost = self.copies.on(worker)
        for copy in lost:
            self.copies.remove(copy.key, copy.worker)
            if not self.copies.ready(copy.key):
                self._served.discard(copy.key)
            wanted = self._wanted.get(copy.key)
            if wanted is not None and copy.state == "Ready" and now - copy.last_used < wanted.idle_seconds:
                until = copy.last_used + wanted.idle_seconds
                self.demands.keep(copy.key, 1 + len(self.copies.of(copy.key)), until)
        for key in suspects:
            if key in self._wanted:
                self._blame(key, now, certain=len(suspects) == 1)
        for model in {copy.key.model_key for copy in lost if copy.state == "Ready"}:
            self._tasks.start(f"publish {model}", self.publish(model))
        self.attend(copy.key for copy in lost)
        self.attend_waiting()

    def _blame(self, key: VersionKey, now: float, *, certain: bool) -> None:
        before = self.guilt.verdict(key, now)
        verdict = self.guilt.blame(key, now, certain=certain)
        data = {"crashes": self.guilt.count(key), "certain": certain}
        if verdict.blocked_until is not None and before.blocked_until is None:
            message = f"{key} takes no traffic for {verdict.blocked_until - now:.0f} s: {verdict.reason}"
            self._note(key, "CrashLoop", message, data)
        elif verdict.isolated and not before.isolated:
            self._note(key, "Isolated", f"{key} will run in a process of its own: {verdict.reason}", data)
        self.refresh(key.model_key)
        self._look_again(verdict.look_again_at)


def failed_version(key: VersionKey, status: VersionStatus) -> LoadFailed:
    """What a request gets for a version that failed its fetch or its trial."""
    message = f"model {key.model} version {key.version} cannot be used: {status.message}"
    error = LoadFailed(message, reason=status.reason)
    error.retry_after_s = 10.0
    return error


def unavailable(rejection: Rejection, now: float) -> Unavailable:
    """What a request gets for a copy that cannot be had."""
    key = rejection.key
    retry_s = 1.0 if rejection.retry_at is None else max(1.0, rejection.retry_at - now)
    if rejection.cause == "load_failed":
        failed = LoadFailed(f"model {key.model} version {key.version} could not be loaded: {rejection.message}")
        failed.retry_after_s = retry_s
        return failed
    message = f"model {key.model} version {key.version} cannot be served: {rejection.message}"
    return Unavailable(message, reason=rejection.cause, retry_after_s=retry_s)
