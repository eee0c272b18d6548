"""Declared models over HTTP: apply, read, delete, history, roll back."""

from __future__ import annotations

import asyncio

import pytest

from msm.resources.serving import ModelStatus, VersionKey, VersionStatus
from tests.unit.api.conftest import IRIS, YAML, Api, manifest


async def apply(api: Api, text: str, **params: str):
    return await api.http.post("/api/v1/apply", content=text, headers=YAML, params=params)


async def test_a_manifest_is_declared_and_read_back(api: Api):
    answer = await apply(api, IRIS + "---\n" + IRIS.replace("iris", "digits"))
    assert answer.status_code == 200
    changes = answer.json()["changes"]
    assert [(change["name"], change["action"], change["generation"]) for change in changes] == [
        ("iris", "created", 1), ("digits", "created", 1),
    ]  # fmt: skip
    model = (await api.http.get("/api/v1/models/default/iris")).json()
    assert model["spec"]["versions"][0]["uri"] == "file:///models/iris.skops"
    assert model["metadata"]["generation"] == 1
    listed = (await api.http.get("/api/v1/models")).json()
    assert [item["metadata"]["name"] for item in listed["items"]] == ["digits", "iris"]
    assert listed["revision"] >= model["metadata"]["resourceVersion"]


async def test_json_is_as_good_as_yaml(api: Api):
    model = '{"apiVersion":"msm/v1","kind":"Model","metadata":{"name":"a"},"spec":{"versions":[{"name":"v1","uri":"s3://b/k"}]}}'
    answer = await api.http.post("/api/v1/apply", content=model, headers={"content-type": "application/json"})
    assert answer.json()["changes"][0]["action"] == "created"


async def test_a_dry_run_tells_changes_and_plan_and_writes_nothing(api: Api):
    answer = await apply(api, IRIS, dryRun="true")
    assert answer.json()["dryRun"] is True
    assert answer.json()["changes"][0]["action"] == "created"
    assert answer.json()["plan"] == [{"about": "model/iris", "message": "It would be fetched and measured."}]
    assert (await api.http.get("/api/v1/models/default/iris")).status_code == 404


async def test_every_fault_of_a_manifest_is_in_the_problem_document(api: Api):
    answer = await apply(api, IRIS + "  maxqueue: 1\n  idempotent: no\n")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["reason"]) == (400, "invalid_input")
    assert [fault["path"] for fault in problem["errors"]] == ["$.spec.maxqueue", "$.spec.idempotent"]
    assert "line 6" in problem["errors"][0]["reason"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/yaml; charset=utf-16", "multipart/form-data"])
async def test_a_body_of_another_type_is_refused(api: Api, kind: str | None):
    headers = {"content-type": kind} if kind else {}
    answer = await api.http.post("/api/v1/apply", content=IRIS.encode(), headers=headers)
    assert answer.status_code == 415
    assert "application/yaml" in answer.json()["detail"]


async def test_a_compressed_body_is_refused(api: Api):
    answer = await api.http.post("/api/v1/apply", content=b"x", headers={**YAML, "content-encoding": "gzip"})
    assert answer.status_code == 415


async def chunks(size: int):
    for _ in range(size // 65_536):
        yield b"#" * 65_536
    yield b"#" * (size % 65_536)


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_is_refused_whether_it_says_so_or_not(api: Api, declared: bool):
    size = 1024 * 1024 + 1
    content = b"#" * size if declared else chunks(size)
    answer = await api.http.post("/api/v1/apply", content=content, headers=YAML)
    assert answer.status_code == 413
    assert "1048576" in answer.json()["detail"]


async def test_a_version_cannot_change_under_its_name(api: Api):
    await apply(api, IRIS)
    answer = await apply(api, IRIS.replace("iris.skops", "other.skops"))
    assert (answer.status_code, answer.json()["reason"]) == (409, "version_immutable")


async def test_a_stale_resource_version_is_a_conflict(api: Api):
    await apply(api, IRIS)
    answer = await apply(api, IRIS.replace("{name: iris}", "{name: iris, resourceVersion: 999}"))
    assert answer.status_code == 409


async def test_an_unknown_model_is_answered_with_names_like_it(api: Api):
    await api.declare("iris", "digits")
    answer = await api.http.get("/api/v1/models/default/irsi")
    assert answer.status_code == 404
    assert answer.json()["nearest"] == ["iris"]


@pytest.mark.parametrize("name", ["IRIS", "%00", "a%2Fb", "x" * 5000, "a..b"])
async def test_what_cannot_be_a_name_is_not_found(api: Api, name: str):
    answer = await api.http.get(f"/api/v1/models/default/{name}")
    assert answer.status_code == 404
    assert len(answer.content) < 1000


async def test_delete_keeps_the_history_and_tells_twice_apart(api: Api):
    await api.declare("iris")
    deleted = await api.http.delete("/api/v1/models/default/iris")
    assert (deleted.status_code, deleted.json()["action"]) == (200, "deleted")
    assert (await api.http.delete("/api/v1/models/default/iris")).status_code == 404
    history = (await api.http.get("/api/v1/models/default/iris/history")).json()["items"]
    assert [entry["action"] for entry in history] == ["created", "deleted"]


async def test_delete_of_another_state_than_seen_is_a_conflict(api: Api):
    await api.declare("iris")
    answer = await api.http.delete("/api/v1/models/default/iris?resourceVersion=999")
    assert answer.status_code == 409
    assert (await api.http.delete("/api/v1/models/default/iris?resourceVersion=-1")).status_code == 400


async def test_history_can_be_read_and_rolled_back_to(api: Api):
    await apply(api, IRIS)
    await apply(api, IRIS + "  maxQueue: 5\n")
    first = (await api.http.get("/api/v1/models/default/iris/history/1")).json()
    assert "maxQueue" not in first["spec"]
    back = await api.http.post("/api/v1/models/default/iris/rollback", json={"to": 1})
    assert (back.status_code, back.json()["generation"]) == (200, 3)
    assert "maxQueue" not in (await api.http.get("/api/v1/models/default/iris")).json()["spec"]
    entries = (await api.http.get("/api/v1/models/default/iris/history")).json()["items"]
    assert entries[2]["restored"] == 1


async def test_rollback_without_a_body_takes_the_one_before(api: Api):
    await apply(api, IRIS)
    await apply(api, IRIS + "  maxQueue: 5\n")
    assert (await api.http.post("/api/v1/models/default/iris/rollback")).status_code == 200
    assert "maxQueue" not in (await api.http.get("/api/v1/models/default/iris")).json()["spec"]


@pytest.mark.parametrize(
    ("path", "status"), [("history/9", 404), ("history/x", 404), ("history/-1", 404), ("history/" + "9" * 50, 404)]
)
async def test_an_unknown_generation_is_not_found(api: Api, path: str, status: int):
    await api.declare("iris")
    assert (await api.http.get(f"/api/v1/models/default/iris/{path}")).status_code == status


@pytest.mark.parametrize("body", ['{"to": "x"}', '{"too": 1}', "[", "[" * 50_000])
async def test_a_wrong_rollback_is_refused(api: Api, body: str):
    await api.declare("iris")
    headers = {"content-type": "application/json"}
    answer = await api.http.post("/api/v1/models/default/iris/rollback", content=body, headers=headers)
    assert answer.status_code == 400


async def test_nothing_to_roll_back_is_a_conflict(api: Api):
    await api.declare("iris")
    answer = await api.http.post("/api/v1/models/default/iris/rollback")
    assert (answer.status_code, answer.json()["reason"]) == (409, "nothing_to_roll_back")


async def test_progress_tells_phases_and_fetched_bytes(api: Api):
    await api.declare("iris")
    key = manifest("iris").key
    status = ModelStatus(observed_generation=1, versions={"v1": VersionStatus(phase="Fetching")})
    await api.deps.catalog.put_status(key, status)
    api.node.fetching[VersionKey("default", "iris", "v1")] = 4096
    progress = (await api.http.get("/api/v1/models/default/iris/progress")).json()
    assert progress == {
        "observed": 1, "generation": 1, "versions": {"v1": {"phase": "Fetching", "fetchedBytes": 4096}},
    }  # fmt: skip


async def test_of_two_writers_who_saw_the_same_one_wins(api: Api):
    await apply(api, IRIS)
    seen = (await api.http.get("/api/v1/models/default/iris")).json()["metadata"]["resourceVersion"]
    text = IRIS.replace("{name: iris}", f"{{name: iris, resourceVersion: {seen}}}")
    answers = await asyncio.gather(*(apply(api, text + f"  maxQueue: {number}\n") for number in (1, 2)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
