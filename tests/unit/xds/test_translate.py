"""What a plan becomes: the order of a table, who is asked and who is not, where endpoints are."""

from __future__ import annotations

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2, scoped_route_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from hypothesis import given
from hypothesis import strategies as st

from msm.xds.names import CDS, EDS, EXT_AUTHZ_FILTER, LUA_FILTER, RDS, SRDS
from msm.xds.snapshot import problems, versioned
from msm.xds.translate import Shared, Translator
from tests.unit.xds.plans import plan

TRANSLATOR = Translator(Shared("/run/rescue.sock"))
INTERNAL = versioned(TRANSLATOR.internal()) + versioned(TRANSLATOR.workers(()))


def scope_of(resources) -> scoped_route_pb2.ScopedRouteConfiguration:
    (body,) = resources[SRDS].values()
    return scoped_route_pb2.ScopedRouteConfiguration.FromString(body)


def routes_of(made) -> list:
    return list(scope_of(TRANSLATOR.service(made)).route_configuration.virtual_hosts[0].routes)


def asks_activator(route) -> bool:
    if EXT_AUTHZ_FILTER not in route.typed_per_filter_config:
        return True
    settings = ext_authz_pb2.ExtAuthzPerRoute()
    route.typed_per_filter_config[EXT_AUTHZ_FILTER].Unpack(settings)
    return not settings.disabled


def told(route) -> str:
    """A route in a line: condition → destination (asks the activator?)."""
    conditions = ",".join(
        f"{h.name}={h.string_match.exact or h.string_match.prefix or '*'}" for h in route.match.headers
    )
    if route.match.path:
        conditions = " without ".join([route.match.path, *(h.name for h in route.match.headers if h.invert_match)])
        assert [h.name for h in route.match.headers if not h.invert_match] == ["content-length"]
    if route.HasField("direct_response"):
        destination = str(route.direct_response.status)
    elif route.route.cluster:
        destination = route.route.cluster
    else:
        destination = " ".join(f"{c.name}:{c.weight.value}" for c in route.route.weighted_clusters.clusters)
    return f"{conditions or 'any'} → {destination}{' ask' if asks_activator(route) else ''}"


PLAIN = "/v2/models/iris/infer without msm-namespace without upgrade"
VERSIONS_404 = [
    "x-msm-version=*,content-type=application/grpc → 404",
    "x-msm-version=*,x-msm-dialect=openai → 404",
    "x-msm-version=* → 404",
]


@pytest.mark.parametrize(
    ("made", "table"),
    [
        (
            plan({"v1": 1}),
            [
                f"{PLAIN} without :authority → default/iris/v1:100",
                "x-msm-version=v1 → default/iris/v1",
                *VERSIONS_404,
                "any → default/iris/v1:100",
            ],
        ),
        (
            plan(
                {"v1": 1, "v2": 1},
                {"v2": 30, "v1": 70},
                aliases=(("stable", "v1"), ("gone", "v7")),
                sticky_header="x-u",
            ),
            [
                f"{PLAIN} without x-u without :authority → default/iris/v2:30 default/iris/v1:70",
                "x-msm-version=v1 → default/iris/v1",
                "x-msm-version=v2 → default/iris/v2",
                "x-msm-version=stable → default/iris/v1",
                *VERSIONS_404,
                "x-u=* → default/iris/v2:30 default/iris/v1:70",
                "any → default/iris/v2:30 default/iris/v1:70",
            ],
        ),
        (
            plan({"v1": 1, "v2": 0}, {"v1": 90, "v2": 10}, aliases=(("next", "v2"),), sticky_header="x-u"),
            [
                "x-msm-version=v1 → default/iris/v1",
                "x-msm-version=v2 → workers ask",
                "x-msm-version=next → workers ask",
                *VERSIONS_404,
                "any → workers ask",
            ],
        ),
        (
            plan({"v1": 1, "v2": 0}, sticky_header="x-u"),
            [
                f"{PLAIN} without x-u without :authority → default/iris/v1:100",
                "x-msm-version=v1 → default/iris/v1",
                "x-msm-version=v2 → workers ask",
                *VERSIONS_404,
                "any → default/iris/v1:100",
            ],
        ),
    ],
    ids=["one version", "split, alias, sticky", "a cold version in the split", "a cold version beside it"],
)
def test_the_table_of_a_service(made, table):
    assert [told(route) for route in routes_of(made)] == table


def test_a_service_without_copies_is_a_scope_that_names_the_cold_table():
    resources = TRANSLATOR.service(plan({"v1": 0}))
    assert set(resources) == {SRDS}
    scope = scope_of(resources)
    assert (scope.route_configuration_name, scope.key.fragments[0].string_key) == ("~cold", "iris")


def test_a_warm_service_has_its_routes_inline():
    scope = scope_of(TRANSLATOR.service(plan({"v1": 1})))
    assert scope.route_configuration_name == ""
    assert scope.key.fragments[0].string_key == "iris"


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.booleans())
def test_the_weights_and_their_order_are_the_declared_ones(weights, sticky):
    names = [f"v{i}" for i in range(len(weights))]
    split = dict(zip(reversed(names), weights, strict=True))
    made = plan(dict.fromkeys(names, 1), split, sticky_header="x-u" if sticky else None)
    for route in (r for r in routes_of(made) if r.route.HasField("weighted_clusters")):
        clusters = route.route.weighted_clusters.clusters
        assert [(c.name, c.weight.value) for c in clusters] == [(f"default/iris/{v}", w) for v, w in split.items()]
        assert [c.request_headers_to_add[0].header.value for c in clusters] == [c.name for c in clusters]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=5), st.data())
def test_a_unit_stays_in_the_version_that_grows_while_others_shrink(weights, data):
    """Envoy puts a hash into the interval of weights that it falls into; this is the same arithmetic."""
    rest = 100 - min(100, sum(weights[1:]))
    before = [rest, *weights[1:]] if sum(weights[1:]) <= 100 else [100] + [0] * (len(weights) - 1)
    grown = data.draw(st.integers(0, len(before) - 1))
    after = [data.draw(st.integers(0, w)) if i != grown else 0 for i, w in enumerate(before)]
    after[grown] = 100 - sum(after)

    def version_of(unit: int, shares: list[int]) -> int:
        split = {f"v{i}": w for i, w in enumerate(shares) if w}
        made = plan(dict.fromkeys([f"v{i}" for i in range(len(shares))], 1), split, sticky_header="x-u")
        sticky = routes_of(made)[-2 if len(split) > 1 else -1]
        for cluster in sticky.route.weighted_clusters.clusters:
            unit -= cluster.weight.value
            if unit < 0:
                return int(cluster.name.rsplit("v", 1)[1])
        raise AssertionError("the weights sum to less than 100")

    for unit in range(0, 100, 7):
        if version_of(unit, before) == grown:
            assert version_of(unit, after) == grown


def test_only_the_plain_request_of_a_warm_service_skips_the_extraction_script():
    def skips(route) -> bool:
        settings = lua_pb2.LuaPerRoute()
        route.typed_per_filter_config[LUA_FILTER].Unpack(settings)
        return settings.disabled

    made = plan({"v1": 1, "v2": 1}, aliases=(("stable", "v1"),), sticky_header="x-u")
    assert [route.match.path for route in routes_of(made) if skips(route)] == ["/v2/models/iris/infer"]
    assert not any(map(skips, routes_of(plan({"v1": 1, "v2": 0}, {"v1": 90, "v2": 10}))))
    assert not any(map(skips, routes_of(plan({"v1": 1}, service="team/iris", namespace="team"))))


def test_the_scope_of_a_namespaced_service_cannot_be_an_element_of_a_path():
    resources = TRANSLATOR.service(plan({"v1": 1}, service="team/iris", namespace="team"))
    assert scope_of(resources).key.fragments[0].string_key == "team~iris"


def test_the_sticky_hash_has_the_service_as_its_salt():
    sticky = routes_of(plan({"v1": 1, "v2": 1}, {"v1": 50, "v2": 50}, sticky_header="x-u"))[-2]
    assert [policy.header.header_name for policy in sticky.route.hash_policy] == ["x-u", "x-msm-service"]
    assert sticky.route.weighted_clusters.use_hash_policy.value


@pytest.mark.parametrize(("copies", "percent", "expected"), [(1, 5, ["default/iris/v2"]), (0, 5, []), (1, 0, [])])
def test_a_mirror_goes_to_a_warm_version_with_its_own_target(copies, percent, expected):
    route = routes_of(plan({"v1": 1, "v2": copies}, mirror=("v2", percent)))[-1]
    mirrors = route.route.request_mirror_policies
    assert [mirror.cluster for mirror in mirrors] == expected
    for mirror in mirrors:
        assert mirror.runtime_fraction.default_value.numerator == percent
        assert mirror.request_headers_mutations[0].append.header.value == "default/iris/v2"


@pytest.mark.parametrize(("idempotent", "replayed"), [(True, True), (False, False)])
def test_only_idempotent_models_are_replayed_after_they_were_sent(idempotent, replayed):
    made = TRANSLATOR.service(plan({"v1": 1}, idempotent=idempotent))
    policy = scope_of(made).route_configuration.virtual_hosts[0].retry_policy
    assert ("reset" in policy.retry_on.split(",")) is replayed
    assert {"connect-failure", "refused-stream", "retriable-headers"} <= set(policy.retry_on.split(","))


def test_the_shared_cold_table_does_not_replay_what_was_sent():
    tables = {name: route_pb2.RouteConfiguration.FromString(b) for name, b in TRANSLATOR.internal()[RDS].items()}
    assert "reset" not in tables["~cold"].virtual_hosts[0].retry_policy.retry_on.split(",")
    assert [told(table.virtual_hosts[0].routes[0]) for table in tables.values()] == [
        "any → workers ask",
        "any → workers ask",
        "any → workers",
        "any → api",
    ]


def test_answers_carry_the_revision_and_lose_what_is_internal():
    table = scope_of(TRANSLATOR.service(plan({"v1": 1}, revision=17))).route_configuration
    assert [(h.header.key, h.header.value) for h in table.response_headers_to_add] == [("x-msm-revision", "17")]
    assert {"x-msm-target", "x-msm-endpoint", "x-msm-retriable"} <= set(table.response_headers_to_remove)


def test_behind_the_copies_stands_the_rescue_socket():
    body = TRANSLATOR.service(plan({"v1": 2}))[EDS]["default/iris/v1"]
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    found = {
        group.priority: [e.endpoint.address.pipe.path for e in group.lb_endpoints] for group in assignment.endpoints
    }
    assert found == {0: ["/run/w0.sock", "/run/w1.sock"], 1: ["/run/rescue.sock"]}
    assert assignment.policy.overprovisioning_factor.value >= 100 * 1000


def test_copies_in_one_worker_and_their_order_make_no_difference():
    one, two = plan({"v1": 2}), plan({"v1": 2})
    turned = [route.__class__(route.key, tuple(reversed(route.endpoints)) * 2) for route in two.versions]
    made = plan({"v1": 2}).__class__(**{f: getattr(two, f) for f in two.__slots__} | {"versions": tuple(turned)})
    assert TRANSLATOR.service(one)[EDS] == TRANSLATOR.service(made)[EDS]


def test_a_cluster_ejects_for_dead_processes_only_and_never_panics():
    cluster = cluster_pb2.Cluster.FromString(TRANSLATOR.service(plan({"v1": 1}))[CDS]["default/iris/v1"])
    outliers = cluster.outlier_detection
    assert (outliers.consecutive_local_origin_failure.value, outliers.enforcing_consecutive_5xx.value) == (1, 0)
    assert outliers.split_external_local_origin_errors
    assert cluster.common_lb_config.HasField("healthy_panic_threshold")
    assert cluster.common_lb_config.healthy_panic_threshold.value == 0
    assert cluster.ignore_health_on_host_removal
    assert cluster.circuit_breakers.thresholds[0].retry_budget.min_retry_concurrency.value >= 64


@given(
    st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.integers(0, 3), min_size=1),
    st.integers(0, 100),
    st.sampled_from([None, "x-user"]),
)
def test_what_is_made_is_consistent_and_the_same_every_time(copies, percent, sticky):
    made = plan(copies, dict.fromkeys(copies, 10), sticky_header=sticky, mirror=(next(iter(copies)), percent))
    resources = versioned(TRANSLATOR.service(made))
    assert problems((*resources, *INTERNAL)) == []
    assert resources == versioned(Translator(Shared("/run/rescue.sock")).service(made))
