"""The API on real sockets: it starts, answers, streams and ends inside a node's event loop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from msm.api import ApiDeps, HttpServer, TokenFile, bind_tcp, bind_unix, create_app, create_gateway_app
from msm.kit.clock import SystemClock
from msm.kit.errors import Conflict, InvalidInput
from msm.kit.tasks import Tasks
from msm.observe.events import Event
from msm.resources.manifest import load
from msm.store import MEMORY, Catalog, SqliteStore
from msm.store.events import EventLog
from tests.support.eventually import eventually
from tests.support.fake_node import FakeNode

MODEL = "apiVersion: msm/v1\nkind: Model\nmetadata: {name: iris}\nspec: {versions: [{name: v1, uri: 's3://b/k'}]}\n"


@pytest.fixture
async def deps(tmp_path: Path) -> AsyncIterator[ApiDeps]:
    store = await SqliteStore.open(MEMORY, SystemClock())
    events = EventLog(store, SystemClock())
    yield ApiDeps(Catalog(store, SystemClock()), events, FakeNode(tmp_path), TokenFile.open(tmp_path))
    await store.close()


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    failures: list[BaseException] = []
    async with Tasks(lambda _, failure: failures.append(failure)) as owner:
        yield owner
    assert failures == []


def client_of(deps: ApiDeps, server: HttpServer) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {deps.tokens.token}"}
    return httpx.AsyncClient(base_url=server.address, headers=headers, timeout=10, trust_env=False)


def started(deps: ApiDeps, tasks: Tasks) -> HttpServer:
    server = HttpServer(create_app(deps), bind_tcp("127.0.0.1", 0))
    tasks.start("api", server.run())
    return server


async def test_it_answers_on_tcp_and_leaves_signals_alone(deps: ApiDeps, tasks: Tasks):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    server = started(deps, tasks)
    async with client_of(deps, server) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/api/v1/node")).json()["name"] == "fake"
        answer = await client.get("/")
        assert "server" not in answer.headers
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_it_answers_the_repository_extension_on_a_private_unix_socket(
    deps: ApiDeps, tasks: Tasks, tmp_path: Path
):
    path = tmp_path / "api.sock"
    path.write_text("left by a dead process")
    server = HttpServer(create_gateway_app(deps), bind_unix(path))
    tasks.start("gateway api", server.run())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://models.example") as client:
        assert (await client.post("/v2/repository/index")).json() == []
        assert (await client.get("/api/v1/node")).status_code == 401


async def test_events_and_changes_arrive_while_they_happen(deps: ApiDeps, tasks: Tasks):
    server = started(deps, tasks)
    seen: list[dict[str, object]] = []

    async def read(path: str) -> None:
        async with client_of(deps, server) as client, client.stream("GET", path) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:]))

    reading = [
        asyncio.create_task(read(path)) for path in ("/api/v1/events?follow=true&subject=model/iris", "/api/v1/watch")
    ]
    await eventually(lambda: deps.streams.open == 2)
    deps.events.emit(Event(at=1.0, subject="worker/w0", reason="Other", message="not this", source="test"))
    deps.events.emit(Event(at=1.0, subject="model/iris", reason="Seen", message="this", source="test"))
    await deps.catalog.apply([load(MODEL)[0].resource], who="test")
    await eventually(lambda: len(seen) == 2)
    assert {item.get("reason", item.get("name")) for item in seen} == {"Seen", "iris"}
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)
    await eventually(lambda: deps.streams.open == 0)


async def test_following_misses_nothing_and_tells_nothing_twice(deps: ApiDeps, tasks: Tasks):
    def emit(number: int) -> None:
        deps.events.emit(Event(at=1.0, subject="model/iris", reason="Seen", message=str(number), source="test"))

    for number in range(5):
        emit(number)
    server = started(deps, tasks)
    path = "/api/v1/events?follow=true&limit=3"
    async with client_of(deps, server) as client, client.stream("GET", path) as answer:
        lines = (json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: "))
        emit(5)
        told = [(await anext(lines))["message"] for _ in range(3)]
        emit(6)
        while told[-1] != "6":
            told.append((await anext(lines))["message"])
    assert told in (["2", "3", "4", "5", "6"], ["3", "4", "5", "6"])


async def test_a_watch_from_a_revision_tells_what_happened_since(deps: ApiDeps, tasks: Tasks):
    await deps.catalog.apply([load(MODEL)[0].resource], who="test")
    revision, _ = await deps.catalog.list("Model")
    server = started(deps, tasks)
    async with client_of(deps, server) as client, client.stream("GET", f"/api/v1/watch?from={revision}") as answer:
        line = await anext(line async for line in answer.aiter_lines() if line.startswith("data: "))
    assert json.loads(line[6:])["model"]["metadata"]["name"] == "iris"


async def test_a_log_is_followed(deps: ApiDeps, tasks: Tasks, tmp_path: Path):
    log = tmp_path / "w0.log"
    log.write_text("first\n")
    server = started(deps, tasks)
    async with client_of(deps, server) as client, client.stream("GET", "/api/v1/logs/w0?follow=true") as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "first"
        with log.open("a") as file:
            file.write("second\n")
        assert await anext(lines) == "second"


async def test_stopping_ends_streams_and_frees_the_port(deps: ApiDeps):
    async with Tasks(lambda *_: None) as tasks:
        server = started(deps, tasks)
        port = int(server.address.rpartition(":")[2])
        async with client_of(deps, server) as client, client.stream("GET", "/api/v1/events?follow=true") as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == ": stream"
            async with asyncio.timeout(5):
                await tasks.close()
                rest = [line async for line in lines]
            assert rest == [""]
    bind_tcp("127.0.0.1", port).close()


async def test_a_taken_port_is_told_with_who_has_it():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Conflict) as caught:
            bind_tcp("127.0.0.1", port)
    assert f"port {port} on 127.0.0.1 is taken" in caught.value.message
    assert f"pid {os.getpid()}" in caught.value.message


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_a_host_that_is_not_here_is_refused(host: str):
    with pytest.raises(InvalidInput, match=host):
        bind_tcp(host, 0)


async def test_many_requests_at_once_are_all_answered(deps: ApiDeps, tasks: Tasks):
    server = started(deps, tasks)
    async with client_of(deps, server) as client:
        texts = [MODEL.replace("iris", f"m{number}") for number in range(50)]
        headers = {"content-type": "application/yaml"}
        answers = await asyncio.gather(*(client.post("/api/v1/apply", content=text, headers=headers) for text in texts))
        assert {answer.status_code for answer in answers} == {200}
        assert len((await client.get("/api/v1/models")).json()["items"]) == 50
