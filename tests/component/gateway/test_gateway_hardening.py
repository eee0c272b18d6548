"""What clients send cannot choose a target, cross a limit, or get an answer in a wrong form."""

from __future__ import annotations

import asyncio
import json
import stat

import pytest
import pytest_asyncio

from tests.component.gateway.clients import grpc_client, infer, raw, rest
from tests.component.gateway.harness import running_mesh

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small():
    async with running_mesh(body_limit_bytes=100_000) as mesh:
        await mesh.warm("iris", "v1", "v2", split={"v1": 100})
        yield mesh


def request(*headers: bytes, path: bytes = b"/v2/models/iris/infer", body: bytes = b"{}") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"host: h", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "headers",
    [
        (b"x-msm-version: v2",),
        (b"X-MSM-VERSION: v2", b"x-msm-version: v2", b"x-Msm-Version: v2"),
        (b"x-msm-target: default/iris/v2", b"x-msm-target: evil"),
        (b"x-msm-service: other",) * 5,
        (b"x-msm-scope: ///other",) * 3,
        (b"x-msm-endpoint: /tmp/evil.sock",),
        (b"x-msm-retriable: true",),
        (b"foo: bar\tx-msm-target: evil",),
        (b"x-envoy-upstream-rq-timeout-ms: 1", b"x-envoy-retry-on: 5xx", b"x-envoy-max-retries: 9"),
    ],
)
@pytest.mark.parametrize(
    ("path", "more"),
    [
        (b"/v2/models/iris/infer", {}),
        (b"/v2/models/iris", {"x-msm-scope": "///iris", "x-msm-service": "iris"}),
    ],
    ids=["the plain request", "through the extraction script"],
)
async def test_headers_of_the_mesh_sent_by_a_client_have_no_effect(small, path, more, headers):
    status, _, body = await raw(small, request(*headers, path=path))
    answer = json.loads(body)
    assert status == 200
    assert answer["target"] == "default/iris/v1"
    kept = {name: value for name, value in answer["headers"].items() if name != "x-envoy-external-address"}
    assert kept == {"x-msm-scope": path.decode(), "x-msm-target": "default/iris/v1"} | more


async def test_the_same_holds_for_grpc_metadata(small):
    metadata = (("x-msm-version", "v2"), ("x-msm-target", "evil"), ("x-msm-endpoint", "/tmp/evil"))
    async with grpc_client(small) as client:
        answer = await client.infer("iris", metadata=metadata)
    assert answer.json["target"] == "default/iris/v1"
    assert "x-msm-endpoint" not in answer.json["headers"]


async def test_a_cold_request_goes_where_the_activator_says_not_where_the_client_says(small):
    await small.cold("lazy")
    status, _, body = await raw(
        small,
        request(b"x-msm-endpoint: /tmp/evil.sock", b"x-msm-target: evil", path=b"/v2/models/lazy/infer"),
    )
    assert status == 200
    assert json.loads(body)["target"] == "default/lazy/v1"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (request(b"a_b: c"), 400, "invalid_input"),
        (request(*(b"h%d: x" % i for i in range(70))), 431, "too_large"),
        (request(b"big: " + b"x" * 40_000), 431, "too_large"),
        (request(path=b"/v2/models/a%2fb/infer"), 400, "invalid_input"),
        (request(path=b"/v2/models/iris/infer%00"), 400, "invalid_input"),
        (request(body=b"x" * 100_001), 413, "too_large"),
        (b"POST /v2/models/iris/infer HTTP/1.1\r\ncontent-length: 0\r\n\r\n", 400, "invalid_input"),
        (request(b"host: other"), 400, "invalid_input"),
        (request(b"connection: upgrade", b"upgrade: websocket"), 403, None),
        (request(b"content-length: 5"), 400, None),
        (request(b"transfer-encoding: chunked"), 400, None),
        (request(b"te x: y"), 400, None),
    ],
)
async def test_what_breaks_the_protocol_or_a_limit_is_refused(small, sent, status, code):
    answer, headers, body = await raw(small, sent)
    assert answer == status
    if code is not None:
        assert json.loads(body)["code"] == code
        assert headers["content-type"] == "application/json"
    async with rest(small) as client:
        assert (await infer(client, "iris")).status_code == 200


async def test_a_body_at_the_limit_passes(small):
    status, _, body = await raw(small, request(body=b"x" * 100_000))
    assert (status, json.loads(body)["bytes"]) == (200, 100_000)


async def test_a_body_over_the_limit_is_resource_exhausted_for_grpc(small):
    status, headers, _ = await raw(small, request(b"content-type: application/grpc", body=b"x" * 100_001))
    assert (status, headers["grpc-status"]) == (200, "8")
    assert headers["grpc-message"] == "the body has 100001 bytes; at most 100000 are allowed"


async def test_the_sockets_are_for_this_user_alone(small):
    for path in (small.config.admin_socket, small.config.xds_socket, small.config.rescue_socket):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((small.run_dir / "envoy-bootstrap.json").stat().st_mode) == 0o600


async def test_a_slow_head_is_ended_and_others_go_on(small):
    _, writer = await asyncio.open_connection("127.0.0.1", small.config.port)
    writer.write(b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: h\r\n")
    async with rest(small) as client:
        assert (await infer(client, "iris")).status_code == 200
    writer.close()
