"""The world the proxy should see: content-versioned resources, what changed, and whether it holds together (pure).

A resource's version is a hash of its content. So a process that starts anew gives equal resources equal versions, and
a proxy that reconnects is sent only what really differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from envoy.config.route.v3 import route_pb2, scoped_route_pb2

from msm.xds.names import CDS, EDS, ORDER, RDS, SRDS, STATIC_CLUSTERS

Key = tuple[str, str]
"""Type URL and name of a resource."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource as it is sent."""

    type_url: str
    name: str
    version: str
    body: bytes

    @property
    def key(self) -> Key:
        return (self.type_url, self.name)


@dataclass(frozen=True, slots=True)
class Change:
    """Resources to set and keys to remove, each in the order in which types are sent."""

    upserts: tuple[Resource, ...] = ()
    removes: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.upserts or self.removes)

    @property
    def keys(self) -> frozenset[Key]:
        """All that the change touches."""
        return frozenset(resource.key for resource in self.upserts) | frozenset(self.removes)

    def only(self, *types: str) -> Change:
        """The part of the change that sets resources of these types; it removes nothing."""
        return Change(tuple(resource for resource in self.upserts if resource.type_url in types))


def versioned(resources: Mapping[str, Mapping[str, bytes]]) -> tuple[Resource, ...]:
    """`resources` (type URL → name → bytes) with their versions, in sending order."""
    return tuple(
        Resource(kind, name, version_of(body), body) for kind in ORDER for name, body in resources.get(kind, {}).items()
    )


def version_of(body: bytes) -> str:
    """The version of a resource with this content."""
    return hashlib.blake2b(body, digest_size=8).hexdigest()


class World:
    """Every resource, by type and name."""

    def __init__(self) -> None:
        self._resources: dict[str, dict[str, Resource]] = {kind: {} for kind in ORDER}

    def of(self, type_url: str) -> Mapping[str, Resource]:
        """The resources of one type; a live view. Empty for a type that isn't served."""
        return self._resources.get(type_url, {})

    def get(self, key: Key) -> Resource | None:
        return self._resources.get(key[0], {}).get(key[1])

    def difference(self, wanted: Iterable[Resource], owned: Iterable[Key]) -> Change:
        """What turns the resources that somebody owns into `wanted`. Of `owned`, some may be gone already."""
        wanted = tuple(wanted)
        kept = {resource.key for resource in wanted}
        upserts = tuple(r for r in wanted if (now := self.get(r.key)) is None or now.version != r.version)
        gone = {key for key in owned if key not in kept and self.get(key) is not None}
        removes = tuple(sorted(gone, key=lambda key: (ORDER.index(key[0]), key[1])))
        return Change(upserts, removes)

    def apply(self, change: Change) -> None:
        """Take the change over. Removing what isn't there is allowed."""
        for resource in change.upserts:
            self._resources[resource.type_url][resource.name] = resource
        for type_url, name in change.removes:
            self._resources[type_url].pop(name, None)

    def problems(self) -> list[str]:
        """What doesn't hold together in the whole world; empty for a consistent one."""
        resources = (resource for kind in self._resources.values() for resource in kind.values())
        return problems(resources, self)


def problems(resources: Iterable[Resource], world: World | None = None) -> list[str]:
    """Sentences on what the resources refer to and neither they nor `world` contain.

    Every cluster that a scope or a table names must exist or be static, every cluster must have an assignment, and
    every table that a scope names must exist.
    """
    own = {resource.key: resource for resource in resources}

    def exists(key: Key) -> bool:
        return key in own or (world is not None and world.get(key) is not None)

    found = []
    for resource in own.values():
        for key in _references(resource):
            if not (exists(key) or (key[0] == CDS and key[1] in STATIC_CLUSTERS)):
                kind = key[0].rsplit(".", 1)[-1]
                found.append(f'{resource.name} refers to {kind} "{key[1]}", which does not exist')
    return found


def _references(resource: Resource) -> Iterator[Key]:
    if resource.type_url == CDS:
        yield (EDS, resource.name)
    elif resource.type_url == RDS:
        yield from _clusters_of(route_pb2.RouteConfiguration.FromString(resource.body))
    elif resource.type_url == SRDS:
        scope = scoped_route_pb2.ScopedRouteConfiguration.FromString(resource.body)
        if scope.route_configuration_name:
            yield (RDS, scope.route_configuration_name)
        else:
            yield from _clusters_of(scope.route_configuration)


def _clusters_of(table: Any) -> Iterator[Key]:
    for host in table.virtual_hosts:
        for route in host.routes:
            if not route.HasField("route"):
                continue
            if route.route.cluster:
                yield (CDS, route.route.cluster)
            for share in route.route.weighted_clusters.clusters:
                yield (CDS, share.name)
            for mirror in route.route.request_mirror_policies:
                yield (CDS, mirror.cluster)
