"""Clusters of versions and of workers, and where their endpoints are (pure).

A cluster has its ready copies at priority 0 and the node's rescue socket at priority 1. The overprovisioning factor is
so large that one healthy copy keeps all traffic at priority 0: the rescue proxy gets a request only when every copy
has been ejected, or, by the routes' retry priority, when two attempts on copies have failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import config_source_pb2, extension_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.override_host.v3 import override_host_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import any_pb2, duration_pb2

from msm.xds.names import ENDPOINT_HEADER, HTTP_OPTIONS, WORKERS_CLUSTER

NO_LIMIT = 1_000_000
OVERPROVISIONING = 1_000_000  # per cent: one healthy copy among 10,000 is still enough for all traffic
EJECTION_S = 1.0
MOST_EJECTION_S = 5.0


@dataclass(frozen=True, slots=True)
class Shared:
    """What the tables of all services of a node have in common.

    `replay_limit_bytes` is the largest body that is kept for a replay after its worker died. `hold_s` bounds how long
    a request may wait for a cold version; `most_timeout_s` bounds a request on the shared cold route, where the
    model's own time-out isn't known. `retry_floor` is the number of concurrent replays per cluster that the retry
    budget always allows: requests that wait in the rescue proxy count as replays, so it is what a worker may have had
    in flight when it died.
    """

    rescue_socket: str
    replay_limit_bytes: int = 16 * 2**20
    most_timeout_s: float = 3600.0
    connect_timeout_s: float = 0.5
    retry_floor: int = 4096


def packed(message: Any) -> Any:
    """`message` as an Any."""
    wrapped = any_pb2.Any()
    wrapped.Pack(message, deterministic=True)
    return wrapped


def duration(seconds: float) -> Any:
    """`seconds` as a protobuf Duration."""
    whole = int(seconds)
    return duration_pb2.Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))


def extension(name: str, config: Any) -> Any:
    """A typed extension of that name."""
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=packed(config))


def ads_source() -> Any:
    """The stream this process serves."""
    return config_source_pb2.ConfigSource(ads=config_source_pb2.AggregatedConfigSource(), resource_api_version="V3")


def version_cluster_template(shared: Shared) -> Any:
    """The cluster of every version, but for its name: least outstanding requests over the ready copies."""
    balance = extension("least_request", least_request_pb2.LeastRequest())
    return _cluster("", shared, balance)


def workers_cluster(shared: Shared) -> Any:
    """All workers of the node: the endpoint that the activator named, else the least loaded one."""
    fallback = cluster_pb2.LoadBalancingPolicy(
        policies=[
            cluster_pb2.LoadBalancingPolicy.Policy(
                typed_extension_config=extension("least_request", least_request_pb2.LeastRequest())
            )
        ]
    )
    override = override_host_pb2.OverrideHost(
        override_host_sources=[override_host_pb2.OverrideHost.OverrideHostSource(header=ENDPOINT_HEADER)],
        fallback_policy=fallback,
    )
    return _cluster(WORKERS_CLUSTER, shared, extension("override_host", override))


def assignment(cluster: str, sockets: Iterable[str], shared: Shared) -> Any:
    """Where the endpoints of `cluster` are: the sockets of its ready copies, and behind them the rescue socket."""
    return endpoint_pb2.ClusterLoadAssignment(
        cluster_name=cluster,
        endpoints=[_locality(sockets, 0), _locality([shared.rescue_socket], 1)],
        policy=endpoint_pb2.ClusterLoadAssignment.Policy(overprovisioning_factor={"value": OVERPROVISIONING}),
    )


def _locality(sockets: Iterable[str], priority: int) -> Any:
    endpoints = [
        endpoint_components_pb2.LbEndpoint(endpoint={"address": {"pipe": {"path": socket}}})
        for socket in sorted(sockets)
    ]
    return endpoint_components_pb2.LocalityLbEndpoints(priority=priority, lb_endpoints=endpoints)


def _cluster(name: str, shared: Shared, balance: Any) -> Any:
    policy = cluster_pb2.LoadBalancingPolicy(
        policies=[cluster_pb2.LoadBalancingPolicy.Policy(typed_extension_config=balance)]
    )
    cluster = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=ads_source()),
        connect_timeout=duration(shared.connect_timeout_s),
        ignore_health_on_host_removal=True,
        circuit_breakers=_breakers(shared),
        outlier_detection=_outliers(),
        load_balancing_policy=policy,
        common_lb_config=cluster_pb2.Cluster.CommonLbConfig(
            # Never send to copies known to be dead; merging updates would delay what the node decided.
            healthy_panic_threshold={"value": 0.0},
            update_merge_window=duration(0),
        ),
    )
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(packed(_http1_with_trailers()))
    return cluster


def _http1_with_trailers() -> Any:
    """gRPC reaches the workers as HTTP/1.1: without trailers its status would be lost."""
    options = http_protocol_options_pb2.HttpProtocolOptions
    return options(
        explicit_http_config=options.ExplicitHttpConfig(
            http_protocol_options=protocol_pb2.Http1ProtocolOptions(enable_trailers=True)
        ),
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(idle_timeout=duration(3600)),
    )


def _breakers(shared: Shared) -> Any:
    """No limit but the retry budget: queues are bounded in the workers and in the activator, where they are known."""
    thresholds = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections={"value": NO_LIMIT},
        max_pending_requests={"value": NO_LIMIT},
        max_requests={"value": NO_LIMIT},
        max_retries={"value": NO_LIMIT},
        retry_budget=circuit_breaker_pb2.CircuitBreakers.Thresholds.RetryBudget(
            budget_percent={"value": 20.0}, min_retry_concurrency={"value": shared.retry_floor}
        ),
    )
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[thresholds])


def _outliers() -> Any:
    """Ejects a copy whose process is gone, at the first sign; never for what a model answers.

    One bad model must not eject a process that serves others. All copies may be ejected: the rescue socket is left.
    """
    return outlier_detection_pb2.OutlierDetection(
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure={"value": 1},
        enforcing_consecutive_local_origin_failure={"value": 100},
        enforcing_consecutive_5xx={"value": 0},
        enforcing_consecutive_gateway_failure={"value": 0},
        enforcing_success_rate={"value": 0},
        enforcing_local_origin_success_rate={"value": 0},
        interval=duration(0.5),
        base_ejection_time=duration(EJECTION_S),
        max_ejection_time=duration(MOST_EJECTION_S),
        max_ejection_percent={"value": 100},
    )
