"""Brings each declared version to Valid or Failed: fetch, digest, trial, record.

Looks at no copies and no traffic. It is level-triggered: `consider` compares what is declared with what was
found, and starts what is missing; what was found survives restarts in the model's status, so a restart tries
nothing again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from msm.kit.clock import Clock
from msm.kit.errors import LoadFailed, MsmError
from msm.kit.tasks import Tasks, backoff_s
from msm.node.accelerating import Accelerator, is_accelerated
from msm.node.artifacts import Artifact, Artifacts
from msm.node.config import NodeSettings
from msm.node.fetch import TRANSIENT
from msm.node.gate import Gate
from msm.node.journal import Journal
from msm.node.ports import Desired, Records
from msm.node.probation import Probation
from msm.node.runtimes import NO_RUNTIME, check_format, cost_format, first_estimate, runtime_name, runtime_of
from msm.node.worker_client import Loaded
from msm.resources.meta import ObjectKey, to_plain
from msm.resources.runtimes import ServingRuntime
from msm.resources.serving import (
    Model,
    ModelStatus,
    Signature,
    VersionKey,
    VersionPhase,
    VersionSpec,
    VersionStatus,
)
from msm.store.keys import cost_key
from msm.store.records import Cost

SHOW_AFTER_S = 0.5
RETRY_BASE_S = 1.0
RETRY_MOST_S = 300.0


@dataclass(slots=True)
class _Job:
    """The work on one version as it was declared when the work began."""

    spec: VersionSpec
    task: asyncio.Task[None]


class Versions:
    """The findings about every declared version, and the work that makes them."""

    def __init__(
        self,
        settings: NodeSettings,
        desired: Desired,
        records: Records,
        journal: Journal,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._desired = desired
        self._records = records
        self._journal = journal
        self._tasks = tasks
        self._clock = clock
        self._urgent: set[VersionKey] = set()
        self._fetches = Gate(settings.parallel_fetches, self._urgent)
        self._probes = Gate(settings.parallel_probes, self._urgent)
        self._found: dict[VersionKey, VersionStatus] = {}
        self._specs: dict[VersionKey, VersionSpec] = {}  # the declaration that a finding is about
        self._of_model: dict[ObjectKey, frozenset[VersionKey]] = {}
        self._jobs: dict[VersionKey, _Job] = {}
        self._bytes: dict[VersionKey, int] = {}
        self._costs: dict[str, Cost] = {}  # by cost_key
        self._costs_by_digest: dict[str, Cost] = {}  # of the built-in worker
        self._measured: set[VersionKey] = set()  # versions of external servers that were measured by this process
        self._failed_with: dict[VersionKey, int | None] = {}  # the generation of the runtime that a version failed with
        self._artifacts: Artifacts
        self._probation: Probation
        self._accelerator: Accelerator
        self._settled: Callable[[VersionKey], None]

    def attach(self, artifacts: Artifacts, probation: Probation, settled: Callable[[VersionKey], None]) -> None:
        """Connect the parts that come later in the making; `settled(key)` is called when a finding changed."""
        self._artifacts, self._probation, self._settled = artifacts, probation, settled
        self._accelerator = Accelerator(self._settings, artifacts, probation)

    async def start(self) -> None:
        """Read the recorded costs."""
        for name, cost in (await self._records.costs()).items():
            self._know(name.rsplit("/", 1)[0], cost)

    def _know(self, digest: str, cost: Cost) -> None:
        self._costs[cost_key(digest, cost.format)] = cost
        if "@" not in cost.format:
            self._costs_by_digest[digest] = cost

    # ---- what is known

    def status(self, key: VersionKey) -> VersionStatus | None:
        """The finding about a version: of this process, else as recorded."""
        found = self._found.get(key)
        if found is not None:
            return found
        model = self._desired.model(key.model_key)
        return model.status.versions.get(key.version) if model and model.status else None

    def fetched_bytes(self, key: VersionKey) -> int | None:
        """Bytes that a running fetch has brought so far."""
        return self._bytes.get(key)

    def digests(self) -> set[str]:
        """Every digest that a version names or was found to have."""
        named: set[str] = set()
        for model in self._desired.models():
            for spec in model.spec.versions:
                status = self.status(_key(model, spec))
                found = (status.digest, status.acceleration.digest if status.acceleration else None) if status else ()
                named |= {digest for digest in (spec.digest, *found) if digest}
        return named

    def in_progress(self) -> int:
        """Versions that are being fetched or tried, or wait for it."""
        return len(self._jobs)

    # ---- orders

    def consider(self, key: ObjectKey) -> None:
        """Compare a model's declaration with the findings; begin and end work accordingly."""
        model = self._desired.model(key)
        specs = {_key(model, spec): spec for spec in model.spec.versions} if model else {}
        for gone in self._of_model.pop(key, frozenset()) - specs.keys():
            self._drop(gone)
        if specs:
            self._of_model[key] = frozenset(specs)
        for version, spec in specs.items():
            job = self._jobs.get(version)
            if job is not None and job.spec == spec:
                continue
            if job is None and self._is_settled(version, spec) and not self._runtime_came(version, spec):
                continue
            self._drop(version)
            self._begin(version, spec)

    def hurry(self, key: VersionKey) -> None:
        """A request waits for this version: it overtakes the others."""
        if key in self._jobs:
            self._urgent.add(key)

    def _is_settled(self, version: VersionKey, spec: VersionSpec) -> bool:
        """Whether the finding there is, is about this declaration and final."""
        seen = self._specs.get(version)
        status = self.status(version)
        if status is None or status.phase not in ("Valid", "Failed"):
            return False
        if seen is None:  # recorded by an earlier process; versions are immutable, only the digest can be checked
            same = spec.digest is None or status.digest in (None, spec.digest)
            again = status.phase == "Failed" and (status.reason in TRANSIENT or status.reason == NO_RUNTIME)
            if same and not again:
                self._specs[version] = spec
            return same and not again
        return seen == spec

    def _runtime_came(self, version: VersionKey, spec: VersionSpec) -> bool:
        """Whether a version failed only for want of a runtime that is declared now, or is declared otherwise now."""
        status = self.status(version)
        if spec.runtime is None or status is None or status.phase != "Failed":
            return False
        known = self._desired.runtime(version.namespace, spec.runtime)
        generation = known.metadata.generation if known else None
        return known is not None and self._failed_with.get(version) != generation

    def runtime_of(self, key: VersionKey, spec: VersionSpec) -> str:
        """The runtime that runs a version ("namespace/name"), empty for the built-in worker."""
        if spec.runtime is None:
            return ""
        found = self._desired.runtime(key.namespace, spec.runtime)
        return runtime_name(found.key) if found else f"{key.namespace}/{spec.runtime}"

    def measured(self, key: VersionKey, loaded: Loaded) -> int | None:
        """Take in what a load in an external server took; the bytes that a copy is charged from now on.

        Of several measurements the least counts: the first load in a server also pays for the libraries it imports.
        """
        status, spec = self.status(key), self._specs.get(key)
        if status is None or status.phase != "Valid" or spec is None or loaded.memory_bytes is None:
            return None
        first = key not in self._measured and status.load_seconds is None
        memory = loaded.memory_bytes if first else min(loaded.memory_bytes, status.memory_bytes or loaded.memory_bytes)
        self._measured.add(key)
        found = msgspec.convert(loaded.signature, Signature) if loaded.signature else None
        fresh = msgspec.structs.replace(
            status, memory_bytes=memory, load_seconds=loaded.load_seconds, signature=status.signature or found
        )
        if fresh != status:
            self._found[key] = fresh
            self._tasks.start(f"record the cost of {key}", self._record_measured(key, spec, fresh))
        return memory

    async def _record_measured(self, key: VersionKey, spec: VersionSpec, status: VersionStatus) -> None:
        await self._record(key, status)
        self._settled(key)
        if _is_plain(spec) and status.digest is not None and status.memory_bytes is not None:
            cost = Cost(
                memory_bytes=status.memory_bytes,
                load_seconds=status.load_seconds or 0.0,
                format=cost_format(self.runtime_of(key, spec), status.format or ""),
                signature=status.signature,
                size_bytes=status.size_bytes,
            )
            self._costs[cost_key(status.digest, cost.format)] = cost
            await self._records.put_cost(status.digest, cost)

    def _drop(self, version: VersionKey) -> None:
        job = self._jobs.pop(version, None)
        if job is not None:
            job.task.cancel()
        for table in (self._found, self._specs, self._bytes):
            table.pop(version, None)
        self._urgent.discard(version)
        self._failed_with.pop(version, None)
        self._measured.discard(version)

    # ---- the work

    def _begin(self, version: VersionKey, spec: VersionSpec) -> None:
        self._specs[version] = spec
        task = self._tasks.start(f"examine {version}", self._work(version, spec))
        self._jobs[version] = _Job(spec, task)

    async def _work(self, version: VersionKey, spec: VersionSpec) -> None:
        """Examine until there is a finding that time alone will not change."""
        attempt = 0
        while True:
            status = await self._finding(version, spec)
            self._bytes.pop(version, None)
            self._found[version] = status
            again = status.phase == "Failed" and (status.reason in TRANSIENT or status.reason == NO_RUNTIME)
            if not again:
                self._urgent.discard(version)
                self._jobs.pop(version, None)
            self._settled(version)
            self._tell(version, status, spec)
            await self._record(version, status)
            if not again:
                return
            await self._clock.sleep(backoff_s(attempt, base_s=RETRY_BASE_S, most_s=RETRY_MOST_S))
            attempt += 1

    async def _finding(self, version: VersionKey, spec: VersionSpec) -> VersionStatus:
        """Valid or Failed, with what was found. The probation process being away is waited out."""
        attempt = 0
        digest: str | None = None
        while True:
            try:
                runtime = runtime_of(self._desired, version, spec)
                fmt = check_format(runtime, spec) if runtime is not None else ""
                artifact = await self._fetch(version, spec)
                digest = artifact.digest
                if runtime is not None:
                    return self._estimate(spec, artifact, runtime, fmt)
                return await self._measure(version, spec, artifact)
            except LoadFailed as error:
                known = self._desired.runtime(version.namespace, spec.runtime) if spec.runtime else None
                self._failed_with[version] = known.metadata.generation if known else None
                return VersionStatus(phase="Failed", digest=digest, reason=error.reason, message=error.message)
            except MsmError as error:
                self._journal.note(
                    str(version.model_key), "TrialPostponed", f"{version} could not be tried: {error.message}",
                    severity="warning",
                )  # fmt: skip
                await self._clock.sleep(backoff_s(attempt))
                attempt += 1

    async def _fetch(self, version: VersionKey, spec: VersionSpec) -> Artifact:
        def progress(count: int) -> None:
            self._bytes[version] = count

        async with self._fetches.pass_through(version), self._phase(version, "Fetching"):
            return await self._artifacts.fetch(spec.uri, spec.digest, progress)

    async def _measure(self, version: VersionKey, spec: VersionSpec, artifact: Artifact) -> VersionStatus:
        cost = self._known_cost(spec, artifact.digest)
        if cost is None:
            async with self._probes.pass_through(version), self._phase(version, "Probing"):
                # Another version of the same content may have been tried while this one waited for its turn.
                cost = self._known_cost(spec, artifact.digest) or await self._probe(spec, artifact)
        status = VersionStatus(
            phase="Valid",
            digest=artifact.digest,
            format=cost.format,
            signature=spec.signature or cost.signature,
            memory_bytes=cost.memory_bytes,
            load_seconds=cost.load_seconds,
            predict_seconds=cost.predict_seconds,
            size_bytes=artifact.size_bytes,
        )
        if spec.accelerate == "off":
            return status
        async with self._probes.pass_through(version), self._phase(version, "Probing"):
            return await self._accelerator.examine(spec, artifact, status)

    async def accelerated(self, key: VersionKey, spec: VersionSpec, artifact: Artifact) -> str | None:
        """The file of the converted model that serves for a version, made again if the cache lost it; None when the
        original serves. Raises Unavailable when the probation process is away."""
        status = self.status(key)
        if status is None or not is_accelerated(status):
            return None
        path = await self._accelerator.path_of(status)
        if path is None:
            status = await self._accelerator.examine(spec, artifact, status)
            path = await self._accelerator.path_of(status)
            self._found[key] = status
            self._tell_acceleration(key, status)
            await self._record(key, status)
        return None if path is None else str(path)

    def _estimate(self, spec: VersionSpec, artifact: Artifact, runtime: ServingRuntime, fmt: str) -> VersionStatus:
        """Valid without a trial: what an external server makes of a model is known when it loads it."""
        cost = None
        if _is_plain(spec):
            cost = self._costs.get(cost_key(artifact.digest, cost_format(runtime_name(runtime.key), fmt)))
        return VersionStatus(
            phase="Valid",
            digest=artifact.digest,
            format=fmt,
            signature=spec.signature or (cost.signature if cost else None),
            memory_bytes=cost.memory_bytes if cost else first_estimate(runtime, spec, artifact.size_bytes),
            load_seconds=cost.load_seconds if cost else None,
            size_bytes=artifact.size_bytes,
        )

    def _known_cost(self, spec: VersionSpec, digest: str) -> Cost | None:
        """The cost found earlier for the same content, when nothing but the content decides about how it is run."""
        if not _is_plain(spec):
            return None
        if spec.format is not None:
            return self._costs.get(cost_key(digest, spec.format))
        # The format is recognised by content: the same content was recognised as the same format before.
        return self._costs_by_digest.get(digest)

    async def _probe(self, spec: VersionSpec, artifact: Artifact) -> Cost:
        result = await self._probation.probe(str(artifact.path), spec, self._settings.probe_timeout_s)
        cost = Cost(
            memory_bytes=result.memory_bytes,
            load_seconds=result.load_seconds,
            predict_seconds=result.predict_seconds,
            format=result.format,
            signature=result.signature,
            size_bytes=artifact.size_bytes,
        )
        if _is_plain(spec):
            self._know(artifact.digest, cost)
            await self._records.put_cost(artifact.digest, cost)
        return cost

    # ---- telling

    @asynccontextmanager
    async def _phase(self, version: VersionKey, phase: VersionPhase) -> AsyncIterator[None]:
        """Show a phase; it is recorded only when it lasts, so that thousands of quick ones cost no writes."""
        status = VersionStatus(phase=phase)
        self._found[version] = status
        slow = self._tasks.start(f"show {phase} of {version}", self._record_later(version, status))
        try:
            yield
        finally:
            slow.cancel()

    async def _record_later(self, version: VersionKey, status: VersionStatus) -> None:
        await self._clock.sleep(SHOW_AFTER_S)
        await self._record(version, status)

    async def _record(self, version: VersionKey, status: VersionStatus) -> None:
        """Write the finding into the model's status; a store that is away is waited for."""

        def change(current: ModelStatus) -> ModelStatus:
            model = self._desired.model(version.model_key)
            declared = {spec.name for spec in model.spec.versions} if model else set()
            versions = {name: known for name, known in current.versions.items() if name in declared}
            versions[version.version] = status
            return msgspec.structs.replace(current, versions=versions)

        attempt = 0
        while self._desired.model(version.model_key) is not None:
            try:
                await self._records.update_status(version.model_key, change)
            except MsmError as error:
                self._journal.note(
                    str(version.model_key), "StatusNotWritten", f"the status of {version}: {error.message}",
                    severity="warning",
                )  # fmt: skip
                await self._clock.sleep(backoff_s(attempt))
                attempt += 1
            else:
                return

    def _tell(self, version: VersionKey, status: VersionStatus, spec: VersionSpec) -> None:
        if status.phase == "Failed":
            message = f"{version} cannot be used: {status.message}"
            failed: dict[str, Any] = {"reason": status.reason, "uri_scheme": spec.uri.partition(":")[0]}
            self._journal.note(str(version.model_key), "VersionFailed", message, severity="error", data=failed)
            return
        megabytes = (status.memory_bytes or 0) / (1 << 20)
        loads = "not loaded yet" if status.load_seconds is None else f"loads in {status.load_seconds:.2f} s"
        message = f"{version} is valid: {status.format}, {megabytes:.1f} MiB, {loads}"
        data: dict[str, Any] = {"digest": status.digest, "memory_bytes": status.memory_bytes}
        self._journal.note(str(version.model_key), "VersionValid", message, data=data)
        self._tell_acceleration(version, status)

    def _tell_acceleration(self, version: VersionKey, status: VersionStatus) -> None:
        found = status.acceleration
        if found is None:
            return
        if found.used:
            name, message = "Accelerated", f"{version} is served by its converted model: {found.reason}"
        else:
            name, message = "NotAccelerated", f"{version} is served by the original: {found.reason}"
        self._journal.note(str(version.model_key), name, message, data=to_plain(found))


def _key(model: Model, spec: VersionSpec) -> VersionKey:
    return VersionKey(model.metadata.namespace, model.metadata.name, spec.name)


def _is_plain(spec: VersionSpec) -> bool:
    """Whether the content alone decides how the version is run: then what was found holds for all of that content."""
    return not spec.parameters and not spec.trusted and spec.signature is None
