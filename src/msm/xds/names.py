"""Names that the proxy's configuration and its writers agree on: resource types, clusters, scopes, headers.

A name of a model begins with a letter or digit, so a name beginning with "~" can never be asked for by a client.
"""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2, scoped_route_pb2

TYPE_PREFIX = "type.googleapis.com/"


def type_url(message: type) -> str:
    """The type URL of a protobuf message class."""
    return TYPE_PREFIX + str(message.DESCRIPTOR.full_name)  # type: ignore[attr-defined]  # protobuf has no stubs


CDS = type_url(cluster_pb2.Cluster)
EDS = type_url(endpoint_pb2.ClusterLoadAssignment)
LDS = type_url(listener_pb2.Listener)
SRDS = type_url(scoped_route_pb2.ScopedRouteConfiguration)
RDS = type_url(route_pb2.RouteConfiguration)

ORDER = (CDS, EDS, LDS, SRDS, RDS)
"""The order in which types are sent: what is referred to before what refers to it."""

XDS_CLUSTER = "msm-xds"
ACTIVATION_CLUSTER = "msm-activation"
API_CLUSTER = "api"
WORKERS_CLUSTER = "workers"
STATIC_CLUSTERS = frozenset({XDS_CLUSTER, ACTIVATION_CLUSTER, API_CLUSTER})

COLD_SCOPE = "~cold"
SERVER_SCOPE = "~server"
API_SCOPE = "~api"
UNKNOWN_SCOPE = "~unknown"

SCOPE_HEADER = "x-msm-scope"
SCOPE_SEPARATOR = "/"
SCOPE_INDEX = 3
"""The scope is the element at this index of the header: of a path "/v2/models/iris/infer", say, "iris"."""

SERVICE_HEADER = "x-msm-service"
VERSION_HEADER = "x-msm-version"
NAMESPACE_HEADER = "msm-namespace"
TARGET_HEADER = "x-msm-target"
ENDPOINT_HEADER = "x-msm-endpoint"
UNKNOWN_HEADER = "x-msm-unknown"
DIALECT_HEADER = "x-msm-dialect"
OPENAI_DIALECT = "openai"
"""Set by the extraction script on OpenAI-style calls, whose errors have a form of their own."""
OPEN_ENDED_HEADER = "x-msm-open-ended"
"""Set on calls that may go on for as long as a model generates: the service's time-out does not end them."""
RETRIABLE_HEADER = "x-msm-retriable"
REVISION_HEADER = "x-msm-revision"
INTERNAL_ANSWER_HEADERS = (
    SCOPE_HEADER,
    SERVICE_HEADER,
    TARGET_HEADER,
    ENDPOINT_HEADER,
    RETRIABLE_HEADER,
    "endpoint-load-metrics",
)
"""Removed from every answer: they are for the mesh alone."""

EXT_AUTHZ_FILTER = "envoy.filters.http.ext_authz"
LUA_FILTER = "envoy.filters.http.lua"
UNKNOWN_FILTER = "msm.unknown"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def scope_key(service: str) -> str:
    """The scope of a service. A service's "namespace/name" has the separator in it, so that becomes a "~"."""
    return service.replace("/", "~")
