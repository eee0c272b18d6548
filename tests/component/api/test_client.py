"""The client against a served API: typed answers, errors as they were raised, and a mesh that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from msm.api.problems import problem
from msm.client import Connection, MeshClient, error_of
from msm.kit import errors
from msm.resources.manifest import load
from msm.resources.meta import ObjectKey
from msm.resources.serving import Model
from tests.support.served_api import ServedApi, served_api

IRIS = ObjectKey("Model", "default", "iris")
MODEL = "apiVersion: msm/v1\nkind: Model\nmetadata: {name: NAME}\nspec: {versions: [{name: v1, uri: 's3://b/k'}]}\n"


def model(name: str) -> Model:
    return load(MODEL.replace("NAME", name))[0].resource


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    with served_api(tmp_path_factory.mktemp("mesh")) as running:
        yield running


@pytest.fixture
def client(served: ServedApi) -> Iterator[MeshClient]:
    with MeshClient.of(served.data_dir) as opened:
        yield opened


def test_a_model_lives_through_the_client(client: MeshClient):
    key = model("life").key
    planned = client.apply([model("life")], dry_run=True)
    assert (planned.dry_run, planned.changes[0].action, planned.plan[0].about) == (True, "created", "model/life")
    created = client.apply([model("life")]).changes[0]
    assert (created.action, created.key, created.generation) == ("created", key, 1)
    assert client.model(key).metadata.resource_version is not None
    assert key in {item.key for item in client.models("default").items}
    assert client.models("elsewhere").items == ()
    assert client.progress(key).versions["v1"].phase == "Pending"
    assert client.delete(key).action == "deleted"
    assert client.rollback(key, to=1).generation == 3
    assert client.at_generation(key, 1).spec == model("life").spec
    assert [entry.action for entry in client.history(key)] == ["created", "deleted", "rolled_back"]
    assert client.explain(key).rejected[0].about == "w1"


def test_loading_and_unloading_are_seen_in_the_state_of_the_node(client: MeshClient):
    client.activate("loaded", "v1")
    assert "default/loaded/v1" in {copy.version for copy in client.node().copies}
    client.deactivate("loaded")
    assert "default/loaded/v1" not in {copy.version for copy in client.node().copies}


def test_faults_come_back_with_their_places(client: MeshClient):
    with pytest.raises(errors.InvalidInput) as caught:
        client.apply_text(b"apiVersion: msm/v1\nkind: Model\nmetadata: {name: A}\nspec: {versionz: []}\n")
    assert [path for path, _ in caught.value.problems] == ["$.spec.versionz", "$.spec.versions"]


def test_an_unknown_model_comes_back_with_names_like_it(client: MeshClient):
    client.apply([model("sentiment")])
    with pytest.raises(errors.NotFound) as caught:
        client.model(ObjectKey("Model", "default", "sentimnt"))
    assert caught.value.nearest == ("sentiment",)
    with pytest.raises(errors.NotFound, match="not a name"):
        client.delete(ObjectKey("Model", "default", ".."))


def test_two_writers_who_saw_the_same_do_not_both_win(client: MeshClient):
    client.apply([model("raced")])
    seen = client.model(model("raced").key)
    first = client.delete(seen.key, resource_version=seen.metadata.resource_version)
    assert first.action == "deleted"
    with pytest.raises((errors.Conflict, errors.NotFound)):
        client.apply([seen])


def test_a_wrong_token_is_refused(served: ServedApi):
    connection = Connection(served.url, "http://127.0.0.1:1", "wrong")
    with MeshClient(connection) as stranger, pytest.raises(errors.Unauthenticated):
        stranger.node()


def test_where_nothing_runs_the_way_to_start_is_told(tmp_path: Path):
    with pytest.raises(errors.Unavailable, match="start one with: msm up") as caught:
        MeshClient.of(tmp_path)
    assert caught.value.reason == "not_running"
    with MeshClient(Connection("http://127.0.0.1:1", "", "x", "/data")) as gone:
        for call in (gone.node, lambda: list(gone.watch()), lambda: gone.logs("w0")):
            with pytest.raises(errors.Unavailable, match="no mesh runs on data directory /data"):
                call()


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidInput("bad", problems=[("$.a", "is bad")]), errors.InputTooLarge("large"),
        errors.Unauthenticated("who"), errors.Forbidden("no"), errors.NotFound("gone", nearest=["a", "b"]),
        errors.Conflict("changed", reason="version_immutable"), errors.Unsupported("kind"),
        errors.Overloaded("full", retry_after_s=7), errors.Unavailable("later", retry_after_s=3),
        errors.DeadlineExceeded("late"), errors.Internal("ours"),
    ],
)  # fmt: skip
def test_every_error_survives_the_way_to_the_client(error: errors.MsmError):
    sent = problem(error)
    back = error_of(httpx.Response(sent.status_code, content=bytes(sent.body), headers=dict(sent.headers)))
    assert (type(back), back.message, back.reason) == (type(error), error.message, error.reason)
    for extra in ("problems", "nearest", "retry_after_s"):
        assert getattr(back, extra, None) == getattr(error, extra, None)


def test_an_answer_of_something_else_is_an_error_too():
    assert isinstance(error_of(httpx.Response(502, content=b"<html>")), errors.Internal)
    other = httpx.MockTransport(lambda _: httpx.Response(200, json={"no": "node"}))
    client = MeshClient(Connection("http://x", "", "t"), transport=other)
    with client, pytest.raises(errors.Unavailable, match="is it of version"):
        client.node()
