"""What Envoy starts with (pure): the listener, the filters, the answers that Envoy makes itself, the static clusters.

Everything that depends on a service arrives later over ADS. The bootstrap is JSON made from plain dicts, because it is
built once and is read by people.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from msm.gateway.activation import TO_CLIENT, TO_UPSTREAM
from msm.gateway.local_replies import local_replies
from msm.resources.meta import NAME_RULE
from msm.xds.names import (
    ACTIVATION_CLUSTER,
    API_CLUSTER,
    EXT_AUTHZ_FILTER,
    HTTP_OPTIONS,
    LUA_FILTER,
    REVISION_HEADER,
    SCOPE_HEADER,
    SCOPE_INDEX,
    SCOPE_SEPARATOR,
    SERVICE_HEADER,
    UNKNOWN_FILTER,
    XDS_CLUSTER,
)

TYPES = "type.googleapis.com/envoy."
MANY = 1_000_000
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """How the node's Envoy runs.

    `hold_s` bounds how long a request may wait for a cold version; it must be longer than the longest load.
    `body_limit_bytes` is what the workers take too. `stream_window_bytes` bounds a gRPC message that names its model
    in the body; `buffer_bytes` is what one connection may buffer, and bounds an OpenAI-style body that names its model
    over HTTP/1.1. `heap_bytes` bounds Envoy's memory: near it, it stops keep-alive and then accepting. The access log
    is off unless a file is named.
    """

    run_dir: Path
    node_id: str
    address: str = "127.0.0.1"
    port: int = 8080
    concurrency: int = 1
    hold_s: float = 120.0
    body_limit_bytes: int = 64 * 2**20
    stream_window_bytes: int = 16 * 2**20
    buffer_bytes: int = 2**20
    heap_bytes: int = 2 * 2**30
    most_connections: int = 10_000
    access_log: Path | None = None

    @property
    def xds_socket(self) -> Path:
        return self.run_dir / "xds.sock"

    @property
    def activation_socket(self) -> Path:
        return self.run_dir / "activation.sock"

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "envoy-admin.sock"

    @property
    def api_socket(self) -> Path:
        return self.run_dir / "api.sock"

    @property
    def rescue_socket(self) -> Path:
        return self.run_dir / "rescue.sock"


def bootstrap(config: GatewayConfig) -> str:
    """The bootstrap as JSON text; equal configurations give equal texts."""
    document: Json = {
        "node": {"id": config.node_id, "cluster": "msm"},
        "admin": {"address": {"pipe": {"path": str(config.admin_socket), "mode": 0o600}}},
        "static_resources": {
            "listeners": [_listener(config)],
            "clusters": [_xds_cluster(config), _activation_cluster(config), _api_cluster(config)],
        },
        "dynamic_resources": {"cds_config": _ads(), "ads_config": _ads_config()},
        "stats_config": _stats(),
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
        "overload_manager": _overload_manager(config),
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _runtime()}]},
    }
    return json.dumps(document, indent=1)


def extraction_script(config: GatewayConfig) -> str:
    """The Lua script that finds service and version, with this configuration's limits."""
    text = _script("extract.lua")
    return text.replace("@BODY_LIMIT@", str(config.body_limit_bytes)).replace("@NAME_RULE@", NAME_RULE)


def _script(name: str) -> str:
    return resources.files("msm.gateway").joinpath(name).read_text("utf-8")


def typed(name: str, **fields: Any) -> Json:
    """A typed configuration: `name` is the message's name within Envoy's packages."""
    return {"@type": TYPES + name, **fields}


def seconds(value: float) -> str:
    """A duration as protobuf's JSON has it."""
    return f"{value:g}s"


def _ads() -> Json:
    return {"ads": {}, "resource_api_version": "V3"}


def _ads_config() -> Json:
    """A lost stream is tried again quickly: by default Envoy would wait up to 30 s."""
    back_off = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}}
    return {
        "api_type": "DELTA_GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER, "retry_policy": back_off}}],
    }


def _listener(config: GatewayConfig) -> Json:
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": _http(config)}
    return {
        "name": "gateway",
        "address": {"socket_address": {"address": config.address, "port_value": config.port}},
        "per_connection_buffer_limit_bytes": config.buffer_bytes,
        "filter_chains": [{"filters": [manager], "transport_socket_connect_timeout": "5s"}],
    }


def _http(config: GatewayConfig) -> Json:
    """REST and gRPC on one port, hardened as an edge.

    There is no limit on the time a request may take to arrive: it would end long streams and requests whose body waits
    while they are held. A silent stream ends by `stream_idle_timeout`.
    """
    return typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gateway",
        codec_type="AUTO",
        scoped_routes=_scopes(),
        http_filters=[_extraction(config), _unknown(), _activation(config), _router()],
        early_header_mutation_extensions=[_own_headers()],
        local_reply_config=local_replies(),
        access_log=_access_log(config),
        generate_request_id=False,
        server_header_transformation="PASS_THROUGH",
        skip_xff_append=True,
        use_remote_address=True,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        strip_any_host_port=True,
        request_headers_timeout="10s",
        stream_idle_timeout=seconds(max(300.0, 2 * config.hold_s)),
        max_request_headers_kb=32,
        common_http_protocol_options={
            "idle_timeout": "300s",
            "max_connection_duration": "3600s",
            "max_headers_count": 64,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        http2_protocol_options={
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": config.stream_window_bytes,
            "initial_connection_window_size": 4 * config.stream_window_bytes,
            "max_outbound_frames": 10_000,
            "max_outbound_control_frames": 1_000,
            "max_consecutive_inbound_frames_with_empty_payload": 1,
        },
    )


def _scopes() -> Json:
    """One route table per service, found by its name: in the path, or where the extraction script has put it."""
    by_name = {"name": SCOPE_HEADER, "element_separator": SCOPE_SEPARATOR, "index": SCOPE_INDEX}
    return {
        "name": "services",
        "scope_key_builder": {"fragments": [{"header_value_extractor": by_name}]},
        "rds_config_source": _ads(),
        "scoped_rds": {"scoped_rds_config_source": _ads()},
    }


def _own_headers() -> Json:
    """Removes the mesh's own headers, and Envoy's, from what clients send; before any filter, so never skipped.

    Then the path becomes the header that scopes are found by. Only a service's plain request (`msm.xds.routes`) is
    routed by that; for all others the extraction script replaces it.
    """
    mutations: list[Json] = [
        {"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-msm-", "x-envoy-")
    ]
    scope = {"key": SCOPE_HEADER, "value": "%REQ(:path)%"}
    mutations.append({"append": {"header": scope, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}})
    kind = "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return {"name": "own-headers", "typed_config": typed(kind, mutations=mutations)}


def _extraction(config: GatewayConfig) -> Json:
    script = {"inline_string": extraction_script(config)}
    lua = typed("extensions.filters.http.lua.v3.Lua", default_source_code=script)
    return {"name": LUA_FILTER, "typed_config": lua}


def _unknown() -> Json:
    """Hands requests without a route to the node process."""
    lua = typed("extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _script("unknown.lua")})
    return {"name": UNKNOWN_FILTER, "typed_config": lua}


def _activation(config: GatewayConfig) -> Json:
    """Asks the node process about requests on cold routes; hot routes switch this filter off.

    `max_interval` of the back-off is also the time-out of each attempt. Shorter than the hold, it would cancel and
    repeat the question, which the node process would take for a client that hung up.
    """
    hold = seconds(config.hold_s)
    ask = {
        "server_uri": {"uri": "http://msm", "cluster": ACTIVATION_CLUSTER, "timeout": hold},
        "authorization_response": {
            "allowed_upstream_headers": _exactly(TO_UPSTREAM),
            "allowed_client_headers": _exactly(TO_CLIENT),
            "allowed_client_headers_on_success": _exactly((REVISION_HEADER,)),
        },
        "retry_policy": {
            "retry_on": "reset,connect-failure,refused-stream",
            "num_retries": 60,
            "retry_back_off": {"base_interval": "0.1s", "max_interval": hold},
        },
    }
    authz = typed(
        "extensions.filters.http.ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        stat_prefix="activation",
        clear_route_cache=True,
        failure_mode_allow=False,
        status_on_error={"code": "ServiceUnavailable"},
        allowed_headers={"patterns": [{"prefix": "x-msm-"}, {"exact": "content-type"}]},
        http_service=ask,
    )
    return {"name": EXT_AUTHZ_FILTER, "typed_config": authz}


def _exactly(headers: Iterable[str]) -> Json:
    return {"patterns": [{"exact": header} for header in headers]}


def _router() -> Json:
    router = typed("extensions.filters.http.router.v3.Router", suppress_envoy_headers=True)
    return {"name": "envoy.filters.http.router", "typed_config": router}


def _access_log(config: GatewayConfig) -> list[Json]:
    if config.access_log is None:
        return []
    fields = {
        "at": "%START_TIME%",
        "service": f"%REQ({SERVICE_HEADER})%",
        "target": "%REQ(x-msm-target)%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS_NUMBER%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "ms": "%DURATION%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
    }
    log = typed(
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=str(config.access_log),
        log_format={"json_format": fields},
    )
    return [{"name": "file", "typed_config": log}]


def _xds_cluster(config: GatewayConfig) -> Json:
    return _socket_cluster(XDS_CLUSTER, config.xds_socket, {"http2_protocol_options": {}})


def _activation_cluster(config: GatewayConfig) -> Json:
    """The node process. Held requests are open calls on it, and all of them may be repeated when it comes back."""
    limits = {
        "max_connections": MANY,
        "max_pending_requests": MANY,
        "max_requests": MANY,
        "max_retries": MANY,
    }
    cluster = _socket_cluster(ACTIVATION_CLUSTER, config.activation_socket, {"http_protocol_options": {}})
    return {**cluster, "circuit_breakers": {"thresholds": [limits]}}


def _api_cluster(config: GatewayConfig) -> Json:
    return _socket_cluster(API_CLUSTER, config.api_socket, {"http_protocol_options": {}})


def _socket_cluster(name: str, socket: Path, protocol: Json) -> Json:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    options = typed("extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config=protocol)
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {HTTP_OPTIONS: options},
    }


def _stats() -> Json:
    """Few: each statistic costs memory in each of thousands of clusters."""
    patterns = [
        {"suffix": ".upstream_rq_total"},
        {"prefix": "cluster_manager"},
        {"prefix": f"cluster.{XDS_CLUSTER}."},
        {"prefix": "http.gateway.downstream_"},
        {"prefix": "control_plane."},
        {"prefix": "server."},
    ]
    return {"stats_matcher": {"inclusion_list": {"patterns": patterns}}}


def _overload_manager(config: GatewayConfig) -> Json:
    heap = "envoy.resource_monitors.fixed_heap"
    connections = "envoy.resource_monitors.global_downstream_max_connections"

    def action(name: str, threshold: float) -> Json:
        return {"name": name, "triggers": [{"name": heap, "threshold": {"value": threshold}}]}

    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": typed(
                    "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=config.heap_bytes,
                ),
            },
            {
                "name": connections,
                "typed_config": typed(
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=config.most_connections,
                ),
            },
        ],
        "actions": [
            action("envoy.overload_actions.shrink_heap", 0.90),
            action("envoy.overload_actions.disable_http_keepalive", 0.92),
            action("envoy.overload_actions.stop_accepting_connections", 0.95),
            action("envoy.overload_actions.stop_accepting_requests", 0.98),
        ],
    }


def _runtime() -> Json:
    """Against clients that open and reset streams for ever, and long regular expressions."""
    return {
        "overload.premature_reset_total_stream_count": 500,
        "overload.premature_reset_min_stream_lifetime_seconds": 1,
        "re2.max_program_size.error_level": 200,
    }
