"""The bootstrap: deterministic, private, and without a way around the activator or the stripping of headers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from msm.gateway.bootstrap import GatewayConfig, bootstrap, extraction_script
from msm.gateway.local_replies import DISGUISES, REPLIES, local_replies
from msm.resources.meta import NAME_RULE

CONFIG = GatewayConfig(run_dir=Path("/run/msm"), node_id="n1", port=8080)


def manager(config: GatewayConfig = CONFIG) -> dict:
    made = json.loads(bootstrap(config))
    return made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def test_equal_configurations_give_equal_texts():
    assert bootstrap(CONFIG) == bootstrap(replace(CONFIG))
    assert bootstrap(CONFIG) != bootstrap(replace(CONFIG, hold_s=1.0))


def test_it_listens_where_it_is_told_and_is_administered_on_a_private_socket():
    made = json.loads(bootstrap(CONFIG))
    assert made["admin"]["address"]["pipe"] == {"path": "/run/msm/envoy-admin.sock", "mode": 0o600}
    address = made["static_resources"]["listeners"][0]["address"]["socket_address"]
    assert address == {"address": "127.0.0.1", "port_value": 8080}


def test_internal_headers_are_stripped_before_any_filter():
    (own,) = manager()["early_header_mutation_extensions"]
    *removed, scope = own["typed_config"]["mutations"]
    assert [m["remove_on_match"]["key_matcher"]["prefix"] for m in removed] == ["x-msm-", "x-envoy-"]
    assert scope["append"]["header"]["key"] == "x-msm-scope"  # set after everything of that name is gone


def test_the_activator_is_asked_between_extraction_and_routing_and_fails_closed():
    filters = manager()["http_filters"]
    assert [f["name"].rsplit(".", 1)[1] for f in filters] == ["lua", "unknown", "ext_authz", "router"]
    authz = filters[2]["typed_config"]
    assert authz["failure_mode_allow"] is False
    assert authz["clear_route_cache"] is True


@pytest.mark.parametrize("hold_s", [1.0, 20.0, 600.0])
def test_an_attempt_to_ask_the_activator_lasts_as_long_as_the_hold(hold_s):
    """Envoy uses the back-off's maximum as the time-out of one attempt: a shorter one would cancel the wait."""
    ask = manager(replace(CONFIG, hold_s=hold_s))["http_filters"][2]["typed_config"]["http_service"]
    assert ask["retry_policy"]["retry_back_off"]["max_interval"] == ask["server_uri"]["timeout"] == f"{hold_s:g}s"
    idle = float(manager(replace(CONFIG, hold_s=hold_s))["stream_idle_timeout"].rstrip("s"))
    assert idle > hold_s


def test_the_script_has_the_limits_of_the_configuration():
    script = extraction_script(replace(CONFIG, body_limit_bytes=12345))
    assert "local BODY_LIMIT = 12345\n" in script
    assert NAME_RULE in script
    assert "@" not in script


def test_the_access_log_is_off_unless_named():
    assert manager()["access_log"] == []
    (log,) = manager(replace(CONFIG, access_log=Path("/run/msm/access.log")))["access_log"]
    assert log["typed_config"]["path"] == "/run/msm/access.log"


def test_every_reply_that_envoy_makes_itself_has_a_form_for_each_protocol():
    mappers = local_replies()["mappers"]
    assert len(mappers) == len(DISGUISES) + 1 + 3 * len(REPLIES)
    for grpc, openai, rest in zip(mappers[4::3], mappers[5::3], mappers[6::3], strict=True):
        assert set(openai["body_format_override"]["json_format"]["error"]) == {"message", "type", "param", "code"}
        assert grpc["headers_to_add"][0]["header"]["key"] == "grpc-status"
        assert set(rest["body_format_override"]["json_format"]) == {"error", "code"}
    assert REPLIES[-1].when == "true"
