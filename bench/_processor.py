"""What processes use: processor time of all their threads, and their proportional share of memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

SERVER_CORE, CLIENT_CORE = {1}, {0}


def processor_time(pids: Iterable[int]) -> float:
    """Seconds, in the kernel too, that all threads of the processes have run. Those that ended meanwhile count 0."""
    return sum(map(_of_process, pids))


def _of_process(pid: int) -> float:
    nanoseconds = 0
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    root = psutil.Process(pid)
    return [pid, *(child.pid for child in root.children(recursive=True))]


def pss_bytes(pids: Iterable[int]) -> int:
    """Resident memory of the processes; a page that several share counts in parts."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Processes started inside run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
