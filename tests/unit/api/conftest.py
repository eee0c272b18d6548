"""The API in memory: the real application, catalog and event log on a store in memory; a node without processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from msm.api import ApiDeps, TokenFile, create_app, create_gateway_app
from msm.kit.clock import SystemClock
from msm.resources.manifest import load
from msm.resources.serving import Model
from msm.store import MEMORY, Catalog, SqliteStore
from msm.store.events import EventLog
from tests.support.fake_node import FakeNode

IRIS = """\
apiVersion: msm/v1
kind: Model
metadata: {name: iris}
spec:
  versions: [{name: v1, uri: "file:///models/iris.skops"}]
"""
YAML = {"content-type": "application/yaml"}


def manifest(name: str, **spec: Any) -> Model:
    """A model of one version with that name."""
    return load(IRIS.replace("iris", name))[0].resource


@dataclass
class Api:
    """A client of the application with the token, one without, one behind the gateway, and what is behind it."""

    http: httpx.AsyncClient
    stranger: httpx.AsyncClient
    gateway: httpx.AsyncClient
    deps: ApiDeps
    node: FakeNode

    async def declare(self, *names: str) -> None:
        await self.deps.catalog.apply([manifest(name) for name in names], who="test")


def client_of(app: Any, token: str | None) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8081", headers=headers)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    store = await SqliteStore.open(MEMORY, SystemClock())
    node = FakeNode(tmp_path)
    deps = ApiDeps(
        catalog=Catalog(store, SystemClock()),
        events=EventLog(store, SystemClock()),
        node=node,
        tokens=TokenFile.open(tmp_path),
        hosts=frozenset({"mesh.example"}),
    )
    app, behind = create_app(deps), create_gateway_app(deps)
    token = deps.tokens.token
    async with client_of(app, token) as http, client_of(app, None) as stranger, client_of(behind, None) as gateway:
        yield Api(http, stranger, gateway, deps, node)
    await store.close()
