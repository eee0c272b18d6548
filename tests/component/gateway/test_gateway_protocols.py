"""Every way to name a model reaches it, and every refusal has the form of the caller's protocol."""

from __future__ import annotations

import json

import pytest
import pytest_asyncio

from msm.kit.errors import InvalidInput, LoadFailed, NotFound, Overloaded
from tests.component.gateway.clients import grpc_client, infer, named, rest
from tests.component.gateway.harness import Recipe, failing

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

NEAR = "there is no model '{}'; did you mean 'iris'?"
NO_MODEL = 'the body is not a JSON object with one plain text "model"'
CHAT = {"messages": [{"role": "user", "content": '"model":"no"', "model": "no"}], "model": "iris"}
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit, without '..'"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def iris(shared_mesh):
    await shared_mesh.warm("iris", "v1", "v2", split={"v1": 100}, aliases={"canary": "v2"}, revision=5)
    await shared_mesh.warm("team/iris", "v1")
    await shared_mesh.warm("a.b_c-d", "v1")
    return shared_mesh


@pytest.mark.parametrize(
    ("path", "headers", "body", "expected"),
    [
        ("/v2/models/iris/infer", {}, {}, "default/iris/v1"),
        ("/v2/models/iris/infer?a=1", {}, {}, "default/iris/v1"),
        ("/v2/models/iris", {}, {}, "default/iris/v1"),
        ("/v2/models/a.b_c-d/infer", {}, {}, "default/a.b_c-d/v1"),
        ("/v2/models/iris/versions/v2/infer", {}, {}, "default/iris/v2"),
        ("/v2/models/iris/versions/canary/infer", {}, {}, "default/iris/v2"),
        ("/v2/models/iris:canary/infer", {}, {}, "default/iris/v2"),
        ("/v2/models/iris:v2/infer", {}, {}, "default/iris/v2"),
        ("/v2//models//iris/./infer", {}, {}, "default/iris/v1"),
        ("/v2/models/%69ris/infer", {}, {}, "default/iris/v1"),
        ("/v2/models/iris/infer", {"msm-namespace": "team"}, {}, "team/iris/v1"),
        ("/v2/models/iris/infer", {"msm-namespace": "default"}, {}, "default/iris/v1"),
        ("/v1/models/iris:predict", {}, {}, "default/iris/v1"),
        ("/v1/models/iris:canary:predict", {}, {}, "default/iris/v2"),
        ("/v1/models/iris", {}, {}, "default/iris/v1"),
        ("/any/other", {"mm-model-id": "iris"}, {}, "default/iris/v1"),
        ("/any/other", {"mm-vmodel-id": "iris:canary"}, {}, "default/iris/v2"),
        ("/v1/chat/completions", {}, CHAT, "default/iris/v1"),
        ("/v1/completions", {}, {"model": "iris:canary", "prompt": "x"}, "default/iris/v2"),
        ("/v1/embeddings", {}, {"input": ["a\\", '"}'], "model": "iris"}, "default/iris/v1"),
        ("/v1/embeddings", {"mm-model-id": "iris"}, {"model": "other"}, "default/iris/v1"),
    ],
)
async def test_a_rest_request_reaches_the_version_it_names(iris, path, headers, body, expected):
    async with rest(iris) as client:
        answer = await client.post(path, content=json.dumps(body), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["target"] == expected


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "code", "sentence"),
    [
        ("/v2/models/nobody/infer", {}, "", 404, "not_found", NEAR.format("nobody")),
        ("/v2/models/iris/infer", {"msm-namespace": "ops"}, "", 404, "not_found", NEAR.format("ops/iris")),
        ("/v2/models/iris/versions/v9/infer", {}, "", 404, "version_not_found", 'model "iris" has no version "v9"'),
        ("/v2/models/iris:beta/infer", {}, "", 404, "version_not_found", 'model "iris" has no version "beta"'),
        ("/v2/models/IRIS/infer", {}, "", 400, "invalid_name", f'the model name "IRIS" is not allowed: {NAME_RULE}'),
        ("/v2/models/~cold/infer", {}, "", 400, "invalid_name", f'the model name "~cold" is not allowed: {NAME_RULE}'),
        ("/v2/models/_cold/infer", {}, "", 400, "invalid_name", f'the model name "_cold" is not allowed: {NAME_RULE}'),
        ("/v2/models/a..b/infer", {}, "", 400, "invalid_name", f'the model name "a..b" is not allowed: {NAME_RULE}'),
        ("/v2/models/a,b/infer", {}, "", 400, "invalid_name", f'the model name "a?b" is not allowed: {NAME_RULE}'),
        (
            "/v2/models/iris/infer", {"msm-namespace": "~x"}, "", 400, "invalid_name",
            f'the namespace "~x" is not allowed: {NAME_RULE}',
        ),
        (
            "/v2/models/iris/versions/V!/infer", {}, "", 400, "invalid_name",
            f'the version "V?" of model "iris" is not allowed: {NAME_RULE}',
        ),
        ("/nope", {}, "", 404, "not_found", 'there is no path "/nope"'),
        ("/v2/models/iris%2finfer", {}, "", 400, "invalid_input", "the request was refused: path_normalization_failed"),
    ],
)  # fmt: skip
async def test_a_rest_refusal_is_json_with_a_sentence_and_a_code(iris, path, headers, body, status, code, sentence):
    async with rest(iris) as client:
        answer = await client.post(path, content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (status, {"error": sentence, "code": code})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "body",
    [
        "", "[]", '{"x":{"model":"iris"}}', '{"model":5}', '{"model":{"model":"iris"}}', '{"model":"ir\\u0069s"}',
        '{"model":"iris","model":"other"}', '{"\\u006dodel":"other","model":"iris"}', '{"model":"iris"', '"model"',
        '{"model":1,"model":"iris"}', '{"model":""}',
    ],
)  # fmt: skip
async def test_a_body_that_names_no_model_is_refused_in_the_form_of_its_path(iris, body):
    async with rest(iris) as client:
        answer = await client.post("/v1/completions", content=body)
    told = {"message": NO_MODEL, "type": "invalid_request_error", "param": None, "code": "invalid_input"}
    assert (answer.status_code, answer.json()) == (400, {"error": told})


@pytest.mark.parametrize(
    ("message", "metadata", "expected"),
    [
        (named("iris"), (), "default/iris/v1"),
        (named("iris", "v2"), (), "default/iris/v2"),
        (named("iris", "canary"), (), "default/iris/v2"),
        (named("iris:canary"), (), "default/iris/v2"),
        (named("iris"), (("msm-namespace", "team"),), "team/iris/v1"),
        (b"\xff not a message", (("mm-model-id", "iris"),), "default/iris/v1"),
        (named("other"), (("mm-vmodel-id", "iris:canary"),), "default/iris/v2"),
        (named("iris", padding=2_000_000), (), "default/iris/v1"),
        (named("iris", padding=12_000_000), (), "default/iris/v1"),
        (named("iris", padding=30_000_000), (("mm-model-id", "iris"),), "default/iris/v1"),
    ],
)
async def test_a_grpc_call_reaches_the_version_it_names(iris, message, metadata, expected):
    async with grpc_client(iris) as client:
        answer = await client.call(message, metadata=metadata)
    assert answer.status == "OK", answer.text
    assert answer.json["target"] == expected
    assert answer.json["bytes"] == len(message) + 5


@pytest.mark.parametrize(
    ("call", "message", "status", "sentence"),
    [
        ("ModelInfer", named("nobody"), "NOT_FOUND", NEAR.format("nobody")),
        ("ModelInfer", named("iris", "v9"), "NOT_FOUND", 'model "iris" has no version "v9"'),
        ("ModelInfer", named("Iris"), "INVALID_ARGUMENT", f'the model name "Iris" is not allowed: {NAME_RULE}'),
        ("ModelInfer", named("a%62"), "INVALID_ARGUMENT", f'the model name "a%62" is not allowed: {NAME_RULE}'),
        ("ModelInfer", named("~cold"), "INVALID_ARGUMENT", f'the model name "~cold" is not allowed: {NAME_RULE}'),
        (
            "ModelInfer", b"", "INVALID_ARGUMENT",
            "the model name is missing, or the message is compressed: send it plain, or the header mm-model-id",
        ),
        ("ModelInfer", named("iris", padding=20_000_000), "RESOURCE_EXHAUSTED", "the body is larger than the limit"),
        (
            "ModelStreamInfer", named("iris"), "INVALID_ARGUMENT",
            "ModelStreamInfer is a stream and names its model in a header: send mm-model-id",
        ),
        ("Nothing", named("iris"), "UNIMPLEMENTED", "there is no call Nothing"),
    ],
)  # fmt: skip
async def test_a_grpc_refusal_has_the_exact_status_and_message(iris, call, message, status, sentence):
    async with grpc_client(iris) as client:
        answer = await client.call(message, call=call)
    assert (answer.status, answer.text) == (status, sentence)


@pytest.mark.parametrize(
    ("error", "http", "grpc", "code", "retry_after"),
    [
        (LoadFailed("the artifact of iris is corrupt: 100 % of “it”"), 503, "UNAVAILABLE", "load_failed", "1"),
        (
            Overloaded("the queue of iris is full: 100 wait", retry_after_s=2.2),
            429,
            "RESOURCE_EXHAUSTED",
            "overloaded",
            "3",
        ),
        (NotFound("version v7 was deleted"), 404, "NOT_FOUND", "not_found", None),
        (InvalidInput("no"), 400, "INVALID_ARGUMENT", "invalid_input", None),
    ],
)
async def test_an_activation_that_fails_says_why(shared_mesh, error, http, grpc, code, retry_after):
    service = f"broken-{code.replace('_', '-')}"
    await shared_mesh.cold(service, recipe=Recipe(failure=error))
    async with rest(shared_mesh) as client, grpc_client(shared_mesh) as calls:
        answer, called = await infer(client, service), await calls.infer(service)
    assert (answer.status_code, answer.json()) == (http, {"error": error.message, "code": code})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("retry-after") == retry_after
    assert (called.status, called.text) == (grpc, error.message)


async def test_an_activator_that_breaks_is_an_internal_error_without_its_details(shared_mesh):
    await shared_mesh.cold("bug", recipe=failing("x"))
    shared_mesh.activator.recipes["bug"] = None
    async with rest(shared_mesh) as client, grpc_client(shared_mesh) as calls:
        answer, called = await infer(client, "bug"), await calls.infer("bug")
    sentence = "activating model bug failed; the log of the node says why"
    assert (answer.status_code, answer.json()) == (500, {"error": sentence, "code": "internal"})
    assert (called.status, called.text) == ("INTERNAL", sentence)


async def test_calls_to_the_server_as_a_whole_are_answered_by_any_worker(iris):
    async with rest(iris) as client, grpc_client(iris) as calls:
        for path in ("/v2", "/v2/health/ready", "/v2/health/live"):
            assert (await client.get(path)).json()["worker"] in iris.workers
        for call in ("ServerLive", "ServerReady", "ServerMetadata"):
            assert (await calls.call(b"", call=call)).json["worker"] in iris.workers


async def test_every_answer_tells_the_revision_and_no_internal_header(iris):
    async with rest(iris) as client, grpc_client(iris) as calls:
        answers = [
            (await infer(client, "iris")).headers,
            (await infer(client, "iris:beta")).headers,
            (await calls.infer("iris")).headers,
        ]
    for headers in answers:
        assert headers["x-msm-revision"] == "5"
        assert not {"x-msm-target", "x-msm-service", "x-msm-endpoint", "x-msm-retriable"} & set(headers)
    assert answers[0]["x-msm-version"] == "v1"


async def test_a_refusal_keeps_the_connection_when_the_request_had_arrived_whole(iris):
    await iris.cold("held-back", recipe=failing("no"))
    async with rest(iris) as client:
        for refused in (await client.get("/v2/models/iris:beta"), await infer(client, "held-back")):
            assert refused.status_code in (404, 503)
            assert "connection" not in refused.headers
