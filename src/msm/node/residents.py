"""Keeps the right versions loaded: asks the pure planner what to do and does it.

Level-triggered: whatever happens only says which versions deserve attention; the next turn of the event loop plans
from the whole present picture. A copy takes requests only after the proxy acknowledged it, and gives its memory up only
after the proxy stopped sending to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from itertools import islice

from msm.kit.clock import Clock
from msm.kit.errors import NotFound
from msm.kit.tasks import Tasks
from msm.node.artifacts import Artifacts
from msm.node.carrier import Around, Carrier
from msm.node.config import NodeSettings
from msm.node.guilt import Guilt
from msm.node.journal import Journal
from msm.node.ports import Desired, Traffic
from msm.node.refusals import failed_version, unavailable
from msm.node.runtimes import runtime_key, server_plan
from msm.node.versions import Versions
from msm.node.wishes import wishes
from msm.node.workers import Workers
from msm.planning.moves import Dedicate, Load, Move, Open, Rejection, Retire, Unload
from msm.planning.picture import CopyView, Picture, Wanted, WorkerView
from msm.planning.recovery import Blame
from msm.planning.residency import plan
from msm.planning.routing import Endpoint
from msm.resources.meta import ObjectKey
from msm.resources.serving import Model, VersionKey

AT_ONCE = 64  # versions that a single end of a load brings up for decision again


class Residents:
    """The copies of this node and the work that makes and ends them."""

    def __init__(self, settings: NodeSettings, desired: Desired, journal: Journal, tasks: Tasks, clock: Clock) -> None:
        self._settings = settings
        self._desired = desired
        self._journal = journal
        self._tasks = tasks
        self._clock = clock
        self.carrier = Carrier(settings, desired, journal, tasks, clock)
        self.copies, self.demands = self.carrier.copies, self.carrier.demands
        self.decisions = self.carrier.decisions
        self.guilt = Guilt()
        self._wanted: dict[VersionKey, Wanted] = {}
        self._of_model: dict[ObjectKey, frozenset[VersionKey]] = {}
        self._digests: dict[VersionKey, str] = {}
        self._attention: set[VersionKey] = set()
        self._empty: dict[str, float] = {}  # workers of runtimes that hold nothing, since when
        self._scheduled = False
        self._paused = True
        self._timer: asyncio.TimerHandle | None = None
        self._again_at: float | None = None
        self._versions: Versions
        self._workers: Workers

    def attach(self, versions: Versions, workers: Workers, artifacts: Artifacts, traffic: Traffic) -> None:
        """Connect the parts that come later in the making."""
        self._versions, self._workers = versions, workers
        self.carrier.attach(Around(versions, workers, artifacts, traffic, self._ended))

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

    def copies_of(self, key: ObjectKey) -> Mapping[VersionKey, tuple[Endpoint, ...]]:
        """The ready copies of every version of a model."""
        return {version: found for version in self._versions_of(key) if (found := self.carrier.endpoints(version))}

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
        for spec in model.spec.versions if model else ():
            self._leave_old_content(VersionKey(key.namespace, key.name, spec.name))
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
        self.attend(changed)

    def _forget(self, key: VersionKey) -> None:
        self._wanted.pop(key, None)
        self._digests.pop(key, None)
        self.carrier.failures.pop(key, None)
        self.guilt.clear(key)
        self.decisions.forget(key)
        self.demands.settle(key, NotFound(f"version {key} was deleted while the request waited for it"))

    def _leave_old_content(self, key: VersionKey) -> None:
        """Unload copies of other content than what the version has now; failures and crashes of it count no more."""
        status = self._versions.status(key)
        if status is None or status.digest is None or self._digests.get(key) == status.digest:
            return
        if key in self._digests:
            self.carrier.failures.pop(key, None)
            self.guilt.clear(key)
        self._digests[key] = status.digest
        for copy in self.copies.ready(key):
            if self.copies.details(copy).digest != status.digest:
                self.carrier.unload(Unload(key, copy.worker, "the version has other content now"))

    def settled(self, key: VersionKey) -> None:
        """There is a new finding about a version."""
        status = self._versions.status(key)
        self.carrier.failures.pop(key, None)
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
        """Decide about everything that could not be had so far: a worker came or went."""
        self.attend([*self.demands.waiting(), *self.decisions.open()])

    def _ended(self, key: VersionKey, memory_is_back: bool) -> None:
        """A load or unload of `key` ended: decide about it, and about what waited for its slot or its memory.

        Of thousands that wait for a slot only some are looked at: one end makes room for one.
        """
        busy = islice(self.decisions.open("busy"), AT_ONCE)
        short = self.decisions.open("no_room") if memory_is_back else ()
        self.attend([key, *self.demands.waiting(), *busy, *short])

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
        for key, wanted in list(self._wanted.items()):
            if wanted.isolated or wanted.blocked_until is not None:
                model = self._desired.model(key.model_key)
                if model is not None:
                    self._wanted.update(wishes(model, self._versions, self.guilt, now))
        self.demands.tidy(now)

    def picture(self, attention: set[VersionKey]) -> Picture:
        """Everything a decision sees of this node now."""
        workers = []
        now = self._clock.monotonic()
        empty, self._empty = self._empty, {}
        for worker in self._workers.all():
            sums = self.copies.sums(worker.id)
            if worker.server is not None and not sums.copies:
                self._empty[worker.id] = empty.get(worker.id, now)
            workers.append(
                WorkerView(
                    id=worker.id,
                    ready=worker.ready,
                    memory_bytes=sums.memory_bytes,
                    in_flight=sums.in_flight,
                    loads=sums.loads,
                    background=sums.background,
                    dedicated=worker.dedicated,
                    runtime=worker.runtime,
                    fault=worker.fault,
                    empty_since=self._empty.get(worker.id),
                    keep_s=worker.server.idle_s if worker.server else 0.0,
                )
            )
        return Picture(
            capacity_bytes=self._settings.capacity_bytes,
            used_bytes=self.copies.used_bytes + self._workers.overhead_bytes(),
            workers=tuple(workers),
            copies=self.copies.by_key,
            wanted=self._wanted,
            attention=attention,
            demand=self.demands.by_key,
            failures=self.carrier.failures,
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
                self.carrier.load(move)
            case Unload():
                self.carrier.unload(move)
            case Dedicate():
                self.carrier.note(
                    move.key, "ProcessDedicated", f"{move.key} gets a process of its own: {move.reason}", {}
                )
                runtime = self._desired.runtime(*move.runtime.split("/")) if move.runtime else None
                self._workers.dedicate(move.key, server_plan(runtime) if runtime else None)
            case Open():
                self._open(move)
            case Retire():
                self._workers.retire(move.worker)

    def _open(self, move: Open) -> None:
        key = runtime_key(move.runtime)
        runtime = self._desired.runtime(key.namespace, key.name)
        if runtime is None:
            return  # the picture changed within this turn
        self._journal.note(
            str(key), "ServersStarting", f"the servers of runtime {move.runtime} are started: {move.reason}"
        )
        self._workers.open(server_plan(runtime))

    def _reject(self, rejection: Rejection) -> None:
        if self.decisions.rejected(rejection) and rejection.cause not in ("busy", "not_valid"):
            self._journal.note(
                str(rejection.key.model_key),
                "LoadRejected",
                f"{rejection.key} is not loaded: {rejection.message}",
                severity="warning",
                data=dict(rejection.data),
            )
        if rejection.final:
            self.demands.settle(rejection.key, unavailable(rejection, self._clock.monotonic()))

    def release(self, key: VersionKey) -> None:
        """Unload every copy of a version because somebody asks for it; a request brings it back."""
        self.demands.keep(key, 0, self._clock.monotonic())
        for copy in self.copies.ready(key):
            self.carrier.unload(Unload(key, copy.worker, "asked for by the API"))

    # ---- losses

    def lost_copy(self, copy: CopyView) -> None:
        """A worker does not hold a copy any more that it should hold."""
        message = f"worker {copy.worker} holds {copy.key} no more"
        self._journal.note(str(copy.key.model_key), "CopyLost", message, severity="warning")
        self._lose(copy, self._clock.monotonic())
        self.carrier.republish(copy.key.model_key)
        self.attend([copy.key])

    def _lose(self, copy: CopyView, now: float) -> None:
        """Forget a copy; if it was in use lately, it is to be made warm again."""
        before = len(self.copies.of(copy.key))
        self.carrier.forget(copy)
        wanted = self._wanted.get(copy.key)
        if wanted is not None and copy.state == "Ready" and now - copy.last_used < wanted.idle_seconds:
            self.demands.keep(copy.key, before, copy.last_used + wanted.idle_seconds)

    def lost_worker(self, worker: str, blame: Blame) -> None:
        """A worker died: its copies are gone; what was in use is made warm again; the guilty are noted."""
        now = self._clock.monotonic()
        lost = self.copies.on(worker)
        for copy in lost:
            self._lose(copy, now)
        for key in blame.suspects:
            if key in self._wanted:
                self._blame(key, now, certain=blame.certain)
        for model in {copy.key.model_key for copy in lost if copy.state == "Ready"}:
            self.carrier.republish(model)
        self.attend(copy.key for copy in lost)
        self.attend_waiting()

    def _blame(self, key: VersionKey, now: float, *, certain: bool) -> None:
        before = self.guilt.verdict(key, now)
        verdict = self.guilt.blame(key, now, certain=certain)
        data = {"crashes": self.guilt.count(key), "certain": certain}
        if verdict.blocked_until is not None and before.blocked_until is None:
            message = f"{key} takes no traffic for {verdict.blocked_until - now:.0f} s: {verdict.reason}"
            self.carrier.note(key, "CrashLoop", message, data)
        elif verdict.isolated and not before.isolated:
            self.carrier.note(key, "Isolated", f"{key} will run in a process of its own: {verdict.reason}", data)
        self.refresh(key.model_key)
        self._look_again(verdict.look_again_at)
