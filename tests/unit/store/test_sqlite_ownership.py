"""One process owns the database file, and only a file that is ours is opened."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from asyncio.subprocess import PIPE

import pytest

from msm.kit.errors import Conflict
from msm.store import Damaged, SqliteStore, StoreInUse, StoreUnavailable
from msm.store.values import Put, Txn, absent

HOLD = """
import asyncio, sys
from msm.kit.clock import SystemClock
from msm.store import SqliteStore
async def main():
    await SqliteStore.open(sys.argv[1], SystemClock())
    print("open", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


async def test_a_second_opener_is_told_the_directory_and_the_owner(tmp_path, clock):
    path = tmp_path / "store.db"
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, str(path), stdin=PIPE, stdout=PIPE)
    try:
        assert await owner.stdout.readline() == b"open\n"
        with pytest.raises(StoreInUse) as caught:
            await SqliteStore.open(path, clock)
    finally:
        owner.kill()
        await owner.communicate()
    error = caught.value
    assert (error.directory, error.pid) == (tmp_path, owner.pid)
    assert str(tmp_path) in error.message
    assert str(owner.pid) in error.message
    assert isinstance(error, Conflict)
    store = await SqliteStore.open(path, clock)  # the kill has freed it
    await store.close()


async def test_a_closed_store_can_be_opened_again_in_the_same_process(tmp_path, clock):
    path = tmp_path / "store.db"
    first = await SqliteStore.open(path, clock)
    with pytest.raises(StoreInUse) as caught:
        await SqliteStore.open(path, clock)
    assert caught.value.pid == os.getpid()
    await first.close()
    await (await SqliteStore.open(path, clock)).close()


async def test_a_file_that_is_no_database_is_left_alone(tmp_path, clock):
    path = tmp_path / "store.db"
    path.write_bytes(b"these are my notes" * 1000)
    before = path.read_bytes()
    with pytest.raises(Damaged):
        await SqliteStore.open(path, clock)
    assert path.read_bytes() == before
    path.unlink()
    await (await SqliteStore.open(path, clock)).close()  # the failed attempt kept no lock


async def test_a_store_of_a_newer_version_is_not_touched(tmp_path, clock):
    path = tmp_path / "store.db"
    await (await SqliteStore.open(path, clock)).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    database.close()
    with pytest.raises(Damaged, match="schema 99"):
        await SqliteStore.open(path, clock)


async def test_a_place_that_cannot_be_used_is_named(tmp_path, clock):
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        await SqliteStore.open(tmp_path / "missing" / "store.db", clock)


async def test_the_files_are_readable_by_their_owner_only(tmp_path, clock):
    store = await SqliteStore.open(tmp_path / "store.db", clock)
    await store.txn(Txn((absent(b"a"),), (Put(b"a", b""),)))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    await store.close()


async def test_the_integrity_check_finds_nothing_in_a_sound_store_and_something_in_a_damaged_one(tmp_path, clock):
    path = tmp_path / "store.db"
    store = await SqliteStore.open(path, clock)
    await store.apply_all(Txn(ops=tuple(Put(b"k/%05d" % n, b"v" * 300) for n in range(2000))))
    assert await store.integrity_check() == ()
    await store.close()
    data = bytearray(path.read_bytes())
    for page in range(20, 60):
        data[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    path.write_bytes(data)
    store = await SqliteStore.open(path, clock)
    assert await store.integrity_check() != ()
    await store.close()
