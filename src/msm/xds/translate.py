"""From the plan of one service to the proxy's resources (pure).

The only place that knows both the plan and the proxy's types. What it makes is complete: nothing is patched later.
A warm service's routes stand inline in its scope, because a scope that names its table switches in two steps, and what
is held in between finds no route at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import scoped_route_pb2

from msm.planning.routing import Endpoint, ServicePlan
from msm.xds.clusters import Shared, assignment, version_cluster_template, workers_cluster
from msm.xds.names import (
    API_SCOPE,
    CDS,
    COLD_SCOPE,
    EDS,
    RDS,
    SERVER_SCOPE,
    SRDS,
    UNKNOWN_SCOPE,
    WORKERS_CLUSTER,
    scope_key,
)
from msm.xds.routes import Tables, cluster_name

Resources = Mapping[str, Mapping[str, bytes]]
"""Type URL → name → serialized resource."""

__all__ = ["Resources", "Shared", "Translator"]


class Translator:
    """Makes resources with the node-wide values `shared`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._tables = Tables(shared)
        self._version_cluster = version_cluster_template(shared)

    def service(self, plan: ServicePlan) -> Resources:
        """All resources of one service: its scope, and the cluster and the endpoints of each warm version.

        A service without a ready copy is a scope that names the shared cold table.
        """
        if not plan.touched:
            return {SRDS: {plan.service: serialized(_named_scope(plan.service, COLD_SCOPE))}}
        warm = {cluster_name(route.key): route.endpoints for route in plan.versions if route.warm}
        scope = scoped_route_pb2.ScopedRouteConfiguration(
            name=plan.service, route_configuration=self._tables.service(plan), key=_key(plan.service)
        )
        return {
            CDS: {name: self._cluster(name) for name in warm},
            EDS: {name: self._assignment(name, endpoints) for name, endpoints in warm.items()},
            SRDS: {plan.service: serialized(scope)},
        }

    def emptied(self, cluster: str) -> bytes:
        """The endpoints of a cluster that has lost all its copies: the rescue proxy alone."""
        return self._assignment(cluster, ())

    def workers(self, endpoints: Iterable[Endpoint]) -> Resources:
        """The cluster of all workers, for requests whose endpoint the activator names and for server-level calls."""
        return {
            CDS: {WORKERS_CLUSTER: serialized(workers_cluster(self._shared))},
            EDS: {WORKERS_CLUSTER: self._assignment(WORKERS_CLUSTER, endpoints)},
        }

    def internal(self) -> Resources:
        """The scopes of the mesh itself. One of them names the cold table, so that it is there before it is needed."""
        scopes = (COLD_SCOPE, SERVER_SCOPE, API_SCOPE, UNKNOWN_SCOPE)
        return {
            SRDS: {scope: serialized(_named_scope(scope, scope)) for scope in scopes},
            RDS: {table.name: serialized(table) for table in self._tables.internal()},
        }

    def _cluster(self, name: str) -> bytes:
        cluster = cluster_pb2.Cluster()
        cluster.CopyFrom(self._version_cluster)
        cluster.name = name
        return serialized(cluster)

    def _assignment(self, name: str, endpoints: Iterable[Endpoint]) -> bytes:
        return serialized(assignment(name, {endpoint.socket for endpoint in endpoints}, self._shared))


def serialized(message: Any) -> bytes:
    """`message` as bytes that are the same for equal messages: versions are made from them."""
    return bytes(message.SerializeToString(deterministic=True))


def _key(text: str) -> Any:
    return scoped_route_pb2.ScopedRouteConfiguration.Key(fragments=[{"string_key": scope_key(text)}])


def _named_scope(key: str, table: str) -> Any:
    return scoped_route_pb2.ScopedRouteConfiguration(name=key, route_configuration_name=table, key=_key(key))
