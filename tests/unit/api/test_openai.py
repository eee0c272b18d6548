"""The list of models behind the gateway, as OpenAI-style clients and KServe's first protocol ask for it."""

from __future__ import annotations

from tests.unit.api.conftest import Api


async def test_models_are_listed_and_found_without_a_token(api: Api):
    await api.declare("iris", "digits")
    listed = (await api.gateway.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["digits", "iris"]
    entry = (await api.gateway.get("/v1/models/iris")).json()
    assert (entry["id"], entry["object"], entry["owned_by"]) == ("iris", "model", "default")
    assert (entry["name"], entry["ready"]) == ("iris", False)
    assert entry["created"] > 1_500_000_000
    assert (await api.gateway.get("/v1/models/iris:v1")).status_code == 200
    assert (await api.gateway.get("/v1/models", headers={"msm-namespace": "team"})).json()["data"] == []


async def test_what_is_not_there_is_told_in_openai_s_form(api: Api):
    await api.declare("iris")
    for path, status, code in (
        ("/v1/models/irsi", 404, "not_found"),
        ("/v1/models/iris:v9", 404, "version_not_found"),
        ("/v1/models/Not%20a%20name", 400, "invalid_name"),
    ):
        answer = await api.gateway.get(path)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert (await api.http.get("/v1/models")).status_code == 404  # on the API's own port there is no such path
