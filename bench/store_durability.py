"""Durability: kill -9 of a process that writes to the embedded store; no acknowledged write may be lost.

A child process writes with four concurrent writers and prints each write after its acknowledgement. It is killed after
a number of acknowledgements drawn from a seed; then the store is opened here and compared with what was printed. Every
write is a transaction of two keys, so that half a transaction would show as well.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import Figure
from msm.kit.clock import SystemClock
from msm.store import SqliteStore
from msm.store.values import Put, Txn, absent, unchanged

WRITERS = 4
FULL_CYCLES, QUICK_CYCLES = 100, 10
MOST_ACKNOWLEDGED = 400  # before a kill
CHILD_DEADLINE_S = 60.0
SEED = 7


def entry_key(writer: int, number: int) -> bytes:
    return b"entry/%d/%08d" % (writer, number)


def last_key(writer: int) -> bytes:
    return b"last/%d" % writer


@dataclass
class Found:
    """What one cycle, or all of them together, brought to light."""

    acknowledged: int = 0
    lost: int = 0
    torn: int = 0
    damaged: int = 0
    reopen_s: list[float] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.acknowledged += other.acknowledged
        self.lost += other.lost
        self.torn += other.torn
        self.damaged += other.damaged
        self.reopen_s += other.reopen_s


async def write_for_ever(path: Path) -> None:
    """The child: four writers, each going on after the last number it finds."""
    store = await SqliteStore.open(path, SystemClock())

    async def writer(me: int) -> None:
        last = (await store.get(last_key(me))).item
        seen = last.mod_revision if last else 0
        number = int(last.value) + 1 if last else 0
        while True:
            value = b"%d" % number
            puts = (Put(entry_key(me, number), value * 50), Put(last_key(me), value))
            guards = (absent(puts[0].key), unchanged(last_key(me), seen))
            seen = (await store.txn(Txn(guards, puts))).revision
            print(me, number, flush=True)
            number += 1

    async with asyncio.TaskGroup() as writers:
        for me in range(WRITERS):
            writers.create_task(writer(me))


def kill_one(path: Path, acknowledgements: int) -> dict[int, int]:
    """Start a child, kill it after so many acknowledgements; returns the last number each writer was promised."""
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.store_durability", str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    lines: list[str] = []
    try:
        while len(lines) < acknowledgements and (line := child.stdout.readline()):
            lines.append(line)
    finally:
        child.kill()
        rest = child.stdout.read()  # not `communicate`: it passes over what `readline` has read ahead
        child.stdout.close()
        child.wait(CHILD_DEADLINE_S)
    if len(lines) < acknowledgements:
        raise RuntimeError(f"the writing process ended by itself with status {child.returncode}")
    whole = [line for line in (*lines, *rest.splitlines(keepends=True)) if line.endswith("\n")]
    promised: dict[int, int] = {}
    for writer, number in (map(int, line.split()) for line in whole):
        promised[writer] = number
    return promised


async def examine(path: Path, promised: dict[int, int], before: dict[int, int]) -> Found:
    """Open the store and compare it with what the child was promised since `before`; `before` is brought up to date."""
    found = Found()
    started = time.perf_counter()
    store = await SqliteStore.open(path, SystemClock())
    try:
        found.reopen_s.append(time.perf_counter() - started)
        found.damaged = 1 if await store.integrity_check() else 0
        for me in range(WRITERS):
            entries = {item.key for item in (await store.list(b"entry/%d/" % me)).items}
            upto = promised.get(me, before.get(me, -1))
            found.acknowledged += upto - before.get(me, -1)
            found.lost += sum(entry_key(me, number) not in entries for number in range(upto + 1))
            last = (await store.get(last_key(me))).item
            reached = int(last.value) if last else -1
            found.torn += len(entries) != reached + 1
            before[me] = reached
    finally:
        await store.close()
    return found


def cycles(directory: Path, count: int, rng: random.Random) -> Found:
    """Kill and examine `count` times, always on the same database."""
    path = directory / "store.db"
    found = Found()
    before: dict[int, int] = {}
    for _ in range(count):
        promised = kill_one(path, rng.randint(1, MOST_ACKNOWLEDGED))
        found.add(asyncio.run(examine(path, promised, before)))
    return found


def run(quick: bool) -> list[Figure]:
    count = QUICK_CYCLES if quick else FULL_CYCLES
    directory = Path(tempfile.mkdtemp(prefix="msm-bench-"))
    try:
        found = cycles(directory, count, random.Random(SEED))
    finally:
        shutil.rmtree(directory)
    reopen_ms = 1000 * sorted(found.reopen_s)[len(found.reopen_s) // 2]
    return [
        Figure("acknowledged writes lost", found.lost, "writes", "0", found.lost == 0),
        Figure("transactions found in part", found.torn, "writes", "0", found.torn == 0),
        Figure("integrity checks failed", found.damaged, "checks", "0", found.damaged == 0),
        Figure("kill -9 cycles", count, "cycles", "", None),
        Figure("acknowledged writes", found.acknowledged, "writes", "", None),
        Figure("opening the store after a kill, median", reopen_ms, "ms", "", None),
    ]


if __name__ == "__main__":
    asyncio.run(write_for_ever(Path(sys.argv[1])))
