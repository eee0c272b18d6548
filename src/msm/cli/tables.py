"""Rows of tables: what of a model, a version, a copy, a worker is worth a column. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from msm.cli.output import mood
from msm.cli.text import duration, size
from msm.observe.events import Event
from msm.planning.routing import effective_split
from msm.resources.observed import CopyStatus, NodeStatus, WorkerStatus
from msm.resources.runtimes import ServingRuntime
from msm.resources.serving import Acceleration, Model, SplitEntry, VersionKey, VersionStatus, service_name

Row = tuple[object, ...]

MODEL_COLUMNS = ["MODEL", "VERSIONS", "STATE", "TRAFFIC", "ALIASES", ">GENERATION"]
VERSION_COLUMNS = ["MODEL", "VERSION", "PHASE", "FORMAT", "COPIES", ">REQUESTS", ">MEMORY", ">LOADS IN", "URI"]
COPY_COLUMNS = ["VERSION", "WORKER", "STATE", ">IN FLIGHT", ">REQUESTS", ">FAILURES", ">MEMORY", ">IDLE", "REASON"]
RUNTIME_COLUMNS = ["RUNTIME", "ADAPTER", "FORMATS", ">WORKERS", "COMMAND"]
WORKER_COLUMNS = ["WORKER", "RUNTIME", "STATE", ">PID", ">COPIES", ">MEMORY", ">RESTARTS", "MESSAGE"]
ACCELERATION_COLUMNS = [
    "ACCELERATION", "SERVES", ">INPUTS", "TOLERANCE", ">LARGEST DIFFERENCE", "SPEED", "WHY",
]  # fmt: skip
EVENT_COLUMNS = ["AT", "ABOUT", "REASON", "MESSAGE"]
_PENDING = VersionStatus(phase="Pending")


def status_of(model: Model, version: str) -> VersionStatus:
    """What was found out about a version so far."""
    return (model.status.versions if model.status else {}).get(version, _PENDING)


def model_row(model: Model) -> Row:
    phases = Counter(status_of(model, version.name).phase for version in model.spec.versions)
    worst = next((phase for phase in ("Failed", "Pending", "Fetching", "Probing") if phases[phase]), "Valid")
    names = ", ".join(version.name for version in model.spec.versions[-5:])
    more = f"… {names}" if len(model.spec.versions) > 5 else names
    aliases = ", ".join(f"{alias}={version}" for alias, version in model.spec.aliases.items())
    return (
        service_name(model.key),
        more,
        mood(worst),
        _shares(effective_split(model).split),
        aliases,
        model.metadata.generation or "",
    )


def version_rows(model: Model, copies: Iterable[CopyStatus]) -> Iterator[Row]:
    by_version: dict[str, list[CopyStatus]] = {}
    for copy in copies:
        by_version.setdefault(copy.version, []).append(copy)
    for version in model.spec.versions:
        status = status_of(model, version.name)
        mine = by_version.get(str(VersionKey(model.metadata.namespace, model.metadata.name, version.name)), [])
        states = Counter(copy.state for copy in mine)
        yield (
            service_name(model.key),
            version.name,
            mood(status.phase),
            status.format or version.format or "",
            ", ".join(f"{count} {state.lower()}" for state, count in states.items()) or "cold",
            sum(copy.requests for copy in mine) if mine else "",
            size(status.memory_bytes),
            duration(status.load_seconds),
            version.uri,
        )


def acceleration_rows(model: Model) -> list[Row]:
    """What became of `accelerate: auto`, a row for each version that says so and was tried."""
    rows: list[Row] = []
    for version in model.spec.versions:
        found = status_of(model, version.name).acceleration
        if found is None:
            continue
        compared = found.inputs > 0 and found.rtol is not None and found.atol is not None
        rows.append(
            (
                version.name,
                found.way if found.used else "the original",
                found.inputs or "",
                f"labels equal, scores within {found.atol:g} + {found.rtol:g} of the value" if compared else "",
                "" if found.largest_difference is None else f"{found.largest_difference:.2g}",
                _speed(found),
                found.reason,
            )
        )
    return rows


def _speed(found: Acceleration) -> str:
    if found.speed_one is None or found.speed_batch is None:
        return ""
    return f"{found.speed_one:.1f} × for one row, {found.speed_batch:.1f} × for 64"


def describe_rows(model: Model) -> Iterator[Row]:
    spec, metadata = model.spec, model.metadata
    decision = effective_split(model)
    yield "namespace", metadata.namespace
    yield "labels", ", ".join(f"{key}={value}" for key, value in metadata.labels.items())
    yield "generation", metadata.generation or ""
    yield "traffic", f"{_shares(decision.split)} ({decision.reason})"
    if spec.traffic.sticky:
        yield "sticky by", spec.traffic.sticky.header
    if spec.traffic.mirror:
        yield "mirror", f"{spec.traffic.mirror.percent} % to {spec.traffic.mirror.version}"
    yield "aliases", ", ".join(f"{alias}={version}" for alias, version in spec.aliases.items())
    scaling = spec.scaling
    yield "copies", f"{scaling.min} to {scaling.max}, unloaded after {duration(scaling.idle_seconds)} without a request"
    yield "timeout", duration(spec.timeout_seconds)


def copy_row(copy: CopyStatus) -> Row:
    return (
        copy.version.removeprefix("default/"),
        copy.worker,
        mood(copy.state),
        copy.in_flight,
        copy.requests,
        copy.failures,
        size(copy.memory_bytes),
        duration(copy.idle_seconds),
        copy.reason or "",
    )


def runtime_row(runtime: ServingRuntime, workers: Iterable[WorkerStatus]) -> Row:
    metadata, spec = runtime.metadata, runtime.spec
    name = metadata.name if metadata.namespace == "default" else f"{metadata.namespace}/{metadata.name}"
    running = sum(worker.runtime == f"{metadata.namespace}/{metadata.name}" for worker in workers)
    return name, spec.adapter, ", ".join(spec.formats), f"{running} of {spec.workers}", " ".join(spec.command)


def runtime_rows(runtime: ServingRuntime) -> Iterator[Row]:
    spec = runtime.spec
    yield "namespace", runtime.metadata.namespace
    yield "generation", runtime.metadata.generation or ""
    yield "adapter", f"{spec.adapter}, protocol {spec.protocol}"
    yield "holds", "one model a process" if spec.one_process_per_model else "many models"
    yield "formats", ", ".join(spec.formats)
    yield "command", " ".join(spec.command)
    yield "env", ", ".join(spec.env)
    yield "workers", spec.workers
    yield "starts within", duration(spec.startup_seconds)
    yield "stops after", f"{duration(spec.idle_seconds)} without a model"
    yield "memory", f"{spec.memory_overhead} before any model"


def worker_row(worker: WorkerStatus) -> Row:
    return (
        worker.id,
        (worker.runtime or "").removeprefix("default/"),
        mood(worker.state),
        worker.pid or "",
        worker.copies,
        size(worker.rss_bytes),
        worker.restarts,
        worker.message or "",
    )


def node_rows(status: NodeStatus) -> Iterator[Row]:
    gateway = status.gateway
    yield "version", status.version
    yield "started", local_time(status.started_at)
    yield "gateway", gateway.address
    yield "envoy", f"{gateway.version or ''} {'connected' if gateway.connected else 'not connected'}"
    yield "memory", f"{size(status.used_bytes)} of {size(status.capacity_bytes)}"
    yield "workers", ", ".join(f"{count} {state.lower()}" for state, count in _states(status.workers).items())
    yield "copies", ", ".join(f"{count} {state.lower()}" for state, count in _states(status.copies).items())
    yield "load queue", status.queued


def event_row(event: Event) -> Row:
    return (
        local_time(event.at),
        event.subject,
        mood(event.severity) if event.severity != "info" else event.reason,
        event.message,
    )


def local_time(at: float) -> str:
    """A wall time in the zone of the person who reads it."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _states(things: Iterable[WorkerStatus] | Iterable[CopyStatus]) -> Counter[str]:
    return Counter(thing.state for thing in things)


def _shares(split: Iterable[SplitEntry]) -> str:
    return ", ".join(f"{entry.version} {entry.weight} %" for entry in split)
