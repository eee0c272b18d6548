"""Fixtures: a fresh gateway, and one that a module's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.component.gateway.harness import Mesh, running_mesh


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_mesh() -> AsyncIterator[Mesh]:
    async with running_mesh() as made:
        yield made
