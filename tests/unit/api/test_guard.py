"""Who may call, under which name, and what strangers learn."""

from __future__ import annotations

import httpx
import pytest

from msm.kit.errors import Internal
from tests.unit.api.conftest import YAML, Api

GUARDED = [
    ("GET", "/api/v1/models"), ("POST", "/api/v1/apply"), ("GET", "/api/v1/node"), ("GET", "/api/v1/events"),
    ("GET", "/api/v1/watch"), ("DELETE", "/api/v1/models/default/iris"), ("GET", "/metrics"),
    ("POST", "/v2/repository/models/iris/load"), ("POST", "/v2/repository/models/iris/unload"), ("GET", "/nothing"),
    ("POST", "/healthz"), ("OPTIONS", "/api/v1/apply"), ("GET", "/api/v1/logs/w0"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_without_a_token_everything_is_refused_alike(api: Api, method: str, path: str):
    answer = await api.stranger.request(method, path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="msm"'


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer {short}",
        "bearer  x",
    ],
)
async def test_a_wrong_token_is_refused(api: Api, given: str):
    token = api.deps.tokens.token
    header = given.format(token=token, short=token[:-1])
    answer = await api.stranger.get("/api/v1/models", headers={"authorization": header})
    assert answer.status_code == 401
    assert token not in answer.text


async def test_two_authorization_headers_are_refused(api: Api):
    good = ("authorization", f"Bearer {api.deps.tokens.token}")
    answer = await api.stranger.get("/api/v1/models", headers=[good, ("authorization", "Bearer x")])
    assert answer.status_code == 401


async def test_a_token_in_a_cookie_or_the_address_is_none(api: Api):
    token = api.deps.tokens.token
    answer = await api.stranger.get(
        f"/api/v1/models?token={token}&access_token={token}", headers={"cookie": f"token={token}"}
    )
    assert answer.status_code == 401


async def test_health_and_page_need_no_token(api: Api):
    assert (await api.stranger.get("/healthz")).json()["status"] == "ok"
    for path in ("/", "/static/app.js", "/static/style.css"):
        answer = await api.stranger.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_the_page_has_no_inline_script_and_loads_nothing_from_elsewhere(api: Api):
    html = (await api.stranger.get("/")).text
    assert "<script>" not in html
    assert "<style" not in html
    for text in (
        html,
        (await api.stranger.get("/static/app.js")).text,
        (await api.stranger.get("/static/style.css")).text,
    ):
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[::2]", "169.254.169.254:8081", ""]
)
async def test_another_host_is_misdirected(api: Api, host: str):
    answer = await api.http.get("/api/v1/models", headers={"host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8081", "127.0.0.1:1", "[::1]:8081", "mesh.example:443"])
async def test_loopback_and_configured_hosts_are_served(api: Api, host: str):
    assert (await api.http.get("/api/v1/models", headers={"host": host})).status_code == 200


async def test_the_host_is_checked_before_the_token(api: Api):
    assert (await api.stranger.get("/healthz", headers={"host": "evil.example"})).status_code == 421


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/v1/apply", {"POST"}),
        ("PUT", "/api/v1/models/default/iris", {"GET", "HEAD", "DELETE"}),
        ("POST", "/api/v1/node", {"GET", "HEAD"}),
        ("TRACE", "/", {"GET", "HEAD"}),
        ("GET", "/v2/repository/index", {"POST"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(api: Api, method: str, path: str, allowed: set[str]):
    answer = await api.http.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "path", ["/api/v1/nothing", "/api/v1/models/", "/api/v2/models", "/static/../auth.py", "/api/v1"]
)
async def test_a_path_that_is_not_there_is_not_found(api: Api, path: str):
    answer = await api.http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


class Bursting:
    """A catalog that fails in a way nobody foresaw."""

    async def list(self, *_: object) -> None:
        raise RuntimeError("secret detail")


async def test_our_mistakes_are_told_without_detail(api: Api, capsys: pytest.CaptureFixture[str]):
    object.__setattr__(api.deps, "catalog", Bursting())
    answer = await api.http.get("/api/v1/models")
    assert (answer.status_code, answer.json()["reason"]) == (500, Internal.reason)
    assert "secret" not in answer.text
    logged = capsys.readouterr()
    assert "secret detail" in logged.err + logged.out


async def test_a_refused_request_leaves_the_server_as_it_was(api: Api):
    for content in (b"\x00", b"[" * 1000, b"a: *b", b"\xff"):
        answer = await api.http.post("/api/v1/apply", content=content, headers=YAML)
        assert answer.status_code == 400
        assert "Traceback" not in answer.text
    assert (await api.http.get("/api/v1/models")).json()["items"] == []


async def test_a_websocket_is_closed(api: Api):
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    transport = api.http._transport
    assert isinstance(transport, httpx.ASGITransport)
    await transport.app({"type": "websocket", "path": "/", "headers": []}, receive, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
