"""From a declared model and the copies that exist to the plan of its traffic, neutral of any proxy.

`effective_split` decides which versions answer, `plan_service` adds where their copies are. The plan is what
`msm.xds.translate` turns into Envoy's resources; it is complete, so a plan is enough to explain a route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msm.resources.meta import ObjectKey
from msm.resources.serving import Model, SplitEntry, VersionKey, service_name

STABLE = "stable"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A ready copy: the worker that holds it and the unix socket it answers on."""

    worker: str
    socket: str


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """One version of a service: where its ready copies are (none: cold)."""

    key: VersionKey
    endpoints: tuple[Endpoint, ...]

    @property
    def warm(self) -> bool:
        return bool(self.endpoints)


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """A copy of `percent` of the requests goes to `version`."""

    version: str
    percent: int


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The traffic of one service.

    `split` holds versions with a weight above 0, in declared order (sticky assignment depends on the order); the
    weights sum to 100. The service is warm when every version of the split has a ready copy; else requests that
    follow the split are held by the activator. `aliases` maps each alias to its version. `revision` is the
    generation of the declared object, told in every answer.
    """

    service: str
    key: ObjectKey
    revision: int
    versions: tuple[VersionRoute, ...]
    split: tuple[SplitEntry, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    sticky_header: str | None = None
    mirror: MirrorPlan | None = None
    idempotent: bool = True
    timeout_s: float = 30.0

    @property
    def warm(self) -> bool:
        ready = {route.key.version for route in self.versions if route.warm}
        return bool(self.split) and all(entry.version in ready for entry in self.split)

    @property
    def touched(self) -> bool:
        """Whether any version has a ready copy: then the service needs a table of its own."""
        return any(route.warm for route in self.versions)


@dataclass(frozen=True, slots=True)
class SplitDecision:
    """The split in force and why it is not the declared one, if so."""

    split: tuple[SplitEntry, ...]
    reason: str


def desired_split(model: Model) -> tuple[SplitEntry, ...]:
    """What the person asked for: the declared split without zero weights, else `stable`, else the newest version."""
    declared = tuple(entry for entry in model.spec.traffic.split if entry.weight > 0)
    if declared:
        return declared
    target = model.spec.aliases.get(STABLE, model.spec.versions[-1].name)
    return (SplitEntry(version=target, weight=100),)


def effective_split(model: Model) -> SplitDecision:
    """The split that may be served now.

    The desired split is taken once every version in it is Valid: a version that does not become ready never takes
    traffic. Until then the split in force stays, as far as its versions still exist; with none in force the desired
    split is taken, so that a request is told why its version cannot be had.
    """
    desired = desired_split(model)
    known = model.status.versions if model.status else {}
    waiting = [e.version for e in desired if (s := known.get(e.version)) is None or s.phase != "Valid"]
    if not waiting:
        return SplitDecision(desired, "as declared")
    names = {version.name for version in model.spec.versions}
    in_force = model.status.traffic if model.status else ()
    if in_force and in_force != desired and all(entry.version in names for entry in in_force):
        return SplitDecision(in_force, f"version {', '.join(waiting)} is not valid yet: the split in force stays")
    return SplitDecision(desired, f"version {', '.join(waiting)} is not valid yet and no other split is in force")


def plan_service(model: Model, copies: Mapping[VersionKey, tuple[Endpoint, ...]]) -> ServicePlan:
    """The complete plan of one service from its declaration, its status and its ready copies."""
    namespace, name = model.metadata.namespace, model.metadata.name
    keys = [VersionKey(namespace, name, version.name) for version in model.spec.versions]
    traffic = model.spec.traffic
    return ServicePlan(
        service=service_name(model.key),
        key=model.key,
        revision=model.metadata.generation or 0,
        versions=tuple(VersionRoute(key, copies.get(key, ())) for key in keys),
        split=effective_split(model).split,
        aliases=tuple(sorted(model.spec.aliases.items())),
        sticky_header=traffic.sticky.header if traffic.sticky else None,
        mirror=MirrorPlan(traffic.mirror.version, traffic.mirror.percent) if traffic.mirror else None,
        idempotent=model.spec.idempotent,
        timeout_s=model.spec.timeout_seconds,
    )


def resolve_version(model: Model, wanted: str | None) -> tuple[str, ...] | None:
    """The versions a request needs: of the split when it names none, else the named version or alias.

    None when the model has no version or alias of that name.
    """
    if wanted is None:
        return tuple(entry.version for entry in effective_split(model).split)
    name = model.spec.aliases.get(wanted, wanted)
    return (name,) if model.version(name) is not None else None
