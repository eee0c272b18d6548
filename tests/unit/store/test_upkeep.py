"""History is forgotten late enough for those who lag a little."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from msm.store import Compacted, SqliteStore
from msm.store.keys import ROOT
from msm.store.upkeep import keep_compact
from msm.store.values import DeletePrefix, Put, Txn
from tests.support.eventually import eventually


async def test_history_of_the_last_period_is_kept_and_older_is_forgotten(store, clock):
    running = asyncio.create_task(keep_compact(store, clock, every_s=60.0))

    async def write() -> int:
        return (await store.txn(Txn(ops=(Put(ROOT + b"k", b""),)))).revision

    revisions = []
    for _ in range(4):
        revisions += [await write(), await write()]
        await clock.advance(60.0)

    async def forgotten() -> bool:
        await clock.advance(60.0)
        try:
            await store.list(ROOT, revision=revisions[1])
        except Compacted:
            return True
        return False

    await eventually(forgotten)
    last = await write()
    assert (await store.list(ROOT, revision=last - 1)).revision == last - 1
    with pytest.raises(Compacted):
        await anext(store.watch(ROOT, revisions[0]))
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


async def test_compaction_frees_all_rows_that_no_reader_can_see(tmp_path, clock):
    path = tmp_path / "store.db"
    store = await SqliteStore.open(path, clock)
    for number in range(50):
        await store.txn(Txn(ops=(Put(b"often", b"%d" % number), Put(b"once/%d" % number, b""))))
    await store.txn(Txn(ops=(DeletePrefix(b"once/1"),)))
    await store.txn(Txn(ops=(Put(b"last", b"1"),)))
    last = (await store.txn(Txn(ops=(Put(b"last", b""),)))).revision
    await store.compact(last)
    await store.close()
    with closing(sqlite3.connect(path)) as database:
        kept = {key for (key,) in database.execute("SELECT key FROM log")}
        (count,) = database.execute("SELECT count(*) FROM log").fetchone()
    assert kept == {b"often", b"last", *(b"once/%d" % n for n in range(50) if not str(n).startswith("1"))}
    assert count == len(kept)
