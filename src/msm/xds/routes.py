"""The route tables: of one service, of cold services, and of the mesh's own scopes (pure).

Order inside a service's table: the plain request, the version asked for, any other version (404), the split for
requests with a sticky key, the split. A route to copies has the activator switched off; a route to a cold version goes
to all workers with the activator on, which names the endpoint and the target.

The plain request is a small REST call of a warm service by its own path, with nothing that the extraction script would
have to look at. Its scope is found by the path alone, so its route switches the script off too: a third of the proxy's
work for the most frequent request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import percent_pb2, range_pb2

from msm.planning.routing import ServicePlan, VersionRoute
from msm.resources.meta import DEFAULT_NAMESPACE
from msm.resources.serving import VersionKey
from msm.xds.clusters import Shared, duration, packed
from msm.xds.names import (
    API_CLUSTER,
    API_SCOPE,
    COLD_SCOPE,
    DIALECT_HEADER,
    EXT_AUTHZ_FILTER,
    INTERNAL_ANSWER_HEADERS,
    LUA_FILTER,
    NAMESPACE_HEADER,
    OPENAI_DIALECT,
    RETRIABLE_HEADER,
    REVISION_HEADER,
    SERVER_SCOPE,
    SERVICE_HEADER,
    TARGET_HEADER,
    UNKNOWN_FILTER,
    UNKNOWN_SCOPE,
    VERSION_HEADER,
    WORKERS_CLUSTER,
)

NOT_SENT = "connect-failure,refused-stream,retriable-headers"
SENT_OR_NOT = "reset," + NOT_SENT
RETRIES = 3
PLAIN_BODY_BYTES = 64 * 1024
COPY_ATTEMPTS = 2  # attempts on copies before a replay goes to the rescue proxy
GRPC_NOT_FOUND = "5"
OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD

Route = route_components_pb2.Route
RouteAction = route_components_pb2.RouteAction


class Tables:
    """Builds route tables; holds what is the same in all of them."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._lua_off = packed(lua_pb2.LuaPerRoute(disabled=True))
        self._authz_off = packed(ext_authz_pb2.ExtAuthzPerRoute(disabled=True))
        self._replayed = retry_policy(SENT_OR_NOT)
        self._not_replayed = retry_policy(NOT_SENT)

    def service(self, plan: ServicePlan) -> Any:
        """The table of a service of which some version is warm."""
        table = self._table(plan.service, list(self._service_routes(plan)), replay=plan.idempotent)
        table.response_headers_to_add.append(header(REVISION_HEADER, str(plan.revision)))
        return table

    def internal(self) -> Iterator[Any]:
        """The tables of the internal scopes; each table has the name of its scope."""
        cold = self._cold(Route(match=anything()), self._shared.most_timeout_s)
        # Not replayed once sent: the model's own wish is not known here. The activator may allow it per request.
        yield self._table(COLD_SCOPE, [cold], replay=False)
        unknown = self._cold(Route(match=anything()), self._shared.most_timeout_s)
        yield self._table(UNKNOWN_SCOPE, [unknown], replay=False)
        server = Route(
            match=anything(), route=RouteAction(cluster=WORKERS_CLUSTER, timeout=duration(self._shared.most_timeout_s))
        )
        yield self._table(SERVER_SCOPE, [self._hot(server)], replay=True)
        api = Route(match=anything(), route=RouteAction(cluster=API_CLUSTER, timeout=duration(0)))
        yield self._table(API_SCOPE, [self._hot(api)], replay=False)

    def _service_routes(self, plan: ServicePlan) -> Iterator[Any]:
        versions = {route.key.version: route for route in plan.versions}
        if plan.warm and plan.key.namespace == DEFAULT_NAMESPACE:
            yield self._plain(plan, versions)
        asked_as = [(name, name) for name in versions] + [a for a in plan.aliases if a[1] in versions]
        for name, version in asked_as:
            yield self._one_version(plan, versions[version], name)
        yield self._hot(unknown_version(plan, [header_match("content-type", prefix="application/grpc")], grpc=True))
        yield self._hot(unknown_version(plan, [header_match(DIALECT_HEADER, exact=OPENAI_DIALECT)], openai=True))
        yield self._hot(unknown_version(plan, []))
        if not plan.warm:
            yield self._cold(Route(match=anything()), plan.timeout_s)
            return
        if plan.sticky_header is not None and len(plan.split) > 1:
            yield self._split(plan, versions, sticky=plan.sticky_header)
        yield self._split(plan, versions, sticky=None)

    def _plain(self, plan: ServicePlan, versions: dict[str, VersionRoute]) -> Any:
        route = self._split(plan, versions, sticky=None)
        absent = [NAMESPACE_HEADER, "upgrade", *([plan.sticky_header] if plan.sticky_header is not None else [])]
        conditions = [header_match(name, absent=True) for name in absent]
        # What the script may refuse is left to it: several hosts (joined with commas), no length or a large one.
        several = header_match(":authority", absent=True)
        several.string_match.CopyFrom(string_pb2.StringMatcher(contains=","))
        conditions += [several, header_match("content-length", below=PLAIN_BODY_BYTES)]
        route.match.CopyFrom(
            route_components_pb2.RouteMatch(path=f"/v2/models/{plan.service}/infer", headers=conditions)
        )
        route.typed_per_filter_config[LUA_FILTER].CopyFrom(self._lua_off)
        return route

    def _one_version(self, plan: ServicePlan, version: VersionRoute, name: str) -> Any:
        route = Route(match=anything([header_match(VERSION_HEADER, exact=name)]))
        if not version.warm:
            return self._cold(route, plan.timeout_s)
        route.route.CopyFrom(RouteAction(cluster=cluster_name(version.key), timeout=duration(plan.timeout_s)))
        route.request_headers_to_add.append(header(TARGET_HEADER, str(version.key)))
        return self._hot(route)

    def _split(self, plan: ServicePlan, versions: dict[str, VersionRoute], sticky: str | None) -> Any:
        """The shares of the traffic. Their order is the order of declaration: a hash falls into the same interval."""
        weighted = route_components_pb2.WeightedCluster(
            clusters=[
                route_components_pb2.WeightedCluster.ClusterWeight(
                    name=cluster_name(versions[entry.version].key),
                    weight={"value": entry.weight},
                    request_headers_to_add=[header(TARGET_HEADER, str(versions[entry.version].key))],
                )
                for entry in plan.split
            ]
        )
        action = RouteAction(weighted_clusters=weighted, timeout=duration(plan.timeout_s))
        conditions = []
        if sticky is not None:
            conditions.append(header_match(sticky))
            action.weighted_clusters.use_hash_policy.value = True
            # The service is the salt: without it the same units would get the new version of every service. It must
            # come second and only here: alone it would be one hash for all requests.
            action.hash_policy.extend([hash_on(sticky), hash_on(SERVICE_HEADER)])
        if (mirror := self._mirror(plan, versions)) is not None:
            action.request_mirror_policies.append(mirror)
        return self._hot(Route(match=anything(conditions), route=action))

    def _mirror(self, plan: ServicePlan, versions: dict[str, VersionRoute]) -> Any | None:
        if plan.mirror is None or plan.mirror.percent == 0:
            return None
        version = versions.get(plan.mirror.version)
        if version is None or not version.warm:
            return None
        policy = RouteAction.RequestMirrorPolicy(
            cluster=cluster_name(version.key),
            runtime_fraction={
                "default_value": {
                    "numerator": plan.mirror.percent,
                    "denominator": percent_pb2.FractionalPercent.HUNDRED,
                }
            },
            disable_shadow_host_suffix_append=True,
        )
        policy.request_headers_mutations.append(
            mutation_rules_pb2.HeaderMutation(append=header(TARGET_HEADER, str(version.key)))
        )
        return policy

    def _hot(self, route: Any) -> Any:
        route.typed_per_filter_config[EXT_AUTHZ_FILTER].CopyFrom(self._authz_off)
        return route

    def _cold(self, route: Any, timeout_s: float) -> Any:
        route.route.CopyFrom(RouteAction(cluster=WORKERS_CLUSTER, timeout=duration(timeout_s)))
        return route

    def _table(self, name: str, routes: list[Any], *, replay: bool) -> Any:
        host = route_components_pb2.VirtualHost(
            name="all",
            domains=["*"],
            routes=routes,
            retry_policy=self._replayed if replay else self._not_replayed,
            request_body_buffer_limit={"value": self._shared.replay_limit_bytes},
        )
        host.typed_per_filter_config[UNKNOWN_FILTER].CopyFrom(self._lua_off)
        return route_pb2.RouteConfiguration(
            name=name, virtual_hosts=[host], response_headers_to_remove=INTERNAL_ANSWER_HEADERS
        )


def cluster_name(key: VersionKey) -> str:
    """The name of a version's cluster."""
    return str(key)


def retry_policy(retry_on: str) -> Any:
    """Replays on another copy, and on the rescue proxy once `COPY_ATTEMPTS` attempts on copies have failed.

    A dead host has no outstanding requests and so looks best to the balancer: hence many draws for another one.
    """
    policy = route_components_pb2.RetryPolicy
    return policy(
        retry_on=retry_on,
        num_retries={"value": RETRIES},
        retriable_headers=[header_match(RETRIABLE_HEADER)],
        retry_back_off=policy.RetryBackOff(base_interval=duration(0.005), max_interval=duration(0.05)),
        host_selection_retry_max_attempts=50,
        retry_host_predicate=[
            policy.RetryHostPredicate(
                name="previous_hosts", typed_config=packed(previous_hosts_pb2.PreviousHostsPredicate())
            )
        ],
        retry_priority=policy.RetryPriority(
            name="previous_priorities",
            typed_config=packed(
                previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=COPY_ATTEMPTS)
            ),
        ),
    )


def unknown_version(plan: ServicePlan, conditions: list[Any], *, grpc: bool = False, openai: bool = False) -> Any:
    """The answer to a version that is not declared, in the caller's protocol."""
    text = f'model "{plan.service}" has no version "%REQ({VERSION_HEADER})%"'
    template = substitution_format_string_pb2.SubstitutionFormatString()
    if grpc:
        template.text_format_source.inline_string = text
    else:
        code = "version_not_found"
        error = {"message": text, "type": "invalid_request_error", "param": "model", "code": code}
        template.json_format.update({"error": error} if openai else {"error": text, "code": code})
        template.content_type = "application/json"
    route = Route(
        match=anything([header_match(VERSION_HEADER), *conditions]),
        direct_response=route_components_pb2.DirectResponseAction(status=404, body_format=template),
    )
    if grpc:
        route.response_headers_to_add.append(header("grpc-status", GRPC_NOT_FOUND))
    return route


def anything(conditions: Iterable[Any] = ()) -> Any:
    """Matches every path, on these conditions."""
    return route_components_pb2.RouteMatch(prefix="/", headers=conditions)


def header_match(
    name: str, *, exact: str | None = None, prefix: str | None = None, below: int | None = None, absent: bool = False
) -> Any:
    """The header has that value, that beginning, a number below a bound, is absent, or just is there."""
    match = route_components_pb2.HeaderMatcher(name=name, invert_match=absent)
    if exact is not None:
        match.string_match.CopyFrom(string_pb2.StringMatcher(exact=exact))
    elif prefix is not None:
        match.string_match.CopyFrom(string_pb2.StringMatcher(prefix=prefix))
    elif below is not None:
        match.range_match.CopyFrom(range_pb2.Int64Range(start=0, end=below))
    else:
        match.present_match = True
    return match


def header(key: str, value: str) -> Any:
    """Sets a header, whatever it was before."""
    return base_pb2.HeaderValueOption(header={"key": key, "value": value}, append_action=OVERWRITE)


def hash_on(name: str) -> Any:
    """This header is part of the hash."""
    return RouteAction.HashPolicy(header={"header_name": name})
