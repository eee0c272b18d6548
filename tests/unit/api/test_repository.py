"""The model repository extension: an open index without secrets, loading with the token."""

from __future__ import annotations

from msm.resources.serving import ModelStatus, VersionStatus
from tests.unit.api.conftest import Api, manifest

INDEX = "/v2/repository/index"


async def test_the_index_is_open_and_tells_states(api: Api):
    await api.declare("iris", "digits", "new")
    failed = ModelStatus(versions={"v1": VersionStatus(phase="Failed", reason="artifact_missing", message="/secret")})
    await api.deps.catalog.put_status(manifest("digits").key, failed)
    await api.http.post("/v2/repository/models/iris/load")
    answer = await api.gateway.post(INDEX)
    assert answer.json() == [
        {"name": "digits", "version": "v1", "state": "UNAVAILABLE", "reason": "artifact_missing"},
        {"name": "iris", "version": "v1", "state": "READY"},
        {"name": "new", "version": "v1", "state": "UNAVAILABLE", "reason": "pending"},
    ]
    assert "secret" not in answer.text
    ready = await api.gateway.post(INDEX, json={"ready": True})
    assert [entry["name"] for entry in ready.json()] == ["iris"]


async def test_load_and_unload_change_the_state(api: Api):
    await api.declare("iris")
    assert (await api.http.post("/v2/repository/models/iris/versions/v1/load", json={})).json() == {}
    api.node.draining("default/iris/v1")
    assert (await api.gateway.post(INDEX)).json()[0]["state"] == "UNLOADING"
    await api.http.post("/v2/repository/models/iris/unload", json={"parameters": {"unload_dependents": False}})
    assert (await api.gateway.post(INDEX)).json()[0]["state"] == "UNAVAILABLE"


async def test_a_namespaced_service_is_loaded_by_its_name(api: Api):
    await api.http.post("/v2/repository/models/team/iris/load")
    await api.http.post("/v2/repository/models/team/iris/versions/v2/load")
    assert set(api.node.copies) == {"team/iris/v1", "team/iris/v2"}


async def test_errors_have_the_form_of_the_protocol(api: Api):
    api.node.broken["iris"] = "the artifact is no model"
    answer = await api.http.post("/v2/repository/models/iris/load")
    assert answer.status_code == 503
    assert answer.json() == {"error": "the artifact is no model", "code": "load_failed"}
    refused = await api.gateway.post("/v2/repository/models/iris/load")
    assert refused.status_code == 401
    assert set(refused.json()) == {"error", "code"}
    wrong = await api.gateway.post(INDEX, content="{", headers={"content-type": "application/json"})
    assert wrong.status_code == 400


async def test_nothing_else_is_behind_the_gateway(api: Api):
    headers = {"authorization": f"Bearer {api.deps.tokens.token}"}
    for path in ("/api/v1/models", "/", "/metrics", "/healthz"):
        assert (await api.gateway.get(path, headers=headers)).status_code == 404


async def test_the_gateway_may_send_any_host(api: Api):
    assert (await api.gateway.post(INDEX, headers={"host": "models.example"})).status_code == 200
