"""The node's agent: makes declared versions servable on this machine, and says what it does and why.

It composes the parts (versions, workers, residents, observer) and is what the gateway and the API talk to. Requests
come here only for versions that are cold; a warm request never touches this process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msm import __version__
from msm.kit.clock import Clock, SystemClock
from msm.kit.errors import Conflict, MsmError, NotFound, Overloaded, Unavailable
from msm.kit.nearest import hint
from msm.kit.tasks import Tasks
from msm.node.accelerating import library_format
from msm.node.artifacts import Artifacts
from msm.node.config import NodeSettings
from msm.node.demand import Outcome
from msm.node.explain import explain_model
from msm.node.fetch import Fetcher
from msm.node.journal import Journal
from msm.node.observer import Observer
from msm.node.ports import Desired, Records, Traffic
from msm.node.preparing import Preparer
from msm.node.probation import Probation
from msm.node.refusals import failed_version
from msm.node.residents import Residents
from msm.node.runtimes import ServerPlan, runtime_key, runtime_name, server_plan
from msm.node.versions import Versions
from msm.node.workers import Worker, Workers
from msm.observe.events import Event
from msm.observe.logs import get_logger
from msm.planning.activation import Activated, ActivationRequest
from msm.planning.picture import Wanted
from msm.planning.preview import preview
from msm.planning.recovery import Blame
from msm.planning.routing import Endpoint, resolve_version
from msm.resources.meta import ObjectKey
from msm.resources.observed import Explanation, GatewayStatus, NodeStatus, Reason
from msm.resources.serving import Model, VersionKey, service_name

log = get_logger("agent")


class Agent:
    """One node's agent. Make it, `start` it, `close` it."""

    def __init__(
        self,
        settings: NodeSettings,
        desired: Desired,
        records: Records,
        traffic: Traffic,
        emit: Callable[[Event], None],
        clock: Clock | None = None,
    ) -> None:
        """`emit` takes what is to be written into the event log and must not block."""
        settings.check()
        self._settings = settings
        self._desired = desired
        self._traffic = traffic
        self._clock = clock or SystemClock()
        journal = self._journal = Journal(emit, self._clock)
        self._tasks = Tasks(self._report)
        self._residents = Residents(settings, desired, journal, self._tasks, self._clock)
        self._versions = Versions(settings, desired, records, journal, self._tasks, self._clock)
        self._workers = Workers(settings, self, journal, self._tasks, self._clock)
        self._artifacts = Artifacts(
            settings.data_dir / "artifacts",
            Fetcher(settings.fetch),
            self._tasks,
            limit_bytes=settings.cache_bytes,
            named=self._versions.digests,
        )
        self._probation = Probation(settings, journal, self._tasks, self._clock, dict(os.environ))
        self._observer = Observer(settings, self._residents, journal, self._tasks, self._clock)
        self._preparer = Preparer(self._workers, journal, self._tasks)
        self._versions.attach(self._artifacts, self._probation, self._settled)
        self._residents.attach(self._versions, self._workers, self._artifacts, traffic)
        self._observer.attach(self._versions, self._workers)
        self._adopting: list[asyncio.Task[None]] = []
        self._started_at = 0.0

    # ---- begin and end

    async def start(self) -> None:
        """Adopt what lives, start what is missing, take in every declared model.

        Returns when the copies of adopted workers are known and published; new workers and loads follow.
        """
        self._started_at = self._clock.wall()
        await self._artifacts.start()
        await self._versions.start()
        for model in list(self._desired.models()):
            self._residents.refresh(model.key)
            for spec in model.spec.versions:
                self._prepare(VersionKey(model.metadata.namespace, model.metadata.name, spec.name))
        self._desired.on_change(self._changed)
        self._desired.on_runtime_change(self._runtime_changed)
        await self._workers.start(self._server_plan)
        await self._probation.start()
        await asyncio.gather(*self._adopting)
        await self._publish_adopted()
        for model in list(self._desired.models()):
            self._versions.consider(model.key)
        self._residents.resume()
        self._tasks.start("observe workers", self._observer.run())

    async def _publish_adopted(self) -> None:
        models = {copy.key.model_key for copy in self._residents.copies.all() if copy.state == "Ready"}
        await asyncio.gather(*(self._residents.carrier.publish(key) for key in sorted(models)))

    async def close(self, *, stop_workers: bool = True) -> None:
        """End the agent. `stop_workers=False` leaves the workers serving for the next node process to adopt."""
        self._residents.close()
        await self._tasks.close()
        await self._workers.close(stop=stop_workers)
        await self._probation.close()

    # ---- what others tell

    def _changed(self, key: ObjectKey) -> None:
        """A declaration or status changed."""
        self._versions.consider(key)
        self._residents.refresh(key)

    def _runtime_changed(self, key: ObjectKey) -> None:
        """A runtime was declared, changed or deleted: what it runs is looked at anew, by servers as declared now."""
        self._workers.renew(runtime_name(key), self._server_plan(runtime_name(key)))
        for model in list(self._desired.models()):
            if any(spec.runtime == key.name for spec in model.spec.versions):
                self._changed(model.key)
        self._residents.attend_waiting()

    def _server_plan(self, runtime: str) -> ServerPlan | None:
        """How the servers of a runtime ("namespace/name") are run; None when it is not declared."""
        key = runtime_key(runtime)
        found = self._desired.runtime(key.namespace, key.name)
        return server_plan(found) if found is not None and found.key == key else None

    def _prepare(self, key: VersionKey) -> None:
        """Have the built-in workers import what a valid version of theirs needs."""
        model, status = self._desired.model(key.model_key), self._versions.status(key)
        spec = model.version(key.version) if model else None
        if status is not None and status.phase == "Valid" and spec is not None and spec.runtime is None:
            self._preparer.use(library_format(status))

    def _settled(self, key: VersionKey) -> None:
        """There is a new finding about a version."""
        self._prepare(key)
        self._residents.settled(key)

    def worker_ready(self, worker: Worker, *, adopted: bool) -> None:
        """From the supervisor: a worker can be used."""
        if adopted:
            self._adopting.append(self._tasks.start(f"adopt {worker.id}", self._observer.adopt(worker)))
        self._tasks.start("publish workers", self._traffic.workers_changed())
        self._preparer.ready(worker)
        self._residents.attend_all()

    def worker_lost(self, worker: Worker, blame: Blame) -> None:
        """From the supervisor: a worker is gone, with all it held."""
        self._residents.lost_worker(worker.id, blame)
        self._tasks.start("publish workers", self._traffic.workers_changed())

    def worker_gone(self, worker: Worker) -> None:
        """From the supervisor: a place was given up. What waited for it to start needs another one."""
        self._residents.attend_waiting()

    def _report(self, task: str, failure: BaseException) -> None:
        log.error("a task failed", task=task, exc_info=failure)
        self._journal.note("node", "TaskFailed", f"a task of the node failed: {task}", severity="error")

    # ---- activation

    async def activate(self, request: ActivationRequest) -> Activated:
        """Return once a copy of every version that the request may be sent to is ready and its route is published.

        Raises NotFound, Overloaded (the model's queue is full), LoadFailed (with the load's own error), Unavailable.
        Of a split it is enough that one version can be had: the others' failure must not take the service down.
        """
        model = self._desired.by_service(request.service)
        if model is None:
            nearest = self._desired.nearest(request.service)
            message = f"there is no model {request.service!r}{hint(nearest)}"
            raise NotFound(message, reason="model_not_found", nearest=nearest)
        names = resolve_version(model, request.version)
        if names is None:
            known = [*(version.name for version in model.spec.versions), *model.spec.aliases]
            message = f"model {request.service} has no version or alias {request.version!r}; it has {', '.join(known)}"
            raise NotFound(message, reason="version_not_found", nearest=known)
        keys = [VersionKey(model.metadata.namespace, model.metadata.name, name) for name in names]
        key, endpoint = await self._make_warm(model, keys, request.deadline_s)
        return Activated(
            socket=endpoint.socket,
            target=str(key),
            revision=model.metadata.generation,
            timeout_s=model.spec.timeout_seconds,
            replay=model.spec.idempotent,
        )

    async def rescue(self, target: str, deaths: int) -> str:
        """The socket of a living worker that holds `target`, waiting for one if need be.

        Called for a request that every known copy refused or dropped: the workers are asked what they really hold.
        `deaths` counts the workers that died over it since it was rescued: raises Unavailable when it must not be sent
        again.
        """
        key = _target(target)
        model = self._desired.model(key.model_key)
        if model is None or model.version(key.version) is None:
            raise NotFound(f"there is no model {target!r}")
        held_by = [self._workers.get(copy.worker) for copy in self._residents.copies.ready(key)]
        await asyncio.gather(*(self._observer.look(worker) for worker in held_by if worker is not None))
        if deaths:
            self._check_replay(model, key, deaths)
        _, endpoint = await self._make_warm(model, [key], self._settings.rescue_s)
        return endpoint.socket

    def _check_replay(self, model: Model, key: VersionKey, deaths: int) -> None:
        why = self._residents.guilt.refuse_replay(key, deaths, self._clock.monotonic())
        if why is None and not model.spec.idempotent:
            why = "the model is declared not idempotent"
        if why is not None:
            message = f"a worker died while model {key.model} version {key.version} answered; not tried again: {why}"
            raise Unavailable(message, reason="worker_died", retry_after_s=10.0)

    async def _make_warm(
        self, model: Model, keys: Sequence[VersionKey], deadline_s: float
    ) -> tuple[VersionKey, Endpoint]:
        """Wait until each of `keys` is served or known not to be; the first of them that is.

        A copy may be lost again before the one who waited for it runs: then the wait goes on within its deadline.
        """
        deadline = self._clock.monotonic() + deadline_s
        while True:
            cold = [key for key in keys if not self._residents.carrier.is_served(key)]
            errors = await self._wait(model, cold, deadline - self._clock.monotonic()) if cold else []
            for key in keys:
                found = self._residents.carrier.endpoints(key)
                if found:
                    return key, found[0]
            if errors or not cold:
                raise errors[0] if errors else Unavailable(f"model {service_name(model.key)} is being unloaded")

    async def _wait(self, model: Model, cold: Sequence[VersionKey], deadline_s: float) -> list[MsmError]:
        """Queue for cold versions; the errors of those that could not be had."""
        demands = self._residents.demands
        service = service_name(model.key)
        if demands.queued(model.key) >= model.spec.max_queue:
            raise Overloaded(
                f"{model.spec.max_queue} requests wait for model {service} already",
                reason="queue_full",
                retry_after_s=self._expected_s(cold),
            )
        errors = [error for key in cold if (error := self._known_failure(key)) is not None]
        able = [key for key in cold if self._known_failure(key) is None]
        demands.enqueue(model.key, 1)
        waits: dict[VersionKey, Outcome] = {}
        try:
            for key in able:
                waits[key] = demands.join(key, self._clock.monotonic())
                self._versions.hurry(key)
            self._residents.attend(able)
            if waits:
                await asyncio.wait(waits.values(), timeout=deadline_s)
        finally:
            demands.enqueue(model.key, -1)
            for key, outcome in waits.items():
                demands.leave(key, outcome)
        for key, outcome in waits.items():
            error = outcome.result() if outcome.done() else self._too_late(key, deadline_s)
            if error is not None:
                errors.append(error)
        return errors

    def _known_failure(self, key: VersionKey) -> MsmError | None:
        status = self._versions.status(key)
        return failed_version(key, status) if status is not None and status.phase == "Failed" else None

    def _too_late(self, key: VersionKey, deadline_s: float) -> Unavailable:
        """The error for a wait that reached its deadline: what stood in the way at the end."""
        rejection = self._residents.decisions.rejection(key)
        status = self._versions.status(key)
        reason: str
        if rejection is not None:
            why, reason = rejection.message, rejection.cause
        elif status is None or status.phase != "Valid":
            why, reason = f"it is in phase {status.phase if status else 'Pending'}", "not_valid"
        else:
            why, reason = "it is still loading", "loading"
        message = f"model {key.model} version {key.version} was not ready within {deadline_s:.1f} s: {why}"
        return Unavailable(message, reason=reason, retry_after_s=self._expected_s([key]))

    def _expected_s(self, keys: Sequence[VersionKey]) -> float:
        """How long a load of these is likely to take still, at least a second."""
        known = [status.load_seconds or 0.0 for key in keys if (status := self._versions.status(key)) is not None]
        return max(1.0, *known) if known else 1.0

    # ---- what others ask

    def copies_of(self, key: ObjectKey) -> Mapping[VersionKey, tuple[Endpoint, ...]]:
        """The ready copies of every version of a model."""
        return self._residents.copies_of(key)

    def worker_endpoints(self) -> tuple[Endpoint, ...]:
        """Every built-in worker that answers: any of them can tell whether the server lives."""
        ready = [worker for worker in self._workers.all() if worker.ready and not worker.runtime]
        return tuple(Endpoint(worker.id, str(worker.data)) for worker in ready)

    def snapshot(self, gateway: GatewayStatus | None = None) -> NodeStatus:
        """The node as it sees itself; `gateway` is what its owner tells about Envoy."""
        copies = self._residents.copies
        now = self._clock.monotonic()
        return NodeStatus(
            name=self._settings.name,
            version=__version__,
            started_at=self._started_at,
            gateway=gateway or GatewayStatus(pid=None, address=""),
            capacity_bytes=self._settings.capacity_bytes,
            used_bytes=copies.used_bytes + self._workers.overhead_bytes(),
            workers=tuple(self._workers.status(w, copies.sums(w.id).copies) for w in self._workers.all()),
            copies=tuple(copies.status(copy, now) for copy in copies.all()),
            queued=self._residents.demands.total(),
            adopted_workers=self._workers.adopted,
        )

    def explain(self, key: ObjectKey) -> Explanation:
        """Why the versions of a model are where they are. Raises NotFound."""
        model = self._desired.model(key)
        if model is None:
            raise NotFound(f"there is no {key}")
        return explain_model(model, self._residents, self._versions, self._clock.monotonic())

    def preview(self, models: Sequence[Model]) -> tuple[Reason, ...]:
        """What would be loaded, unloaded or refused if these models were declared."""
        now = self._clock.monotonic()
        supposed: dict[VersionKey, Wanted] = {}
        for model in models:
            supposed |= self._residents.supposed(model, now)
        return preview(self._residents.picture(set()), supposed, now)

    async def deactivate(self, service: str, version: str | None) -> None:
        """Begin to unload the copies of a version (None: of all versions) after the requests in flight.

        Raises NotFound, and Conflict when the declared minimum keeps them.
        """
        model = self._desired.by_service(service)
        if model is None:
            nearest = self._desired.nearest(service)
            message = f"there is no model {service!r}{hint(nearest)}"
            raise NotFound(message, reason="model_not_found", nearest=nearest)
        names = [spec.name for spec in model.spec.versions] if version is None else resolve_version(model, version)
        if names is None:
            raise NotFound(f"model {service} has no version or alias {version!r}", reason="version_not_found")
        keys = [VersionKey(model.metadata.namespace, model.metadata.name, name) for name in names]
        kept = [key for key in keys if (wanted := self._residents.wanted(key)) is not None and wanted.minimum]
        if kept:
            minimum = model.spec.scaling.min
            raise Conflict(
                f"model {service} declares at least {minimum} copies of {kept[0].version}: set scaling.min to 0"
            )
        for key in keys:
            self._residents.release(key)

    def fetched_bytes(self, key: VersionKey) -> int | None:
        """Bytes that a running fetch of this version has brought so far."""
        return self._versions.fetched_bytes(key)

    def log_path(self, worker: str) -> Path:
        """The log file of a worker. Raises NotFound."""
        place = self._workers.get(worker)
        if place is None:
            names = sorted(known.id for known in self._workers.all())
            raise NotFound(f"there is no worker {worker!r}; there are {', '.join(names)}", nearest=names)
        return place.log


def _target(target: str) -> VersionKey:
    try:
        return VersionKey.parse(target)
    except ValueError as error:
        raise NotFound(f"there is no model {target!r}") from error
