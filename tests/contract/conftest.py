"""Every contract test gets each back end in turn."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.contract.backends import BACKENDS, DURABLE, Backend


@pytest.fixture(params=BACKENDS)
def backend(request, tmp_path) -> Backend:
    return BACKENDS[request.param](tmp_path)


@pytest.fixture(params=DURABLE)
def durable_backend(request, tmp_path) -> Backend:
    return BACKENDS[request.param](tmp_path)


@pytest_asyncio.fixture
async def store(backend):
    opened = await backend.open()
    yield opened
    await opened.close()
