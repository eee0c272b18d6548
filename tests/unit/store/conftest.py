"""A store in memory, a clock that stands still, and a catalog on both."""

from __future__ import annotations

import pytest
import pytest_asyncio

from msm.kit.clock import ManualClock
from msm.store import MEMORY, Catalog, SqliteStore


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000.0)


@pytest_asyncio.fixture
async def store(clock):
    opened = await SqliteStore.open(MEMORY, clock)
    yield opened
    await opened.close()


@pytest.fixture
def catalog(store, clock) -> Catalog:
    return Catalog(store, clock)
