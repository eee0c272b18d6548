"""This process's memory: how much it is, and giving back what was freed."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_M_ARENA_MAX: Final = -8


def resident_bytes() -> int:
    """The process's resident set."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE


def private_bytes() -> int:
    """The memory that belongs to this process alone; pages shared with the process it was forked from do not count."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_bytes().splitlines():
        if line.startswith((b"Private_Clean:", b"Private_Dirty:", b"Private_Hugetlb:")):
            total += int(line.split()[1]) * 1024
    return total


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def limit_arenas(count: int = 2) -> None:
    """Let the allocator keep few arenas: models are loaded by threads, and what is freed in an arena stays in it."""
    mallopt = getattr(_libc(), "mallopt", None)  # glibc has it, musl does not
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, count)


def give_back() -> None:
    """Return freed memory to the system. Takes milliseconds: call it in a thread."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def collect() -> None:
    """Free objects that hold each other. Holds up every thread while it runs."""
    gc.collect()
